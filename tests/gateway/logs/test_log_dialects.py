"""Every dialect leaves the same kind of log: model, tokens, both bodies, and a line of training data where it talks."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import DEMO_MODEL
from tests.gateway.stack import RUN, Stack, open_stack
from tests.runtime.encoder.child import TOKEN, encoder_child
from tests.runtime.encoder.folders import write_encoder

LOGS = "/ai-gateway/gateways/default/logs"
BGE = "@cf/baai/bge-base-en-v1.5"
TALK: Any = [{"role": "user", "content": "which hall"}]
TURNS = [{"role": "user", "content": "which hall"}, {"role": "assistant", "content": "which hall"}]
SYSTEM = {"role": "system", "content": "be brief"}
# path -> (body, the turns that its line has)
CALLS: dict[str, tuple[dict[str, Any], list[dict[str, str]]]] = {
    RUN: ({"prompt": "which hall"}, TURNS),
    "/ai/run": ({"model": DEMO_MODEL, "input": {"messages": TALK}}, TURNS),
    "/ai/v1/chat/completions": ({"model": DEMO_MODEL, "messages": TALK}, TURNS),
    "/ai/v1/completions": ({"model": DEMO_MODEL, "prompt": "which hall"}, TURNS),
    "/ai/v1/messages": ({"model": DEMO_MODEL, "system": "be brief", "messages": TALK, "max_tokens": 9},
                        [SYSTEM, *TURNS]),
    "/ai/v1/responses": ({"model": DEMO_MODEL, "instructions": "be brief", "input": "which hall"}, [SYSTEM, *TURNS]),
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", CALLS)
async def test_a_log_and_its_line(stack: Stack, path: str, stream: bool) -> None:
    body, turns = CALLS[path]
    body = {**body, "input": {**body["input"], "stream": stream}} if path == "/ai/run" else {**body, "stream": stream}
    answer = await stack.post(path, body)
    assert answer.status_code == 200, answer.text
    one = f"{LOGS}/{answer.headers['cf-aig-log-id']}"
    log = (await stack.client.get(stack.url(one))).json()["result"]
    told = {name: log[name] for name in ("model", "path", "streamed", "success", "status_code", "tokens_out")}
    assert told == {
        "model": DEMO_MODEL, "path": path[1:], "streamed": stream, "success": True, "status_code": 200, "tokens_out": 2,
    }  # fmt: skip
    assert log["tokens_in"] == (4 if SYSTEM in turns else 2)
    assert json.loads((await stack.client.get(stack.url(one + "/request"))).content) == body
    assert (await stack.client.get(stack.url(one + "/response"))).content == answer.content
    lines = (await stack.client.get(stack.url(LOGS + "/export"))).text.splitlines()
    assert [json.loads(line)["messages"] for line in lines] == [turns]


async def test_vectors_are_logged_and_give_no_line(tmp_path: Path) -> None:
    write_encoder(tmp_path, "bert")
    async with (
        encoder_child(tmp_path, BGE) as (_, path),
        open_stack(
            tmp_path, settings={"encoders": {BGE: {"path": str(tmp_path)}}}, encoder_sockets={BGE: path},
            runtime_token=TOKEN,
        ) as stack,
    ):  # fmt: skip
        for call, body in ((f"/ai/run/{BGE}", {"text": "the tide"}),
                           ("/ai/v1/embeddings", {"model": BGE, "input": "the tide"})):  # fmt: skip
            answer = await stack.post(call, body)
            assert answer.status_code == 200, answer.text
            one = f"{LOGS}/{answer.headers['cf-aig-log-id']}"
            log = (await stack.client.get(stack.url(one))).json()["result"]
            assert (log["model"], log["path"], log["tokens_in"], log["tokens_out"]) == (BGE, call[1:], 4, 0)
            assert json.loads((await stack.client.get(stack.url(one + "/request"))).content) == body
            assert (await stack.client.get(stack.url(one + "/response"))).content == answer.content
        assert (await stack.client.get(stack.url(LOGS + "/export"))).text == ""
        assert stack.services.logs.counters.export_skipped == 2
