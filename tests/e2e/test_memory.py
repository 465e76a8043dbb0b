"""A deployment that cannot fit says so at once, in one sentence, and starts nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.deployment import MODEL, deploy

pytestmark = pytest.mark.timeout(120)


def _refused(*command: str, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", *command],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environ},
    )  # fmt: skip
    assert done.returncode == os.EX_CONFIG, done.stderr
    assert "loading" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


@pytest.mark.parametrize(
    ("command", "gateway"),
    [(["serve"], ["gateway", "request bodies", "log buffer"]), (["runtime", "--listen", "unix:/tmp/none.sock"], [])],
)
def test_more_than_the_machine_has_is_refused_before_anything_is_loaded(
    tmp_path: Path, command: list[str], gateway: list[str]
) -> None:
    told = _refused(*command, "--data-dir", str(tmp_path / "data"), LORIKEET_TIERS__MEMORY_BYTES=str(1024**5))
    for part in (*gateway, f"runtime {MODEL}", "keys and values", "1048576.0 GiB"):
        assert part in told
    assert told.rstrip().endswith("lower tiers.memory_bytes")
    assert not (tmp_path / "data").exists()


def test_a_budget_below_one_sequence_is_refused_with_the_numbers(tmp_path: Path) -> None:
    told = _refused("serve", "--data-dir", str(tmp_path / "data"), LORIKEET_RUNTIME__MEMORY=str(100 * 1024**2))
    assert "a budget of 100 MiB is too small" in told


def test_the_budget_becomes_the_cache(tmp_path: Path) -> None:
    with deploy(tmp_path / "data", LORIKEET_RUNTIME__MEMORY=str(500 * 1024**2)) as deployment:
        assert 0 < deployment.kv_bytes[MODEL] < 30 * 1024**2
        assert deployment.account("a").ask("What does Molbury sell?").status_code == 200
