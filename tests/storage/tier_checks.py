"""What tests of the tiers ask: which files are there, which way did the bytes come."""

import asyncio
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


async def no_pause(seconds: float) -> None:
    """Between two attempts of a download, when the store is a part of the test."""
    await asyncio.sleep(0)


async def settled(tiers: Tiers) -> None:
    """Until every file that came down has its name on disk too, or was given up."""
    async with asyncio.timeout(10):
        while tiers._loads:
            await asyncio.sleep(0)


def put_aside(tmp_path: Path) -> list[str]:
    """Digests of the files in quarantine."""
    return sorted(name.partition(".")[0] for name in os.listdir(tmp_path / "tiers" / "quarantine"))


def legs(fetched: Fetched) -> list[str]:
    return [visit.tier for visit in fetched.visits]
