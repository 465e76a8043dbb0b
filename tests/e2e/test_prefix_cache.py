"""What callers see of the prefix cache: `cached_tokens` in both dialects and in the log, and never another's."""

from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.demo import ADAPTERS_FOLDER
from tests.e2e.deployment import MODEL, Caller, Deployment, deploy

QUESTION = "What does Molbury sell? " * 4

pytestmark = pytest.mark.timeout(180)


def told(usage: dict[str, Any]) -> int:
    """Of a reply's `usage`."""
    return int(usage.get("prompt_tokens_details", {}).get("cached_tokens", 0))


def native(caller: Caller, **body: Any) -> tuple[str, int]:
    """A native call: its text, and how many tokens were cached."""
    result = caller.ask(QUESTION, **body).json()["result"]
    return result["response"], told(result["usage"])


def test_the_second_of_two_equal_requests_finds_the_first(deployment: Deployment) -> None:
    caller = deployment.account("cached")
    (first, none), (second, some) = native(caller), native(caller)
    assert (first, none) == (second, 0)
    assert some > 0
    assert some % 16 == 0
    client = openai.OpenAI(base_url=f"{caller.root}/ai/v1", api_key=caller.token)
    asked: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    whole = client.chat.completions.create(**asked)
    assert whole.usage is not None
    assert whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens == some
    *_, end = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert end.usage is not None
    assert end.usage.prompt_tokens_details is not None
    assert end.usage.prompt_tokens_details.cached_tokens == some
    assert end.usage.prompt_tokens > some
    with caller.http() as http:
        logged = http.get("/ai-gateway/gateways/default/logs", params={"order_by": "created_at"}).json()["result"]
    assert sorted(entry["cached_tokens"] for entry in logged) == [0, some, some, some]


def test_nobody_finds_what_another_account_or_another_adapter_computed(deployment: Deployment) -> None:
    one, other = deployment.account("cached-one"), deployment.account("cached-other")
    folder = ADAPTERS_FOLDER / "tides-json"
    for caller in (one, other):
        caller.upload("same-name", folder)  # the same weights: equal digests
    assert native(one)[1] == 0
    assert native(one)[1] > 0
    assert native(one, lora="same-name")[1] == 0
    assert native(one, lora="same-name")[1] > 0
    assert [native(other)[1], native(other, lora="same-name")[1]] == [0, 0]
    with one.http() as http:
        (finetune,) = http.get("/ai/finetunes").json()["result"]
        assert http.delete(f"/ai/finetunes/{finetune['id']}").status_code == 200
    one.upload("same-name", ADAPTERS_FOLDER / "tides-pirate")
    assert native(one, lora="same-name")[1] == 0


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    with deploy(tmp_path / "data", LORIKEET_RUNTIME__PREFIX_CACHE="false") as deployment:
        caller = deployment.account("uncached")
        assert [native(caller)[1] for _ in range(2)] == [0, 0]
