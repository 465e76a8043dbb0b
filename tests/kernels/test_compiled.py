"""Tier 3: every kernel compiles for sm_80 and sm_90, without a GPU, without spilling a register to memory, and with the
tensor-core instructions that are meant, no others."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from tests.kernels.registry import compile_cases, jitted, kernel_modules, reached

CASES = compile_cases()
_CHILDREN = 2
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
Compile = Callable[[str, int], dict[str, Any]]


@pytest.fixture(scope="module")
def compile_case(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Compile]:
    """Two processes compile what the selected tests will ask for, ahead of them."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    # A cache of its own: what an earlier run compiled proves nothing about this source.
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    with ExitStack() as children, ThreadPoolExecutor(_CHILDREN) as pool:
        idle = SimpleQueue[Child]()
        for _ in range(_CHILDREN):
            idle.put(children.enter_context(Child(environment)))

        def answer(case: str, arch: int) -> dict[str, Any]:
            child = idle.get()
            try:
                return child.ask(case, arch)
            finally:
                idle.put(child)

        asked = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
        expected = [(params["name"], params["arch"]) for params in asked if {"name", "arch"} <= set(params)]
        ahead = dict[tuple[str, int], Future[dict[str, Any]]]()

        def ask(case: str, arch: int) -> dict[str, Any]:
            if case not in CASES:
                return answer(case, arch)
            # Not before the first of them: whoever asks for a control would wait behind all.
            for key in expected if not ahead else ():
                ahead[key] = pool.submit(answer, *key)
            return ahead[case, arch].result()

        yield ask
        pool.shutdown(cancel_futures=True)


class Child:
    """A process that compiles, `compile_child.py`; one question at a time."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kernels.compile_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env=environment,
            text=True,
        )

    def ask(self, case: str, arch: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"case": case, "arch": arch}), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


@pytest.mark.parametrize(
    ("control", "arch", "kind"),
    [("mma", 80, "mma"), ("mma", 90, "mma"), ("wgmma", 80, "mma"), ("wgmma", 90, "wgmma"), ("spill", 90, "none")],
)
def test_what_the_compiler_did_is_seen(compile_case: Compile, control: str, arch: int, kind: str) -> None:
    found = compile_case(f"controls:{control}", arch)
    assert (found["mma"], found["wgmma"]) == (kind == "mma", kind == "wgmma")
    assert (found["stack"] + found["local"] > 0) == (control == "spill")


@pytest.mark.parametrize("control", ["chain", "pipelined"])
def test_a_wgmma_that_reads_registers_late_is_seen(compile_case: Compile, control: str) -> None:
    found = compile_case(f"controls:{control}", 90)
    assert found["wgmma"]
    assert found["late"] == (control == "pipelined")


def test_what_the_compiler_refuses_is_a_sentence(compile_case: Compile) -> None:
    assert "Error" in compile_case("controls:small", 90)["error"]


@pytest.mark.parametrize(("name", "arch"), [(name, arch) for name, case in CASES.items() for arch in case.archs])
def test_kernel_compiles_as_intended(compile_case: Compile, name: str, arch: int) -> None:
    found, meant = compile_case(name, arch), CASES[name].tensor_cores
    assert "error" not in found, found["error"]
    assert (found["stack"], found["local"]) == (0, 0), f"spills: {found}"
    assert found["shared"] <= SHARED_BYTES[arch]
    assert found["early"] == bool(CASES[name].constants.get("EARLY"))
    assert found["wgmma"] == (meant == "wgmma" and arch == 90), found
    assert found["mma"] == (meant == "mma" or (meant == "wgmma" and arch == 80)), found
    # ptxas before 13.3 may write over the registers that such a wgmma still reads
    assert not found["late"]


def test_every_kernel_has_a_compile_case() -> None:
    covered = {function for case in CASES.values() for function in reached(case.kernel)}
    forgotten = [
        f"{module.__name__}.{name}"
        for module in kernel_modules()
        for name, kernel in jitted(module).items()
        if kernel.fn not in covered
    ]
    assert not forgotten
