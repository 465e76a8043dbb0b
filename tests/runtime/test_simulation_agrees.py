"""The simulator against a real run: the same requests through a real engine and tiers, two points apart at most.

The device is fake (its arithmetic does not matter here); rows, slots, loads, files and evictions are real.
"""

import random
from pathlib import Path
from typing import Any

import pytest

from runtime.protocol import CacheReport
from storage.policies import POLICIES, PolicyName
from storage.simulation import Adapter, Trace, pass_through, through_device
from tests.runtime.serving import ask, sampling, serving
from tests.storage.tier_checks import settled

NUM_ADAPTERS, NUM_REQUESTS = 60, 700
ROWS = 64


def measured(report: CacheReport, name: str) -> float:
    tier = next(each for each in report.tiers if each.tier == name)
    return tier.hits / (tier.hits + tier.misses)


@pytest.mark.parametrize("policy", POLICIES)
async def test_simulated_and_measured_hit_ratios(tmp_path: Path, policy: PolicyName) -> None:
    rng = random.Random(11)
    options: dict[str, Any] = {
        "memory_bytes": 50_000, "disk_bytes": 100_000, "memory_policy": policy, "disk_policy": policy,
        "giants_share": 1.0,
    }  # fmt: skip
    async with serving(tmp_path, tier_options=options) as running, running.client() as client:
        await client.wait_ready(5)
        adapters = [await running.upload(0.01 * (n + 1)) for n in range(NUM_ADAPTERS)]
        weights = [1 / (n + 1) for n in range(NUM_ADAPTERS)]
        asked = rng.choices(adapters, weights, k=NUM_REQUESTS)
        for adapter in asked:
            await ask(client, adapter=adapter, sampling=sampling(1))
            await settled(running.service._tiers)  # type: ignore[arg-type] # these are real tiers
        report = await client.cache_report()

    trace = Trace(
        [each.digest for each in asked], {each.digest: Adapter(each.size_bytes, each.rank) for each in adapters}
    )
    sizes = {name: each.size_bytes for name, each in trace.adapters.items()}
    device = through_device(trace, ROWS)
    memory = pass_through(device.missed, sizes, policy, 50_000, giants_share=1.0)
    disk = pass_through(memory.missed, sizes, policy, 100_000, giants_share=1.0, must=False)
    simulated = {
        "device": device.hits / len(trace.requests),
        "memory": memory.hits / len(device.missed),
        "disk": disk.hits / len(memory.missed),
    }
    for name, ratio in simulated.items():
        assert abs(measured(report, name) - ratio) < 0.02, (name, measured(report, name), ratio)
    assert 0.2 < simulated["device"] < 0.9
    assert 0.1 < simulated["memory"] < 0.9
    assert 0.05 < simulated["disk"] < 0.95
