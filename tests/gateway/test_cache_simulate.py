"""`lorikeet cache simulate` from the command line: sources, curves, picture, recommendation, and its speed."""

import json
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from gateway.commands.cache_simulate import replay
from gateway.png_plot import write_png
from gateway.settings import Settings, Tiers
from storage.policies import POLICIES
from storage.simulation import MAX_REPLAYED, Adapter, Trace, curve, pass_through, through_device, zipf_trace


def simulate(tmp_path: Path, *arguments: str, code: int = 0) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "cache", "simulate", *arguments, "--data-dir", str(tmp_path), "--json"],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stderr if code else json.loads(done.stdout)


def pixels(path: Path) -> tuple[int, int, bytes]:
    """Width, height and the raw rows of a PNG, every checksum tested."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, width, height, packed = 8, 0, 0, b""
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        body = data[place + 8 : place + 8 + length]
        assert struct.unpack(">I", data[place + 8 + length : place + 12 + length])[0] == zlib.crc32(kind + body)
        if kind == b"IHDR":
            width, height = struct.unpack(">II", body[:8])
        packed += body if kind == b"IDAT" else b""
        place += 12 + length
    return width, height, zlib.decompress(packed)


def test_a_file_is_replayed_into_table_picture_and_settings(tmp_path: Path) -> None:
    trace = zipf_trace(50, 1.0, 3000, 1000, 8, seed=3)
    lines = [json.dumps({"adapter": name, "size_bytes": 1000, "rank": 8}) for name in trace.requests]
    (tmp_path / "trace.jsonl").write_text("\n".join(lines))
    found = simulate(tmp_path, "--from", str(tmp_path / "trace.jsonl"), "-o", str(tmp_path / "curves.png"))
    assert (found["requests"], found["adapters"]) == (3000, len(set(trace.requests)))
    assert set(found["curves"]) == {"device", "memory", "disk"}
    for tier in ("memory", "disk"):
        points = found["curves"][tier]
        assert {point["policy"] for point in points} == set(POLICIES)
        assert len({point["budget"] for point in points}) >= 4
    assert set(found["recommendation"]) == {"memory_policy", "memory_bytes", "disk_policy", "disk_bytes"}
    width, height, rows = pixels(tmp_path / "curves.png")
    assert len(rows) == height * (1 + 3 * width)
    assert len(set(rows)) > 10, "something is drawn"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("zipf:5", "zipf:ADAPTERS:EXPONENT:REQUESTS"), ("zipf:a:b:c", "zipf:ADAPTERS"), ("nowhere", "No such file"),
        ("bad.jsonl", "line 2"), ("empty.jsonl", "no request"), ("logs", "lorikeet serve"),
    ],
)  # fmt: skip
def test_sources_that_are_none(tmp_path: Path, source: str, text: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"adapter": "a"}\n{"other": 1}\n')
    (tmp_path / "empty.jsonl").write_text("")
    arguments = source if ":" in source or source == "logs" else str(tmp_path / source)
    found = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "cache", "simulate", "--from", arguments, "--data-dir", str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.returncode in (1, 2)
    assert text in found.stderr
    assert "Traceback" not in found.stderr


def test_a_larger_tier_never_misses_more_under_lru() -> None:
    trace = zipf_trace(200, 0.9, 20_000, 1000)
    sizes = {name: each.size_bytes for name, each in trace.adapters.items()}
    missed = [len(pass_through(trace.requests, sizes, "lru", size, giants_share=1.0).missed) for size in
              (2_000, 20_000, 80_000, 150_000, 200_000)]  # fmt: skip
    assert missed == sorted(missed, reverse=True)
    assert missed[-1] == len(set(trace.requests))


def test_the_advice_is_small_where_small_is_enough() -> None:
    """Ten hot adapters and ninety that are asked for once: a tier for the ten is all that helps."""
    names = [f"hot-{n % 10}" for n in range(5000)] + [f"once-{n}" for n in range(90)]
    trace = Trace(names, {name: Adapter(20_000_000, 512) for name in names})
    settings = Settings(tiers=Tiers(memory_bytes=4 * 10**9, disk_bytes=4 * 10**9))
    found = replay(trace, settings, {})
    assert found["recommendation"]["memory_bytes"] <= 500_000_000
    assert found["now"]["memory"]["misses"] == 100
    assert found["costs"]["measured"] is False


@pytest.mark.parametrize(("configured", "least"), [(4 * 10**9, 100_000_000), (80_000_000, 80_000_000), (1, 64 * 2**20)])
def test_no_size_is_advised_that_an_upload_would_not_fit(configured: int, least: int) -> None:
    """The log knows small adapters only; the limits allow 100 MB."""
    settings = Settings(tiers=Tiers(memory_bytes=configured, disk_bytes=configured, memory_policy="lfu"))
    found = replay(zipf_trace(20, 1.0, 2000, 100_000, 8), settings, {})
    assert found["recommendation"] == {
        "memory_policy": "lfu", "memory_bytes": least, "disk_policy": "gdsf", "disk_bytes": least
    }  # fmt: skip


def test_measured_times_are_used_where_there_are_some() -> None:
    trace = zipf_trace(20, 1.0, 500, 1000, 8)
    loads = {"count": 10, "seconds": 5.0, "size_bytes": 10_000}
    report = {"tiers": [{"tier": "object", "max_bytes": 0, "loads": loads}, {"tier": "device", "max_bytes": 16}]}
    found = replay(trace, Settings(), report)
    assert (found["costs"]["object_s"], found["costs"]["measured"]) == (0.5, True)
    assert found["settings"]["adapter_rows"] == 16
    assert found["now"]["device"]["misses"] == len(through_device(trace, 16).missed)


def test_a_picture_of_nothing_and_of_one_point(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", [("NOTHING", {}, "x"), ("ONE", {"a": [(5.0, 0.5)]}, "é?")])
    assert pixels(tmp_path / "a.png")[0] == 920


def test_of_a_long_trace_the_newest_part_is_replayed_at_every_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million requests at every point would take minutes; how long they take in all is for the command to say."""
    monkeypatch.setattr("storage.simulation.MAX_REPLAYED", 1000)
    sizes = {"old": 100, "older": 100, "new": 100}
    points = curve(["old", "older"] * 5000 + ["new"] * 1000, sizes, POLICIES, [100, 200])
    assert len(points) == 2 * len(POLICIES)
    assert {(point.misses, point.miss_ratio) for point in points} == {(1, 0.001)}


def test_the_devices_points_are_of_the_newest_part_and_what_is_set_is_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.commands.cache_simulate.MAX_REPLAYED", 100)
    names = [f"old-{n}" for n in range(500)] + ["new"] * 100
    found = replay(Trace(names, {name: Adapter(1000, 8) for name in names}), Settings(), {})
    assert found["now"]["device"] == {"hits": 99, "misses": 501}
    assert {(point["misses"], point["miss_ratio"]) for point in found["curves"]["device"]} == {(1, 0.01)}


def test_a_long_trace_takes_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of a million requests and of what is replayed at each point; `make bench-tiers` has the whole."""
    monkeypatch.setattr("storage.simulation.MAX_REPLAYED", MAX_REPLAYED // 10)
    monkeypatch.setattr("gateway.commands.cache_simulate.MAX_REPLAYED", MAX_REPLAYED // 10)
    trace = zipf_trace(2000, 1.0, 100_000, 80_000_000)
    began = time.process_time()
    replay(trace, Settings(), {})
    assert time.process_time() - began < 6, "twice what it may be: other work on the machine slows this one too"
