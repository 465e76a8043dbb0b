"""How deep callers' JSON may be nested where it is rendered and compiled: far above any schema, far below a stack."""

from typing import Any, Final

MAX_DEPTH: Final = 64


def exceeds(value: Any) -> bool:
    """Whether a decoded value is nested deeper than that."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for outer in level for item in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
