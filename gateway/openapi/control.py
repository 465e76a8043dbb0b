"""Identity, catalogue and health."""

from typing import Any, Final, Literal

import msgspec

from gateway.endpoints import health, identity, models
from gateway.openapi.operation import PAGES, Operation, Query

_BOOLEAN: Final = {"type": "string", "enum": ["true", "false"]}


class TokenState(msgspec.Struct):
    """The token that the call came with."""

    id: str
    status: Literal["active"]
    not_before: str
    expires_on: str | msgspec.UnsetType = msgspec.UNSET


class User(msgspec.Struct):
    """There are no people here: the token stands for one."""

    id: str
    email: str
    username: str
    first_name: None
    last_name: None
    two_factor_authentication_enabled: bool
    suspended: bool
    created_on: str


class Account(msgspec.Struct):
    """A tenant."""

    id: str
    name: str
    type: Literal["standard"]
    settings: dict[str, bool]
    created_on: str


class Membership(msgspec.Struct):
    """The token's membership of its account."""

    id: str
    status: Literal["accepted"]
    roles: list[str]
    permissions: dict[str, Any]
    account: Account


class Task(msgspec.Struct):
    """A kind of model."""

    id: str
    name: str
    description: str


class Property(msgspec.Struct):
    """Something about a model; booleans are the text "true"."""

    property_id: str
    value: str


class Model(msgspec.Struct):
    """A model of the catalogue."""

    id: str
    source: int
    name: str
    description: str
    task: Task
    created_at: str
    tags: list[str]
    properties: list[Property]


class ModelSchemas(msgspec.Struct):
    """JSON Schemas of a model's input and output."""

    input: dict[str, Any]
    output: dict[str, Any]


class Author(msgspec.Struct):
    """Who made models."""

    name: str


class Alive(msgspec.Struct):
    """The process answers."""

    status: Literal["ok", "ready"]


OPERATIONS: Final = {
    identity.verify_token: Operation("Is this token valid?", TokenState),
    identity.user: Operation("Who am I?", User),
    identity.list_accounts: Operation(
        "The token's account, as a list", Account, "page", query=(*PAGES, Query("name", "Only one of this name."))
    ),
    identity.get_account: Operation("The token's account", Account),
    identity.list_memberships: Operation("The token's membership of its account", Membership, "page", query=PAGES),
    models.search: Operation(
        "The catalogue", Model, "page",
        query=(
            *PAGES, Query("search", "A part of name or description."), Query("task", "The name of a task."),
            Query("author", "Who it is by."),
            Query("source", "1: @cf, 2: @hf.", {"type": "string", "enum": ["1", "2"]}),
            Query("hide_experimental", "Nothing here is experimental.", _BOOLEAN),
            Query("include_deprecated", "Nothing here is deprecated.", _BOOLEAN),
        ),
    ),
    models.schema: Operation(
        "A model's input and output as JSON Schema", ModelSchemas,
        query=(Query("model", "The model's name.", required=True),),
    ),
    models.tasks: Operation("The kinds of models", list[Task]),
    models.authors: Operation("Who the models are by", list[Author]),
    health.healthz: Operation("Whether this process answers", Alive, "none", ours=True),
    health.readyz: Operation("Whether requests can be served", Alive, "none", ours=True),
}  # fmt: skip
