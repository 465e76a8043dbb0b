"""A runtime that is full, over HTTP: who will not wait is told so at once, everybody else waits for the turn."""

import concurrent.futures
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.deployment import MODEL, deploy

pytestmark = pytest.mark.timeout(180)
QUESTION, ANSWER = "What does Molbury sell?", "Molbury sells wool."
LONG = {"prompt": "x", "raw": True, "stream": True, "max_tokens": 900, "ignore_eos": True, "temperature": 0}
PICKY: dict[str, Any] = {"options": {"rejectIfBusy": True}}


def test_only_who_asks_for_it_is_rejected(tmp_path: Path) -> None:
    with deploy(tmp_path / "data", LORIKEET_RUNTIME__MAX_RUNNING="1") as deployment:
        caller = deployment.account("busy")
        client = openai.OpenAI(base_url=f"{caller.root}/ai/v1", api_key=caller.token, max_retries=0)
        chat: Any = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
        with caller.http() as http, concurrent.futures.ThreadPoolExecutor(1) as pool:
            with http.stream("POST", f"/ai/run/{MODEL}", json=LONG) as stream:
                lines = stream.iter_lines()
                next(lines)
                patient = pool.submit(caller.ask, QUESTION)
                began = time.monotonic()
                rejected = caller.ask(QUESTION, **PICKY)
                with pytest.raises(openai.RateLimitError) as refused:
                    client.chat.completions.create(**chat, extra_body=PICKY)
                took_s = time.monotonic() - began
                assert not patient.done()
                rest = sum(1 for _ in lines)
            assert patient.result(60).json()["result"]["response"] == ANSWER
        assert rest > 0, "the stream was too short"
        assert rejected.status_code == 429
        assert rejected.json()["errors"] == [
            {"code": 3040, "message": "Capacity temporarily exceeded, please try again."}
        ]
        assert int(rejected.headers["retry-after"]) >= 1
        assert (refused.value.status_code, refused.value.code) == (429, "3040")
        assert int(refused.value.response.headers["retry-after"]) >= 1
        assert took_s < 5
        assert caller.ask(QUESTION, **PICKY).json()["result"]["response"] == ANSWER  # nobody is there any more
        with caller.http() as http:
            logs = http.get("/ai-gateway/gateways/default/logs", params={"order_by": "created_at"}).json()["result"]
        assert sorted(log["status_code"] for log in logs) == [200, 200, 200, 429, 429]
        queued = [log["timings"]["queue_ms"] for log in logs if log["status_code"] == 200]
        assert max(queued) > 10 * (1 + min(queued))


def test_a_session_finds_what_it_said_before(tmp_path: Path) -> None:
    """One runtime, so every request of a session reaches the same one; its reply tells of the cached prompt."""
    with deploy(tmp_path / "data") as deployment:
        caller = deployment.account("session")
        with caller.http(**{"x-session-affinity": "one session"}) as http:
            body = {"prompt": QUESTION * 4, "temperature": 0, "max_tokens": 4}
            first, second = (http.post(f"/ai/run/{MODEL}", json=body) for _ in range(2))
        assert first.json()["result"]["response"] == second.json()["result"]["response"]
        assert "prompt_tokens_details" not in first.json()["result"]["usage"]
        assert second.json()["result"]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
