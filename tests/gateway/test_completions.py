"""`/ai/v1/completions`, by OpenAI's own client: a prompt is continued as it stands."""

from typing import Any

import openai
import pytest

from gateway.settings import DEMO_MODEL
from tests.gateway.stack import Stack, events

PATH = "/ai/v1/completions"


async def test_a_prompt_is_continued_without_a_template(stack: Stack, client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model=DEMO_MODEL, prompt="which hall opens", max_tokens=2, seed=-1)
    assert (answer.object, answer.choices[0].text, answer.choices[0].finish_reason) == (
        "text_completion", "which hall", "length",
    )  # fmt: skip
    assert answer.usage is not None
    assert answer.usage.total_tokens == 5
    assert stack.fake.requests[0].request.raw
    await client.completions.create(model=DEMO_MODEL, prompt="x", extra_body={"raw": False})
    assert not stack.fake.requests[1].request.raw


async def test_a_stream_with_usage_and_several_answers(client: openai.AsyncOpenAI) -> None:
    stream: Any = await client.completions.create(
        model=DEMO_MODEL, prompt="a b", n=2, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    for index in (0, 1):
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(choice.text for choice in own) == "a b"
        assert [choice.finish_reason for choice in own if choice.finish_reason] == ["stop"]
    assert chunks[-1].choices == []
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == [6]


async def test_logprobs_are_parallel_lists(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model=DEMO_MODEL, prompt="ab cd", logprobs=1)
    scores = answer.choices[0].logprobs
    assert scores is not None
    assert scores.tokens == ["ab", " cd"]
    assert scores.text_offset == [0, 2]
    assert scores.top_logprobs == [{"ab": 0.0}, {" cd": 0.0}]


async def test_lora_is_honoured_in_body_and_query(stack: Stack) -> None:
    for path, body in ((PATH, {"lora": "nobody"}), (PATH + "?lora=nobody", {})):
        answer = await stack.post(path, {"model": DEMO_MODEL, "prompt": "x", **body})
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, 3037)
        assert "Finetune nobody not found" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "x"}, "model"),
        ({"model": DEMO_MODEL}, "prompt"),
        ({"model": DEMO_MODEL, "prompt": ""}, "prompt"),
        ({"model": DEMO_MODEL, "prompt": ["a", "b"]}, "prompt"),
        ({"model": DEMO_MODEL, "prompt": []}, "prompt"),
        ({"model": DEMO_MODEL, "prompt": [""]}, "prompt"),
        ({"model": DEMO_MODEL, "prompt": [1, 2]}, "prompt"),
        ({"model": DEMO_MODEL, "prompt": "x", "messages": []}, "messages"),
        ({"model": DEMO_MODEL, "prompt": "x", "echo": True}, "echo"),
        ({"model": DEMO_MODEL, "prompt": "x", "suffix": "y"}, "suffix"),
        ({"model": DEMO_MODEL, "prompt": "x", "logprobs": 6}, "logprobs"),
        ({"model": DEMO_MODEL, "prompt": "x", "best_of": 3}, "best_of"),
        ({"model": DEMO_MODEL, "prompt": "x", "max_tokens": "5"}, "max_tokens"),
    ],
)
async def test_bad_bodies(stack: Stack, body: Any, param: str) -> None:
    answer = await stack.post(PATH, body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, "5006", "invalid_request_error")
    assert f"'{param}" in error["message"]
    assert stack.fake.requests == []


async def test_a_list_of_one_prompt_is_that_prompt(stack: Stack, client: openai.AsyncOpenAI) -> None:
    """LangChain's completions send nothing else."""
    await client.completions.create(model=DEMO_MODEL, prompt=["which hall opens"])
    assert [asked.request.prompt for asked in stack.fake.requests] == ["which hall opens"]


async def test_the_stream_ends_with_done(stack: Stack) -> None:
    answer = await stack.post(PATH, {"model": DEMO_MODEL, "prompt": "x", "stream": True})
    assert events(answer.content)[-1] == "[DONE]"
    assert stack.records.seen[0].response == answer.content
