"""A real runtime process on the demo base, as the supervisor starts it."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gateway.demo import BASE_FOLDER
from gateway.settings import DEMO_MODEL
from runtime.config import RuntimeConfig

TOKEN = "between gateway and runtime"


@contextlib.contextmanager
def runtime_process(otlp_endpoint: str = "") -> Iterator[Path]:
    """Yields the socket that it listens on; the process is gone at the end."""
    with tempfile.TemporaryDirectory(prefix="lk-") as folder:  # short: a Unix socket's path has a limit
        path = Path(folder) / "s"
        config = RuntimeConfig(
            model=DEMO_MODEL,
            model_folder=str(BASE_FOLDER),
            threads=1,
            kv_bytes=16 * 1024**2,
            socket_path=str(path),
            token=TOKEN,
            objects_root=str(Path(folder) / "objects"),
            tier_dir=str(Path(folder) / "tiers"),
            otlp_endpoint=otlp_endpoint,
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(config.to_json().decode() + "\n")
        process.stdin.flush()
        try:
            assert any(line.strip() == "ready" for line in process.stdout), "the runtime did not start"
            yield path
            process.terminate()
            process.wait(20)
        finally:
            process.kill()
            process.wait(10)
            process.stdin.close()
            process.stdout.close()
