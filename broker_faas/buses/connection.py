"""One connection to NATS for everything: bytes out, answers in, and who is told when it breaks."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import re
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from ssl import SSLCertVerificationError
from typing import TYPE_CHECKING, Any, Protocol

import orjson
from nats.errors import Error as NatsError

from ..errors import BusError, BusRefused, BusUnavailable
from ..tls import refusal
from .replies import Replies, api_answer
from .wire import NoTls, Sink, WireClient

if TYPE_CHECKING:
    from .access import Access

log = logging.getLogger(__name__)

ASK_AGAIN = 2.0  # seconds: while a cluster elects who leads a stream or a consumer, nobody answers for it
MAX_KEPT = 1 << 20  # bytes of acks kept while disconnected
REFUSED = 30.0  # seconds of refused credentials, after a connection was lost, until it counts as closed for good
REFUSAL = "NATS refuses these credentials; check user, password, token or the .creds file of the bus"
_QUESTION = re.compile(r"(STREAM|CONSUMER)\.(INFO|LIST|MSG\.GET)\b")  # API calls that change nothing
_VIOLATION = re.compile(r'permissions violation for (publish|subscription).* to "([^"]+)"')


class Listener(Protocol):
    """Who wants to know about the connection."""

    def lost(self) -> None: ...
    def restored(self) -> None: ...
    def refused(self, subject: str) -> None:
        """The server denied publishing to `subject` (lower case, as nats-py reports it)."""


class Connection:
    """up: set while bytes reach a server. closed: set when it is given up. last_error: what nats-py said last."""

    def __init__(self, client: WireClient, inbox: str, servers: int = 1) -> None:
        self.client = client
        self.inbox = inbox
        self._servers = servers
        self._distrusted: set[str] = set()  # servers that are not who they should be, at the start
        self.up = asyncio.Event()
        self.closed = asyncio.Event()
        self.last_error = ""
        self.listeners: set[Listener] = set()
        self._open: dict[int, Replies] = {}
        self._serial = 0
        self._kept: list[tuple[float, bytes]] = []
        self._kept_bytes = 0
        self._connecting = True
        self._denied: set[str] = set()  # subscriptions
        self._refused_since: float | None = None  # when the server began to refuse our credentials

    # --- bytes out ---

    def write(self, data: bytes) -> bool:
        """False if there is no connection: nothing was written."""
        return self.up.is_set() and self.client.send(data)

    def keep(self, data: bytes, until: float) -> None:
        """To be written after the reconnect if that is before `until` (loop time), unless too much is kept already.

        For acks: a late one still spares an event a second run.
        """
        if self._kept_bytes + len(data) <= MAX_KEPT:
            self._kept.append((until, data))
            self._kept_bytes += len(data)

    # --- questions ---

    def fresh_inbox(self) -> str:
        self._serial += 1
        return f"{self.inbox}.{self._serial}"

    @asynccontextmanager
    async def expect(self, subjects: Sequence[str]) -> AsyncIterator[Replies]:
        """A place for the answers to requests about to be written to `subjects`."""
        self._serial += 1
        serial = self._serial
        replies = self._open[serial] = Replies(f"{self.inbox}.r.{serial}.", subjects)
        try:
            yield replies
        finally:
            del self._open[serial]

    async def api(self, verb: str, body: dict[str, Any] | None = None, *, seconds: float = 5.0) -> dict[str, Any]:
        """JetStream API call, like api("STREAM.INFO.events"). BusRefused carries JetStream's err_code; BusUnavailable: no answer."""
        [answer] = await self.apis([(verb, body)], seconds=seconds)
        if isinstance(answer, BusError):
            raise answer
        return answer

    async def apis(
        self, calls: Sequence[tuple[str, dict[str, Any] | None]], *, seconds: float = 5.0
    ) -> list[dict[str, Any] | BusRefused | BusUnavailable]:
        """Many calls in one write; an answer or error for each. Questions that get none are asked again meanwhile."""
        if not calls:
            return []
        subjects = [f"$JS.API.{verb}" for verb, _ in calls]
        bodies = [orjson.dumps(body) if body is not None else b"" for _, body in calls]
        try:
            async with asyncio.timeout(seconds):
                await self.up.wait()
        except TimeoutError:
            error = BusUnavailable(f"no connection to NATS for {seconds:g} s ({self.last_error or 'no error reported'})")
            return [error] * len(calls)
        async with self.expect(subjects) as replies:
            frames = [
                b"PUB %b %b%d %d\r\n%b\r\n" % (subject.encode(), replies.prefix.encode(), n, len(body), body)
                for n, (subject, body) in enumerate(zip(subjects, bodies, strict=True))
            ]
            self.write(b"".join(frames))
            for n in range(math.ceil(seconds / ASK_AGAIN)):
                if await replies.wait(min(ASK_AGAIN, seconds - n * ASK_AGAIN)) or replies.done.done():
                    break
                asked = zip(frames, calls, replies.answers, strict=True)
                self.write(b"".join([frame for frame, (verb, _), answer in asked if answer is None and _QUESTION.match(verb)]))
        return [api_answer(subject, replies.answers[n], n in replies.denied, seconds) for n, subject in enumerate(subjects)]

    # --- subscriptions ---

    async def subscribe(self, subject: str, sink: Sink, group: str = "") -> int:
        """sid. The server knows it when this returns. group: of those that share what comes. BusRefused if not permitted."""
        subscription = await self.client.subscribe(subject, group)
        self.client.sinks[subscription._id] = sink
        await self.flush()
        if subject.lower() in self._denied:
            raise BusRefused(f"this NATS user may not subscribe to {subject}; allow its inbox prefix in the server's permissions")
        return subscription._id

    def unsubscribe(self, sid: int) -> None:
        """Messages already on their way still reach the sink, until `forget`."""
        self.client.leave(sid)

    def forget(self, sid: int) -> None:
        self.client.sinks.pop(sid, None)

    async def flush(self, seconds: float = 2.0) -> bool:
        """One round trip; False if it fails."""
        if not self.client.is_connected:
            return False
        try:
            with _heard():
                await self.client.flush(timeout=seconds)  # type: ignore[arg-type]
        except (NatsError, TimeoutError, OSError):
            return False
        return True

    # --- nats-py's callbacks ---

    async def on_error(self, error: Exception) -> None:
        text = refusal(error, "ca (or SSL_CERT_FILE)") or str(error) or type(error).__name__
        self.last_error = text
        if self._connecting and isinstance(error, SSLCertVerificationError | NoTls):
            self._untrusted(text)
        low = text.lower()
        if violation := _VIOLATION.search(low):
            kind, subject = violation.groups()
            log.warning("bus: not permitted", extra={"kind": kind, "subject": subject})
            if kind == "subscription":
                self._denied.add(subject)
                return
            for replies in list(self._open.values()):
                replies.deny(subject)
            for listener in list(self.listeners):
                listener.refused(subject)
        elif "authorization violation" in low or "authentication expired" in low:
            self._refused()
        else:
            log.debug("bus: %s", text)

    def _refused(self) -> None:
        """At the start that is an error at once. Later it may be a rollout that is half done: for REFUSED seconds."""
        if self._connecting:
            raise BusRefused(REFUSAL)
        now = asyncio.get_running_loop().time()
        self._refused_since = self._refused_since or now
        if now - self._refused_since >= REFUSED and not self.closed.is_set():
            log.error("bus connection given up: the server refuses our credentials", extra={"seconds": REFUSED, "do": REFUSAL})
            self.closed.set()

    def _untrusted(self, why: str) -> None:
        """At the start that is an error once every server has said it; later it may be a rollout of certificates."""
        server = self.client._current_server
        assert server is not None
        self._distrusted.add(server.uri.netloc)
        if len(self._distrusted) >= self._servers:
            raise BusRefused(f"NATS at {server.uri.hostname}:{server.uri.port}: {why}")

    async def on_lost(self) -> None:
        self.up.clear()
        if not self.client.is_closed:
            log.warning("bus connection lost: events wait until it is back", extra={"error": self.last_error})
        for replies in list(self._open.values()):
            replies.end()
        for listener in list(self.listeners):
            listener.lost()

    async def on_restored(self) -> None:
        self.up.set()
        self.closed.clear()  # given up for refused credentials, and those are right again: whoever still runs goes on
        self._refused_since = None
        server = self.client.connected_url
        log.info("bus connection restored", extra={"server": f"{server.hostname}:{server.port}" if server else ""})
        kept, self._kept, self._kept_bytes = self._kept, [], 0
        now = asyncio.get_running_loop().time()
        self.write(b"".join([data for until, data in kept if until > now]))
        for listener in list(self.listeners):
            listener.restored()

    async def on_closed(self) -> None:
        self.up.clear()
        self.closed.set()

    def _reply(self, subject: bytes, reply: bytes, headers: bytes, data: bytes) -> None:
        serial, _, position = subject.rpartition(b".r.")[2].partition(b".")
        if replies := self._open.get(int(serial)):
            replies.take(int(position), headers, data)


@asynccontextmanager
async def connect(urls: Iterable[str], name: str, access: Access, seconds: float) -> AsyncIterator[Connection]:
    """Connected within `seconds`, or BusUnavailable. From then on it reconnects for ever; leaving the context closes it.

    ConfigError: a file of `access` cannot be used.
    """
    tls = access.tls()  # before there is a client: one that was never connected cannot be closed
    access.check_credentials()
    client = WireClient()
    servers = list(urls)
    connection = Connection(client, f"{access.inbox}.{secrets.token_hex(8)}", len(servers))
    try:
        try:
            with _heard():
                async with asyncio.timeout(seconds):
                    await client.connect(
                        servers,
                        name=name,
                        error_cb=connection.on_error,
                        disconnected_cb=connection.on_lost,
                        reconnected_cb=connection.on_restored,
                        closed_cb=connection.on_closed,
                        max_reconnect_attempts=-1,  # the default closes the client for good after two minutes
                        reconnect_time_wait=random.uniform(0.3, 0.8),  # type: ignore[arg-type]  # own pace a process: a restart is no stampede
                        connect_timeout=2,
                        ping_interval=10,
                        max_outstanding_pings=2,
                        user=access.user,
                        password=access.password,
                        token=access.token,
                        user_credentials=access.credentials,
                        tls=tls,
                        inbox_prefix=access.inbox,
                    )
        except TimeoutError as e:
            why = connection.last_error or "no answer"
            raise BusUnavailable(f"no NATS server at {', '.join(map(_without_secret, servers))} within {seconds:g} s: {why}") from e
        connection.up.set()
        connection._connecting = False
        await connection.subscribe(f"{connection.inbox}.r.>", connection._reply)
        yield connection
    finally:
        connection.up.clear()
        try:
            await client.close()
        except OSError:  # the link is lost, and nats-py had something left to send, for which nobody waits any more
            client._abort()


@contextmanager
def _heard() -> Iterator[None]:
    """Raises the cancellation that came while the body awaited, and that was swallowed there.

    nats-py waits with asyncio.wait_for, which up to Python 3.11 does so when the answer comes in the same turn of the loop.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    yield
    if task.cancelling() > before:
        raise asyncio.CancelledError


def _without_secret(url: str) -> str:
    return re.sub(r"//.*@", "//", url)
