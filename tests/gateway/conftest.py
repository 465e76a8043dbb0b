"""A management plane and one account in it, for the tests that need them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.plane import Plane, Tenant, open_plane


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with open_plane(tmp_path) as opened:
        yield opened


@pytest.fixture
async def tenant(plane: Plane) -> Tenant:
    return await plane.tenant("one")
