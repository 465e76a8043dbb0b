"""A house per test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.logs.log_store import LogStore
from tests.gateway.logs.support import House


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with House(tmp_path) as house:
        yield house


@pytest.fixture
async def store(house: House) -> AsyncIterator[LogStore]:
    store = await house.store()
    yield store
    await store.aclose()
