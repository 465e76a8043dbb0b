"""y = x W^T + bias, with W held in the layout that the device reads fastest.

    x  [tokens, in]    W  [out, in]    y  [tokens, out], W's dtype, sums in fp32

On a CPU two things decide. torch's own path for fp32 is MKL, which on some makes of processor leaves the wide vector
units idle, and a plain row-major W costs oneDNN a strided walk. `pack` therefore reorders W once, when the model is
loaded, into oneDNN's blocked layout; the plain copy is given up. Measured on two cores (AVX512-BF16, W of 9728 x 896,
GB/s of weights read, plain -> packed): bf16 28 -> 42 at 1 token, 24 -> 37 at 8, 15 -> 20 at 32; fp32 14 -> 45,
11 -> 38, 7 -> 19. A plain read of memory gives 45. What lost is in `docs/decisions/`.

A W that is used for a few steps only is not worth packing: `plain` keeps it as it is, and still takes the better path
for a single token in bf16 (28 -> 46) and for a large W in fp32 (14 -> 38).

oneDNN compiles a kernel for every new number of tokens, 0.5 to 2 ms a piece, and keeps 1024 of them in all. So beyond
`EXACT_TOKENS` x is padded to a multiple of `TOKEN_STEP`.
"""

from typing import Final

import torch

EXACT_TOKENS: Final = 64
TOKEN_STEP: Final = 16
# Below these sizes of W a call costs more than it saves; measured with 1 to 16 tokens.
LEAST_PACKED: Final = {torch.bfloat16: 1 << 16, torch.float32: 1 << 17}
LEAST_PLAIN: Final = 1 << 19
_HINT: Final = 64  # tokens for which oneDNN chooses the layout; 8, 64 and 512 gave the same speed, 1 is worse in fp32


class LinearWeight:
    """One W. Made by `pack` or `plain`."""

    def __init__(self, weight: torch.Tensor, shape: tuple[int, int], form: str, *, packed: bool = False) -> None:
        self._weight, self._form, self._packed = weight, form, packed
        self.shape = shape

    @classmethod
    def pack(cls, weight: torch.Tensor) -> "LinearWeight":
        """For a W [out, in] that nobody else reads; its storage is free once the caller lets go of it."""
        shape = (weight.shape[0], weight.shape[1])
        if not _accelerated(weight) or weight.numel() < LEAST_PACKED[weight.dtype]:
            return cls(weight, shape, "torch")
        return cls(torch.ops.mkldnn._reorder_linear_weight(weight, _HINT), shape, "onednn", packed=True)

    @classmethod
    def plain(cls, weight: torch.Tensor) -> "LinearWeight":
        """For a W [out, in] that is read elsewhere too: shared, not copied. It may be a transposed view."""
        shape = (weight.shape[0], weight.shape[1])
        if not _accelerated(weight) or not weight.is_contiguous():
            return cls(weight, shape, "torch")
        if weight.dtype == torch.bfloat16:
            return cls(weight, shape, "single")
        return cls(weight, shape, "onednn" if weight.numel() >= LEAST_PLAIN else "torch")

    def packed(self) -> "LinearWeight":
        """The same W, packed if that is worth it; the old one stays usable."""
        if self._packed or not _accelerated(self._weight) or self._weight.numel() < LEAST_PACKED[self._weight.dtype]:
            return self
        return LinearWeight.pack(self._weight.contiguous())

    @property
    def is_packed(self) -> bool:
        """False when the numbers are still where they were."""
        return self._packed

    @property
    def dtype(self) -> torch.dtype:
        return self._weight.dtype

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """[tokens, in] -> [tokens, out]. Raises ValueError when shapes or dtypes do not fit together."""
        if x.dim() != 2 or x.shape[1] != self.shape[1] or x.dtype != self._weight.dtype:
            raise ValueError(f"linear: x {tuple(x.shape)} {x.dtype}, weight {self.shape} {self._weight.dtype}")
        if self._form == "torch":
            return linear_reference(x, self._weight, bias)
        if self._form == "onednn":
            return _onednn(x, self._weight, bias)
        return _single(x, self._weight, bias) if x.shape[0] == 1 else linear_reference(x, self._weight, bias)

    def plus(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y + x W^T: a new tensor, or y itself, changed. y is [tokens, out] and contiguous."""
        if self._form == "onednn" and x.shape[0] <= EXACT_TOKENS:
            sum_: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, y, self._weight, None, "add")
            return sum_
        return y.add_(self(x))


def linear_reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.nn.functional.linear(x, weight, bias)


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    tokens = x.shape[0]
    if tokens > EXACT_TOKENS and tokens % TOKEN_STEP:
        x = torch.nn.functional.pad(x, (0, 0, 0, -tokens % TOKEN_STEP))
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y[:tokens]


def _single(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """One token in bf16: torch's own matrix-vector product reads memory at full speed, oneDNN's does not.

    The switch is the process's; only the engine thread computes.
    """
    torch._C._set_mkldnn_enabled(False)
    try:
        return linear_reference(x, weight, bias)
    finally:
        torch._C._set_mkldnn_enabled(True)


def _accelerated(weight: torch.Tensor) -> bool:
    """Whether oneDNN has kernels of its own for this dtype on this processor."""
    if weight.device.type != "cpu" or weight.dtype not in LEAST_PACKED or not torch._C._has_mkldnn:
        return False
    return weight.dtype == torch.float32 or _has_bf16()


def _has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
