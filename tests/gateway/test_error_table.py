"""The contract's tables of errors, row by row over HTTP: status, code, and a sentence that says what to change.

A code is either provoked here or named, with the reason, in docs/compatibility.md: none is in both, none in neither.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from gateway import errors
from gateway.backends.fake import FakeBackend
from gateway.errors import LorikeetError, OverCapacity
from gateway.messages import ResolvedRequest
from gateway.settings import DEMO_MODEL
from tests.gateway.stack import CHAT, RUN, Stack, open_stack
from tests.gateway.tiny_adapters import write_base

# Of sections 2.1 and 2.2; the gateway host's codes are another table.
CONTRACT = {
    7000, 7001, 7003, 10000, 9106, 9109, 1000, 1031,
    5007, 5004, 3039, 3003, 5018, 3041, 5016, 3023, 5035, 5019, 5005, 3042, 3006, 3007, 3008, 3036, 3040, 3037, 5006,
    5021, 4006, 3021, 3046, 8007,
}  # fmt: skip
DOCS = Path(__file__).parents[2] / "docs" / "compatibility.md"
NO_LORA = "@cf/tiny/no-lora"
Call = Callable[[Stack], Awaitable[httpx.Response]]
pytestmark = pytest.mark.asyncio(loop_scope="module")


def script(request: ResolvedRequest) -> list[Any]:
    text = request.request.prompt or (request.request.messages or ())[-1].content
    if text == "busy":
        return [OverCapacity("Capacity temporarily exceeded, please try again.", retry_after_s=1)]
    return [asyncio.Event()] if text == "slow" else [text]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    base = write_base(folder / "no-lora", model_type="gpt_neox")
    fake = FakeBackend(script)
    settings = {
        "server": {"max_body_bytes": 50_000, "request_timeout_s": 0.3}, "models": {NO_LORA: {"path": str(base)}},
    }  # fmt: skip
    async with open_stack(folder, backends={DEMO_MODEL: fake, NO_LORA: fake}, settings=settings) as opened:
        created = await opened.post("/ai/finetunes", {"model": DEMO_MODEL, "name": "empty"})
        assert created.status_code == 200, created.text
        yield opened


def run(body: Any, model: str = DEMO_MODEL) -> Call:
    return lambda stack: stack.post(f"/ai/run/{model}", body)


def chat(prompt: str, **more: Any) -> Call:
    body = {"model": DEMO_MODEL, "messages": [{"role": "user", "content": prompt}], **more}
    return lambda stack: stack.post(CHAT, body)


def get(path: str) -> Call:
    return lambda stack: stack.client.get(stack.url(path))


def wrong_token(stack: Stack) -> Awaitable[httpx.Response]:
    return stack.post(RUN, {"prompt": "x"}, headers={"authorization": "Bearer wrong"})


async def poor_token(stack: Stack) -> httpx.Response:
    secret = await stack.token("ai_gateway.read")
    return await stack.post(RUN, {"prompt": "x"}, headers={"authorization": f"Bearer {secret}"})


# (how, status, code, what the sentence says, the field that it names)
ROWS: list[tuple[Call, int, int, str, str | None]] = [
    (lambda stack: stack.client.get("/client/v4/nowhere"), 404, 7000, "No route for that URI", None),
    (lambda stack: stack.client.get("/client/v4/accounts/x/ai/finetunes"), 404, 7003,
     "Could not route to /client/v4/accounts/x/ai/finetunes, perhaps your object identifier is invalid?", None),
    (get(RUN), 405, 7001, "GET not supported for requested URI.", None),
    (get("/ai-gateway/gateways/default/logs?order_by=nothing"), 400, 7001, "order_by", "order_by"),
    (get("/ai/models/search?page=zero"), 400, 7001, "page must be a whole number", "page"),
    (wrong_token, 401, 10000, "Authentication error", None),
    (poor_token, 403, 9109, "lacks the permission workers_ai.read", None),
    (run({"prompt": "x"}, "@cf/nobody/nothing"), 400, 5007, "No such model", "model"),
    (run({"prompt": "x"}, "@cf/a b/c"), 404, 3042, "a b", "model"),
    (run({"prompt": "x", "lora": "empty"}), 400, 3039, "adapter_config.json", "lora"),
    (run(b""), 400, 3003, "no body", None),
    (run({"prompt": "x", "lora": "empty"}, NO_LORA), 405, 5005, "does not support LoRA", "lora"),
    (run({"prompt": "x" * 60_000}), 413, 3006, "limit of 50000 bytes", None),
    (run({"prompt": "slow"}), 408, 3046, "not complete within 0.3 s", None),
    (chat("slow"), 408, 3046, "not complete within 0.3 s", None),
    (run({"prompt": "busy"}), 429, 3040, "Capacity temporarily exceeded, please try again.", None),
    (chat("busy"), 429, 3040, "Capacity temporarily exceeded, please try again.", None),
    (run({"prompt": "x", "lora": "nobody"}), 404, 3037, "AiError: AiError: Finetune nobody not found", "lora"),
    (chat("x", lora="nobody"), 404, 3037, "AiError: AiError: Finetune nobody not found", "lora"),
    (run({}), 400, 5006, "AiError: Bad input: Error: oneOf at '/' not met", "prompt"),
    (run({"prompt": "x", "top_k": 99}), 400, 5006, "'top_k' must be a whole number from 1 to 50", "top_k"),
    (chat("x", top_k=99), 400, 5006, "'top_k' must be a whole number from 1 to 50", "top_k"),
    (run({"prompt": "x", "max_tokens": 10**6}), 413, 5021, "context window", "max_tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "status", "code", "said", "field"), ROWS, ids=lambda value: str(value)[:24])
async def test_a_row(stack: Stack, call: Call, status: int, code: int, said: str, field: str | None) -> None:
    answer = await call(stack)
    body = answer.json()
    (failure,) = body["errors"]
    assert (answer.status_code, failure["code"], body["success"]) == (status, code, False), answer.text
    assert said in failure["message"]
    assert failure.get("source") == (None if field is None else {"pointer": f"/{field}"})
    if answer.request.url.path.endswith(CHAT):
        assert (body["error"]["message"], body["error"]["code"]) == (failure["message"], str(code))
        assert body["error"]["param"] == field
    if status == 429:
        assert answer.headers["retry-after"] == "1"
    if status == 408:
        assert answer.headers["x-should-retry"] == "false"


def absent() -> set[int]:
    """The codes that the documentation says do not occur."""
    table = DOCS.read_text(encoding="utf-8").partition("<!-- absent codes -->")[2].partition("<!-- end")[0]
    return {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}


async def test_every_code_is_provoked_or_explained() -> None:
    provoked = {code for _, _, code, _, _ in ROWS}
    assert absent() | provoked == CONTRACT
    assert not absent() & provoked


async def test_no_error_of_ours_has_a_code_that_is_said_not_to_occur() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LorikeetError)]
    assert len(kinds) > 20
    assert not {kind.code for kind in kinds} & absent()
