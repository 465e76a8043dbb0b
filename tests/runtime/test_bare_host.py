"""A GPU host has torch, triton, numpy, safetensors, transformers, peft and pytest, and no network: kernels, layers,
models, runner, sampler and engine must be imported there, and work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.bare_host_child import answers, make_folder

ROOT = Path(__file__).parents[2]
GIVEN = ("torch", "triton", "numpy", "safetensors", "transformers", "peft", "pytest")
OURS = ("runtime", "storage", "kernels", "tests", "infra")
# Not there at all, for whoever imports them.
ABSENT = ("msgspec", "llguidance", "numba", "aiobotocore", "botocore", "httpx", "aiohttp", "starlette", "uvicorn",
          "opentelemetry", "rich", "typer", "cachetools", "sqlalchemy", "pyarrow", "hypothesis")  # fmt: skip
# What stays at the edges: the process, its socket and settings, the tiers' client, grammars, the CPU's program.
EDGES = {
    "runtime.__main__", "runtime.cache_report", "runtime.client", "runtime.codec", "runtime.config",
    "runtime.connection", "runtime.link", "runtime.listen", "runtime.loader", "runtime.process", "runtime.outputs",
    "runtime.service", "runtime.stream", "runtime.tracing", "runtime.grammars.compiler", "runtime.grammars.sandbox",
    "runtime.grammars.trial", "runtime.models.cpu_program",
}  # fmt: skip

CHILD = """
import builtins, sys

allowed, absent = set(sys.argv[1].split(",")) | set(sys.stdlib_module_names), sys.argv[2].split(",")
ours = tuple(sys.argv[3].split(","))
sys.modules.update(dict.fromkeys(absent))
original = builtins.__import__


def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    importer = str((globals or {}).get("__name__"))
    top = name.partition(".")[0]
    if importer.partition(".")[0] in ours and level == 0 and top not in allowed and top not in ours:
        if top not in absent:
            raise AssertionError(f"{importer} imports {name}")
    return original(name, globals, locals, fromlist, level)


builtins.__import__ = guarded
"""


def run(program: str, allowed: tuple[str, ...] = GIVEN) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-c", CHILD + program, ",".join(allowed), ",".join(ABSENT), ",".join(OURS)]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)


def modules(package: str) -> list[str]:
    paths = sorted((ROOT / package).rglob("*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]


def test_all_but_the_edges_can_be_imported() -> None:
    # The encoder is a process of its own for gateways, and nothing of the engine.
    names = [name for name in modules("runtime") if name not in EDGES and not name.startswith("runtime.encoder")]
    names += ["storage.geometry", "storage.packed", "storage.errors", "storage.records"]
    assert set(modules("runtime")) >= EDGES
    assert {"runtime.engine", "runtime.runner", "runtime.device_runner", "runtime.residency"} <= set(names)
    result = run("import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in names))
    assert result.returncode == 0, result.stderr


def test_an_engine_answers_there_as_it_does_here(tmp_path: Path) -> None:
    make_folder(tmp_path)
    # transformers and PEFT are there, but nobody needs them.
    result = run(
        f"""
from pathlib import Path
from tests.runtime.bare_host_child import answers
import json
print(json.dumps(answers(Path({str(tmp_path)!r}))))
assert not set(sys.modules) & {{"transformers", "peft"}}
assert all(sys.modules[name] is None for name in absent)
"""
    )
    assert result.returncode == 0, result.stderr
    expected = answers(tmp_path)
    assert json.loads(result.stdout) == expected
    assert len({tuple(answer) for answer in expected}) == 4


def test_a_devices_engine_answers_there_as_the_cpus_does(tmp_path: Path) -> None:
    make_folder(tmp_path)
    result = run(
        f"""
import os
os.environ["TRITON_INTERPRET"] = "1"
from pathlib import Path
from tests.runtime.bare_host_child import answers_of_device
import json
print(json.dumps(answers_of_device(Path({str(tmp_path)!r}))))
assert all(sys.modules[name] is None for name in absent)
"""
    )
    assert result.returncode == 0, result.stderr
    found, expected = json.loads(result.stdout), answers(tmp_path)
    assert found[:2] == [answer[:4] for answer in expected[:2]]
    assert all(len(answer) == 4 for answer in found)


@pytest.mark.parametrize(
    ("program", "complaint"),
    [("import runtime.codec", "import of msgspec halted"), ("import runtime.runner", "imports torch")],
)
def test_the_guard_sees_what_is_missing(program: str, complaint: str) -> None:
    result = run(program, tuple(name for name in GIVEN if name != "torch"))
    assert complaint in result.stderr
