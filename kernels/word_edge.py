"""Where top_k and top_p cut: device functions that look for an edge among words, used by `sampling.py`.

    d[i] = (best - x[i]) / temperature    0 for the best word, more for worse ones; infinite past the vocabulary
    key  = the bits of d as an integer    in the same order, because d is never negative
    edge = the largest key such that what lies below it, sum_{key[i] < edge} amount[i], is less than wanted

With an amount of 1 a word and k wanted, the edge is the key of the k-th best word; with exp(-d) and a share of their
sum it is the last key of the nucleus. Words that tie with the edge are inside. It is found bit by bit from the top: 31
sums, each over everything, in an order that depends on shapes only; no sort, and no other end than the right one.
"""

from kernels.triton_jit import Number, Pointer, constexpr, jit, tl


@jit
def sum_of(values: Number) -> Number:
    """Of all elements, whatever the shape."""
    return tl.sum(tl.reshape(values, [values.numel]), 0)


@jit
def edge_of(keys: Number, amounts: Number, wanted: Number) -> Number:
    """Among words that are at hand."""
    edge = 0
    for step in range(31):
        raised = edge | (1 << (30 - step))
        below = sum_of(tl.where(keys < raised, amounts, 0.0))
        edge = tl.where(below < wanted, raised, edge)
    return edge


@jit
def distances(row: Pointer, start: Number, vocab: Number, best: Number, cold: Number, CHUNK: constexpr) -> Number:
    """d of the words start .. start + CHUNK - 1; `cold` is 1 / temperature."""
    at = start + tl.arange(0, CHUNK)
    return (best - tl.load(row + at, mask=at < vocab, other=float("-inf")).to(tl.float32)) * cold


@jit
def amount_below(
    row: Pointer,
    vocab: Number,
    best: Number,
    cold: Number,
    limit: Number,
    raised: Number,
    CHUNK: constexpr,
    MASS: constexpr,
) -> Number:
    """Number, or mass, of all words of a row whose keys are below `raised` and at most `limit`."""
    sums = tl.zeros([CHUNK], tl.float32)
    for start in range(0, vocab, CHUNK):
        d = distances(row, start, vocab, best, cold, CHUNK)
        keys = d.to(tl.int32, bitcast=True)
        counted = (keys < raised) & (keys <= limit)
        sums += tl.where(counted, tl.exp(-d) if MASS else 1.0, 0.0)
    return tl.sum(sums, 0)


@jit
def far_edge(
    row: Pointer,
    vocab: Number,
    best: Number,
    cold: Number,
    limit: Number,
    wanted: Number,
    CHUNK: constexpr,
    MASS: constexpr,
) -> Number:
    """Among all words of a row whose keys are at most `limit`: reads the row once for each bit."""
    edge = 0
    for step in range(31):
        raised = edge | (1 << (30 - step))
        below = amount_below(row, vocab, best, cold, limit, raised, CHUNK, MASS)
        edge = tl.where(below < wanted, raised, edge)
    return edge
