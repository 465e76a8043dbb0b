"""Shrink and expand in bf16 at Llama-2-7B's sizes, against float64. The bodies are those of `tests/kernels`.

`tests/kernels/test_gpu_tests.py` runs every test of this file interpreted, with other values for the capitals below.
"""

import pytest
import torch

from kernels.lora_expand import lora_expand
from kernels.lora_shrink import lora_shrink
from kernels.segments import BASE_SLOT, TILE_ROWS, SlotRows, build_segments, tile_rows_for
from tests.kernels.replay import captured
from tests.kernels.sgmv_cases import (
    POPULARITIES,
    RANKS,
    Case,
    buffers_for,
    check_case,
    check_replays,
    check_written,
    make_case,
    popularity,
    run,
)

DEVICE, DTYPE = torch.device("cuda"), torch.bfloat16
BOTH = pytest.mark.parametrize("tile_rows", [1, TILE_ROWS])
TOLERANCE = {torch.bfloat16: 5e-3, torch.float16: 1e-3, torch.float32: 1e-5}
Shape = tuple[int, tuple[int, ...]]
SHAPES: dict[str, Shape] = {
    "qkv": (4096, (4096, 4096, 4096)), "gate_up": (4096, (11008, 11008)), "down": (11008, (4096,)),
    "odd": (2049, (4099,)), "narrow": (896, (896, 128, 128)), "tiny": (33, (31, 7, 1)),
}  # fmt: skip
STEPS: list[list[tuple[int, int]]] = [
    [(0, 16), (2, 17)], [(slot, 3 + slot) for slot in range(6)], [(BASE_SLOT, 33)], [(4, 33)],
    [(BASE_SLOT, 30), (1, 1), (3, 1), (5, 1)],
]  # fmt: skip
FEW, FEW_TILES = [[(0, 16), (2, 17)], [(BASE_SLOT, 31), (4, 2)]], {1: 33, TILE_ROWS: 3}
EARLY, REPEATS = 1, 20
QUEUED, LONG, POOL = 16, 3001, (11008, (1 << 31) // 11008 + 4096)


@BOTH
@pytest.mark.parametrize("shape", ["qkv", "gate_up", "down"])
@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("kind", POPULARITIES)
def test_decode(kind: str, batch: int, shape: str, tile_rows: int) -> None:
    lengths = popularity(kind, batch)
    ranks = [(8, 16, 32, 64)[index % 4] for index in range(len(lengths))]
    case = make_case(DEVICE, DTYPE, *SHAPES[shape], ranks, [(BASE_SLOT, 2), *enumerate(lengths)])
    check_case(case, tile_rows, TOLERANCE[DTYPE])


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_all_ranks_in_one_step(dtype: torch.dtype, tile_rows: int) -> None:
    rows = [(BASE_SLOT, 3), *((slot, 1 + slot % 3) for slot in range(len(RANKS)))]
    case = make_case(DEVICE, dtype, *SHAPES["narrow"], RANKS, rows)
    check_case(case, tile_rows, TOLERANCE[dtype])


@pytest.mark.parametrize("shape", ["qkv", "down"])
def test_prefill_beside_decode(shape: str) -> None:
    rows = [(BASE_SLOT, 100), (0, LONG), (1, 1), (2, LONG // 6), (3, 1)]
    case = make_case(DEVICE, DTYPE, *SHAPES[shape], [16, 64, 8, 128], rows)
    assert tile_rows_for(case.segments) == TILE_ROWS
    check_case(case, TILE_ROWS, TOLERANCE[DTYPE])


@BOTH
@pytest.mark.parametrize("shape", ["odd", "narrow", "tiny"])
def test_odd_sizes(shape: str, tile_rows: int) -> None:
    rows = [(0, 1), (BASE_SLOT, 2), (1, 18), (2, 5)]
    case = make_case(DEVICE, DTYPE, *SHAPES[shape], [5, 12, 1], rows)
    check_case(case, tile_rows, TOLERANCE[DTYPE])


@BOTH
def test_written_instead_of_added(tile_rows: int) -> None:
    rows = [(0, 1), (BASE_SLOT, 2), (1, 18), (2, 5)]
    check_written(make_case(DEVICE, DTYPE, *SHAPES["narrow"], [5, 12, 64], rows, {1: 0b101}), tile_rows)


def _steps(*rows: list[tuple[int, int]]) -> list[Case]:
    """Cases of one pool."""
    cases = [make_case(DEVICE, DTYPE, *SHAPES["qkv"], [16, 64, 8, 1, 128, 32], step) for step in rows]
    for case in cases[1:]:
        case.a, case.b, case.scaling = cases[0].a, cases[0].b, cases[0].scaling
    return cases


@BOTH
def test_a_graph_serves_fewer_and_more_adapters_than_it_was_captured_with(tile_rows: int) -> None:
    check_replays(_steps(*STEPS), tile_rows)


@BOTH
def test_a_graph_for_few_tiles(tile_rows: int) -> None:
    check_replays(_steps(*(FEW * 2)), tile_rows, num_tiles=FEW_TILES[tile_rows])


@BOTH
def test_an_expand_that_is_launched_early_gives_the_same_bits(tile_rows: int) -> None:
    """Where the card can: it overtakes nothing, over and over, alone and in a graph."""
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs sm_90")
    for case in _steps(*STEPS):
        segments = buffers_for(case, tile_rows).upload(case.segments)
        wanted = run(case, segments, early=0)
        replay = captured(lambda case=case, segments=segments: run(case, segments, early=EARLY), DEVICE.type)  # type: ignore[misc]
        for _ in range(REPEATS):
            assert torch.equal(run(case, segments, early=EARLY), wanted)
            assert torch.equal(replay(), wanted)


@BOTH
def test_a_slot_is_used_again_by_a_smaller_rank(tile_rows: int) -> None:
    case = make_case(DEVICE, DTYPE, *SHAPES["down"], [64, 8], [(0, 5), (1, 2)])
    case.slots[0] = SlotRows(case.slots[0].offset, 3)
    case.a[:, case.slots[0].offset + 3] = float("inf")
    check_case(case, tile_rows, TOLERANCE[DTYPE])


@BOTH
def test_the_last_slot_and_the_last_rows_beyond_2_31_elements(tile_rows: int) -> None:
    """9 GB of pool: an offset in 32 bits would wrap."""
    width, rows = POOL
    if torch.cuda.mem_get_info()[0] < 6 * rows * width:
        pytest.skip("too little memory is free on this device")
    case = make_case(DEVICE, DTYPE, width, (width,), [8] * 3 + [16], [(2, 3), (3, 5)], pool_rows=rows)
    assert case.slots[3].offset + 16 == rows - 1
    check_case(case, tile_rows, TOLERANCE[DTYPE])


def test_a_step_needs_no_synchronisation() -> None:
    case = make_case(DEVICE, DTYPE, *SHAPES["qkv"], [16, 8], [(0, 5), (1, 20)])
    buffers = buffers_for(case, TILE_ROWS)
    run(case, buffers.upload(case.segments))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        segments = buffers.upload(case.segments)
        h = lora_shrink(case.x, case.a, segments)
        lora_expand(h, case.b, case.scaling, case.slices, segments, case.y)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_uploads_keep_their_order_while_the_device_is_behind() -> None:
    """Many steps are queued at once behind a long one: each must see its own segments."""
    case = make_case(DEVICE, DTYPE, *SHAPES["qkv"], [16, 64, 8], [(0, 1), (1, 1), (2, 2)])
    buffers = buffers_for(case, 1, max_slots=3)
    steps = [build_segments([index % 3], [4], case.slots) for index in range(QUEUED)]
    wanted = []
    for step in steps:
        wanted.append(run(case, buffers.upload(step)))
        torch.cuda.synchronize()
    ballast = torch.randn(2 * SHAPES["qkv"][0], 2 * SHAPES["qkv"][0], device=DEVICE)
    for _ in range(8):
        ballast = ballast @ ballast
    found = [run(case, buffers.upload(step)) for step in steps]
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
