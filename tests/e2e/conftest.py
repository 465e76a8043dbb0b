"""One deployment for the tests that only read from it or make their own accounts; tests that kill make their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.deployment import Deployment, deploy


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A running deployment, shared."""
    with deploy(Path(tmp_path_factory.mktemp("deployment")) / "data") as running:
        yield running
