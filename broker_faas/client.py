"""What user programs publish with: `async with connect() as bus`, and `with connect_sync() as bus` for threads."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .bus import Bus, Record
from .errors import BusUnavailable, TopicInvalid
from .event import CloudEvent
from .layout import delayed_record, event_record
from .service import first
from .topics import check_topic

LATEST = 253_402_300_799.0  # unix seconds: RFC 3339 has four digits for the year
CHUNK = 1000  # records publish_many sends at once: one atomic batch
CHUNK_BYTES = 4 << 20
PAUSE = 100  # events made into records without letting others work

Extension = str | int | bool | bytes | datetime | None


@asynccontextmanager
async def connect(url: str | None = None, *, source: str | None = None, patience: float = 10.0) -> AsyncIterator[Client]:
    """A client of the bus at `url`, else at NATS_URL, else of the `faas dev` that runs in this folder's project.

    source: of events that name none; `/{program}` by default. patience: seconds a publish goes on trying while the bus is away.
    Raises BusUnavailable, BusRefused.
    """
    from .buses.nats import NatsBus  # nats-py imports in 0.2 s: only programs that publish pay

    async with NatsBus(url or find_bus(), patience=patience).open() as bus:
        yield Client(bus, source or program_source())


@contextmanager
def connect_sync(url: str | None = None, *, source: str | None = None, patience: float = 10.0) -> Iterator[SyncClient]:
    """connect() for plain programs: the connection lives in a thread of its own, and any number of threads may share the client.

    A process that forks (gunicorn, Celery, multiprocessing) opens its own after the fork.
    """
    url = url or find_bus()
    ready: Future[SyncClient] = Future()
    stop: Future[None] = Future()
    ended: Future[None] = Future()

    async def live() -> None:
        async with connect(url, source=source, patience=patience) as client:
            threads = SyncClient(client, asyncio.get_running_loop())
            ready.set_result(threads)
            try:
                await asyncio.wrap_future(stop)
            finally:
                await threads._close()

    def run() -> None:
        try:
            asyncio.run(live())
            ended.set_result(None)
        except BaseException as error:
            (ended if ready.done() else ready).set_exception(error)

    opened_in = os.getpid()
    thread = threading.Thread(target=run, name="broker_faas.client", daemon=True)
    thread.start()
    try:
        yield ready.result()
    finally:
        if os.getpid() == opened_in:  # a fork has copies of all this, and no thread behind them
            stop.set_result(None)
            thread.join()
    if os.getpid() == opened_in:
        ended.result()


class Client:
    """Publishes events. Any number of publishes at once; those that wait leave together."""

    def __init__(self, bus: Bus, source: str, clock: Callable[[], float] = time.time) -> None:
        self._bus = bus
        self._source = source
        self._clock = clock

    async def publish(
        self,
        topic: str,
        data: Any = None,
        *,
        key: str | None = None,
        id: str | None = None,
        source: str | None = None,
        type: str | None = None,
        subject: str | None = None,
        time: datetime | str | None = None,
        datacontenttype: str | None = None,
        dataschema: str | None = None,
        delay: float | None = None,
        at: datetime | float | None = None,
        **extensions: Extension,
    ) -> CloudEvent:
        """Store an event on `topic`; return it when it is on disk.

        data: bytes as they are, a CloudEvent (what else is given here replaces its attributes), or anything JSON can say.
        key: events of one key keep their order in functions with ordered=True. id: drawn if not given; the same id published again
        to this topic within 2 minutes is stored once. type: the topic if not given. time: now if not given.
        delay, at: stored now, delivered after so many seconds, or at a time (aware datetime or unix seconds).
        Raises EventError (this event can never be stored), BusUnavailable (after `patience` seconds; it may be stored or not: publish it
        again with the same id), BusFull, BusRefused.
        """
        given: dict[str, Any] = {"id": id, "source": source, "type": type, "subject": subject, "time": time, "partitionkey": key}
        given |= {"datacontenttype": datacontenttype, "dataschema": dataschema, **extensions}
        event = self._draft(topic, data, given)
        await self._bus.publish([self._record(topic, event, delay, at)])
        return event

    async def publish_many(self, events: Iterable[CloudEvent | tuple[str, CloudEvent]], topic: str | None = None) -> int:
        """Store events in their order, a thousand at a time; return how many they were when all are on disk.

        events: CloudEvents for `topic`, or (topic, CloudEvent). An error leaves the chunks before it stored; publishing all again
        stores none twice within 2 minutes. Raises as publish().
        """
        count = 0
        storing: asyncio.Task[int] | None = None  # one chunk at a time, or order could be lost; the next one is made meanwhile
        try:
            async with asyncio.TaskGroup() as tasks:
                try:
                    for records in chunks(events, topic):
                        await asyncio.sleep(0)
                        if records:
                            if storing:
                                await storing
                            storing = tasks.create_task(self._bus.publish(records))
                            count += len(records)
                except Exception:  # of `events`, or of one that is none: what came before it is stored all the same
                    if storing:
                        await asyncio.wait([storing])
                    raise
        except BaseExceptionGroup as failures:
            raise first(failures) from None
        return count

    def _draft(self, topic: str, data: Any, attributes: dict[str, Any]) -> CloudEvent:
        """The event that publish() stores; attributes that are None are not given. The id is drawn here, once a publish."""
        check_topic(topic)
        given = {name: value for name, value in attributes.items() if value is not None}
        if isinstance(data, CloudEvent):
            return data.replace(**given) if given else data
        now = datetime.fromtimestamp(self._clock(), UTC)
        return CloudEvent(**{"id": os.urandom(16).hex(), "source": self._source, "type": topic, "time": now, "data": data} | given)

    def _record(self, topic: str, event: CloudEvent, delay: float | None, at: datetime | float | None) -> Record:
        """What publish() stores: the event, or a schedule of it."""
        if delay is not None and at is not None:
            raise ValueError("publish() takes delay= or at=, not both")
        if delay is not None:
            if not delay >= 0:
                raise ValueError(f"delay={delay} must be 0 or more seconds")
            at = self._clock() + delay
        elif isinstance(at, datetime):
            if at.tzinfo is None:
                raise ValueError(f"at={at!r} has no time zone: use an aware datetime, like datetime.now(timezone.utc)")
            at = at.timestamp()
        if at is not None and not 0 <= at <= LATEST:
            raise ValueError(f"delay={delay}, at={at}: an event is delivered before the year 10000")
        return event_record(topic, event) if at is None else delayed_record(topic, event, at)


class SyncClient:
    """Client for threads: the same calls, blocking. Errors are the same types."""

    def __init__(self, client: Client, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self._loop = loop
        self._opened_in = os.getpid()
        self._handing_over = threading.Lock()  # nothing is handed to the loop once close() has begun
        self._under_way: set[Future[int]] = set()
        self._closed = False

    def publish(
        self,
        topic: str,
        data: Any = None,
        *,
        key: str | None = None,
        id: str | None = None,
        source: str | None = None,
        type: str | None = None,
        subject: str | None = None,
        time: datetime | str | None = None,
        datacontenttype: str | None = None,
        dataschema: str | None = None,
        delay: float | None = None,
        at: datetime | float | None = None,
        **extensions: Extension,
    ) -> CloudEvent:
        """As Client.publish()."""
        given: dict[str, Any] = {"id": id, "source": source, "type": type, "subject": subject, "time": time, "partitionkey": key}
        given |= {"datacontenttype": datacontenttype, "dataschema": dataschema, **extensions}
        event = self._client._draft(topic, data, given)
        self._wait(self._client._bus.publish([self._client._record(topic, event, delay, at)]))
        return event

    def publish_many(self, events: Iterable[CloudEvent | tuple[str, CloudEvent]], topic: str | None = None) -> int:
        """As Client.publish_many(). `events` is iterated in the calling thread: it may read a database."""
        count = 0
        for records in chunks(events, topic):
            if records:
                self._wait(self._client._bus.publish(records))
                count += len(records)
        return count

    async def _close(self) -> None:
        """On the loop: refuse what comes from now on, and wait for what is under way."""
        with self._handing_over:
            self._closed = True
        await asyncio.gather(*map(asyncio.wrap_future, [*self._under_way]), return_exceptions=True)  # threads take theirs away

    def _wait(self, work: Coroutine[Any, Any, int]) -> None:
        try:
            future = self._hand_over(work)
        except BusUnavailable:
            work.close()
            raise
        try:
            future.result()
        except CancelledError:
            raise BusUnavailable("the connection was closed while publishing; unknown whether the event is stored") from None
        finally:
            future.cancel()  # KeyboardInterrupt left it running; otherwise nothing happens
            self._under_way.discard(future)

    def _hand_over(self, work: Coroutine[Any, Any, int]) -> Future[int]:
        if os.getpid() != self._opened_in:
            raise BusUnavailable(
                f"this connect_sync() was opened in process {self._opened_in} and cannot be used in its fork {os.getpid()}: "
                "open one after the fork (gunicorn: post_fork, Celery: worker_process_init, multiprocessing: in the child)"
            )
        with self._handing_over:
            if self._closed:
                raise BusUnavailable("this connect_sync() is closed: publish inside its `with` block")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._under_way.add(future)
            return future


def find_bus() -> str:
    """NATS_URL, else the server of the `faas dev` that runs in the project of the current folder. Raises BusUnavailable.

    The one place of the library, outside cli/, that reads the environment: a convenience for programs that publish.
    """
    if url := os.environ.get("NATS_URL"):
        return url
    from .embedded import find_running

    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / "faas.toml").is_file()), None)
    if root and (url := find_running(root / ".faas")):
        return url
    missing = f"no `faas dev` is running in {root}" if root else f"neither {here} nor a folder above it has a faas.toml"
    raise BusUnavailable(
        f"no bus to publish to: NATS_URL is not set, and {missing}. Start `faas dev` in the project's folder, or set NATS_URL=nats://host:4222"
    )


def program_source() -> str:
    """`/{name}` of the running program: `/shop` for shop.py and `python -m shop`."""
    path = Path(sys.argv[0] if sys.argv else "")
    name = path.parent.name if path.stem == "__main__" else path.stem
    return "/" + quote(name if name not in ("", "-", "-c", "-m") else "python", safe="")


def chunks(events: Iterable[CloudEvent | tuple[str, CloudEvent]], topic: str | None) -> Iterator[list[Record]]:
    """Records of as many events as one publish should carry. In between, empty lists: a loop may have other work to do."""
    records: list[Record] = []
    size = 0
    for number, item in enumerate(events):
        where, event = (topic, item) if isinstance(item, CloudEvent) else item
        if where is None:
            raise TopicInvalid(f"event {number} ({event.id}) has no topic: pass topic=…, or (topic, event) pairs")
        record = event_record(where, event)
        if records and (len(records) == CHUNK or size + len(record.data) > CHUNK_BYTES):
            yield records
            records, size = [], 0
        elif number % PAUSE == 0:
            yield []
        records.append(record)
        size += len(record.data) + len(record.headers)
    if records:
        yield records
