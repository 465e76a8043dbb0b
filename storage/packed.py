"""The packed adapter file: one flat file that a runtime reads with one read, in the order of its device pool.

    magic "LRKTPACK" | u32 version | u32 header length | header (JSON) | zeros to a multiple of 64 | payload

The payload holds, for each entry in pool order (layer, group, module), A as `[rank, in]` and then B transposed as
`[rank, out]`, both row-major in the file's dtype, so that row i of both belongs to rank row i of the device pool.
Modules that the adapter does not touch have no entry and take no bytes. `scaling` (alpha/r or alpha/sqrt(r)) stays
in the header and is applied in fp32 by the kernel. The file's name is the SHA-256 of all of its bytes.

Arrays are numpy; bfloat16, which numpy lacks, travels as uint16 bit patterns (nothing here does arithmetic).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from storage.errors import ObjectCorrupt
from storage.geometry import MODULES, Geometry
from storage.records import Struct, decode_json, encode_json

MAGIC: Final = b"LRKTPACK"
VERSION: Final = 1
ALIGNMENT: Final = 64
MAX_HEADER_BYTES: Final = 4 * 1024 * 1024

AdapterDtype = Literal["float32", "float16", "bfloat16"]
NUMPY_DTYPE: Final[dict[AdapterDtype, np.dtype[Any]]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}


class LoraMatrices(NamedTuple):
    """One module's update, `scaling * B @ A`: a is [rank, in], b is [out, rank], both in `NUMPY_DTYPE[dtype]`."""

    layer: int
    module: str
    scaling: float
    a: npt.NDArray[Any]
    b: npt.NDArray[Any]


class PackedEntry(Struct, frozen=True):
    """Where one module lies; offsets are bytes from the start of the payload."""

    layer: int
    module: str
    rank: int
    scaling: float
    offset_a: int
    offset_b: int


class PackedHeader(Struct, frozen=True):
    """What the file holds. `rank` is the largest rank of any entry: the rows that the adapter takes in a pool."""

    geometry: Geometry
    dtype: AdapterDtype
    rank: int
    payload_bytes: int
    entries: tuple[PackedEntry, ...]


class Packed(NamedTuple):
    """A parsed file: views into the caller's buffer, no copies."""

    header: PackedHeader
    payload: memoryview

    def matrices(self, entry: PackedEntry) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """(A [rank, in], B transposed [rank, out]) as views of the payload."""
        out_features, in_features = self.header.geometry.shape(entry.module)
        dtype = NUMPY_DTYPE[self.header.dtype]
        a = np.frombuffer(self.payload, dtype, entry.rank * in_features, entry.offset_a)
        b = np.frombuffer(self.payload, dtype, entry.rank * out_features, entry.offset_b)
        return a.reshape(entry.rank, in_features), b.reshape(entry.rank, out_features)


def write_packed(
    out: BinaryIO, geometry: Geometry, dtype: AdapterDtype, matrices: Iterable[LoraMatrices]
) -> PackedHeader:
    """Writes the file to `out` and returns its header. The caller has validated names and shapes.

    Raises ObjectCorrupt, with nothing written, for a file that could not be read back: a place twice, an odd scaling.
    """
    order = {module: index for index, module in enumerate(MODULES)}
    ordered = sorted(matrices, key=lambda item: (item.layer, order[item.module]))
    header = _plan(geometry, dtype, ordered)
    _check(header)
    text = encode_json(header)
    prefix = MAGIC + VERSION.to_bytes(4, "little") + len(text).to_bytes(4, "little") + text
    out.write(prefix + bytes(-len(prefix) % ALIGNMENT))
    for item in ordered:
        out.write(np.ascontiguousarray(item.a).tobytes())
        out.write(np.ascontiguousarray(item.b.T).tobytes())
    return header


def read_packed(data: bytes | bytearray | memoryview) -> Packed:
    """Parses a whole file. Raises ObjectCorrupt when header, sizes or offsets do not fit together."""
    view = memoryview(data).cast("B")
    start = len(MAGIC) + 8
    if len(view) < start or bytes(view[: len(MAGIC)]) != MAGIC:
        raise ObjectCorrupt("not a packed adapter: wrong magic")
    version = int.from_bytes(view[len(MAGIC) : len(MAGIC) + 4], "little")
    length = int.from_bytes(view[len(MAGIC) + 4 : start], "little")
    if version != VERSION:
        raise ObjectCorrupt(f"packed adapter of version {version}; this program reads {VERSION}")
    if length > MAX_HEADER_BYTES or start + length > len(view):
        raise ObjectCorrupt("packed adapter: header longer than the file")
    try:
        header = decode_json(view[start : start + length], PackedHeader)
    except ValueError as error:
        raise ObjectCorrupt(f"packed adapter: {error}") from error
    begin = start + length + -(start + length) % ALIGNMENT
    payload = view[begin:]
    if any(view[start + length : begin]):
        raise ObjectCorrupt("packed adapter: something other than zeros between header and payload")
    if len(payload) != header.payload_bytes:
        raise ObjectCorrupt(f"packed adapter: payload of {len(payload)} bytes, header says {header.payload_bytes}")
    _check(header)
    return Packed(header, payload)


def _plan(geometry: Geometry, dtype: AdapterDtype, ordered: Sequence[LoraMatrices]) -> PackedHeader:
    entries, offset, width = [], 0, NUMPY_DTYPE[dtype].itemsize
    for item in ordered:
        rank = item.a.shape[0]
        out_features, in_features = geometry.shape(item.module)
        offset_b = offset + rank * in_features * width
        entries.append(PackedEntry(item.layer, item.module, rank, item.scaling, offset, offset_b))
        offset = offset_b + rank * out_features * width
    return PackedHeader(geometry, dtype, max((e.rank for e in entries), default=0), offset, tuple(entries))


def _check(header: PackedHeader) -> None:
    """Entries must lie one after the other in pool order: the writer's arithmetic, so no view leaves the payload."""
    geometry, offset, width = header.geometry, 0, NUMPY_DTYPE[header.dtype].itemsize
    if min(getattr(geometry, name) for name in geometry.__struct_fields__[1:]) < 1:
        raise ObjectCorrupt("packed adapter: the base has a size below 1")
    last = (-1, -1)
    for entry in header.entries:
        name = f"entry {entry.layer}.{entry.module}"
        if entry.module not in MODULES or not 0 <= entry.layer < geometry.num_layers or entry.rank < 1:
            raise ObjectCorrupt(f"packed adapter: {name} does not fit the base")
        place = (entry.layer, MODULES.index(entry.module))
        if place <= last or not math.isfinite(entry.scaling):
            raise ObjectCorrupt(f"packed adapter: {name} is out of order, or its scaling is no number")
        out_features, in_features = geometry.shape(entry.module)
        offset_b = offset + entry.rank * in_features * width
        if (entry.offset_a, entry.offset_b) != (offset, offset_b):
            raise ObjectCorrupt(f"packed adapter: {name} has wrong offsets")
        last, offset = place, offset_b + entry.rank * out_features * width
    if offset != header.payload_bytes or header.rank != max((e.rank for e in header.entries), default=0):
        raise ObjectCorrupt("packed adapter: sizes do not add up")
