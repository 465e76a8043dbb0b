"""Run by test_kill.py as a process of its own: appends until it is killed and prints the id of what is acknowledged.

`ack`, `group`: the durability. `early`: the planted bug of the control, an acknowledgement before the append.
"""

import asyncio
import sys
from pathlib import Path

from gateway.settings import Logs
from tests.gateway.logs.support import House, record


async def main(folder: Path, mode: str) -> None:
    async with House(folder) as house:
        settings = Logs(segment_bytes=65_536, durability="group" if mode == "group" else "ack")
        store = await house.store(settings)

        async def append(lane: int) -> None:
            number = 0
            while True:
                one = record(f"lane {lane} number {number}", f"answer {number} " * (number % 50))
                if mode == "early":
                    print(one.id, flush=True)
                    await asyncio.sleep(0.2)
                await store.append(one)
                if mode != "early":
                    print(one.id, number, flush=True)
                number += 1

        async with asyncio.TaskGroup() as lanes:
            for lane in range(8):
                lanes.create_task(append(lane))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
