"""A strict reader of safetensors headers: 8-byte length, JSON, then nothing but the tensors it names, without gaps.

The stock loader takes duplicate names, path-like names and more; an upload is checked here first. Everything that
this accepts, the stock loader reads with the same names, types and shapes (a test holds the two together). No
allocation follows a number in the file: at most `max_header_bytes` are read, whatever the file claims.
"""

import json
import re
from typing import Any, BinaryIO, Final, NamedTuple

MAX_HEADER_BYTES: Final = 1_000_000
MAX_DIMENSIONS: Final = 8
MAX_REASONS: Final = 20
ITEM_BYTES: Final[dict[str, int]] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9_]+(?:[.-][A-Za-z0-9_]+)*")
_LARGEST: Final = 2**63 - 1


class BadHeader(Exception):
    """The file is not a safetensors file that we accept; `reasons` are sentences for its owner."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


class Tensor(NamedTuple):
    """One tensor: `start` and `stop` are byte offsets in the file, checked to hold exactly its elements."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(file: BinaryIO, file_bytes: int, max_header_bytes: int = MAX_HEADER_BYTES) -> tuple[Tensor, ...]:
    """The tensors of a file of `file_bytes` bytes, in the order of their data. Raises BadHeader, OSError."""
    prefix = file.read(8)
    if len(prefix) < 8:
        raise BadHeader(f"the file has {file_bytes} bytes; a safetensors file begins with an 8-byte header length")
    length = int.from_bytes(prefix, "little")
    if length > file_bytes - 8:
        raise BadHeader(f"the header's length is given as {length} bytes, but only {file_bytes - 8} follow")
    if length > max_header_bytes:
        raise BadHeader(f"the header has {length} bytes; at most {max_header_bytes} are accepted")
    text = file.read(length)
    if len(text) < length:
        raise BadHeader("the file ends inside its header")
    if not text.startswith(b"{"):
        raise BadHeader("the header does not begin with '{': this is not a safetensors file")
    return _tensors(_parse(text), 8 + length, file_bytes)


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_int=_natural,
            parse_float=_no_float,
            parse_constant=_no_float,
        )
    except UnicodeDecodeError as error:
        raise BadHeader(f"the header is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise BadHeader("the header is nested too deeply") from error
    except ValueError as error:
        raise BadHeader(f"the header is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise BadHeader("the header is not a JSON object")
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise BadHeader(f"the header names {_shown(key)} twice")
        found[key] = value
    return found


def _natural(text: str) -> int:
    if text.startswith("-") or len(text) > 20:
        raise BadHeader(f"the header holds the number {text[:24]}; sizes are whole numbers from 0 to 2^63-1")
    return int(text)


def _no_float(text: str) -> float:
    raise BadHeader(f"the header holds the number {text[:24]}; sizes are whole numbers")


def _tensors(header: dict[str, Any], data_start: int, file_bytes: int) -> tuple[Tensor, ...]:
    reasons: list[str] = []
    tensors: list[Tensor] = []
    for name, entry in header.items():
        if name == "__metadata__":
            reason = _bad_metadata(entry)
        else:
            tensor = _tensor(name, entry, data_start)
            reason = tensor if isinstance(tensor, str) else None
            if isinstance(tensor, Tensor):
                tensors.append(tensor)
        if reason is not None:
            reasons.append(reason)
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    if not reasons:
        reasons = _gaps(tensors, data_start, file_bytes)
    if reasons:
        raise BadHeader(*shortened(reasons))
    return tuple(tensors)


def shortened(reasons: list[str]) -> list[str]:
    """The first reasons, and how many more there are: an answer stays readable whatever was sent."""
    more = len(reasons) - MAX_REASONS
    return reasons if more <= 0 else [*reasons[:MAX_REASONS], f"and {more} more of this kind"]


def _bad_metadata(entry: Any) -> str | None:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        return "__metadata__ must map names to strings"
    if any(0xD800 <= ord(character) <= 0xDFFF for pair in entry.items() for text in pair for character in text):
        return "__metadata__ holds text that is not Unicode"
    return None


def _tensor(name: str, entry: Any, data_start: int) -> Tensor | str:
    """The tensor, or why it is none."""
    if len(name) > 256 or not _NAME.fullmatch(name):
        return f"{_shown(name)} is not a tensor name"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return f"tensor {name} must have exactly dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        return f"tensor {name} has the unknown dtype {_shown(dtype)}"
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        return f"tensor {name}: shape must be a list of at most {MAX_DIMENSIONS} whole numbers"
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"tensor {name}: data_offsets must be two whole numbers, the first not above the second"
    size = ITEM_BYTES[dtype]
    for side in shape:
        size *= side
        if size > _LARGEST or side > _LARGEST:
            return f"tensor {name}: shape {shape} is too large"
    if size != offsets[1] - offsets[0]:
        return f"tensor {name}: shape {shape} in {dtype} takes {size} bytes, its offsets hold {offsets[1] - offsets[0]}"
    return Tensor(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _gaps(tensors: list[Tensor], data_start: int, file_bytes: int) -> list[str]:
    reasons, reached = [], data_start
    for tensor in tensors:
        if tensor.start < reached:
            reasons.append(f"tensor {tensor.name} overlaps the one before it by {reached - tensor.start} bytes")
        elif tensor.start > reached:
            reasons.append(f"there is a hole of {tensor.start - reached} bytes before tensor {tensor.name}")
        reached = max(reached, tensor.stop)
    if reached > file_bytes:
        reasons.append(f"the file is truncated: its tensors need {reached} bytes, it has {file_bytes}")
    elif reached < file_bytes:
        reasons.append(f"{file_bytes - reached} bytes after the last tensor belong to none")
    return reasons


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "...'"
