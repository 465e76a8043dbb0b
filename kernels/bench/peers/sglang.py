"""SGLang's two LoRA backends (0.5.23): "csgmv", its default, and "triton_v2", whose table per card picks kernels.

csgmv: rows are cut into chunks of one adapter, of 16 rows below 64 rows and of 32 from there on, as its backend does
with its largest chunk allowed. triton_v2: the table's plan for the point without its overlap of the shrink with the
base product, which an operation alone cannot show; routes are built before the graph, since a step builds them once
for all layers. The slots are those of the step, not all that a server has loaded.
"""

import enum
import importlib.util
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import torch

from kernels.bench.peers.base import Operation, PeerMissing, folder_of, load, package, stand_in
from kernels.bench.sgmv_points import Problem
from kernels.triton_jit import cdiv, triton_module

_DENSE: Final = "sglang.kernels.ops.lora.dense"
_V2: Final = "sglang.srt.lora.dense"


class Phase(enum.StrEnum):
    """Which plans of the table are meant; its values are those of the table's rows."""

    DECODE = "decode"
    PREFILL = "prefill"


class Csgmv:
    """root: the folder that holds `sglang/`."""

    def __init__(self, root: Path) -> None:
        _prepare(root)
        self._shrink = load(f"{_DENSE}.chunked_sgmv_shrink").chunked_sgmv_lora_shrink_forward
        self._expand = load(f"{_DENSE}.chunked_sgmv_expand").chunked_sgmv_lora_expand_forward

    def operations(self, problem: Problem) -> Sequence[Operation]:
        """See `Peer`."""
        chunk, device = 16 if problem.point.rows < 64 else 32, problem.device
        starts, owners, first = [0], list[int](), 0
        for slot, count in enumerate(problem.lengths):
            for begin in range(0, count, chunk):
                starts.append(first + min(count, begin + chunk))
                owners.append(slot)
            first += count

        def words(values: Sequence[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        batch = SimpleNamespace(
            use_cuda_graph=True,
            max_len=chunk,
            num_segments=len(owners),
            seg_indptr=words(starts),
            weight_indices=words(owners),
            lora_ranks=words([problem.point.rank] * len(problem.lengths)),
            scalings=torch.ones(len(problem.lengths), device=device),
            permutation=words(range(problem.point.rows)),
        )
        columns = [0, problem.point.out_features]
        offsets = words(columns), problem.point.out_features, torch.tensor(columns)
        return [self._operation(problem, index, batch, *offsets) for index in range(problem.sets)]

    def _operation(
        self, problem: Problem, index: int, batch: Any, offsets: torch.Tensor, widest: int, on_host: torch.Tensor
    ) -> Operation:
        x, y, a = problem.x[index], problem.y[index], problem.a[index]
        b = problem.b[index].transpose(1, 2).contiguous()

        def operation() -> None:
            h = self._shrink(x, a, batch, 1)
            self._expand(h, b, batch, offsets, widest, y, on_host)

        return operation


class TritonV2:
    """root: the folder that holds `sglang/`."""

    def __init__(self, root: Path) -> None:
        _prepare(root)
        plan = load(f"{_V2}.plan")
        tables = folder_of(root, "sglang", "srt", "lora", "dense", "configs")
        plan.load_plans = lambda architecture: _plans(tables, architecture)  # type: ignore[attr-defined]
        self._kind = plan.DenseLoraKind.LINEAR
        self._runner, self._workspace = load(f"{_V2}.runner"), load("sglang.srt.lora.workspace")
        self._runner.load_plans = plan.load_plans  # type: ignore[attr-defined]
        self._geometry = self._runner.slice_geometry

    def operations(self, problem: Problem) -> Sequence[Operation]:
        """See `Peer`."""
        device, point = problem.device, problem.point
        if device.type != "cuda":
            self._runner.slice_geometry = _geometry_anywhere  # type: ignore[attr-defined]
        runner = self._runner.DenseLoraRunner(
            self._workspace.LoraWorkspace(), max_loras=len(problem.lengths), device=device
        )
        runner.begin_batch(
            token_slots=torch.tensor(problem.slots, dtype=torch.int32, device=device),
            lora_ranks=torch.full((len(problem.lengths),), point.rank, dtype=torch.int32, device=device),
            scalings=torch.ones(len(problem.lengths), device=device),
            num_tokens=point.rows,
            phase=Phase.DECODE,
            graph_mode=False,
        )
        plan = runner.plan_for(self._kind, point.rank, point.in_features, point.out_features, num_tokens=point.rows)
        return [self._operation(problem, index, runner, plan) for index in range(problem.sets)]

    def _operation(self, problem: Problem, index: int, runner: Any, plan: Any) -> Operation:
        x, y, a = problem.x[index], problem.y[index], problem.a[index]
        b = problem.b[index].transpose(1, 2).contiguous()

        def operation() -> None:
            bridge = runner.run_a(x, a, stack=1, plan=plan)
            runner.run_b(bridge, b, y, offsets=(0, y.shape[1]), plan=plan)

        return operation


def _prepare(root: Path) -> None:
    """The packages on the way, and stand-ins for what the kernels take from the rest of the server."""
    if triton_module is None:
        raise PeerMissing("Triton is not installed")
    top = folder_of(root, "sglang")
    for name in (
        "kernels",
        "kernels.ops",
        "kernels.ops.lora",
        "kernels.ops.lora.moe",
        "kernels.jit",
        "srt",
        "srt.lora",
    ):
        if name == "kernels":
            package("sglang", top)
        package(f"sglang.{name}", top.joinpath(*name.split(".")))
    for name in ("kernels.ops.lora.dense", "kernels.ops.lora.common", "srt.lora.dense"):
        package(f"sglang.{name}", top.joinpath(*name.split(".")))
    switch = SimpleNamespace(get=lambda: None)
    stand_in(
        "sglang.srt.environ",
        envs=SimpleNamespace(
            SGLANG_ENABLE_LORA_CSGMV_SPLIT_K=switch,
            SGLANG_ENABLE_DETERMINISTIC_INFERENCE=switch,
            SGLANG_LORA_DENSE_CONFIG_DIR=switch,
        ),
    )
    stand_in("sglang.srt.utils", cached_triton_kernel=lambda key: lambda kernel: kernel, get_device_name=_card)
    stand_in("sglang.srt.lora.utils", LoRABatchInfo=object, Phase=Phase, architecture_for_capability=_architecture)
    stand_in("sglang.kernels.jit.utils", is_arch_support_pdl=lambda: False)
    stand_in("sglang.kernels.ops.lora.moe.virtual_experts", _align_block_size_jit=_no_other_route)
    if not _installed("msgspec"):
        stand_in("msgspec", Struct=_Struct)
    if not _installed("pydantic"):
        stand_in(
            "pydantic",
            BaseModel=object,
            ConfigDict=dict,
            Field=lambda **_: None,
            model_validator=lambda **_: lambda method: method,
        )
    logging.getLogger("sglang").setLevel(logging.ERROR)


def _plans(folder: Path, architecture: str) -> Any:
    """Its table as objects with the fields that its look-up reads; None where there is none."""
    path = folder / f"{architecture}.plans.json"
    if not path.exists():
        return None
    rows = []
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        known = {name: row.get(name) for name in ("kinds", "max_tokens", "max_rank", *_BANDS)}
        phase = Phase(row["phase"]) if row.get("phase") else None
        rows.append(SimpleNamespace(**known, name=row["name"], phase=phase, spec=_spec(row.get("spec", {}))))
    return SimpleNamespace(rows=rows)


_BANDS: Final = ("min_in_features", "max_in_features", "min_out_features", "max_out_features")


def _spec(fields: dict[str, Any]) -> SimpleNamespace:
    plan = load(f"{_V2}.plan")
    kinds: dict[str, Callable[[str], Any]] = {
        "a_family": plan.AFamily, "b_family": plan.BFamily, "overlap": plan.Overlap
    }  # fmt: skip
    named = {name: kinds[name](value) if name in kinds else value for name, value in fields.items()}
    return SimpleNamespace(a_family=named.get("a_family"), model_dump=lambda: named)


def _geometry_anywhere(offsets: Sequence[int], block: int, device: torch.device) -> Any:
    """Its geometry of one slice, which it makes for CUDA devices only; tests run its kernels interpreted."""
    module: ModuleType = load("sglang.kernels.ops.lora.common.lora_b")
    width = offsets[1]
    rows = torch.tensor([0, width], dtype=torch.int32, device=device)
    return module.SliceGeometry(
        slice_offsets=rows,
        out_offsets=rows[:1],
        num_slices=1,
        num_column_tiles=cdiv(width, block),
        uniform_width=width,
        out_stride=width,
        full_tiles=width % block == 0,
        block_size_n=block,
    )


class _Struct:
    """As much of `msgspec.Struct` as its one record needs, where msgspec is not installed."""

    def __init_subclass__(cls, **_: Any) -> None:
        dataclass(cls)


def _architecture(major: int) -> str:
    return "sm90" if major == 9 else "sm100" if major >= 10 else "default"


def _card() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _no_other_route(*_: Any, **__: Any) -> Any:
    raise PeerMissing("triton_v2 would route so many rows with a kernel that is not loaded here")
