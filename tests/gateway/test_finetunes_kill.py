"""kill -9 in the middle of uploads and deletions, again and again: after the next start rows and objects agree."""

import asyncio
import random
import signal
import sys
from pathlib import Path

from gateway.finetune_records import Finetune
from storage.packed import read_packed
from tests.gateway.plane import Plane, open_plane

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


async def test_rows_and_objects_agree_after_kills(tmp_path: Path) -> None:
    async with open_plane(tmp_path) as plane:
        await plane.accounts.create_account("one")
    rng = random.Random(20261120)
    swept = 0
    for _ in range(5):
        finished = await run_and_kill(tmp_path, rng.uniform(0.0, 0.25))
        async with open_plane(tmp_path) as plane:
            swept += await plane.finetunes.sweep()
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


async def run_and_kill(folder: Path, after_s: float) -> list[str]:
    """What the child had said when it was killed `after_s` seconds into its work."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, str(folder), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert child.stdout is not None
    assert (await child.stdout.readline()).strip() == b"started"
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
