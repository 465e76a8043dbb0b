"""One Swift for each file of tests that needs a real S3."""

from collections.abc import Iterator

import pytest

from tests.storage.objects import swift


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[swift.Swift]:
    folder = tmp_path_factory.mktemp("swift")
    reason = swift.why_not(folder)
    if reason:
        pytest.skip(reason)
    running = swift.start(folder / "server")
    yield running
    running.stop()
