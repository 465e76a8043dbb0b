"""What OpenAI's own client gets from a real model over a real socket: log-probabilities, several choices, biases."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from gateway.backends.fake import FakeBackend
from gateway.backends.runtime import RuntimeBackend
from gateway.demo import BASE_FOLDER
from gateway.messages import Message
from gateway.settings import DEMO_MODEL
from gateway.text.tokenizer import Tokenizer
from runtime.client import RuntimeClient
from tests.gateway.backends.runtime_process import TOKEN, runtime_process
from tests.gateway.stack import CHAT, Stack, events, open_stack

torch.set_num_threads(1)
DEMO = Tokenizer.from_folder(BASE_FOLDER)
QUESTION = "Which hall opens at noon and closes last?"
ASK: Any = {"model": DEMO_MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}


@pytest.fixture(scope="module")
def socket_path() -> Iterator[Path]:
    with runtime_process() as path:
        yield path


@pytest.fixture
async def runtime(socket_path: Path) -> AsyncIterator[RuntimeClient]:
    async with RuntimeClient(socket_path=socket_path, token=TOKEN, gateway_id="g", ping_interval_s=0.02) as client:
        await client.wait_ready(10)
        yield client


@pytest.fixture
async def stack(tmp_path: Path, runtime: RuntimeClient) -> AsyncIterator[Stack]:
    backend = RuntimeBackend(runtime, DEMO, context_window=512, restart_wait_s=5.0, request_timeout_s=30.0)
    async with open_stack(tmp_path, backends={DEMO_MODEL: backend}) as opened:
        yield opened


async def idle(runtime: RuntimeClient) -> None:
    deadline = time.monotonic() + 20
    while (stats := runtime.stats) is None or stats.running or stats.waiting:
        assert time.monotonic() < deadline, stats
        await asyncio.sleep(0.02)


async def streamed(client: openai.AsyncOpenAI, **more: Any) -> list[Any]:
    stream: Any = await client.chat.completions.create(
        **{**ASK, **more}, stream=True, stream_options={"include_usage": True}
    )
    return [chunk async for chunk in stream]


async def test_log_probabilities_are_those_of_transformers(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**ASK, logprobs=True, top_logprobs=3)
    choice = answer.choices[0]
    assert choice.logprobs is not None
    content = choice.logprobs.content
    assert content
    assert "".join(token.token for token in content) == choice.message.content
    assert bytes(byte for token in content for byte in token.bytes or ()) == (choice.message.content or "").encode()
    prompt = DEMO.encode_messages([Message("user", QUESTION)])
    said = DEMO.encode_text(choice.message.content or "")
    assert len(said) == len(content)
    model = AutoModelForCausalLM.from_pretrained(BASE_FOLDER, dtype=torch.float32).eval()
    with torch.no_grad():
        shares = model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    for token_id, token, line in zip(said, content, shares, strict=True):
        # The runtime computes in its own dtype; the model was trained in fp32.
        assert token.logprob == pytest.approx(float(line[token_id]), abs=0.02)
        values, _ = line.topk(3)
        assert [other.logprob for other in token.top_logprobs] == pytest.approx(values.tolist(), abs=0.05, rel=0.02)


async def test_a_stream_has_the_same_log_probabilities(stack: Stack, client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(**ASK, logprobs=True, top_logprobs=2)
    chunks = await streamed(client, logprobs=True, top_logprobs=2)
    assert whole.choices[0].logprobs is not None
    said = [c.choices[0] for c in chunks if c.choices]
    assert [token for one in said if one.logprobs for token in one.logprobs.content] == whole.choices[
        0
    ].logprobs.content
    for one in said:
        if one.logprobs:
            assert "".join(token.token for token in one.logprobs.content) == one.delta.content
    assert said[-1].finish_reason == "stop"
    plain = await streamed(client)
    assert all(c.choices[0].logprobs is None for c in plain if c.choices)
    assert stack.records.seen[0].response.count(b'"top_logprobs"') == len(whole.choices[0].logprobs.content or ())


@pytest.mark.parametrize("stream", [False, True])
async def test_three_choices(stack: Stack, client: openai.AsyncOpenAI, stream: bool) -> None:
    wish: Any = {"n": 3, "temperature": 5, "seed": 11, "max_tokens": 8, "logprobs": True}
    one = await client.chat.completions.create(**{**ASK, **wish, "n": 1})
    assert one.usage is not None
    if stream:
        chunks = await streamed(client, **wish)
        texts, ends, scores = ["", "", ""], [0, 0, 0], ["", "", ""]
        roles = []
        for choice in (choice for chunk in chunks for choice in chunk.choices):
            assert not ends[choice.index]
            roles += [choice.index] * (choice.delta.role is not None)
            texts[choice.index] += choice.delta.content or ""
            scores[choice.index] += "".join(t.token for t in choice.logprobs.content) if choice.logprobs else ""
            ends[choice.index] += choice.finish_reason is not None
        assert (ends, sorted(roles)) == ([1, 1, 1], [0, 1, 2])
        assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        usage = chunks[-1].usage
    else:
        whole = await client.chat.completions.create(**{**ASK, **wish})
        assert [choice.index for choice in whole.choices] == [0, 1, 2]
        assert all(choice.finish_reason in ("stop", "length") for choice in whole.choices)
        texts = [choice.message.content or "" for choice in whole.choices]
        scores = ["".join(t.token for t in (c.logprobs and c.logprobs.content) or ()) for c in whole.choices]
        usage = whole.usage
    assert texts[0] == one.choices[0].message.content
    assert len(set(texts)) == 3
    assert scores == texts
    assert usage.prompt_tokens == one.usage.prompt_tokens
    assert one.usage.completion_tokens < usage.completion_tokens <= 24
    record = stack.records.seen[-1]
    assert (record.tokens_in, record.tokens_out, record.streamed) == (
        usage.prompt_tokens,
        usage.completion_tokens,
        stream,
    )
    said = [
        choice
        for event in (events(record.response) if stream else [json.loads(record.response)])
        if event != "[DONE]"
        for choice in event["choices"]
    ]
    logged = ["", "", ""]
    for choice in said:
        logged[choice["index"]] += (choice.get("delta") or choice.get("message") or {}).get("content") or ""
    assert logged == texts


async def test_max_tokens_is_exact_for_every_choice(client: openai.AsyncOpenAI) -> None:
    for limit in (1, 2, 7):
        more: Any = {"n": 2, "max_completion_tokens": limit, "extra_body": {"ignore_eos": True}}
        answer = await client.chat.completions.create(**ASK, **more)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 2 * limit
        assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]


async def test_a_bias_bans_and_forces(client: openai.AsyncOpenAI) -> None:
    async def text(**more: Any) -> str:
        return (await client.chat.completions.create(**ASK, **more)).choices[0].message.content or ""

    plain = await text()
    first = DEMO.encode_text(plain)[0]
    assert not (await text(logit_bias={str(first): -100})).startswith(DEMO.encoder.decode([first]))
    assert await text(logit_bias={"300": 100}, max_tokens=4) == DEMO.encoder.decode([300] * 4)
    with pytest.raises(openai.BadRequestError, match="names token 1024; the model's token ids are 0 to 1023") as bad:
        await text(logit_bias={"1024": 1})
    assert (bad.value.code, bad.value.param) == ("5006", "logit_bias")


async def test_a_caller_who_leaves_ends_all_choices(
    stack: Stack, client: openai.AsyncOpenAI, runtime: RuntimeClient
) -> None:
    more: Any = {"n": 8, "max_tokens": 400, "extra_body": {"ignore_eos": True}}
    stream: Any = await client.chat.completions.create(**ASK, **more, stream=True)
    seen = set()
    async for chunk in stream:
        seen.add(chunk.choices[0].index)
        if len(seen) == 3:
            break
    await stream.close()
    record = await stack.records.until(1)
    assert record.outcome == "client_abort"
    assert record.response.count(b'"index":') >= 3
    await idle(runtime)
    assert not runtime._streams


async def test_many_log_probabilities_are_written_off_the_loop(tmp_path: Path) -> None:
    words = [f" w{number}" for number in range(1500)]
    async with open_stack(tmp_path, FakeBackend(lambda _: words, context_window=4000)) as stack:
        body = {**ASK, "logprobs": True, "top_logprobs": 1, "max_tokens": 3000}
        choice = (await stack.post(CHAT, body)).json()["choices"][0]
        assert [token["token"] for token in choice["logprobs"]["content"]] == words
        assert choice["message"]["content"] == "".join(words)
