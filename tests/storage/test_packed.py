"""The packed file: what was written is read back, and whatever else is read is refused with one error."""

import io
import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import ObjectCorrupt
from storage.geometry import MODULES, Geometry
from storage.packed import (
    ALIGNMENT,
    MAGIC,
    NUMPY_DTYPE,
    AdapterDtype,
    LoraMatrices,
    PackedHeader,
    read_packed,
    write_packed,
)

GEOMETRY = Geometry(
    model_type="llama", num_layers=3, hidden_size=8, intermediate_size=12, num_heads=2, num_kv_heads=1, head_dim=4
)


@st.composite
def adapters(draw: st.DrawFn) -> tuple[AdapterDtype, list[LoraMatrices]]:
    dtype: AdapterDtype = draw(st.sampled_from(["float32", "float16", "bfloat16"]))
    places = draw(st.sets(st.tuples(st.integers(0, GEOMETRY.num_layers - 1), st.sampled_from(MODULES)), max_size=8))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    matrices = []
    for layer, module in draw(st.permutations(sorted(places))):
        rank = draw(st.integers(1, 5))
        out_features, in_features = GEOMETRY.shape(module)
        width = NUMPY_DTYPE[dtype].itemsize

        def some(*shape: int, width: int = width) -> Any:
            return np.frombuffer(random.bytes(int(np.prod(shape)) * width), NUMPY_DTYPE[dtype]).reshape(shape)

        scaling = draw(st.floats(-100, 100))
        matrices.append(LoraMatrices(layer, module, scaling, some(rank, in_features), some(out_features, rank)))
    return dtype, matrices


def pack(dtype: AdapterDtype, matrices: list[LoraMatrices]) -> tuple[PackedHeader, bytes]:
    out = io.BytesIO()
    return write_packed(out, GEOMETRY, dtype, matrices), out.getvalue()


def example() -> bytes:
    a, b = np.arange(16, dtype=np.float32).reshape(2, 8), np.arange(16, dtype=np.float32).reshape(8, 2)
    return pack("float32", [LoraMatrices(1, "q_proj", 2.0, a, b), LoraMatrices(0, "o_proj", 0.5, a, b)])[1]


@given(adapters())
def test_round_trip(adapter: tuple[AdapterDtype, list[LoraMatrices]]) -> None:
    dtype, matrices = adapter
    header, data = pack(dtype, matrices)
    packed = read_packed(data)
    assert packed.header == header
    assert header.rank == max((each.a.shape[0] for each in matrices), default=0)
    assert (len(data) - len(packed.payload)) % ALIGNMENT == 0
    written = {(each.layer, each.module): each for each in matrices}
    order = [(entry.layer, MODULES.index(entry.module)) for entry in header.entries]
    assert order == sorted(order)
    assert len(header.entries) == len(written)
    for entry in header.entries:
        a, b_transposed = packed.matrices(entry)
        source = written[entry.layer, entry.module]
        assert a.tobytes() == source.a.tobytes()
        assert b_transposed.tobytes() == np.ascontiguousarray(source.b.T).tobytes()
        assert entry.scaling == source.scaling


@given(adapters())
def test_writing_is_deterministic(adapter: tuple[AdapterDtype, list[LoraMatrices]]) -> None:
    dtype, matrices = adapter
    assert pack(dtype, matrices) == pack(dtype, list(reversed(matrices)))


def test_every_truncation_is_refused() -> None:
    data = example()
    for size in range(len(data)):
        with pytest.raises(ObjectCorrupt):
            read_packed(data[:size])
    with pytest.raises(ObjectCorrupt):
        read_packed(data + b"\0")


def harmless(data: bytes) -> None:
    """Either ObjectCorrupt, or a file whose every view lies inside the payload."""
    try:
        packed = read_packed(data)
    except ObjectCorrupt:
        return
    ends = [0]
    for entry in packed.header.entries:
        for view in packed.matrices(entry):
            assert view.nbytes > 0
        assert np.isfinite(entry.scaling)
        assert entry.offset_a == ends[-1]
        ends.append(entry.offset_b + packed.matrices(entry)[1].nbytes)
    assert ends[-1] == len(packed.payload) == packed.header.payload_bytes


def test_every_flipped_bit_of_the_header_is_harmless() -> None:
    data = example()
    end = len(data) - read_packed(data).header.payload_bytes
    for place in range(end):
        for bit in range(8):
            harmless(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])


@given(st.integers(0, 2000), st.binary(max_size=8))
def test_overwritten_anywhere(place: int, junk: bytes) -> None:
    data = bytearray(example())
    data[place : place + len(junk)] = junk
    harmless(bytes(data))


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    harmless(data)
    harmless(MAGIC + data)
    harmless(with_header(data, b""))


def with_header(header: bytes, payload: bytes) -> bytes:
    prefix = MAGIC + (1).to_bytes(4, "little") + len(header).to_bytes(4, "little") + header
    return prefix + bytes(-len(prefix) % ALIGNMENT) + payload


numbers = st.one_of(
    st.integers(-3, 20), st.sampled_from([2**31, 2**63 - 1, 2**64, -(2**63), 10**30, 1e400, 0.5, None, "1"])
)


@settings(max_examples=300)
@given(st.sampled_from(["geometry", "entry", "header"]), st.integers(0, 10), numbers)
def test_lying_numbers(where: str, index: int, value: object) -> None:
    data = example()
    header = json.loads(msgspec.json.encode(read_packed(data).header))
    part = {"geometry": header["geometry"], "entry": header["entries"][0], "header": header}[where]
    names = [name for name in part if name not in ("entries", "geometry")]
    part[names[index % len(names)]] = value
    payload = bytes(read_packed(data).payload)
    harmless(with_header(json.dumps(header).encode(), payload))


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    data = example()
    header = json.loads(msgspec.json.encode(read_packed(data).header))
    change(header)
    return with_header(json.dumps(header).encode(), bytes(read_packed(data).payload))


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["entries"].reverse(),
        lambda header: header["entries"].append(header["entries"][0]),
        lambda header: header["entries"].clear(),
        lambda header: header["entries"][0].update(module="lm_head"),
        lambda header: header["entries"][0].update(layer=3),
        lambda header: header["entries"][0].update(layer=-1),
        lambda header: header["entries"][1].update(layer=0, module="o_proj"),  # the same place twice
        lambda header: header["entries"][0].update(layer=2),  # out of pool order
        lambda header: header["entries"][0].update(rank=0),
        lambda header: header["entries"][0].update(scaling=float("inf")),
        lambda header: header["entries"][0].update(offset_a=64),
        lambda header: header["geometry"].update(hidden_size=-8),
        lambda header: header["geometry"].update(hidden_size=0),
        lambda header: header["geometry"].update(num_heads=10**18),
        lambda header: header.update(rank=1),
        lambda header: header.update(dtype="int8"),
        lambda header: header.update(dtype="float16"),
        lambda header: header.update(payload_bytes=0),
        lambda header: header.pop("geometry"),
    ],
)
def test_headers_that_do_not_add_up(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(ObjectCorrupt):
        read_packed(changed(change))


@pytest.mark.parametrize(
    "header",
    [b"", b"null", b"[]", b"{", b"\xff\xfe", b'{"dtype": "\xff"}', b"[" * 100_000, b'{"x": ' + b"[" * 100_000],
    ids=["empty", "null", "list", "open", "not utf-8", "not utf-8 in a string", "deep", "deep in an unknown field"],
)
def test_headers_that_are_not_ours(header: bytes) -> None:
    with pytest.raises(ObjectCorrupt):
        read_packed(with_header(header, b""))


@pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
def test_another_version_says_so(version: int) -> None:
    data = MAGIC + version.to_bytes(4, "little") + example()[12:]
    with pytest.raises(ObjectCorrupt, match=f"version {version}"):
        read_packed(data)


def test_bytes_between_header_and_payload_must_be_zeros() -> None:
    data = bytearray(example())
    end = len(data) - read_packed(bytes(data)).header.payload_bytes
    assert data[end - 1] == 0
    data[end - 1] = 1
    with pytest.raises(ObjectCorrupt, match="zeros"):
        read_packed(bytes(data))


def test_views_need_no_copy() -> None:
    data = bytearray(example())
    packed = read_packed(data)
    a, _ = packed.matrices(packed.header.entries[0])
    data[-packed.header.payload_bytes] ^= 1
    assert a.reshape(-1).view(np.uint8)[0] == data[-packed.header.payload_bytes]


@pytest.mark.parametrize("scaling", [float("nan"), float("inf")])
def test_what_could_not_be_read_back_is_not_written(scaling: float) -> None:
    a, b = np.zeros((2, 8), np.float32), np.zeros((8, 2), np.float32)
    for matrices in ([LoraMatrices(0, "q_proj", scaling, a, b)], [LoraMatrices(0, "q_proj", 1.0, a, b)] * 2):
        out = io.BytesIO()
        with pytest.raises(ObjectCorrupt):
            write_packed(out, GEOMETRY, "float32", matrices)
        assert out.getvalue() == b""
