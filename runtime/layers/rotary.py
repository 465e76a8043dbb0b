"""Rotary frequencies of a model: the plain ones, linearly scaled, or Llama 3's mix of both by wavelength."""

import math

import torch

from runtime.models.config import Rope


def inverse_frequency(rope: Rope, head_dim: int) -> torch.Tensor:
    """[head_dim / 2] fp32, on the CPU; the arithmetic and its order are those of transformers."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    plain = 1.0 / (rope.theta**exponents)
    if rope.kind == "default":
        return plain
    if rope.kind == "linear":
        return plain / rope.factor
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
