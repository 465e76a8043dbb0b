"""How a runtime's memory divides: weights, adapter pool, working memory, and the rest for keys and values.

    budget = weights + adapters + working + [staging + graphs, on a card] + kv

All but the last follow from the model's files and the limits, before anything is loaded; `kv` gets what is left, in
whole blocks, up to what the runtime could ever use. Pure arithmetic, no torch: the supervisor plans all runtimes of a
machine with it, a runtime on a card plans its own.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from runtime.errors import ConfigInvalid
from runtime.model_size import DType, ModelSize
from storage.geometry import GROUPS, Geometry

ITEM_BYTES: Final[dict[DType, int]] = {"float32": 4, "bfloat16": 2, "float16": 2}

# Whether a CPU's steps are those of `kernels/cpu`, which hold weights in the type of the files (`ModelSize.held_as`).
# As `kernels.cpu.compiling` finds out, which whoever plans may not import.
_HAS_KERNELS: Final = importlib.util.find_spec("numba") is not None

# Interpreter, torch and Numba on a CPU, measured: 400 MB of their own, and the allocator's slack.
PROCESS_BYTES: Final = 448 * 1024**2
# The same with a CUDA context.
CUDA_PROCESS_BYTES: Final = 1024 * 1024**2
# A cache for less than this many tokens (or less than the model's longest sequence) is refused, unless asked for by
# `kv_bytes`: it would cut every caller's context without a word.
LEAST_TOKENS: Final = 2048
# Tokens of one pass of the CPU's kernels (`layers/cpu_step.py`), whose workspace is there from the start.
LEAST_STEP_TOKENS: Final = 512
# On a card: what adapters are copied to before they are scattered (`layers/adapter_copies.py`) is at most this.
STAGING_BYTES: Final = 128 * 1024**2
# On a card: set aside for the graphs of decode steps and the libraries' workspaces. An estimate, until it is measured.
GRAPH_BYTES: Final = 512 * 1024**2
_MIB: Final = 1024**2


@dataclass(frozen=True)
class Limits:
    """The settings that memory follows from; see `RuntimeConfig`."""

    dtype: DType | Literal["auto"]
    block_tokens: int
    adapter_rows: int
    max_running: int
    step_tokens: int
    on_card: bool = False


@dataclass(frozen=True)
class Needs:
    """Bytes. What a runtime takes whatever its cache, and the bounds of the cache.

    staging, graphs: on a card only. block: one block of the cache. least: the smallest cache that is worth starting
    with. most: the largest that `max_running` sequences of full length can fill.
    """

    weights: int
    adapters: int
    working: int
    block: int
    least: int
    most: int
    least_tokens: int
    staging: int = 0
    graphs: int = 0

    @property
    def fixed(self) -> int:
        """Everything but keys and values."""
        return self.weights + self.adapters + self.working + self.staging + self.graphs

    def with_kv(self, kv: int) -> "Split":
        """Raises ConfigInvalid when not even one block fits."""
        if kv < self.block:
            raise ConfigInvalid(f"kv_bytes = {kv}: one block takes {in_words(self.block)}; give at least {self.block}")
        return Split(self.weights, self.adapters, self.working, kv, self.staging, self.graphs)

    def within(self, budget: int) -> "Split":
        """All of the budget, as far as it is of use. Raises ConfigInvalid with the numbers when it is too small."""
        left = max(0, budget - self.fixed)
        if left < self.least:
            beside = ""
            if self.staging or self.graphs:
                beside = f", staging of adapters {in_words(self.staging)}, graphs {in_words(self.graphs)}"
            raise ConfigInvalid(
                f"a budget of {in_words(budget)} is too small: weights {in_words(self.weights)}, adapter pool "
                f"{in_words(self.adapters)}{beside} and working memory {in_words(self.working)} leave "
                f"{in_words(left)} for keys and values, and one sequence of {self.least_tokens} tokens takes "
                f"{in_words(self.least)}; give "
                f"at least {self.fixed + self.least} bytes, or lower adapter_rows ({in_words(self.adapters)}) or "
                "step_tokens"
            )
        return self.with_kv(min(left // self.block * self.block, self.most))


@dataclass(frozen=True)
class Split:
    """Bytes of one runtime."""

    weights: int
    adapters: int
    working: int
    kv: int
    staging: int = 0
    graphs: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.adapters + self.working + self.kv + self.staging + self.graphs

    def __str__(self) -> str:
        """For the log."""
        parts = (
            ("weights", self.weights),
            ("adapter pool", self.adapters),
            ("staging of adapters", self.staging),
            ("graphs", self.graphs),
            ("working memory", self.working),
            ("keys and values", self.kv),
        )
        return ", ".join(f"{name} {in_words(size)}" for name, size in parts if size)


def needs_of(model: ModelSize, limits: Limits, max_tokens: int | None = None) -> Needs:
    """`max_tokens`: the longest sequence that is asked for, where it is less than the model's."""
    dtype, geometry = model.dtype if limits.dtype == "auto" else limits.dtype, model.geometry
    held = model.held_as(dtype) if _HAS_KERNELS and not limits.on_card else dtype
    item = ITEM_BYTES[dtype]
    longest = min(model.max_positions, max_tokens or model.max_positions)
    block = geometry.num_layers * 2 * geometry.num_kv_heads * geometry.head_dim * limits.block_tokens * item
    least_tokens = min(longest, LEAST_TOKENS)
    sequence, least = (-(-tokens // limits.block_tokens) * block for tokens in (longest, least_tokens))
    return Needs(
        # Norms are kept in float32 where the family asks for it.
        weights=model.num_weights * ITEM_BYTES[held] + model.num_small * 4,
        adapters=_row_bytes(geometry, item) * limits.adapter_rows,
        working=_working(model, limits, longest, item) + block,  # the cache's empty block is of no use to sequences
        block=block,
        least=least,
        most=sequence * limits.max_running,
        least_tokens=least_tokens,
        staging=staging_bytes(geometry, limits.adapter_rows) if limits.on_card else 0,
        graphs=GRAPH_BYTES if limits.on_card else 0,
    )


def share_out(room: int, wants: Sequence[tuple[int, int]]) -> list[int]:
    """Divides `room` among wants of (least, most): each gets its least, and then all the same, up to its most.

    The sum exceeds `room` only when the leasts do.
    """
    given = [least for least, _ in wants]
    room -= sum(given)
    hungry = sorted(range(len(wants)), key=lambda index: wants[index][1] - wants[index][0])
    while hungry and room > 0:
        part = room // len(hungry)
        index = hungry.pop(0)
        least, most = wants[index]
        more = max(0, min(part, most - least))
        given[index] += more
        room -= more
    return given


def in_words(size: int) -> str:
    """Bytes as people read them."""
    if size < _MIB:
        return f"{-(-size // 1024)} KiB"
    return f"{size / _MIB:.0f} MiB" if size < 1024 * _MIB else f"{size / 1024**3:.1f} GiB"


def staging_bytes(geometry: Geometry, adapter_rows: int, most: int = STAGING_BYTES) -> int:
    """Room for an adapter of all rows in fp32, up to `most`, and at least for its largest module."""
    widest = max(sum(geometry.shape(module)) for group in GROUPS.values() for module in group)
    return max(min(most, _row_bytes(geometry, 4) * adapter_rows), widest * adapter_rows * 4)


def _row_bytes(geometry: Geometry, item: int) -> int:
    """One rank row of the pool, over all layers and modules (the scalings are nothing beside it)."""
    return (
        geometry.num_layers * item * sum(sum(geometry.shape(module)) for group in GROUPS.values() for module in group)
    )


def _working(model: ModelSize, limits: Limits, longest: int, item: int) -> int:
    """The process itself, and what a step holds at its largest: activations, attention, logits."""
    geometry = model.geometry
    widths = sum(geometry.shape(module)[0] for group in GROUPS.values() for module in group)
    tokens = max(limits.step_tokens, LEAST_STEP_TOKENS)
    activations = tokens * 4 * (2 * widths + 4 * geometry.hidden_size)
    # On torch, keys and values of one sequence, gathered and repeated for every head, and one decode group beside it;
    # the CPU's kernels need less: 4 MB of scores for each thread, or those of 16 queries.
    attention = 2 * longest * 2 * geometry.num_heads * geometry.head_dim * item
    if limits.on_card:
        # Cosines and sines of two rotations; the kernels gather nothing, and leave parts of rows in a few MB.
        attention = 2 * longest * 2 * geometry.head_dim * 4 + 16 * _MIB
    # The model's logits, float32 copies, and the sampler's float64 for a few rows.
    logits = model.vocab_size * (min(limits.max_running, limits.step_tokens) * 12 + 8 * 32)
    process = CUDA_PROCESS_BYTES // 2 if limits.on_card else PROCESS_BYTES
    return process + activations + attention + logits
