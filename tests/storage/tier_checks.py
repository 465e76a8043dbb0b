"""What tests of the tiers ask: which files are there, which way did the bytes come."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from storage.tiers import Fetched, Tiers

KIB = 1024
Open = Callable[..., Awaitable[Tiers]]


def files(tmp_path: Path) -> list[str]:
    """Every file of the disk tier, also unfinished ones."""
    root = tmp_path / "tiers"
    return sorted(os.listdir(root / "packed")) + (
        os.listdir(root / ".incoming") if (root / ".incoming").exists() else []
    )


def legs(fetched: Fetched) -> list[str]:
    return [visit.tier for visit in fetched.visits]
