"""Two levels find what one running sum over all words finds."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.draw import BLOCK_WORDS, draw, exponentials


@settings(max_examples=200, deadline=None)
@given(
    vocab=st.sampled_from([1, 5, BLOCK_WORDS - 1, BLOCK_WORDS, BLOCK_WORDS + 1, 3 * BLOCK_WORDS + 7]),
    seed=st.integers(0, 10**6),
    kept=st.sampled_from([0.002, 0.3, 1.0]),
    uniforms=st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 1 - 2.0**-53])), min_size=1, max_size=5),
)
def test_two_levels_are_one(vocab: int, seed: int, kept: float, uniforms: list[float]) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn((len(uniforms), vocab), generator=generator) * 4
    cut = torch.rand(scores.shape, generator=generator) > kept
    cut[:, int(torch.randint(vocab, (), generator=generator))] = False
    scores = scores.masked_fill(cut, float("-inf"))
    weights = exponentials(scores - scores.max(-1, keepdim=True).values)
    for number, line, word in zip(uniforms, weights, draw(weights, uniforms), strict=True):
        assert line[word] > 0
        before, total = line[:word].double().sum(), line.double().sum()
        assert before / total <= number + 1e-6
        assert (before + line[word].double()) / total >= number - 1e-6
