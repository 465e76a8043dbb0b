"""All parts of a deployment against one machine: fair when they fit, one sentence with every part when they do not."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.demo import BASE_FOLDER
from gateway.memory_budget import AUTO_SHARE, GATEWAY_BYTES, MemoryExceeded, RuntimeMemory, plan_memory
from gateway.settings import DEMO_MODEL, Model, Runtime, Server, Settings, Tiers

MIB, GIB = 1024**2, 1024**3
OTHER = "@cf/ours/other"
ONE = {DEMO_MODEL: BASE_FOLDER}
TWO = {**ONE, OTHER: BASE_FOLDER}


def plan(machine: int, folders: dict[str, Path] = ONE, **sections: Any) -> dict[str, RuntimeMemory]:
    return plan_memory(Settings(**sections), folders, machine)


def total(memory: dict[str, RuntimeMemory], chosen: Settings) -> int:
    buffers = chosen.server.body_buffer_bytes + chosen.logs.buffer_bytes
    return GATEWAY_BYTES + buffers + sum(one.host.total + one.tier_bytes for one in memory.values())


@pytest.mark.parametrize("gib", [1.5, 2.5, 4, 8, 16, 512])
@pytest.mark.parametrize("folders", [ONE, TWO])
def test_the_demo_fits_any_machine_that_can_hold_the_processes(gib: float, folders: dict[str, Path]) -> None:
    if gib < 2.5 and folders is TWO:
        return
    memory = plan(int(gib * GIB), folders)
    assert all(one.kv_bytes >= 2 * MIB for one in memory.values())
    assert total(memory, Settings()) <= gib * GIB
    if gib >= 4:  # no more than all sequences at full length can fill
        assert [one.kv_bytes for one in memory.values()] == [128 * MIB] * len(folders)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 16 * GIB), st.sampled_from([ONE, TWO]), st.none() | st.integers(MIB, 8 * GIB))
def test_it_fits_or_is_refused(machine: int, folders: dict[str, Path], tier: int | None) -> None:
    chosen = Settings(tiers=Tiers(memory_bytes=tier))
    try:
        memory = plan_memory(chosen, folders, machine)
    except MemoryExceeded:
        return
    assert total(memory, chosen) <= machine


def test_a_budget_of_its_own_goes_first_and_the_others_share_the_rest() -> None:
    models = {OTHER: Model(path=str(BASE_FOLDER), memory=540 * MIB)}
    memory = plan(4 * GIB, TWO, models=models)
    assert 535 * MIB < memory[OTHER].host.total <= 540 * MIB
    assert memory[DEMO_MODEL].kv_bytes == 128 * MIB
    share = plan(4 * GIB, runtime=Runtime(memory=0.13))[DEMO_MODEL]
    assert share.host.total <= 0.13 * 4 * GIB < share.host.total + MIB


def test_the_older_name_of_a_model_has_its_budget_too() -> None:
    new, old = "@cf/mistral/mistral-7b-instruct-v0.2-lora", "@cf/mistralai/mistral-7b-instruct-v0.2-lora"
    memory = plan(4 * GIB, {new: BASE_FOLDER}, models={old: Model(path="-", memory=500 * MIB)})
    assert memory[new].host.total <= 500 * MIB


def test_what_automatic_budgets_take_leaves_room_for_the_machine() -> None:
    runtime = Runtime(max_running=1024)
    memory = plan(4 * GIB, TWO, runtime=runtime)
    assert 0.65 * 4 * GIB < total(memory, Settings()) <= AUTO_SHARE * 4 * GIB
    first, second = (one.kv_bytes for one in memory.values())
    assert abs(first - second) <= MIB


def test_exact_bytes_override_the_budget() -> None:
    assert plan(8 * GIB, runtime=Runtime(memory=MIB, kv_bytes=MIB))[DEMO_MODEL].kv_bytes == MIB
    with pytest.raises(MemoryExceeded, match=r"kv_bytes = 100: one block takes 32 KiB"):
        plan(8 * GIB, runtime=Runtime(kv_bytes=100))


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"tiers": Tiers(memory_bytes=20 * GIB)}, ["20.0 GiB", "lower tiers.memory_bytes"]),
        ({"server": Server(body_buffer_bytes=9 * GIB)}, ["request bodies 9.0 GiB", "lower server.body_buffer_bytes"]),
        ({"runtime": Runtime(kv_bytes=10 * GIB)}, ["keys and values 10.0 GiB", "lower runtime.kv_bytes"]),
        ({"runtime": Runtime(memory=9 * GIB, max_running=1024, block_tokens=1)}, ["lower runtime.memory"]),
        ({"runtime": Runtime(adapter_rows=65536)}, ["lower runtime.adapter_rows"]),
    ],
)
def test_too_much_together_is_one_sentence(sections: dict[str, Any], words: list[str]) -> None:
    folders = TWO if "adapter_rows=65536" in repr(sections) or "memory=9" in repr(sections) else ONE
    with pytest.raises(MemoryExceeded) as refused:
        plan(4 * GIB, folders, **sections)
    for word in [*words, "gateway 200 MiB", "log buffer 64 MiB", f"runtime {DEMO_MODEL}", "weights", "has 4.0 GiB"]:
        assert word in str(refused.value)


def test_a_machine_that_nothing_fits_is_told_so() -> None:
    with pytest.raises(MemoryExceeded, match="take a machine with more memory"):
        plan(200 * MIB)


def test_a_budget_too_small_for_one_sequence_is_refused_with_the_numbers() -> None:
    with pytest.raises(
        MemoryExceeded, match=r"demo-lora: a budget of 300 MiB .* 1024 tokens takes 2 MiB; give at least"
    ):
        plan(8 * GIB, runtime=Runtime(memory=300 * MIB))


def test_parts_of_a_card_are_added_up() -> None:
    card = Runtime(device="cuda")
    assert [one.card for one in plan(64 * GIB, TWO, runtime=card).values()] == [0.45, 0.45]
    models = {OTHER: Model(path="-", memory=0.5)}
    memory = plan(64 * GIB, TWO, runtime=card, models=models)
    assert (memory[OTHER].card, round(memory[DEMO_MODEL].card, 3), memory[OTHER].kv_bytes) == (0.5, 0.4, 0)
    for part in (0.6, 1.0):
        with pytest.raises(MemoryExceeded, match="of the card's memory"):
            plan(64 * GIB, TWO, runtime=msgspec.structs.replace(card, memory=part))
