"""The small cases once more under NVIDIA's compute-sanitizer, where it is installed: reads and writes out of bounds
(memcheck) and races in shared memory (racecheck). Without torch's cache of memory, so that every tensor has its own
bounds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
FOUND = 9


@pytest.mark.slow
@pytest.mark.skipif(TOOL is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("check", ["memcheck", "racecheck"])
def test_small_cases_are_clean(check: str) -> None:
    assert TOOL is not None
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu", "-k", "tiny", str(ROOT / "tests" / "gpu")]
    command = [TOOL, "--tool", check, "--error-exitcode", str(FOUND), "--target-processes", "all", *tests]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-4000:]
