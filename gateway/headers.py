"""A request for those who ask it much: about twenty questions for headers, each one look at a table, and three for the
query string, of which there is none.
"""

from typing import Any, Final

from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.types import Scope

_NO_QUERY: Final = QueryParams()


class IndexedHeaders(Headers):
    """Starlette's, which goes through its list for every question. The first of several fields of a name counts."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope=scope)
        self._first: dict[str, str] = {}
        self._repeated: set[str] = set()
        for raw_name, raw_value in scope["headers"]:
            name = raw_name.decode("latin-1")
            if name in self._first:
                self._repeated.add(name)
            else:
                self._first[name] = raw_value.decode("latin-1")

    def __getitem__(self, key: str) -> str:
        return self._first[key.lower()]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.lower() in self._first

    def get(self, key: str, default: Any = None) -> Any:
        """The first of this name."""
        return self._first.get(key.lower(), default)

    def getlist(self, key: str) -> list[str]:
        """All of this name, in order."""
        name = key.lower()
        if name in self._repeated:
            return super().getlist(name)
        return [self._first[name]] if name in self._first else []


class ApiRequest(Request):
    """A request with such headers."""

    @property
    def query_params(self) -> QueryParams:
        """Not made where there are none."""
        return super().query_params if self.scope["query_string"] else _NO_QUERY

    @property
    def headers(self) -> Headers:
        """Made at the first question."""
        if not hasattr(self, "_headers"):
            self._headers: Headers = IndexedHeaders(self.scope)
        return self._headers
