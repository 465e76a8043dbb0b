"""Parts of several visits become one report."""

from pathlib import Path

from infra.bench.gpu import report
from infra.bench.gpu.visit import main
from kernels.bench.rows import Row, read_rows, write_rows

FIRST = [Row("a", 1.0, "us", "x", 2.0, 2.0, "faster", True), Row("b", 3.0, "us"), Row("c", None, "us", note="no time")]
SECOND = [
    Row("a", 4.0, "us", "x", 2.0, 0.5, "faster", False),
    Row("b", None, "us", note="it died"),
    Row("c", 5.0, "us"),
]


def test_the_last_figure_counts_and_no_figure_is_lost() -> None:
    rows = report.merged([FIRST, SECOND])
    assert [(row.metric, row.value, row.note) for row in rows] == [("a", 4.0, ""), ("b", 3.0, ""), ("c", 5.0, "")]
    assert report.merged([SECOND, FIRST])[2].value == 5.0
    both = report.merged([[Row("a", 1.0, "us", "x")], [Row("a", 2.0, "us", "y")]])
    assert [row.peer for row in both] == ["x", "y"]
    # What no visit measured says what the last one said of it.
    assert report.merged([[Row("c", None, "us", note="old")], [Row("c", None, "us", note="new")]])[0].note == "new"
    # A sum has no value of its own, only a ratio.
    assert report.merged([[Row("s", None, "", "x", ratio=2.0)], [Row("s", None, "", "x", note="?")]])[0].ratio == 2.0


def test_visits_are_merged_from_the_command_line(tmp_path: Path, capsys: object) -> None:
    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / "all"
    write_rows(first / "gpu-tests.json", FIRST)
    write_rows(second / "gpu-tests.json", SECOND)
    write_rows(second / "gpu-kernels.json", [Row("sgmv 48->32 r8 b3 uniform", 1.0, "us", "x")])
    (second / "gpu-loads.png").write_bytes(b"picture")
    assert main(["--merge", str(first), str(second), "--out", str(out)]) == 0
    assert [row.value for row in read_rows(out / "gpu-tests.json")] == [4.0, 3.0, 5.0]
    assert (out / "gpu-loads.png").read_bytes() == b"picture"
    assert (out / report.REPORT).read_text().count("\n| ") == 3
    # Merging the merged changes nothing.
    before = (out / "gpu-tests.json").read_bytes()
    assert main(["--merge", str(out), "--out", str(out)]) == 0
    assert (out / "gpu-tests.json").read_bytes() == before


def test_the_table_sums_up_and_names_what_was_missed() -> None:
    rows = [*SECOND, Row("sgmv 48->32 r8 b3 uniform", 1.0, "us", "x", holds=False), Row("d", 1.0, "us", holds=True)]
    text = report.text(rows)
    assert "1 of 3 targets hold" in text
    assert "missed: a (x), sgmv 48->32 r8 b3 uniform (x)" in text
    assert "without a figure: 1 rows" in text
    assert "us  x" not in text.replace("uniform", "")[text.index("targets") :]
    assert [row.metric for row in report.shown(rows)] == ["a", "b", "c", "d"]
    line = report.markdown([Row("a", 1234.5, "us", "x|y", 0.01234, 2.0, "faster", True, "a|b")]).splitlines()[-1]
    assert line == "| a | 1,234 | us | x|y | 0.0123 | 2.00x | faster | yes | a/b |"
