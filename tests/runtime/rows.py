"""Rows of a step that differ from others in something."""

from typing import Any

from runtime.batch import Row


def changed(row: Row, **changes: Any) -> Row:
    """A copy with other fields; also on a host without msgspec."""
    return Row(**{**{name: getattr(row, name) for name in row.__struct_fields__}, **changes})
