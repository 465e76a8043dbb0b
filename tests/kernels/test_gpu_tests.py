"""The tests for a GPU, interpreted at toy sizes: on the day there is one, their own Python must not be what fails.

What a GPU alone has (graphs, streams, its free memory) is replaced here by the nearest thing that a CPU does.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from kernels.lora_shrink import ShrinkPlan, default_plan
from kernels.segments import TILE_ROWS, DeviceSegments
from tests.gpu import test_adapter_scatter as scatter
from tests.gpu import test_sgmv as sgmv
from tests.kernels.interpreter_memory import InterpreterMemory


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch, interpreter: InterpreterMemory) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 40, 1 << 40))
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    monkeypatch.setattr("kernels.lora_shrink._PROGRAMS", 24)
    monkeypatch.setattr("kernels.lora_shrink._WORKERS", 4)
    monkeypatch.setattr("kernels.lora_shrink.default_plan", _plan)
    monkeypatch.setattr(scatter, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(scatter, "POOL_DTYPE", torch.float32)
    monkeypatch.setattr(scatter, "SHAPES", [(16, (16, 16, 16)), (16, (16,)), (16, (32, 32)), (32, (16,))])
    monkeypatch.setattr(scatter, "LAYERS", 2)
    monkeypatch.setattr(scatter, "ROWS", 20)
    monkeypatch.setattr(scatter, "RANK", 8)
    monkeypatch.setattr(sgmv, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(sgmv, "DTYPE", torch.float32)
    toys = {name: (18, (16, 8, 8)[: len(slices)]) for name, (_, slices) in sgmv.SHAPES.items()}
    monkeypatch.setattr(sgmv, "SHAPES", toys)
    monkeypatch.setattr(sgmv, "STEPS", [[(0, 1), (2, 2)], [(0, 1), (1, 1), (3, 1)], [(-1, 3)], [(1, 3)]])
    monkeypatch.setattr(sgmv, "FEW", [[(-1, 1), (2, 2)], [(0, 1), (1, 2)]])
    monkeypatch.setattr(sgmv, "FEW_TILES", {1: 3, 16: 2})
    monkeypatch.setattr(sgmv, "EARLY", 0)
    monkeypatch.setattr(sgmv, "REPEATS", 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(sgmv, "QUEUED", 3)
    monkeypatch.setattr(sgmv, "LONG", 36)
    monkeypatch.setattr(sgmv, "POOL", (8, 200))


def _plan(segments: DeviceSegments, slices: int) -> ShrinkPlan:
    """Four rank rows at once: the interpreter takes as long for one. The plan of a GPU is run in `test_sgmv.py`."""
    plan = default_plan(segments, slices)
    return plan._replace(rank_block=max(4, plan.rank_block))


@pytest.mark.parametrize("tile_rows", [1, TILE_ROWS])
@pytest.mark.parametrize(
    "body",
    [
        lambda tile_rows: sgmv.test_decode("zipf", 7, "qkv", tile_rows),
        lambda tile_rows: sgmv.test_all_ranks_in_one_step(torch.float16, tile_rows),
        lambda tile_rows: sgmv.test_odd_sizes("tiny", tile_rows),
        sgmv.test_a_graph_serves_fewer_and_more_adapters_than_it_was_captured_with,
        sgmv.test_a_graph_for_few_tiles,
        sgmv.test_written_instead_of_added,
        sgmv.test_an_expand_that_is_launched_early_gives_the_same_bits,
        sgmv.test_a_slot_is_used_again_by_a_smaller_rank,
        sgmv.test_the_last_slot_and_the_last_rows_beyond_2_31_elements,
    ],
)
def test_sgmv_by_tile_size(body: Callable[[int], None], tile_rows: int) -> None:
    body(tile_rows)


@pytest.mark.parametrize(
    "body",
    [
        lambda: sgmv.test_prefill_beside_decode("down"),
        sgmv.test_a_step_needs_no_synchronisation,
        sgmv.test_uploads_keep_their_order_while_the_device_is_behind,
    ],
)
def test_sgmv(body: Callable[[], None]) -> None:
    body()


@pytest.mark.parametrize(
    "body",
    [
        lambda: scatter.test_a_packed_adapter_reaches_every_layer(torch.float16, "everything"),
        lambda: scatter.test_a_packed_adapter_reaches_every_layer(torch.float32, "query and value"),
        scatter.test_a_graph_scatters_other_adapters,
        lambda: scatter.test_what_is_not_finite_is_flagged(torch.float32),
    ],
)
def test_adapter_scatter(body: Callable[[], None]) -> None:
    body()


@pytest.mark.parametrize(("name", "module"), [("sgmv", sgmv), ("scatter", scatter)])
def test_every_gpu_test_is_run_here(name: str, module: ModuleType) -> None:
    names = {member for member in vars(module) if member.startswith("test_")}
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(f"{name}.{member}" in source for member in names)
