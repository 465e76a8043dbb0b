"""Norms, rotary embedding and activations against their formulas in float64, on any device: tiny in the interpreter,
real on a GPU. Everything is padded with NaN; what is written in place must leave the padding alone."""

import math

import torch

from kernels.head_norm import head_norm_
from kernels.rms_norm import rms_norm
from kernels.rope import rope_write_kv, rotary_table
from kernels.silu_mul import Activation, gated_activation
from tests.kernels.padded import padded, padding_is_intact
from tests.kernels.replay import captured


def random(shape: tuple[int, ...], dtype: torch.dtype, device: str, *, gap: int = 0, size: float = 3.0) -> torch.Tensor:
    """Padded; the same for the same shape."""
    generator = torch.Generator(device).manual_seed(sum(shape))
    return padded((torch.randn(shape, generator=generator, device=device) * size).to(dtype), gap=gap)


def _by_head(qkv: torch.Tensor, dim: int) -> torch.Tensor:
    """[tokens, heads of q, k and v, dim]; tokens may have gaps between them."""
    return qkv.as_strided((qkv.shape[0], qkv.shape[1] // dim, dim), (qkv.stride(0), dim, 1), qkv.storage_offset())


def assert_rounded_once(found: torch.Tensor, exact: torch.Tensor, size: torch.Tensor | None = None) -> None:
    """Half a unit in the last place, and a little for sums in fp32 of terms as large as `size`."""
    allowed = exact.abs() * torch.finfo(found.dtype).eps * 0.51 + (exact.abs() if size is None else size) * 2e-6
    if found.dtype == torch.float16:
        allowed = allowed + 2.0**-25  # half of its least denormal number
    wrong = (found.double() - exact).abs() > allowed
    assert not bool(wrong.any()), (found[wrong][:4], exact[wrong][:4])


def rms_norm_trial(
    tokens: int, width: int, dtype: torch.dtype, weight_dtype: torch.dtype, device: str, *, residual: bool, gap: int = 0
) -> None:
    """Checks y, and the sum left in the residual."""
    x = random((tokens, width), dtype, device, gap=gap)
    weight = padded((torch.rand(width, device=device) + 0.5).to(weight_dtype))
    beside = random((tokens, width), dtype, device, gap=2 * gap, size=5.0).roll(1, 0) if residual else None
    beside = None if beside is None else padded(beside, gap=2 * gap)
    summed = x if beside is None else (x.double() + beside.double()).to(dtype)
    y = rms_norm(x, weight, 1e-5, beside)
    if beside is not None:
        assert torch.equal(beside, summed)
        assert padding_is_intact(beside)
    wide = summed.double()
    assert_rounded_once(y, wide / torch.sqrt((wide**2).mean(-1, keepdim=True) + 1e-5) * weight.double())


def head_norm_trial(
    tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, weight_dtype: torch.dtype, device: str
) -> None:
    """Checks q and k, and that v is as it was."""
    qkv = random((tokens, (heads + 2 * kv_heads) * dim), dtype, device, gap=dim)
    before = qkv.double().view(tokens, -1, dim)
    weight = padded((torch.rand((heads + kv_heads, dim), device=device) + 0.5).to(weight_dtype))
    head_norm_(qkv, weight, 1e-3)
    after = _by_head(qkv, dim)
    normed = heads + kv_heads
    wide = before[:, :normed]
    exact = wide / torch.sqrt((wide**2).mean(-1, keepdim=True) + 1e-3) * weight.double()
    assert_rounded_once(after[:, :normed], exact)
    assert torch.equal(after[:, normed:].double(), before[:, normed:])
    assert padding_is_intact(qkv)


def rope_trial(
    tokens: int, heads: int, kv_heads: int, dim: int, block_tokens: int, dtype: torch.dtype, device: str
) -> None:
    """Checks q, k and v wherever they end up; every third token is padding, which leaves the cache alone."""
    qkv = random((tokens, (heads + 2 * kv_heads) * dim), dtype, device, gap=dim)
    before = qkv.double().view(tokens, -1, dim)
    num_blocks = tokens // block_tokens + 2
    cache = padded(torch.full((num_blocks, block_tokens, 2, kv_heads, dim), 9.0, dtype=dtype, device=device))
    frequency = 10000.0 ** (-torch.arange(dim // 2, device=device) / (dim // 2))
    cos, sin = rotary_table(frequency, 4096)
    generator = torch.Generator().manual_seed(tokens)
    positions = torch.randint(0, 4096, (tokens,), generator=generator).to(device)
    places = torch.randperm(num_blocks * block_tokens, generator=generator)[:tokens].to(device)
    places[2::3] = -1
    q = rope_write_kv(qkv, padded(cos[positions]), padded(sin[positions]), cache, padded(places), heads)
    low, high = before[..., : dim // 2], before[..., dim // 2 :]
    cosine, sine = cos[positions][..., : dim // 2].double(), sin[positions][..., dim // 2 :].double()
    rotated = torch.cat((low * cosine - high * sine, high * cosine + low * sine), -1)
    size = (low.abs() + high.abs()).repeat(1, 1, 2)
    after, turned = _by_head(qkv, dim), heads + kv_heads
    assert q.data_ptr() == qkv.data_ptr()
    assert q.shape == (tokens, heads, dim)
    assert_rounded_once(after[:, :turned], rotated[:, :turned], size[:, :turned])
    assert torch.equal(after[:, turned:].double(), before[:, turned:])
    cells, written = cache.view(-1, 2, kv_heads, dim), places >= 0
    assert torch.equal(cells[places[written], 0], after[written, heads:turned])
    assert torch.equal(cells[places[written], 1], after[written, turned:])
    untouched = torch.ones(len(cells), dtype=torch.bool, device=device)
    untouched[places[written]] = False
    assert bool((cells[untouched] == 9.0).all())
    assert padding_is_intact(qkv)
    assert padding_is_intact(cache)


def gated_activation_trial(tokens: int, width: int, activation: Activation, dtype: torch.dtype, device: str) -> None:
    """Checks both activations over a wide range, where neither may overflow."""
    x = random((tokens, 2 * width), dtype, device, gap=8, size=4.0)
    x[0, :4] = torch.tensor([-1e4, 1e4, 0.0, -30.0], device=device).to(dtype)
    x[0, width : width + 4] = torch.tensor([2.0, -3.0, 5.0, -1.0], device=device).to(dtype)
    gate, up = x[:, :width].double(), x[:, width:].double()
    if activation == "silu":
        exact = gate / (1 + torch.exp(-gate)) * up
    else:
        exact = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))) * up
    # what exp(-z) is off by grows with z, and a gate far below zero gives next to nothing
    assert_rounded_once(gated_activation(x, activation), exact, exact.abs() * 8 + 1e-6 * up.abs())


def delta_trial(tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, device: str) -> None:
    """What is added on the way gives the bits of what was added before, and zeros those of nothing."""
    width = (heads + 2 * kv_heads) * dim
    x, delta = (random((tokens, width), dtype, device, gap=gap) for gap in (dim, 2 * dim))
    delta = padded(delta.roll(1, 0), gap=2 * dim)
    delta[0] = 0
    summed = (x.double() + delta.double()).to(dtype)
    weight, beside = padded((torch.rand(width, device=device) + 0.5).to(dtype)), random((tokens, width), dtype, device)
    for residual in (None, beside):
        own, plain = (None if residual is None else residual.clone() for _ in range(2))
        assert torch.equal(rms_norm(x, weight, 1e-5, own, delta), rms_norm(summed, weight, 1e-5, plain))
        assert residual is None or torch.equal(own, plain)  # type: ignore[arg-type]  # both or neither
    assert torch.equal(gated_activation(x, "silu", delta), gated_activation(summed, "silu"))
    cos, sin = rotary_table(10000.0 ** (-torch.arange(dim // 2, device=device) / (dim // 2)), tokens)
    caches = [torch.zeros((1, tokens, 2, kv_heads, dim), dtype=dtype, device=device) for _ in range(2)]
    places = torch.arange(tokens, device=device)
    found = rope_write_kv(x.clone(), cos, sin, caches[0], places, heads, delta)
    assert torch.equal(found, rope_write_kv(summed, cos, sin, caches[1], places, heads))
    assert torch.equal(*caches)
    assert padding_is_intact(x)
    assert padding_is_intact(delta)


def replay_trial(tokens: int, width: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, device: str) -> None:
    """A layer's element-wise work, captured once: inputs, angles and places change between replays, the bits are those
    of the eager run."""
    inputs = [random(shape, dtype, device) for shape in _inputs(tokens, width, heads, kv_heads, dim)]
    x, residual, qkv = (torch.empty_like(tensor) for tensor in inputs)
    weight, norms = torch.rand(width, device=device).to(dtype), torch.rand((heads + kv_heads, dim), device=device)
    cache = torch.zeros((tokens + 1, 16, 2, kv_heads, dim), dtype=dtype, device=device)
    table = rotary_table(10000.0 ** (-torch.arange(dim // 2, device=device) / (dim // 2)), 512)
    cos, sin = (one[:tokens].clone() for one in table)
    places = torch.arange(tokens, device=device)

    def work() -> torch.Tensor:
        for tensor, value in zip((x, residual, qkv), inputs, strict=True):
            tensor.copy_(value)
        normed = rms_norm(x, weight, 1e-5, residual)
        head_norm_(qkv, norms, 1e-6)
        q = rope_write_kv(qkv, cos, sin, cache, places, heads)
        gated = gated_activation(qkv, "silu")
        return torch.cat([tensor.flatten() for tensor in (normed, residual, q, gated, cache)])

    replay = captured(work, device)
    before = None
    for first in (0, 100, 7):
        cos.copy_(table[0][first : first + tokens])
        sin.copy_(table[1][first : first + tokens])
        places.copy_(torch.arange(tokens) * 16 + first % 16)
        places[first % 3] = -1
        inputs[0].add_(1)
        cache.zero_()
        eager = work()
        assert before is None or not torch.equal(eager, before)
        cache.zero_()
        assert torch.equal(replay(), eager)
        before = eager.clone()


def _inputs(tokens: int, width: int, heads: int, kv_heads: int, dim: int) -> tuple[tuple[int, int], ...]:
    return (tokens, width), (tokens, width), (tokens, (heads + 2 * kv_heads) * dim)
