"""Accounts and tokens for the command line, whether a gateway runs or not.

Shape: while a gateway answers on its admin socket, every call goes through it; otherwise the database is opened here,
exclusively, for the time of the command. Both ways are the same verbs with the same failures, and the caller
cannot tell them apart.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import httpx
import msgspec

from gateway.accounts import Account, Accounts, Token
from gateway.data_dir import DataDir
from gateway.errors import LorikeetError
from gateway.permissions import PERMISSIONS
from gateway.settings import Settings
from storage.database import Database
from storage.errors import StorageError

T = TypeVar("T")
TIMEOUT_S: Final = 60.0
START_WAIT_S: Final = 5.0


class AdminRefused(Exception):
    """The operation was refused or cannot be done now; the text is a sentence for the operator."""


class AdminClient(Protocol):
    """What the command line can do. Every method raises AdminRefused."""

    async def create_account(self, name: str, weight: float = 1.0) -> Account:
        """A new account."""
        ...

    async def set_weight(self, account_id: str, weight: float) -> Account:
        """The account's share of the service, from its next request on."""
        ...

    async def list_accounts(self) -> list[Account]:
        """All accounts, oldest first."""
        ...

    async def delete_account(self, account_id: str) -> None:
        """An account with its tokens; with its finetunes only while a gateway runs."""
        ...

    async def create_token(
        self,
        account_id: str,
        name: str,
        permissions: Sequence[str] = PERMISSIONS,
        expires_at: float | None = None,
    ) -> tuple[Token, str]:
        """The token and its secret, shown only here."""
        ...

    async def list_tokens(self, account_id: str) -> list[Token]:
        """The account's tokens."""
        ...

    async def revoke_token(self, token_id: str) -> None:
        """The next call with the token is refused."""
        ...


@contextlib.asynccontextmanager
async def open_admin(settings: Settings, *, wait_s: float = START_WAIT_S) -> AsyncIterator[AdminClient]:
    """The running gateway's admin face, else the database itself.

    A gateway that starts or stops right now has the database but no socket: that is waited out for `wait_s`.
    Raises AdminRefused.
    """
    folders = DataDir(Path(settings.data_dir))
    deadline = time.monotonic() + wait_s
    while True:
        if _answers(folders.admin_socket):
            transport = httpx.AsyncHTTPTransport(uds=str(folders.admin_socket))
            async with httpx.AsyncClient(transport=transport, base_url="http://admin", timeout=TIMEOUT_S) as http:
                yield _Remote(http)
            return
        try:
            with _refusals():
                folders.root.mkdir(mode=0o700, parents=True, exist_ok=True)
                database = await Database.open(folders.database)
            break
        except AdminRefused:
            if time.monotonic() >= deadline:
                raise
            await asyncio.sleep(0.1)
    try:
        yield _Local(Accounts(database))
    finally:
        await database.aclose()


def _answers(path: Path) -> bool:
    """Whether someone listens; a killed gateway leaves a socket file that nobody answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except LorikeetError as error:
        raise AdminRefused(error.message) from error
    except StorageError as error:
        raise AdminRefused(str(error)) from error
    except OSError as error:
        raise AdminRefused(f"{error.filename}: {error.strerror}") from error


class _Local:
    """Straight on the database, which nobody else has open."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def create_account(self, name: str, weight: float = 1.0) -> Account:
        with _refusals():
            return await self._accounts.create_account(name, weight)

    async def set_weight(self, account_id: str, weight: float) -> Account:
        with _refusals():
            return await self._accounts.set_weight(account_id, weight)

    async def list_accounts(self) -> list[Account]:
        with _refusals():
            return await self._accounts.list_accounts()

    async def delete_account(self, account_id: str) -> None:
        with _refusals():
            await self._accounts.delete_account(account_id)

    async def create_token(
        self, account_id: str, name: str, permissions: Sequence[str] = PERMISSIONS, expires_at: float | None = None
    ) -> tuple[Token, str]:
        with _refusals():
            return await self._accounts.create_token(account_id, name, permissions, expires_at)

    async def list_tokens(self, account_id: str) -> list[Token]:
        with _refusals():
            return await self._accounts.list_tokens(account_id)

    async def revoke_token(self, token_id: str) -> None:
        with _refusals():
            await self._accounts.revoke(token_id)


class _Secret(msgspec.Struct, frozen=True):
    token: Token
    secret: str


class _Remote:
    """Through the running gateway."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def create_account(self, name: str, weight: float = 1.0) -> Account:
        return await self._call("POST", "/accounts", Account, {"name": name, "weight": weight})

    async def set_weight(self, account_id: str, weight: float) -> Account:
        return await self._call("PATCH", f"/accounts/{_segment(account_id)}", Account, {"weight": weight})

    async def list_accounts(self) -> list[Account]:
        return await self._call("GET", "/accounts", list[Account])

    async def delete_account(self, account_id: str) -> None:
        await self._call("DELETE", f"/accounts/{_segment(account_id)}", dict[str, str])

    async def create_token(
        self, account_id: str, name: str, permissions: Sequence[str] = PERMISSIONS, expires_at: float | None = None
    ) -> tuple[Token, str]:
        body = {"name": name, "permissions": list(permissions), "expires_at": expires_at}
        created = await self._call("POST", f"/accounts/{_segment(account_id)}/tokens", _Secret, body)
        return created.token, created.secret

    async def list_tokens(self, account_id: str) -> list[Token]:
        return await self._call("GET", f"/accounts/{_segment(account_id)}/tokens", list[Token])

    async def revoke_token(self, token_id: str) -> None:
        await self._call("DELETE", f"/tokens/{_segment(token_id)}", dict[str, str])

    async def _call(self, method: str, path: str, kind: type[T], body: dict[str, Any] | None = None) -> T:
        try:
            reply = await self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise AdminRefused(f"the gateway's admin socket does not answer: {error}") from error
        except ValueError as error:  # JSON knows no nan and no inf
            raise AdminRefused("numbers must be finite") from error
        if reply.status_code == 200:
            return msgspec.json.decode(reply.content, type=kind)
        try:
            raise AdminRefused(reply.json()["errors"][0]["message"])
        except (ValueError, LookupError, TypeError) as error:
            raise AdminRefused(f"the gateway's admin socket answered {reply.status_code}") from error


def _segment(text: str) -> str:
    """An id as one segment of a path, whatever was typed."""
    return "".join(character if character.isascii() and character.isalnum() else "_" for character in text) or "_"
