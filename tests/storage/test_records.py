"""What stands in for msgspec on a bare host makes the same records and reads and writes the same JSON."""

import dataclasses
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.geometry import Geometry
from storage.packed import PackedEntry, PackedHeader
from storage.records import PlainStruct, decode_json, encode_json, from_plain_json, plain_json

GEOMETRY = Geometry("llama", 3, 8, 12, 2, 1, 4)
ENTRIES = st.builds(
    PackedEntry,
    st.integers(0, 99),
    st.text(max_size=5),
    st.integers(1, 64),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(0, 10**12),
    st.integers(0, 10**12),
)
HEADERS = st.builds(
    PackedHeader,
    st.just(GEOMETRY),
    st.sampled_from(["float32", "bfloat16"]),
    st.integers(0, 64),
    st.integers(0, 10**12),
    st.lists(ENTRIES, max_size=3).map(tuple),
)


class Leaf(PlainStruct, frozen=True, tag="leaf", omit_defaults=True):
    number: int
    share: float = 0.5
    word: Literal["a", "b"] = "a"


class Tree(PlainStruct, frozen=True):
    leaves: tuple[Leaf, ...]
    maybe: int | None = None


class Named(PlainStruct, frozen=True, kw_only=True):
    first: int = 1
    second: int


@given(HEADERS)
def test_each_reads_what_the_other_wrote(header: PackedHeader) -> None:
    assert from_plain_json(encode_json(header), PackedHeader) == header
    assert decode_json(plain_json(header), PackedHeader) == header


@pytest.mark.parametrize(
    "change",
    [
        {"rank": "3"},
        {"rank": 3.5},
        {"rank": True},
        {"rank": None},
        {"dtype": "int8"},
        {"entries": {}},
        {"entries": [3]},
        {"entries": [{"layer": 1}]},
        {"geometry": []},
        {"geometry": {"model_type": "llama"}},
    ],
)
def test_both_refuse_the_same(change: dict[str, Any]) -> None:
    whole = msgspec.to_builtins(PackedHeader(GEOMETRY, "float16", 1, 0, (PackedEntry(0, "q_proj", 1, 1.0, 0, 0),)))
    for read in (decode_json, from_plain_json):
        assert read(msgspec.json.encode({**whole, "unknown": 1}), PackedHeader).rank == 1
        with pytest.raises(ValueError, match=r"(?i)expected|missing|invalid"):
            read(msgspec.json.encode({**whole, **change}), PackedHeader)
        for text in (b"", b"{", b"[" * 100_000, b"\xff"):
            with pytest.raises(ValueError):  # noqa: PT011 (both say it in their own words)
                read(text, PackedHeader)


def test_a_plain_record_is_one() -> None:
    leaf = Leaf(3, word="b")
    assert (leaf.number, leaf.share, leaf.word) == (3, 0.5, "b")
    assert leaf == Leaf(3, 0.5, "b")
    assert len({leaf, Leaf(3, word="b")}) == 1
    assert Leaf.__struct_fields__ == ("number", "share", "word")
    assert repr(leaf) == "Leaf(number=3, share=0.5, word='b')"
    with pytest.raises(dataclasses.FrozenInstanceError):
        leaf.number = 4  # type: ignore[misc]  # what is tested
    match leaf:
        case Leaf(number, share):
            assert (number, share) == (3, 0.5)
    with pytest.raises(TypeError):
        Named(1, 2)  # type: ignore[call-arg]  # what is tested
    assert Named(second=2) == Named(first=1, second=2)


def test_plain_records_nest() -> None:
    tree = Tree((Leaf(1), Leaf(2, 1.0)), maybe=4)
    assert plain_json(tree) == (
        b'{"leaves":[{"number":1,"share":0.5,"word":"a"},{"number":2,"share":1.0,"word":"a"}],"maybe":4}'
    )
    assert from_plain_json(plain_json(tree), Tree) == tree
    assert from_plain_json(b'{"leaves":[{"number":1,"share":2}]}', Tree) == Tree((Leaf(1, 2.0),), None)
    with pytest.raises(ValueError, match="expected"):
        from_plain_json(b'{"leaves":[],"maybe":"4"}', Tree)
