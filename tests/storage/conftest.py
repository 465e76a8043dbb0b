"""Tiers over a gated store, closed at the end of the test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.objects.base import ObjectStore
from storage.tiers import Tiers
from tests.storage.gated_objects import GatedObjects
from tests.storage.tier_checks import KIB, Open


@pytest.fixture
def objects() -> GatedObjects:
    return GatedObjects()


@pytest.fixture
async def open_tiers(tmp_path: Path, objects: GatedObjects) -> AsyncIterator[Open]:
    opened = []

    async def open_them(store: ObjectStore = objects, *, memory: int = 100 * KIB, disk: int = 100 * KIB) -> Tiers:
        tiers = Tiers(store, tmp_path / "tiers", memory_bytes=memory, disk_bytes=disk)
        await tiers.open()
        opened.append(tiers)
        return tiers

    yield open_them
    for tiers in opened:
        await tiers.aclose()
