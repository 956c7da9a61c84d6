"""What the gateway answers: POST /topics/{topic} publishes; 2xx is said after the bus has it on disk, and not before."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol
from uuid import uuid4

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..attributes import kind
from ..bus import Record
from ..codec import from_http_batch
from ..config import GatewayConfig
from ..errors import BusError, BusRefused, ConfigError, EventError, EventInvalid
from ..event import CloudEvent
from ..layout import EVENTS, event_record, key_hash
from ..topics import check_topic
from .head import check_head
from .keys import Keys
from .openapi import DOCUMENT, page
from .problem import answer, problem, problem_of

log = logging.getLogger(__name__)

MAX_REQUESTS = 256  # in hand at once: read, or waiting for the bus
MAX_BYTES = 64 << 20  # of bodies in hand
PATIENCE = 10.0  # seconds that a publish goes on trying; clients wait 10 to 30
_METHODS = {"allow": "OPTIONS, POST"}
_ORIGIN = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")


class Store(Protocol):
    """The bus, as far as the gateway needs it."""

    @property
    def connected(self) -> bool: ...

    async def publish(self, records: Sequence[Record], *, sequences: dict[str, int]) -> int: ...


def application(store: Store, keys: Keys, options: GatewayConfig) -> ASGIApp:
    topics = _Topics(store, keys, options)

    async def livez(request: Request) -> Response:
        return answer({"status": "alive"})

    async def readyz(request: Request) -> Response:
        return answer({"status": "ready"}) if store.connected else problem(503, "The bus is away.", {"retry-after": "1"})

    async def openapi(request: Request) -> Response:
        return answer(DOCUMENT)

    async def docs(request: Request) -> Response:
        policy = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
        return answer(page(), headers=policy, media_type="text/html")

    routes = [
        Route("/topics/{topic}", topics.endpoint, methods=["POST", "OPTIONS"]),
        Route("/livez", livez),
        Route("/readyz", readyz),
        Route("/openapi.json", openapi),
        Route("/docs", docs),
    ]
    app = Starlette(routes=routes, exception_handlers=dict.fromkeys(_EXPECTED, _told) | {Exception: _failed})
    app.router.redirect_slashes = False  # one path for one thing: a redirect would be made of the Host that the client sent
    return _checked(app)


_EXPECTED = (HTTPException, EventError, BusError, BusRefused, ConfigError, TimeoutError, ClientDisconnect)


async def _told(request: Request, error: Exception) -> Response:
    if isinstance(error, BusRefused):
        log.error("the bus refuses events: clients hear 503 until that is mended", extra={"why": str(error)})
    return problem_of(error)


async def _failed(request: Request, error: Exception) -> Response:
    log.error("a request failed: a bug of ours", exc_info=error, extra={"path": request.url.path[:200]})
    return problem_of(error)


def _checked(app: ASGIApp) -> ASGIApp:
    """No request whose head could mean two things comes to `app`."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        wrong = check_head(scope["http_version"], scope["headers"])
        if wrong:
            return await problem(*wrong, {"connection": "close"})(scope, receive, send)
        await app(scope, receive, send)

    return checked


class _Topics:
    def __init__(self, store: Store, keys: Keys, options: GatewayConfig) -> None:
        self._store = store
        self._keys = keys
        self._options = options
        self._requests = self._bytes = 0  # in hand

    async def endpoint(self, request: Request) -> Response:
        topic = request.path_params["topic"]
        headers = dict(request.headers)  # check_head() has seen that none that means something comes twice
        self._authorize(headers, topic)
        if request.method == "OPTIONS":
            return _handshake(headers)
        key = _idempotency_key(headers)
        _check_content(headers, self._options.max_body)
        if not self._store.connected:
            return problem(503, "The bus is away, and nothing was stored. Send it again with the same id.", {"retry-after": "1"})
        if self._requests >= MAX_REQUESTS:
            raise _busy()
        body = bytearray()
        self._requests += 1
        try:
            await self._read(request, body)
            events, records = await self._made(topic, headers, bytes(body), key)
            sequences: dict[str, int] = {}
            duplicates = await self._publish(records, sequences)
            # crash point: gateway-stored
        finally:
            self._requests -= 1
            self._bytes -= len(body)
        said = {"topic": topic, "stream": EVENTS, "events": len(events), "duplicates": duplicates}
        return answer(said | {"ids": [event.id for event in events], "sequences": [sequences[record.msg_id] for record in records]})

    def _authorize(self, headers: Mapping[str, str], topic: str) -> None:
        if not self._keys.wanted:
            if "origin" in headers:  # whatever page the user looks at could publish: their browser reaches this machine
                raise HTTPException(403, "Browsers may not publish without a key. `faas keys add NAME` makes one.")
            check_topic(topic)
            return
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise HTTPException(401, "Send a key: 'Authorization: Bearer faas_…'.", {"www-authenticate": "Bearer"})
        key = self._keys.find(secret.strip(" "))
        if key is None:
            raise HTTPException(401, "This key is not known, or was revoked.", {"www-authenticate": 'Bearer error="invalid_token"'})
        check_topic(topic)
        if not key.covers(topic):
            raise HTTPException(
                403, f"The key {key.name!r} may not publish to {topic!r}.", {"www-authenticate": 'Bearer error="insufficient_scope"'}
            )

    async def _read(self, request: Request, body: bytearray) -> None:
        limit = self._options.max_body
        try:
            async with asyncio.timeout(self._options.body_timeout):
                async for chunk in request.stream():
                    body += chunk
                    self._bytes += len(chunk)
                    if len(body) > limit:
                        raise _too_large(limit)
                    if self._bytes > MAX_BYTES and self._bytes > len(body):
                        raise _busy()
        except TimeoutError:
            raise HTTPException(
                408, f"The body did not come within {self._options.body_timeout:g} seconds.", {"connection": "close"}
            ) from None

    async def _made(self, topic: str, headers: Mapping[str, str], body: bytes, key: str | None) -> tuple[list[CloudEvent], list[Record]]:
        def make() -> tuple[list[CloudEvent], list[Record]]:
            events = events_of(topic, headers, body, self._options.source, key)
            return events, records_of(topic, events, key)

        # 1 MiB of small events takes a second, in which nobody else would be answered.
        return await asyncio.to_thread(make) if kind(headers.get("content-type", "")) == "batch" else make()

    async def _publish(self, records: list[Record], sequences: dict[str, int]) -> int:
        if not records:
            return 0
        async with asyncio.timeout(PATIENCE):
            return await self._store.publish(records, sequences=sequences)


def events_of(topic: str, headers: Mapping[str, str], body: bytes, source: str, key: str | None) -> list[CloudEvent]:
    """CloudEvents as they are; anything else becomes the data of one, of the topic's type. Raises EventInvalid."""
    content_type = headers.get("content-type")
    if kind(content_type or "") != "binary" or any(name.startswith("ce-") for name in headers):
        return from_http_batch(headers, body)
    # An id that is drawn: without a key, a client that sends this again means another event, and no retry of ours comes this way.
    identity = key or uuid4().hex
    data = body if body or content_type else None
    return [CloudEvent(type=topic, source=source, id=identity, time=datetime.now(UTC), datacontenttype=content_type, data=data)]


def records_of(topic: str, events: Sequence[CloudEvent], key: str | None) -> list[Record]:
    """With an idempotency key, that stands for the ids where the bus looks for duplicates; the events stay as they are."""
    records = [event_record(topic, event) for event in events]
    if key is None:
        return records
    several = len(events) > 1
    ids = [key_hash(topic, event.source, key, *([str(n)] if several else ())) for n, event in enumerate(events)]
    return [record._replace(msg_id=id) for record, id in zip(records, ids, strict=True)]


def _idempotency_key(headers: Mapping[str, str]) -> str | None:
    key = headers.get("idempotency-key")
    if key is None:
        return None
    if len(key) >= 2 and key[0] == key[-1] == '"':  # as the draft of its standard writes it
        key = key[1:-1]
    if not 1 <= len(key) <= 200 or not (key.isascii() and key.isprintable()):
        raise HTTPException(400, "Idempotency-Key must hold 1 to 200 printable ASCII characters.")
    return key


def _check_content(headers: Mapping[str, str], limit: int) -> None:
    """Refuses by the head what would be refused once it is read."""
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HTTPException(415, "Bodies are taken as they are: send it without Content-Encoding.", {"accept-encoding": "identity"})
    try:
        kind(headers.get("content-type", ""))
    except EventInvalid as error:
        raise HTTPException(415, str(error)) from None
    length = headers.get("content-length")
    if length is None and "transfer-encoding" not in headers:
        raise HTTPException(411, "Say how long the body is: Content-Length, 0 for none.")
    if length is not None and int(length) > limit:
        raise _too_large(limit)


def _handshake(headers: Mapping[str, str]) -> Response:
    """CloudEvents webhooks: a sender asks whether it may. It may, with a key that may. What it names to be called back never is."""
    origin = headers.get("webhook-request-origin")
    if origin is None:
        return answer(b"", 204, _METHODS)
    if len(origin) > 253 or not _ORIGIN.fullmatch(origin):
        raise HTTPException(400, "WebHook-Request-Origin must be a name of the domain name system, like eventemitter.example.com.")
    allowed = {**_METHODS, "webhook-allowed-origin": origin}
    if "webhook-request-rate" in headers:
        allowed["webhook-allowed-rate"] = "*"  # who comes too often hears 429
    return answer(b"", 200, allowed)


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"The body has more than {limit:,} bytes. Store the data elsewhere and send a reference.")


def _busy() -> HTTPException:
    return HTTPException(429, "Too many requests are in hand. Come again in a moment.", {"retry-after": "1"})
