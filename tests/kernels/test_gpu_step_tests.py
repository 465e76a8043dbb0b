"""The GPU's tests of attention, element-wise work and sampling, interpreted at toy sizes: on the day there is a GPU,
their own Python must not be what fails."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.gpu import test_attention as attention
from tests.gpu import test_elementwise as elementwise
from tests.gpu import test_sampling as sampling
from tests.kernels.attention_trials import Options, Shape
from tests.kernels.interpreter_memory import InterpreterMemory
from tests.kernels.sampling_trials import Rule


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, interpreter: InterpreterMemory) -> None:
    interpreter.races_allowed = True  # a decode row's last program reads what the others left
    shapes = {name: Shape(2, 1, 16, 16, torch.float16, "cpu") for name in attention.SHAPES}
    monkeypatch.setattr(attention, "SHAPES", shapes)
    monkeypatch.setattr(attention, "CONTEXTS", [1, 0, 70])
    monkeypatch.setattr(attention, "CHUNKS", ([9, 1], [9, 30]))
    monkeypatch.setattr(attention, "LONG", 330)
    monkeypatch.setattr(attention, "TIMES", 1)
    monkeypatch.setattr(attention, "CACHE_ELEMENTS", 1 << 12)
    monkeypatch.setattr(elementwise, "DEVICE", "cpu")
    monkeypatch.setattr(elementwise, "DTYPES", dict.fromkeys(elementwise.DTYPES, torch.float16))
    monkeypatch.setattr(elementwise, "TOKENS", 4)
    monkeypatch.setattr(sampling, "DEVICE", "cpu")
    monkeypatch.setattr(sampling, "DTYPES", dict.fromkeys(sampling.DTYPES, torch.float32))
    monkeypatch.setattr(sampling, "DRAWS", 40)
    monkeypatch.setattr(sampling, "ROWS", 3)
    monkeypatch.setattr(sampling, "REPEATS", 1)
    monkeypatch.setattr(sampling, "WORDS", 600)


@pytest.mark.parametrize(
    "body",
    [
        lambda: attention.test_decode("192"),
        lambda: attention.test_decode_in_one_part_and_in_many(32),
        lambda: attention.test_decode_with_window_and_softcap("llama-2", Options(300, 0.1, 5.0)),
        lambda: attention.test_prefill("80"),
        lambda: attention.test_prefill_with_window_and_softcap("llama-2", Options(300, 0.1, 5.0)),
        attention.test_fp32,
        attention.test_mixed_step,
        lambda: attention.test_graph_replay_is_eager_bit_for_bit("gemma-2"),
        attention.test_every_run_gives_the_same_bits,
        attention.test_a_cache_beyond_two_to_the_31_elements,
        attention.test_tiny_steps,
    ],
)
def test_attention(body: Callable[[], None]) -> None:
    body()


@pytest.mark.parametrize(
    "body",
    [
        lambda: elementwise.test_rms_norm("bf16", 33, True),
        elementwise.test_rms_norm_of_the_widest,
        lambda: elementwise.test_head_norm("bf16", 2, 1, 16),
        lambda: elementwise.test_rope_write_kv("bf16", 2, 1, 16, 4),
        lambda: elementwise.test_gated_activation("bf16", "silu"),
        lambda: elementwise.test_what_is_added_on_the_way("bf16"),
        elementwise.test_graph_replay_is_eager_bit_for_bit,
        elementwise.test_tiny_steps,
    ],
)
def test_elementwise(body: Callable[[], None]) -> None:
    body()


@pytest.mark.parametrize(
    "body",
    [
        lambda: sampling.test_every_rule("bf16", 50, 1.0),
        lambda: sampling.test_ties_at_an_edge_are_all_kept(50),
        lambda: sampling.test_a_token_does_not_depend_on_the_batch_or_the_run(50),
        lambda: sampling.test_shares_are_kept(Rule()),
        sampling.test_a_nucleus_beyond_the_best_groups,
        sampling.test_many_rows_at_once,
        sampling.test_scores_in_a_graph,
        sampling.test_tiny_steps,
    ],
)
def test_sampling(body: Callable[[], None]) -> None:
    body()


@pytest.mark.parametrize(
    ("name", "module"), [("attention", attention), ("elementwise", elementwise), ("sampling", sampling)]
)
def test_every_gpu_test_is_run_here(name: str, module: ModuleType) -> None:
    names = {member for member in vars(module) if member.startswith("test_")}
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(f"{name}.{member}" in source for member in names)
