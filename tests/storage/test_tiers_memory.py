"""The memory tier's budget is what the process grows by, whatever comes and goes."""

import asyncio
import sys
from pathlib import Path

CHILD = """
import asyncio, hashlib, os, random, sys
from pathlib import Path
from storage.objects.base import single
from storage.objects.local import LocalObjects
from storage.tiers import Tiers

SIZES = (200_000, 264_896, 264_960, 410_000)

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

async def main(folder):
    objects, wanted, rng = LocalObjects(folder / "objects"), [], random.Random(1)
    for number in range(150):
        data = os.urandom(SIZES[number % len(SIZES)])
        digest = hashlib.sha256(data).hexdigest()
        await objects.put(f"adapters/{digest}", single(data), max_bytes=len(data))
        wanted.append((digest, f"adapters/{digest}", len(data)))
    tiers = Tiers(objects, folder / "tiers", memory_bytes=16 * 2**20, disk_bytes=20 * 2**20, memory_policy="gdsf")
    await tiers.open()
    weights = [1 / (number + 1) for number in range(len(wanted))]

    async def ask(times):
        for _ in range(times):
            fetched = await tiers.fetch(*rng.choices(wanted, weights)[0])
            await asyncio.sleep(0)
            fetched.release()

    before = resident()
    for _ in range(3):
        await asyncio.gather(*(ask(40) for _ in range(16)))
        print(resident() - before, tiers.stats()["memory"].used_bytes, tiers.stats()["memory"].evictions, flush=True)
    await tiers.aclose()
    await objects.aclose()

asyncio.run(main(Path(sys.argv[1])))
"""


async def test_a_process_grows_by_its_budget(tmp_path: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, str(tmp_path), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    out, _ = await child.communicate()
    assert child.returncode == 0
    budget = 16 * 2**20
    for line in out.decode().splitlines():
        grown, used, evictions = (int(text) for text in line.split())
        assert used > budget * 0.9, "the budget is used"
        assert evictions > 50
        assert grown < budget * 1.35, f"{grown / 1e6:.1f} MB instead of {budget / 1e6:.1f}"
