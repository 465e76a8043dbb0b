"""The rows of finetunes: every statement on them, as functions of an open connection. Rules live in `finetunes.py`.

A finetune is found by id first, then by name, always inside one account; there is no look-up across accounts.
"""

import unicodedata
from typing import Any, Literal

import msgspec
from sqlalchemy import delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.ingest.adapter import ADAPTER_FILES
from storage.tables import accounts, finetune_files, finetunes

Status = Literal["pending", "ready", "failed"]


class StoredFile(msgspec.Struct, frozen=True):
    """One of the two uploaded files, as it lies in the object store."""

    file_name: str
    object_key: str
    size_bytes: int
    sha256: str


class Finetune(msgspec.Struct, frozen=True):
    """One row with its files. `digest`, `object_key`, `size_bytes`, `rank` and `modules` belong to `ready` only."""

    id: str
    account_id: str
    name: str
    model: str
    description: str
    status: Status
    created_at: float
    modified_at: float
    reasons: tuple[str, ...] = ()
    digest: str | None = None
    object_key: str | None = None
    size_bytes: int | None = None
    rank: int | None = None
    modules: tuple[str, ...] = ()
    files: tuple[StoredFile, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """The files that were not uploaded yet, or were refused."""
        present = {file.file_name for file in self.files}
        return tuple(name for name in ADAPTER_FILES if name not in present)

    def file(self, file_name: str) -> StoredFile | None:
        """The stored file of that name."""
        return next((file for file in self.files if file.file_name == file_name), None)


async def find(connection: AsyncConnection, account_id: str, reference: str) -> Finetune | None:
    """By id, else by name, inside the account."""
    name = unicodedata.normalize("NFC", reference[:512])
    query = select(finetunes).where(
        finetunes.c.account_id == account_id, or_(finetunes.c.id == reference, finetunes.c.name == name)
    )
    rows = [dict(row) for row in (await connection.execute(query)).mappings()]
    if not rows:
        return None
    row = next((row for row in rows if row["id"] == reference), rows[0])
    files = select(finetune_files).where(finetune_files.c.finetune_id == row["id"])
    stored = tuple(_file(file) for file in (await connection.execute(files)).mappings())
    return _finetune(row, stored)


async def list_all(connection: AsyncConnection, account_id: str) -> list[Finetune]:
    """The account's finetunes without their files, oldest first."""
    query = select(finetunes).where(finetunes.c.account_id == account_id)
    rows = await connection.execute(query.order_by(finetunes.c.created_at, finetunes.c.id))
    return [_finetune(dict(row), ()) for row in rows.mappings()]


async def lock_account(connection: AsyncConnection, account_id: str) -> bool:
    """Excludes other writers of this account until the transaction ends; False when the account is gone."""
    query = select(accounts.c.id).where(accounts.c.id == account_id).with_for_update()
    return (await connection.execute(query)).first() is not None


async def names(connection: AsyncConnection, account_id: str) -> list[str]:
    """All names in use in the account."""
    return list(await connection.scalars(select(finetunes.c.name).where(finetunes.c.account_id == account_id)))


async def add(connection: AsyncConnection, finetune: Finetune) -> None:
    """A new row without files. Raises AlreadyExists."""
    values = {**msgspec.structs.asdict(finetune), "reasons": [], "modules": None, "public": False}
    del values["files"]
    await connection.execute(insert(finetunes).values(**values))


async def save(connection: AsyncConnection, finetune_id: str, **values: Any) -> bool:
    """Changes columns of one row; False when it is gone."""
    result = await connection.execute(update(finetunes).where(finetunes.c.id == finetune_id).values(**values))
    return result.rowcount == 1


async def save_file(connection: AsyncConnection, finetune_id: str, file: StoredFile, now: float) -> None:
    """Adds the file, or replaces the one of the same name."""
    same = (finetune_files.c.finetune_id == finetune_id, finetune_files.c.file_name == file.file_name)
    await connection.execute(delete(finetune_files).where(*same))
    values = {**msgspec.structs.asdict(file), "finetune_id": finetune_id, "uploaded_at": now}
    await connection.execute(insert(finetune_files).values(**values))


async def remove(connection: AsyncConnection, finetune_id: str) -> bool:
    """Deletes the row and its files' rows; False when it was gone."""
    await connection.execute(delete(finetune_files).where(finetune_files.c.finetune_id == finetune_id))
    result = await connection.execute(delete(finetunes).where(finetunes.c.id == finetune_id))
    return result.rowcount == 1


async def refers_to_object(connection: AsyncConnection, key: str) -> bool:
    """Whether any row of any account points to this object."""
    files = select(finetune_files.c.object_key).where(finetune_files.c.object_key == key).limit(1)
    packed = select(finetunes.c.object_key).where(finetunes.c.object_key == key).limit(1)
    return any([(await connection.execute(query)).first() is not None for query in (files, packed)])


async def uses_digest(connection: AsyncConnection, digest: str) -> bool:
    """Whether any finetune of any account has these weights."""
    return bool(await connection.scalar(select(func.count()).where(finetunes.c.digest == digest)))


def _finetune(row: dict[str, Any], files: tuple[StoredFile, ...]) -> Finetune:
    values = {name: row[name] for name in Finetune.__struct_fields__ if name != "files"}
    values |= {"reasons": tuple(row["reasons"] or ()), "modules": tuple(row["modules"] or ()), "files": files}
    return Finetune(**values)


def _file(row: Any) -> StoredFile:
    return StoredFile(**{name: row[name] for name in StoredFile.__struct_fields__})
