"""The socket face: who may connect, what a connection can and cannot do to the others, and how it all ends."""

import asyncio
import contextlib
import os
import socket
import stat
import struct
from pathlib import Path

import msgspec
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from runtime.client import RuntimeLost
from runtime.codec import decode_server, encode
from runtime.config import RuntimeConfig
from runtime.errors import ConfigInvalid, DeviceLost, EngineStopped
from runtime.framing import read_frame
from runtime.listen import bind
from runtime.protocol import (
    PROTOCOL_VERSION,
    Alive,
    Hello,
    Ping,
    Pong,
    ProtocolError,
    Refused,
    ServerFrame,
    Step,
    Submit,
    Welcome,
)
from runtime.tracing import SequenceSpans
from tests.runtime.fakes import answer, submit
from tests.runtime.serving import TOKEN, Serving, ask, sampling, serving


class Raw:
    """A gateway that says whatever the test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def next(self) -> ServerFrame | None:
        async with asyncio.timeout(10):
            body = await read_frame(self.reader)
        return None if body is None else decode_server(body)

    async def closed(self) -> bool:
        """True when the runtime hangs up, whatever it says before."""
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionResetError):
                while await self.reader.read(65536):
                    pass
        return True


@contextlib.asynccontextmanager
async def raw(serving: Serving, hello: bool = True):  # type: ignore[no-untyped-def]
    reader, writer = await asyncio.open_unix_connection(str(serving.socket_path))
    connection = Raw(reader, writer)
    try:
        if hello:
            writer.write(encode(Hello(PROTOCOL_VERSION, TOKEN, "raw")))
            assert isinstance(await connection.next(), Welcome)
        yield connection
    finally:
        writer.transport.abort()


async def test_two_gateways_share_a_batch_and_get_their_own_answers(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, running.client() as one, running.client() as two:
        await one.wait_ready(5)
        await two.wait_ready(5)
        running.runner.gate.clear()
        asks = [ask(client, account_id=name, sampling=sampling(9, seed)) for client, name, seed in
                [(one, "a", 1), (two, "b", 2)]]  # fmt: skip
        tasks = [asyncio.create_task(item) for item in asks]
        await asyncio.sleep(0)
        running.runner.gate.set()
        (first, _), (second, last) = await asyncio.gather(*tasks)
        assert first == answer(submit(1, max_tokens=9, seed=1))
        assert second == answer(submit(1, max_tokens=9, seed=2))
        assert last.finish_reason == "length"


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (Hello(PROTOCOL_VERSION, "wrong", "g"), "token"),
        (Hello(PROTOCOL_VERSION, "", "g"), "token"),
        (Hello(PROTOCOL_VERSION, TOKEN + "x", "g"), "token"),
        (Hello(PROTOCOL_VERSION, "pässwörd", "g"), "token"),
        (Hello(PROTOCOL_VERSION + 1, TOKEN, "g"), "version"),
    ],
)
async def test_a_stranger_is_refused_with_a_reason(tmp_path: Path, hello: Hello, reason: str) -> None:
    async with serving(tmp_path) as running, raw(running, hello=False) as gateway:
        gateway.writer.write(encode(hello))
        frame = await gateway.next()
        assert isinstance(frame, Refused)
        assert reason in frame.reason
        assert TOKEN not in frame.reason
        assert await gateway.closed()


async def test_connections_are_bounded(tmp_path: Path) -> None:
    async with serving(tmp_path, max_connections=1) as running, raw(running), raw(running, hello=False) as second:
        second.writer.write(encode(Hello(PROTOCOL_VERSION, TOKEN, "g")))
        assert isinstance(await second.next(), Refused)


SUBMIT = submit(1, max_tokens=200)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xff\xff\xff",
        struct.pack(">I", 3) + b"\xc1\xc1\xc1",
        struct.pack(">I", 0),
        struct.pack(">I", 8) + msgspec.msgpack.encode({"type": "no"})[:8],
        encode(Hello(PROTOCOL_VERSION, TOKEN, "again")),
        encode(SUBMIT) + encode(SUBMIT),
        struct.pack(">I", 6) + b"\x82\xa4type",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_a_broken_protocol_ends_that_connection_only(tmp_path: Path, garbage: bytes) -> None:
    async with serving(tmp_path) as running, running.client() as other:
        await other.wait_ready(5)
        running.runner.gate.clear()
        task = asyncio.create_task(ask(other, sampling=sampling(30)))
        async with raw(running) as gateway:
            gateway.writer.write(garbage)
            assert await gateway.closed()
        running.runner.gate.set()
        tokens, _ = await task
        assert tokens == answer(submit(1, max_tokens=30))
        await running.until(running=0, waiting=0, free_blocks=256)


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", encode(Ping(1.0)), b"\x00\x00", b""])
async def test_garbage_instead_of_hello_is_hung_up_on(tmp_path: Path, garbage: bytes) -> None:
    async with serving(tmp_path) as running:
        async with raw(running, hello=False) as gateway:
            gateway.writer.write(garbage)
            gateway.writer.write_eof()
            assert await gateway.closed()
        async with running.client() as client:
            await client.wait_ready(5)


async def test_a_silent_connection_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.service.HELLO_TIMEOUT_S", 0.05)
    async with serving(tmp_path) as running, raw(running, hello=False) as gateway:
        assert await gateway.closed()


async def test_a_closed_connection_frees_its_sequences(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        async with raw(running) as gateway:
            running.runner.gate.clear()
            running.runner.free_steps = 1
            gateway.writer.write(encode(submit(1, max_tokens=200)) + encode(submit(2, max_tokens=200)))
            assert isinstance(await gateway.next(), Step)
        running.runner.gate.set()
        await running.until(running=0, waiting=0, free_blocks=256)


async def test_a_gateway_that_does_not_read_is_cut_off_and_counted(tmp_path: Path) -> None:
    async with serving(tmp_path, max_outgoing_bytes=4096) as running, running.client() as other:
        await other.wait_ready(5)
        sock = socket.socket(socket.AF_UNIX)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.connect(str(running.socket_path))
        with sock:
            sock.sendall(encode(Hello(PROTOCOL_VERSION, TOKEN, "deaf")))
            number = 0
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                while running.service.num_cut == 0:
                    number += 1
                    frame = encode(submit(number, max_tokens=200))
                    await asyncio.to_thread(sock.sendall, frame)
                    if number > 50_000:
                        break
        assert running.service.num_cut == 1
        tokens, _ = await ask(other)
        assert tokens == answer(submit(1))
        await running.until(running=0, waiting=0, free_blocks=256)


async def test_pings_are_answered_by_the_engine_and_never_pile_up(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, raw(running) as gateway:
        gateway.writer.write(encode(Ping(1.0)))
        assert isinstance(await gateway.next(), Alive)
        pong = await gateway.next()
        assert isinstance(pong, Pong)
        assert (pong.sent_at, pong.stats.total_blocks) == (1.0, 256)
        running.runner.gate.clear()
        gateway.writer.write(encode(submit(1, max_tokens=1)))
        for second in range(2000):
            gateway.writer.write(encode(Ping(float(second))))
        gateway.writer.write(encode(submit(2, max_tokens=1)))
        async with asyncio.timeout(5):
            while running.service._live() < 2:
                await asyncio.sleep(0.001)
        # The first ping may be in the step that hangs; another one and the two submits may wait.
        assert len(running.service._thread._commands) <= 3
        for _ in range(2000):  # that the process lives is said at once; one Pong may have come before the step
            frame = await gateway.next()
            while isinstance(frame, Pong):
                frame = await gateway.next()
            assert isinstance(frame, Alive)
        running.runner.gate.set()
        pongs = ended = 0
        while ended < 2:  # in one step, if the engine came late to the first
            frame = await gateway.next()
            pongs += isinstance(frame, Pong)
            ended += len(frame.outputs) if isinstance(frame, Step) else 0
        assert pongs <= 2


async def test_draining_finishes_what_runs_and_refuses_what_comes(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, raw(running) as gateway:
        running.runner.gate.clear()
        gateway.writer.write(encode(submit(1, max_tokens=20)))
        while not running.service._live():
            await asyncio.sleep(0.001)
        running.stop.set()
        while not running.service._draining:
            await asyncio.sleep(0.001)
        gateway.writer.write(encode(submit(2)))
        refused = await gateway.next()
        assert isinstance(refused, Step)
        failure = refused.outputs[0].failure
        assert failure is not None
        assert (failure.kind, failure.retry_after_s) == ("overloaded", 1.0)
        running.runner.gate.set()
        tokens: list[int] = []
        while isinstance(frame := await gateway.next(), Step):
            tokens += [token for output in frame.outputs for token in output.token_ids]
        assert tokens == answer(submit(1, max_tokens=20))
        await asyncio.wait_for(running.task, 5)
        assert not running.socket_path.exists()


async def test_draining_has_an_end(tmp_path: Path) -> None:
    async with serving(tmp_path, drain_s=0.05) as running, raw(running) as gateway:
        missing = await running.upload(0.5)
        running.runner.gate.clear()
        gateway.writer.write(encode(msgspec.structs.replace(submit(1, max_tokens=200), adapter=missing)))
        while not running.service._live():
            await asyncio.sleep(0.001)
        running.stop.set()
        assert await gateway.closed()
        running.runner.gate.set()
        await asyncio.wait_for(running.task, 5)


async def test_a_lost_device_ends_the_service_and_every_stream(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, running.client() as client:
        await client.wait_ready(5)
        running.runner.fail_next = DeviceLost("sticky")
        with pytest.raises(RuntimeLost):
            await ask(client)
        with pytest.raises(EngineStopped):
            await running.task


async def test_a_step_that_does_not_come_back_ends_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.service.JOIN_TIMEOUT_S", 0.05)
    async with serving(tmp_path, max_step_s=0.2) as running, running.client() as client:
        await client.wait_ready(5)
        running.runner.gate.clear()
        with pytest.raises(RuntimeLost):
            await ask(client)
        with pytest.raises(EngineStopped, match="has not come back"):
            await asyncio.wait_for(running.task, 5)


async def test_a_full_command_queue_refuses_new_sequences(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, running.client() as client:
        await client.wait_ready(5)
        running.service._thread._max_commands = 0
        _, last = await ask(client)
        assert last.failure is not None
        assert last.failure.kind == "overloaded"
        running.service._thread._max_commands = 10
        tokens, _ = await ask(client)
        assert tokens == answer(submit(1))


async def test_one_span_for_each_sequence_in_the_callers_trace(tmp_path: Path) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans = SequenceSpans(provider.get_tracer("t"), "model")
    trace_id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with serving(tmp_path, spans=spans) as running, running.client() as client:
        await client.wait_ready(5)
        await ask(client, traceparent=f"00-{trace_id}-{parent}-01")
        running.runner.gate.clear()
        running.runner.free_steps = 1
        async with contextlib.aclosing(
            client.submit(account_id="a", token_ids=[1], sampling=sampling(200), traceparent="garbage")
        ) as outputs:
            await anext(outputs)
        async with asyncio.timeout(5):
            while len(exporter.get_finished_spans()) < 2:
                await asyncio.sleep(0.005)
    whole, aborted = exporter.get_finished_spans()
    assert whole.name == "lorikeet.runtime.sequence"
    assert whole.context is not None
    assert whole.parent is not None
    assert f"{whole.context.trace_id:032x}" == trace_id
    assert f"{whole.parent.span_id:016x}" == parent
    attributes = dict(whole.attributes or {})
    assert attributes["gen_ai.usage.output_tokens"] == 4
    assert attributes["lorikeet.first_token_s"] >= attributes["lorikeet.queue_s"] >= 0  # type: ignore[operator]
    assert (aborted.attributes or {})["gen_ai.response.finish_reasons"] == ("abort",)
    assert aborted.parent is None


def _config(path: Path) -> RuntimeConfig:
    return RuntimeConfig(model="m", model_folder="-", tier_dir="-", objects_root="-", socket_path=str(path))


def test_the_socket_is_private_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.sock"
    with bind(_config(path)):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o700
    assert not path.exists()


def test_a_leftover_is_replaced_a_living_runtime_is_not(tmp_path: Path) -> None:
    path = tmp_path / "r.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with bind(_config(path)) as listener:
        listener.listen()
        with pytest.raises(ConfigInvalid, match="another runtime"), bind(_config(path)):
            pass
    path.write_text("precious")
    with pytest.raises(ConfigInvalid, match="not a socket"), bind(_config(path)):
        pass
    assert path.read_text() == "precious"


def test_an_address_that_cannot_be_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="socket_path"), bind(_config(tmp_path / ("x" * 120))):
        pass
    config = RuntimeConfig(model="m", model_folder="-", tier_dir="-", objects_root="-", host="192.0.2.1", token="t")
    with pytest.raises(ConfigInvalid, match="cannot listen"), bind(config):
        pass


async def test_frames_over_the_limit_are_refused_before_they_are_read() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(struct.pack(">I", 100) + b"x" * 100)
    with pytest.raises(ProtocolError, match="at most 99"):
        await read_frame(reader, max_bytes=99)


def test_submit_survives_the_wire() -> None:
    request = submit(3, (1, 2), account="ä", stop=(5,))
    frame = encode(request)
    assert msgspec.msgpack.decode(frame[4:], type=Submit) == request
