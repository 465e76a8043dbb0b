"""What the description says of a call beyond its row: types of body and reply, an example, whose idea it was."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import msgspec

from gateway.openapi.schema import Schemas
from gateway.wire.chat_body import QUERY_SETTINGS
from gateway.wire.envelope import MAX_PAGE, MAX_PER_PAGE

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


def settings_in_query(body: type[msgspec.Struct]) -> tuple[Query, ...]:
    """The plain settings of a body, which may stand in the query string instead, out of the body's own type."""
    fields = Schemas(inline=True).request(body)["properties"]
    chosen = [(name, fields[name]) for name in sorted(QUERY_SETTINGS & fields.keys())]
    told = "{} As in the body, which wins."
    return tuple(
        Query(name, told.format(field.get("description", "")).strip(),
              {key: value for key, value in field.items() if key not in ("description", "default")})
        for name, field in chosen
    )  # fmt: skip


def choice(kind: Any) -> dict[str, Any]:
    """The schema of a parameter that is one of a Literal's texts."""
    return {"type": "string", "enum": list(get_args(kind))}


def pages(most: int, largest: int) -> tuple[Query, ...]:
    """`page` and `per_page`, of which a number above `most` is cut."""
    whole = {"type": "integer", "minimum": 1, "maximum": largest}
    return (
        Query("page", "From 1; past the end the result is empty.", whole),
        Query("per_page", f"At most {most}.", whole),
    )


PAGES = pages(MAX_PER_PAGE, MAX_PAGE)
