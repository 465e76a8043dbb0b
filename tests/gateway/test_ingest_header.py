"""The safetensors header checker: every rule, and no disagreement with the stock loader on what it accepts."""

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import deserialize

from gateway.demo import ADAPTERS_FOLDER
from gateway.ingest.adapter import WEIGHTS_FILE
from gateway.ingest.safetensors_header import BadHeader, Tensor, read_header
from tests.gateway import tiny_adapters as tiny

GOOD: dict[str, Any] = {
    "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}


def file_of(header: Any, data: bytes = bytes(32)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def read(file: bytes, **options: Any) -> tuple[Tensor, ...]:
    return read_header(io.BytesIO(file), len(file), **options)


def changed(name: str = "a.weight", **fields: Any) -> dict[str, Any]:
    return GOOD | {name: GOOD[name] | fields}


def test_a_good_file_is_read_in_the_order_of_its_data() -> None:
    header = dict(reversed(GOOD.items())) | {"__metadata__": {"format": "pt"}}
    file = file_of(header)
    first, second = read(file)
    start = len(file) - 32
    assert first == Tensor("a.weight", "F32", (2, 3), start, start + 24)
    assert second == Tensor("b.weight", "BF16", (4,), start + 24, start + 32)


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (b"", "8-byte header length"),
        (b"1234567", "8-byte header length"),
        ((2**64 - 1).to_bytes(8, "little") + b"{}", "only 2 follow"),
        ((100).to_bytes(8, "little") + b"{}", "only 2 follow"),
        ((0).to_bytes(8, "little"), "does not begin with"),
        (file_of(b"[]", b""), "does not begin with"),
        (file_of(b' {"a": 1}', b""), "does not begin with"),
        (file_of(b'{"\xff": 1}', b""), "not UTF-8"),
        (file_of(b'{"a": 1', b""), "not valid JSON"),
        (file_of(b"{} x", b""), "not valid JSON"),
        (file_of(b'{"a":' * 200_00, b""), "nested too deeply"),
        (file_of(b'{"a": {"dtype": "F32", "shape": [1e2], "data_offsets": [0, 400]}}'), "whole numbers"),
        (file_of(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 400]}}'), "whole numbers"),
        (file_of(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}'), "number -1"),
        (file_of(b'{"a": {"dtype": "F32", "shape": [-0], "data_offsets": [0, 0]}}', b""), "number -0"),
        (file_of(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}'), "number 999"),
        (file_of(b'{"a": 1, "a": 2}', b""), "twice"),
        (file_of(b'{"a": 1, "\\u0061": 2}', b""), "twice"),
        (file_of(b'{"__metadata__": {"x": "1", "x": "2"}}', b""), "twice"),
        (file_of(b'{"a": {"dtype": "F32", "dtype": "F16", "shape": [8], "data_offsets": [0, 32]}}'), "twice"),
        (file_of(GOOD | {"__metadata__": {"x": 1}}), "__metadata__"),
        (file_of(GOOD | {"__metadata__": "text"}), "__metadata__"),
        (file_of(GOOD | {"__metadata__": {"x": "\ud800"}}), "not Unicode"),
        (file_of(changed(extra=1)), "exactly dtype, shape and data_offsets"),
        (file_of(GOOD | {"a.weight": None}), "exactly dtype, shape and data_offsets"),
        (file_of(changed(dtype="F33")), "unknown dtype"),
        (file_of(changed(dtype=None)), "unknown dtype"),
        (file_of(changed(dtype=["F32"])), "unknown dtype"),
        (file_of(changed(shape=6)), "shape must be"),
        (file_of(changed(shape=[True, 6])), "shape must be"),
        (file_of(changed(shape=[1] * 9)), "shape must be"),
        (file_of(changed(shape=["6"])), "shape must be"),
        (file_of(changed(shape=[2**62, 8, 0], data_offsets=[0, 0])), "too large"),
        (file_of(changed(shape=[2**40, 2**40])), "too large"),
        (file_of(changed(shape=[2, 4])), "takes 32 bytes"),
        (file_of(changed(data_offsets=[0])), "data_offsets"),
        (file_of(changed(data_offsets=[0, 24, 24])), "data_offsets"),
        (file_of(changed(data_offsets=[24, 0])), "data_offsets"),
        (file_of(changed("b.weight", data_offsets=[16, 24]), bytes(24)), "overlaps"),
        (file_of(changed("b.weight", data_offsets=[0, 8]), bytes(24)), "overlaps"),
        (file_of(changed("b.weight", data_offsets=[32, 40]), bytes(40)), "hole of 8 bytes"),
        (file_of(changed(data_offsets=[8, 32]), bytes(32)), "hole of 8 bytes"),
        (file_of(GOOD, bytes(33)), "1 bytes after the last tensor"),
        (file_of(GOOD, bytes(31)), "truncated"),
        (file_of({}, bytes(8)), "8 bytes after the last tensor"),
        *(
            (file_of({name: {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}), "not a tensor name")
            for name in ("../../x", "/etc/x", "a\0b", "", ".", "a..b", "a\ud800", "x" * 300, "a b", "a\\b", "é")
        ),
    ],
)
def test_each_rule(file: bytes, why: str) -> None:
    with pytest.raises(BadHeader, match=why):
        read(file)


def test_all_broken_tensors_are_named_but_not_endlessly() -> None:
    header = {f"t{n}": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]} for n in range(100)}
    with pytest.raises(BadHeader) as error:
        read(file_of(header))
    assert len(error.value.reasons) == 21
    assert error.value.reasons[-1] == "and 80 more of this kind"


def test_a_large_header_is_not_even_read() -> None:
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.taken += len(data)
            return data

    file = Counting((5_000_000).to_bytes(8, "little") + b"{" + b" " * 5_000_000)
    with pytest.raises(BadHeader, match="at most 1000000"):
        read_header(file, 5_000_009)
    assert file.taken == 8


def test_no_allocation_follows_a_number_in_the_file() -> None:
    file = file_of(changed(shape=[2**59], data_offsets=[0, 2**61]))
    tracemalloc.start()
    try:
        with pytest.raises(BadHeader):
            read(file)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


ITEM = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "BOOL": 1, "F8_E4M3": 1, "X9": 1}
good_names = st.sampled_from(["a", "b", "a.b", "a-1", "lora_A.weight", "A_0.b_1"])
names = st.sampled_from(["a", "b", "a.b", "__metadata__", "../x", "é", "x\0", "a-1", "\ud800", "lora_A.weight"])
numbers = st.one_of(
    st.integers(-2, 40), st.sampled_from([2**31, 2**62, 2**63, 2**64]), st.booleans(), st.floats(0, 9), st.none()
)
wild_entry = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from([*ITEM, 3]),
            "shape": st.one_of(st.lists(numbers, max_size=4), numbers),
            "data_offsets": st.one_of(st.lists(numbers, min_size=2, max_size=2), st.lists(numbers, max_size=3)),
        },
        optional={"extra": numbers},
    ),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
    numbers,
)


@st.composite
def nearly_good_files(draw: st.DrawFn) -> bytes:
    """A file that is right but for, perhaps, one or two changes: both sides of every rule's edge are near."""
    header: dict[str, Any] = {}
    offset = 0
    for name in draw(st.lists(good_names, max_size=4, unique=True)):
        dtype = draw(st.sampled_from(list(ITEM)[:-1]))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        size = ITEM[dtype]
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        header[draw(names)] = draw(wild_entry)
    text = json.dumps(header, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    text = draw(
        st.sampled_from([text, text, text, text + b"  ", text.replace(b"[0,", b"[-0,"), text.replace(b": 1", b": 1.0")])
    )
    data = bytes(max(0, offset + draw(st.sampled_from([0, 0, 0, 1, -1]))))
    length = len(text) + draw(st.sampled_from([0, 0, 0, 0, 1, -1, 2**40]))
    return max(0, length).to_bytes(8, "little") + text + data


@settings(max_examples=1500, deadline=None)
@given(st.one_of(nearly_good_files(), st.binary(max_size=80)))
@example(file_of(GOOD))
@example(file_of({}, b""))
def test_accepted_files_load_in_the_stock_loader_with_the_same_shapes(file: bytes) -> None:
    agree(file)


def agree(file: bytes) -> bool:
    """Whether it is accepted; then the stock loader reads the same tensors out of it."""
    try:
        tensors = read(file)
    except BadHeader:
        return False
    stock = dict(deserialize(file))  # type: ignore[no-untyped-call] # Rust without stubs
    assert {tensor.name for tensor in tensors} == set(stock)
    for tensor in tensors:
        assert list(tensor.shape) == list(stock[tensor.name]["shape"])
        assert tensor.dtype == stock[tensor.name]["dtype"]
        assert file[tensor.start : tensor.stop] == bytes(stock[tensor.name]["data"])
    return True


def _seed(path: Path) -> bytes:
    """A real file whose tensors shrink to two elements each: its names, types and order stay."""
    with path.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    place = 0
    for name, entry in header.items():
        if name != "__metadata__":
            size = 2 * ITEM[entry["dtype"]]
            entry |= {"shape": [1, 2], "data_offsets": [place, place + size]}
            place += size
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + bytes(place)


SEEDS = [tiny.weights(), *(_seed(folder / WEIGHTS_FILE) for folder in sorted(ADAPTERS_FOLDER.iterdir()))]
JUNK = st.one_of(
    st.binary(max_size=6),
    st.sampled_from([b'"', b"}", b"{", b"[0,", b"]", b",", b"0", b"-", b"1e1", b"\\u0041", b" ", b"\n", b"../", b"\0"]),
)


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    """A real file with a few pieces of its header overwritten, cut out, repeated or pushed in."""
    file = draw(st.sampled_from(SEEDS))
    length = int.from_bytes(file[:8], "little")
    text, data = bytearray(file[8 : 8 + length]), file[8 + length :]
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.sampled_from([0, 1, 1, 2, 5, 80, 200])))
        text[start:stop] = draw(st.sampled_from([bytes(text[start:stop]) * 2, b"", draw(JUNK), draw(JUNK)]))
    told = len(text) + draw(st.sampled_from([0, 0, 0, 0, 0, 1, -1, 7]))
    return max(0, told).to_bytes(8, "little") + bytes(text) + data


@settings(max_examples=1500, deadline=None)
@given(mutated_files())
@example(SEEDS[0])
@example(SEEDS[-1])
def test_mutated_real_files_load_in_the_stock_loader_or_are_refused(file: bytes) -> None:
    agree(file)


def test_mutations_reach_accepted_and_refused_files() -> None:
    counts = {True: 0, False: 0}

    @settings(max_examples=300, deadline=None, database=None)
    @given(mutated_files())
    def count(file: bytes) -> None:
        counts[agree(file)] += 1

    count()
    assert min(counts.values()) >= 10, counts


def test_the_strategy_reaches_accepted_files() -> None:
    """The test above says nothing if nearly everything it makes is refused."""
    accepted = 0

    @settings(max_examples=200, deadline=None, database=None)
    @given(nearly_good_files())
    def count(file: bytes) -> None:
        nonlocal accepted
        try:
            accepted += bool(read(file))
        except BadHeader:
            return

    count()
    assert accepted >= 10
