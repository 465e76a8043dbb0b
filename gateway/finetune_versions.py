"""A finetune's versions and aliases: open, point (promote, roll back, split), remove. Rules only; rows are elsewhere.

Opening gives every replacer a version of its own, so two at once never mix their files; the last that becomes ready is
what the name means. At most `kept_versions` ready ones stay: with one more, the oldest go to which no alias leads.
"""

from typing import Final

from gateway import finetune_rows as rows
from gateway.errors import BadInput, ObjectNotFound
from gateway.finetune_desk import FinetuneDesk, Removed, WhenInUse, gone, version_of
from gateway.finetune_records import DEFAULT_ALIAS, Finetune, Pointer, Version, checked_alias
from gateway.names import printable

MAX_ALIASES: Final = 32
MAX_OPEN: Final = 8
ABANDONED_AFTER_S: Final = 24 * 3600.0


class FinetuneVersions:
    """Every method raises ObjectNotFound for a finetune that the account does not have, and the errors of storage."""

    def __init__(self, desk: FinetuneDesk) -> None:
        self._desk = desk

    async def get(self, account_id: str, reference: str, number: int) -> tuple[Finetune, Version]:
        """Raises ObjectNotFound."""
        finetune = await self._desk.get(account_id, reference)
        return finetune, version_of(finetune, number)

    async def open(self, account_id: str, reference: str, *, activate: bool = True) -> tuple[Finetune, Version]:
        """A new, empty version to upload to. Raises BadInput when too many are open."""
        found = await self._desk.get(account_id, reference)
        async with self._desk.removing(found) as (finetune, removal):
            now = self._desk.now()
            if left := _abandoned(finetune, now):
                await removal.take(left, "drain", whole=False)
            if len(_open(finetune)) - len(left) >= MAX_OPEN:
                raise BadInput(f"{MAX_OPEN} versions of {finetune.name!r} are open already; complete or delete one")
            version = Version(finetune.last_version + 1, "pending", activate, now, now)
            async with self._desk.database.write() as connection:
                if not await rows.save(connection, finetune.id, modified_at=now):
                    raise gone(finetune)
                await rows.add_version(connection, finetune.id, version)
        return finetune, version

    async def point(self, account_id: str, reference: str, alias: str, pointer: Pointer) -> Finetune:
        """Sets what an alias means; `default` is the bare name. Raises BadInput."""
        checked_alias(alias)
        found = await self._desk.get(account_id, reference)
        async with self._desk.changing(found) as finetune:
            _check_pointer(finetune, pointer)
            if alias not in finetune.aliases and len(finetune.aliases) >= MAX_ALIASES:
                raise BadInput(f"the finetune has {MAX_ALIASES} aliases, the most there can be; remove one first")
            async with self._desk.database.write() as connection:
                if not await rows.save(connection, finetune.id, modified_at=self._desk.now()):
                    raise gone(finetune)
                await rows.save_alias(connection, finetune.id, alias, pointer)
        return await self._desk.get(account_id, found.id)

    async def unpoint(self, account_id: str, reference: str, alias: str) -> None:
        """Removes an alias other than `default`. Raises BadInput."""
        if alias == DEFAULT_ALIAS:
            raise BadInput("the alias 'default' is what the name itself means; point it to another version instead")
        found = await self._desk.get(account_id, reference)
        async with self._desk.changing(found) as finetune, self._desk.database.write() as connection:
            if not await rows.remove_alias(connection, finetune.id, alias):
                raise ObjectNotFound(f"finetune {finetune.name!r} has no alias {printable(alias, 64)!r}")

    async def delete(self, account_id: str, reference: str, number: int, when_in_use: WhenInUse = "drain") -> Removed:
        """Removes one version to which no alias leads. Raises BadInput, FinetuneInUse."""
        found = await self._desk.get(account_id, reference)

        async def remove() -> Removed:
            async with self._desk.removing(found) as (finetune, removal):
                version = version_of(finetune, number)
                for alias, pointer in finetune.aliases.items():
                    if number in pointer.versions:
                        raise BadInput(f"version {number} is what alias {alias!r} means; point it to another one first")
                if len(finetune.versions) == 1:
                    raise BadInput("a finetune has at least one version; delete the finetune instead")
                return await removal.take((version,), when_in_use, whole=False)

        return await self._desk.reserve.even_if_full(remove)


def upload_target(finetune: Finetune, number: int | None) -> Version:
    """Where an upload goes: the version named, else the current one, else the newest. Raises ObjectNotFound."""
    return finetune.shown if number is None else version_of(finetune, number)


def superseded(finetune: Finetune, completed: Version, keep: int) -> list[Version]:
    """The ready versions that go once `completed` is ready: the oldest to which no alias leads, above `keep` in all."""
    kept = {completed.number, *finetune.pointed}
    if completed.activate and (current := finetune.aliases.get(DEFAULT_ALIAS)):
        others = [pointer for name, pointer in finetune.aliases.items() if name != DEFAULT_ALIAS]
        # What the name meant until now is the one to roll back to: it stays, whatever else goes.
        kept = {completed.number, current.version, *(number for other in others for number in other.versions)}
    ready = [version for version in finetune.versions if version.status == "ready"]
    spare = [version for version in ready if version.number not in kept]
    return spare[: max(0, len(ready) + 1 - keep)]


def _open(finetune: Finetune) -> list[Version]:
    return [version for version in finetune.versions if version.status != "ready"]


def _abandoned(finetune: Finetune, now: float) -> list[Version]:
    """Open versions that nobody has touched for a day; never the only one."""
    if finetune.current is None:
        return []
    idle = [version for version in _open(finetune) if now - version.modified_at > ABANDONED_AFTER_S]
    return [version for version in idle if version.status != "validating"]


def _check_pointer(finetune: Finetune, pointer: Pointer) -> None:
    for number, field in ((pointer.version, "version"), (pointer.canary, "canary.version")):
        if number is None:
            continue
        version = finetune.version(number)
        if version is None or version.status != "ready":
            ready = [str(each.number) for each in finetune.versions if each.status == "ready"]
            raise BadInput(
                f"{field} must be a version that is ready ({', '.join(ready) or 'none is'}), not {number}", param=field
            )
    if pointer.canary is not None:
        if pointer.canary == pointer.version:
            raise BadInput("canary.version must differ from version", param="canary.version")
        if not 0 < pointer.canary_percent < 100:
            raise BadInput("canary.percent must be above 0 and below 100", param="canary.percent")
