"""The rows of finetunes: every statement on them, as functions of an open connection. Rules live in `finetunes.py`.

A finetune is found by id first, then by name, always inside one account; there is no look-up across accounts.
"""

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from sqlalchemy import Select, and_, delete, func, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.finetune_records import Finetune, Pointer, StoredFile, Version
from storage.tables import accounts, finetune_aliases, finetune_files, finetune_versions, finetunes, logs


async def find(connection: AsyncConnection, account_id: str, reference: str) -> Finetune | None:
    """By id, else by name, inside the account; whole."""
    name = unicodedata.normalize("NFC", reference[:512])
    query = select(finetunes).where(
        finetunes.c.account_id == account_id, or_(finetunes.c.id == reference, finetunes.c.name == name)
    )
    found = [dict(row) for row in (await connection.execute(query)).mappings()]
    if not found:
        return None
    row = next((row for row in found if row["id"] == reference), found[0])
    return (await _whole(connection, [row], finetune_versions.c.finetune_id == row["id"]))[0]


async def list_all(
    connection: AsyncConnection, account_id: str, limit: int | None = None, offset: int = 0
) -> list[Finetune]:
    """The account's finetunes, whole, oldest first."""
    query = _of_account(account_id).limit(limit).offset(offset)
    found = [dict(row) for row in (await connection.execute(query)).mappings()]
    if limit is None:
        return await _whole(connection, found, finetune_versions.c.finetune_id.in_(_ids_of(account_id)))
    return await _whole(connection, found, finetune_versions.c.finetune_id.in_([row["id"] for row in found]))


async def count(connection: AsyncConnection, account_id: str) -> int:
    """How many finetunes the account has."""
    return await connection.scalar(select(func.count()).where(finetunes.c.account_id == account_id)) or 0


async def find_anywhere(connection: AsyncConnection, finetune_id: str) -> Finetune | None:
    """Whosever it is: for the operator, who names it by its id."""
    query = select(finetunes).where(finetunes.c.id == finetune_id)
    found = [dict(row) for row in (await connection.execute(query)).mappings()]
    return next(iter(await _whole(connection, found, finetune_versions.c.finetune_id == finetune_id)), None)


async def list_recent(connection: AsyncConnection, limit: int) -> list[Finetune]:
    """Those of every account that were used last, whole."""
    latest = func.max(finetune_versions.c.last_used_at)
    query = select(finetune_versions.c.finetune_id).where(finetune_versions.c.last_used_at.is_not(None))
    query = query.group_by(finetune_versions.c.finetune_id).order_by(latest.desc()).limit(limit)
    ids = list(await connection.scalars(query))
    rows = [
        dict(row) for row in (await connection.execute(select(finetunes).where(finetunes.c.id.in_(ids)))).mappings()
    ]
    return await _whole(connection, rows, finetune_versions.c.finetune_id.in_(ids))


async def by_digest(connection: AsyncConnection, digests: list[str]) -> dict[str, list[tuple[str, str, int]]]:
    """Who has weights of these digests: (account, name, version)."""
    owners: dict[str, list[tuple[str, str, int]]] = {}
    columns = (
        finetune_versions.c.digest, finetunes.c.account_id, finetunes.c.name, finetune_versions.c.number
    )  # fmt: skip
    query = select(*columns).join(finetunes, finetunes.c.id == finetune_versions.c.finetune_id)
    for start in range(0, len(digests), 500):
        part = query.where(finetune_versions.c.digest.in_(digests[start : start + 500]))
        for digest, account_id, name, number in await connection.execute(part):
            owners.setdefault(digest, []).append((account_id, name, number))
    return owners


async def trace(connection: AsyncConnection, model: str, limit: int) -> tuple[list[str], dict[str, tuple[int, int]]]:
    """Digests of the last requests with adapters to a model, oldest first; (bytes, rank) of those still known."""
    query = select(logs.c.adapter_digest).where(logs.c.adapter_digest.is_not(None), logs.c.model == model)
    digests = list(await connection.scalars(query.order_by(logs.c.created_at.desc()).limit(limit)))[::-1]
    columns = (finetune_versions.c.digest, finetune_versions.c.size_bytes, finetune_versions.c.rank)
    known = await connection.execute(select(*columns).where(finetune_versions.c.digest.is_not(None)))
    asked = set(digests)
    return digests, {digest: (size, rank) for digest, size, rank in known if digest in asked}


async def list_pinned(connection: AsyncConnection) -> list[Finetune]:
    """Every account's finetunes that the operator keeps in memory, whole."""
    found = [dict(row) for row in (await connection.execute(select(finetunes).where(finetunes.c.pinned))).mappings()]
    return await _whole(connection, found, finetune_versions.c.finetune_id.in_(
        select(finetunes.c.id).where(finetunes.c.pinned)))  # fmt: skip


async def make_account(connection: AsyncConnection, account_id: str, now: float) -> None:
    """The row of an account that nobody logs in to, unless it is there."""
    if not await lock_account(connection, account_id):
        await connection.execute(insert(accounts).values(id=account_id, name=account_id, created_at=now))


async def lock_account(connection: AsyncConnection, account_id: str) -> bool:
    """Excludes other writers of this account until the transaction ends; False when the account is gone."""
    query = select(accounts.c.id).where(accounts.c.id == account_id).with_for_update()
    return (await connection.execute(query)).first() is not None


async def names(connection: AsyncConnection, account_id: str) -> list[str]:
    """All names in use in the account."""
    return list(await connection.scalars(select(finetunes.c.name).where(finetunes.c.account_id == account_id)))


async def add(connection: AsyncConnection, finetune: Finetune) -> None:
    """A new row with its versions, which have no files yet. Raises AlreadyExists."""
    values = {name: getattr(finetune, name) for name in Finetune.__struct_fields__ if name in finetunes.c}
    await connection.execute(insert(finetunes).values(**values))
    for version in finetune.versions:
        await add_version(connection, finetune.id, version)


async def add_version(connection: AsyncConnection, finetune_id: str, version: Version) -> None:
    """One more version, without files."""
    values = {name: getattr(version, name) for name in Version.__struct_fields__ if name in finetune_versions.c}
    values |= {"finetune_id": finetune_id, "reasons": [], "modules": None}
    await connection.execute(insert(finetune_versions).values(**values))
    newest = update(finetunes).where(finetunes.c.id == finetune_id)
    await connection.execute(newest.values(last_version=version.number))


async def save(connection: AsyncConnection, finetune_id: str, **values: Any) -> bool:
    """Changes columns of one finetune; False when it is gone."""
    result = await connection.execute(update(finetunes).where(finetunes.c.id == finetune_id).values(**values))
    return result.rowcount == 1


async def save_version(connection: AsyncConnection, finetune_id: str, number: int, **values: Any) -> bool:
    """Changes columns of one version; False when it is gone."""
    same = and_(finetune_versions.c.finetune_id == finetune_id, finetune_versions.c.number == number)
    result = await connection.execute(update(finetune_versions).where(same).values(**values))
    return result.rowcount == 1


async def save_file(connection: AsyncConnection, finetune_id: str, number: int, file: StoredFile, now: float) -> None:
    """Adds the file to the version, or replaces the one of the same name."""
    same = (
        finetune_files.c.finetune_id == finetune_id,
        finetune_files.c.version == number,
        finetune_files.c.file_name == file.file_name,
    )
    await connection.execute(delete(finetune_files).where(*same))
    values = {**msgspec.structs.asdict(file), "finetune_id": finetune_id, "version": number, "uploaded_at": now}
    await connection.execute(insert(finetune_files).values(**values))


async def save_alias(connection: AsyncConnection, finetune_id: str, alias: str, pointer: Pointer) -> None:
    """Sets what the alias means."""
    await remove_alias(connection, finetune_id, alias)
    values = {"finetune_id": finetune_id, "name": alias, **msgspec.structs.asdict(pointer)}
    await connection.execute(insert(finetune_aliases).values(**values))


async def remove_alias(connection: AsyncConnection, finetune_id: str, alias: str) -> bool:
    """False when there was none."""
    same = and_(finetune_aliases.c.finetune_id == finetune_id, finetune_aliases.c.name == alias)
    return (await connection.execute(delete(finetune_aliases).where(same))).rowcount == 1


async def remove(connection: AsyncConnection, finetune_id: str) -> bool:
    """Deletes the finetune with its versions, files and aliases; False when it was gone."""
    for table in (finetune_aliases, finetune_files, finetune_versions):
        await connection.execute(delete(table).where(table.c.finetune_id == finetune_id))
    result = await connection.execute(delete(finetunes).where(finetunes.c.id == finetune_id))
    return result.rowcount == 1


async def remove_versions(connection: AsyncConnection, finetune_id: str, numbers: Iterable[int]) -> int:
    """Deletes versions with their files; returns how many there were."""
    gone = list(numbers)
    files = (finetune_files.c.finetune_id == finetune_id, finetune_files.c.version.in_(gone))
    await connection.execute(delete(finetune_files).where(*files))
    same = (finetune_versions.c.finetune_id == finetune_id, finetune_versions.c.number.in_(gone))
    return (await connection.execute(delete(finetune_versions).where(*same))).rowcount


async def note_uses(connection: AsyncConnection, uses: Mapping[tuple[str, int], tuple[int, float]]) -> None:
    """Adds (requests, time of the last one) to each (finetune, version); those that are gone are passed over."""
    for (finetune_id, number), (requests, last_used_at) in uses.items():
        same = and_(finetune_versions.c.finetune_id == finetune_id, finetune_versions.c.number == number)
        total = finetune_versions.c.requests + requests
        change = update(finetune_versions).where(same)
        await connection.execute(change.values(requests=total, last_used_at=last_used_at))


async def refers_to_object(connection: AsyncConnection, key: str) -> bool:
    """Whether any row of any account points to this object."""
    files = select(finetune_files.c.object_key).where(finetune_files.c.object_key == key).limit(1)
    packed = select(finetune_versions.c.object_key).where(finetune_versions.c.object_key == key).limit(1)
    return any([(await connection.execute(query)).first() is not None for query in (files, packed)])


async def uses_digest(connection: AsyncConnection, digest: str) -> bool:
    """Whether any version of any account has these weights."""
    query = select(finetune_versions.c.number).where(finetune_versions.c.digest == digest).limit(1)
    return (await connection.execute(query)).first() is not None


def _of_account(account_id: str) -> Select[Any]:
    query = select(finetunes).where(finetunes.c.account_id == account_id)
    return query.order_by(finetunes.c.created_at, finetunes.c.id)


def _ids_of(account_id: str) -> Select[Any]:
    return select(finetunes.c.id).where(finetunes.c.account_id == account_id)


async def _whole(connection: AsyncConnection, found: list[dict[str, Any]], which: Any) -> list[Finetune]:
    """The finetunes of these rows; `which` selects their versions."""
    if not found:
        return []
    versions = select(finetune_versions).where(which).order_by(finetune_versions.c.number)
    numbered = [dict(row) for row in (await connection.execute(versions)).mappings()]
    ids = select(finetune_versions.c.finetune_id, finetune_versions.c.number).where(which)
    files: dict[tuple[str, int], list[StoredFile]] = {}
    stored = select(finetune_files).where(tuple_(finetune_files.c.finetune_id, finetune_files.c.version).in_(ids))
    for row in (await connection.execute(stored)).mappings():
        files.setdefault((row["finetune_id"], row["version"]), []).append(_file(row))
    aliases: dict[str, dict[str, Pointer]] = {}
    pointers = select(finetune_aliases).where(
        finetune_aliases.c.finetune_id.in_(select(finetune_versions.c.finetune_id).where(which))
    )
    for row in (await connection.execute(pointers.order_by(finetune_aliases.c.name))).mappings():
        pointer = Pointer(row["version"], row["canary"], row["canary_percent"])
        aliases.setdefault(row["finetune_id"], {})[row["name"]] = pointer
    grouped: dict[str, list[Version]] = {}
    for version in numbered:
        key = (version["finetune_id"], version["number"])
        grouped.setdefault(key[0], []).append(_version(version, tuple(files.get(key, ()))))
    fields = [name for name in Finetune.__struct_fields__ if name in finetunes.c]
    return [
        Finetune(
            **{name: row[name] for name in fields},
            versions=tuple(grouped.get(row["id"], ())),
            aliases=aliases.get(row["id"], {}),
        )
        for row in found
    ]


def _version(row: dict[str, Any], files: tuple[StoredFile, ...]) -> Version:
    values = {name: row[name] for name in Version.__struct_fields__ if name != "files"}
    values |= {"reasons": tuple(row["reasons"] or ()), "modules": tuple(row["modules"] or ()), "files": files}
    return Version(**values)


def _file(row: Any) -> StoredFile:
    return StoredFile(**{name: row[name] for name in StoredFile.__struct_fields__})
