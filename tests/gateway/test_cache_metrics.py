"""The tiers' figures as Prometheus reads them: families, labels, cumulative histograms, nothing lost."""

import re
from collections import Counter

import msgspec

from gateway.commands.cache_metrics import exposition
from runtime.protocol import TierReport
from storage.tier_records import Histogram, TierStats

SAMPLE = re.compile(r'([a-z_]+)\{((?:[a-z]+="(?:[^"\\\n]|\\.)*",?)*)\} (-?[0-9.e+]+|\+Inf)')
MODEL = 'odd "name" \\ here'


def report() -> dict[str, object]:
    loads = Histogram()
    for seconds in (0.0005, 0.004, 0.004, 99.0):
        loads.add(seconds, 1000)
    tiers = [
        TierReport(tier="device", entries=2, used_bytes=16, max_bytes=512, hits=5),
        TierReport(tier="disk", entries=3, used_bytes=7000, max_bytes=9000, refused=4, loads=loads.snapshot()),
    ]
    whole = [
        {name: msgspec.to_builtins(value) for name, value in msgspec.structs.asdict(tier).items()} for tier in tiers
    ]
    return {MODEL: {"tiers": whole, "adapters": []}, "gone": {"problem": "lost", "tiers": [], "adapters": []}}


def samples(text: str) -> dict[tuple[str, str], float]:
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert (match[1], match[2]) not in found
            found[match[1], match[2]] = float(match[3])
    return found


def test_every_figure_is_there_once() -> None:
    text = exposition(report())
    found = samples(text)
    model = 'model="odd \\"name\\" \\\\ here"'
    assert found["lorikeet_tier_up", model] == 1
    assert found["lorikeet_tier_up", 'model="gone"'] == 0
    assert found["lorikeet_tier_used_rows", f'{model},tier="device"'] == 16
    assert found["lorikeet_tier_used_bytes", f'{model},tier="disk"'] == 7000
    assert ("lorikeet_tier_used_bytes", f'{model},tier="device"') not in found
    assert found["lorikeet_tier_hits_total", f'{model},tier="device"'] == 5
    assert found["lorikeet_tier_refused_total", f'{model},tier="disk"'] == 4
    kinds = Counter(line.split()[2] for line in text.splitlines() if line.startswith("# TYPE"))
    assert set(kinds.values()) == {1}
    for name, _ in found:
        assert re.sub(r"_(bucket|sum|count)$", "", name) in kinds


def test_no_counter_of_a_tier_is_forgotten() -> None:
    text = exposition(report())
    for field in TierStats.__struct_fields__:
        assert field == "loads" or field.replace("max_bytes", "budget").replace("_bytes", "") in text, field


def test_a_histogram_counts_up() -> None:
    found = samples(exposition(report()))
    buckets = [value for (name, labels), value in found.items() if name.endswith("_bucket") and "disk" in labels]
    assert buckets == sorted(buckets)
    assert (buckets[0], buckets[-2], buckets[-1]) == (1, 3, 4)
    assert [value for (name, labels), value in found.items() if name.endswith("_sum") and "disk" in labels] == [99.0085]
