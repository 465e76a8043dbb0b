"""Tools over the whole gateway: what a model says in its family's way, as OpenAI's client and native callers get it.

The runtime is scripted (real protocol, real socket): random weights do not call by themselves. `tests/e2e` has a real
one, which must call.
"""

import functools
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from gateway.backends.answer_text import AnswerText
from gateway.backends.runtime import RuntimeBackend
from gateway.messages import ToolCallDelta
from gateway.settings import DEMO_MODEL
from gateway.text.tokenizer import Tokenizer
from gateway.wire.openai import parse
from runtime.client import RuntimeClient
from runtime.protocol import SequenceOutput
from tests.gateway.backends.scripted_runtime import INFO, ScriptedRuntime
from tests.gateway.stack import CHAT, RUN, Stack, events, open_stack, serve
from tests.gateway.text.tool_bases import FAMILIES, FORMAT, tool_base

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "tide_at",
        "description": "High water",
        "parameters": {"type": "object", "properties": {"where": {"type": "string"}}},
    },
}
HELLO: Any = [{"role": "user", "content": "When?"}]
ARGUMENTS = '{"where": "pier 7 \\"öld\\" 🦜"}'
CALLS = {
    "llama3": f'{{"name": "tide_at", "parameters": {ARGUMENTS}}}',
    "mistral": f'[TOOL_CALLS] [{{"name": "tide_at", "arguments": {ARGUMENTS}}}]',
    "hermes": f'<tool_call>\n{{"name": "tide_at", "arguments": {ARGUMENTS}}}\n</tool_call>',
}
CALLS["qwen3"] = CALLS["hermes"]


@dataclass
class World:
    """A gateway in front of a base that says `answer`, and both kinds of callers of it."""

    tokenizer: Tokenizer
    runtime: ScriptedRuntime
    stack: Stack
    client: openai.AsyncOpenAI
    answer: str = ""

    async def chat(self, **body: Any) -> Any:
        return await self.client.chat.completions.create(**{"model": DEMO_MODEL, "messages": HELLO, **body})

    async def run(self, **body: Any) -> Any:
        reply = await self.stack.post(RUN, {"messages": HELLO, **body})
        assert reply.status_code == 200, reply.text
        return reply.json()["result"]


class _Worlds:
    def __init__(self, stack: AsyncExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder

    async def open(self, family: str) -> World:
        """The base of one family."""
        tokenizer = Tokenizer.from_folder(tool_base(self._folder / "base", family))
        runtime = ScriptedRuntime(lambda _: [], msgspec.structs.replace(INFO, max_sequence_tokens=8192))
        await self._stack.enter_async_context(runtime.listening(self._folder / "s"))
        client = await self._stack.enter_async_context(RuntimeClient(socket_path=self._folder / "s", gateway_id="g"))
        backend = RuntimeBackend(client, tokenizer, context_window=8192, restart_wait_s=5, request_timeout_s=30)
        stack = await self._stack.enter_async_context(open_stack(self._folder, backends={DEMO_MODEL: backend}))
        url = await self._stack.enter_async_context(serve(stack.app))
        theirs = await self._stack.enter_async_context(
            openai.AsyncOpenAI(base_url=url + stack.url("/ai/v1"), api_key=stack.secret, max_retries=0)
        )
        world = World(tokenizer, runtime, stack, theirs)
        runtime.script = lambda _: tokenizer.encoder.encode(world.answer, add_special_tokens=False).ids
        return world


@pytest.fixture
async def worlds(tmp_path: Path) -> AsyncIterator[_Worlds]:
    async with AsyncExitStack() as stack:
        yield _Worlds(stack, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_call_and_its_result(worlds: _Worlds, family: str) -> None:
    """The round that every agent makes: asked, called, answered, with the client's own objects sent back."""
    world = await worlds.open(family)
    world.answer = CALLS[family]
    said = await world.chat(tools=[TOOL])
    (choice,) = said.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "tide_at")
    assert json.loads(call.function.arguments) == json.loads(ARGUMENTS)
    assert len(call.id) == (9 if family == "mistral" else 29)
    assert said.usage.completion_tokens == len(world.runtime.script(world.runtime.submitted[0]))
    record = await world.stack.records.until(1)
    assert (record.status_code, record.outcome, record.tokens_out) == (200, "stop", said.usage.completion_tokens)
    assert json.loads(record.response)["choices"][0]["message"]["tool_calls"][0]["id"] == call.id
    world.answer = "At noon."
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"at": "12:05"}'}
    said = await world.chat(messages=[*HELLO, choice.message, result], tools=[TOOL])
    assert (said.choices[0].message.content, said.choices[0].finish_reason) == ("At noon.", "stop")
    assert said.choices[0].message.tool_calls is None
    prompt = world.tokenizer.encoder.decode(world.runtime.submitted[-1].token_ids)
    assert all(part in prompt for part in ("tide_at", "pier 7", "12:05"))


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_call_in_a_stream(worlds: _Worlds, family: str) -> None:
    world = await worlds.open(family)
    before = "" if family == "llama3" else "I look. "
    world.answer = before + CALLS[family]
    text, arguments, ids, names, reasons, roles = "", "", [], [], [], []
    async for chunk in await world.chat(tools=[TOOL], stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            roles += [choice.delta.role] if choice.delta.role else []
            reasons += [choice.finish_reason] if choice.finish_reason else []
            for piece in choice.delta.tool_calls or ():
                assert piece.index == 0
                ids += [piece.id] if piece.id else []
                names += [piece.function.name] if piece.function.name else []
                arguments += piece.function.arguments
        usage = chunk.usage
    assert (text, json.loads(arguments)) == (before.rstrip(), json.loads(ARGUMENTS))
    assert (len(ids), names, reasons, roles) == (1, ["tide_at"], ["tool_calls"], ["assistant"])
    assert usage is not None
    pieces = [event for event in events((await world.stack.records.until(1)).response) if event != "[DONE]"]
    assert sum("tool_calls" in choice["delta"] for piece in pieces for choice in piece["choices"]) > 5


async def test_openais_own_reading_of_a_stream(worlds: _Worlds) -> None:
    """Their helper puts the pieces of several calls together by index."""
    world = await worlds.open("hermes")
    world.answer = f"Both.\n{CALLS['hermes']}\n{CALLS['hermes']}"
    async with world.client.chat.completions.stream(model=DEMO_MODEL, messages=HELLO, tools=[TOOL]) as stream:
        done = [event async for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = await stream.get_final_completion()
    assert [(event.index, event.name, json.loads(event.arguments)) for event in done] == [
        (0, "tide_at", json.loads(ARGUMENTS)), (1, "tide_at", json.loads(ARGUMENTS)),
    ]  # fmt: skip
    message = final.choices[0].message
    assert (message.content, final.choices[0].finish_reason) == ("Both.", "tool_calls")
    assert message.tool_calls is not None
    assert len({call.id for call in message.tool_calls}) == 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_an_event_has_one_piece_of_each_call(tmp_path: Path, family: str, at_once: int) -> None:
    """However many tokens come together: many clients lose the second piece of the same index."""
    tokenizer = Tokenizer.from_folder(tool_base(tmp_path, family))
    asked = parse(json.dumps({"model": DEMO_MODEL, "messages": HELLO, "tools": [TOOL], "stream": True}).encode())
    said = tokenizer.encoder.encode(CALLS[family], add_special_tokens=False).ids
    answer = AnswerText(tokenizer, asked, 1, None)
    pieces: list[ToolCallDelta] = []
    for at in range(0, len(said), at_once):
        ids = tuple(said[at : at + at_once])
        chunk = answer.take(SequenceOutput(1, ids, "stop" if at + at_once >= len(said) else None))
        assert chunk is None or len(chunk.tool_calls) <= 1
        pieces += chunk.tool_calls if chunk is not None else ()
    assert json.loads("".join(piece.arguments for piece in pieces)) == json.loads(ARGUMENTS)
    assert [(piece.index, piece.name) for piece in pieces if piece.id is not None] == [(0, "tide_at")]


@pytest.mark.parametrize("family", FAMILIES)
async def test_native_callers(worlds: _Worlds, family: str) -> None:
    """Flat, whole, without ids: and so sent back, as native clients do."""
    world = await worlds.open(family)
    world.answer = CALLS[family]
    flat = {"name": "tide_at", "arguments": json.loads(ARGUMENTS)}
    result = await world.run(tools=[TOOL["function"]])
    assert (result["response"], result["tool_calls"]) == ("", [flat])
    reply = await world.stack.post(RUN, {"messages": HELLO, "tools": [TOOL], "stream": True})
    *said, end, done = events(reply.content)
    assert said == [{"response": "", "tool_calls": [{"index": 0, **flat}]}]
    assert (end["response"], done) == ("", "[DONE]")
    assert end["usage"]["completion_tokens"] == result["usage"]["completion_tokens"]
    world.answer = "At noon."
    turns = [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": result["tool_calls"]},
        {"role": "tool", "name": "tide_at", "content": "12:05"},
    ]
    result = await world.run(messages=turns, tools=[TOOL])
    assert result["response"] == "At noon."
    assert "tool_calls" not in result


BROKEN = '<tool_call>\n{"name": "tide_at", "arguments": {"where": "pier'


async def test_a_call_that_max_tokens_cut(worlds: _Worlds) -> None:
    """Who takes whole answers gets the words; who takes pieces has them already, and the reason tells."""
    world = await worlds.open("hermes")
    world.answer = CALLS["hermes"]
    length = len(world.tokenizer.encoder.encode(BROKEN, add_special_tokens=False).ids)
    (choice,) = (await world.chat(tools=[TOOL], max_tokens=length)).choices
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == ("length", BROKEN, None)
    assert (await world.run(tools=[TOOL], max_tokens=length))["response"] == BROKEN
    pieces = [chunk.choices[0] async for chunk in await world.chat(tools=[TOOL], max_tokens=length, stream=True)]
    assert pieces[-1].finish_reason == "length"
    told = [call for piece in pieces for call in piece.delta.tool_calls or ()]
    assert "".join(call.function.arguments for call in told) == '{"where": "pier'


async def test_the_cut_of_a_second_call_does_not_spoil_the_first(worlds: _Worlds) -> None:
    world = await worlds.open("hermes")
    world.answer = f"{CALLS['hermes']}\n{BROKEN}"
    (choice,) = (await world.chat(tools=[TOOL])).choices
    assert (choice.finish_reason, len(choice.message.tool_calls)) == ("tool_calls", 1)
    assert choice.message.content.strip() == BROKEN
    pieces = [chunk.choices[0] async for chunk in await world.chat(tools=[TOOL], stream=True)]
    assert {call.index for piece in pieces for call in piece.delta.tool_calls or ()} == {0, 1}
    assert pieces[-1].finish_reason == "stop", "who was told half a call must not take it for one"


async def test_one_call_only_ends_the_answer(worlds: _Worlds) -> None:
    world = await worlds.open("mistral")
    one = CALLS["mistral"].removeprefix("[TOOL_CALLS] [").removesuffix("]")
    world.answer = f"[TOOL_CALLS] [{one}, {one}]"
    assert len((await world.chat(tools=[TOOL])).choices[0].message.tool_calls) == 2
    for number, stream in enumerate((False, True), 1):
        said = await world.chat(tools=[TOOL], parallel_tool_calls=False, stream=stream)
        if stream:
            indexes = {c.index async for chunk in said for x in chunk.choices for c in x.delta.tool_calls or ()}
            assert indexes == {0}
        else:
            (choice,) = said.choices
            assert (choice.finish_reason, len(choice.message.tool_calls)) == ("tool_calls", 1)
            whole = world.tokenizer.encoder.encode(f"[TOOL_CALLS] [{one}", add_special_tokens=False).ids
            assert said.usage.completion_tokens == len(whole)
        await world.runtime.until(functools.partial(_aborted, world, number))


def _aborted(world: World, count: int) -> bool:
    return len(world.runtime.aborted) == count


async def test_stop_strings_are_looked_for_in_the_text_only(worlds: _Worlds) -> None:
    world = await worlds.open("hermes")
    world.answer = f"{CALLS['hermes']} so pier it is"
    (choice,) = (await world.chat(tools=[TOOL], stop=["pier"])).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", " so ")
    assert json.loads(choice.message.tool_calls[0].function.arguments) == json.loads(ARGUMENTS)
    world.answer = f"no pier {CALLS['hermes']}"
    (choice,) = (await world.chat(tools=[TOOL], stop=["pier"])).choices
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == ("stop", "no ", None)


async def test_log_probabilities_cover_text_and_calls(worlds: _Worlds) -> None:
    """Every token of the answer has one, once, whole or streamed; what became a call too."""
    world = await worlds.open("hermes")
    world.runtime.scores = True
    world.answer = f"So: {CALLS['hermes']} it is."
    (choice,) = (await world.chat(tools=[TOOL], logprobs=True)).choices
    assert b"".join(bytes(token.bytes) for token in choice.logprobs.content).decode() == world.answer
    said, bytes_ = "", b""
    async for chunk in await world.chat(tools=[TOOL], logprobs=True, stream=True):
        for choice in chunk.choices:
            said += choice.delta.content or ""
            if choice.logprobs:
                bytes_ += b"".join(bytes(token.bytes) for token in choice.logprobs.content)
    assert (said, bytes_.decode()) == ("So: it is.", world.answer)


async def test_several_choices(worlds: _Worlds) -> None:
    world = await worlds.open("hermes")
    answers = [CALLS["hermes"], "At noon."]
    world.runtime.script = lambda _: world.tokenizer.encoder.encode(answers.pop(0), add_special_tokens=False).ids
    choices = (await world.chat(tools=[TOOL], n=2)).choices
    assert sorted((c.finish_reason, len(c.message.tool_calls or ())) for c in choices) == [
        ("stop", 0), ("tool_calls", 1),
    ]  # fmt: skip


async def test_tools_are_not_shown_where_none_may_be_called(worlds: _Worlds) -> None:
    world = await worlds.open("hermes")
    world.answer = CALLS["hermes"]
    (choice,) = (await world.chat(tools=[TOOL], tool_choice="none")).choices
    assert (choice.finish_reason, choice.message.content) == ("stop", CALLS["hermes"])
    await world.chat()
    shown, plain = world.runtime.submitted
    assert shown.token_ids == plain.token_ids
    assert shown.grammar is plain.grammar is None


async def test_what_must_be_called_is_a_grammar_beside_the_sequence(worlds: _Worlds) -> None:
    world = await worlds.open("mistral")
    world.answer = CALLS["mistral"]
    other = {"type": "function", "function": {"name": "now"}}
    await world.chat(tools=[TOOL, other], tool_choice="required")
    await world.chat(tools=[TOOL, other], tool_choice={"type": "function", "function": {"name": "tide_at"}})
    both, one = (submit.grammar for submit in world.runtime.submitted)
    assert both is not None
    assert one is not None
    assert (both.kind, '\\"now\\"' in both.source, '\\"now\\"' in one.source) == ("lark", True, False)
    assert f"<[{world.tokenizer.encoder.token_to_id('[TOOL_CALLS]')}]>" in both.source


async def test_a_base_that_cannot_be_shown_tools_says_so(tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack:
        body = {"model": DEMO_MODEL, "messages": HELLO, "tools": [TOOL]}
        assert (await stack.post(CHAT, body)).status_code == 200  # the fake has no template
    folder = tool_base(tmp_path / "base", "hermes")
    async with AsyncExitStack() as opened:
        runtime = ScriptedRuntime(lambda _: [])
        await opened.enter_async_context(runtime.listening(tmp_path / "s"))
        client = await opened.enter_async_context(RuntimeClient(socket_path=tmp_path / "s", gateway_id="g"))
        tokenizer = Tokenizer.from_folder(folder, "none")
        backend = RuntimeBackend(client, tokenizer, context_window=8192, restart_wait_s=5, request_timeout_s=30)
        stack = await opened.enter_async_context(open_stack(tmp_path / "2", backends={DEMO_MODEL: backend}))
        for path in (CHAT, RUN):
            reply = await stack.post(path, body)
            assert reply.status_code == 400
            assert "tool_format" in reply.text
            reply = await stack.post(path, {**body, "tool_choice": "none"})
            assert reply.status_code == 200


def test_every_family_is_tried() -> None:
    assert set(FORMAT.values()) == {"llama3", "mistral", "hermes"}
