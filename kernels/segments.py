"""Which tokens of a step belong to which adapter: built once a step, read by every LoRA kernel of every layer.

Tokens are ordered so that those of one slot are consecutive. A segment is one such run:

    segment i = tokens starts[i] .. starts[i + 1] - 1, slot slots[i],
                rank rows row_offsets[i] .. row_offsets[i] + ranks[i] - 1 of every pool

A segment of slot -1 (the base) has rank 0: no kernel does work for it. `Segments` is plain integers, so it is built on
the host without touching the device.

A device reads `DeviceSegments`: the segments cut into tiles of at most `tile_rows` tokens, one row of small integers
each, with offset and rank already looked up (a kernel that went from token to slot to offset would wait for memory
once more before its first weight). Tiles of 1 token are for steps where adapters have one token each, tiles of 16,
what a tensor core multiplies at once, for those that share adapters and for prefill; `tile_rows_for` chooses.

A CUDA graph reads the same addresses at every replay, so the tiles live in one fixed buffer (`SegmentBuffers`) that is
overwritten by one upload per step. Tiles beyond the step's last one are all -1: their programs end at once.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from kernels.triton_jit import next_power_of_2

BASE_SLOT = -1
ALL_SLICES: Final = -1
TILE_ROWS: Final = 16
NO_TILE: Final = -1
PINNED_COPIES: Final = 4
# Where a tile of 16 starts to pay: its program takes longer than one token's, but reads the adapter once.
FEW_TOKENS: Final = 4
LEAST_SHARED: Final = 2.0


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


class Tile(NamedTuple):
    """Tokens first .. first + tokens - 1 of one segment. The order of the fields is the device's.

    slices: a bit for each module of a layer, in pool order, set where the adapter has it; the others cost nothing.
    """

    first: int
    tokens: int
    slot: int
    row_offset: int
    rank: int
    slices: int

    @property
    def places(self) -> slice:
        """Its tokens."""
        return slice(self.first, self.first + self.tokens)

    @property
    def rows(self) -> slice:
        """Its adapter's rank rows."""
        return slice(self.row_offset, self.row_offset + self.rank)

    def has(self, slice_: int) -> bool:
        """Whether the adapter has this slice, counted over all groups of a layer."""
        return bool(self.slices >> slice_ & 1)


TILE_WORDS: Final = len(Tile._fields)


@dataclass(frozen=True)
class Segments:
    """The segments of one step; `starts` has one entry more than the other tuples and ends with the token count."""

    starts: tuple[int, ...]
    slots: tuple[int, ...]
    row_offsets: tuple[int, ...]
    ranks: tuple[int, ...]
    slices: tuple[int, ...]

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

    def tiles(self, tile_rows: int | None = None) -> Iterator[Tile]:
        """The same, cut into pieces of at most so many tokens."""
        for index, rank in enumerate(self.ranks):
            if rank:
                start, end = self.starts[index], self.starts[index + 1]
                step = tile_rows or end - start
                owner = self.slots[index], self.row_offsets[index], rank, self.slices[index]
                for first in range(start, end, step):
                    yield Tile(first, min(step, end - first), *owner)


def build_segments(
    slots: Sequence[int],
    counts: Sequence[int],
    rows: Mapping[int, SlotRows],
    slices: Mapping[int, int] | None = None,
) -> Segments:
    """Merges neighbouring rows of the same slot. `slots[i]` and `counts[i]` are slot and token count of batch row i.

    slices: by slot, see `Tile`; ALL_SLICES where it is not said. Rows without tokens leave no trace. Raises KeyError
    for a slot that is neither BASE_SLOT nor in `rows`.
    """
    starts, merged = [0], list[int]()
    owned = list[SlotRows]()
    for slot, count in zip(slots, counts, strict=True):
        if not count:
            continue
        if merged and merged[-1] == slot:
            starts[-1] += count
            continue
        owned.append(SlotRows(0, 0) if slot == BASE_SLOT else rows[slot])
        starts.append(starts[-1] + count)
        merged.append(slot)
    return Segments(
        tuple(starts),
        tuple(merged),
        tuple(row.offset for row in owned),
        tuple(row.rank for row in owned),
        tuple((slices or {}).get(slot, ALL_SLICES) for slot in merged),
    )


@dataclass(frozen=True)
class DeviceSegments:
    """A step's segments as kernels read them.

    words: [6, capacity] int32, fields as in `Tile`; all -1 where there is no tile. num_tiles: programs to start, at
    least the tiles of the step (in a graph: of any step). max_rank: what no rank exceeds; the width of h.
    """

    words: torch.Tensor
    num_tiles: int
    tile_rows: int
    num_tokens: int
    max_rank: int

    def host_tiles(self) -> Iterator[Tile]:
        """The tiles that mean work. Reads the tensor, for which a device is waited for."""
        tiles = (Tile(*words) for words in self.words[:, : self.num_tiles].T.tolist())
        return (tile for tile in tiles if tile.rank > 0)


def tiles_of(segments: Segments | DeviceSegments) -> Iterator[Tile]:
    """For references, which take both."""
    return segments.tiles() if isinstance(segments, Segments) else segments.host_tiles()


def tile_rows_for(segments: Segments) -> int:
    """How many tokens a tile should have: 1 or `TILE_ROWS`."""
    lengths = [segment.end - segment.start for segment in segments.with_adapters()]
    tokens = sum(lengths)
    return 1 if tokens <= FEW_TOKENS or tokens < LEAST_SHARED * len(lengths) else TILE_ROWS


def most_tiles(max_tokens: int, max_slots: int, tile_rows: int) -> int:
    """What no step exceeds whose tokens are ordered by slot."""
    slots = min(max_tokens, max_slots)
    return slots + (max_tokens - slots) // tile_rows


def _pinned(words: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """A host copy, and the event after which it may be written again (None where copies are done at once)."""
    if not words.is_cuda:
        return torch.zeros_like(words), None
    return torch.zeros_like(words, device="cpu", pin_memory=True), torch.cuda.Event()  # type: ignore[no-untyped-call]


class SegmentBuffers:
    """The fixed place of a step's tiles, for one tile size. One thread uses it, and one stream.

    max_tokens, max_slots, max_rank: what no step exceeds. `words` may be a part of a larger int32 buffer of the
    caller's, who then uploads it himself with what `fill` wrote; by default the buffers are made here and `upload`
    does it: one copy from pinned memory. Pinned copies take turns, so that a step's may still be under way when the
    next is written.
    """

    def __init__(
        self,
        max_tokens: int,
        max_slots: int,
        max_rank: int,
        tile_rows: int,
        device: torch.device,
        words: torch.Tensor | None = None,
    ) -> None:
        self.max_tokens, self.max_rank, self.tile_rows = max_tokens, max_rank, tile_rows
        self.capacity = most_tiles(max_tokens, max_slots, tile_rows)
        self._words = (
            torch.full((self.num_words,), NO_TILE, dtype=torch.int32, device=device) if words is None else words
        )
        if self._words.shape != (self.num_words,) or self._words.dtype != torch.int32 or self._words.stride(0) != 1:
            raise ValueError(f"segments: {self.num_words} int32 words wanted, got {tuple(self._words.shape)}")
        self._tiles = self._words.view(TILE_WORDS, self.capacity)
        self._pinned = deque(_pinned(self._words) for _ in range(0 if words is not None else PINNED_COPIES))

    @property
    def num_words(self) -> int:
        """The buffer's size in int32."""
        return TILE_WORDS * self.capacity

    def static(self, num_tiles: int | None = None) -> DeviceSegments:
        """For capturing a graph of `max_tokens` tokens that serves steps of up to so many tiles, by default of any.

        Every tile starts programs in every launch, also those that are not there in a step. So graphs are best
        captured by `tile_bucket` too: a step with two adapters should not pay for sixty.
        """
        if num_tiles is not None and not 0 < num_tiles <= self.capacity:
            raise ValueError(f"segments: {num_tiles} tiles, room for {self.capacity}")
        return DeviceSegments(self._tiles, num_tiles or self.capacity, self.tile_rows, self.max_tokens, self.max_rank)

    def tile_bucket(self, num_tiles: int) -> int:
        """The next power of two, within the capacity."""
        return min(self.capacity, next_power_of_2(num_tiles))

    def fill(self, words: npt.NDArray[np.int32], segments: Segments) -> int:
        """Writes the step's tiles into host memory of `num_words`; returns how many. Raises ValueError."""
        if segments.num_tokens > self.max_tokens or segments.max_rank > self.max_rank:
            raise ValueError(
                f"segments: {segments.num_tokens} tokens of rank {segments.max_rank}, "
                f"room for {self.max_tokens} of rank {self.max_rank}"
            )
        tiles = list(segments.tiles(self.tile_rows))
        if len(tiles) > self.capacity:
            raise ValueError(f"segments: {len(tiles)} tiles, room for {self.capacity}")
        target = words.reshape(TILE_WORDS, self.capacity)
        target[:] = NO_TILE
        if tiles:
            target[:, : len(tiles)] = np.array(tiles, np.int32).T
        return len(tiles)

    def upload(self, segments: Segments) -> DeviceSegments:
        """Copies the step's tiles to the device, in stream order. The result starts no more programs than it needs."""
        if not self._pinned:
            raise ValueError("segments: these words belong to the caller, who uploads them")
        host, copied = self._pinned[0]
        self._pinned.rotate(-1)
        if copied is not None:
            copied.synchronize()  # with the copy of four steps ago, long over
        count = self.fill(host.numpy(), segments)
        self._words.copy_(host, non_blocking=True)
        if copied is not None:
            copied.record()
        return DeviceSegments(self._tiles, count, self.tile_rows, segments.num_tokens, self.max_rank)
