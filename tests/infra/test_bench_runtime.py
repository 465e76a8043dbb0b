"""The runtime's benchmark on a tiny model: real children on every side, complete rows, sides that agree."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from infra.bench import stage as stage_module
from infra.bench.batch_cases import batch8
from infra.bench.case import Effort
from infra.bench.cases import CASES, WIDE, plan
from infra.bench.children import ChildFailed
from infra.bench.folders import adapter_refs, make_folders
from infra.bench.plot import write_plot
from infra.bench.rows import Row, markdown, write_rows
from infra.bench.serving_cases import overhead, served
from infra.bench.shapes import ADAPTERS, HALF, SMALL, SMALL32, TINY
from infra.bench.single_cases import floor, same, single, ttft
from infra.bench.stage import NO_PEERS, PEERS, Stage

EFFORT = Effort(rounds=1, tokens=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("cache"), TINY)


@pytest.fixture(scope="module")
def stage(folder: Path) -> Iterator[Stage]:
    with Stage(TINY, "float32", folder, folder.parent / "logs") as stage:
        yield stage


@pytest.fixture
def no_llama(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stage_module, "PEERS", tmp_path / "python")


def test_a_folder_is_made_once_and_holds_what_the_sides_read(folder: Path) -> None:
    made: list[float] = []
    assert make_folders(folder.parent, TINY, made.append) == folder
    assert not made
    refs = adapter_refs(folder)
    assert list(refs) == [adapter.name for adapter in ADAPTERS]
    assert all((folder / "packed" / ref.object_key).stat().st_size == ref.size_bytes for ref in refs.values())
    assert [refs[adapter.name].rank for adapter in ADAPTERS] == [adapter.rank for adapter in ADAPTERS]


def test_the_sizes_are_what_they_say() -> None:
    assert 70e6 < SMALL.num_weights < 72e6
    assert 0.49e9 < HALF.num_weights < 0.5e9


def test_a_file_in_fp32_is_read_as_it_is_and_says_nothing_of_bf16(tmp_path: Path) -> None:
    folder = make_folders(tmp_path, replace(TINY, name="tiny32", stored="float32"))
    tensors = load_file(folder / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert not torch.equal(tensors["model.norm.weight"], tensors["model.norm.weight"].bfloat16().float())
    with Stage(TINY, "float32", folder, tmp_path / "logs") as stage:
        assert (stage.held, stage.held_note, stage.gguf_kinds) == ("float32", "", ("f32",))
        assert stage.weight_bytes == 4 * TINY.num_weights
    with Stage(TINY, "bfloat16", make_folders(tmp_path, TINY), tmp_path / "logs") as stage:
        assert (stage.held, stage.held_note, stage.gguf_kinds) == ("bfloat16", "", ("bf16", "f16"))


def test_a_mixed_batch_beside_peft(stage: Stage) -> None:
    rate, cost = batch8("mixed")(stage, EFFORT)
    assert rate.metric == "tiny.fp32.batch8.mixed"
    assert rate.peer == "transformers + PEFT"
    assert rate.value is not None
    assert rate.peer_value is not None
    assert rate.ratio == pytest.approx(rate.value / rate.peer_value)
    assert rate.target == ">= 8x"
    assert rate.note.startswith("file and our weights bfloat16, all else float32; rounds")
    assert "CPU ms/token" in rate.note
    assert cost.metric == "tiny.fp32.batch8.mixed.cost"
    assert cost.value is not None
    assert cost.value > 0


def test_every_side_says_the_same_tokens(stage: Stage) -> None:
    peft, llama = same(stage, EFFORT)
    assert (peft.peer_value, peft.holds) == (peft.value, True)
    if not PEERS.exists():
        assert (llama.peer_value, llama.note) == (None, NO_PEERS)
        return
    assert (llama.peer_value, llama.holds) == (llama.value, True), llama.note


@pytest.mark.skipif(not PEERS.exists(), reason=NO_PEERS)
def test_one_sequence_beside_llama_cpp(stage: Stage) -> None:
    rows = [*single("r16-0")(stage, EFFORT), *ttft(16)(stage, EFFORT)]
    assert [(row.metric, row.peer) for row in rows] == [
        ("tiny.fp32.single.adapter", "llama.cpp f32"),
        ("tiny.fp32.single.adapter", "llama.cpp bf16"),
        ("tiny.fp32.ttft.16", "llama.cpp f32"),
        ("tiny.fp32.ttft.16", "transformers"),
    ]
    assert all(row.value and row.peer_value and row.ratio for row in rows)


@pytest.mark.usefixtures("no_llama")
def test_a_peer_that_is_not_there_is_a_row_with_the_reason(stage: Stage) -> None:
    row, _ = single("r16-0")(stage, EFFORT)
    assert row.value
    assert (row.peer, row.peer_value, row.ratio, row.holds) == ("llama.cpp f32", None, None, None)
    assert "make bench-peers" in row.note


def test_the_memory_floor(stage: Stage) -> None:
    (row,) = floor(stage, EFFORT)
    assert row.peer == "memory floor"
    assert row.peer_value
    assert "file and our weights bfloat16, all else float32" in row.note
    assert "GB/s" in row.note
    assert stage.weight_bytes == 2 * TINY.num_weights


def test_the_timing_wrapper_counts_every_decode_step(stage: Stage) -> None:
    prompts = stage.prompts(4, 8)
    found = stage.ours().ask("overhead", prompts=prompts, adapters=["r16-0", None, "r16-1", None], tokens=9)
    assert {name: len(values) for name, values in found.items()} == {"engine_ms": 7, "build_ms": 7, "step_ms": 7}
    for engine, build, step in zip(found["engine_ms"], found["build_ms"], found["step_ms"], strict=True):
        assert 0 < engine < step
        assert 0 < build < step - engine
    whole, build_row = overhead(stage, EFFORT)
    assert whole.target == "< 0.3 ms"
    assert whole.value is not None
    assert build_row.value is not None


def test_callers_of_a_real_runtime_process(stage: Stage) -> None:
    rate, *waits = served(3)(stage, EFFORT)
    assert rate.metric == "tiny.fp32.served.3"
    assert rate.value
    assert [row.metric.rpartition(".")[2] for row in waits] == [
        "first_p50",
        "between_p50",
        "between_p99",
        "cpu_per_token",
    ]
    load = stage.service().load(stage.prompts(4, 8), [None, "r16-2", None, None], 6, 2)
    assert (load.tokens, len(load.first_s), len(load.gaps_s)) == (24, 4, 20)


def test_a_child_that_fails_says_why_and_one_that_dies_too(stage: Stage) -> None:
    with pytest.raises(ChildFailed, match="KeyError: 'nobody'"):
        stage.ours().batch(stage.prompts(1, 4), ["nobody"], 2)
    assert stage.ours().batch(stage.prompts(1, 4), [None], 2).tokens == 1
    with (
        Stage(TINY, "float32", stage.folder, stage.folder.parent / "logs") as broken,
        pytest.raises(ChildFailed, match=r"tiny\.fp32\.memory ended: RuntimeError: .*negative"),
    ):
        broken.memory(-400)


def test_a_child_that_does_not_come_back_is_given_up(folder: Path) -> None:
    with Stage(TINY, "float32", folder, folder.parent / "logs") as stage:
        memory = stage.memory(4_000_000)
        memory.limit_s = 0.1
        with pytest.raises(ChildFailed, match=r"no answer within 0\.1 s"):
            memory.batch([], [], 10**9)


def test_cases_are_chosen_by_a_part_of_their_name() -> None:
    everything, left_out = plan(False, "")
    assert len(everything) + len(left_out) == 4 * len(CASES) + 2
    assert [(dtype, case) for shape, dtype, case in everything if shape == SMALL32] == list(WIDE)
    assert "half.fp32.batch8.zipf" in left_out
    chosen, left_out = plan(False, "half.fp32.batch8.zipf")
    assert (chosen, left_out) == ([(HALF, "float32", "batch8.zipf")], [])
    quick, _ = plan(True, "")
    assert {(shape, dtype) for shape, dtype, _ in quick} == {(SMALL, "bfloat16")}


def test_rows_are_written_as_the_list_that_readers_expect(tmp_path: Path) -> None:
    rows = [
        Row(metric="small.bf16.served.8", value=310.0, unit="tokens/s", note="a|b"),
        Row(metric="small.bf16.served.1", value=90.4, unit="tokens/s"),
    ]
    write_rows(tmp_path / "results" / "runtime.json", rows)
    found = msgspec.json.decode((tmp_path / "results" / "runtime.json").read_bytes())
    fields = ["metric", "value", "unit", "peer", "peer_value", "ratio", "target", "holds", "note"]
    assert [list(row) for row in found] == [fields, fields]
    assert found[0]["peer_value"] is None
    assert markdown(rows).splitlines()[2].startswith("| small.bf16.served.8 | 310 | tokens/s |")
    assert "a/b" in markdown(rows)
    assert write_plot(tmp_path / "plot.svg", rows)
    assert "small.bf16" in (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert not write_plot(tmp_path / "none.svg", [])
