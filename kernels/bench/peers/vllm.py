"""vLLM's Triton kernels (0.33), with its default block sizes or with ones searched for at each point.

Its metadata is prepared once a step outside the graph, as vLLM does, and the grid is that of the adapters in the step:
what it captures with `specialize_active_lora`, the faster of its two settings. Ranks are exact, without the padding to
`max_lora_rank` that a server would have. Between shrink and expand it keeps fp32, and its shrink adds up atomically
into a buffer that it zeroes first.
"""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch

from kernels.bench.clock import Timed, in_turns
from kernels.bench.peers.base import Operation, PeerMissing, folder_of, load, package, stand_in
from kernels.bench.sgmv_points import Point, Problem
from kernels.triton_jit import next_power_of_2, tl, triton_module

_OPS: Final = "vllm.lora.ops.triton_ops"
# Of its README's grid, what is plausible at 1 to 64 rows.
SHRINK_SEARCH: Final = [
    {"block_m": 16, "block_n": 16, "block_k": block_k, "split_k": split_k, "num_warps": 4, "num_stages": stages}
    for block_k, split_k, stages in ((256, 16, 2), (256, 8, 3), (128, 32, 2), (128, 8, 4), (64, 32, 3))
]
EXPAND_SEARCH: Final = [
    {"block_m": 16, "block_n": block_n, "block_k": 16, "num_warps": warps, "num_stages": 2}
    for block_n, warps in ((32, 4), (64, 4), (128, 4), (128, 8), (256, 4))
]


class Vllm:
    """root: the folder that holds `vllm/lora/ops/triton_ops`. tuned: search block sizes at each point."""

    def __init__(self, root: Path, *, tuned: bool = False) -> None:
        self._tuned = tuned
        _prepare(folder_of(root, "vllm", "lora", "ops", "triton_ops"))
        self._shrink, self._expand = load(f"{_OPS}.lora_shrink_op"), load(f"{_OPS}.lora_expand_op")
        self._metadata, self._utils = load(f"{_OPS}.lora_kernel_metadata"), load(f"{_OPS}.utils")
        self._own_choice = self._shrink.get_lora_op_configs
        self._found: dict[Point, list[Mapping[str, int]]] = {}

    def operations(self, problem: Problem) -> Sequence[Operation]:
        """See `Peer`."""
        if problem.dtype not in (torch.float16, torch.bfloat16):
            raise PeerMissing("vLLM's kernels take half precision only")
        adapters, rows = len(problem.lengths), problem.point.rows
        for kept in (self._utils._LORA_A_PTR_DICT, self._utils._LORA_B_PTR_DICT):
            kept.clear()  # it keeps all weights that it has ever seen
        metadata = self._metadata.LoRAKernelMeta.make(adapters, rows, problem.device)
        metadata.prepare_tensors(torch.tensor(problem.slots, dtype=torch.int32, device=problem.device))
        arguments = metadata.meta_args(rows, specialize_active_lora=True)
        operations = [self._operation(problem, index, arguments) for index in range(problem.sets)]
        self._choose({}, {})
        if self._tuned:
            if problem.point not in self._found:
                before = problem.y.clone()
                self._found[problem.point] = self._search(operations, problem)
                problem.y.copy_(before)
            self._choose(*self._found[problem.point])
        return operations

    def _operation(self, problem: Problem, index: int, arguments: tuple[Any, ...]) -> Operation:
        x, y = problem.x[index], problem.y[index]
        a, b = [problem.a[index]], [problem.b[index].transpose(1, 2).contiguous()]

        def operation() -> None:
            h = torch.empty((1, x.shape[0], a[0].shape[1]), dtype=torch.float32, device=x.device)
            self._shrink.lora_shrink(x, a, h, *arguments, 1.0)
            self._expand.lora_expand(h, b, y, *arguments, 0, True)

        return operation

    def _search(self, operations: Sequence[Operation], problem: Problem) -> list[Mapping[str, int]]:
        """The fastest of each list, shrink first; a choice that does not compile is left out."""
        few, chosen = operations[: min(len(operations), 32)], list[Mapping[str, int]]([{}, {}])
        for place, candidates in enumerate((SHRINK_SEARCH, EXPAND_SEARCH)):
            best = float("inf")
            for candidate in [{}, *candidates]:
                trial = [*chosen]
                trial[place] = candidate
                self._choose(*trial)
                try:
                    time = in_turns([Timed(few, problem.device)], 5)[0]
                except Exception:
                    continue
                if time < best:
                    best, chosen[place] = time, candidate
        return chosen

    def _choose(self, shrink: Mapping[str, int], expand: Mapping[str, int]) -> None:
        """Its own choice of block sizes, changed by these."""

        def configs(own: Callable[..., dict[str, int]], op_type: str, **place: Any) -> dict[str, int]:
            return {**own(op_type, **place), **(shrink if op_type == "shrink" else expand)}

        for module in (self._shrink, self._expand):
            module.get_lora_op_configs = functools.partial(configs, self._own_choice)  # type: ignore[attr-defined]


def _prepare(folder: Path) -> None:
    """The packages on the way, and stand-ins for what the five files take from elsewhere."""
    if triton_module is None:
        raise PeerMissing("Triton is not installed")
    for name in ("vllm", "vllm.lora", "vllm.lora.ops", "vllm.utils"):
        package(name)
    package(_OPS, folder)
    stand_in(
        "vllm.envs",
        VLLM_BATCH_INVARIANT=False,
        VLLM_LORA_DISABLE_PDL=True,
        VLLM_LORA_ENABLE_DUAL_STREAM=False,
        VLLM_TUNED_CONFIG_FOLDER=None,
    )
    platform = SimpleNamespace(
        is_cuda=torch.cuda.is_available,
        is_device_capability=lambda version: _capability() == version,
        has_device_capability=lambda version: _capability() >= version,
        get_device_name=lambda *_: torch.cuda.get_device_name(),
    )
    stand_in("vllm.platforms", current_platform=platform)
    stand_in("vllm.triton_utils", tl=tl, triton=triton_module, HAS_TRITON=True)
    stand_in("vllm.logger", init_logger=_logger)
    stand_in("vllm.utils.math_utils", next_power_of_2=next_power_of_2)
    stand_in("vllm.utils.torch_utils", direct_register_custom_op=_unregistered, async_tensor_h2d=_to_device)


def _capability() -> int:
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
    return 10 * major + minor


def _logger(name: str) -> logging.Logger:
    logger = logging.getLogger(name)
    for level in ("warning", "info"):
        setattr(logger, f"{level}_once", lambda *_: None)
    return logger


def _unregistered(**_: Any) -> None:
    """Its files then use the plain functions, which is what we want."""
    raise AttributeError("no registry here")


def _to_device(values: list[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=device)
