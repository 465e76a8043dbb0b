"""Kernels are interpreted in this process. Triton reads the variable when kernels are imported, so it is set before
anything else is. A run on a GPU (`pytest -m gpu tests/gpu`) has settings of its own and does not read this file.

`make test` runs two processes of tests (pytest-xdist). A file's tests stay together, in order, because they share what
their module started. So do those of the folders below: whole deployments come one after the other and share one where
they only read, so that the other core is left for other tests; and the tests of a real S3 share its server.
"""

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

os.environ["TRITON_INTERPRET"] = "1"
TOGETHER = ("tests/e2e/", "tests/storage/objects/")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "LoadScopeScheduling":
    """What is together on one process."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]  # xdist comes without types
        def _split_scope(self, nodeid: str) -> str:
            folder = next((folder for folder in TOGETHER if nodeid.startswith(folder)), None)
            return folder or nodeid.partition("::")[0]

    return ByFile(config, log)
