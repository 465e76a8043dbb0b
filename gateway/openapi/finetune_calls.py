"""Finetunes, their versions and aliases."""

from typing import Any, Final, Literal

import msgspec

from gateway.endpoints import finetune_versions, finetunes
from gateway.finetune_desk import WhenInUse
from gateway.openapi.operation import PAGES, Operation, Query, choice
from gateway.settings import DEMO_MODEL
from gateway.wire.finetune_bodies import CreateFinetune, DescribeFinetune, OpenVersion, SetAlias

_IN_USE: Final = (Query("when_in_use", "What to do while answers need it.", choice(WhenInUse)),)
_COUNT: Final = {"type": "integer", "minimum": 0, "maximum": 9_999_999}
Status = Literal["pending", "ready", "failed"]


class Finetune(msgspec.Struct):
    """A row of a list."""

    id: str
    account_id: str
    name: str
    model: str
    description: str
    public: bool
    created_at: str
    modified_at: str
    status: Status
    reasons: list[str]
    version: int | None


class StoredFile(msgspec.Struct):
    """An uploaded file."""

    file_name: str
    size_bytes: int
    sha256: str


class Weights(msgspec.Struct):
    """What is known of an adapter, and where it is now."""

    rank: int | None
    modules: Any
    size_bytes: int | None
    digest: str | None
    files: list[StoredFile]
    missing: list[str]
    residency: dict[str, Any] | None


class FinetuneVersion(Weights, kw_only=True):
    """One version."""

    version: int
    status: Status
    reasons: list[str]
    activate: bool
    created_at: str
    modified_at: str
    last_used_at: str | None
    requests: int
    in_use: int
    aliases: list[str]


class Canaries(msgspec.Struct):
    """A share for another version."""

    version: int
    percent: float


class Pointer(msgspec.Struct):
    """What a name means."""

    version: int
    canary: Canaries | None


class FinetuneDetail(Weights, kw_only=True):
    """Everything about one: the row of a list, its weights, and its versions."""

    id: str
    account_id: str
    name: str
    model: str
    description: str
    public: bool
    created_at: str
    modified_at: str
    status: Status
    reasons: list[str]
    version: int | None
    pinned: bool
    last_used_at: str | None
    requests: int
    in_use: int
    aliases: dict[str, Pointer]
    versions: list[FinetuneVersion]


class Alias(Pointer, kw_only=True):
    """A name and what it means."""

    alias: str


class Named(msgspec.Struct):
    """The name that is gone."""

    alias: str


class Removed(msgspec.Struct):
    """How many answers still need it."""

    id: str
    in_use: int
    version: int | msgspec.UnsetType = msgspec.UNSET


class Uploaded(msgspec.Struct):
    """The state after this file."""

    id: str
    status: Status
    missing: list[str]
    version: int


OPERATIONS: Final = {
    finetunes.create: Operation(
        "A new finetune", Finetune, body=CreateFinetune,
        example={"model": DEMO_MODEL, "name": "tides-pirate", "description": "how the pirates say it"},
    ),
    finetunes.list_all: Operation(
        "The account's finetunes, as one array; pages of it are ours", list[Finetune], query=PAGES
    ),
    finetunes.list_public: Operation(
        "The operator's public finetunes", list[Finetune],
        query=(
            Query("limit", "At most so many.", _COUNT), Query("offset", "After so many.", _COUNT),
            Query("orderBy", "A field, with '-' in front for the reverse.", {
                "type": "string", "enum": [sign + name for sign in ("", "-") for name in finetunes.ORDERS],
            }),
        ),
    ),
    finetunes.get: Operation("One finetune, with its versions", FinetuneDetail, ours=True),
    finetunes.describe: Operation(
        "Change the description", Finetune, body=DescribeFinetune, example={"description": "how they say it"}, ours=True
    ),
    finetunes.delete: Operation("Delete a finetune", Removed, query=_IN_USE, ours=True),
    finetunes.upload: Operation("Upload one of the two files", Uploaded, is_upload=True),
    finetunes.download: Operation("One uploaded file", envelope="none", media=("application/octet-stream",), ours=True),
    finetune_versions.list_versions: Operation(
        "Versions, newest first", FinetuneVersion, "page", query=PAGES, ours=True
    ),
    finetune_versions.open_version: Operation(
        "A new version under the same name: replace", FinetuneVersion, body=OpenVersion, body_required=False,
        example={"activate": True}, ours=True,
    ),
    finetune_versions.get_version: Operation("One version", FinetuneVersion, ours=True),
    finetune_versions.delete_version: Operation("Delete a version", Removed, query=_IN_USE, ours=True),
    finetune_versions.upload_to_version: Operation(
        "Upload one of the two files to a version", Uploaded, is_upload=True, ours=True
    ),
    finetune_versions.download_of_version: Operation(
        "One uploaded file of a version", envelope="none", media=("application/octet-stream",), ours=True
    ),
    finetune_versions.list_aliases: Operation("Aliases, by name", Alias, "page", query=PAGES, ours=True),
    finetune_versions.set_alias: Operation(
        "What a name means: roll out, split, roll back", Alias, body=SetAlias, ours=True,
        example={"version": 2, "canary": {"version": 3, "percent": 10}},
    ),
    finetune_versions.delete_alias: Operation("Delete an alias", Named, ours=True),
}  # fmt: skip
