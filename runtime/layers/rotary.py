"""Rotary frequencies of a model: the plain ones, linearly scaled, or mixed by wavelength as Llama 3 and YaRN do."""

import math
from collections.abc import Sequence

import torch

from kernels.rope import rotary_table
from runtime.models.attention_kinds import AttentionKind
from runtime.models.rope import Rope


class Rotations:
    """The rotary tables of a model's kinds of attention; kinds that rotate alike share one."""

    def __init__(self, kinds: Sequence[AttentionKind], head_dim: int, max_positions: int, device: torch.device) -> None:
        ropes = tuple(dict.fromkeys(kind.rope for kind in kinds))
        self.tables = tuple(
            rotary_table(inverse_frequency(rope, head_dim).to(device), max_positions, rope.amplitude) for rope in ropes
        )
        self.of_kind = tuple(ropes.index(kind.rope) for kind in kinds)

    def table(self, kind: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, signed sin) of a kind, each [max_positions, 1, head_dim] fp32."""
        return self.tables[self.of_kind[kind]]


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
