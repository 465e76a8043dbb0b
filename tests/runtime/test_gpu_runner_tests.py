"""The runner's tests for a GPU, interpreted at toy sizes: on the day there is one, their own Python must not be what
fails. Graphs are recordings here."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from runtime.device_runner import DeviceSizes
from tests.gpu import test_device_runner as trials
from tests.runtime.device_rig import interpreted
from tests.runtime.recorded import record

# Ten seconds of computing each, which a busy machine makes many of.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    monkeypatch.setattr(trials, "DEVICE", "cpu")
    monkeypatch.setattr(trials, "DTYPE", "float32")
    monkeypatch.setattr(trials, "OPTIONS", {"capture": record})
    monkeypatch.setattr(trials, "SIZES", DeviceSizes(1 << 19, 16, 64, 12, 4))
    toy = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
           "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}  # fmt: skip
    monkeypatch.setattr(trials, "CONFIG", {**trials.CONFIG, **toy})
    monkeypatch.setattr(trials, "RANKS", (2, 3, 7))
    monkeypatch.setattr(trials, "SLOTS", [[-1, 0, 1], [2, -1, 1], [0, -1, -1]])
    for name, value in (("LENGTH", 7), ("STEPS", 3), ("ROWS", 3), ("LOADS", 2), ("STRIDE", 2)):
        monkeypatch.setattr(trials, name, value)
    with interpreted():
        yield


@pytest.mark.parametrize(
    "body",
    [
        trials.test_graphs_give_the_bits_of_eager_steps,
        trials.test_a_graph_serves_fewer_and_more_rows_and_adapters_than_it_was_captured_with,
        trials.test_a_slot_is_used_again_by_a_smaller_rank,
        trials.test_a_host_that_is_one_step_behind_hears_the_same_tokens,
        trials.test_adapters_that_come_meanwhile_change_no_token_and_are_whole,
        trials.test_launching_a_step_waits_for_nothing,
        lambda: trials.test_every_number_of_rows_up_to_the_largest_bucket(4),
    ],
)
def test_trials(body: Callable[[], None]) -> None:
    body()


def test_the_engines_trial(tmp_path: Path) -> None:
    trials.test_an_engine_answers_as_transformers_does(tmp_path)


def test_every_gpu_test_is_run_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(f"trials.{name}" in source for name in vars(trials) if name.startswith("test_"))
