"""What is in memory after a runtime was killed, before anybody asks: pins, the warm-up list, what was used last."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.demo import ADAPTERS_FOLDER
from tests.e2e.deployment import MODEL, deploy, wait_gone
from tests.e2e.test_cache_commands import until

QUESTION = "What does Molbury sell?"

pytestmark = pytest.mark.timeout(300)


def test_memory_is_what_it_should_be_before_anybody_asks(tmp_path: Path) -> None:
    config = tmp_path / "lorikeet.toml"
    config.write_text('[tiers]\nwarm_up = ["cf-public-tides"]\n', encoding="utf-8")
    with deploy(tmp_path / "data", LORIKEET_CONFIG=str(config)) as deployment:
        caller = deployment.account("restarting")
        for name in ("tides-pirate", "moons-table"):
            caller.upload(name, ADAPTERS_FOLDER / name)
            assert caller.ask(QUESTION, lora=name).status_code == 200
        subprocess.run(
            [sys.executable, "-m", "gateway.cli", "adapters", "add", str(ADAPTERS_FOLDER / "tides-json"), "--name",
             "cf-public-tides", "--public", "--data-dir", str(deployment.data_dir)],
            check=True, timeout=60, stdout=subprocess.DEVNULL,
        )  # fmt: skip

        def places() -> dict[str, dict[str, Any]]:
            adapters = deployment.cli("cache", "stats")[MODEL]["adapters"]
            return {owner["name"]: adapter for adapter in adapters for owner in adapter["owners"]}

        deployment.cli("cache", "pin", f"{caller.account_id}/tides-pirate")
        until(lambda: bool(places().get("tides-pirate", {}).get("pinned")))
        # On no disk either: the list alone can bring it back.
        until(lambda: "cf-public-tides" in places())
        deployment.cli("cache", "evict", "cf-public-tides")
        until(lambda: set(places()) == {"tides-pirate", "moons-table"})

        runtime = deployment.processes[f"runtime {MODEL}"]
        os.kill(runtime, signal.SIGKILL)
        assert wait_gone([runtime]) == []
        deployment.wait_until_ready(120)
        until(lambda: sum(each["memory"] for each in places().values()) == 3, 120)
        found = places()
        assert {name: each["pinned"] for name, each in found.items()} == {
            "tides-pirate": True, "moons-table": False, "cf-public-tides": False,
        }  # fmt: skip
        assert not any(each["device"] for each in found.values()), "nobody has asked"
        tiers = {tier["tier"]: tier for tier in deployment.cli("cache", "stats")[MODEL]["tiers"]}
        assert tiers["object"]["loads"]["count"] == 1, "the other two came from the disk"
        answer = caller.ask(QUESTION, lora="cf-public-tides").json()["result"]["response"]
        assert answer == '{"town": "Molbury", "answer": "wool"}'
