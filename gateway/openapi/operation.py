"""What the description says of a call beyond its row: types of body and reply, an example, whose idea it was."""

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

Envelope = Literal["v4", "page", "none"]


@dataclass(frozen=True)
class Query:
    """A parameter of the query string."""

    name: str
    description: str
    schema: dict[str, Any] = field(default_factory=lambda: {"type": "string"})
    required: bool = False


@dataclass(frozen=True)
class Form:
    """Another body that the same call takes: some fields of a type, and which of them must be there."""

    body: type[msgspec.Struct]
    fields: frozenset[str]
    required: tuple[str, ...]


@dataclass(frozen=True)
class Operation:
    """`reply` is the type of `result` in the envelope ("page": of its items), or of the whole body ("none").

    `body`: the type that parses the request, without the fields of `without`; `example` is such a body, or None for a
    call without one. `other_bodies`, `other_replies`: what the call takes and gives besides. `media`: what comes out,
    JSON unless said. `ours`: not in the original.
    """

    summary: str
    reply: Any = None
    envelope: Envelope = "v4"
    body: type[msgspec.Struct] | None = None
    without: frozenset[str] = frozenset()
    one_of: tuple[str, ...] = ()
    body_required: bool = True
    example: dict[str, Any] | None = None
    query: tuple[Query, ...] = ()
    is_stream: bool = False
    other_bodies: tuple[Form, ...] = ()
    other_replies: tuple[Any, ...] = ()
    media: tuple[str, ...] = ("application/json",)
    is_upload: bool = False
    ours: bool = False


class Failure(msgspec.Struct):
    """One reason."""

    code: int
    message: str
    source: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    meta: dict[str, list[str]] | msgspec.UnsetType = msgspec.UNSET


class OpenAIFailure(msgspec.Struct):
    """The same in OpenAI's words, on /ai/v1."""

    message: str
    type: str
    code: str
    param: str | None


class Refusal(msgspec.Struct):
    """Every error."""

    success: bool
    errors: list[Failure]
    messages: list[Any]
    result: dict[str, Any] | None
    error: OpenAIFailure | msgspec.UnsetType = msgspec.UNSET


class PageInfo(msgspec.Struct):
    """Where in the list this page is."""

    page: int
    per_page: int
    count: int
    total_count: int
    total_pages: int


PAGES = (
    Query("page", "From 1; past the end the result is empty.", {"type": "integer", "minimum": 1, "maximum": 1_000_000}),
    Query("per_page", "At most 1000.", {"type": "integer", "minimum": 1, "maximum": 1_000_000}),
)
