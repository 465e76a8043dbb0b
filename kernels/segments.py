"""Which tokens of a step belong to which adapter: built once a step, read by every LoRA kernel of every layer.

Tokens are ordered so that those of one slot are consecutive. A segment is one such run:

    segment i = tokens starts[i] .. starts[i + 1] - 1, slot slots[i],
                rank rows row_offsets[i] .. row_offsets[i] + ranks[i] - 1 of every pool

A segment of slot -1 (the base) has rank 0: no kernel does work for it. Plain integers only, so the record is built on
the host without touching the device; a GPU path uploads it with the batch in one copy.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

BASE_SLOT = -1


class SlotRows(NamedTuple):
    """The rank rows of one slot: the same range in every layer and projection group."""

    offset: int
    rank: int


class Segment(NamedTuple):
    """One run of tokens with an adapter; the rank is at least 1."""

    start: int
    end: int
    slot: int
    row_offset: int
    rank: int


@dataclass(frozen=True)
class Segments:
    """The segments of one step; `starts` has one entry more than the other tuples and ends with the token count."""

    starts: tuple[int, ...]
    slots: tuple[int, ...]
    row_offsets: tuple[int, ...]
    ranks: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return self.starts[-1]

    @property
    def max_rank(self) -> int:
        """0 when no token has an adapter."""
        return max(self.ranks, default=0)

    def with_adapters(self) -> Iterator[Segment]:
        """The segments that mean work, in token order."""
        for index, rank in enumerate(self.ranks):
            if rank:
                start, end = self.starts[index], self.starts[index + 1]
                yield Segment(start, end, self.slots[index], self.row_offsets[index], rank)


def build_segments(slots: Sequence[int], counts: Sequence[int], rows: Mapping[int, SlotRows]) -> Segments:
    """Merges neighbouring rows of the same slot. `slots[i]` and `counts[i]` are slot and token count of batch row i.

    Rows without tokens leave no trace. Raises KeyError for a slot that is neither BASE_SLOT nor in `rows`.
    """
    starts, merged = [0], list[int]()
    offsets, ranks = list[int](), list[int]()
    for slot, count in zip(slots, counts, strict=True):
        if not count:
            continue
        if merged and merged[-1] == slot:
            starts[-1] += count
            continue
        offset, rank = (0, 0) if slot == BASE_SLOT else rows[slot]
        starts.append(starts[-1] + count)
        merged.append(slot)
        offsets.append(offset)
        ranks.append(rank)
    return Segments(tuple(starts), tuple(merged), tuple(offsets), tuple(ranks))
