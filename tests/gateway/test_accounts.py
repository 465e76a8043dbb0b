"""Accounts and tokens: what is stored, what a secret proves, and when it stops doing so."""

import asyncio
import hashlib
import itertools
import sqlite3
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.accounts import Accounts
from gateway.errors import AuthenticationFailed, BadInput, ObjectNotFound
from gateway.ids import SECRET_PREFIX, Uuid7, new_id, new_secret, secret_digest
from gateway.permissions import PERMISSIONS
from storage.database import Database


class Clock:
    """Wall and monotonic time, moved by the test."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path / "lorikeet.db")
    yield opened
    await opened.aclose()


@pytest.fixture
def accounts(database: Database, clock: Clock) -> Accounts:
    return Accounts(database, now=clock, monotonic=clock)


async def test_the_secret_is_shown_once_and_only_its_digest_is_stored(
    accounts: Accounts, database: Database, tmp_path: Path
) -> None:
    account = await accounts.create_account("acme")
    token, secret = await accounts.create_token(account.id, "ci", PERMISSIONS)
    assert secret.startswith(SECRET_PREFIX)
    assert len(secret) == len(SECRET_PREFIX) + 43
    assert [token] == await accounts.list_tokens(account.id)
    await database.aclose()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.encode() not in stored
    assert secret.removeprefix(SECRET_PREFIX).encode() not in stored
    with sqlite3.connect(tmp_path / "lorikeet.db") as raw:
        assert raw.execute("SELECT digest FROM tokens").fetchone()[0] == hashlib.sha256(secret.encode()).digest()


async def test_authenticate_tells_who_it_is(accounts: Accounts) -> None:
    first, second = await accounts.create_account("one"), await accounts.create_account("two")
    _, secret = await accounts.create_token(first.id, "a", ["workers_ai.read"])
    token, other = await accounts.create_token(second.id, "a", ["workers_ai.write", "ai_gateway.run"])
    assert (await accounts.authenticate(secret)).account_id == first.id
    identity = await accounts.authenticate(other)
    assert (identity.account_id, identity.token_id) == (second.id, token.id)
    assert identity.permissions == {"workers_ai.write", "ai_gateway.run"}


@pytest.mark.parametrize(
    "secret",
    ["", "cfat_", "x", "' OR '1'='1", "cfat_" + "a" * 42, "cfat_" + "a" * 44, "cfat_" + "a" * 43, "cfat_" + "é" * 43,
     "cfut_" + "a" * 43, "cfat_" + "a" * 42 + "\n", "\0" * 48, "a" * 1_000_000],
)  # fmt: skip
async def test_anything_else_is_refused_with_the_same_words(accounts: Accounts, secret: str) -> None:
    for _ in range(2):
        with pytest.raises(AuthenticationFailed) as error:
            await accounts.authenticate(secret)
        assert error.value.message == "Authentication error"


async def test_revoked_is_refused_at_once(accounts: Accounts) -> None:
    account = await accounts.create_account("acme")
    token, secret = await accounts.create_token(account.id, "a", PERMISSIONS)
    _, kept = await accounts.create_token(account.id, "b", PERMISSIONS)
    await accounts.authenticate(secret)
    await accounts.authenticate(kept)
    await accounts.revoke(token.id)
    with pytest.raises(AuthenticationFailed):
        await accounts.authenticate(secret)
    await accounts.authenticate(kept)
    with pytest.raises(ObjectNotFound):
        await accounts.revoke(token.id)


async def test_a_weight_counts_from_the_next_request_on(accounts: Accounts) -> None:
    account = await accounts.create_account("acme", 2.0)
    _, secret = await accounts.create_token(account.id, "a", PERMISSIONS)
    assert (await accounts.authenticate(secret)).weight == 2.0
    assert (await accounts.set_weight(account.id, 5)).weight == 5.0
    assert (await accounts.authenticate(secret)).weight == 5.0
    for wrong in (0, -1.0, 101, float("nan"), True, "2", None):
        with pytest.raises(BadInput, match="weight"):
            await accounts.set_weight(account.id, wrong)
    assert (await accounts.get_account(account.id)).weight == 5.0


async def test_a_look_up_under_way_cannot_bring_a_revoked_token_back(accounts: Accounts) -> None:
    account = await accounts.create_account("acme")
    for steps in range(60):
        token, secret = await accounts.create_token(account.id, "a", PERMISSIONS)
        look_up = asyncio.create_task(accounts.authenticate(secret))
        for _ in range(steps * 3):
            await asyncio.sleep(0)
        await accounts.revoke(token.id)
        await asyncio.gather(look_up, return_exceptions=True)
        with pytest.raises(AuthenticationFailed):
            await accounts.authenticate(secret)


async def test_expiry_is_checked_on_every_call(accounts: Accounts, clock: Clock) -> None:
    account = await accounts.create_account("acme")
    _, secret = await accounts.create_token(account.id, "a", PERMISSIONS, clock.seconds + 5)
    await accounts.authenticate(secret)
    clock.seconds += 5
    with pytest.raises(AuthenticationFailed):
        await accounts.authenticate(secret)
    for bad in (clock.seconds, clock.seconds - 1, float("nan"), float("inf"), 1e300):
        with pytest.raises(BadInput):
            await accounts.create_token(account.id, "b", PERMISSIONS, bad)


async def test_known_and_refused_tokens_need_no_database(accounts: Accounts, database: Database, clock: Clock) -> None:
    account = await accounts.create_account("acme")
    _, secret = await accounts.create_token(account.id, "a", PERMISSIONS)
    wrong = new_secret()
    known = await accounts.authenticate(secret)
    with pytest.raises(AuthenticationFailed):
        await accounts.authenticate(wrong)
    await database.aclose()
    assert await accounts.authenticate(secret) == known
    with pytest.raises(AuthenticationFailed):
        await accounts.authenticate(wrong)


async def test_a_flood_of_wrong_tokens_does_not_push_out_right_ones(accounts: Accounts, database: Database) -> None:
    account = await accounts.create_account("acme")
    _, secret = await accounts.create_token(account.id, "a", PERMISSIONS)
    await accounts.authenticate(secret)
    for number in range(20_001):
        accounts._refused[number.to_bytes(32, "big")] = None
    assert len(accounts._refused) == 20_000
    await database.aclose()
    await accounts.authenticate(secret)


async def test_names(accounts: Accounts) -> None:
    account = await accounts.create_account("Acme")
    for name in ("acme", "ＡＣＭＥ", "", " x", "x" * 129, "a\u200bb", "a\nb"):
        with pytest.raises(BadInput):
            await accounts.create_account(name)
    for name in ("", "a\x1b[31m"):
        with pytest.raises(BadInput):
            await accounts.create_token(account.id, name, PERMISSIONS)


@pytest.mark.parametrize("permissions", [[], ["root"], ["workers_ai.read", "WORKERS_AI.WRITE"]])
async def test_permissions_are_known_words(accounts: Accounts, permissions: list[str]) -> None:
    account = await accounts.create_account("acme")
    with pytest.raises(BadInput, match=r"workers_ai\.read"):
        await accounts.create_token(account.id, "a", permissions)


async def test_unknown_accounts(accounts: Accounts) -> None:
    for call in (
        accounts.get_account("none"),
        accounts.delete_account("none"),
        accounts.create_token("none", "a", PERMISSIONS),
        accounts.list_tokens("none"),
        accounts.get_token("none"),
    ):
        with pytest.raises(ObjectNotFound):
            await call


async def test_a_deleted_account_takes_its_tokens_along(accounts: Accounts) -> None:
    gone, kept = await accounts.create_account("gone"), await accounts.create_account("kept")
    _, secret = await accounts.create_token(gone.id, "a", PERMISSIONS)
    _, other = await accounts.create_token(kept.id, "a", PERMISSIONS)
    await accounts.authenticate(secret)
    await accounts.delete_account(gone.id)
    with pytest.raises(AuthenticationFailed):
        await accounts.authenticate(secret)
    await accounts.authenticate(other)
    assert await accounts.list_accounts() == [kept]
    await accounts.create_account("gone")


@settings(max_examples=200)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=200))
def test_uuid7_rises_whatever_the_clock_does(jumps: list[float]) -> None:
    times = itertools.accumulate(jumps, initial=1_800_000_000.0)
    make = Uuid7(lambda: next(times))
    made = [make() for _ in jumps]
    assert made == sorted(set(made))
    for text in made:
        parsed = uuid.UUID(text)
        assert (parsed.version, parsed.variant, str(parsed)) == (7, uuid.RFC_4122, text)


def test_uuid7_carries_the_time_and_random_ids_do_not_repeat() -> None:
    assert uuid.UUID(Uuid7(lambda: 1_800_000_000.123)()).int >> 80 == 1_800_000_000_123
    assert len({new_id() for _ in range(10_000)}) == 10_000
    secret = new_secret()
    assert secret_digest(secret) == hashlib.sha256(secret.encode()).digest()
