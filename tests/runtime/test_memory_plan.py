"""The division of a budget: never more than it, nothing useful left over, and true to what a real model takes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.device_runner import DeviceRunner, DeviceSizes
from runtime.errors import ConfigInvalid, ModelInvalid
from runtime.layers.cpu_step import PASS_TOKENS
from runtime.memory_plan import (
    ITEM_BYTES,
    LEAST_STEP_TOKENS,
    STAGING_BYTES,
    Limits,
    Needs,
    in_words,
    needs_of,
    share_out,
)
from runtime.model_size import DType, ModelSize
from runtime.model_types import MODEL_TYPES
from runtime.models.families import FAMILIES
from runtime.runner import DTYPES, TorchRunner
from storage.geometry import Geometry
from tests.runtime.bases import CONFIGS
from tests.runtime.oracle import make_base

MIB = 1024**2
LIMITS = Limits(dtype="float32", block_tokens=16, adapter_rows=64, max_running=8, step_tokens=256)
SIZE = ModelSize(Geometry("llama", 4, 256, 512, 4, 2, 64), 1024, 1024, 2_600_000, 2304)


@st.composite
def needs(draw: st.DrawFn) -> Needs:
    heads = draw(st.integers(1, 8))
    geometry = Geometry(
        "llama", draw(st.integers(1, 40)), draw(st.integers(8, 512)), draw(st.integers(8, 512)), heads, heads, 16
    )
    size = ModelSize(geometry, draw(st.integers(1, 9999)), draw(st.integers(1, 9999)), draw(st.integers(0, 10**9)), 7)
    limits = Limits(
        draw(st.sampled_from(tuple(ITEM_BYTES))), draw(st.integers(1, 64)), draw(st.integers(1, 600)),
        draw(st.integers(1, 99)), draw(st.integers(16, 4096)),
    )  # fmt: skip
    return needs_of(size, limits, draw(st.none() | st.integers(1, 9999)))


@given(needs(), st.integers(0, 10**11))
def test_a_budget_is_kept_and_used_up(need: Needs, budget: int) -> None:
    try:
        split = need.within(budget)
    except ConfigInvalid:
        assert budget < need.fixed + need.least
        return
    assert split.total <= budget
    assert split.kv >= need.least >= need.block
    assert split.kv % need.block == 0
    assert split.kv == need.most or budget - split.total < need.block


@given(needs())
def test_the_least_that_is_named_is_enough(need: Needs) -> None:
    with pytest.raises(ConfigInvalid, match=f"at least {need.fixed + need.least} bytes"):
        need.within(need.fixed + need.least - 1)
    assert need.within(need.fixed + need.least).kv == need.least


@given(
    st.integers(0, 10**6),
    st.lists(st.tuples(st.integers(0, 10**5), st.integers(0, 10**5)).map(lambda w: (w[0], w[0] + w[1])), max_size=6),
)
def test_what_is_shared_out_is_fair_and_complete(room: int, wants: list[tuple[int, int]]) -> None:
    given_out = share_out(room, wants)
    assert all(least <= part <= most for part, (least, most) in zip(given_out, wants, strict=True))
    assert sum(given_out) <= max(room, sum(least for least, _ in wants))
    if room >= sum(least for least, _ in wants):
        # What is left over nobody wanted, up to the rounding of a division.
        hungry = [most - part for part, (_, most) in zip(given_out, wants, strict=True) if part < most]
        assert not hungry or room - sum(given_out) < len(wants)
    # Nobody who is still hungry got less beyond its least than another.
    extras = [(part - least, part < most) for part, (least, most) in zip(given_out, wants, strict=True)]
    assert all(extra >= other - len(wants) for extra, hungry_one in extras if hungry_one for other, _ in extras)


def test_a_shorter_longest_sequence_needs_less() -> None:
    assert needs_of(SIZE, LIMITS, 128).least == needs_of(SIZE, LIMITS).least // 8


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_the_numbers_of_the_layers_are_the_ones_here(dtype: DType) -> None:
    assert LEAST_STEP_TOKENS == PASS_TOKENS
    assert ITEM_BYTES[dtype] == DTYPES[dtype].itemsize


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_auto_is_what_most_of_the_files_have(dtype: DType, tmp_path: Path) -> None:
    model = make_base("llama-gqa", tmp_path).to(DTYPES[dtype])
    model.get_output_embeddings().to(torch.float32 if dtype == "bfloat16" else torch.bfloat16)
    model.save_pretrained(tmp_path)
    size = ModelSize.from_folder(tmp_path)
    assert size.dtype == dtype
    auto, stated = (needs_of(size, replace(LIMITS, dtype=name)) for name in ("auto", dtype))
    assert auto == stated


@pytest.mark.parametrize("name", CONFIGS)
def test_a_real_runner_takes_what_was_planned(name: str, tmp_path: Path) -> None:
    make_base(name, tmp_path)
    limits = replace(LIMITS, dtype="bfloat16")
    need = needs_of(ModelSize.from_folder(tmp_path), limits)
    split = need.within(need.fixed + 3 * need.least)
    runner = TorchRunner.load(
        tmp_path, device="cpu", dtype="bfloat16", threads=1, kv_bytes=split.kv, block_tokens=16, adapter_rows=64
    )
    assert runner.num_blocks * need.block == split.kv
    assert runner.max_sequence_tokens == 256
    cells, pool = runner._cache._cells, runner._pool
    assert cells.numel() * 2 == split.kv + need.block
    assert sum(t.numel() * 2 for t in (*pool._a, *pool._b)) == split.adapters
    weights = runner.num_parameters * 2
    assert weights <= split.weights <= 1.05 * weights


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_count_as_they_are_held(dtype: DType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the files' type, as the runner holds them; widened where torch computes: on a card, or without Numba."""
    make_base("llama-mqa-tied", tmp_path).to(DTYPES[dtype]).save_pretrained(tmp_path)
    size = ModelSize.from_folder(tmp_path)
    held = needs_of(size, LIMITS)
    runner = TorchRunner.load(
        tmp_path, device="cpu", dtype="float32", threads=1, kv_bytes=held.least, block_tokens=16, adapter_rows=64
    )
    decoder = runner._decoder
    linears = [linear for one in decoder.layers for linear in (one.attention.qkv, one.attention.o)]
    linears += [linear for one in decoder.layers for linear in (one.mlp.gate_up, one.mlp.down)]
    matrices = [decoder.embedding, *(linear.weight for linear in linears)]
    assert held.weights == sum(t.nbytes for t in matrices) + size.num_small * 4
    assert runner._cache._cells.nbytes == held.least + held.block
    assert sum(t.nbytes for t in (*runner._pool._a, *runner._pool._b)) == held.adapters
    on_card = needs_of(size, replace(LIMITS, on_card=True))
    monkeypatch.setattr("runtime.memory_plan._HAS_KERNELS", False)
    without = needs_of(size, LIMITS)
    assert on_card.weights == without.weights == size.num_weights * 4 + size.num_small * 4 > held.weights
    assert without.fixed - without.weights == held.fixed - held.weights


@pytest.mark.parametrize("text", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"\x09" + bytes(7) + b'{"a": 1} '])
def test_damaged_headers_are_refused(text: bytes, tmp_path: Path) -> None:
    make_base("llama-gqa", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(text)
    with pytest.raises(ModelInvalid, match=r"model\.safetensors is not a readable"):
        ModelSize.from_folder(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", "{}", '{"model_type": "llama"}'])
def test_a_folder_without_a_decoder_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelInvalid, match=r"config\.json"):
        ModelSize.from_folder(tmp_path)


@pytest.mark.parametrize("text", ['{"model_type": "gpt2", "n_head": 4}', '{"model_type": "gemma3", "text_config": {}}'])
def test_another_family_is_refused_with_the_list_before_anything_starts(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelInvalid, match=r"is not supported.*; supported are gemma, gemma2, gemma3_text, llama"):
        ModelSize.from_folder(tmp_path)


def test_the_types_are_those_that_the_decoder_knows() -> None:
    assert set(MODEL_TYPES) == set(FAMILIES)


def test_bytes_in_words() -> None:
    assert [in_words(size) for size in (0, 1, 5 * MIB, 1536 * MIB)] == ["0 KiB", "1 KiB", "5 MiB", "1.5 GiB"]


def test_a_card_has_room_for_staging_and_graphs_and_says_so() -> None:
    host, card = needs_of(SIZE, LIMITS), needs_of(SIZE, replace(LIMITS, on_card=True))
    rows = replace(LIMITS, on_card=True, adapter_rows=4096)
    assert (host.staging, host.graphs) == (0, 0)
    assert card.staging == host.adapters, "both in fp32 here"
    assert card.staging < needs_of(SIZE, rows).staging == STAGING_BYTES
    assert card.fixed == card.weights + card.adapters + card.working + card.staging + card.graphs
    assert "graphs 512 MiB" in str(card.within(card.fixed + card.least))
    with pytest.raises(ConfigInvalid, match=r"weights .*, adapter pool .*, staging .*, graphs .* and working memory"):
        card.within(card.fixed)


def test_the_staging_that_is_planned_is_what_copies_take(tmp_path: Path) -> None:
    make_base("llama-gqa", tmp_path)
    size = ModelSize.from_folder(tmp_path)
    sizes = DeviceSizes(1 << 20, 16, 64)
    runner = DeviceRunner.load(tmp_path, sizes, device="cpu", dtype="float32")
    assert runner._copies._staging.numel() == needs_of(size, replace(LIMITS, on_card=True)).staging
