"""What many tests begin with: a management plane and an account in it; the gateway on a fake backend, and OpenAI's own
client of it over a real socket. A file that needs another gateway has a `stack` of its own.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from gateway.backends.fake import FakeBackend
from tests.gateway.plane import Plane, Tenant, open_plane
from tests.gateway.stack import Stack, broken_off, open_stack, serve


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with open_plane(tmp_path) as opened:
        yield opened


@pytest.fixture
async def tenant(plane: Plane) -> Tenant:
    return await plane.tenant("one")


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """Echoes what it is asked; "break" and "fail" as last message end badly."""
    async with open_stack(tmp_path, FakeBackend(broken_off)) as opened:
        yield opened


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    """Speaks to `stack`; it never tries again."""
    async with (
        serve(stack.app) as url,
        openai.AsyncOpenAI(base_url=url + stack.url("/ai/v1"), api_key=stack.secret, max_retries=0) as opened,
    ):
        yield opened
