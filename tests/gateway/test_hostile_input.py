"""Hostile bodies on every route that takes one, and hostile senders on raw sockets: a typed 4xx or a closed connection
within a limit, bounded memory, and nothing of the inside told.
"""

import asyncio
import contextlib
import json
import re
import resource
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

import gateway.http_protocol as protocol
from gateway.app import ROWS
from gateway.routes import ApiRoute
from gateway.settings import DEMO_MODEL
from tests.gateway.stack import CHAT, RUN, Stack, events, open_stack, serve

TAKES_A_BODY = [
    row for row in ROWS
    if isinstance(row, ApiRoute) and row.method in ("POST", "PUT", "PATCH") and not row.path.endswith("/")
    and "finetune-assets" not in row.path
]  # fmt: skip
DEEP = 10_000
BODIES: dict[str, bytes] = {
    "arrays in arrays": b"[" * DEEP + b"]" * DEEP,
    "objects in objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep in every field": json.dumps({"model": DEMO_MODEL, "version": 1}).encode()[:-1]
    + b"".join(b',"%s":' % name + b"[" * DEEP + b"]" * DEEP for name in (b"messages", b"input", b"metadata", b"tools"))
    + b"}",
    "deep and unfinished": b'{"messages":' * DEEP,
    "not UTF-8": b'{"prompt": "\xff\xfe", "model": "\xff", "name": "\xff", "description": "\xff"}',
    "a lone surrogate": b'{"prompt": "\\ud800", "model": "\\ud800", "name": "\\ud800", "description": "\\udfff"}',
    "UTF-16": '{"prompt": "x"}'.encode("utf-16"),
    "NUL": b"\0" * 100,
    "not JSON": b"<xml/>",
    "half": b'{"model": "x", "prompt": "y',
    "a number": b"9" * 5000,
    "a text": b'"x"',
    "NaN": b'{"model": NaN, "version": NaN, "feedback": NaN, "prompt": NaN, "description": NaN}',
    "a huge number": b'{"version": 1e999, "feedback": 1e999, "max_tokens": 1e999, "description": 1e999}',
    "a wrong type in every field": json.dumps(
        {
            name: [[{}]] for name in ("model", "name", "prompt", "messages", "input", "version", "feedback", "activate",
                                      "description", "max_tokens")
        }
    ).encode(),
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One for the whole file: nothing here leaves anything behind."""
    async with open_stack(tmp_path_factory.mktemp("stack")) as opened:
        yield opened


def path_of(row: ApiRoute, account: str) -> str:
    path = row.path.replace("{account_id}", account).replace("{model:path}", DEMO_MODEL)
    return re.sub(r"\{[a-z_]+(:path)?\}", "nothing", path.replace("{gateway_id}", "default"))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("row", TAKES_A_BODY, ids=lambda row: f"{row.method} {row.path}")
async def test_a_hostile_body(stack: Stack, row: ApiRoute, name: str) -> None:
    reached = len(stack.fake.requests)
    queries = ("", "?queueRequest=true") if row.path.endswith("/ai/run/{model:path}") else ("",)
    for query in queries:
        answer = await stack.client.request(row.method, path_of(row, stack.account) + query, content=BODIES[name])
        assert 400 <= answer.status_code < 500, answer.text
        body = answer.json()
        assert body["success"] is False
        assert body["errors"][0]["message"]
        assert body["errors"][0]["code"] >= 1000
        assert ("error" in body) is row.openai_errors
        for inside in ("Traceback", ".py", "msgspec", "RecursionError"):
            assert inside not in answer.text
        assert len(answer.content) < 4000
    assert len(stack.fake.requests) == reached


@pytest.mark.asyncio(loop_scope="module")
async def test_of_duplicate_keys_the_last_counts(stack: Stack) -> None:
    body = b'{"prompt": "one", "prompt": "two", "max_tokens": 9, "max_tokens": 1}'
    assert (await stack.post(RUN, body)).json()["result"]["response"] == "two"
    chat = b'{"model": "%s", "messages": [], "messages": [{"role": "user", "content": "x"}]}' % DEMO_MODEL.encode()
    assert (await stack.post(CHAT, chat)).status_code == 200
    unsure = await stack.post(RUN, b'{"lora": "nobody", "prompt": "x", "lora": null}')
    assert unsure.status_code == 200  # null is the last word


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("body", "query", "status"),
    [
        ({"raw": "true"}, "", 200),
        ({"stream": "false"}, "", 200),
        ({"raw": "1"}, "", 200),
        ({}, "max_tokens=5&temperature=0.5&top_k=3&raw=true", 200),
        ({"max_tokens": "5"}, "", 400),
        ({"temperature": "0.5"}, "", 400),
        ({"seed": "1"}, "", 400),
        ({"max_tokens": "5"}, "max_tokens=5", 400),
    ],
)
async def test_numbers_and_booleans_as_text(stack: Stack, body: Any, query: str, status: int) -> None:
    """Text is taken for a boolean anywhere and for a number in the query only; docs/compatibility.md says so."""
    answer = await stack.post(f"{RUN}?{query}", {"prompt": "x", **body})
    assert answer.status_code == status, answer.text


TALK: Any = {"model": DEMO_MODEL, "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("path", "body", "most"),
    [
        (CHAT, TALK, "max_tokens"),
        (CHAT, TALK, "max_completion_tokens"),
        ("/ai/v1/messages", TALK, "max_tokens"),
        ("/ai/v1/responses", {"model": DEMO_MODEL, "input": "x"}, "max_output_tokens"),
        ("/ai/v1/completions", {"model": DEMO_MODEL, "prompt": "x"}, "max_tokens"),
        ("/ai/run", {"model": DEMO_MODEL, "input": {"prompt": "x"}}, "max_tokens"),
    ],
)
async def test_every_dialect_takes_text_for_a_boolean_only(stack: Stack, path: str, body: Any, most: str) -> None:
    def with_field(name: str, value: Any) -> Any:
        return {**body, "input": {**body["input"], name: value}} if path == "/ai/run" else {**body, name: value}

    for name, value in ((most, "5"), ("temperature", "0.5"), ("top_p", "1"), (most, True)):
        answer = await stack.post(path, with_field(name, value))
        error = answer.json()["errors"][0]
        assert (answer.status_code, error["code"]) == (400, 5006), answer.text
        assert f"'{name}'" in error["message"].replace("max_tokens" if name == most else name, name)
        assert error["source"]["pointer"].strip("/") in (name, "max_tokens")
    for no in ("false", "0", False, 0):
        assert (await stack.post(path, with_field("stream", no))).status_code == 200
    assert (await stack.post(path, with_field(most, 5.0))).status_code == 200


@pytest.mark.asyncio(loop_scope="module")
async def test_an_empty_lora_is_none(stack: Stack) -> None:
    for path, body in ((RUN, {"prompt": "x", "lora": ""}), (RUN + "?lora=", {"prompt": "x"})):
        assert (await stack.post(path, body)).status_code == 200
        assert stack.fake.requests[-1].request.lora is None


# raw sockets against the whole app


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[Stack, str, int]]:
    settings = {"server": {"max_body_bytes": 1_000_000}}
    async with open_stack(tmp_path, settings=settings) as stack, serve(stack.app, send_buffer_bytes=2**14) as url:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        yield stack, parts.hostname, parts.port


def head(stack: Stack, *lines: str, path: str = RUN) -> bytes:
    said = [f"POST {stack.url(path)} HTTP/1.1", "Host: x", f"Authorization: Bearer {stack.secret}", *lines, "", ""]
    return "\r\n".join(said).encode()


async def read_all(reader: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(reader.read(), 20)
    return b""


async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, byte: bytes) -> bytes:
    """What is said to one who sends a byte now and then."""

    async def drip() -> None:
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(byte)
                await writer.drain()
                await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(drip())
        said = await read_all(reader)
        task.cancel()
    return said


async def test_a_hundred_megabytes_are_refused_by_their_header(served: tuple[Stack, str, int]) -> None:
    stack, host, port = served
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(head(stack, "Content-Length: 100000000"))
    said = await read_all(reader)
    assert said.startswith(b"HTTP/1.1 413")
    assert b'"code":3006' in said
    writer.close()


async def test_a_chunked_body_that_never_ends(served: tuple[Stack, str, int]) -> None:
    stack, host, port = served
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, writer = await asyncio.open_connection(host, port)
    writer.write(head(stack, "Transfer-Encoding: chunked"))
    chunk, sent = b"10000\r\n" + b" " * 65536 + b"\r\n", 0
    with contextlib.suppress(ConnectionError, TimeoutError):
        while sent < 100_000_000:
            writer.write(chunk)
            sent += len(chunk)
            await asyncio.wait_for(writer.drain(), 10)
            await asyncio.sleep(0)  # lets a connection that was closed say so
    assert sent < 50_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KB
    writer.close()
    assert (await stack.post(RUN, {"prompt": "x"})).status_code == 200


async def test_half_closed_sockets_end(served: tuple[Stack, str, int]) -> None:
    """Before the end of a head or of a body: the connection is closed, and nobody is asked."""
    stack, host, port = served
    body = json.dumps({"prompt": "x"}).encode()
    whole = head(stack, f"Content-Length: {len(body)}") + body
    for data in (b"", whole[:40], whole[:-5]):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(data)
        writer.write_eof()
        assert await read_all(reader) == b""
        writer.close()
    assert stack.fake.requests == []
    assert (await stack.post(RUN, {"prompt": "x"})).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [RUN, CHAT])
async def test_who_closes_the_sending_side_has_gone(served: tuple[Stack, str, int], path: str, stream: bool) -> None:
    """After a whole request, while the model is at work: it is freed at once, and the log says who went away."""
    stack, host, port = served
    never = asyncio.Event()
    stack.fake._script = lambda request: ["one", never, " two"]
    asked = {"messages": [{"role": "user", "content": "x"}], "model": DEMO_MODEL, "stream": stream}
    body = json.dumps(asked).encode()
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(head(stack, f"Content-Length: {len(body)}", path=path) + body)
    said = b""
    async with asyncio.timeout(20):
        await stack.fake.until(lambda: stack.fake.open == 1)
        while stream and b"one" not in said:
            said += await reader.read(4096)
        writer.write_eof()
        await stack.fake.until(lambda: stack.fake.open == 0)
        said += await reader.read()
        record = await stack.records.until(1)
    assert (b"one" in said, b"two" in said, b"[DONE]" in said) == (stream, False, False)
    assert (record.outcome, record.status_code) == ("client_abort", 499)
    assert bool(record.response) is stream
    writer.close()


async def test_a_head_that_drips_is_closed(served: tuple[Stack, str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_DEADLINE_S", "CHECK_S"):
        monkeypatch.setattr(protocol, name, 0.1)
    stack, host, port = served
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(head(stack)[:-2] + b"X: ")
    said = await dripping(reader, writer, b"a")
    assert said.startswith(b"HTTP/1.1 408")
    assert b'"code":3046' in said
    writer.close()


async def test_a_body_that_drips_is_closed(served: tuple[Stack, str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BODY_GRACE_S", "CHECK_S"):
        monkeypatch.setattr(protocol, name, 0.05)
    stack, host, port = served
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(head(stack, "Content-Length: 1000") + b"{")
    said = await dripping(reader, writer, b" ")
    assert said.startswith(b"HTTP/1.1 408")
    writer.close()


async def test_a_reader_that_takes_nothing_holds_nobody_up(
    served: tuple[Stack, str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty who never read; others are served meanwhile, and the fifty are gone after the limit."""
    monkeypatch.setattr(protocol, "STALLED_READER_S", 0.2)
    stack, host, port = served
    much = 2000  # pieces of half a kilobyte: more than every buffer on the way holds
    monkeypatch.setattr(stack.fake, "_context_window", 2 * much)
    monkeypatch.setattr(
        stack.fake, "_script", lambda asked: ["w" * 500] * much if asked.request.sampling.max_tokens == much else ["x"]
    )
    body = json.dumps({"prompt": "x", "stream": True, "max_tokens": much}).encode()
    silent = []
    for _ in range(50):
        taker = socket.socket()
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
        taker.connect((host, port))  # by the kernel, which needs no turn of this loop
        reader, writer = await asyncio.open_connection(sock=taker, limit=2**12)
        writer.write(head(stack, f"Content-Length: {len(body)}") + body)
        silent.append((reader, writer))
    async with asyncio.timeout(30):
        await stack.fake.until(lambda: len(stack.fake.requests) == 50, 30)
        assert events((await stack.post(RUN, {"prompt": "x", "stream": True})).content)[-1] == "[DONE]"
        await stack.fake.until(lambda: stack.fake.open == 0, 30)
    assert stack.fake.closed == 50  # none had reached its end
    for _, writer in silent:
        writer.transport.abort()


async def test_a_flood_of_headers(served: tuple[Stack, str, int]) -> None:
    stack, host, port = served
    reader, writer = await asyncio.open_connection(host, port)
    with contextlib.suppress(ConnectionError):
        writer.write(head(stack, *(f"X-{n}: y" for n in range(5000))))
        await writer.drain()
    said = await read_all(reader)
    assert said == b"" or said.startswith(b"HTTP/1.1 431")
    writer.close()
    assert (await stack.post(RUN, {"prompt": "x"})).status_code == 200
