"""Real clients against a real deployment. They need the network and minutes: `make test-clients` runs them, not `make
test`; naming the folder to pytest runs them too.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.demo import ADAPTERS_FOLDER, BASE_FOLDER
from tests.clients import table
from tests.e2e.deployment import Caller, deploy
from tests.e2e.random_bases import random_base
from tests.runtime.encoder.folders import write_encoder

SCRIPT_TIMEOUT_S = 240
TOOL_MODEL = "@cf/ours/tools"
EMBED_MODEL = "@cf/baai/bge-base-en-v1.5"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Only where the folder, or something in it, was asked for."""
    asked = any("tests/clients" in str(argument) for argument in config.invocation_params.args)
    return None if asked else True


@dataclass
class World:
    """What a client is pointed at."""

    caller: Caller
    other: Caller
    table: table.Table

    @property
    def environ(self) -> dict[str, str]:
        """The machine's own, without a setting that could lead a client elsewhere, and where we are."""
        kept = {
            name: value for name, value in os.environ.items()
            if not name.startswith(("CLOUDFLARE_", "CF_", "OPENAI_", "ANTHROPIC_", "LORIKEET_", "PYTHON", "BASE_URL"))
        }  # fmt: skip
        return {
            **kept,
            "V4": f"{self.caller.url}/client/v4",
            "ACCOUNT": self.caller.account_id,
            "TOKEN": self.caller.token,
            "MODEL": "@cf/lorikeet/demo-lora",
            "TOOL_MODEL": TOOL_MODEL,
            "EMBED_MODEL": EMBED_MODEL,
            "ADAPTERS": str(ADAPTERS_FOLDER),
        }

    def run(self, client: str, command: list[str], cwd: Path, expected: set[str]) -> None:
        """Runs a script that prints a line of JSON per call; every call must be told, and be right."""
        done = subprocess.run(
            command, cwd=cwd, env=self.environ, capture_output=True, text=True, timeout=SCRIPT_TIMEOUT_S, check=False
        )
        told: dict[str, Any] = {}
        for line in done.stdout.splitlines():
            if line.startswith('{"call"'):
                row = json.loads(line)
                told[row["call"]] = row["problem"]
        for call in expected:
            self.table.add(client, call, told.get(call, "was not told") is None)
        problems = {call: problem for call, problem in told.items() if problem is not None}
        assert not problems, problems
        assert set(told) == expected, done.stderr[-4000:]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The demo base, and one with random weights that can call functions; two finetunes; another tenant."""
    folder = tmp_path_factory.mktemp("clients")
    random_base(folder / "tools", "hermes")
    write_encoder(folder / "encoder", "bert")
    lines = [f'[models."{TOOL_MODEL}"]', f'path = "{folder / "tools"}"', f'[encoders."{EMBED_MODEL}"]',
             f'path = "{folder / "encoder"}"']  # fmt: skip
    (folder / "lorikeet.toml").write_text("\n".join(lines))
    rows = table.Table()
    assert BASE_FOLDER.is_dir()
    with deploy(folder / "data", LORIKEET_CONFIG=str(folder / "lorikeet.toml")) as deployment:
        caller = deployment.account("clients")
        caller.upload("pirate", ADAPTERS_FOLDER / "tides-pirate")
        yield World(caller, deployment.account("other"), rows)
    rows.write()
