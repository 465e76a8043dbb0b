"""Every bad body is a 4xx with the contract's code and a sentence; nothing reaches the backend; the next call works."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.gateway.stack import RUN, Stack, open_stack

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One for the whole file: nothing here leaves anything behind."""
    async with open_stack(tmp_path_factory.mktemp("stack"), settings={"server": {"max_body_bytes": 100_000}}) as opened:
        yield opened


def user(content: Any, role: Any = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content}]}


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": value}


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"items": value}
    return value


BODIES: list[tuple[Any, int, int, str]] = [
    (b"", 400, 3003, "no body"),
    (b"  \n ", 400, 3003, "no body"),
    (b"{", 400, 5006, "not valid JSON"),
    (b"hello", 400, 5006, "not valid JSON"),
    (b'{"prompt": "x"} {}', 400, 5006, "not valid JSON"),
    (b"\xef\xbb\xbf{}", 400, 5006, "not valid JSON"),
    ('{"prompt": "x"}'.encode("utf-16"), 400, 5006, "not valid JSON"),
    (b'{"prompt": "\xff"}', 400, 5006, "not valid JSON"),
    (b'{"prompt": "\\ud800"}', 400, 5006, "not valid JSON"),
    (b'{"prompt": "x", "temperature": NaN}', 400, 5006, "not valid JSON"),
    (b'{"prompt": "x", "top_p": Infinity}', 400, 5006, "not valid JSON"),
    (b'{"prompt": "x", "temperature": 1e400}', 400, 5006, "temperature"),
    (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", 400, 5006, "seed"),
    (b'{"messages": ' + b"[" * 40_000 + b"]" * 40_000 + b"}", 400, 5006, "messages"),
    (b'{"zzz": ' + b"[" * 40_000 + b"]" * 40_000 + b"}", 400, 5006, "nested too deeply"),
    (b"[]", 400, 5006, "one JSON object"),
    (b"null", 400, 5006, "one JSON object"),
    (b'"text"', 400, 5006, "one JSON object"),
    ({}, 400, 5006, "exactly one of 'prompt' and 'messages'"),
    ({"prompt": None}, 400, 5006, "exactly one of 'prompt' and 'messages'"),
    ({"prompt": "x", **user("y")}, 400, 5006, "exactly one of 'prompt' and 'messages'"),
    ({"prompt": ""}, 400, 5006, "'prompt' is empty"),
    ({"prompt": 5}, 400, 5006, "'prompt'"),
    ({"prompt": ["x"]}, 400, 5006, "'prompt'"),
    ({"messages": []}, 400, 5006, "'messages' is empty"),
    ({"messages": "hi"}, 400, 5006, "'messages'"),
    ({"messages": ["hi"]}, 400, 5006, "'messages"),
    ({"messages": [{"content": "x"}]}, 400, 5006, "role"),
    (user("x", "wizard"), 400, 5006, "must be one of system, user, assistant, tool"),
    (user("x", None), 400, 5006, "role"),
    (user(None), 400, 5006, "content"),
    (user(7), 400, 5006, "content"),
    (user([["x"]]), 400, 5006, "content"),
    (user([{"type": "image_url", "image_url": {"url": "http://x"}}]), 400, 5006, 'type "text" only'),
    (user([{"type": "text"}]), 400, 5006, 'type "text" only'),
    ({"prompt": "x", "lora": 5}, 400, 5006, "'lora'"),
    ({"prompt": "x", "lora": {"$ne": ""}}, 400, 5006, "'lora'"),
    ({"prompt": "x", "raw": "maybe"}, 400, 5006, "'raw' must be true or false"),
    ({"prompt": "x", "stream": 2}, 400, 5006, "'stream' must be true or false"),
    ({"prompt": "x", "stream": {}}, 400, 5006, "'stream'"),
    ({"prompt": "x", "stop": [""]}, 400, 5006, "'stop'"),
    ({"prompt": "x", "stop": ["a"] * 5}, 400, 5006, "'stop'"),
    ({"prompt": "x", "stop": "y" * 1000}, 400, 5006, "'stop'"),
    ({"prompt": "x", "stop": [5]}, 400, 5006, "'stop"),
    ({"prompt": "x", "tools": [{"name": "f"}]}, 400, 5006, "'tools' need 'messages' without 'raw'"),
    ({"prompt": "x", "response_format": "json"}, 400, 5006, "'response_format' must be an object with the type"),
    (
        {"prompt": "x", "response_format": {"type": "xml"}},
        400,
        5006,
        "'response_format' must be an object with the type",
    ),
    ({"prompt": "x", "response_format": {"type": "json_schema"}}, 400, 5006, "'response_format.json_schema' must be"),
    ({"prompt": "x", "response_format": schema([])}, 400, 5006, "'response_format.json_schema' must be"),
    ({"prompt": "x", "response_format": schema({"name": "n", "strict": True})}, 400, 5006, "'name' and 'schema'"),
    ({"prompt": "x", "response_format": schema(deep(65))}, 400, 5006, "nested at most 64 deep"),
    ({"prompt": "x", "response_format": schema({"title": "t" * 70_000})}, 400, 5006, "at most 65536 bytes"),
    (
        b'{"prompt": "x", "response_format": {"a": ' + b"[" * 9_000 + b"]" * 9_000 + b"}}",
        400,
        5006,
        "nested too deeply",
    ),
    ({"prompt": "x", "n": 2}, 400, 5006, "'n' must be 1"),
    ({"prompt": "x", "n": 0}, 400, 5006, "'n' must be a whole number from 1 to 8"),
    ({"prompt": "x", "best_of": 2}, 400, 5006, "'best_of' must be 1"),
    ({"prompt": "x", "logprobs": True}, 400, 5006, "'logprobs' is not supported"),
    ({"prompt": "x", "logit_bias": [5]}, 400, 5006, "'logit_bias' must map"),
    ({"prompt": "x", "logit_bias": {"5": 101}}, 400, 5006, "the value of 5"),
    ({"prompt": "x", "logit_bias": {"5": True}}, 400, 5006, "the value of 5"),
    ({"prompt": "x", "logit_bias": {"5": "1"}}, 400, 5006, "the value of 5"),
    ({"prompt": "x", "logit_bias": {"-5": 1}}, 400, 5006, "not a token id"),
    ({"prompt": "x", "logit_bias": {"five": 1}}, 400, 5006, "not a token id"),
    ({"prompt": "x", "logit_bias": {"\u0665": 1}}, 400, 5006, "not a token id"),
    ({"prompt": "x", "logit_bias": {"9" * 4000: 1}}, 400, 5006, "not a token id"),
    ({"prompt": "x", "logit_bias": {str(n): 1 for n in range(301)}}, 400, 5006, "at most 300"),
    (b'{"prompt": "x", "logit_bias": ' + b"[" * 9_000 + b"]" * 9_000 + b"}", 400, 5006, "nested too deeply"),
    ({"prompt": "x", "stop_token_ids": 5}, 400, 5006, "'stop_token_ids'"),
    ({"prompt": "x", "stop_token_ids": [-1]}, 400, 5006, "'stop_token_ids'"),
    ({"prompt": "x", "stop_token_ids": [True]}, 400, 5006, "'stop_token_ids'"),
    ({"prompt": "x", "stop_token_ids": [2**31]}, 400, 5006, "'stop_token_ids'"),
    ({"prompt": "x", "stop_token_ids": list(range(65))}, 400, 5006, "at most 64"),
    ({"prompt": "x", "ignore_eos": "maybe"}, 400, 5006, "'ignore_eos' must be true or false"),
    ({"requests": [{"prompt": "x"}]}, 400, 5006, "'requests'"),
    ({"prompt": "x", "max_tokens": 10**9}, 413, 5021, "context window"),
    ({"prompt": "x " * 2000}, 413, 5021, "context window"),
    ({"prompt": "x" * 100_001}, 413, 3006, "limit of 100000 bytes"),
]
OUT_OF_RANGE: dict[str, list[Any]] = {
    "max_tokens": [0, -1, 1.5, "256", True, 2**63, 10**30],
    "temperature": [-0.1, 5.1, "0.5", True],
    "top_p": [0, 0.0009, 1.1, "1"],
    "top_k": [0, 51, 2.5, 10**9],
    "seed": [0, -1, 10_000_000_000, 1.5, 2**63],
    "repetition_penalty": [-0.1, 2.1],
    "frequency_penalty": [-2.1, 2.1],
    "presence_penalty": [-2.1, 2.1, [1]],
    "min_p": [-0.01, 1.01, "0.1", True],
    "priority": [-101, 101, 0.5, "1", True, 2**70],
}
IN_RANGE: dict[str, list[Any]] = {
    "max_tokens": [1, 1000],
    "temperature": [0, 5, 0.0],
    "top_p": [0.001, 1],
    "top_k": [1, 50],
    "seed": [1, 9_999_999_999],
    "repetition_penalty": [0, 2],
    "frequency_penalty": [-2, 2],
    "presence_penalty": [-2, 2],
    "min_p": [0, 1],
    "priority": [-100, 0, 100, 5.0, None],
    "service_tier": ["auto", "flex", "priority", "unheard of", 7, {"a": []}, None],
    "logit_bias": [{}, {"0": -100, "7": 100.0}, {str(n): -100 for n in range(300)}, None],
    "stop_token_ids": [[], [0], list(range(64)), None],
    "ignore_eos": [True, "true", False, None],
}


@pytest.mark.parametrize(("body", "status", "code", "said"), BODIES)
async def test_a_bad_body(stack: Stack, body: Any, status: int, code: int, said: str) -> None:
    reached = len(stack.fake.requests)
    answer = await stack.post(RUN, body)
    error = answer.json()["errors"][0]
    assert (answer.status_code, error["code"]) == (status, code), answer.text
    assert said in error["message"]
    assert answer.json()["success"] is False
    assert answer.json()["result"] == {}
    assert answer.headers["cf-aig-log-id"] == stack.records.seen[-1].id
    assert len(stack.fake.requests) == reached
    assert (await stack.post(RUN, {"prompt": "x"})).status_code == 200


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OUT_OF_RANGE.items() for value in values]
)
async def test_numbers_out_of_range(stack: Stack, name: str, value: Any) -> None:
    answer = await stack.post(RUN, {"prompt": "x", name: value})
    error = answer.json()["errors"][0]
    assert (answer.status_code, error["code"]) == (400, 5006), answer.text
    assert f"'{name}'" in error["message"]
    assert error["source"] == {"pointer": f"/{name}"}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in IN_RANGE.items() for value in values])
async def test_values_at_the_edge_of_their_range(stack: Stack, name: str, value: Any) -> None:
    answer = await stack.post(RUN, {"prompt": "x", name: value})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "query", ["top_k=99", "temperature=hot", "stream=maybe", "max_tokens=007", "seed=1e3", "top_k="]
)
async def test_bad_settings_in_the_query(stack: Stack, query: str) -> None:
    answer = await stack.post(f"{RUN}?{query}", {"prompt": "x"})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, 5006)


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("@cf/nobody/nothing", 400, 5007),
        ("@cf/mistral/mistral-7b-instruct-v0.2-lora", 400, 5007),
        ("@cf%252Florikeet%252Fdemo-lora", 404, 3042),
        ("x" * 5000, 404, 3042),
        ("@cf/a b/c", 404, 3042),
        ("dynamic/cheapest", 404, 7000),
        ("a%0Ab%1b[31m", 404, 7000),
        ("@cf/../../etc", 404, 7000),
        ("@cf/%00", 404, 7000),
    ],
)
async def test_unknown_models(stack: Stack, model: str, status: int, code: int) -> None:
    answer = await stack.client.post(
        stack.url("/ai/run/") + model, content=json.dumps({"prompt": "x"}), follow_redirects=False
    )
    error = answer.json()["errors"][0]
    assert (answer.status_code, error["code"]) == (status, code), answer.text
    assert "\n" not in error["message"]
    assert "\x1b" not in error["message"]
    assert len(error["message"]) < 600


async def test_a_model_without_weights_says_what_to_set(stack: Stack) -> None:
    answer = await stack.post("/ai/run/@cf/mistralai/mistral-7b-instruct-v0.2-lora", {"prompt": "x"})
    message = answer.json()["errors"][0]["message"]
    assert '[models."@cf/mistral/mistral-7b-instruct-v0.2-lora"]' in message


async def test_a_compressed_body_is_refused(stack: Stack) -> None:
    answer = await stack.post(RUN, b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert answer.status_code == 400
    assert "compressed" in answer.json()["errors"][0]["message"]


async def test_a_large_body_is_refused_before_it_is_all_there(stack: Stack) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 50_000_000:
            sent += 10_000
            yield b" " * 10_000

    answer = await stack.client.post(stack.url(RUN), content=endless())
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (413, 3006)
    assert sent <= 120_000
    assert answer.headers["connection"] == "close"
