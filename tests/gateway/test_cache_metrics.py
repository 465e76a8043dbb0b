"""The tiers' figures as Prometheus reads them: families, labels, cumulative histograms, nothing lost."""

import re
from collections import Counter

import msgspec
import pytest

from gateway.commands.cache import about_runtime
from gateway.commands.cache_metrics import exposition
from runtime.protocol import Stats, TierReport
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
    stats = Stats(running=3, start_s=12.5, graph_captures=14, graph_capture_s=1.25, generated_tokens=700)
    return {
        MODEL: {"tiers": whole, "adapters": [], "runtime": msgspec.structs.asdict(stats)},
        "gone": {"problem": "lost", "tiers": [], "adapters": [], "runtime": {}},
    }


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


def test_a_runtime_tells_of_its_start_and_its_graphs() -> None:
    text = exposition(report())
    found = samples(text)
    model = 'model="odd \\"name\\" \\\\ here"'
    assert found["lorikeet_runtime_start_seconds", model] == 12.5
    assert found["lorikeet_runtime_graph_captures_total", model] == 14
    assert found["lorikeet_runtime_graph_capture_seconds_total", model] == 1.25
    assert found["lorikeet_runtime_graphs_failed", model] == 0
    assert found["lorikeet_runtime_running", model] == 3
    assert found["lorikeet_runtime_generated_tokens_total", model] == 700
    mine = [name for name, labels in found if name.startswith("lorikeet_runtime_") and labels == model]
    assert len(mine) == len(Stats.__struct_fields__), "a figure of the runtime is forgotten"
    assert not [name for name, labels in found if name.startswith("lorikeet_runtime_") and labels != model]


@pytest.mark.parametrize(
    ("stats", "said"),
    [
        (Stats(start_s=3.14, running=2, waiting=1), "started in 3.1 s, 2 running, 1 waiting"),
        (
            Stats(start_s=20, graph_captures=14, graph_capture_s=1.26),
            "started in 20.0 s, 14 graphs recorded in 1.3 s, 0 running, 0 waiting",
        ),
        (
            Stats(start_s=20, graph_captures=2, graphs_failed=1),
            "started in 20.0 s, no graph can be recorded any more: every step is launched piece by piece (see its "
            "log), 0 running, 0 waiting",
        ),
    ],
)
def test_the_command_says_it_in_a_line(stats: Stats, said: str) -> None:
    assert about_runtime(msgspec.structs.asdict(stats)) == said


def test_a_histogram_counts_up() -> None:
    found = samples(exposition(report()))
    buckets = [value for (name, labels), value in found.items() if name.endswith("_bucket") and "disk" in labels]
    assert buckets == sorted(buckets)
    assert (buckets[0], buckets[-2], buckets[-1]) == (1, 3, 4)
    assert [value for (name, labels), value in found.items() if name.endswith("_sum") and "disk" in labels] == [99.0085]
