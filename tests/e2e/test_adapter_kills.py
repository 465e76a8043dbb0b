"""kill -9 of the gateway and the runtime while five callers create, replace, roll back, delete and use adapters.

Afterwards, and after one more start: no call ended in an error of ours, rows and objects agree, no tier and no spool
holds anything that nobody needs, and every adapter that is ready answers.
"""

import random
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from contextlib import closing
from os import kill
from pathlib import Path

import httpx
import pytest

from gateway.demo import ADAPTERS_FOLDER
from tests.e2e.deployment import MODEL, Caller, Deployment, deploy

FOLDERS = [ADAPTERS_FOLDER / name for name in ("tides-json", "tides-pirate", "moons-table")]
VERBS = ("create", "replace", "replace", "delete", "ask", "ask", "roll back", "remove version")
QUESTION = {"prompt": "What does Molbury sell?", "max_tokens": 20, "temperature": 0}

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow]


class Callers:
    """Threads that call at random until told to stop. `outcomes`: (verb, status or error). `wrong`: our failures."""

    def __init__(self, caller: Caller, count: int = 5) -> None:
        self._caller = caller
        self._stop = threading.Event()
        self.outcomes: Counter[tuple[str, int | str]] = Counter()
        self.wrong: list[str] = []
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, number: int) -> None:
        rng = random.Random(number)
        while not self._stop.is_set():
            verb = rng.choice(VERBS)
            if verb == "delete" and rng.random() < 0.6:
                verb = "ask"  # else hardly anything is ever there to be asked
            try:
                with self._caller.http() as http:
                    reply = _do(http, verb, f"x{number % 2}", rng)
            except httpx.HTTPError as error:  # the gateway was killed under it
                self.outcomes[verb, type(error).__name__] += 1
                continue
            self.outcomes[verb, reply.status_code] += 1
            if reply.status_code >= 500 and reply.status_code != 503:
                self.wrong.append(f"{verb}: {reply.status_code} {reply.text[:200]}")


def _do(http: httpx.Client, verb: str, name: str, rng: random.Random) -> httpx.Response:
    path = f"/ai/finetunes/{name}"
    match verb:
        case "create":
            return http.post("/ai/finetunes", json={"model": MODEL, "name": name})
        case "replace":
            reply = http.post(f"{path}/versions")
            if reply.status_code == 200:
                folder, version = rng.choice(FOLDERS), reply.json()["result"]["version"]
                for file in ("adapter_config.json", "adapter_model.safetensors"):
                    files = {"file": ("blob", (folder / file).read_bytes())}
                    reply = http.post(
                        f"{path}/versions/{version}/finetune-assets", data={"file_name": file}, files=files
                    )
            return reply
        case "delete":
            when = "drain" if rng.random() < 0.3 else "refuse"
            return http.delete(f"{path}?when_in_use={when}")
        case "ask":
            return http.post(f"/ai/run/{MODEL}", json={**QUESTION, "lora": name})
        case "roll back":
            return http.put(f"{path}/aliases/default", json={"version": rng.randrange(1, 6)})
    return http.delete(f"{path}/versions/{rng.randrange(1, 9)}")


def kill_child(deployment: Deployment, what: str) -> None:
    """What is named so of the deployment's children, if it is up."""
    told = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(deployment.process.pid)], capture_output=True, text=True, check=True
    )
    for line in told.stdout.splitlines():
        if what in line:
            kill(int(line.split()[0]), signal.SIGKILL)


def left_over(data_dir: Path) -> dict[str, set[str]]:
    """Objects without a row, rows without an object, files in a tier that no version has, and the spool."""
    with closing(sqlite3.connect(f"file:{data_dir / 'lorikeet.db'}?mode=ro", uri=True)) as database:
        rows = [key for (key,) in database.execute("select object_key from finetune_files")]
        rows += [key for (key,) in database.execute("select object_key from finetune_versions where object_key != ''")]
        digests = {digest for (digest,) in database.execute("select digest from finetune_versions")}
    root = data_dir / "objects"
    objects = {str(path.relative_to(root)) for part in ("adapters", "finetunes") for path in (root / part).rglob("*")
               if path.is_file()}  # fmt: skip
    return {
        "objects": objects - set(rows),
        "missing": set(rows) - objects,
        "tiers": {path.name for path in (data_dir / "tiers").glob("*/packed/*")} - digests,
        "spool": {path.name for path in (data_dir / "spool").iterdir()},
    }


def test_kills_under_adapters(tmp_path: Path) -> None:
    rng = random.Random(20261127)
    with deploy(tmp_path / "data") as deployment:
        caller = deployment.account("one")
        callers = Callers(caller)
        try:
            for what in ("gateway.process", "-m runtime", "gateway.process", "gateway.process"):
                time.sleep(rng.uniform(0.5, 2.5))  # the moment of the kill is the input of this test
                kill_child(deployment, what)
                deployment.wait_until_ready()
            until = time.monotonic() + 60
            while min(callers.outcomes[verb, 200] for verb in ("replace", "ask")) <= 3:
                assert time.monotonic() < until, callers.outcomes
                time.sleep(0.1)
        finally:
            callers.stop()
        deployment.wait_until_ready()
        kill_child(deployment, "gateway.process")  # its next start tidies what the last calls have left
        deployment.wait_until_ready()
        with caller.http() as http:
            for row in http.get("/ai/finetunes").json()["result"]:
                if row["status"] == "ready":
                    answer = http.post(f"/ai/run/{MODEL}", json={**QUESTION, "lora": row["id"]})
                    assert answer.status_code == 200, answer.text
        until = time.monotonic() + 20
        while any((left := left_over(tmp_path / "data")).values()):  # drained removals end in the background
            assert time.monotonic() < until, left
            time.sleep(0.1)
    assert callers.wrong == []
