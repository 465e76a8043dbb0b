"""A GPU host has torch, triton, numpy, safetensors, transformers, peft and pytest, and nothing of ours installed: all
of a visit must be imported there. What is absent is what `tests/runtime/test_bare_host.py` says."""

from tests.runtime.test_bare_host import GIVEN, modules, run

NAMES = [name for folder in ("infra/bench/gpu", "kernels/bench") for name in modules(folder) if "__main__" not in name]
PROGRAM = f"import importlib\nfor name in {NAMES!r}:\n    importlib.import_module(name)\n"


def test_a_gpu_host_can_import_all_of_a_visit() -> None:
    assert {f"infra.bench.gpu.{name}" for name in ("decode_ours", "decode_peft", "loads_ours", "visit")} <= set(NAMES)
    found = run(PROGRAM)
    assert found.returncode == 0, found.stderr


def test_the_guard_sees_what_is_missing() -> None:
    found = run(PROGRAM, tuple(name for name in GIVEN if name != "peft"))
    assert "infra.bench.gpu.decode_peft imports peft" in found.stderr
