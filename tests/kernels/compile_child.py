"""Compiles kernels for devices that are not here. A process of its own, because the tests' process interprets.

One line in: {"case": "module:name" (or "controls:name"), "arch": 90}. One line out: registers, stack, local, shared
(bytes), which tensor-core instructions the machine code holds, whether it waits for an earlier kernel or lets a
later one start (early), and whether a wgmma may read registers after the code went on (late); or {"error": sentence}.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.triton_jit import CompileCase
from tests.kernels.compile_controls import compile_cases as controls
from tests.kernels.registry import compile_cases

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def compiled(case: CompileCase, arch: int) -> dict[str, Any]:
    """What the compiler made of the case. Raises what the compiler raises."""
    names: list[str] = case.kernel.arg_names
    unknown = set(case.types) ^ (set(names) - set(case.constants))
    if unknown:
        return {"error": f"types and constants do not cover the parameters: {sorted(unknown)}"}
    source = ASTSource(
        case.kernel,
        {name: case.types.get(name, "constexpr") for name in names},
        dict(case.constants),
        {
            (index,): [["tt.divisibility", 16]]
            for index, name in enumerate(names)
            if case.types.get(name, "").startswith("*") or name in case.divisible
        },
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    counts = {key.lower(): int(count) for key, count in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    # HMMA and friends are the synchronous form, HGMMA and friends the warp group's
    kinds = set(re.findall(r"\b[HIQBD](G?)MMA\b", code))
    early = re.search(r"\b(ACQBULK|PREEXIT)\b", code) is not None
    found = {"mma": "" in kinds, "wgmma": "G" in kinds, "early": early, "late": _reads_late(made.asm["ptx"])}
    return {**counts, "shared": made.metadata.shared, **found}


_WGMMA_STEPS = re.compile(
    r"(?P<registers>wgmma\.mma_async[^;]*\},\s*\{[^}]*\},\s*%rd)|(?P<commit>wgmma\.commit_group)"
    r"|(?P<wait>wgmma\.wait_group\.sync\.aligned\s+0)|(?P<jump>\bbra\b|\bret\b|^\$\w+:)",
    re.MULTILINE,
)


def _reads_late(assembly: str) -> bool:
    """Whether a wgmma with an operand in registers is not waited for before the next jump, as in a pipelined loop."""
    reading = started = False
    for step in _WGMMA_STEPS.finditer(assembly):
        if step["registers"]:
            reading = True
        elif step["commit"]:
            started = reading
        elif step["wait"]:
            reading = started = False
        elif started:
            return True
    return False


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / name, *arguments], check=True, capture_output=True, text=True).stdout


def _sentence(error: BaseException) -> str:
    """With its causes: the compiler says where at the top, and what at the bottom."""
    cause = f"\n{_sentence(error.__cause__)}" if error.__cause__ else ""
    return f"{type(error).__name__}: {error}{cause}"


def main() -> None:
    """Answers until standard input ends."""
    cases = {**compile_cases(), **{f"controls:{case.name}": case for case in controls()}}
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = compiled(cases[question["case"]], question["arch"])
        except Exception as error:
            answer = {"error": _sentence(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
