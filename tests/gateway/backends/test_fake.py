"""The fake keeps the contract that the real ones keep, or tests on it would prove nothing."""

import pytest

from gateway.backends.fake import FakeBackend
from gateway.errors import OverCapacity
from tests.gateway.backends.conformance import Conformance, Harness, answer, resolved


class TestFake(Conformance):
    @pytest.fixture
    async def harness(self) -> Harness:
        backend = FakeBackend(context_window=300)

        async def idle() -> None:
            await backend.until(lambda: backend.open == 0)

        return Harness(backend, "which hall opens at noon today", 300, idle)


async def test_a_full_fake() -> None:
    backend = FakeBackend(max_open=0)
    with pytest.raises(OverCapacity):
        await answer(backend, resolved("x"))
