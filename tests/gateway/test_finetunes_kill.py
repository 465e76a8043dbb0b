"""kill -9 in the middle of uploads, replacements, roll-backs and deletions, again and again: after the next start rows
and objects agree, and names mean what they may mean.
"""

import asyncio
import random
import signal
import sys
from pathlib import Path

from gateway.finetune_records import Finetune
from gateway.messages import Identity
from storage.packed import read_packed
from tests.gateway.plane import MODEL, Plane, open_plane

CHILD = """
import asyncio, sys
from pathlib import Path
from gateway.ingest.adapter import CONFIG_FILE, WEIGHTS_FILE
from tests.gateway import tiny_adapters as tiny
from tests.gateway.finetune_calls import parts_of
from tests.gateway.plane import MODEL, open_plane

async def main():
    async with open_plane(Path(sys.argv[1])) as plane:
        await plane.finetunes.sweep()
        account = (await plane.accounts.list_accounts())[0].id
        for finetune in await plane.finetunes.list_finetunes(account):
            await plane.finetunes.delete(account, finetune.id)
        print("started", flush=True)
        number = 0
        files = ((CONFIG_FILE, tiny.config()), (WEIGHTS_FILE, tiny.weights()))
        while True:
            number += 1
            finetune = await plane.finetunes.create(account, MODEL, f"n{number}")
            for file_name, data in files:
                await plane.finetunes.upload(account, finetune.id, parts_of(file_name, data))
            print(f"ready {finetune.id}", flush=True)
            if number % 3 == 0:
                for finetune in await plane.finetunes.list_finetunes(account):
                    print(f"deleting {finetune.id}", flush=True)
                    await plane.finetunes.delete(account, finetune.id)

asyncio.run(main())
"""


async def _heard(digest: str) -> None:
    """A runtime that has heard of it."""


async def test_rows_and_objects_agree_after_kills(tmp_path: Path) -> None:
    async with open_plane(tmp_path) as plane:
        await plane.accounts.create_account("one")
    rng = random.Random(20261120)
    swept = 0
    for _ in range(5):
        finished = await run_and_kill(tmp_path, rng.uniform(0.0, 0.25))
        async with open_plane(tmp_path) as plane:
            swept += await plane.finetunes.sweep()
            await plane.finetunes.forget_swept(_heard)  # as when the runtimes answer
            account = (await plane.accounts.list_accounts())[0].id
            found = [
                await plane.finetunes.get(account, finetune.id)
                for finetune in await plane.finetunes.list_finetunes(account)
            ]
            assert visible(plane) == {key for finetune in found for key in keys_of(finetune)}
            assert plane.spooled() == []
            told = [line.split() for line in finished]
            acknowledged = {i for word, i in told if word == "ready"} - {i for word, i in told if word == "deleting"}
            assert acknowledged <= {finetune.id for finetune in found if finetune.status == "ready"}
            for finetune in found:
                if finetune.status == "ready":
                    read_packed((tmp_path / "objects" / str(finetune.object_key)).read_bytes())
    assert swept > 0, "no kill came in the middle of anything: the test shows nothing"


async def run_and_kill(folder: Path, after_s: float, script: str = CHILD, *arguments: str) -> list[str]:
    """What the child had said when it was killed `after_s` seconds into its work."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(folder), *arguments,
        stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert child.stdout is not None
    while (line := (await child.stdout.readline()).strip()) != b"started":
        assert line.startswith(b"ready")
    await asyncio.sleep(after_s)  # the moment of the kill is the input of this test
    child.send_signal(signal.SIGKILL)
    printed = (await child.stdout.read()).decode().splitlines()
    await child.wait()
    return printed


def visible(plane: Plane) -> set[str]:
    """Finished objects; what a put had not ended is the store's own to remove."""
    return {name for name in plane.stored() if not name.startswith(".")}


def keys_of(finetune: Finetune) -> list[str]:
    return [key for version in finetune.versions for key in version.keys]


REPLACING = """
import asyncio, sys
from pathlib import Path
from gateway.finetune_records import Pointer
from gateway.ingest.adapter import CONFIG_FILE, WEIGHTS_FILE
from tests.gateway import tiny_adapters as tiny
from tests.gateway.finetune_calls import parts_of
from tests.gateway.plane import MODEL, open_plane

async def main():
    seed = int(sys.argv[2]) * 1_000_000
    async with open_plane(Path(sys.argv[1])) as plane:
        await plane.finetunes.sweep()
        account = (await plane.accounts.list_accounts())[0].id
        names = [finetune.name for finetune in await plane.finetunes.list_finetunes(account)]
        if "x" not in names:
            await plane.finetunes.create(account, MODEL, "x")
        versions = plane.finetunes.versions
        found = await plane.finetunes.get(account, "x")
        for each in found.versions:
            if each.status != "ready" and found.current is not None:
                await versions.delete(account, "x", each.number)

        async def replace():
            nonlocal seed
            seed += 1
            weights = tiny.weights(tiny.tensors(seed=seed))  # before the other one, which runs beside it, counts on
            finetune, opened = await versions.open(account, "x")
            for file_name, data in ((CONFIG_FILE, tiny.config()), (WEIGHTS_FILE, weights)):
                await plane.finetunes.upload(account, "x", parts_of(file_name, data), opened.number)
            print(f"ready {opened.number}", flush=True)

        if found.current is None:
            await replace()
        print("started", flush=True)
        while True:
            await asyncio.gather(replace(), replace())
            found = await plane.finetunes.get(account, "x")
            ready = [each.number for each in found.versions if each.status == "ready"]
            other = next(number for number in ready if number != found.current.number)
            print(f"pointing {other}", flush=True)
            await versions.point(account, "x", "default", Pointer(other, found.current.number, 20.0))
            await versions.point(account, "x", "default", Pointer(other))
            print(f"deleting {found.current.number}", flush=True)
            await versions.delete(account, "x", found.current.number)

asyncio.run(main())
"""


async def test_versions_and_their_name_agree_after_kills(tmp_path: Path) -> None:
    """Two replaces at once, roll-backs with a canary and removals: the name always means a whole version."""
    async with open_plane(tmp_path) as plane:
        await plane.accounts.create_account("one")
    rng = random.Random(20261127)
    swept, newest = 0, 0
    for turn in range(8):
        told = [line.split() for line in await run_and_kill(tmp_path, rng.uniform(0.02, 0.4), REPLACING, str(turn))]
        async with open_plane(tmp_path) as plane:
            swept += await plane.finetunes.sweep()
            await plane.finetunes.forget_swept(_heard)  # as when the runtimes answer
            account = (await plane.accounts.list_accounts())[0].id
            found = await plane.finetunes.get(account, "x")
            assert visible(plane) == set(keys_of(found))
            assert plane.spooled() == []
            acknowledged = [int(number) for word, number in told if word == "ready"]
            removed = {int(number) for word, number in told if word == "deleting"}
            assert found.current is not None
            newest = max(newest, *acknowledged, 0)
            assert found.last_version >= newest, "a number was given twice"
            # Nothing that was acknowledged is lost, but what was removed or had to make room (kept_versions).
            kept = {each.number for each in found.versions if each.status == "ready"}
            recent = sorted(set(acknowledged) - removed)[-(plane.services.settings.adapters.kept_versions - 2) :]
            assert set(recent) <= kept
            digests = set()
            for version in found.versions:
                if version.status == "ready":
                    read_packed((tmp_path / "objects" / str(version.object_key)).read_bytes())
                    digests.add(version.digest)
            assert len(digests) == len(kept), "every version has its own weights"
            for pointer in found.aliases.values():
                assert set(pointer.versions) <= kept
            meant = await plane.finetunes.resolve(Identity(account, "t", frozenset()), plane.catalog.get(MODEL), "x")
            assert meant.version in kept
    assert swept > 0, "no kill came in the middle of anything: the test shows nothing"
    assert newest > 3
