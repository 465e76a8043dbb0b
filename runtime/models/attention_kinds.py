"""Which layers rotate and see alike: a model has one or two kinds of attention, and each layer is of one of them.

What depends on positions (rotation, masks, which blocks are read) is built once per kind and step, not per layer.
"""

from dataclasses import dataclass
from typing import Any

from runtime.models.families import Family
from runtime.models.rope import FULL, SLIDING, Rope, read_ropes


@dataclass(frozen=True)
class AttentionKind:
    """window: how many latest positions a query sees, itself included, or None for all."""

    rope: Rope
    window: int | None


def read_kinds(
    config: dict[str, Any], family: Family, num_layers: int, max_positions: int
) -> tuple[tuple[AttentionKind, ...], tuple[int, ...]]:
    """The model's kinds, and the index of each layer's. Raises ValueError about a field that does not fit."""
    ropes = read_ropes(config, family, max_positions)
    types = _layer_types(config, family, num_layers)
    window = _window(config, family)
    if window is None and SLIDING in types:
        raise ValueError(f"layer_types names {SLIDING}, but sliding_window is off")
    of_type = {FULL: AttentionKind(ropes.full, None), SLIDING: AttentionKind(ropes.sliding, window)}
    kinds = tuple(dict.fromkeys(of_type[name] for name in types))
    return kinds, tuple(kinds.index(of_type[name]) for name in types)


def _window(config: dict[str, Any], family: Family) -> int | None:
    """The window of layers that have one; None when none has."""
    if family.windows == "never" or (family.windows == "from a layer on" and not config.get("use_sliding_window")):
        return None
    window = config.get("sliding_window", family.sliding_window)
    if window is not None and int(window) < 1:
        raise ValueError(f"sliding_window {window} must be null or at least 1")
    return None if window is None else int(window)


def _layer_types(config: dict[str, Any], family: Family, num_layers: int) -> tuple[str, ...]:
    if family.windows == "never":
        return (FULL,) * num_layers
    if family.windows == "every layer":
        return (FULL if _window(config, family) is None else SLIDING,) * num_layers
    stated = config.get("layer_types")
    if stated is not None:
        if not isinstance(stated, list) or len(stated) != num_layers or not set(stated) <= {FULL, SLIDING}:
            raise ValueError(f"layer_types must be a list of {num_layers} times {FULL} or {SLIDING}")
        return tuple(stated)
    if family.windows == "all but each nth":
        every = int(config.get("sliding_window_pattern") or family.full_every)
        return tuple(SLIDING if (layer + 1) % every else FULL for layer in range(num_layers))
    if _window(config, family) is None:
        return (FULL,) * num_layers
    first = int(config.get("max_window_layers", 28))
    return tuple(SLIDING if layer >= first else FULL for layer in range(num_layers))
