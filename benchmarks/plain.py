"""The same work without a broker: plain.py pool (multiprocessing, 2 processes) | plain.py loop (asyncio, a semaphore of 256)."""

from __future__ import annotations

import asyncio
import sys
from multiprocessing import Pool
from time import thread_time

from benchmarks.marks import here

marks = here()


def busy(number: int) -> None:
    until = thread_time() + 0.001
    while thread_time() < until:
        pass
    marks.enter(number)


async def wait(number: int, free: asyncio.Semaphore) -> None:
    async with free:
        await asyncio.sleep(0.01)
        marks.enter(number)


async def loop() -> None:
    free = asyncio.Semaphore(256)
    await asyncio.gather(*(wait(number, free) for number in range(marks.total)))


if __name__ == "__main__":
    if sys.argv[1] == "pool":
        with Pool(2) as pool:
            pool.map(busy, range(marks.total))
    else:
        asyncio.run(loop())
