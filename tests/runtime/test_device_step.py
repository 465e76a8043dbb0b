"""What the host writes for a step, read back as the device reads it."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from kernels.paged_decode import DecodeScratch
from kernels.segments import TILE_ROWS
from runtime.batch import BASE_SLOT, PENDING, Row
from runtime.errors import RunnerMisused
from runtime.layers.adapter_pool import AdapterPool
from runtime.layers.device_step import DecodeShape, DeviceStep, StepWriter
from runtime.layers.step_layout import StepLayout, StepSizes
from runtime.models.random_weights import fill_with_random
from runtime.protocol import SamplingParams
from storage.geometry import Geometry

POOL = AdapterPool(Geometry("llama", 2, 16, 16, 4, 2, 4), 128, 16, torch.float32, torch.device("cpu"))
for _slot in range(8):
    fill_with_random(POOL, _slot, 8 * _slot, 8, _slot)
SCRATCH = DecodeScratch.make(4, 4, 2, 4, 1, "cpu")


def row(number: int, tokens: list[int], start: int, blocks: list[int], slot: int = BASE_SLOT, **more: object) -> Row:
    history = [1] * start + tokens
    fields = {"samples": True, "sampling": SamplingParams(), "history": history, "prompt_tokens": 1, "seed": number}
    return Row(number, tokens, start, blocks, slot, **{**fields, **more})  # type: ignore[arg-type]  # by name


class Host:
    def __init__(self, rows: tuple[int, ...] = (1, 2, 4)) -> None:
        self.writer = StepWriter(POOL, 4, 50, 6, rows)

    def step(self, *rows: Row, drawn: dict[int, int] | None = None) -> tuple[DecodeShape | None, DeviceStep]:
        step = self.writer.plan(rows)
        buffer = np.full(step.layout.num_bytes, 0x5A, np.uint8)  # what an earlier step left
        self.writer.write(step, rows, drawn or {}, buffer)
        return step.shape, self.writer.read(step, torch.from_numpy(buffer), SCRATCH)


def test_a_decode_step_and_its_padding() -> None:
    sampling = SamplingParams(temperature=0.25, top_k=7, top_p=0.5, min_p=0.125)
    shape, step = Host().step(
        row(1, [11], 5, [8, 3]), row(2, [PENDING], 9, [4, 5, 6], sampling=sampling), row(3, [13], 0, [7], slot=2),
        drawn={2: 1},
    )  # fmt: skip
    assert shape == DecodeShape(4, 1, 1, 0b1111, 16)
    assert step.ids.tolist()[::2] == [11, 13]
    assert step.sources.tolist() == [-1, 1, -1, -1]
    assert step.positions.tolist() == [5, 9, 0, 0]
    assert step.places.tolist() == [3 * 4 + 1, 6 * 4 + 1, 7 * 4, -1]
    decode = step.attention.decode
    assert decode is not None
    assert decode.tokens is None
    assert step.sampled is None
    assert decode.contexts.tolist() == [6, 10, 1, 0]
    assert decode.tables[1, :3].tolist() == [4, 5, 6]
    assert [column[1].item() for column in step.sampling] == [0.25, 7, 0.5, 0.125, 2, 10]
    assert [column[3].item() for column in step.sampling] == [0.0, 0, 1.0, 0.0, 0, 0]
    assert step.segments is not None
    assert [tile[:5] for tile in step.segments.host_tiles()] == [(2, 1, 2, 16, 8)]
    assert (step.segments.words[:, 1:] == -1).all()


def test_a_mixed_step() -> None:
    shape, step = Host().step(
        row(1, [11], 5, [8, 3], samples=False), row(2, [21, 22, 23], 3, [9, 1], slot=1), row(3, [31], 2, [7], slot=1)
    )
    assert shape is None
    assert step.ids.tolist() == [11, 21, 22, 23, 31]
    assert step.positions.tolist() == [5, 3, 4, 5, 2]
    assert step.places.tolist() == [13, 39, 4, 5, 30]
    decode, prefill = step.attention
    assert decode is not None
    assert decode.tokens is not None
    assert prefill is not None
    assert (decode.tokens.tolist(), decode.contexts.tolist()) == ([0, 4], [6, 3])
    assert [column.tolist() for column in prefill[:4]] == [[[0, 0]], [1], [3], [6]]
    assert prefill.tables[0, :2].tolist() == [9, 1]
    assert step.sampled is not None
    assert step.sampled.tolist() == [3, 4]
    assert step.sampling.positions.tolist() == [6, 3]
    assert step.segments is not None
    assert [tile[:5] for tile in step.segments.host_tiles()] == [(index, 1, 1, 8, 8) for index in range(1, 5)]


@pytest.mark.parametrize(
    ("slots", "shape"),
    [
        ([-1, -1, -1], DecodeShape(4)),
        ([-1], DecodeShape(1)),
        ([-1, 0, 1, 2], DecodeShape(4, 4, 1, 15, 16)),
        ([-1, -1, 5, 6], DecodeShape(4, 2, 1, 15, 16)),
        ([3] * 8, DecodeShape(8, 1, TILE_ROWS, 15, 16)),
        ([3] * 5, DecodeShape(8, 1, TILE_ROWS, 15, 16)),
        ([0, 1, 2, 3, 4], DecodeShape(8, 8, 1, 15, 16)),
    ],
)  # fmt: skip
def test_few_shapes_serve_all_decode_steps(slots: list[int], shape: DecodeShape) -> None:
    host = Host((1, 2, 4, 8))
    found, _ = host.step(*(row(index, [5], 0, [index], slot) for index, slot in enumerate(slots)))
    assert found == shape


def test_more_rows_than_the_largest_bucket_are_a_mixed_step() -> None:
    shape, step = Host((1, 2)).step(*(row(index, [5], 0, [index]) for index in range(3)))
    assert shape is None
    assert step.num_sampled == 3


def test_h_is_as_wide_as_the_widest_adapter_of_the_step_asks() -> None:
    host = Host()
    fill_with_random(POOL, 9, 0, 100, 1)
    assert host.step(row(1, [5], 0, [0], 1))[0] == DecodeShape(1, 1, 1, 15, 16)
    assert host.step(row(1, [5], 0, [0], 9))[0] == DecodeShape(1, 1, 1, 15, 256)
    assert host.step(row(1, [5], 0, [0], 1), row(2, [5], 0, [1], 9))[0] == DecodeShape(2, 2, 1, 15, 256)
    assert host.step(row(1, [5], 0, [0], 1))[0] == DecodeShape(1, 1, 1, 15, 16)


def test_tables_are_taken_over_from_the_last_step_as_far_as_they_are_the_same() -> None:
    host = Host()

    def table(one: Row) -> list[int]:
        decode = host.step(one)[1].attention.decode
        assert decode is not None
        return [int(block) for block in decode.tables[0, : -(-(one.start + 1) // 4)]]

    assert table(row(1, [5], 7, [3, 4])) == [3, 4]
    assert table(row(1, [5], 8, [3, 4, 9])) == [3, 4, 9]
    assert table(row(1, [5], 8, [7, 8, 9])) == [7, 8, 9], "started over at the same place, elsewhere"
    assert table(row(1, [5], 3, [2])) == [2]
    assert table(row(2, [5], 7, [6, 1])) == [6, 1]
    assert table(row(1, [5], 4, [8, 5])) == [8, 5], "a step without it lay between"


@pytest.mark.parametrize("block", [-1, 50])
def test_a_block_outside_the_cache_is_refused(block: int) -> None:
    with pytest.raises(RunnerMisused, match="a block outside the cache"):
        Host().step(row(1, [5], 5, [1, block]))


def test_every_part_begins_where_kernels_may_load_widely() -> None:
    layout = StepLayout(StepSizes(3, 2, 1, 1, 3, 16, True, 5))
    tensors = layout.tensors(torch.zeros(layout.num_bytes, dtype=torch.uint8))
    base = tensors["places"].data_ptr()
    assert all((tensor.data_ptr() - base) % 16 == 0 for tensor in tensors.values() if tensor.numel())
    ends = sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors.values())
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))
