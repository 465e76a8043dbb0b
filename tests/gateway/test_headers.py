"""Headers by table answer as Starlette's own do."""

import pytest
from starlette.datastructures import Headers

from gateway.headers import IndexedHeaders

FIELDS = [(b"host", b"x"), (b"accept", b"a"), (b"accept", b"b"), (b"x-name", "\u00e9".encode("latin-1"))]


@pytest.mark.parametrize("name", ["host", "Host", "accept", "ACCEPT", "x-name", "absent"])
def test_as_starlettes(name: str) -> None:
    ours, theirs = IndexedHeaders({"headers": list(FIELDS)}), Headers(raw=list(FIELDS))
    assert ours.get(name) == theirs.get(name)
    assert ours.get(name, "-") == theirs.get(name, "-")
    assert ours.getlist(name) == theirs.getlist(name)
    assert (name in ours) == (name in theirs)
    assert ours.items() == theirs.items()


def test_what_is_absent_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        IndexedHeaders({"headers": []})["host"]
