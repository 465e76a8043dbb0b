"""A batch of plain records as the arrays that the CPU's program reads (`kernels/cpu/records.py`): one or more passes.

A pass has at most `pass_tokens` tokens, which bounds the program's workspace. A chunk of a prompt that is longer goes
through in several passes, in order: what an earlier one wrote into the cache is there for the next.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kernels.cpu.records import Step
from runtime.batch import BASE_SLOT, Row
from runtime.layers.adapter_pool import AdapterPool

PASS_TOKENS: Final = 512

Numbers = npt.NDArray[np.int64]


class Pass(NamedTuple):
    """The arrays of one pass. num_sampled: how many rows of logits it makes."""

    step: Step
    num_sampled: int


class _Part(NamedTuple):
    """The tokens of a row that one pass takes: from the row's `first`-th new token on."""

    row: Row
    first: int
    tokens: int


class PassBuilder:
    """Knows the pool and the block size; keeps nothing between steps. tile_tokens: how many queries go through
    attention together in a context of so many tokens (`attention.tile_tokens`, whose Numba not every host has)."""

    def __init__(
        self,
        pool: AdapterPool,
        block_tokens: int,
        tile_tokens: Callable[[int], int],
        pass_tokens: int = PASS_TOKENS,
    ) -> None:
        self._pool, self._block_tokens, self._tile_tokens = pool, block_tokens, tile_tokens
        self._pass_tokens = pass_tokens

    def build(self, rows: Sequence[Row]) -> Iterator[Pass]:
        """Rows have been checked (`layers/step.py`) and are in slot order. Raises RunnerMisused for a slot that is
        not READY."""
        parts, room = list[_Part](), self._pass_tokens
        for row in rows:
            first, left = 0, len(row.token_ids)
            while left:
                count = min(left, room)
                parts.append(_Part(row, first, count))
                first, left, room = first + count, left - count, room - count
                if not room:
                    yield self._pass(parts)
                    parts, room = [], self._pass_tokens
        if parts:
            yield self._pass(parts)

    def _pass(self, parts: Sequence[_Part]) -> Pass:
        size = self._block_tokens
        ids: list[int] = []
        positions: list[int] = []
        cells: list[int] = []
        owners: list[int] = []
        tiles: list[tuple[int, int, int, int]] = []
        blocks: list[int] = []
        segments: list[list[int]] = []
        sampled: list[int] = []
        for row, first, count in parts:
            table, start, at = row.block_table, row.start + first, len(ids)
            segment = self._segment(segments, row.slot, at, count)
            if count == 1:
                ids.append(row.token_ids[first])
                positions.append(start)
                cells.append(table[start // size] * size + start % size)
                owners.append(segment)
                tiles.append((at, 1, start, len(blocks)))
            else:
                ids.extend(row.token_ids[first : first + count])
                span = range(start, start + count)
                positions.extend(span)
                cells.extend(table[position // size] * size + position % size for position in span)
                owners.extend([segment] * count)
                most = self._tile_tokens(start + count)
                tiles.extend(
                    (at + skip, min(most, count - skip), start + skip, len(blocks)) for skip in range(0, count, most)
                )
            blocks.extend(table[: (start + count - 1) // size + 1])
            if row.samples and first + count == len(row.token_ids):
                sampled.append(at + count - 1)
        step = Step(
            np.array((ids, positions, cells, owners), np.int64).T.copy(),
            np.array(tiles, np.int64),
            np.array(blocks, np.int64),
            np.array(segments, np.int64).reshape(-1, 5),
            np.array(sampled, np.int64),
            np.zeros(len(sampled), np.int64),
        )
        return Pass(step, len(sampled))

    def _segment(self, segments: list[list[int]], slot: int, start: int, count: int) -> int:
        """The index of the row's segment, which is made or grows; -1 for the base's rows."""
        if slot == BASE_SLOT:
            return -1
        if segments and segments[-1][2] == slot:
            segments[-1][1] = start + count
        else:
            offset, rank = self._pool.ready(slot)
            segments.append([start, start + count, slot, offset, rank])
        return len(segments) - 1
