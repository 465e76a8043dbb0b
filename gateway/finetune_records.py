"""What a finetune is: its versions, and its aliases, which say which version a reference means. No database here.

    reference = name or id             what the alias `default` points to
              | reference "@" alias    what that alias points to
              | reference "@" number   that version (also written "@v3")

An alias points to one version, or splits its requests between two (a canary). The choice is a hash of the finetune, the
alias and the caller's session (without one: the request), so a session stays with its version, and raising the share
moves sessions in one direction only.
"""

import hashlib
import re
from typing import Final, Literal

import msgspec

from gateway.errors import BadInput
from gateway.ingest.adapter import ADAPTER_FILES

DEFAULT_ALIAS: Final = "default"
Status = Literal["pending", "validating", "ready", "failed"]
_ALIAS = re.compile(r"(?!v?[0-9]+$)[a-z0-9][a-z0-9._-]{0,31}")
_NUMBER = re.compile(r"v?([1-9][0-9]{0,8})")


class StoredFile(msgspec.Struct, frozen=True):
    """One of the two uploaded files, as it lies in the object store."""

    file_name: str
    object_key: str
    size_bytes: int
    sha256: str


class Version(msgspec.Struct, frozen=True):
    """One adapter under the finetune's name. `digest`, `object_key`, `size_bytes`, `rank`, `modules`: once ready.

    activate: it becomes what the bare name means as soon as it is ready. `last_used_at`, `requests`: written down every
    half minute.
    """

    number: int
    status: Status
    activate: bool
    created_at: float
    modified_at: float
    reasons: tuple[str, ...] = ()
    digest: str | None = None
    object_key: str | None = None
    size_bytes: int | None = None
    rank: int | None = None
    modules: tuple[str, ...] = ()
    last_used_at: float | None = None
    requests: int = 0
    files: tuple[StoredFile, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """The files that were not uploaded yet, or were refused."""
        present = {file.file_name for file in self.files}
        return tuple(name for name in ADAPTER_FILES if name not in present)

    @property
    def keys(self) -> list[str]:
        """Every object that it needs."""
        return [file.object_key for file in self.files] + ([self.object_key] if self.object_key else [])

    def file(self, file_name: str) -> StoredFile | None:
        """The stored file of that name."""
        return next((file for file in self.files if file.file_name == file_name), None)


class Pointer(msgspec.Struct, frozen=True):
    """What an alias means: `version`, but `canary` for `canary_percent` of the sessions."""

    version: int
    canary: int | None = None
    canary_percent: float = 0.0

    @property
    def versions(self) -> tuple[int, ...]:
        """Both, or the one."""
        return (self.version,) if self.canary is None else (self.version, self.canary)

    def pick(self, key: str) -> int:
        """The version for `key`, always the same one."""
        if self.canary is None:
            return self.version
        point = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
        return self.canary if point * 100 < self.canary_percent else self.version


class Finetune(msgspec.Struct, frozen=True):
    """One row with its versions, oldest first, and its aliases by name.

    `status`, `reasons` and what else describes weights are those of the `shown` version.
    """

    id: str
    account_id: str
    name: str
    model: str
    description: str
    public: bool
    pinned: bool
    last_version: int
    created_at: float
    modified_at: float
    versions: tuple[Version, ...] = ()
    aliases: dict[str, Pointer] = {}

    def version(self, number: int) -> Version | None:
        """The version of that number, if it is kept."""
        return next((version for version in self.versions if version.number == number), None)

    @property
    def current(self) -> Version | None:
        """What the bare name means, a canary aside; None before any version was ready."""
        pointer = self.aliases.get(DEFAULT_ALIAS)
        return self.version(pointer.version) if pointer else None

    @property
    def shown(self) -> Version:
        """The current version, else the newest one."""
        return self.current or self.versions[-1]

    @property
    def pointed(self) -> frozenset[int]:
        """Numbers of the versions that an alias may lead to."""
        return frozenset(number for pointer in self.aliases.values() for number in pointer.versions)

    @property
    def status(self) -> Status:
        """See the class."""
        return self.shown.status

    @property
    def reasons(self) -> tuple[str, ...]:
        """See the class."""
        return self.shown.reasons

    @property
    def digest(self) -> str | None:
        """See the class."""
        return self.shown.digest

    @property
    def object_key(self) -> str | None:
        """See the class."""
        return self.shown.object_key

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """See the class."""
        return self.shown.files

    @property
    def missing(self) -> tuple[str, ...]:
        """See the class."""
        return self.shown.missing


def split_reference(reference: str) -> tuple[str, str] | None:
    """(name or id, selector) of a reference with an "@" that could stand before a selector; else None."""
    name, at, selector = reference.rpartition("@")
    if not at or not name or not (_ALIAS.fullmatch(selector) or _NUMBER.fullmatch(selector)):
        return None
    return name, selector


def numbered(selector: str) -> int | None:
    """The version that "3" or "v3" names."""
    match = _NUMBER.fullmatch(selector)
    return int(match[1]) if match else None


def checked_alias(name: str) -> str:
    """Raises BadInput."""
    if not _ALIAS.fullmatch(name):
        raise BadInput(
            "an alias has 1 to 32 of the characters a-z, 0-9, '.', '_' and '-', begins with a letter or digit, and is "
            "no number",
            param="alias",
        )
    return name
