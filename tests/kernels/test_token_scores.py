"""Log-probabilities against the formula in float64."""

import pytest
import torch

from kernels.token_scores import token_scores


@pytest.mark.parametrize("most", [0, 1, 3, 99])
def test_own_and_best(most: int) -> None:
    logits = (torch.randn(4, 11, generator=torch.Generator().manual_seed(1)) * 4).bfloat16()
    tokens = torch.tensor([0, 10, -1, 5])
    found = token_scores(logits, tokens, most)
    exact = logits.double() - torch.logsumexp(logits.double(), -1, keepdim=True)
    for row in (0, 1, 3):
        assert float(found.own[row]) == pytest.approx(float(exact[row, tokens[row]]), abs=1e-5)
    count = min(most, 11)
    assert found.values.shape == found.words.shape == (4, count)
    assert torch.allclose(found.values.double(), exact.sort(descending=True).values[:, :count], atol=1e-5)
    assert torch.allclose(exact.gather(1, found.words), found.values.double(), atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    for tokens, most in ((torch.zeros(3).long(), 1), (torch.zeros(4).int(), 1), (torch.zeros(4).long(), -1)):
        with pytest.raises(ValueError, match="token_scores"):
            token_scores(torch.zeros(4, 9), tokens, most)
