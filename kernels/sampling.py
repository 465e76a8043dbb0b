"""From logits to one token per row, on the device: only the tokens leave it.

    d[i] = (max(x) - x[i]) / temperature                          0 for the best word, more for worse ones
    kept = d < 87, i among the top_k, in the nucleus top_p of these, exp(-d) >= min_p
    token = the word whose share of sum_{kept} exp(-d) holds u(seed, position), in the order of ids; argmax when greedy

    logits  [rows, vocab]   after biases, penalties and masks
    tokens  [rows] int64    -1 for a row without a finite best word

These are the rules of `runtime/sampler.py`, ties at an edge all kept included; the numbers drawn are Philox's. A token
is a function of seed, position and the row's logits: not of the batch, the row's place in it, or the run.

Two launches: `word_survey.py` reads everything once, then one program a row decides. An edge of top_k or top_p
(`word_edge.py`) takes many sums, so the program first looks at the 64 best groups of 128 words only, in registers. All
words that are at least as good as the best one of the 64th group are in them, 64 or more, and models put most of their
mass on fewer. If the edge is not among these (a longer nucleus, or more than 64 groups that tie) the same search reads
the row once a bit, from the second cache level.

The draw: a running sum of the chunks' masses in fp64 finds the chunk, one of its words the word. The masses are the
survey's where nothing is filtered, else those of the 64 groups, or of the row once more.
"""

from typing import Final, NamedTuple

import torch

from kernels.philox import philox_uniform, philox_uniform_reference
from kernels.triton_jit import (
    CompileCase,
    Number,
    Pointer,
    cdiv,
    constexpr,
    jit,
    next_power_of_2,
    pointer,
    runs_kernel,
    tl,
)
from kernels.word_edge import amount_below, distances, edge_of, far_edge, sum_of
from kernels.word_survey import CHUNK, GROUP, survey

GREEDY_TEMPERATURE: Final = 1e-5
# exp of less is a denormal number: no share worth drawing.
LEAST_SCORE: Final = -87.0
# Groups that a row's edge is looked for among.
PICKED: Final = 64
_WARPS: Final = 8
_DTYPES: Final = (torch.bfloat16, torch.float16, torch.float32)


class SamplingRows(NamedTuple):
    """How each row is sampled; every tensor is [rows].

    temperature, top_p, min_p: fp32; below GREEDY_TEMPERATURE the best word is taken; top_p 1 and min_p 0 are off.
    top_k: int32, 0 is off. seeds: int64. positions: int32, of the token that is drawn.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seeds: torch.Tensor
    positions: torch.Tensor


def sample_reference(logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    """Row by row in float64."""
    tokens = []
    for scores, temperature, top_k, top_p, min_p, seed, position in zip(
        logits, *(column.tolist() for column in rows), strict=True
    ):
        best, word = scores.double().max(-1)
        if not bool(torch.isfinite(best)):  # NaN is a maximum, too
            tokens.append(-1)
        elif temperature < GREEDY_TEMPERATURE:
            tokens.append(int(word))
        else:
            upto = shares_reference(scores, temperature, top_k, top_p, min_p).cumsum(-1)
            place = torch.searchsorted(upto, philox_uniform_reference(seed, position) * upto[-1], right=True)
            tokens.append(int(torch.minimum(place, torch.searchsorted(upto, upto[-1]))))
    return torch.tensor(tokens, dtype=torch.int64, device=logits.device)


def shares_reference(scores: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """[vocab] float64: what each word of a row weighs in its draw; 0 for those that are not kept."""
    relative = (scores.double() - scores.double().max()) / temperature
    relative = relative.masked_fill(relative <= LEAST_SCORE, float("-inf"))
    if 0 < top_k < len(relative):
        relative = relative.masked_fill(relative < relative.topk(top_k).values[-1], float("-inf"))
    if top_p < 1.0:
        ordered = relative.sort(descending=True).values
        mass = ordered.exp().cumsum(-1)
        count = int((mass - ordered.exp() < top_p * mass[-1]).sum().clamp(min=1))
        relative = relative.masked_fill(relative < ordered[count - 1], float("-inf"))
    weights = relative.exp()
    return weights.masked_fill(weights < min_p, 0.0)


@jit
def _filtered(
    row: Pointer,
    best_of_groups: Pointer,
    picked: Pointer,
    vocab: Number,
    num_groups: Number,
    best: Number,
    cold: Number,
    total: Number,
    top_k: Number,
    top_p: Number,
    limit: Number,
    CHUNK: constexpr,
    GROUP: constexpr,
    PICKED: constexpr,
    CHUNKS_BLOCK: constexpr,
    GROUPS_BLOCK: constexpr,
) -> tuple[Number, Number]:
    """The largest key that all filters keep, `limit` being min_p's, and the mass that they leave to each chunk.
    total: the mass of all words."""
    groups = tl.arange(0, GROUPS_BLOCK)
    highest = tl.load(best_of_groups + groups, mask=groups < num_groups, other=float("-inf"))
    # A grammar leaves few words: groups without any do not count.
    present = highest > float("-inf")
    group_keys = ((best - highest) * cold).to(tl.int32, bitcast=True)
    bound = edge_of(group_keys, present.to(tl.float32), PICKED * 1.0)
    taken = present & (group_keys <= bound)
    place = tl.cumsum(taken.to(tl.int32), 0) - 1
    tl.store(picked + place, groups, mask=taken & (place < PICKED))
    num_taken = tl.sum(taken.to(tl.int32), 0)
    tl.debug_barrier()
    slots = tl.arange(0, PICKED)
    chosen = tl.load(picked + slots, mask=slots < num_taken, other=0)
    at = chosen[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    here = (slots < num_taken)[:, None] & (at < vocab)
    d = (best - tl.load(row + at, mask=here, other=float("-inf")).to(tl.float32)) * cold
    keys = d.to(tl.int32, bitcast=True)
    # All words up to `bound` are here, unless more groups tie than have room.
    far = num_taken > PICKED
    edge = 0x7F7FFFFF
    if (top_k > 0) & (top_k < vocab):
        edge = edge_of(keys, here.to(tl.float32), top_k * 1.0)
        far = far | (edge > bound)
        if far:
            edge = far_edge(row, vocab, best, cold, 0x7F7FFFFF, top_k * 1.0, CHUNK, False)
        total = sum_of(tl.where(here & (keys <= edge), tl.exp(-d), 0.0))
    if top_p < 1.0:
        nucleus = edge_of(keys, tl.where(here & (keys <= edge), tl.exp(-d), 0.0), top_p * total)
        far = far | (nucleus > bound)
        if far:
            total = amount_below(row, vocab, best, cold, edge, 0x7FFFFFFF, CHUNK, True)
            nucleus = far_edge(row, vocab, best, cold, edge, top_p * total, CHUNK, True)
        edge = tl.minimum(edge, nucleus)
    limit = tl.minimum(limit, edge)
    chunks = tl.arange(0, CHUNKS_BLOCK)
    if (num_taken > PICKED) | (limit > bound):
        mass = tl.zeros([CHUNKS_BLOCK], tl.float32)
        for chunk in range(tl.cdiv(vocab, CHUNK)):
            d_there = distances(row, chunk * CHUNK, vocab, best, cold, CHUNK)
            kept = d_there.to(tl.int32, bitcast=True) <= limit
            mass = tl.where(chunks == chunk, tl.sum(tl.where(kept, tl.exp(-d_there), 0.0), 0), mass)
    else:
        of_groups = tl.sum(tl.where(here & (keys <= limit), tl.exp(-d), 0.0), 1)
        inside = chunks[:, None] == (chosen // (CHUNK // GROUP))[None, :]
        mass = tl.sum(tl.where(inside, of_groups[None, :], 0.0), 1)
    return limit, mass


@jit
def _choice_kernel(
    logits: Pointer,
    temperatures: Pointer,
    top_ks: Pointer,
    top_ps: Pointer,
    min_ps: Pointer,
    seeds: Pointer,
    positions: Pointer,
    tops: Pointer,
    words: Pointer,
    masses: Pointer,
    best_of_groups: Pointer,
    picked: Pointer,
    tokens: Pointer,
    vocab: Number,
    row_stride: Number,
    num_groups: Number,
    num_chunks: Number,
    least_temperature: Number,
    CHUNK: constexpr,
    GROUP: constexpr,
    PICKED: constexpr,
    CHUNKS_BLOCK: constexpr,
    GROUPS_BLOCK: constexpr,
) -> None:
    index = tl.program_id(0).to(tl.int64)
    row = logits + index * row_stride
    chunks = tl.arange(0, CHUNKS_BLOCK)
    places = index * num_chunks + chunks
    present = chunks < num_chunks
    top = tl.load(tops + places, mask=present, other=float("-inf"))
    best = tl.max(top, 0)
    temperature = tl.load(temperatures + index)
    valid = (best > float("-inf")) & (best < float("inf"))
    if valid & (temperature >= least_temperature):
        cold = 1.0 / temperature
        nearest = (best - top) * cold
        mass = tl.load(masses + places, mask=present, other=0.0) * tl.exp(-nearest)
        top_k = tl.load(top_ks + index)
        top_p = tl.load(top_ps + index)
        min_p = tl.load(min_ps + index)
        limit = 0x42ADFFFF  # the last number before 87, as a key
        if min_p > 0.0:
            limit = tl.minimum(limit, tl.maximum(-tl.log(min_p), 0.0).to(tl.int32, bitcast=True))
        if ((top_k > 0) & (top_k < vocab)) | (top_p < 1.0) | (min_p > 0.0):
            limit, mass = _filtered(
                row, best_of_groups + index * num_groups, picked + index * PICKED, vocab, num_groups, best, cold,
                tl.sum(mass, 0), top_k, top_p, limit, CHUNK, GROUP, PICKED, CHUNKS_BLOCK, GROUPS_BLOCK,
            )  # fmt: skip
        # A chunk whose best word is not kept has none.
        share = tl.where(nearest.to(tl.int32, bitcast=True) <= limit, mass, 0.0).to(tl.float64)
        upto = tl.cumsum(share, 0)
        target = philox_uniform(tl.load(seeds + index), tl.load(positions + index)) * tl.max(upto, 0)
        # Sums of the same words in another order may differ in their last bits: never beyond the last word that counts.
        last_chunk = tl.max(tl.where(share > 0.0, chunks, 0), 0)
        chosen = tl.minimum(tl.sum((upto <= target).to(tl.int32), 0), last_chunk)
        target -= tl.sum(tl.where(chunks == chosen - 1, upto, 0.0), 0)
        d = distances(row, chosen * CHUNK, vocab, best, cold, CHUNK)
        kept = d.to(tl.int32, bitcast=True) <= limit
        inside = tl.cumsum(tl.where(kept, tl.exp(-d), 0.0).to(tl.float64), 0)
        last_word = tl.max(tl.where(kept, tl.arange(0, CHUNK), 0), 0)
        word = tl.minimum(tl.sum((inside <= target).to(tl.int32), 0), last_word)
        tl.store(tokens + index, (chosen * CHUNK + word).to(tl.int64))
    else:
        firsts = tl.load(words + places, mask=present & (top == best), other=2147483647)
        tl.store(tokens + index, tl.where(valid, tl.min(firsts, 0), -1).to(tl.int64))


def sample(logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    """Tokens [rows] as above. Raises ValueError when shapes, dtypes, devices or strides do not fit together."""
    _check(logits, rows)
    if not runs_kernel(logits):
        return sample_reference(logits, rows)
    count, vocab = logits.shape
    tokens = torch.empty(count, dtype=torch.int64, device=logits.device)
    if count:
        _choice_kernel[(count,)](
            logits,
            *rows,
            *survey(logits, rows.temperature, GREEDY_TEMPERATURE),
            torch.empty(count * PICKED, dtype=torch.int32, device=logits.device),
            tokens,
            vocab,
            logits.stride(0),
            cdiv(vocab, GROUP),
            cdiv(vocab, CHUNK),
            GREEDY_TEMPERATURE,
            **_constants(vocab),
            num_warps=_WARPS,
        )
    return tokens


def _check(logits: torch.Tensor, rows: SamplingRows) -> None:
    if logits.dim() != 2 or not logits.shape[1] or logits.stride(1) != 1 or logits.dtype not in _DTYPES:
        raise ValueError(f"sample: logits {tuple(logits.shape)} {logits.dtype} {logits.stride()}")
    wanted = (torch.float32, torch.int32, torch.float32, torch.float32, torch.int64, torch.int32)
    for name, column, dtype in zip(SamplingRows._fields, rows, wanted, strict=True):
        if column.shape != logits.shape[:1] or column.dtype != dtype or not column.is_contiguous():
            raise ValueError(f"sample: {name} {tuple(column.shape)} {column.dtype}, logits {tuple(logits.shape)}")
        if column.device != logits.device:
            raise ValueError(f"sample: {name} on {column.device}, logits on {logits.device}")


def _constants(vocab: int) -> dict[str, int]:
    return {
        "CHUNK": CHUNK,
        "GROUP": GROUP,
        "PICKED": PICKED,
        "CHUNKS_BLOCK": next_power_of_2(cdiv(vocab, CHUNK)),
        "GROUPS_BLOCK": next_power_of_2(cdiv(vocab, GROUP)),
    }


def compile_cases() -> tuple[CompileCase, ...]:
    """Vocabularies of Llama-2, Llama-3 and Gemma; one so small that counts are constants."""
    cases = []
    for vocab, dtype in (
        (32000, torch.bfloat16),
        (128256, torch.float32),
        (256000, torch.bfloat16),
        (100, torch.float16),
    ):
        ones = {name: 1 for name, size in (("num_groups", GROUP), ("num_chunks", CHUNK)) if vocab <= size}
        integers = {"vocab", "row_stride", "num_groups", "num_chunks"} - set(ones)
        cases.append(
            CompileCase(
                str(vocab),
                _choice_kernel,
                {
                    "logits": pointer(dtype),
                    **dict.fromkeys(("temperatures", "top_ps", "min_ps", "tops", "masses", "best_of_groups"), "*fp32"),
                    **dict.fromkeys(("top_ks", "positions", "words", "picked"), "*i32"),
                    **dict.fromkeys(("seeds", "tokens"), "*i64"),
                    **dict.fromkeys(integers, "i32"),
                    "least_temperature": "fp32",
                },
                {**_constants(vocab), **ones},
                num_warps=_WARPS,
                divisible=frozenset({"vocab", "row_stride"}) if vocab % 16 == 0 else frozenset(),
            )
        )
    return tuple(cases)
