"""Tiers over a gated store, closed at the end of the test."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from storage.downloads import Downloads
from storage.objects.base import ObjectStore
from storage.tiers import Tiers
from tests.storage.gated_objects import GatedObjects
from tests.storage.tier_checks import KIB, Open, no_pause


@pytest.fixture
def objects() -> GatedObjects:
    return GatedObjects()


@pytest.fixture
async def open_tiers(tmp_path: Path, objects: GatedObjects) -> AsyncIterator[Open]:
    opened = []

    async def open_them(
        store: ObjectStore = objects, *, memory: int = 100 * KIB, disk: int = 100 * KIB, **options: Any
    ) -> Tiers:
        options = {"giants_share": 1.0, **options}  # files here are large beside the budgets
        options.setdefault("downloads", Downloads(store, parallel=1, sleep=no_pause))
        tiers = Tiers(store, tmp_path / "tiers", memory_bytes=memory, disk_bytes=disk, **options)
        await tiers.open()
        opened.append(tiers)
        return tiers

    yield open_them
    for tiers in opened:
        await tiers.aclose()
