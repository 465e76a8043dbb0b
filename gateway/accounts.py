"""Accounts and their tokens: who may call, and what a secret proves.

Shape: account 1-n token. A secret exists in clear only in the answer that creates it; the row holds its SHA-256, and
every look-up is by that digest. `authenticate` answers from two bounded caches (known tokens, refused digests), so the
request path does not touch the database; revoking or deleting drops entries at once, and a look-up that was already
under way when that happened may not put its stale answer back (`_generation`).
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
from cachetools import FIFOCache, TTLCache
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.errors import AuthenticationFailed, BadInput, ObjectNotFound
from gateway.ids import PUBLIC_ACCOUNT_ID, new_id, new_secret, secret_digest
from gateway.messages import Identity
from gateway.names import checked_name, likeness
from gateway.permissions import PERMISSIONS
from runtime.protocol import MAX_WEIGHT, MIN_WEIGHT
from storage import tables
from storage.database import Database

MAX_CACHED_TOKENS: Final = 20_000
CACHE_S: Final = 30.0
REFUSED_CACHE_S: Final = 2.0
MAX_TOKENS_PER_ACCOUNT: Final = 1000


class Account(msgspec.Struct, frozen=True):
    """A tenant. `created_at` is Unix seconds; `weight` is its share of the service beside that of the others."""

    id: str
    name: str
    created_at: float
    weight: float = 1.0


class Token(msgspec.Struct, frozen=True):
    """A token without its secret."""

    id: str
    account_id: str
    name: str
    permissions: tuple[str, ...]
    status: str
    created_at: float
    expires_at: float | None


class _Known(msgspec.Struct, frozen=True):
    identity: Identity
    expires_at: float | None
    until: float  # by the monotonic clock; then it is looked up anew


class Accounts:
    """All operations on accounts and tokens. `now` is the wall clock, `monotonic` times the caches."""

    def __init__(
        self,
        database: Database,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._now, self._monotonic = now, monotonic
        self._known: FIFOCache[bytes, _Known] = FIFOCache(MAX_CACHED_TOKENS)
        self._refused: TTLCache[bytes, None] = TTLCache(MAX_CACHED_TOKENS, REFUSED_CACHE_S, monotonic)
        self._generation = 0

    async def create_account(self, name: str, weight: Any = 1.0) -> Account:
        """Raises BadInput for a bad or taken name, or a weight out of range."""
        account = Account(new_id(), checked_name(name, "the account's name"), self._now(), _checked_weight(weight))
        async with self._database.write() as connection:
            for other in await connection.scalars(select(tables.accounts.c.name)):
                if likeness(other) == likeness(account.name):
                    raise BadInput(f"an account named {other!r} exists already; choose another name", param="name")
            await connection.execute(insert(tables.accounts).values(**msgspec.structs.asdict(account)))
        return account

    async def list_accounts(self) -> list[Account]:
        """All tenants' accounts, oldest first."""
        query = select(tables.accounts).where(tables.accounts.c.id != PUBLIC_ACCOUNT_ID)
        query = query.order_by(tables.accounts.c.created_at, tables.accounts.c.id)
        async with self._database.read() as connection:
            return [Account(**row) for row in (await connection.execute(query)).mappings()]

    async def get_account(self, account_id: str) -> Account:
        """Raises ObjectNotFound."""
        query = select(tables.accounts).where(tables.accounts.c.id == account_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None or account_id == PUBLIC_ACCOUNT_ID:
            raise _no_account(account_id)
        return Account(**row)

    async def set_weight(self, account_id: str, weight: Any) -> Account:
        """Counts from the account's next request on. Raises ObjectNotFound, BadInput."""
        change = update(tables.accounts).where(tables.accounts.c.id == account_id)
        async with self._database.write() as connection:
            await _require_account(connection, account_id)
            await connection.execute(change.values(weight=_checked_weight(weight)))
        self._forget(lambda known: known.identity.account_id == account_id)
        return await self.get_account(account_id)

    async def delete_account(self, account_id: str) -> None:
        """Deletes an account and its tokens. Raises ObjectNotFound; BadInput while it still has finetunes.

        Finetunes own files in the object store, so they are deleted by `Finetunes`, never by a cascade of rows.
        """
        async with self._database.write() as connection:
            await _require_account(connection, account_id)
            owned = select(func.count()).where(tables.finetunes.c.account_id == account_id)
            if count := await connection.scalar(owned):
                raise BadInput(f"the account still has {count} finetunes; delete them first")
            await connection.execute(delete(tables.tokens).where(tables.tokens.c.account_id == account_id))
            await connection.execute(delete(tables.accounts).where(tables.accounts.c.id == account_id))
        self._forget(lambda known: known.identity.account_id == account_id)

    async def create_token(
        self, account_id: str, name: str, permissions: Iterable[str], expires_at: float | None = None
    ) -> tuple[Token, str]:
        """The token and its secret, which cannot be shown again. Raises ObjectNotFound, BadInput."""
        granted = tuple(sorted(set(permissions)))
        if unknown := [p for p in granted if p not in PERMISSIONS]:
            raise BadInput(f"unknown permission {unknown[0]!r}; allowed: {', '.join(PERMISSIONS)}", param="permissions")
        if not granted:
            raise BadInput(f"give at least one permission of: {', '.join(PERMISSIONS)}", param="permissions")
        created_at = self._now()
        if expires_at is not None and not created_at < expires_at < 1e11:
            raise BadInput("expires_at must be in the future (Unix seconds)", param="expires_at")
        name = checked_name(name, "the token's name")
        token = Token(new_id(), account_id, name, granted, "active", created_at, expires_at)
        secret = new_secret()
        row = {**msgspec.structs.asdict(token), "permissions": list(granted), "digest": secret_digest(secret)}
        async with self._database.write() as connection:
            owned = select(func.count()).where(tables.tokens.c.account_id == account_id)
            if (await connection.scalar(owned) or 0) >= MAX_TOKENS_PER_ACCOUNT:
                raise BadInput(f"the account has {MAX_TOKENS_PER_ACCOUNT} tokens, the most there can be; revoke some")
            await _require_account(connection, account_id)
            await connection.execute(insert(tables.tokens).values(**row))
        return token, secret

    async def list_tokens(self, account_id: str) -> list[Token]:
        """The account's tokens, oldest first. Raises ObjectNotFound."""
        await self.get_account(account_id)
        query = select(tables.tokens).where(tables.tokens.c.account_id == account_id)
        async with self._database.read() as connection:
            rows = await connection.execute(query.order_by(tables.tokens.c.created_at, tables.tokens.c.id))
            return [_token(row) for row in rows.mappings()]

    async def get_token(self, token_id: str) -> Token:
        """Raises ObjectNotFound."""
        query = select(tables.tokens).where(tables.tokens.c.id == token_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            raise ObjectNotFound(f"there is no token {token_id!r}")
        return _token(row)

    async def revoke(self, token_id: str) -> None:
        """Deletes a token; the next call with its secret is refused. Raises ObjectNotFound."""
        async with self._database.write() as connection:
            result = await connection.execute(delete(tables.tokens).where(tables.tokens.c.id == token_id))
        self._forget(lambda known: known.identity.token_id == token_id)
        if result.rowcount == 0:
            raise ObjectNotFound(f"there is no token {token_id!r}")

    async def authenticate(self, secret: str) -> Identity:
        """Who holds this secret. Raises AuthenticationFailed, always with the same words."""
        digest = secret_digest(secret)
        if digest is None:
            raise AuthenticationFailed
        known = self._known.get(digest)
        if known is None or known.until <= self._monotonic():
            if digest in self._refused:
                raise AuthenticationFailed
            known = await self._look_up(digest)
        if known.expires_at is not None and known.expires_at <= self._now():
            raise AuthenticationFailed
        return known.identity

    async def _look_up(self, digest: bytes) -> _Known:
        generation = self._generation
        query = select(tables.tokens, tables.accounts.c.weight).join(tables.accounts)
        query = query.where(tables.tokens.c.digest == digest)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None or row["status"] != "active":
            self._refused[digest] = None
            raise AuthenticationFailed
        identity = Identity(row["account_id"], row["id"], frozenset(row["permissions"]), row["weight"])
        known = _Known(identity, row["expires_at"], self._monotonic() + CACHE_S)
        if generation == self._generation:
            self._known[digest] = known
        return known

    def _forget(self, gone: Callable[[_Known], bool]) -> None:
        self._generation += 1
        for digest in [digest for digest, known in self._known.items() if gone(known)]:
            self._known.pop(digest, None)


def _checked_weight(weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not MIN_WEIGHT <= weight <= MAX_WEIGHT:
        raise BadInput(f"weight must be a number from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}", param="weight")
    return float(weight)


async def _require_account(connection: AsyncConnection, account_id: str) -> None:
    found = await connection.scalar(select(tables.accounts.c.id).where(tables.accounts.c.id == account_id))
    if found is None or account_id == PUBLIC_ACCOUNT_ID:
        raise _no_account(account_id)


def _no_account(account_id: str) -> ObjectNotFound:
    return ObjectNotFound(f"there is no account {account_id!r}; `lorikeet accounts list` shows those there are")


def _token(row: Any) -> Token:
    values = {name: row[name] for name in Token.__struct_fields__}
    return Token(**{**values, "permissions": tuple(row["permissions"])})
