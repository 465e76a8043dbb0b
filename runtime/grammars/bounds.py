"""Bounds of numbers that the library cannot keep, found before it is asked: it reads them as float64, and those of
integers as int64 after that, without a word. An answer could then lie beyond the bound that the caller gave. A Lark
text is looked through for the schemas in it, but for those that ask to be enforced only as far as the library can."""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

_LOWEST: Final = -(2**63)
_HIGHEST: Final = 2**63 - 1
_EXACT: Final = 2**53  # beyond it float64 has no neighbours one apart
_BY_NAME: Final = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_VALUES: Final = frozenset({"enum", "const", "default", "examples", "example"})
# What may hold a `%json` that is none comes first: strings, regular expressions, comments.
_LARK: Final = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/(?:\\.|[^/\\\n])+/|%json\s*(?=\{)')


def unkept(schema: dict[str, Any]) -> str | None:
    """A keyword with its number that would not be kept; None when all are."""
    for part in _parts(schema):
        for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if key in part and not _is_kept(key, part[key]):
                return f"{key} {part[key]}"[:80]
    return None


def unkept_in_lark(text: str) -> str | None:
    """As `unkept`, of the schemas that stand in Lark after `%json`. Raises ValueError, RecursionError."""
    at = 0
    while (found := _LARK.search(text, at)) is not None:
        at = found.end()
        if not found[0].startswith("%json"):
            continue
        schema, at = json.JSONDecoder().raw_decode(text, at)
        options = schema.get("x-guidance")
        lenient = isinstance(options, dict) and options.get("lenient") is True
        if not lenient and (bound := unkept(schema)) is not None:
            return bound
    return None


def _is_kept(key: str, bound: Any) -> bool:
    """Numbers that are not whole become the same float64 there as here; what is not a number is refused there."""
    if isinstance(bound, float) and bound.is_integer():
        bound = int(bound)
    if isinstance(bound, bool) or not isinstance(bound, int):
        return True
    if key.startswith("exclusive"):
        return abs(bound) < _EXACT
    # Cut to int64, these only get tighter.
    if (key == "minimum" and bound <= _LOWEST) or (key == "maximum" and bound >= _HIGHEST):
        return True
    return _LOWEST <= bound <= _HIGHEST and int(float(bound)) == bound


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """The schema and those inside it; what it lists as values is not one. Its depth is bounded by its decoder."""
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, list):
            left += part
        elif isinstance(part, dict):
            yield part
            for key, inner in part.items():
                if key in _BY_NAME and isinstance(inner, dict):
                    left += inner.values()
                elif key not in _VALUES:
                    left.append(inner)
