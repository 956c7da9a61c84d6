"""Functions and events of other shapes than the no-op on 200 bytes, each beside the plainest program that does the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from .. import rounds
from ..bench import Bench, Sample, Take
from ..contenders import HERE, OURS, Contender, loop, ours
from ..servers import nothing
from .drain import drains

SIZES = {1_000: 40_000, 10_000: 8_000, 100_000: 1_000, (1 << 20) - 100: 120}  # bytes: events


async def run(bench: Bench) -> None:
    await _pair(
        bench, "async and sync", drains(ours("sync", 50_000, name="sync handler"), ours(events=50_000, name="async handler")), 0.7, 0.9
    )
    for ms, events in ((0, 20_000), (1, 10_000)):
        options = {"BENCH_KEYS": "1000", "BENCH_MS": str(ms)}
        contenders = drains(ours("ordered", events, **options), loop("ordered", str(ms), events=events, **options))
        await _pair(bench, f"ordered, 16 partitions, {f'{ms} ms' if ms else 'no-op'}", contenders, 0.6, 0.85)
    await _pair(bench, "one event out an event in", drains(ours("sends", 30_000), loop("send", events=30_000)), 0.6, 0.85)
    for size, events in SIZES.items():
        options = {"BENCH_SIZE": str(size)}
        pair = {one.name: partial(_megabytes, one, size) for one in (ours(events=events, **options), loop(events=events, **options))}
        await _pair(bench, f"payloads of {size:,} bytes", pair, 0.7, 0.9, "MB/s")
    await _pair(bench, "1 ms of Python on the CPU", drains(ours("busy", 6_000), _plain("pool", 6_000)), 0.9, 0.97)
    await _pair(bench, "10 ms of waiting, 256 at once", drains(ours("waits", 60_000), _plain("loop", 60_000)), 0.85, 0.95)


async def _pair(bench: Bench, measure: str, pair: Mapping[str, Take], must: float, aim: float, unit: str = "events/s") -> None:
    first, second = pair
    await bench.compare(measure, unit, pair)
    bench.ratio(f"{measure}: {first}, of {second}", measure, first, second, must, aim)


def _plain(how: str, events: int) -> Contender:
    names = {"pool": "multiprocessing.Pool", "loop": "asyncio semaphore loop"}
    script = (str(OURS / "python"), str(HERE / "plain.py"), how)
    return Contender(names[how], nothing, (), script, events)


async def _megabytes(contender: Contender, size: int) -> Sample:
    drained = await rounds.drain(contender)
    return replace(drained, value=drained.value * size / 1e6)
