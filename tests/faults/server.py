"""`python -m tests.faults.server FOLDER PORT MAX_BYTES [kept]`: the embedded nats-server, with a keeper that ends when it does.

kept: by what keeps the server of `faas dev`, which starts it again.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from broker_faas.cli.dev import OwnServer
from broker_faas.embedded import EmbeddedNats
from broker_faas.service import run


async def main(folder: Path, port: int, max_bytes: int, *, kept: bool) -> None:
    options = EmbeddedNats(folder, port=port, max_bytes=max_bytes)
    if kept:
        async with OwnServer(options).open() as own:
            await run(own.keep)
        return
    async with options.open() as server:

        async def ended(stop: asyncio.Event) -> None:
            async with asyncio.TaskGroup() as tasks:
                exited = tasks.create_task(server.exited())
                stopped = tasks.create_task(stop.wait())
                await asyncio.wait([exited, stopped], return_when=asyncio.FIRST_COMPLETED)
                exited.cancel()
                stopped.cancel()

        await run(ended)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), kept="kept" in sys.argv[4:]))
