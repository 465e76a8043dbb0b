"""Embeddings and reranking over HTTP, on real encoders' processes with random weights: shapes, orders, errors, logs."""

import asyncio
import base64
import contextlib
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
import torch
from torch.nn import functional

from gateway.settings import DEMO_MODEL, SettingsError
from runtime.encoder.config import Task
from tests.gateway.stack import Stack, open_stack, serve
from tests.gateway.told import check_told
from tests.runtime.encoder.child import TOKEN, encoder_child
from tests.runtime.encoder.folders import WORDS, write_encoder

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
BGE, M3, RERANKER = "@cf/baai/bge-base-en-v1.5", "@cf/baai/bge-m3", "@cf/baai/bge-reranker-base"
TASKS: dict[str, tuple[str, Task]] = {
    BGE: ("bert", "embed"),
    M3: ("xlm-roberta", "embed"),
    RERANKER: ("xlm-roberta", "rank"),
}
V1 = "/ai/v1/embeddings"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Stack, dict[str, Any]]]:
    """The gateway with three encoders, and transformers' own models of them."""
    folder = tmp_path_factory.mktemp("encoders")
    theirs, sockets, settings = {}, {}, {}
    async with contextlib.AsyncExitStack() as stack:
        for index, (name, (kind, task)) in enumerate(TASKS.items()):
            own = folder / str(index)
            theirs[name] = write_encoder(own, kind, task)
            _, sockets[name] = await stack.enter_async_context(encoder_child(own, name, task))
            settings[name] = {"path": str(own)}
        opened = open_stack(folder, settings={"encoders": settings}, encoder_sockets=sockets, runtime_token=TOKEN)
        yield await stack.enter_async_context(opened), theirs


@pytest.fixture
def stack(world: tuple[Stack, dict[str, Any]]) -> Stack:
    return world[0]


def ids_of(text: str) -> list[int]:
    return [2, *(WORDS.index(word) + 4 for word in text.split()), 3]


def wanted(model: Any, text: str, pooling: str) -> torch.Tensor:
    with torch.inference_mode():
        hidden = model(input_ids=torch.tensor([ids_of(text)])).last_hidden_state[0]
    return functional.normalize(hidden.mean(0) if pooling == "mean" else hidden[0], dim=-1)


@pytest.mark.parametrize(("name", "default"), [(BGE, "mean"), (M3, "cls")])
async def test_native_embeddings(world: tuple[Stack, dict[str, Any]], name: str, default: str) -> None:
    stack, theirs = world
    texts = ["which hall opens", "the tide"]
    for asked, pooling in (({}, default), ({"pooling": "mean"}, "mean"), ({"pooling": "cls"}, "cls")):
        answer = await stack.post(f"/ai/run/{name}", {"text": texts, **asked})
        assert answer.status_code == 200, answer.text
        result = answer.json()["result"]
        assert (result["shape"], result["pooling"]) == ([2, 32], pooling)
        for vector, text in zip(result["data"], texts, strict=True):
            torch.testing.assert_close(torch.tensor(vector), wanted(theirs[name], text, pooling), atol=2e-5, rtol=1e-4)
        assert result["usage"] == {"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9}
    check_told("/ai/run/{model}", {"text": texts}, answer.json())
    wrapped = {"model": name, "input": {"text": texts}}
    named = await stack.post("/ai/run", wrapped)
    assert (
        named.json()["result"]["data"]
        == (await stack.post(f"/ai/run/{name}", {"text": texts})).json()["result"]["data"]
    )
    check_told("/ai/run", wrapped, named.json())
    one = (await stack.post(f"/ai/run/{name}", {"text": texts[0]})).json()["result"]
    assert one["shape"] == [1, 32]


async def test_an_exchange_is_logged(stack: Stack) -> None:
    answer = await stack.post(f"/ai/run/{BGE}", {"text": "the tide"}, headers={"cf-aig-metadata": '{"a": 1}'})
    record = stack.records.seen[-1]
    assert record.id == answer.headers["cf-aig-log-id"]
    assert (record.model, record.outcome, record.status_code, record.tokens_in) == (BGE, "stop", 200, 4)
    assert (record.response, record.metadata) == (answer.content, {"a": 1})
    refused = await stack.post(f"/ai/run/{BGE}", {"text": []})
    assert stack.records.seen[-1].id == refused.headers["cf-aig-log-id"]
    assert (stack.records.seen[-1].outcome, stack.records.seen[-1].error_code) == ("error", 5006)


async def test_openais_client_asks_for_base64_and_gets_numbers(world: tuple[Stack, dict[str, Any]]) -> None:
    stack, theirs = world
    async with (
        serve(stack.app) as url,
        openai.AsyncOpenAI(base_url=url + stack.url("/ai/v1"), api_key=stack.secret, max_retries=0) as client,
    ):
        answer = await client.embeddings.create(model=BGE, input=["which hall", "the tide"])
        plain = await client.embeddings.create(model=BGE, input="which hall", encoding_format="float")
        names = [model.id async for model in client.models.list()]
        with pytest.raises(openai.BadRequestError, match="makes no embeddings"):
            await client.embeddings.create(model=DEMO_MODEL, input="x")
        with pytest.raises(openai.BadRequestError, match="'dimensions' must be 32"):
            await client.embeddings.create(model=BGE, input="x", dimensions=8)
    torch.testing.assert_close(torch.tensor(answer.data[0].embedding), wanted(theirs[BGE], "which hall", "mean"),
                               atol=2e-5, rtol=1e-4)  # fmt: skip
    assert [row.index for row in answer.data] == [0, 1]
    assert plain.data[0].embedding == pytest.approx(answer.data[0].embedding)
    assert answer.usage.total_tokens == 8
    assert {BGE, M3, RERANKER} <= set(names)
    raw = (await stack.post(V1, {"model": BGE, "input": "which hall", "encoding_format": "base64"})).json()
    told = struct.unpack("<32f", base64.b64decode(raw["data"][0]["embedding"]))
    assert list(told) == pytest.approx(answer.data[0].embedding)
    check_told("/ai/v1/embeddings", {"model": BGE, "input": "which hall", "encoding_format": "base64"}, raw)


async def test_ranking(world: tuple[Stack, dict[str, Any]]) -> None:
    stack, theirs = world
    contexts = ["the tide is high", "which hall", "salt wool salt"]
    with torch.inference_mode():
        scores = [
            float(
                torch.sigmoid(theirs[RERANKER](input_ids=torch.tensor([ids_of("noon") + ids_of(c)[1:]])).logits[0, 0])
            )
            for c in contexts
        ]
    body = {"query": "noon", "contexts": [{"text": text} for text in contexts]}
    said = (await stack.post(f"/ai/run/{RERANKER}", body)).json()["result"]["response"]
    order = sorted(range(3), key=lambda index: -scores[index])
    assert [row["id"] for row in said] == order
    assert [row["score"] for row in said] == pytest.approx([scores[index] for index in order], abs=2e-5)
    check_told("/ai/run/{model}", body, (await stack.post(f"/ai/run/{RERANKER}", body)).json())
    best = (await stack.post(f"/ai/run/{RERANKER}", {**body, "top_k": 1})).json()["result"]["response"]
    assert best == said[:1]


async def test_many_callers_share_batches_and_keep_their_own_answers(stack: Stack) -> None:
    texts = [" ".join(["tide"] * (1 + n % 7) + ["hall"]) for n in range(40)]
    answers = await asyncio.gather(*(stack.post(f"/ai/run/{BGE}", {"text": text}) for text in texts))
    alone = {text: (await stack.post(f"/ai/run/{BGE}", {"text": text})).json()["result"]["data"][0] for text in texts}
    for text, answer in zip(texts, answers, strict=True):
        assert answer.json()["result"]["data"][0] == pytest.approx(alone[text], abs=1e-5)


async def test_long_texts_are_cut_and_words_are_no_control_tokens(stack: Stack) -> None:
    long = (await stack.post(f"/ai/run/{BGE}", {"text": "tide " * 500})).json()["result"]
    assert long["usage"]["prompt_tokens"] == 40
    sep = (await stack.post(f"/ai/run/{BGE}", {"text": "[SEP]"})).json()["result"]
    assert sep["usage"]["prompt_tokens"] > 3  # an unknown word or several, not one separator


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "said"),
    [
        (f"/ai/run/{BGE}", b"", 400, 3003, "no body"),
        ("/ai/run", {"model": BGE, "input": {}}, 400, 5006, "'text'"),
        ("/ai/run", {"model": BGE}, 400, 5006, "field input"),
        ("/ai/run", {"model": BGE, "input": {"text": "a", "lora": "x"}}, 405, 5005, "LoRA"),
        (f"/ai/run/{BGE}", {}, 400, 5006, "'text'"),
        (f"/ai/run/{BGE}", {"text": ["a", ""]}, 400, 5006, "'text'"),
        (f"/ai/run/{BGE}", {"text": ["a"] * 101}, 400, 5006, "1 to 100"),
        (f"/ai/run/{BGE}", {"text": 5}, 400, 5006, "'text'"),
        (f"/ai/run/{BGE}", {"text": "a", "pooling": "max"}, 400, 5006, "'pooling'"),
        (f"/ai/run/{BGE}", {"text": "a", "lora": "x"}, 405, 5005, "do not support LoRA"),
        (f"/ai/run/{BGE}?queueRequest=true", {"requests": [{"text": "a"}]}, 400, 5006, "'text'"),
        (f"/ai/run/{BGE}?lora=x", {"text": "a"}, 405, 5005, "do not support LoRA"),
        (f"/ai/run/{RERANKER}", {"contexts": [{"text": "a"}]}, 400, 5006, "'query'"),
        (f"/ai/run/{RERANKER}", {"query": "a", "contexts": []}, 400, 5006, "'contexts'"),
        (f"/ai/run/{RERANKER}", {"query": "a", "contexts": [{"text": ""}]}, 400, 5006, "'contexts'"),
        (f"/ai/run/{RERANKER}", {"query": "a", "contexts": [{"text": "b"}], "top_k": 0}, 400, 5006, "'top_k'"),
        ("/ai/run/@cf/baai/bge-large-en-v1.5", {"text": "a"}, 400, 5007, '[encoders."@cf/baai/bge-large-en-v1.5"]'),
        (V1, {"input": "a"}, 400, 5006, "'model' is missing"),
        (V1, {"model": BGE}, 400, 5006, "'input'"),
        (V1, {"model": BGE, "input": [[1, 2]]}, 400, 5006, "'input"),
        (V1, {"model": BGE, "input": "a", "encoding_format": "int8"}, 400, 5006, "'encoding_format'"),
        (V1, {"model": RERANKER, "input": "a"}, 400, 5006, "ranks texts"),
        (V1, {"model": "@cf/no/where", "input": "a"}, 400, 5007, "No such model"),
        (V1, {"model": BGE, "input": "a", "lora": "x"}, 405, 5005, "do not support LoRA"),
        (
            "/ai/v1/chat/completions",
            {"model": BGE, "messages": [{"role": "user", "content": "x"}]},
            400,
            5007,
            "No such",
        ),
    ],
)
async def test_bad_bodies(stack: Stack, path: str, body: Any, status: int, code: int, said: str) -> None:
    answer = await stack.post(path, body)
    error = answer.json()["errors"][0]
    assert (answer.status_code, error["code"]) == (status, code), answer.text
    assert said in error["message"]
    assert ("error" in answer.json()) is ("/ai/v1/" in path)


async def test_the_catalogue_lists_them(stack: Stack) -> None:
    listed = (await stack.client.get(stack.url("/ai/models/search?task=Text%20Embeddings"))).json()["result"]
    properties = {row["name"]: {p["property_id"]: p["value"] for p in row["properties"]} for row in listed}
    assert properties[BGE] == {"max_input_tokens": "40", "output_dimensions": "32", "served": "true"}
    assert "served" not in properties["@cf/baai/bge-large-en-v1.5"]
    schema = (await stack.client.get(stack.url(f"/ai/models/schema?model={RERANKER}"))).json()["result"]
    assert schema["input"]["required"] == ["query", "contexts"]


async def test_an_encoder_that_went_away(tmp_path: Path) -> None:
    write_encoder(tmp_path, "bert")
    settings = {"encoders": {BGE: {"path": str(tmp_path)}}, "runtime": {"restart_wait_s": 0.05}}
    async with contextlib.AsyncExitStack() as down:
        _, path = await down.enter_async_context(encoder_child(tmp_path, BGE))
        async with open_stack(tmp_path, settings=settings, encoder_sockets={BGE: path}, runtime_token=TOKEN) as stack:
            assert (await stack.post(f"/ai/run/{BGE}", {"text": "a"})).status_code == 200
            await down.aclose()
            gone = await stack.post(f"/ai/run/{BGE}", {"text": "a"})
            assert (gone.status_code, gone.json()["errors"][0]["code"]) == (503, 7010)
            assert (await stack.client.get("/readyz")).status_code == 503
            async with encoder_child(tmp_path, BGE):
                async with asyncio.timeout(20):
                    while (await stack.post(f"/ai/run/{BGE}", {"text": "a"})).status_code != 200:
                        await asyncio.sleep(0.01)


async def test_folders_that_are_none_stop_the_start(tmp_path: Path) -> None:
    for name, given, said in (
        (BGE, {"path": str(tmp_path)}, "does not describe an encoder"),
        ("@cf/ours/thing", {"path": str(tmp_path)}, 'say "embed" or "rank"'),
    ):
        with pytest.raises(SettingsError, match=said):
            async with open_stack(tmp_path, settings={"encoders": {name: given}}):
                pass
