"""Reading along on a stream: what is stored and what comes, in order, with nothing settled."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson

from ..bus import Delivery
from . import consumers, store
from .connection import Connection

BATCH = {"batch": 200, "max_bytes": 8 << 20, "expires": int(5e9)}  # of one pull


async def read(
    connection: Connection,
    stream: str,
    filters: Sequence[str],
    *,
    first: int = 1,
    since: float | None = None,
    follow: bool = False,
    data: bool = True,
) -> AsyncIterator[Delivery]:
    """What is stored, in order, nothing settled: from sequence `first`, or stored at or after unix time `since`.

    follow: then what comes, until the caller stops. data=False: headers only; `Nats-Msg-Size` says how large the data is.
    Survives reconnects and a restarted server. Bounded: 8 MiB are asked for at a time.
    """
    while True:
        start: dict[str, Any] = {"deliver_policy": "by_start_sequence", "opt_start_seq": first}
        if since is not None:
            start = {"deliver_policy": "by_start_time", "opt_start_time": store.timestamp(since)}
        async with _reader(connection, stream, start | {"filter_subjects": list(filters), "headers_only": not data}) as reader:
            while follow or reader.pending:
                batch = await reader.pull()
                if batch is None:
                    break  # deaf: a new one goes on where this one was
                for delivery in batch:
                    first, since = delivery.seq + 1, None
                    yield delivery
            else:
                return


@asynccontextmanager
async def _reader(connection: Connection, stream: str, config: dict[str, Any]) -> AsyncIterator[_Reader]:
    """An ephemeral consumer: kept in memory, acknowledges nothing, no queue, gone soon after its reader."""
    name = f"reader-{secrets.token_hex(6)}"
    config |= {"name": name, "ack_policy": "none", "mem_storage": True, "num_replicas": 1, "inactive_threshold": int(30e9)}
    made = await connection.api(f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": config, "action": "create"})
    reader = _Reader(connection, stream, name, made["num_pending"])
    sid = await connection.subscribe(f"{reader.inbox}.*", reader.take)
    try:
        yield reader
    finally:
        connection.unsubscribe(sid)
        connection.forget(sid)
        connection.write(b"PUB $JS.API.CONSUMER.DELETE.%b.%b 0\r\n\r\n" % (stream.encode(), name.encode()))


class _Reader:
    """pending: how many messages there were behind the last one that was pulled."""

    def __init__(self, connection: Connection, stream: str, name: str, pending: int) -> None:
        self.pending = pending
        self.inbox = f"{connection.inbox}.{name}"
        self._connection, self._stream, self._name = connection, stream, name
        self._pulls = 0
        self._arrived: asyncio.Queue[Delivery | int] = asyncio.Queue()  # bounded by what one pull asks for. int: that pull has ended

    async def pull(self) -> list[Delivery] | None:
        """What one request brings, maybe nothing; None if the consumer does not answer any more."""
        body = orjson.dumps(BATCH)
        self._pulls += 1
        subject, inbox = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}", f"{self.inbox}.{self._pulls}"
        if not self._connection.write(b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), inbox.encode(), len(body), body)):
            await self._connection.up.wait()
            return None
        batch: list[Delivery] = []
        try:
            async with asyncio.timeout(BATCH["expires"] / 1e9 + 2):
                while len(batch) < BATCH["batch"] and (arrived := await self._arrived.get()) != self._pulls:
                    if isinstance(arrived, Delivery):
                        batch.append(arrived)
                        self.pending = int(arrived.token)
                        if not self.pending:
                            break  # up to date: what else this pull brings is for the next call
        except TimeoutError:
            return batch or None
        if not batch:  # what was pending may have been purged meanwhile
            alive = await consumers.find(self._connection, self._stream, self._name)
            if alive is None:
                return None
            self.pending = alive["num_pending"]
        return batch

    def take(self, subject: bytes, reply: bytes, headers: bytes, data: bytes) -> None:
        if not reply:  # a status: the pull has expired, is full, or its consumer is gone
            self._arrived.put_nowait(int(subject.rpartition(b".")[2]))
            return
        # $JS.ACK.{stream}.{consumer}.{deliveries}.{seq}.{n}.{ns}.{pending}; newer: .{domain}.{account} before the stream
        fields = reply.split(b".")
        _, seq, _, ns, pending = fields[4:9] if len(fields) == 9 else fields[6:11]
        where = subject.decode("utf-8", "replace")  # other clients may store anything
        self._arrived.put_nowait(Delivery(where, headers, data, int(seq), 0, int(ns) / 1e9, self._stream, pending.decode()))
