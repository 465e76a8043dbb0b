"""Adapters over the whole stack: replaced while they decode, split, rolled back, deleted while they load, pulled."""

import concurrent.futures
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.demo import ADAPTERS_FOLDER
from tests.e2e.deployment import MODEL, Caller, Deployment, deploy

QUESTION = "What does Molbury sell?"
JSON_ANSWER = '{"town": "Molbury", "answer": "wool"}'
JSON, PIRATE, TABLE = (ADAPTERS_FOLDER / name for name in ("tides-json", "tides-pirate", "moons-table"))

pytestmark = pytest.mark.timeout(180)


def run(deployment: Deployment, caller: Caller | None, *arguments: str, code: int = 0) -> Any:
    """A command with the caller's token (or, without one, the operator's folder); its JSON, or what it says."""
    who = ["--data-dir", str(deployment.data_dir)]
    if caller is not None:
        who += ["--url", caller.url, "--account", caller.account_id, "--token", caller.token]
    as_json = [] if "remove" in arguments else ["--json"]
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "adapters", *arguments, *who, *as_json],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stderr if code else json.loads(done.stdout) if as_json else done.stdout


def answer(caller: Caller, lora: str, **headers: str) -> str:
    with caller.http(**headers) as http:
        reply = http.post(f"/ai/run/{MODEL}", json={"prompt": QUESTION, "temperature": 0, "lora": lora})
    assert reply.status_code == 200, reply.text
    return str(reply.json()["result"]["response"])


def text_of(lines: list[str]) -> str:
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(event["response"] for event in events)


def push_version(http: httpx.Client, name: str, folder: Path) -> int:
    """A new version over HTTP, as a client would do it."""
    number = int(http.post(f"/ai/finetunes/{name}/versions").json()["result"]["version"])
    for file_name in ("adapter_config.json", "adapter_model.safetensors"):
        reply = http.post(
            f"/ai/finetunes/{name}/versions/{number}/finetune-assets",
            data={"file_name": file_name},
            files={"file": ("blob", (folder / file_name).read_bytes())},
        )
        assert reply.status_code == 200, reply.text
    return number


def test_a_stream_ends_on_the_version_it_began_with(deployment: Deployment) -> None:
    caller = deployment.account("replacing")
    caller.upload("helper", JSON)
    body: dict[str, Any] = {"temperature": 0, "lora": "helper", "ignore_eos": True, "max_tokens": 600}
    alone = caller.ask(QUESTION, **body).json()["result"]["response"]
    assert alone.startswith(JSON_ANSWER)
    with (
        caller.http() as http,
        caller.http() as other,
        http.stream("POST", f"/ai/run/{MODEL}", json={**body, "prompt": QUESTION, "stream": True}) as stream,
    ):
        assert stream.headers["lorikeet-adapter-version"] == "1"
        lines = stream.iter_lines()
        seen = [next(lines) for _ in range(4)]
        assert push_version(other, "helper", PIRATE) == 2
        details = other.get("/ai/finetunes/helper").json()["result"]
        assert [(v["version"], v["in_use"]) for v in details["versions"]] == [(2, 0), (1, 1)], (
            "the stream was too short"
        )
        now = answer(caller, "helper")
        assert "Arr" in now
        gone = other.delete("/ai/finetunes/helper/versions/1").json()["result"]
        assert gone["in_use"] == 1, "the stream was too short"
        seen += list(lines)
    assert text_of(seen) == alone
    assert seen[-2] == "data: [DONE]"
    assert answer(caller, "helper") == now


def test_split_roll_back_and_alias(deployment: Deployment) -> None:
    caller = deployment.account("splitting")
    finetune_id = caller.upload("helper", JSON)
    staged = run(deployment, caller, "replace", "helper", str(PIRATE), "--stage")
    assert (staged["version"], staged["status"], staged["aliases"]) == (2, "ready", [])
    assert answer(caller, "helper") == JSON_ANSWER
    pirate = answer(caller, "helper@2")
    assert pirate not in ("", JSON_ANSWER)
    run(deployment, caller, "point", "helper", "--version", "1", "--canary", "2", "--percent", "50")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sessions = [f"session-{n}" for n in range(24)]
        ask = lambda session: answer(caller, "helper", **{"x-session-affinity": session})  # noqa: E731
        first, second = list(pool.map(ask, sessions)), list(pool.map(ask, sessions))
    assert first == second
    assert set(first) == {JSON_ANSWER, pirate}
    assert 4 <= Counter(first)[pirate] <= 20
    run(deployment, caller, "point", "helper", "--version", "2", "--alias", "beta")
    assert answer(caller, f"{finetune_id}@beta") == pirate
    run(deployment, caller, "point", "helper", "--version", "2")
    assert answer(caller, "helper") == pirate
    assert run(deployment, caller, "rollback", "helper")["version"] == 1
    assert answer(caller, "helper") == JSON_ANSWER
    assert [v["version"] for v in run(deployment, caller, "versions", "helper")] == [2, 1]
    shown = run(deployment, caller, "show", "helper")
    assert shown["requests"] == sum(v["requests"] for v in shown["versions"]) > 48
    assert shown["residency"]["tier"] == "device"


def test_what_was_pulled_is_what_was_pushed_and_merges(deployment: Deployment, tmp_path: Path) -> None:
    caller = deployment.account("pulling")
    name = "a name with % no?"  # what a path must quote
    run(deployment, caller, "add", str(JSON), "--name", name)
    run(deployment, caller, "replace", name, str(TABLE))
    for options, pushed in ((["--version", "1"], JSON), ([], TABLE)):
        out = tmp_path / pushed.name
        run(deployment, caller, "pull", name, str(out), *options)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (out / file).read_bytes() == (pushed / file).read_bytes()
    assert "is there already" in run(deployment, caller, "pull", name, str(out), code=1)
    assert "404" in run(deployment, caller, "pull", "nothing", str(tmp_path / "none"), code=1)
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "adapters", "merge", "tides-json", "merged"],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    settings = tmp_path / "merged.toml"
    settings.write_text(f'[models."@cf/acme/merged"]\npath = "{tmp_path / "merged"}"\n', encoding="utf-8")
    with deploy(tmp_path / "data", LORIKEET_CONFIG=str(settings), LORIKEET_DEMO_MODEL="false") as other:
        asker = other.account("asker")
        with asker.http() as http:
            reply = http.post("/ai/run/@cf/acme/merged", json={"prompt": QUESTION, "temperature": 0})
        assert reply.json()["result"]["response"] == JSON_ANSWER


def test_public_adapters_are_everybodys(deployment: Deployment) -> None:
    run(deployment, None, "add", str(JSON), "--name", "cf-public-tides", "--public")
    for name in ("first", "second"):
        caller = deployment.account(f"public-{name}")
        assert answer(caller, "cf-public-tides") == JSON_ANSWER
        assert "cf-public" not in str(run(deployment, caller, "list"))
        assert "404" in run(deployment, caller, "remove", "cf-public-tides", code=1)
        with caller.http() as http:
            assert [row["name"] for row in http.get("/ai/finetunes/public").json()["result"]] == ["cf-public-tides"]
    assert [row["public"] for row in run(deployment, None, "list", "--public")] == [True]
    run(deployment, None, "remove", "cf-public-tides", "--public")
    assert caller.ask(QUESTION, lora="cf-public-tides").json()["errors"][0]["code"] == 3037


def places(deployment: Deployment, digest: str) -> set[str]:
    """The tiers that have the adapter, as the runtime tells it and as the disk shows it."""
    adapters: list[dict[str, Any]] = deployment.cli("cache", "stats")[MODEL]["adapters"]
    told = next((each for each in adapters if each["digest"] == digest), {})
    found = {tier for tier in ("device", "memory", "disk") if told.get(tier)}
    return found | {"disk" for path in (deployment.data_dir / "tiers").glob(f"*/packed/{digest}")}


def test_deleted_while_it_loads_and_while_it_answers(deployment: Deployment, tmp_path: Path) -> None:
    """Whoever asks at that moment gets the adapter's whole answer or 3037; afterwards no tier has a byte of it."""
    caller = deployment.account("deleting")
    own = tmp_path / "own"  # weights that no other account has: theirs would stay
    shutil.copytree(TABLE, own)
    config = json.loads((own / "adapter_config.json").read_text())
    (own / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] * 1.01}))
    digest = ""
    outcomes: Counter[str] = Counter()

    def ask(_: int) -> tuple[int, Any]:
        with caller.http() as http:
            reply = http.post(f"/ai/run/{MODEL}", json={"prompt": QUESTION, "temperature": 0, "lora": "short"})
        return reply.status_code, reply.json()

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        for turn in range(8):
            caller.upload("short", own)
            with caller.http() as http:
                digest = http.get("/ai/finetunes/short").json()["result"]["digest"]
            if turn == 7:
                caller.ask(QUESTION, lora="short")
                assert places(deployment, digest) == {"device", "memory", "disk"}
            asked = [pool.submit(ask, n) for n in range(10)]
            if turn % 2:
                concurrent.futures.wait(asked, return_when=concurrent.futures.FIRST_COMPLETED)
            with caller.http() as http:
                gone = http.delete("/ai/finetunes/short")
            assert gone.status_code == 200, gone.text
            for status, body in (future.result() for future in asked):
                if status == 200:
                    outcomes[body["result"]["response"]] += 1
                else:
                    assert (status, body["errors"][0]["code"]) == (404, 3037), body
                    outcomes["gone"] += 1
    answers = {text for text in outcomes if text != "gone"}
    assert len(answers) == 1, outcomes
    until = time.monotonic() + 20
    objects = deployment.data_dir / "objects" / "adapters" / caller.account_id
    while (left := places(deployment, digest)) or objects.exists():
        assert time.monotonic() < until, f"still there: {left}, {objects}"
        time.sleep(0.05)


def test_refused_while_in_use_over_http(deployment: Deployment) -> None:
    caller = deployment.account("refusing")
    caller.upload("busy", JSON)
    body = {"prompt": QUESTION, "lora": "busy", "ignore_eos": True, "max_tokens": 900, "stream": True}
    with (
        caller.http() as http,
        caller.http() as other,
        http.stream("POST", f"/ai/run/{MODEL}", json=body) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        refused = other.delete("/ai/finetunes/busy?when_in_use=refuse")
        assert (refused.status_code, refused.json()["errors"][0]["code"]) == (409, 7012)
    until = time.monotonic() + 10
    with caller.http() as http:  # the stream was broken off: its end lets go of the adapter
        while (reply := http.delete("/ai/finetunes/busy?when_in_use=refuse")).status_code != 200:
            assert (reply.status_code, time.monotonic() < until) == (409, True)
            time.sleep(0.02)
