"""The SGMV benchmark as it runs on a GPU host, interpreted at toy sizes: what is measured here means nothing, but the
grid, the processes, the rows and every way in which a peer can be absent are the real ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.bench import sgmv, tune_sgmv
from kernels.bench.clock import Timed, copy_bandwidth, in_turns, launch_us
from kernels.bench.peers.base import Operation, PeerMissing
from kernels.bench.peers.ours import Ours
from kernels.bench.peers.sglang import Csgmv, TritonV2
from kernels.bench.peers.torch_ops import AllSlots, GroupedProducts
from kernels.bench.peers.vllm import Vllm
from kernels.bench.rows import Row, merge_rows, read_rows, table
from kernels.bench.sgmv_child import error_of, measured
from kernels.bench.sgmv_points import KINDS, Point, Problem, grid, lengths, point_bytes
from kernels.lora_expand import expand_plan
from kernels.lora_shrink import shrink_plan
from kernels.triton_jit import interpreting
from kernels.tuning import read_plans

CPU = torch.device("cpu")
SOURCES = Path(__file__).parents[3] / "peers" / "gpu"
POINT = Point(48, 32, 8, 3, "uniform")


def test_the_grid_is_punicas() -> None:
    points = grid("full")
    assert len(points) == len(set(points)) == 2 * 4 * (1 + 6 * 4)
    assert {(p.in_features, p.out_features) for p in points} == {(4096, 11008), (11008, 4096)}
    assert {p.rank for p in points} == {8, 16, 32, 64}
    assert set(grid("quick")) < set(points)
    assert all(sum(lengths(kind, rows)) == rows for kind in KINDS for rows in (1, 2, 7, 64))


def test_bytes_count_each_adapter_once() -> None:
    one, all_ = (point_bytes(Point(4096, 11008, 16, 8, kind)) for kind in ("identical", "distinct"))
    assert all_ - one == 7 * 16 * (4096 + 11008) * 2


@pytest.mark.parametrize("point", grid("tiny"))
@pytest.mark.parametrize("peer", [Ours(), Ours(1), Ours(16), AllSlots()])
def test_what_needs_no_sources_computes_the_operation(peer: Ours | AllSlots, point: Point) -> None:
    problem = Problem(point, CPU, torch.float32, most_sets=2)
    with interpreting():
        before = problem.y.clone()
        assert error_of(peer, problem) < 1e-5
        assert torch.equal(problem.y, before)
        assert len(peer.operations(problem)) == problem.sets


def test_grouped_products_compute_the_operation() -> None:
    problem = Problem(Point(48, 32, 8, 17, "zipf"), CPU, torch.bfloat16, most_sets=2)
    assert error_of(GroupedProducts(), problem) < 5e-3


@pytest.mark.skipif(not SOURCES.is_dir(), reason="peers' sources are not here (infra/gpu_peers.sh)")
@pytest.mark.parametrize("point", [POINT, Point(64, 64, 16, 5, "distinct")])
@pytest.mark.parametrize("kind", ["vLLM", "csgmv", "triton_v2"])
def test_peers_compute_the_operation(kind: str, point: Point) -> None:
    peer = {"vLLM": Vllm, "csgmv": Csgmv, "triton_v2": TritonV2}[kind](SOURCES)
    problem = Problem(point, CPU, torch.float16, most_sets=1)
    with interpreting():
        assert error_of(peer, problem) < 1e-3


def test_a_peer_that_computes_something_else_is_not_timed() -> None:
    class Liar:
        def operations(self, problem: Problem) -> list[Operation]:
            return [lambda: None] * problem.sets

    with interpreting(), pytest.raises(PeerMissing, match="the peer is off by"):
        measured(POINT, Liar(), CPU, torch.float32, repeats=1, sets=1)


def test_the_whole_command_reports_what_ran_and_what_did_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench-results" / "gpu-kernels.json"
    merge_rows(out, [Row("of an earlier visit", 1.0, "us", "vLLM", 2.0, 2.0)])
    command = ["--points", "tiny", "--device", "cpu", "--sets", "1", "--repeats", "1", "--out", str(out)]
    command += ["--peers", "cuBLAS all slots,vLLM,Punica bgmv", "--peers-folder", str(tmp_path / "nothing")]
    assert sgmv.main(command) == 0
    rows = read_rows(out)
    assert rows[0].metric == "of an earlier visit"
    by_peer = {peer: [row for row in rows if row.peer == peer and row.metric.startswith("sgmv")] for peer in
               ("cuBLAS all slots", "vLLM", "Punica bgmv", "byte floor")}  # fmt: skip
    assert all(len(found) == 3 for found in by_peer.values())
    for row in by_peer["cuBLAS all slots"][:2]:
        assert row.ratio == pytest.approx((row.peer_value or 0) / (row.value or 1))
        assert (row.holds, row.unit, row.target) == ((row.ratio or 0) > 1, "us", "faster")
        assert "MB, floor" in row.note
    assert all("infra/gpu_peers.sh" in row.note and row.peer_value is None for row in by_peer["vLLM"])
    assert all("punica.so" in row.note for row in by_peer["Punica bgmv"])
    assert "SGMV beside its peers" in capsys.readouterr().out


def test_a_process_that_dies_leaves_its_rows_and_a_reason() -> None:
    points = grid("tiny")
    lines: list[dict[str, Any]] = [
        {"bandwidth": 4e12, "launch_us": 4.0, "device": "a card"},
        {"point": list(points[0]), "bytes": 40_000_000, "ours_us": 11.0, "peer_us": 22.0, "note": ""},
        {"died": "its process ended with -11: Segmentation fault"},
    ]
    floor, measured_row, lost = sgmv.rows_of("it", lines, points)
    assert (floor.peer_value, floor.holds, floor.target) == (10.0, True, "<= 1.15 x the byte floor")
    assert (measured_row.ratio, measured_row.holds) == (2.0, True)
    assert (lost.value, lost.note) == (None, "its process ended with -11: Segmentation fault")
    slow = sgmv.floor_row(points[0], 12.0, 10.0, 4.0, "")
    small = sgmv.floor_row(points[0], 12.0, 7.9, 4.0, "")
    assert (slow.holds, small.holds, small.target) == (False, None, None)


def test_the_summary_counts_and_names_the_worst() -> None:
    rows = [Row("a", 1.0, "us", "it", 4.0, 4.0, "faster", True), Row("b", 2.0, "us", "it", 2.0, 1.0, "faster", False)]
    (total,) = sgmv.summary([*rows, Row("c", None, "us", "it", note="no time was left")])
    assert (total.ratio, total.holds) == (2.0, False)
    assert "1 of 2, 2 of 3 measured; worst 1.00x at b" in total.note
    assert "2.00x" in table("title", [total])


def test_the_clock_counts_per_operation() -> None:
    calls = list[int]()
    operations = [lambda: calls.append(1)] * 5
    assert in_turns([Timed(operations, CPU), Timed(operations, CPU)], 3)[0] > 0
    assert len(calls) == 2 * 5 * 4
    assert copy_bandwidth(CPU) > 0
    assert launch_us(CPU) >= 0


def test_the_search_for_block_sizes_goes_on_where_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune_sgmv, "RANK", 2)
    monkeypatch.setattr(tune_sgmv, "MOST_RANK", 4)
    few = {"rank_block": (1, 2)}, {"column_block": (16, 64)}
    monkeypatch.setattr(tune_sgmv, "SEARCH", {1: few, 16: ({"planes": (1, 2)}, {"rank_block": (16,)})})
    path, groups = tmp_path / "none.json", {"g": (16, (8, 8))}
    command = ["--device", "cpu", "--sets", "1", "--repeats", "1", "--out", str(path), "--tiles"]
    tune_sgmv.main([*command, "1"], groups)
    first = read_plans(path)
    assert len(first) == 4
    tune_sgmv.main([*command, "1", "3"], groups)
    both = read_plans(path)
    assert len(both) == 8
    assert all(both[place] == plan for place, plan in first.items())
    tune_sgmv.main([*command, "2", "--seconds", "0"], groups)
    assert read_plans(path) == both
    assert json.loads(path.read_text())["made"].startswith("kernels/bench/tune_sgmv.py on none")
    assert capsys.readouterr().out.count("lora_shrink") == 4


def test_a_plan_that_cannot_be_launched_loses() -> None:
    with interpreting():
        pair = tune_sgmv.make_pair(16, (8,), 1, 1, CPU, torch.float32, 1)
        shrink, expand = shrink_plan(pair.segments, 1, 16), expand_plan(pair.segments, (8,))
        assert pair.timed(1, shrink, expand) < float("inf")
        assert pair.timed(1, shrink._replace(in_block=1000), expand) == float("inf")
