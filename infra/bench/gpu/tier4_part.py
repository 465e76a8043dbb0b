"""A plug-in of pytest: of the tests that were collected only every n-th is run, the rest is other processes' part.

TESTS_PART=0/4 python -m pytest -p infra.bench.gpu.tier4_part ...
"""

import os
from typing import Final

import pytest

VARIABLE: Final = "TESTS_PART"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """After `-m` and `-k` have chosen."""
    index, _, count = os.environ[VARIABLE].partition("/")
    mine = items[int(index) :: int(count)]
    kept = set(mine)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = mine
