"""The gateway's end: streams, aborts, lost and hung runtimes, reconnects."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.client import RuntimeClient, RuntimeLost
from runtime.protocol import SequenceOutput
from runtime.stream import MOST_UNMERGED, WAKE_S, Beat, Stream
from tests.runtime.fakes import MODEL, answer, ref, submit
from tests.runtime.serving import TOKEN, ask, sampling, serving
from tests.storage.tier_checks import settled


async def test_ready_tells_the_model(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        client = running.client()
        assert (client.ready, client.problem) == (False, "not connected yet")
        async with client:
            assert await client.wait_ready(5) == MODEL
            assert (client.ready, client.problem, client.model) == (True, None, MODEL)
        assert (client.ready, client.problem) == (False, "the client is closed")


async def test_nobody_there(tmp_path: Path) -> None:
    async with RuntimeClient(socket_path=tmp_path / "none", token=TOKEN, gateway_id="g") as client:
        with pytest.raises(RuntimeLost, match="no runtime within"):
            await client.wait_ready(0.2)
        with pytest.raises(RuntimeLost, match="does not answer"):
            await ask(client)
        await client.prefetch(ref("x"))
        await client.forget("x")


async def test_a_wrong_token_is_a_problem_with_a_reason(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, running.client(token="wrong") as client:
        with pytest.raises(RuntimeLost, match="wrong token"):
            await client.wait_ready(0.3)
        assert "wrong token" in (client.problem or "")


async def test_closing_the_iterator_aborts_and_frees(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, running.client() as client:
        await client.wait_ready(5)
        running.runner.gate.clear()
        running.runner.free_steps = 1
        async with contextlib.aclosing(
            client.submit(account_id="a", token_ids=[1, 2], sampling=sampling(250))
        ) as outputs:
            await anext(outputs)
        while running.service._live():  # the abort is on its way; an open gate would let the answer end before it
            await asyncio.sleep(0.001)
        running.runner.gate.set()
        stats = await running.until(running=0, free_blocks=256)
        assert stats.generated_tokens < 250
        assert not client._streams


async def test_a_cancelled_reader_aborts_and_frees(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, running.client() as client:
        await client.wait_ready(5)
        running.runner.gate.clear()
        task = asyncio.create_task(ask(client, sampling=sampling(250)))
        while not running.service._live():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        running.runner.gate.set()
        await running.until(running=0, free_blocks=256)


async def test_a_vanished_runtime_ends_every_waiting_stream_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, drain_s=0.0) as running, running.client() as client:
        await client.wait_ready(5)
        running.runner.gate.clear()
        tasks = [asyncio.create_task(ask(client, sampling=sampling(250, seed))) for seed in range(8)]
        while running.service._live() < 8:
            await asyncio.sleep(0.001)
        began = asyncio.get_running_loop().time()
        for connection in running.service._connections.values():
            connection.cut("planted")
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert asyncio.get_running_loop().time() - began < 1.0
        assert all(isinstance(result, RuntimeLost) for result in results)
        running.runner.gate.set()
        # It connects again by itself, and the next answer is right.
        await client.wait_ready(5)
        tokens, _ = await ask(client)
        assert tokens == answer(submit(1))
        await running.until(running=0, waiting=0, free_blocks=256)


async def test_a_restarted_runtime_is_found_again(tmp_path: Path) -> None:
    client = RuntimeClient(socket_path=tmp_path / "run" / "r.sock", token=TOKEN, gateway_id="g")
    async with client:
        for _ in range(2):
            async with serving(tmp_path) as running:
                await client.wait_ready(10)
                tokens, _ = await ask(client)
                assert tokens == answer(submit(1))
                assert running.service._live() == 0
            async with asyncio.timeout(5):
                while client.ready:
                    await asyncio.sleep(0.001)


async def test_stats_come_with_the_heartbeat(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, running.client(ping_interval_s=0.02) as client:
        await client.wait_ready(5)
        async with asyncio.timeout(5):
            while client.stats is None:
                await asyncio.sleep(0.001)
        assert client.stats.total_blocks == 256


async def test_streams_are_bounded(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, running.client(max_streams=1) as client:
        await client.wait_ready(5)
        running.runner.gate.clear()
        task = asyncio.create_task(ask(client))
        while not running.service._live():
            await asyncio.sleep(0.001)
        _, refused = await ask(client)
        assert refused.failure is not None
        assert refused.failure.kind == "overloaded"
        running.runner.gate.set()
        assert (await task)[0] == answer(submit(1))


async def test_an_adapters_way_through_the_tiers_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, running.client() as client:
        await client.wait_ready(5)
        adapter = await running.upload(0.5)
        tokens, last = await ask(client, adapter=adapter)
        assert tokens == answer(submit(1, adapter=adapter))
        assert last.timing is not None
        assert last.timing.adapter_source == "object"
        status = client.adapter_status(adapter.digest)
        assert status is not None
        assert status.resident == "device"
        assert [visit.tier for visit in status.visits] == ["object", "disk", "memory", "device"]
        _, last = await ask(client, adapter=adapter)
        assert last.timing is not None
        assert last.timing.adapter_source == "device"
        # A gateway that connects later is told what is there.
        async with running.client(gateway_id="late") as late:
            await late.wait_ready(5)
            async with asyncio.timeout(5):
                while late.adapter_status(adapter.digest) is None:
                    await asyncio.sleep(0.001)


async def test_prefetch_brings_an_adapter_to_memory(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, running.client() as client:
        await client.wait_ready(5)
        adapter = await running.upload(0.5)
        await client.prefetch(adapter)
        async with asyncio.timeout(5):
            while (status := client.adapter_status(adapter.digest)) is None:
                await asyncio.sleep(0.001)
        assert status.resident == "memory"
        _, last = await ask(client, adapter=adapter)
        assert last.finish_reason == "length"
        status = client.adapter_status(adapter.digest)
        assert status is not None
        assert [visit.tier for visit in status.visits] == ["object", "disk", "memory", "device"]


async def test_where_adapters_are_is_asked_of_the_tiers(tmp_path: Path) -> None:
    """News tell of ways up; who was pushed out of a tier since is found where it is."""
    options = {"memory_bytes": 40_000, "disk_bytes": 2**20, "giants_share": 1.0}
    async with serving(tmp_path, tier_options=options) as running, running.client() as client:
        await client.wait_ready(5)
        adapters = [await running.upload(0.1 * (n + 1), rank=64) for n in range(3)]  # the device has 64 rows
        assert adapters[0].size_bytes * 2 < 40_000 < adapters[0].size_bytes * 3
        digests = [adapter.digest for adapter in adapters]
        assert await client.adapter_statuses(digests) == {}
        for adapter in adapters:
            await ask(client, adapter=adapter)
            await settled(running.service._tiers)  # type: ignore[arg-type] # these are real tiers
        found = await client.adapter_statuses(["0" * 64, *digests])
        assert {digest: status.resident for digest, status in found.items()} == dict(
            zip(digests, ("disk", "memory", "device"), strict=True)
        )
        assert [visit.tier for visit in found[digests[0]].visits] == ["object", "disk", "memory", "device"]
        async with running.client(gateway_id="late") as late:
            await late.wait_ready(5)
            assert (await late.adapter_statuses(digests))[digests[0]].resident == "disk"
        await client.forget(digests[0])
        async with asyncio.timeout(5):
            while digests[0] in await client.adapter_statuses(digests):
                await asyncio.sleep(0.001)
        await running.until(running=0)
        running.stop.set()
        await running.task
        async with asyncio.timeout(5):
            while client.ready:
                await asyncio.sleep(0.001)
        assert await client.adapter_statuses(digests) == {}


async def test_forget_drops_an_adapter_from_every_tier(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, running.client() as client:
        await client.wait_ready(5)
        adapter = await running.upload(0.5)
        await ask(client, adapter=adapter)
        await running.objects.delete(adapter.object_key)
        await client.forget(adapter.digest)
        await running.until(adapters_resident=0)
        async with asyncio.timeout(5):
            while (await ask(client, adapter=adapter))[1].failure is None:
                await asyncio.sleep(0.001)
        _, last = await ask(client, adapter=adapter)
        assert last.failure is not None
        assert last.failure.kind == "adapter_missing"


async def test_what_was_to_be_forgotten_while_nobody_answered_is_told_at_the_next_connect(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        client = running.client()
        async with running.client() as other:
            await other.wait_ready(5)
            adapter = await running.upload(0.5)
            await ask(other, adapter=adapter)
        await client.forget(adapter.digest)
        async with asyncio.timeout(10):  # it goes to disk after it was used
            while not (tmp_path / "tier" / "packed" / adapter.digest).exists():
                await asyncio.sleep(0.001)
        async with client, asyncio.timeout(10):
            while (tmp_path / "tier" / "packed" / adapter.digest).exists():
                await asyncio.sleep(0.001)
            await running.until(adapters_resident=0)


async def test_a_damaged_adapter_fails_its_own_requests_only(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, running.client() as client:
        await client.wait_ready(5)
        good, bad = await running.upload(0.5), await running.upload(0.7)
        path = next(path for path in (tmp_path / "objects").rglob("*") if path.name == bad.digest)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.chmod(0o600)
        path.write_bytes(data)
        (_, failed), (tokens, _) = await asyncio.gather(ask(client, adapter=bad), ask(client, adapter=good))
        assert failed.failure is not None
        assert failed.failure.kind == "adapter_corrupt"
        assert tokens == answer(submit(1, adapter=good))


async def test_a_client_that_closes_ends_its_streams(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        async with running.client() as client:
            await client.wait_ready(5)
            running.runner.gate.clear()
            task = asyncio.create_task(ask(client, sampling=sampling(250)))
            while not running.service._live():
                await asyncio.sleep(0.001)
        with pytest.raises(RuntimeLost):
            await task
        running.runner.gate.set()
        await running.until(running=0, free_blocks=256)


async def test_hanging_up_ends_streams_and_whoever_waits(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, running.client() as client:
        await client.wait_ready(5)
        running.runner.gate.clear()
        asked = asyncio.create_task(ask(client))
        absent = RuntimeClient(socket_path=tmp_path / "none", token=TOKEN, gateway_id="g")
        async with absent:
            waiting = asyncio.create_task(absent.wait_ready(60))
            await asyncio.sleep(0)  # both have begun
            client.hang_up()
            absent.hang_up()
            for task in (asked, waiting):
                with pytest.raises(RuntimeLost, match="closed"):
                    await asyncio.wait_for(task, 5)
            with pytest.raises(RuntimeLost, match="closed"):
                await absent.wait_ready(60)
        running.runner.gate.set()
        await running.until(running=0, waiting=0, free_blocks=256)


async def test_a_prompt_that_no_frame_can_hold_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, running.client() as client:
        await client.wait_ready(5)
        _, last = await ask(client, token_ids=[2**31] * 4_000_000)
        assert last.failure is not None
        assert last.failure.kind == "too_long"
        assert not client._streams
        tokens, _ = await ask(client)
        assert tokens == answer(submit(1))


async def test_tcp_for_gateways_on_other_machines(tmp_path: Path) -> None:
    async with serving(tmp_path, tcp=True) as running:
        assert running.address is not None
        host, port = running.address
        async with RuntimeClient(host=host, port=port, token=TOKEN, gateway_id="g") as client:
            await client.wait_ready(5)
            assert (await ask(client))[0] == answer(submit(1))
        async with RuntimeClient(host=host, port=port, token="", gateway_id="g") as client:
            with pytest.raises(RuntimeLost, match="wrong token"):
                await client.wait_ready(0.2)


def test_an_address_must_be_one() -> None:
    with pytest.raises(ValueError, match="either"):
        RuntimeClient(token="t", gateway_id="g")


def _output(*tokens: int, reason: str | None = None) -> SequenceOutput:
    return SequenceOutput(sequence_id=1, token_ids=tokens, finish_reason=reason)  # type: ignore[arg-type]


async def test_what_nobody_took_yet_is_merged() -> None:
    stream = Stream()
    stream.put(_output(1))
    stream.put(_output(2, 3))
    assert (await stream.get()).token_ids == (1, 2, 3)
    stream.put(_output(4))
    stream.put(_output(5, reason="stop"))
    stream.put(_output(6))
    last = await stream.get()
    assert (last.token_ids, last.finish_reason) == ((4, 5), "stop")


async def test_a_reader_who_takes_nothing_costs_no_more_than_the_tokens() -> None:
    stream = Stream()
    for token in range(1000):
        stream.put(_output(token))
        assert len(stream._pending) < MOST_UNMERGED
    stream.put(_output(1000, reason="length"))
    last = await stream.get()
    assert (last.token_ids, last.finish_reason) == (tuple(range(1001)), "length")


async def test_a_failed_stream_gives_what_it_has_first() -> None:
    stream = Stream()
    stream.put(_output(1))
    stream.fail(RuntimeLost("gone"))
    stream.put(_output(2))
    assert (await stream.get()).token_ids == (1,)
    for _ in range(2):
        with pytest.raises(RuntimeLost):
            await stream.get()


class _Clock:
    """A loop's clock and timers, moved by hand."""

    def __init__(self) -> None:
        self.now = 128.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        self.timers.append((self.now + delay_s, call))

    def move(self, seconds: float) -> None:
        self.now += seconds
        due = [call for at, call in self.timers if at <= self.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.now]
        for call in due:
            call()


async def _turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_tokens_that_come_close_together_are_given_together() -> None:
    clock = _Clock()
    beat = Beat(10.0, lambda: clock.now, clock.call_later)
    beat.num_streams = 100_000
    streams = [Stream(beat), Stream(beat)]
    taken: list[list[SequenceOutput]] = [[], []]

    async def read(number: int) -> None:
        while not taken[number] or taken[number][-1].finish_reason is None:
            taken[number].append(await streams[number].get())

    readers = [asyncio.create_task(read(number)) for number in range(2)]
    await _turn()
    for token in range(12):  # one every two seconds
        for stream in streams:
            stream.put(_output(token, reason="stop" if token == 11 else None))
        await _turn()
        clock.move(2.0)
        await _turn()
    await asyncio.gather(*readers)
    for outputs in taken:
        # The first at once; the second starts a beat, which strikes ten seconds later; the last does not wait for one.
        assert [output.token_ids for output in outputs] == [(0,), (1, 2, 3, 4, 5), (6, 7, 8, 9, 10), (11,)]
    assert len(clock.timers) <= 1, "one timer for all streams"


async def test_a_token_that_comes_late_enough_does_not_wait() -> None:
    clock = _Clock()
    beat = Beat(10.0, lambda: clock.now, clock.call_later)
    beat.num_streams = 100_000
    stream = Stream(beat)
    for token in range(5):
        reader = asyncio.create_task(stream.get())
        await _turn()
        stream.put(_output(token))
        await _turn()
        assert reader.result().token_ids == (token,)
        clock.move(11.0)
    assert not clock.timers


async def test_one_answer_alone_is_hardly_held_back() -> None:
    clock = _Clock()
    beat = Beat(10.0, lambda: clock.now, clock.call_later)
    beat.num_streams = 1
    stream = Stream(beat)
    stream.put(_output(1))
    await stream.get()
    stream.put(_output(2))
    ((at, _),) = clock.timers
    assert at - clock.now == pytest.approx(WAKE_S)


async def test_a_failure_does_not_wait_for_the_beat() -> None:
    clock = _Clock()
    beat = Beat(10.0, lambda: clock.now, clock.call_later)
    beat.num_streams = 100_000
    stream = Stream(beat)
    stream.put(_output(1))
    await stream.get()
    reader = asyncio.create_task(stream.get())
    await _turn()
    stream.put(_output(2))
    stream.fail(RuntimeLost("gone"))
    await _turn()
    assert reader.result().token_ids == (2,)
    with pytest.raises(RuntimeLost):
        await stream.get()


async def test_what_is_sent_in_one_turn_of_the_loop_is_one_write(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, running.client() as client:
        await client.wait_ready(5)
        assert client._link._writer is not None
        write, writes = client._link._writer.write, list[bytes]()

        def watched(data: bytes) -> None:
            writes.append(data)
            write(data)

        client._link._writer.write = watched  # type: ignore[method-assign, assignment]
        answers = await asyncio.gather(*(ask(client, sampling=sampling(3)) for _ in range(8)))
        assert all(tokens == answers[0][0] for tokens, _ in answers)
        assert len([data for data in writes if b"submit" in data]) == 1
