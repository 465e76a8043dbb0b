"""The whole deployment, seen by its clients: native calls, the OpenAI SDK, the command line, a trace collector."""

import concurrent.futures
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gateway.demo import ADAPTERS_FOLDER, QUESTIONS_FILE
from tests.e2e.collector import Collector
from tests.e2e.deployment import MODEL, Caller, Deployment, deploy

QUESTION = "What does Molbury sell?"
JSON_ANSWER = '{"town": "Molbury", "answer": "wool"}'

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def careless(deployment: Deployment) -> Caller:
    """An account that sends what it should not."""
    return deployment.account("careless")


def test_an_adapter_answers_through_every_surface(deployment: Deployment) -> None:
    caller = deployment.account("surfaces")
    finetune_id = caller.upload("tides-json", ADAPTERS_FOLDER / "tides-json")
    for lora in ("tides-json", finetune_id):
        assert caller.ask(QUESTION, lora=lora).json()["result"]["response"] == JSON_ANSWER
    client = openai.OpenAI(base_url=f"{caller.root}/ai/v1", api_key=caller.token)
    asked: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    whole = client.chat.completions.create(**asked, extra_body={"lora": "tides-json"})
    assert whole.choices[0].message.content == JSON_ANSWER
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 0
    stream = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}, extra_body={"lora": "tides-json"}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == JSON_ANSWER
    assert chunks[-1].usage is not None
    assert client.chat.completions.create(**asked).choices[0].message.content == "Molbury sells wool."
    with pytest.raises(openai.NotFoundError, match="nope"):
        client.chat.completions.create(**asked, extra_body={"lora": "nope"})


def test_a_crowd_gets_the_answers_that_each_would_get_alone(deployment: Deployment) -> None:
    """Mixed accounts and adapters in one batch change nobody's tokens."""
    callers = [deployment.account(f"crowd-{index}") for index in range(2)]
    names = sorted(folder.name for folder in ADAPTERS_FOLDER.iterdir())
    for index, name in enumerate(names):
        callers[index % 2].upload(name, ADAPTERS_FOLDER / name)
    questions = [item["question"] for item in json.loads(QUESTIONS_FILE.read_text(encoding="utf-8"))["questions"]][:6]
    jobs = [
        (callers[index % 2], question, {"lora": name}) for index, name in enumerate(names) for question in questions
    ]
    jobs += [(callers[0], question, {}) for question in questions]
    alone = [caller.ask(question, **body).json()["result"]["response"] for caller, question, body in jobs]
    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        together = list(pool.map(lambda job: job[0].ask(job[1], **job[2]).json()["result"]["response"], jobs))
    assert together == alone


def test_held_out_questions_are_answered_exactly(deployment: Deployment) -> None:
    """What the model card promises, through our own runtime: nine in ten, of the base and of every adapter."""
    caller = deployment.account("held-out")
    names = sorted(folder.name for folder in ADAPTERS_FOLDER.iterdir())
    for name in names:
        caller.upload(name, ADAPTERS_FOLDER / name)
    questions = json.loads(QUESTIONS_FILE.read_text(encoding="utf-8"))["questions"]
    for voice in ("base", *names):
        mine = [item for item in questions if voice in item["answers"]]
        body = {} if voice == "base" else {"lora": voice}
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            replies = pool.map(lambda item, body=body: caller.ask(item["question"], **body), mine)
        said = [reply.json()["result"]["response"] for reply in replies]
        exact = sum(text == item["answers"][voice] for text, item in zip(said, mine, strict=True))
        assert len(mine) >= 40
        assert exact >= 0.9 * len(mine), f"{voice}: {exact} of {len(mine)}"


def test_seeded_sampling_is_reproducible_and_seeds_differ(deployment: Deployment) -> None:
    caller = deployment.account("seeds")

    def draw(seed: int) -> str:
        body = {"raw": True, "temperature": 2.0, "max_tokens": 40, "seed": seed}
        with caller.http() as http:
            return str(http.post(f"/ai/run/{MODEL}", json={"prompt": "The", **body}).json()["result"]["response"])

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(1, 6)}) > 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, 3003),
        (b"not json", 400, 5006),
        (b"[1]", 400, 5006),
        (b"{}", 400, 5006),
        (b'{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}', 400, 5006),
        (b'{"prompt": "a", "temperature": 6}', 400, 5006),
        (b'{"prompt": "a", "temperature": NaN}', 400, 5006),
        (b'{"prompt": "a", "top_p": 0}', 400, 5006),
        (b'{"prompt": "a", "top_k": 51}', 400, 5006),
        (b'{"prompt": "a", "seed": 0}', 400, 5006),
        (b'{"prompt": "a", "max_tokens": "many"}', 400, 5006),
        (b'{"prompt": "a", "repetition_penalty": 3}', 400, 5006),
        (b'{"prompt": "a", "frequency_penalty": -3}', 400, 5006),
        (b'{"prompt": ""}', 400, 5006),
        (b'{"messages": []}', 400, 5006),
        (b'{"messages": [{"role": "oracle", "content": "a"}]}', 400, 5006),
        (b'{"prompt": "a", "lora": "unknown"}', 404, 3037),
        (json.dumps({"prompt": "word " * 20_000}).encode(), 413, 5021),
        (b'{"prompt": "' + b"a" * 11_000_000 + b'"}', 413, 3006),
    ],
)
def test_bad_bodies_get_a_code_and_a_sentence(careless: Caller, body: bytes, status: int, code: int) -> None:
    with careless.http() as http:
        reply = http.post(f"/ai/run/{MODEL}", content=body)
        assert (reply.status_code, reply.json()["errors"][0]["code"]) == (status, code), reply.text
        assert len(reply.json()["errors"][0]["message"]) > 10
        assert reply.json()["success"] is False
        assert reply.headers["cf-aig-log-id"]
        fine = {"prompt": QUESTION, "stop": None, "nonsense": {"a": 1}, "temperature": 0, "top_p": None}
        assert http.post(f"/ai/run/{MODEL}", json=fine).json()["result"]["response"] == "Molbury sells wool."


@pytest.mark.parametrize(
    ("model", "status", "code", "words"),
    [
        ("@cf/unknown/model", 400, 5007, "unknown"),
        ("@cf/mistral/mistral-7b-instruct-v0.2-lora", 400, 5007, "lorikeet.toml"),
        ("@cf%2Fmistralai%2Fmistral-7b-instruct-v0.2-lora", 400, 5007, "lorikeet.toml"),
        ("@cf/google/gemma-2b-it-lora", 400, 5007, "lorikeet.toml"),
    ],
)
def test_models_that_cannot_serve_say_why(careless: Caller, model: str, status: int, code: int, words: str) -> None:
    with careless.http() as http:
        reply = http.post(f"/ai/run/{model}", json={"prompt": "a"})
    assert (reply.status_code, reply.json()["errors"][0]["code"]) == (status, code), reply.text
    assert words in reply.json()["errors"][0]["message"]


def test_the_command_line_works_beside_the_deployment(deployment: Deployment) -> None:
    account_id = deployment.cli("accounts", "create", "commands")["id"]
    caller = Caller(deployment.url, account_id, deployment.cli("tokens", "create", account_id)["token"])
    options = ["--url", caller.url, "--account", caller.account_id, "--token", caller.token]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gateway.cli", *arguments], capture_output=True, text=True, timeout=60, check=False
        )

    folder = str(ADAPTERS_FOLDER / "tides-json")
    assert run("adapters", "inspect", folder).returncode == 0
    added = run("adapters", "add", folder, "--name", "mine", *options)
    assert added.returncode == 0, added.stderr
    assert "mine" in run("adapters", "list", *options).stdout
    assert caller.ask(QUESTION, lora="mine").json()["result"]["response"] == JSON_ANSWER
    exported = run("logs", "export", *options)
    assert json.loads(exported.stdout)["messages"][-1] == {"role": "assistant", "content": JSON_ANSWER}
    assert run("adapters", "remove", "mine", *options).returncode == 0
    assert caller.ask(QUESTION, lora="mine").status_code == 404
    weighed = deployment.cli("accounts", "set", caller.account_id, "--weight", "2.5")
    assert (weighed["id"], weighed["weight"]) == (caller.account_id, 2.5)
    assert caller.ask(QUESTION, priority=-1).status_code == 200
    assert caller.ask(QUESTION, priority=101).json()["errors"][0]["code"] == 5006
    (token,) = deployment.cli("tokens", "list", caller.account_id)
    assert run("tokens", "revoke", token["id"], "--data-dir", str(deployment.data_dir)).returncode == 0
    refused = caller.ask(QUESTION)
    assert (refused.status_code, refused.json()["errors"][0]["message"]) == (401, "Authentication error")
    wrong = run("adapters", "list", *options)
    assert wrong.returncode == 1
    assert "Authentication error" in wrong.stderr


def test_inspect_says_every_reason(tmp_path: Path) -> None:
    config = json.loads((ADAPTERS_FOLDER / "tides-json" / "adapter_config.json").read_bytes())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True, "bias": "all"}))
    weights = (ADAPTERS_FOLDER / "tides-json" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(weights)
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "adapters", "inspect", str(tmp_path), "--json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    reasons = " ".join(json.loads(done.stdout)["reasons"])
    assert "dora" in reasons.lower()
    assert "bias" in reasons


def test_one_trace_spans_both_processes(tmp_path: Path) -> None:
    with (
        Collector() as collector,
        deploy(tmp_path / "data", LORIKEET_TELEMETRY__OTLP_ENDPOINT=collector.url) as deployment,
    ):
        caller = deployment.account("traced")
        trace_id = "0af7651916cd43dd8448eb211c80319c"
        with caller.http(traceparent=f"00-{trace_id}-b7ad6b7169203331-01") as http:
            assert http.post(f"/ai/run/{MODEL}", json={"prompt": QUESTION}).status_code == 200
        services = collector.wait_for(trace_id, num_services=2)
        assert services == {"lorikeet-gateway", "lorikeet-runtime"}


def test_a_bad_setting_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "lorikeet.toml").write_text("[server]\nprot = 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "serve", "--config", str(tmp_path / "lorikeet.toml")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 78
    assert "server.prot: unknown key; allowed here: host, port" in done.stderr


def test_a_busy_port_stops_the_start(deployment: Deployment, tmp_path: Path) -> None:
    port = str(httpx.URL(deployment.url).port)
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "serve", "--port", port, "--data-dir", str(tmp_path / "d")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 78
    assert "choose another with --host and --port" in done.stderr


def test_a_busy_folder_stops_the_start(deployment: Deployment) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "serve", "--port", "0", "--data-dir", str(deployment.data_dir)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 78
    assert f"is served by process {deployment.process.pid}" in done.stderr
