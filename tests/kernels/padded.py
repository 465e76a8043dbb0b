"""Tensors that lie inside larger ones filled with NaN: what is read beside them shows, and so does what is written."""

from typing import Any

import torch

_MARGIN = 64
_FILL_INTEGER = -77


def padded(values: torch.Tensor, *, gap: int = 0) -> torch.Tensor:
    """The same values with NaN (or -77) before and after, and `gap` elements of it after each row."""
    shape = (*values.shape[:-1], values.shape[-1] + gap)
    size = 1
    for extent in shape:
        size *= extent
    fill: Any = float("nan") if values.dtype.is_floating_point else _FILL_INTEGER
    storage = torch.full((_MARGIN + size + _MARGIN,), fill, dtype=values.dtype, device=values.device)
    view = storage[_MARGIN : _MARGIN + size].view(shape)[..., : values.shape[-1]]
    view.copy_(values)
    return view


def padding_is_intact(tensor: torch.Tensor) -> bool:
    """Whether everything around the tensor's elements still holds what `padded` put there."""
    whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())
    inside = torch.zeros(whole.shape, dtype=torch.bool, device=tensor.device)
    inside.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(True)
    outside = whole[~inside]
    return bool((outside.isnan() if tensor.dtype.is_floating_point else outside == _FILL_INTEGER).all())
