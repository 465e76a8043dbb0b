"""`lorikeet cache` beside a real deployment: stats, pin, warm, evict, and a simulation of what the log says."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.demo import ADAPTERS_FOLDER
from tests.e2e.deployment import MODEL, Deployment

pytestmark = pytest.mark.timeout(180)


def until(look: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_look_pin_warm_evict_simulate(deployment: Deployment, tmp_path: Path) -> None:
    caller = deployment.account("caching")
    for name in ("tides-json", "moons-table"):
        caller.upload(name, ADAPTERS_FOLDER / name)
    with caller.http() as http:
        digest = http.get("/ai/finetunes/tides-json").json()["result"]["digest"]
    for _ in range(3):
        assert caller.ask("What does Molbury sell?", lora="tides-json").status_code == 200

    def told() -> dict[str, Any]:
        report: dict[str, Any] = deployment.cli("cache", "stats")[MODEL]
        return report

    def place() -> dict[str, Any]:
        return next((each for each in told()["adapters"] if each["digest"] == digest), {})

    report = told()
    tiers = {tier["tier"]: tier for tier in report["tiers"]}
    assert list(tiers) == ["device", "memory", "disk", "object"]
    assert tiers["device"]["hits"] >= 2
    assert tiers["object"]["loads"]["count"] >= 1
    assert sum(tiers["object"]["loads"]["counts"]) == tiers["object"]["loads"]["count"]
    assert {owner["name"] for owner in place()["owners"]} >= {"tides-json"}
    assert place()["device"]

    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "cache", "stats", "--prometheus", "--data-dir", str(deployment.data_dir)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert f'lorikeet_tier_up{{model="{MODEL}"}} 1\n' in done.stdout
    assert f'lorikeet_runtime_start_seconds{{model="{MODEL}"}} ' in done.stdout
    assert report["runtime"]["start_s"] > 0.5  # torch alone takes longer to be read
    assert report["runtime"]["generated_tokens"] > 0
    assert f'lorikeet_tier_refused_total{{model="{MODEL}",tier="disk"}} 0\n' in done.stdout

    reference = f"{caller.account_id}/tides-json"
    assert deployment.cli("cache", "pin", reference)["digests"] == [digest]
    until(lambda: bool(place().get("pinned")))
    deployment.cli("cache", "unpin", reference)
    until(lambda: not place().get("pinned"))
    deployment.cli("cache", "evict", reference)
    until(lambda: not any(place().get(where) for where in ("device", "memory", "disk")))
    deployment.cli("cache", "warm", reference)
    until(lambda: bool(place().get("memory")))

    found = deployment.cli("cache", "simulate", "--from", "logs", "--output", str(tmp_path / "curves.png"))
    assert found["requests"] >= 3
    assert found["costs"]["measured"] is True
    assert (tmp_path / "curves.png").stat().st_size > 1000
