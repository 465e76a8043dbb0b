"""Measured block sizes are found by place, damaged files are refused, and what is in the package can be used."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from kernels import tuning
from kernels.errors import TuningInvalid
from kernels.tuning import card_file, read_plans, tuned, write_plans


class Plan(NamedTuple):
    block: int
    warps: int


DEFAULT = Plan(64, 4)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    tuning._table.cache_clear()
    return tmp_path


def test_a_plan_is_found_by_its_place(folder: Path) -> None:
    write_plans(folder / "card.json", "by hand", [("op", {"tiles": 5, "in": 4096}, {"block": 128})])
    for tiles in (5, 6, 8):
        assert tuned("card", "op", {"in": 4096, "tiles": tiles}, DEFAULT) == Plan(128, 4)
    for place in ({"in": 4096, "tiles": 4}, {"in": 4097, "tiles": 8}, {"in": 4096}):
        assert tuned("card", "op", place, DEFAULT) == DEFAULT
    assert tuned("card", "other", {"in": 4096, "tiles": 8}, DEFAULT) == DEFAULT


def test_without_a_card_or_its_file_the_default_holds(folder: Path) -> None:
    assert tuned("", "op", {}, DEFAULT) == DEFAULT
    assert tuned("unknown", "op", {}, DEFAULT) == DEFAULT


@pytest.mark.parametrize("text", ["", "[]", '{"plans": 3}', '{"plans": [{"op": "op"}]}'])
def test_a_damaged_file_is_refused(folder: Path, text: str) -> None:
    (folder / "card.json").write_text(text)
    with pytest.raises(TuningInvalid, match=r"card\.json"):
        tuned("card", "op", {}, DEFAULT)


def test_a_plan_with_a_field_that_is_none_is_refused(folder: Path) -> None:
    write_plans(folder / "card.json", "by hand", [("op", {}, {"blocks": 1})])
    with pytest.raises(TuningInvalid, match="blocks"):
        tuned("card", "op", {}, DEFAULT)


def test_files_are_named_for_cards() -> None:
    assert card_file("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_the_files_of_the_package_can_be_read() -> None:
    for path in tuning.FOLDER.glob("*.json"):
        assert read_plans(path)
        assert json.loads(path.read_text())["made"]
