"""Every form of a weight gives the product, for any number of tokens, and holds the weight once."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import linear
from kernels.linear import EXACT_TOKENS, LinearWeight

DTYPES = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}
FORMS: dict[str, Callable[[torch.Tensor], LinearWeight]] = {
    "pack": LinearWeight.pack,
    "plain": LinearWeight.plain,
    "packed": lambda weight: LinearWeight.plain(weight).packed(),
}


def numbers(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(sorted(FORMS)),
    dtype=st.sampled_from(sorted(DTYPES, key=str)),
    tokens=st.one_of(st.integers(1, 9), st.integers(EXACT_TOKENS - 1, EXACT_TOKENS + 40)),
    shape=st.sampled_from([(8, 8), (333, 517), (700, 768), (768, 700)]),
    biased=st.booleans(),
)
def test_the_product(form: str, dtype: torch.dtype, tokens: int, shape: tuple[int, int], biased: bool) -> None:
    x, weight = numbers(tokens, shape[1], dtype=dtype), numbers(*shape, dtype=dtype)
    bias = numbers(shape[0], dtype=dtype) if biased else None
    wanted = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    found = FORMS[form](weight)(x, bias)
    assert found.shape == wanted.shape
    assert found.dtype == dtype
    assert (found.double() - wanted).norm() <= DTYPES[dtype] * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_step_may_be_a_view(dtype: torch.dtype) -> None:
    """Attention's output and the last tokens of a step are views with strides of their own."""
    weight = LinearWeight.pack(numbers(700, 768, dtype=dtype))
    wide = numbers(9, 3 * 768, dtype=dtype)
    torch.testing.assert_close(weight(wide[2:, 768:1536]), weight(wide[2:, 768:1536].contiguous()))


def test_a_transposed_view_is_read_as_it_is() -> None:
    stored = numbers(48, 960, dtype=torch.bfloat16)
    weight = LinearWeight.plain(stored.t())
    x = numbers(1, 48, dtype=torch.bfloat16)
    torch.testing.assert_close(weight(x), x @ stored)
    stored.zero_()
    assert not weight(x).any()


def test_a_large_weight_is_packed_and_a_small_one_is_not() -> None:
    assert LinearWeight.pack(numbers(768, 768, dtype=torch.float32)).is_packed
    assert not LinearWeight.pack(numbers(64, 64, dtype=torch.float32)).is_packed
    assert not LinearWeight.pack(numbers(768, 768, dtype=torch.float16)).is_packed


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [1, 5, EXACT_TOKENS + 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plus_adds_to_what_is_there(form: str, tokens: int, dtype: torch.dtype) -> None:
    weight = FORMS[form](numbers(700, 768, dtype=dtype))
    x, y = numbers(tokens, 768, dtype=dtype), numbers(tokens, 700, dtype=dtype)
    wanted = weight(x).double() + y.double()
    found = weight.plus(x, y.clone()).double()
    assert (found - wanted).norm() <= 1e-2 * wanted.norm()


def test_a_processor_without_bf16_kernels_gets_the_plain_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_has_bf16", lambda: False)
    weight = numbers(768, 768, dtype=torch.bfloat16)
    x = numbers(3, 768, dtype=torch.bfloat16)
    assert torch.equal(LinearWeight.pack(weight)(x), torch.nn.functional.linear(x, weight))


def test_one_token_leaves_the_switch_as_it_was() -> None:
    weight = LinearWeight.plain(numbers(700, 768, dtype=torch.bfloat16))
    weight(numbers(1, 768, dtype=torch.bfloat16))
    assert torch._C._get_mkldnn_enabled()


@pytest.mark.parametrize("form", FORMS)
def test_what_does_not_fit_is_refused(form: str) -> None:
    weight = FORMS[form](numbers(700, 768, dtype=torch.float32))
    for x in (torch.zeros(2, 767), torch.zeros(2, 768, dtype=torch.bfloat16), torch.zeros(768)):
        with pytest.raises(ValueError, match="linear"):
            weight(x)
