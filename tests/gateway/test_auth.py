"""Credentials: how they may be written, what is refused, and that the body is not read before they are checked."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from tests.gateway.stack import RUN, Stack, open_stack, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One for the whole file: nothing here leaves anything behind."""
    async with open_stack(tmp_path_factory.mktemp("stack")) as opened:
        yield opened


async def call(stack: Stack, *headers: tuple[str, str]) -> httpx.Response:
    request = httpx.Request("POST", "http://x" + stack.url(RUN), headers=list(headers), content=b'{"prompt":"x"}')
    return await httpx.ASGITransport(stack.app).handle_async_request(request)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_is_case_insensitive(stack: Stack, scheme: str) -> None:
    assert (await call(stack, ("authorization", f"{scheme} {stack.secret}"))).status_code == 200


async def test_the_key_of_an_email_and_key_pair_is_a_token(stack: Stack) -> None:
    pair = [("x-auth-email", "a@example.org"), ("x-auth-key", stack.secret)]
    assert (await call(stack, *pair)).status_code == 200
    assert (await call(stack, pair[1])).status_code == 401
    assert (await call(stack, pair[0], ("x-auth-key", "wrong"))).status_code == 401


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", "Bearer    ", "Basic eDp5", "Bearer wrong", "Bearer ' OR '1'='1", 'Bearer "; DROP',
     "Bearer %00", "Bearer " + "a" * 60_000, "Bearer cfat_" + "A" * 43],
)  # fmt: skip
async def test_what_is_no_token(stack: Stack, value: str) -> None:
    recorded = len(stack.records.seen)
    answer = await call(stack, ("authorization", value))
    body = await answer.aread()
    assert answer.status_code == 401
    assert b'"errors":[{"code":10000,"message":"Authentication error"}]' in body
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "cf-aig-log-id" not in answer.headers
    assert len(stack.records.seen) == recorded


async def test_no_header_and_a_token_in_the_query(stack: Stack) -> None:
    assert (await call(stack)).status_code == 401
    url = stack.url(RUN) + f"?token={stack.secret}&authorization=Bearer%20{stack.secret}"
    answer = await stack.client.post(url, content=b"{}", headers={"authorization": ""})
    assert answer.status_code == 401


async def test_two_credentials_are_refused(stack: Stack) -> None:
    bearer = ("authorization", f"Bearer {stack.secret}")
    for pair in (
        [bearer, ("authorization", f"Bearer {stack.secret_b}")],
        [bearer, bearer],
        [bearer, ("x-auth-email", "a@b"), ("x-auth-key", stack.secret_b)],
    ):
        assert (await call(stack, *pair)).status_code == 400
    joined = await call(stack, ("authorization", f"Bearer {stack.secret}, Bearer {stack.secret_b}"))
    assert joined.status_code == 401


async def test_a_revoked_token_is_refused_at_once(stack: Stack) -> None:
    token, secret = await stack.services.accounts.create_token(stack.account, "t", ["workers_ai.read"])
    header = ("authorization", f"Bearer {secret}")
    assert (await call(stack, header)).status_code == 200
    await stack.services.accounts.revoke(token.id)
    assert (await call(stack, header)).status_code == 401


async def test_the_body_is_not_read_without_a_right(stack: Stack) -> None:
    """Over a real socket: the refusal comes although the announced body never does."""
    read_only = await stack.token("ai_gateway.read")
    async with serve(stack.app) as url:
        port = int(url.rpartition(":")[2])
        for secret, account, expected in (
            ("wrong", stack.account, b" 401 "),
            (stack.secret_b, stack.account, b" 404 "),
            (read_only, stack.account, b" 403 "),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"POST {stack.url(RUN, account)} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\n"
            writer.write(head.encode() + b"content-length: 1000000\r\n\r\n")
            async with asyncio.timeout(5):
                assert expected in await reader.readline()
            writer.close()
            await writer.wait_closed()


async def test_rights_do_not_depend_on_the_host_header(stack: Stack) -> None:
    for host in ("localhost:4000/#@x", "localhost/healthz?x=", "localhost/healthz#"):
        answer = await call(stack, ("host", host), ("authorization", "Bearer wrong"))
        assert answer.status_code == 401
