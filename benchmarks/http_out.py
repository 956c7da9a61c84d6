"""Events to HTTP: our sink beside its bare client, in turns. Prints the medians and their ratio.

    python -m benchmarks.http_out [ROUNDS]

5,000 events of 200 bytes in batches of 500, 64 requests in flight, to a uvicorn that does nothing, in a process of its own. Each way waits
for a batch to be answered before it begins the next one. The server takes more of the machine than the client: the microseconds of CPU
tell the two ways better apart than the rates do.

bare  aiohttp's post() of requests that were made before the clock runs
ours  send() of the sink: it also makes them, keeps the order of keys, bounds each in time, and answers for each event
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from statistics import median
from time import monotonic, process_time, sleep
from typing import Any, NamedTuple, TypeAlias

import aiohttp

from broker_faas.codec import to_http
from broker_faas.connectors.sink import Outgoing
from broker_faas.connectors.sinks.http import HttpSink
from broker_faas.event import CloudEvent

COUNT, SIZE, BATCH, CONCURRENCY = 5_000, 200, 500, 64

Send: TypeAlias = Callable[[Sequence[CloudEvent]], Awaitable[None]]


class Rate(NamedTuple):
    """Events a second, and microseconds of this process's CPU for each."""

    rate: float
    cpu: float


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """The server's application."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def ours(url: str) -> AsyncIterator[Send]:
    async with HttpSink(url=url + "{target}", concurrency=CONCURRENCY).open() as sink:

        async def send(events: Sequence[CloudEvent]) -> None:
            if any(await sink.send([Outgoing("orders.done", event) for event in events])):
                raise RuntimeError("not delivered")

        yield send


@asynccontextmanager
async def bare(url: str) -> AsyncIterator[Send]:
    made = {event.id: to_http(event) for batch in batches() for event in batch}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY)) as session:

        async def post(events: Iterator[CloudEvent]) -> None:
            for event in events:
                headers, body = made[event.id]
                async with session.post(url + "orders.done", data=body, headers=headers) as response:
                    await response.read()
                    response.raise_for_status()

        async def send(events: Sequence[CloudEvent]) -> None:
            left = iter(events)
            async with asyncio.TaskGroup() as tasks:
                for _ in range(CONCURRENCY):
                    tasks.create_task(post(left))

        yield send


def batches() -> list[list[CloudEvent]]:
    def event(number: int) -> CloudEvent:
        data = b"%0*d" % (SIZE, number)
        return CloudEvent(type="bench.done", source="/bench/f", id=f"{number:08d}.0", datacontenttype="text/plain", data=data)

    return [[event(number) for number in range(first, first + BATCH)] for first in range(0, COUNT, BATCH)]


@contextmanager
def server() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "benchmarks.http_out:nothing", "--port", str(port), "--log-level", "error"]
    process = subprocess.Popen([*command, "--no-access-log", "--lifespan", "off", "--timeout-keep-alive", "60"])
    try:
        until = monotonic() + 30
        while monotonic() < until:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            sleep(0.05)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.kill()
        process.wait()


async def measure(ways: Mapping[str, Send]) -> dict[str, Rate]:
    """Batch by batch in turns, so that what else the machine does meets all alike."""
    took, used = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
    for number, batch in enumerate(batches()):
        for way in [*ways] if number % 2 else [*ways][::-1]:
            started, before = monotonic(), process_time()
            await ways[way](batch)
            took[way] += monotonic() - started
            used[way] += process_time() - before
    return {way: Rate(COUNT / took[way], used[way] / COUNT * 1e6) for way in ways}


async def main(rounds: int) -> None:
    rates: dict[str, list[Rate]] = {"bare": [], "ours": []}
    with server() as url:
        async with bare(url) as one, ours(url) as other:
            for number in range(rounds + 1):
                for way, rate in (await measure({"bare": one, "ours": other})).items():
                    if number:  # in the first round connections are made
                        rates[way].append(rate)
                        print(f"{way:5} {rate.rate:8,.0f} events/s {rate.cpu:6.0f} µs", flush=True)
    for what, of in (
        ("events/s", [[one.rate for one in found] for found in rates.values()]),
        ("CPU", [[one.cpu for one in found] for found in rates.values()]),
    ):
        theirs, own = map(median, of)
        ratio = median(b / a for a, b in zip(*of, strict=True))
        print(f"{what:9} bare {theirs:,.0f}, ours {own:,.0f}, ours / bare {ratio:.2f}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
