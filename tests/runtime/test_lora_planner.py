"""When the stacked copies of adapters are kept, made anew and packed."""

import io
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from runtime.layers import lora
from runtime.layers.adapter_pool import AdapterPool
from runtime.layers.lora import LoraPlanner, StackedAdapters, StackedPlan
from storage.geometry import MODULES, Geometry
from storage.packed import LoraMatrices, read_packed, write_packed

GEOMETRY = Geometry("llama", 2, hidden_size=8, intermediate_size=12, num_heads=2, num_kv_heads=1, head_dim=4)
RANK = 4


@pytest.fixture
def pool() -> AdapterPool:
    pool = AdapterPool(GEOMETRY, 64, 8, torch.float32, torch.device("cpu"))
    for slot in range(4):
        write(pool, slot, seed=slot)
    return pool


def write(pool: AdapterPool, slot: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    matrices = []
    for layer in range(GEOMETRY.num_layers):
        for module in MODULES:
            wide, narrow = GEOMETRY.shape(module)
            a, b = (random.normal(size=shape).astype(np.float32) for shape in ((RANK, narrow), (wide, RANK)))
            matrices.append(LoraMatrices(layer, module, 2.0, a, b))
    out = io.BytesIO()
    write_packed(out, GEOMETRY, "float32", matrices)
    pool.write(slot, slot * RANK, read_packed(out.getvalue()), 0, GEOMETRY.num_layers)


def used(planner: LoraPlanner, slots: Sequence[int]) -> StackedAdapters:
    plan = planner.plan(slots, [1] * len(slots))
    assert isinstance(plan, StackedPlan)
    return plan._adapters


def added(planner: LoraPlanner, slots: Sequence[int]) -> torch.Tensor:
    """What a step of one token each adds to group 0 of layer 1."""
    plan = planner.plan(slots, [1] * len(slots))
    assert plan is not None
    x = torch.randn((len(slots), 8), generator=torch.Generator().manual_seed(1))
    y = torch.zeros((len(slots), 16))
    return plan.add(1, 0, 3, x, y)


def test_a_set_is_kept_while_half_of_it_is_used(pool: AdapterPool) -> None:
    planner = LoraPlanner(pool)
    four = used(planner, [0, 1, 2, 3])
    assert used(planner, [0, 1, 2, 3]) is four
    assert used(planner, [1, 3]) is four
    assert used(planner, [2]) is not four


def test_a_new_adapter_makes_a_new_set(pool: AdapterPool) -> None:
    planner = LoraPlanner(pool)
    two = used(planner, [0, 1])
    assert used(planner, [0, 1, 2]) is not two


def test_a_slot_that_was_written_anew_makes_a_new_set(pool: AdapterPool) -> None:
    planner = LoraPlanner(pool)
    before = added(planner, [0, 1, 2])
    write(pool, 1, seed=9)
    after = added(planner, [0, 1, 2])
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])


def test_a_part_of_a_set_adds_what_it_adds_alone(pool: AdapterPool) -> None:
    planner = LoraPlanner(pool)
    used(planner, [0, 1, 2, 3])
    part = added(planner, [1, 3])
    torch.testing.assert_close(part, added(LoraPlanner(pool), [1, 3]))
    rest = planner.plan([3, 3], [1, 1])  # one slot of a larger set still has foreign rows
    assert rest is not None
    alone = LoraPlanner(pool).plan([3, 3], [1, 1])
    assert alone is not None
    x = torch.randn(2, 8)
    torch.testing.assert_close(*(plan.add(0, 0, 3, x, torch.zeros(2, 16)) for plan in (rest, alone)))


def test_a_single_slot_of_a_pair_keeps_to_its_own_rows(pool: AdapterPool) -> None:
    planner = LoraPlanner(pool)
    used(planner, [0, 1])
    torch.testing.assert_close(added(planner, [1]), added(LoraPlanner(pool), [1]))
    assert used(planner, [1]) is used(planner, [0, 1])


def test_a_step_copies_a_bounded_number_of_bytes(pool: AdapterPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine stacks at one a step; what is not there yet is added the other way, with the same result."""
    monkeypatch.setattr(lora, "COPY_BYTES_PER_STEP", 1)
    expected = [added(LoraPlanner(pool), [0, 1])]
    places = [(layer, group) for layer in range(GEOMETRY.num_layers) for group in range(len(pool.groups))]
    planner, copied = LoraPlanner(pool), []
    for step in range(len(places) + 2):
        adapters = used(planner, [0, 1])
        copied.append(sum(adapters.stack(*place) is not None for place in places))
        torch.testing.assert_close([added(planner, [0, 1])], expected)
        assert copied[-1] <= 2 * (step + 1)
    assert copied[0] == 1
    assert copied[-1] == len(places)
