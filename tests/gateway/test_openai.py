"""The OpenAI dialect, spoken by OpenAI's own client over a real socket, and its shapes byte by byte."""

import json
from typing import Any, Literal

import openai
import pytest

from gateway.settings import DEMO_MODEL
from tests.gateway.stack import CHAT, Stack, events

HELLO: Any = [{"role": "user", "content": "which hall opens"}]


async def test_a_completion(stack: Stack, client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.with_raw_response.create(model=DEMO_MODEL, messages=HELLO)
    completion = answer.parse()
    assert completion.object == "chat.completion"
    assert completion.id == "chatcmpl-" + answer.headers["cf-aig-log-id"]
    assert completion.model == DEMO_MODEL
    assert completion.choices[0].message.content == "which hall opens"
    assert completion.choices[0].message.role == "assistant"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 6
    assert stack.fake.requests[0].request.sampling.max_tokens == 256


async def test_a_stream_with_and_without_usage(stack: Stack, client: openai.AsyncOpenAI) -> None:
    both: list[Any] = [None, {"include_usage": True}]
    for options in both:
        stream: Any = await client.chat.completions.create(
            model=DEMO_MODEL, messages=HELLO, stream=True, stream_options=options, max_completion_tokens=2
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "which hall"
        assert chunks[0].choices[0].delta.role == "assistant"
        assert [c.choices[0].finish_reason for c in chunks if c.choices] == [None, None, "length"]
        assert len({c.id for c in chunks}) == 1
        usages = [c.usage.total_tokens for c in chunks if c.usage]
        assert usages == ([5] if options else [])
        assert (chunks[-1].choices == []) is bool(options)


async def test_the_streams_own_accumulator(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model=DEMO_MODEL, messages=HELLO) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "which hall opens"
    assert final.choices[0].finish_reason == "stop"


async def test_extra_fields_reach_us(stack: Stack, client: openai.AsyncOpenAI) -> None:
    await client.chat.completions.create(
        model=DEMO_MODEL,
        messages=[{"role": "developer", "content": "be brief"}, *HELLO],
        temperature=0,
        top_p=0,
        seed=-5,
        stop=["x", "y"],
        n=1,
        user="u",
        service_tier="flex",
        logit_bias={"17": -100, "4": 3},
        extra_body={
            "top_k": 5,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "stop_token_ids": [9, 11],
            "ignore_eos": True,
            "priority": -3,
            "options": {"rejectIfBusy": True},
        },
    )
    asked = stack.fake.requests[0].request
    assert asked.messages is not None
    assert [m.role for m in asked.messages] == ["system", "user"]
    assert asked.sampling.top_k == 5
    assert 0 < (asked.sampling.top_p or 0) < 0.001
    assert asked.sampling.stop == ("x", "y")
    assert asked.sampling.logit_bias == ((17, -100.0), (4, 3.0))
    assert (asked.sampling.min_p, asked.sampling.stop_token_ids, asked.sampling.ignore_eos) == (0.05, (9, 11), True)
    assert asked.sampling.seed == -5 & (2**63 - 1)
    assert asked.priority == -3
    assert asked.reject_if_busy


@pytest.mark.parametrize(("tier", "priority"), [("flex", 10), ("priority", -10), ("default", 0), ("auto", 0)])
async def test_a_service_tier_is_a_priority(
    stack: Stack, client: openai.AsyncOpenAI, tier: Literal["flex", "priority", "default", "auto"], priority: int
) -> None:
    await client.chat.completions.create(model=DEMO_MODEL, messages=HELLO, service_tier=tier)
    assert stack.fake.requests[0].request.priority == priority


async def test_lora_is_a_field_of_the_body(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="Finetune gulls not found"):
        await client.chat.completions.create(model=DEMO_MODEL, messages=HELLO, extra_body={"lora": "gulls"})


async def test_errors_have_words_types_and_status(stack: Stack, client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="'temperature' must be a number from 0 to 5") as bad:
        await client.chat.completions.create(model=DEMO_MODEL, messages=HELLO, temperature=9)
    assert (bad.value.type, bad.value.code, bad.value.param) == ("invalid_request_error", "5006", "temperature")
    with pytest.raises(openai.BadRequestError, match="No such model"):
        await client.chat.completions.create(model="gpt-4", messages=HELLO)
    with pytest.raises(openai.AuthenticationError, match="Authentication error"):
        await client.with_options(api_key="sk-wrong").chat.completions.create(model=DEMO_MODEL, messages=HELLO)
    with pytest.raises(openai.InternalServerError, match="the runtime went away") as gone:
        await client.chat.completions.create(model=DEMO_MODEL, messages=[{"role": "user", "content": "fail"}])
    assert gone.value.status_code == 503
    assert gone.value.response.headers["retry-after"] == "1"
    assert gone.value.response.headers["cf-aig-log-id"] == stack.records.seen[-1].id


async def test_an_error_in_the_middle_of_a_stream_is_raised(stack: Stack, client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=DEMO_MODEL, messages=[{"role": "user", "content": "break"}], stream=True
    )
    heard = []

    async def listen() -> None:
        async for chunk in stream:
            heard.append(chunk.choices[0].delta.content)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(openai.APIError, match="the runtime went away"):
        await listen()
    assert heard == ["one", " two"]
    record = stack.records.seen[-1]
    assert (record.outcome, record.status_code, record.error_code) == ("error", 503, 7010)
    assert b"[DONE]" not in record.response


async def test_the_list_of_models(client: openai.AsyncOpenAI) -> None:
    names = [model.id async for model in client.models.list()]
    assert DEMO_MODEL in names


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": HELLO}, "'model' is missing"),
        ({"model": DEMO_MODEL, "prompt": "x"}, "'messages' is missing"),
        ({"model": DEMO_MODEL, "messages": HELLO, "prompt": "x"}, "exactly one"),
        ({"model": DEMO_MODEL, "messages": HELLO, "n": 0}, "'n' must be a whole number from 1 to 8"),
        ({"model": DEMO_MODEL, "messages": HELLO, "n": 9}, "'n' must be a whole number from 1 to 8"),
        ({"model": DEMO_MODEL, "messages": HELLO, "n": 1.5}, "'n' must be a whole number from 1 to 8"),
        ({"model": DEMO_MODEL, "messages": HELLO, "top_logprobs": 3}, "'top_logprobs' needs 'logprobs' to be true"),
        ({"model": DEMO_MODEL, "messages": HELLO, "logprobs": 5}, "'logprobs' must be true or false"),
        ({"model": DEMO_MODEL, "messages": HELLO, "logprobs": [1]}, "'logprobs'"),
        ({"model": DEMO_MODEL, "messages": HELLO, "logprobs": True, "top_logprobs": 21}, "from 0 to 20"),
        ({"model": DEMO_MODEL, "messages": HELLO, "logprobs": True, "top_logprobs": -1}, "from 0 to 20"),
        ({"model": DEMO_MODEL, "messages": HELLO, "tools": [{"type": "function"}]}, "'tools[0]' must have a name"),
        ({"model": DEMO_MODEL, "messages": HELLO, "logit_bias": {"5": 1000}}, "'logit_bias'"),
        (
            {"model": DEMO_MODEL, "messages": HELLO, "response_format": {"type": "json_schema"}},
            "'response_format.json_schema'",
        ),
        ({"model": DEMO_MODEL, "messages": HELLO, "max_completion_tokens": 0}, "'max_tokens'"),
        ({"model": 5, "messages": HELLO}, "'model'"),
        ({"model": DEMO_MODEL, "messages": HELLO, "stream_options": 5}, "'stream_options'"),
    ],
)
async def test_bad_bodies(stack: Stack, body: Any, said: str) -> None:
    answer = await stack.post(CHAT, body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert answer.json()["errors"][0]["code"] == 5006
    assert stack.fake.requests == []


async def test_no_native_trailer_in_a_stream(stack: Stack) -> None:
    body = {"model": DEMO_MODEL, "messages": HELLO, "stream": True, "tool_choice": "auto", "response_format": None}
    answer = await stack.post(CHAT, body)
    chunks = events(answer.content)
    assert chunks.pop() == "[DONE]"
    assert all(chunk["object"] == "chat.completion.chunk" and "choices" in chunk for chunk in chunks)
    assert json.loads(stack.records.seen[0].request) == body
