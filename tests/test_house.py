"""House rules that no linter knows: sizes, who reads the environment, what must never appear."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("gateway", "runtime", "storage", "kernels")


def _sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_no_file_is_over_500_lines() -> None:
    long = {str(path.relative_to(ROOT)): n for path in _sources(*PACKAGES, "infra", "tests")
            if (n := len(path.read_text(encoding="utf-8").splitlines())) > 500}  # fmt: skip
    assert not long


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in _sources(*PACKAGES)
        if path.read_text(encoding="utf-8").strip()
        and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent


def test_only_settings_reads_the_environment() -> None:
    readers = [
        str(path.relative_to(ROOT))
        for path in _sources(*PACKAGES)
        if re.search(r"os\.environ|os\.getenv|from os import environ", path.read_text(encoding="utf-8"))
    ]
    assert readers == ["gateway/settings.py"]


@pytest.mark.parametrize(
    "pattern",
    [r"\bpickle\b(?! )", r"\btorch\.load\b", r"\beval\(", r"\bexec\(", r"shell=True", r"trust_remote_code=True"],
)
def test_dangerous_calls_are_absent(pattern: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in _sources(*PACKAGES)
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(pattern, line)
        and re.search(r"(import pickle|torch\.load\(|[^.\w]eval\(|[^.\w]exec\(|shell=True|trust_remote)", line)
    ]
    assert not found


def test_modules_do_nothing_when_imported() -> None:
    """At module level only definitions, constants and the `__main__` guard: no statement that acts."""
    acting = []
    for path in _sources(*PACKAGES):
        if "migrations" in path.parts:
            continue  # alembic runs env.py as a script
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            bare_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            loop = isinstance(node, ast.For | ast.While | ast.With)
            if (bare_call or loop) and path.name != "cli.py" and not _typer_wiring(node):
                acting.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not acting


def _typer_wiring(node: ast.stmt) -> bool:
    return "app." in ast.unparse(node) and "commands" in ast.unparse(node)
