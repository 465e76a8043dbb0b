"""The benchmark of attention, element-wise work and sampling as it runs on a GPU host, interpreted at toy sizes: what
is measured here means nothing, but works, processes, rows and failures are the real ones."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.bench import steps
from kernels.bench.rows import Row, read_rows
from kernels.bench.shrink_works import VARIANTS
from kernels.bench.step_sizes import SIZES, Work
from kernels.bench.step_works import FAMILIES, SDPA
from kernels.triton_jit import interpreting

CPU = torch.device("cpu")


def _arguments(tmp_path: Path, **changed: Any) -> argparse.Namespace:
    given = ["--points", "tiny", "--device", "cpu", "--repeats", "1", "--out", str(tmp_path / "rows.json")]
    return argparse.Namespace(**{**vars(steps.parser().parse_args(given)), **changed})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_work_runs_and_ours_agrees_with_torch(family: str, tmp_path: Path) -> None:
    with interpreting():
        rows = [row for made in steps.measured(family, _arguments(tmp_path)) for row in made]
    assert all(row.value is not None for row in rows), rows
    peers = {"decode": {SDPA}, "prefill": {SDPA}, "shrinks": set(VARIANTS)}
    assert {row.peer for row in rows} == {"byte floor"} | peers.get(family, set())
    assert len({(row.metric, row.peer) for row in rows}) == len(rows)


def test_bytes_and_operations_are_counted() -> None:
    decode = next(FAMILIES["decode"](SIZES["tiny"], CPU, torch.float16))
    assert decode.bytes == 2 * (40 * 2 * 1 * 16 + 2 * 2 * 16) * 2
    prefill = next(FAMILIES["prefill"](SIZES["tiny"], CPU, torch.float16))
    assert prefill.flops == 4 * 2 * 16 * sum(range(71)) - 2 * 2 * 16 * 70  # the diagonal counts half


def test_what_differs_is_not_timed() -> None:
    def fail() -> None:
        raise AssertionError

    work = Work("x", 1, [fail], [fail], "peer", results=(lambda: torch.ones(3), lambda: torch.ones(3) * 1.1))
    (row,) = steps.rows_of(work, CPU, 1e9, 1.0, 1)
    assert row.value is None
    assert row.note == "ours and peer differ by 9.1e-02"


@pytest.mark.parametrize(("size", "holds"), [(1, None), (10_000_000, True), (100, False)])
def test_the_floor_is_a_target_where_bytes_dominate(size: int, holds: bool | None) -> None:
    work = Work("x", size, [lambda: None])
    (row,) = steps.rows_of(work, CPU, 1e6, 20.0, 1)
    assert row.ratio is not None
    if holds:
        assert (row.holds, row.target) == (True, ">= 80% of the copy speed")
    elif holds is None:
        assert row.holds is None
    else:
        assert row.ratio == pytest.approx(100 / row.value if row.value else 0)


def test_a_failure_is_a_row_and_the_next_work_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("out of memory\nand more")

    works = [Work("first", 1, [broken]), Work("second", 1, [lambda: None])]
    monkeypatch.setitem(FAMILIES, "decode", lambda *_: iter(works))
    first, second = steps.measured("decode", _arguments(tmp_path))
    assert (first[0].value, first[0].note) == (None, "RuntimeError: out of memory")
    assert second[0].value is not None
    late = steps.measured("decode", _arguments(tmp_path, seconds=-1.0))
    assert [made[0].note for made in late] == ["no time was left"] * 2


def test_processes_leave_their_rows_and_say_how_they_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.json"
    out.write_text(json.dumps([Row("earlier", 1.0, "us", "x")._asdict()]))
    given = ["--points", "tiny", "--device", "cpu", "--repeats", "1", "--out", str(out)]
    assert steps.main([*given, "--families", "sampling,nonsense"]) == 0
    rows = read_rows(out)
    assert rows[0].metric == "earlier"
    assert [row.metric for row in rows if row.value is None] == ["nonsense, as a whole"]
    assert "KeyError" in rows[-1].note
    printed = capsys.readouterr().out
    assert "sampling, top_p, 2 rows of 300 words" in printed
    assert "earlier" not in printed
    assert steps.main([*given, "--families", "nonsense"]) == 1
