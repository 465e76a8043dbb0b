"""The base of plain records that travel: msgspec's `Struct` and JSON, or the standard library's where it is missing.

Kernels, models and the engine must run on a bare GPU host (torch, triton, numpy), and their records are those of the
wire. A deployment always has msgspec; what stands in for it here makes the same records, without the speed: frozen
dataclasses, and JSON that both sides of `encode_json` and `decode_json` read, checked as strictly against the fields.
"""

import dataclasses
import importlib.util
import json
import types
import typing
from typing import TYPE_CHECKING, Any, Final, TypeVar, dataclass_transform

HAS_MSGSPEC: Final = importlib.util.find_spec("msgspec") is not None

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
class PlainStruct:
    """A frozen record by its annotations. Options of the wire (tags, defaults left out) mean nothing here."""

    __struct_fields__: typing.ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, *, kw_only: bool = False, **options: object) -> None:
        super().__init_subclass__()
        dataclasses.dataclass(frozen=True, kw_only=kw_only)(cls)
        cls.__struct_fields__ = tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]  # it is one since the line above


if TYPE_CHECKING or HAS_MSGSPEC:
    import msgspec

    Struct = msgspec.Struct
else:
    Struct = PlainStruct


def encode_json(record: object) -> bytes:
    """Compact, in the order of the fields."""
    return msgspec.json.encode(record) if HAS_MSGSPEC else plain_json(record)


def decode_json(data: bytes | memoryview, kind: type[T]) -> T:
    """Raises ValueError for what is not JSON or does not fit the fields."""
    if HAS_MSGSPEC:
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(str(error)) from error
    return from_plain_json(data, kind)


def plain_json(record: object) -> bytes:
    """`encode_json` by the standard library."""
    return json.dumps(record, default=_fields, separators=(",", ":")).encode()


def from_plain_json(data: bytes | memoryview, kind: type[T]) -> T:
    """`decode_json` by the standard library."""
    try:
        made: T = _fitted(json.loads(bytes(data)), kind)
    except RecursionError as error:
        raise ValueError(str(error)) from error
    return made


def _fields(record: object) -> dict[str, Any]:
    names: tuple[str, ...] = record.__struct_fields__  # type: ignore[attr-defined]  # records only come here
    return {name: getattr(record, name) for name in names}


def _fitted(value: Any, kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for one in arguments:
            try:
                return _fitted(value, one)
            except ValueError:
                continue
    elif origin is typing.Literal:
        if value in arguments:
            return value
    elif origin is tuple:
        if isinstance(value, list):
            return tuple(_fitted(item, arguments[0]) for item in value)
    elif hasattr(kind, "__struct_fields__"):
        return _record(value, kind)
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif type(value) is kind or (value is None and kind is types.NoneType):
        return value
    raise ValueError(f"expected {getattr(kind, '__name__', kind)}, got {type(value).__name__}")


def _record(value: Any, kind: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"expected {kind.__name__}, got {type(value).__name__}")  # noqa: TRY004 (a wrong file)
    hints = typing.get_type_hints(kind)
    try:
        return kind(**{name: _fitted(value[name], hints[name]) for name in kind.__struct_fields__ if name in value})
    except TypeError as error:  # a field without default is missing
        raise ValueError(str(error)) from error
