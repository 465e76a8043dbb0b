"""The runtime backend: on a real runtime process with the demo model, and on a scripted one for what goes wrong."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway import errors
from gateway.backends.runtime import RuntimeBackend
from gateway.backends.sampling import MAX_SCORES
from gateway.demo import BASE_FOLDER
from gateway.messages import Message, ResolvedAdapter
from gateway.text.tokenizer import Tokenizer
from runtime.client import RuntimeClient
from runtime.protocol import Grammar
from tests.gateway.backends.conformance import Conformance, Harness, answer, resolved, text_of, wishing
from tests.gateway.backends.runtime_process import TOKEN, runtime_process
from tests.gateway.backends.scripted_runtime import EOS, INFO, Said, ScriptedRuntime, failure

DEMO = Tokenizer.from_folder(BASE_FOLDER)
WINDOW = 200
ADAPTER = ResolvedAdapter("f-1", "gulls", "d" * 64, "adapters/x", 10, 8)


def backend_of(client: RuntimeClient, window: int = WINDOW, restart_wait_s: float = 5.0) -> RuntimeBackend:
    return RuntimeBackend(client, DEMO, context_window=window, restart_wait_s=restart_wait_s, request_timeout_s=30.0)


@pytest.fixture(scope="module")
def runtime_socket() -> Iterator[Path]:
    with runtime_process() as path:
        yield path


class TestRuntime(Conformance):
    @pytest.fixture
    async def harness(self, runtime_socket: Path) -> AsyncIterator[Harness]:
        async with RuntimeClient(
            socket_path=runtime_socket, token=TOKEN, gateway_id="g", ping_interval_s=0.02
        ) as client:
            info = await client.wait_ready(10)

            async def idle() -> None:
                deadline = time.monotonic() + 20
                while (stats := client.stats) is None or stats.running or stats.waiting:
                    assert time.monotonic() < deadline, stats
                    await asyncio.sleep(0.02)

            window = min(WINDOW, info.max_sequence_tokens)
            yield Harness(backend_of(client, window), "Which hall opens at noon and closes last?", window, idle)

    async def test_biases_stops_and_the_end_on_a_real_model(self, harness: Harness) -> None:
        whole = await answer(harness.backend, resolved(harness.question))
        said = DEMO.encode_text(text_of(whole))
        first, other = said[0], 300
        banned = await answer(harness.backend, wishing(resolved(harness.question), logit_bias=((first, -100.0),)))
        assert not text_of(banned).startswith(DEMO.encoder.decode([first]))
        forced = wishing(resolved(harness.question, max_tokens=5), logit_bias=((other, 100.0),))
        assert text_of(await answer(harness.backend, forced)) == DEMO.encoder.decode([other] * 5)
        cut = (await answer(harness.backend, wishing(resolved(harness.question), stop_token_ids=(said[2],))))[-1]
        assert (cut.finish_reason, cut.usage and cut.usage.completion_tokens) == ("stop", said.index(said[2]) + 1)
        assert whole[-1].usage is not None
        more = whole[-1].usage.completion_tokens + 7
        endless = (
            await answer(harness.backend, wishing(resolved(harness.question, max_tokens=more), ignore_eos=True))
        )[-1]
        assert (endless.finish_reason, endless.usage and endless.usage.completion_tokens) == ("length", more)
        await harness.idle()

    async def test_choices_have_seeds_of_their_own_and_can_be_repeated(self, harness: Harness) -> None:
        async def texts(**wish: Any) -> list[str]:
            request = wishing(resolved(harness.question, max_tokens=12), temperature=5.0, **wish)
            chunks = await answer(harness.backend, request)
            return [
                text_of([c for c in chunks if c.index == index]) for index in range(max(c.index for c in chunks) + 1)
            ]

        four = await texts(n=4, seed=77)
        assert len(set(four)) == 4
        assert await texts(n=4, seed=77) == four
        assert await texts(n=2, seed=77) == four[:2]
        assert await texts(n=1, seed=77) == four[:1]
        assert await texts(n=4, seed=78) != four
        assert len(set(await texts(n=4))) > 1
        await harness.idle()

    async def test_the_stop_string_has_no_log_probabilities(self, harness: Harness) -> None:
        whole = text_of(await answer(harness.backend, resolved(harness.question)))
        words = whole.split(" ")
        request = wishing(resolved(harness.question, stop=(f" {words[2]} {words[3]}",)), top_logprobs=0)
        chunks = await answer(harness.backend, request)
        assert text_of(chunks) == " ".join(words[:2])
        tokens = [token for chunk in chunks for token in chunk.logprobs or ()]
        assert b"".join(token.data for token in tokens).decode() == " ".join(words[:2])
        assert all(token.top == () for token in tokens)


@asynccontextmanager
async def scripted(tmp_path: Path, *said: Said, **more: Any) -> AsyncIterator[tuple[ScriptedRuntime, RuntimeBackend]]:
    runtime = ScriptedRuntime(lambda _: said)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(runtime.listening(tmp_path / "s"))
        client = await stack.enter_async_context(
            RuntimeClient(socket_path=tmp_path / "s", gateway_id="g", ping_interval_s=0.02)
        )
        await client.wait_ready(5)
        yield runtime, backend_of(client, **more)


def words(text: str) -> list[int]:
    return DEMO.encode_text(text)


async def test_split_characters_over_the_whole_path(tmp_path: Path) -> None:
    text = "A 🦜 and 你好 at noon"
    async with scripted(tmp_path, *words(text), EOS) as (_, backend):
        chunks = await answer(backend, resolved("x"))
        assert text_of(chunks) == text
        assert not any("\ufffd" in chunk.text for chunk in chunks)
        assert chunks[-1].finish_reason == "stop"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.cached_tokens == 1
        assert chunks[-1].timing is not None
        assert chunks[-1].timing.batch_rows == 3


async def test_a_stop_string_aborts_the_sequence(tmp_path: Path) -> None:
    never = asyncio.Event()
    async with scripted(tmp_path, *words("one two three"), never) as (runtime, backend):
        chunks = await answer(backend, resolved("x", stop=("o th",)))
        assert text_of(chunks) == "one tw"
        assert chunks[-1].usage is not None
        assert 0 < chunks[-1].usage.completion_tokens <= len(words("one two three"))
        assert chunks[-1].usage.prompt_tokens == len(runtime.submitted[0].token_ids)
        await runtime.until(lambda: bool(runtime.aborted))


async def test_what_the_runtime_is_told(tmp_path: Path) -> None:
    async with scripted(tmp_path, EOS) as (runtime, backend):
        request = resolved("hello", max_tokens=7)
        sampling = msgspec.structs.replace(
            request.request.sampling,
            top_k=5,
            top_p=0.5,
            seed=9,
            repetition_penalty=1.5,
            frequency_penalty=-1.0,
            min_p=0.25,
            logit_bias=((7, -3.0),),
            stop_token_ids=(11,),
        )
        request = msgspec.structs.replace(
            request,
            adapter=ADAPTER,
            traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01",
            request=msgspec.structs.replace(request.request, sampling=sampling, priority=-7),
            identity=msgspec.structs.replace(request.identity, weight=2.5),
        )
        await answer(backend, request)
        submit = runtime.submitted[0]
        assert submit.token_ids == tuple(DEMO.encode_messages([Message("user", "hello")]))
        assert (submit.account_id, submit.traceparent) == ("a" * 32, request.traceparent)
        assert (submit.priority, submit.weight) == (-7, 2.5)
        assert submit.adapter is not None
        assert (submit.adapter.digest, submit.adapter.object_key) == (ADAPTER.digest, ADAPTER.object_key)
        told = submit.sampling
        assert (told.max_tokens, told.top_k, told.top_p, told.seed) == (7, 5, 0.5, 9)
        assert (told.repetition_penalty, told.frequency_penalty, told.presence_penalty) == (1.5, -1.0, 0.0)
        assert set(told.stop_token_ids) == {11, EOS, *([] if DEMO.eos_token_id is None else [DEMO.eos_token_id])}
        assert (told.min_p, told.logit_bias, told.ignore_eos) == (0.25, ((7, -3.0),), False)
        assert submit.timeout_s == 30.0


@pytest.mark.parametrize("wish", [{"logit_bias": ((1024, 1.0),)}, {"stop_token_ids": (5, 1024)}])
async def test_token_ids_that_the_model_does_not_have(tmp_path: Path, wish: dict[str, Any]) -> None:
    async with scripted(tmp_path, EOS) as (runtime, backend):
        with pytest.raises(errors.BadInput, match="token 1024; the model's token ids are 0 to 1023") as caught:
            await answer(backend, wishing(resolved("x"), **wish))
        assert caught.value.param == next(iter(wish))
        assert runtime.submitted == []


async def test_ignoring_the_end_leaves_only_the_callers_own_stops(tmp_path: Path) -> None:
    async with scripted(tmp_path, EOS) as (runtime, backend):
        await answer(backend, wishing(resolved("x"), ignore_eos=True, stop_token_ids=(9,)))
        assert (runtime.submitted[0].sampling.stop_token_ids, runtime.submitted[0].sampling.ignore_eos) == ((9,), True)


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("overloaded", errors.OverCapacity, "Capacity temporarily exceeded"),
        ("adapter_missing", errors.FinetuneNotFound, "upload it as a new version"),
        ("adapter_corrupt", errors.InternalError, "damaged"),
        ("adapter_too_large", errors.BadInput, "cannot be served"),
        ("adapter_unavailable", errors.StorageUnavailable, "cannot be read"),
        ("too_long", errors.ContextExceeded, "because of too_long"),
        ("timeout", errors.RequestTimeout, "in time"),
        ("internal", errors.InternalError, "try again"),
        ("grammar", errors.BadInput, "'tools' cannot be enforced: because of grammar"),
    ],
)
async def test_failures_are_typed(tmp_path: Path, kind: Any, error: type[Exception], said: str) -> None:
    async with scripted(tmp_path, *words("one"), failure(kind, 7.0)) as (_, backend):
        with pytest.raises(error, match=said) as caught:
            await answer(backend, msgspec.structs.replace(resolved("x"), adapter=ADAPTER))
        if kind in ("internal", "adapter_corrupt", "adapter_unavailable", "overloaded", "timeout"):
            assert "/srv/secret" not in str(caught.value)
        if kind in ("overloaded", "adapter_unavailable"):
            assert isinstance(caught.value, errors.LorikeetError)
            assert caught.value.retry_after_s == 7.0


async def test_a_schema_that_cannot_be_met_has_the_contracts_code(tmp_path: Path) -> None:
    async with scripted(tmp_path, failure("grammar")) as (_, backend):
        asked = msgspec.structs.replace(resolved("x").request, json_schema="{}")
        with pytest.raises(errors.JsonModeUnmet, match="AiError: JSON Mode couldn't be met: because of grammar"):
            await answer(backend, msgspec.structs.replace(resolved("x"), request=asked))


async def test_a_schema_is_sent_beside_the_sequence(tmp_path: Path) -> None:
    async with scripted(tmp_path, EOS) as (runtime, backend):
        request = resolved("x")
        await answer(backend, request)
        schema = '{"type":"object"}'
        asked = msgspec.structs.replace(request.request, json_schema=schema)
        await answer(backend, msgspec.structs.replace(request, request=asked))
        assert [submit.grammar for submit in runtime.submitted] == [None, Grammar("json_schema", schema)]


async def test_one_choice_that_fails_ends_the_others(tmp_path: Path) -> None:
    never = asyncio.Event()
    async with scripted(tmp_path) as (runtime, backend):
        scripts: list[list[Said]] = [[*words("one"), never], [*words("one"), failure("overloaded", 3.0)], [never]]
        runtime.script = lambda _: scripts.pop(0)
        with pytest.raises(errors.OverCapacity):
            await answer(backend, wishing(resolved("x"), n=3))
        assert len({submit.token_ids for submit in runtime.submitted}) == 1
        await runtime.until(lambda: len(runtime.aborted) == 2)


async def test_of_choices_that_a_stop_string_ends_only_those_are_aborted(tmp_path: Path) -> None:
    never = asyncio.Event()
    async with scripted(tmp_path) as (runtime, backend):
        scripts: list[list[Said]] = [[*words("one two three"), never], [*words("four"), EOS]]
        runtime.script = lambda _: scripts.pop(0)
        chunks = await answer(backend, wishing(resolved("x", stop=("o th",)), n=2))
        assert [text_of([c for c in chunks if c.index == index]) for index in range(2)] == ["one tw", "four"]
        usage = chunks[-1].usage
        assert usage is not None
        assert usage.prompt_tokens == len(runtime.submitted[0].token_ids)
        await runtime.until(lambda: len(runtime.aborted) == 1)


async def test_more_log_probabilities_than_can_be_held(tmp_path: Path) -> None:
    async with scripted(tmp_path, EOS) as (runtime, backend):
        backend._context_window = runtime_window = 10**6
        runtime_info = msgspec.structs.replace(INFO, max_sequence_tokens=runtime_window)
        backend._client._link.model = runtime_info
        request = wishing(resolved("x", max_tokens=MAX_SCORES // 21 + 1), top_logprobs=20)
        with pytest.raises(errors.BadInput, match="ask for fewer tokens or log-probabilities"):
            await answer(backend, request)
        assert runtime.submitted == []


async def test_a_runtime_that_dies_in_the_middle(tmp_path: Path) -> None:
    async with scripted(tmp_path, *words("one"), "hang up") as (_, backend):
        heard: list[str] = []

        async def listen() -> None:
            async with aclosing(backend.generate(resolved("x"))) as chunks:
                async for chunk in chunks:
                    heard.append(chunk.text)  # noqa: PERF401 - what came before the error counts

        with pytest.raises(errors.RuntimeUnavailable) as caught:
            await listen()
        assert caught.value.retry_after_s
        assert "".join(heard) in ("", "one")


async def test_a_restarting_runtime_is_waited_for(tmp_path: Path) -> None:
    runtime = ScriptedRuntime(lambda _: [*words("back"), EOS])
    async with RuntimeClient(socket_path=tmp_path / "s", gateway_id="g") as client:
        backend = backend_of(client)
        assert backend.ready() is not None
        early = asyncio.ensure_future(answer(backend, resolved("x")))
        async with runtime.listening(tmp_path / "s"):
            assert text_of(await early) == "back"
            assert backend.ready() is None


async def test_a_runtime_that_never_comes(tmp_path: Path) -> None:
    async with RuntimeClient(socket_path=tmp_path / "s", gateway_id="g") as client:
        with pytest.raises(errors.RuntimeUnavailable, match="down or restarting") as caught:
            await answer(backend_of(client, restart_wait_s=0.05), resolved("x"))
        assert caught.value.retry_after_s


async def test_reject_if_busy(tmp_path: Path) -> None:
    async with scripted(tmp_path, EOS) as (runtime, backend):
        for wish in (False, True):
            await answer(backend, resolved("x", reject_if_busy=wish))
            assert runtime.submitted[-1].only_if_free is wish


async def test_a_template_that_refuses(tmp_path: Path) -> None:
    async with scripted(tmp_path, EOS) as (runtime, backend):
        request = resolved("x")
        messages = (Message("tool", "x"),)
        request = msgspec.structs.replace(request, request=msgspec.structs.replace(request.request, messages=messages))
        with pytest.raises(errors.BadInput, match="roles are system, user and assistant"):
            await answer(backend, request)
        assert runtime.submitted == []


async def test_a_long_prompt_does_not_hold_up_the_loop(tmp_path: Path) -> None:
    """Encoding a few hundred kilobytes takes far longer than the loop may stand still."""
    async with scripted(tmp_path, EOS) as (_, backend):
        worst = 0.0
        done = False

        async def watch() -> None:
            nonlocal worst
            while not done:
                before = time.monotonic()
                await asyncio.sleep(0.001)
                worst = max(worst, time.monotonic() - before)

        watching = asyncio.ensure_future(watch())
        with pytest.raises(errors.ContextExceeded, match=r"^This model's maximum context length is \d+ tokens"):
            await answer(backend, resolved("word " * 2000))
        with pytest.raises(errors.ContextExceeded, match=r"^This model's maximum context length is \d+ tokens"):
            await answer(backend, resolved("é" * 5_000_000))
        done = True
        await watching
        assert worst < 0.2


async def test_what_is_to_be_forgotten_is_told_to_every_runtime_that_comes_after(tmp_path: Path) -> None:
    """One that is killed may not have come to it, and its disk tier outlives it."""
    async with scripted(tmp_path, *words("Noon."), EOS) as (runtime, backend):
        for digest in ("kept away", "uploaded again"):
            await backend.forget(digest)
        await runtime.until(lambda: runtime.forgotten == ["kept away", "uploaded again"])
        again = resolved("x")
        adapter = ResolvedAdapter("id", "x", "uploaded again", "key", 10, 4)
        await answer(backend, msgspec.structs.replace(again, adapter=adapter))
        runtime.hang_up()
        await runtime.until(lambda: runtime.forgotten == ["kept away", "uploaded again", "kept away"])
