"""The operations of a program (`records.py`): each is run by all threads of a team, which take its items in chunks.

Every function reads one record `r` (and its numbers `f`) and the step. A projection also shrinks: h = A x of every
segment with an adapter; whoever reads its output adds the bias and the expand, y += scaling * B h, on the way. What a
projection reads is in woven order (`tiles.weave`); everything else is not.

`held` is the marker of what the base's weights are held in, `marker` that of adapters and cache (`vectors.KINDS`).
"""

from typing import Any, Final

import numpy as np

from kernels.cpu import records as c
from kernels.cpu.compiling import compiled
from kernels.cpu.elementwise import add, floats, gelu_mul, rms_norm, rotate, silu_mul, soft_cap
from kernels.cpu.many_rows import MANY, multiply, pack_group, pack_strips, packed_bytes
from kernels.cpu.panels import GROUPS
from kernels.cpu.rows import ahead_of, ask_for, axpy, dot, narrow, stream_columns, widen
from kernels.cpu.team import barrier, take
from kernels.cpu.tiles import byte_at, element_bytes, first_greatest, weave
from kernels.cpu.vectors import LANES

# A chunk of a projection's weights: small enough that all threads end together, and that it stays in the second-level
# cache while every tile of rows goes through it; large enough that the waits at its start do not count, and that each
# of a tile's streams (`rows.py`) has pages of its own.
LEAST_CHUNK_BYTES: Final = 32 * 1024
MOST_CHUNK_BYTES: Final = 240 * 1024
CHUNKS_PER_THREAD: Final = 4
TILED: Final = 12  # a chunk has a multiple of so many columns: whole tiles, of whatever width
COLUMN_CHUNK: Final = 512

# What a thread packs of the weights at a time: it stays in the second-level cache while all rows go through it.
PANEL: Final = GROUPS * LANES
PANEL_BYTES: Final = 512 * 1024


@compiled
def embed(held: Any, r: Any, f: Any, step: Any, control: int) -> None:
    """Y = row of the embedding [* SCALE]; NORMED = its norm."""
    columns, size = r[c.OUTPUTS], element_bytes(held)
    while True:
        t = take(control, 1)
        if t >= len(step.tokens):
            break
        y = r[c.Y] + t * r[c.Y_STRIDE]
        widen(held, r[c.WEIGHT] + step.tokens[t, c.TOKEN_ID] * columns * size, y, columns)
        if f[c.SCALE] != np.float32(1):
            numbers = floats(y, columns)
            for i in range(columns):
                numbers[i] *= f[c.SCALE]
        normed = r[c.NORMED] + t * r[c.NORMED_STRIDE]
        rms_norm(y, r[c.NORM], normed, columns, f[c.EPS])
        weave(held, normed, columns)


@compiled
def _chunk(held: Any, r: Any, threads: int) -> int:
    """How many columns of a projection a thread takes at once."""
    row_bytes = r[c.INPUTS] * element_bytes(held)
    chunk_bytes = r[c.OUTPUTS] * row_bytes // (threads * CHUNKS_PER_THREAD)
    chunk_bytes = min(max(chunk_bytes, LEAST_CHUNK_BYTES), MOST_CHUNK_BYTES)
    chunk: int = max(chunk_bytes // row_bytes // TILED * TILED, TILED)
    return chunk


@compiled
def ask_early(held: Any, r: Any, step: Any, thread: int, threads: int) -> None:
    """Asks for the beginning of what this thread takes first of a projection, while others come to it."""
    rows = len(step.sampled) if r[c.SAMPLED] else len(step.tokens)
    chunk, row_bytes = _chunk(held, r, threads), r[c.INPUTS] * element_bytes(held)
    if rows >= MANY or thread * chunk >= r[c.OUTPUTS]:
        return
    columns = min(chunk, r[c.OUTPUTS] - thread * chunk)
    weight, apart = r[c.WEIGHT] + thread * chunk * row_bytes, stream_columns(rows, columns) * row_bytes
    if apart:
        for place in range(weight, weight + columns * row_bytes, apart):
            ask_for(place, min(apart, ahead_of(held)))


@compiled
def project(
    held: Any, marker: Any, r: Any, step: Any, control: int, thread: int, threads: int, scratch: int, logits: int
) -> None:
    """Y = X WEIGHT^T without bias, and SHRUNK = X A^T of the segments; Y is `logits` for the SAMPLED rows."""
    outputs, row_bytes, a_bytes = r[c.OUTPUTS], r[c.INPUTS] * element_bytes(held), r[c.INPUTS] * element_bytes(marker)
    rows, y = len(step.tokens), r[c.Y]
    if r[c.SAMPLED]:
        rows, y = len(step.sampled), logits
    if rows >= MANY:
        _project_many(held, marker, r, step, control, threads, scratch, rows, y)
        return
    chunk = _chunk(held, r, threads)
    chunks = (outputs + chunk - 1) // chunk
    items = chunks + len(step.segments) * r[c.SLICES]
    item = thread  # each begins with what it asked for; the smallest items come last, so that all end together
    while item < items:
        following = threads + take(control, 1)  # early: its weights are asked for while this one is computed
        then, then_apart = 0, 0
        if following < chunks:
            then = r[c.WEIGHT] + following * chunk * row_bytes
            then_apart = stream_columns(rows, min(chunk, outputs - following * chunk)) * row_bytes
        elif following < items:
            segment = step.segments[(following - chunks) // r[c.SLICES]]
            then = _shrinking(r, segment, (following - chunks) % r[c.SLICES], a_bytes)
            then_apart = stream_columns(segment[c.SEGMENT_END] - segment[c.SEGMENT_START], segment[c.RANK]) * a_bytes
        if item < chunks:
            first = item * chunk
            weight, columns = r[c.WEIGHT] + first * row_bytes, min(chunk, outputs - first)
            x, xs, ys, k, ahead = r[c.X], r[c.X_STRIDE], r[c.Y_STRIDE], r[c.INPUTS], ahead_of(held)
            dot(held, x, xs, rows, weight, row_bytes, columns, y + first * 4, ys, k, ahead, then, then_apart)
        else:
            segment, part = step.segments[(item - chunks) // r[c.SLICES]], (item - chunks) % r[c.SLICES]
            if _touched(r, segment):
                _shrink(marker, r, segment, part, a_bytes, then, then_apart)
        item = following


@compiled
def _project_many(
    held: Any, marker: Any, r: Any, step: Any, control: int, threads: int, scratch: int, rows: int, y: int
) -> None:
    """`project` by panels: X is packed once for all threads, weights by the thread that takes them."""
    inputs, outputs, xs = r[c.INPUTS], r[c.OUTPUTS], r[c.X_STRIDE]
    row_bytes, a_bytes = inputs * element_bytes(held), inputs * element_bytes(marker)
    shrinks = len(step.segments) * r[c.SLICES]
    while True:
        item = take(control, 1)
        first = (item - shrinks) * LANES
        if first >= rows:
            break
        if item < shrinks:
            segment = step.segments[item // r[c.SLICES]]
            if _touched(r, segment):
                _shrink(marker, r, segment, item % r[c.SLICES], a_bytes, 0, 0)
        else:
            place = r[c.PACKED] + packed_bytes(first, inputs)
            pack_strips(r[c.X] + first * xs, xs, min(LANES, rows - first), inputs, place, scratch)
    barrier(control, threads)
    panels = min(PANEL_BYTES // packed_bytes(PANEL, inputs), outputs // (PANEL * threads * CHUNKS_PER_THREAD))
    chunk = PANEL * max(panels, 1)
    groups = scratch + 8 * LANES
    while True:
        first = take(control, 1) * chunk
        if first >= outputs:
            break
        columns = min(chunk, outputs - first)
        for column in range(0, columns, LANES):
            weight = r[c.WEIGHT] + (first + column) * row_bytes
            count = min(LANES, columns - column)
            pack_group(held, weight, row_bytes, count, inputs, groups + packed_bytes(column, inputs), scratch)
        multiply(r[c.PACKED], rows, groups, columns, y + first * 4, r[c.Y_STRIDE], inputs)


def project_scratch_bytes(inputs: int) -> int:
    """Of each thread, for a projection of this width."""
    return 8 * LANES + max(PANEL_BYTES, PANEL * -(-inputs // LANES) * LANES * 4)


@compiled
def _shrinking(r: Any, segment: Any, part: int, a_bytes: int) -> int:
    """Where the segment's A begins."""
    place: int = r[c.A] + part * r[c.A_SLICE] + segment[c.ROW_OFFSET] * a_bytes
    return place


@compiled
def _shrink(marker: Any, r: Any, segment: Any, part: int, a_bytes: int, then: int, then_apart: int) -> None:
    start = segment[c.SEGMENT_START]
    x = r[c.X] + start * r[c.X_STRIDE]
    y = r[c.SHRUNK] + part * r[c.SHRUNK_SLICE] + start * r[c.SHRUNK_STRIDE]
    rows, rank, ys = segment[c.SEGMENT_END] - start, segment[c.RANK], r[c.SHRUNK_STRIDE]
    a = _shrinking(r, segment, part, a_bytes)
    dot(marker, x, r[c.X_STRIDE], rows, a, a_bytes, rank, y, ys, r[c.INPUTS], ahead_of(marker), then, then_apart)


@compiled
def _touched(r: Any, segment: Any) -> bool:
    """Whether the segment's adapter has a module in the record's group."""
    touched: int = byte_at(r[c.TOUCHED] + segment[c.SLOT] * r[c.TOUCHED_STRIDE])
    return touched != 0


@compiled
def _finish(marker: Any, r: Any, step: Any, t: int, part: int, column: int, columns: int, y: int, scratch: int) -> None:
    """Adds bias and expand to `columns` numbers at y: token t, slice `part`, from its column `column` on."""
    before = 0
    for i in range(part):
        before += r[c.SLICE_WIDTH + i]
    if r[c.BIAS]:
        add(r[c.BIAS] + (before + column) * 4, y, columns)
    s = step.tokens[t, c.SEGMENT]
    if s < 0 or r[c.SLICES] == 0 or not _touched(r, step.segments[s]):
        return
    segment = step.segments[s]
    scaling = floats(r[c.SCALING] + segment[c.SLOT] * r[c.SCALING_STRIDE], r[c.SLICES])[part]
    if scaling == np.float32(0):
        return  # the adapter lacks this module
    rank, size = segment[c.RANK], element_bytes(marker)
    shrunk = floats(r[c.SHRUNK] + part * r[c.SHRUNK_SLICE] + t * r[c.SHRUNK_STRIDE], rank)
    scaled = floats(scratch, rank)
    for j in range(rank):
        scaled[j] = shrunk[j] * scaling
    width = 0
    for i in range(r[c.SLICES]):
        width += r[c.SLICE_WIDTH + i]
    b = r[c.B] + (segment[c.ROW_OFFSET] * width + before + column) * size
    axpy(marker, scratch, 0, 1, b, width * size, y, 0, columns, rank)


@compiled
def heads(marker: Any, r: Any, f: Any, step: Any, control: int, scratch: int) -> None:
    """Y = q | k | v of the step, in place: bias, expand, [norm of q and k], rotation; k and v into the CACHE too."""
    num_heads, kv_heads, dim = r[c.NUM_HEADS], r[c.KV_HEADS], r[c.HEAD_DIM]
    all_heads, size = num_heads + 2 * kv_heads, element_bytes(marker)
    items = len(step.tokens) * all_heads
    chunk = max(1, all_heads // 4)
    while True:
        first = take(control, chunk)
        if first >= items:
            break
        for item in range(first, min(first + chunk, items)):
            t, head = item // all_heads, item % all_heads
            part = 0 if head < num_heads else (1 if head < num_heads + kv_heads else 2)
            start = 0 if part == 0 else (num_heads if part == 1 else num_heads + kv_heads)
            y = r[c.Y] + t * r[c.Y_STRIDE] + head * dim * 4
            _finish(marker, r, step, t, part, (head - start) * dim, dim, y, scratch)
            if part < 2:
                if r[c.NORM]:
                    rms_norm(y, r[c.NORM] + head * dim * 4, y, dim, f[c.EPS])
                turn = step.tokens[t, c.POSITION] * dim * 4
                rotate(y, r[c.COS] + turn, r[c.SIN] + turn, dim)
            if part > 0:
                cell = step.tokens[t, c.CELL] * 2 + part - 1
                narrow(marker, y, r[c.CACHE] + (cell * kv_heads + head - start) * dim * size, dim)


@compiled
def gate(held: Any, marker: Any, r: Any, step: Any, control: int, scratch: int) -> None:
    """Y = gate | up, in place: bias, expand, then gate = act(gate) * up."""
    width = r[c.OUTPUTS]
    per_token = (width + COLUMN_CHUNK - 1) // COLUMN_CHUNK
    items = len(step.tokens) * per_token
    while True:
        item = take(control, 1)
        if item >= items:
            break
        t, first = item // per_token, item % per_token * COLUMN_CHUNK
        columns = min(COLUMN_CHUNK, width - first)
        gates = r[c.Y] + t * r[c.Y_STRIDE] + first * 4
        ups = gates + width * 4
        _finish(marker, r, step, t, 0, first, columns, gates, scratch)
        _finish(marker, r, step, t, 1, first, columns, ups, scratch)
        if r[c.GELU]:
            gelu_mul(gates, ups, columns)
        else:
            silu_mul(gates, ups, columns)
        weave(held, gates, columns)


@compiled
def finish(held: Any, marker: Any, r: Any, f: Any, step: Any, control: int, scratch: int) -> None:
    """X += [norm of] Y with bias and expand; NORMED = norm of X, for the next projection."""
    columns = r[c.OUTPUTS]
    while True:
        t = take(control, 1)
        if t >= len(step.tokens):
            break
        hidden, y = r[c.X] + t * r[c.X_STRIDE], r[c.Y] + t * r[c.Y_STRIDE]
        _finish(marker, r, step, t, 0, 0, columns, y, scratch)
        if r[c.OUT_NORM]:
            rms_norm(y, r[c.OUT_NORM], y, columns, f[c.EPS])
        add(y, hidden, columns)
        if r[c.NORM]:
            normed = r[c.NORMED] + t * r[c.NORMED_STRIDE]
            rms_norm(hidden, r[c.NORM], normed, columns, f[c.EPS])
            weave(held, normed, columns)


@compiled
def gather(held: Any, r: Any, f: Any, step: Any, control: int) -> None:
    """NORMED = norm of X, of the sampled tokens only."""
    while True:
        row = take(control, 1)
        if row >= len(step.sampled):
            break
        x = r[c.X] + step.sampled[row] * r[c.X_STRIDE]
        normed = r[c.NORMED] + row * r[c.NORMED_STRIDE]
        rms_norm(x, r[c.NORM], normed, r[c.OUTPUTS], f[c.EPS])
        weave(held, normed, r[c.OUTPUTS])


@compiled
def weave_rows(held: Any, r: Any, step: Any, control: int) -> None:
    """Y into the order in which a projection takes it, where its writers each knew a part of a block only."""
    while True:
        t = take(control, 1)
        if t >= len(step.tokens):
            break
        weave(held, r[c.Y] + t * r[c.Y_STRIDE], r[c.OUTPUTS])


@compiled
def cap(r: Any, f: Any, step: Any, control: int, logits: int) -> None:
    """The logits' soft cap, in place."""
    per_row = (r[c.OUTPUTS] + COLUMN_CHUNK - 1) // COLUMN_CHUNK
    items = len(step.sampled) * per_row
    while True:
        item = take(control, 1)
        if item >= items:
            break
        row, first = item // per_row, item % per_row * COLUMN_CHUNK
        columns = min(COLUMN_CHUNK, r[c.OUTPUTS] - first)
        soft_cap(logits + row * r[c.Y_STRIDE] + first * 4, columns, f[c.SOFT_CAP])


@compiled
def choose(r: Any, step: Any, control: int, logits: int) -> None:
    """step.best = the word of the greatest logit of each sampled row, -1 where the logits are not all finite."""
    while True:
        row = take(control, 1)
        if row >= len(step.sampled):
            break
        step.best[row] = first_greatest(logits + row * r[c.Y_STRIDE], r[c.OUTPUTS])
