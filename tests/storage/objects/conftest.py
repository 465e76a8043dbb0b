"""One Swift for the files of tests that need a real S3; each has a bucket of its own."""

from collections.abc import Iterator

import pytest

from tests.storage.objects import swift


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[swift.Swift]:
    folder = tmp_path_factory.mktemp("swift")
    reason = swift.why_not(folder)
    if reason:
        pytest.skip(reason)
    running = swift.start(folder / "server")
    yield running
    running.stop()
