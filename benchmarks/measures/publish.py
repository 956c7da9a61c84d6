"""Publishing with fsync before every acknowledgement: together, and one by one."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from .. import procs, servers
from ..bench import Bench, Sample
from ..contenders import HERE, OURS, environment

WAYS = {
    "one by one, awaited": ("awaited",),
    "batches of 500": ("batches",),
    "256 concurrent publish()": ("concurrent", "256"),
    "64 concurrent publish()": ("concurrent", "64"),
}


async def run(bench: Bench) -> None:
    await bench.compare("publish, fsynced", "events/s", {name: partial(_taken, *how) for name, how in WAYS.items()})
    for name, must, aim in (("batches of 500", 15, 25), ("256 concurrent publish()", 12, 20), ("64 concurrent publish()", 5, 7.5)):
        bench.ratio(f"publish, {name}, times one by one", "publish, fsynced", name, "one by one, awaited", must, aim)
    await bench.compare("one publish, idle bus", "ms", {"ours": partial(_taken, "one"), "bare client": partial(_taken, "bare")})
    bench.ratio("one publish, of a bare client's", "one publish, idle bus", "ours", "bare client", 1.3, 1.1, higher=False)


async def _taken(*how: str) -> Sample:
    with tempfile.TemporaryDirectory(prefix="faas-bench-", ignore_cleanup_errors=True) as folder:
        async with servers.nats(Path(folder) / "server") as server:
            said = Path(folder) / "said"
            argv = [str(OURS / "python"), str(HERE / "publishes.py"), *how]
            await procs.finished(argv, environment(server.url), said)
            return Sample(float(said.read_text().split()[-1]), durability=server.durability)
