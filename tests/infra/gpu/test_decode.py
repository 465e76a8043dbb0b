"""What the decode benchmark makes of figures: bytes, floors, targets, and rows where there is no figure."""

import pytest

from infra.bench.gpu.child import Line
from infra.bench.gpu.decode import FLOOR, PEER, Side, case_rows, rows_of
from infra.bench.gpu.decode_cases import Case, cases, distinct, overhead_target
from infra.bench.gpu.settings import LLAMA, TOY, cell_bytes, rank_row_bytes, step_bytes, weight_bytes

ABOUT = {"device": "a card", "bandwidth": 4e12}


def test_bytes_are_llama_2_7bs() -> None:
    """13.2 GB of linear maps and head, 80 MB for an adapter of rank 16, half a megabyte for a token in the cache."""
    assert weight_bytes(LLAMA) == 2 * (32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + 32_000 * 4096)
    assert weight_bytes(LLAMA) / 1e9 == pytest.approx(13.21, abs=0.01)
    assert 16 * rank_row_bytes(LLAMA) / 1e6 == pytest.approx(80, abs=0.1)
    assert cell_bytes(LLAMA) == 2 * 32 * 32 * 128 * 2
    two = step_bytes(LLAMA, 2, 512, 48)
    assert two == weight_bytes(LLAMA) + 2 * 513 * cell_bytes(LLAMA) + 48 * rank_row_bytes(LLAMA)


def test_the_grid_is_the_issues() -> None:
    names = [str(case) for case in cases(LLAMA)]
    assert len(names) == len(set(names))
    for batch in (1, 8, 32, 64):
        assert f"decode.b{batch}.base" in names
        for rank in (8, 16, 64):
            for count in (1, 8, 32):
                assert (f"decode.b{batch}.r{rank}.d{count}" in names) == (count <= batch)
    assert all(sum(case.lengths) == case.batch for case in cases(LLAMA) if case.rank)
    assert names[:4] == [f"decode.b{batch}.base" for batch in (1, 8, 32, 64)]
    assert {case.rank for case in cases(TOY)} == {0, 2}


def test_targets_are_the_designs() -> None:
    assert overhead_target(distinct(8, 16, 1)) == overhead_target(Case(16, "zipf", 16, (6, 4, 4, 2))) == 0.04
    assert overhead_target(distinct(16, 16, 16)) == 0.10
    for other in (distinct(32, 16, 1), distinct(8, 64, 1), distinct(8, 16, 8), Case(8, "base")):
        assert overhead_target(other) is None


def _sides(ms: float, base_ms: float, peer_ms: float | None, case: Case) -> tuple[Side, Side]:
    line: Line = {"key": str(case), "ms": ms, "base_ms": base_ms, "host_ms": 0.5}
    peer = {} if peer_ms is None else {str(case): {"key": str(case), "ms": peer_ms}}
    return Side(ABOUT, {str(case): line}, ""), Side({}, peer, "its process ended with 1: no peft")


@pytest.mark.parametrize(("share", "holds"), [(0.85, True), (0.75, False)])
def test_a_base_step_beside_the_floor(share: float, holds: bool) -> None:
    case = Case(8, "base")
    floor = 1e3 * step_bytes(LLAMA, 8, 520, 0) / 4e12
    step, rate = case_rows(LLAMA, case, *_sides(floor / share, 0.0, 40.0, case))
    assert (step.peer, step.holds) == (FLOOR, holds)
    assert step.peer_value == pytest.approx(floor)
    assert step.ratio == pytest.approx(share)
    assert rate.peer == PEER
    assert rate.peer_value == pytest.approx(200.0)
    assert rate.value == pytest.approx(8e3 * share / floor)
    assert rate.ratio == pytest.approx(40.0 * share / floor)


@pytest.mark.parametrize(("more", "holds"), [(1.03, True), (1.05, False)])
def test_adapters_beside_the_base_of_the_same_rows(more: float, holds: bool) -> None:
    case = distinct(8, 16, 1)
    step, added, rate = case_rows(LLAMA, case, *_sides(5 * more, 5.0, None, case))
    assert step.target is None
    assert (added.holds, added.target) == (holds, "<= 4%")
    assert added.value == pytest.approx(100 * (more - 1))
    assert (rate.peer_value, rate.ratio, rate.note) == (None, None, "its process ended with 1: no peft")
    assert case_rows(LLAMA, Case(64, "base"), *_sides(5.0, 5.0, None, Case(64, "base")))[0].target is None


def test_whatever_is_missing_there_is_a_row_that_says_why() -> None:
    lost = Side(
        {}, {"decode.b1.base": {"key": "decode.b1.base", "note": "out of memory"}}, "its process ended with -9: x"
    )
    rows = rows_of(LLAMA, lost, Side({}, {}, "was stopped"))
    assert all(row.value is None for row in rows)
    notes = {row.metric: row.note for row in rows if row.peer == FLOOR or row.peer is None}
    assert notes["decode.b1.base"] == "out of memory"
    assert notes["decode.b64.base"] == "its process ended with -9: x"
    assert "decode.idle_adapters" in notes
    assert {row.note for row in rows if row.metric == "ttft.128"} == {
        f"ours: its process ended with -9: x; {PEER}: was stopped"
    }


def test_idle_adapters_must_cost_nothing() -> None:
    def idle(ms: float) -> bool | None:
        line = {"key": "idle", "batch": 8, "ms": ms, "before_ms": 5.0}
        return next(
            row.holds for row in rows_of(TOY, Side(ABOUT, {"idle": line}, ""), Side({}, {}, "")) if "idle" in row.metric
        )

    assert idle(5.02)
    assert not idle(5.2)
