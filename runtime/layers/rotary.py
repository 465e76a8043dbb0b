"""Rotary frequencies of a model: the plain ones, linearly scaled, or mixed by wavelength as Llama 3 and YaRN do."""

import math

import torch

from runtime.models.rope import Rope


def inverse_frequency(rope: Rope, head_dim: int) -> torch.Tensor:
    """[head_dim / 2] fp32, on the CPU; the arithmetic and its order are those of transformers."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    powers = rope.theta**exponents
    plain = 1.0 / powers
    if rope.kind == "default":
        return plain
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "yarn":
        return _yarn(rope, powers, head_dim)
    low = rope.original_positions / rope.low_frequency_factor
    high = rope.original_positions / rope.high_frequency_factor
    wavelength = 2 * math.pi / plain
    scaled = torch.where(wavelength > low, plain / rope.factor, plain)
    smooth = (rope.original_positions / wavelength - rope.low_frequency_factor) / (
        rope.high_frequency_factor - rope.low_frequency_factor
    )
    smoothed = (1 - smooth) * scaled / rope.factor + smooth * scaled
    between = ~(wavelength < high) & ~(wavelength > low)
    return torch.where(between, smoothed, scaled)


def _yarn(rope: Rope, powers: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Fast dimensions keep their frequency, slow ones are divided by the factor, those between are mixed."""

    def dimension(rotations: float) -> float:
        """The one that makes this many rotations over the original positions."""
        return head_dim * math.log(rope.original_positions / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (rope.factor * powers) * (1 - kept) + 1.0 / powers * kept
