"""Events -> HTTP: a POST each, in CloudEvents' binding. 2xx is delivered, and nothing else is.

Events of one partitionkey are sent one after the other; one that is not taken does not hold back those behind it. Others are sent side by
side. Redirects are not followed: they would lead events, and the token, where nobody has said that they may go.

http_parts/client.py     connections, and what is read of answers
http_parts/answers.py    what an answer means
http_parts/signature.py  Standard Webhooks
"""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, NamedTuple
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

from ...codec import to_http
from ...errors import SinkUnavailable
from ...options import loopback
from ...topics import is_topic
from ..http_parts.answers import now, secrets, verdict
from ..http_parts.client import Phase, connected, phase, read, why
from ..http_parts.signature import key, message_id, sign
from ..sink import Outgoing, Undelivered

_URL = re.compile(r"https?://[A-Za-z0-9.:\[\]_-]+(?:[/?][\w\-.~:/?\[\]@!$&'()*+,;=%{}]*)?", re.ASCII)
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[!-~](?:[ \t!-~]*[!-~])?")
_OURS = {"content-type", "content-length", "transfer-encoding", "connection"}
_UNTYPED = ("Content-Type",)  # data without a type stays so
_LARGE = 1 << 20  # bytes; more at once block the loop, says aiohttp
_HUNG_UP = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
_TARGETS = 1000  # whose urls are kept
SEND = 100.0  # seconds that one send() may take: what settles what it tells waits no longer than 120


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSink:
    """Options: docs/connectors/http.md. timeout: seconds for a whole request, connecting and the answer included.

    concurrency: requests in flight. ca_file, cert_file, key_file: PEM files. insecure: another machine without TLS.
    """

    url: str = field(repr=False)  # that of many webhooks is a password
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    token: str = field(default="", repr=False)
    secret: str | tuple[str, ...] = field(default=(), repr=False)
    format: Literal["binary", "structured"] = "binary"
    timeout: float = 10.0
    concurrency: int = 16
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        host = _host(self.url)
        if not self.url.startswith("https:") and not self.insecure and not loopback(host):
            raise ValueError(
                f"url is another machine ({host}): it needs TLS, like https://{host}/. "
                "In a network where nobody else listens, say insecure = true."
            )
        for name, value in self.headers.items():
            self._check_header(name, value)
        if self.token and not re.fullmatch(r"[!-~]+", self.token):
            raise ValueError("token must be text without spaces, in ASCII")
        for one in self.signing:
            try:
                key(one)
            except ValueError as error:
                raise ValueError(f"secret {error}") from None
        if not 0 < self.timeout <= 60:
            raise ValueError("timeout must be a number of seconds above 0 and up to 60")
        if not 1 <= self.concurrency <= 256:
            raise ValueError("concurrency must lie between 1 and 256")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file must be given together")
        if (self.ca_file or self.cert_file) and not self.url.startswith("https:"):
            raise ValueError("ca_file, cert_file and key_file are for https://")

    def _check_header(self, name: str, value: str) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"headers has {name!r:.80}, which is no name of a header")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"headers.{name:.80} must be a value in ASCII, without line ends")  # which may be secret
        if name.lower() in _OURS or name.lower().startswith(("ce-", "webhook-")):
            raise ValueError(f"headers.{name:.80} is said by the event, and cannot be said for all")
        if name.lower() == "authorization" and self.token:
            raise ValueError("headers.Authorization and token exclude each other")

    @property
    def signing(self) -> tuple[str, ...]:
        """Secrets to sign with: a signature each."""
        if isinstance(self.secret, str):
            return (self.secret,) if self.secret else ()
        return self.secret

    @asynccontextmanager
    async def open(self) -> AsyncIterator[HttpSession]:
        """Connects once, to say what is wrong. Raises SinkUnavailable; SinkRefused for certificates."""
        async with connected(self) as client:
            yield HttpSession(self, client)


def _host(url: str) -> str:
    """The host of a url that can be used. Raises ValueError, which does not show it: it may hold a password."""
    try:
        parts = urlsplit(url)
        valid = _URL.fullmatch(url) and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(
            "url must look like https://shop.example.com/events/{target}: {target} only behind the host, no fragment, what a URI has no "
            "place for percent-encoded, and no user or password, which belong into token or headers"
        )
    if left := re.search(r"[{}]", url.replace("{target}", "")):
        raise ValueError(f"url has a {left[0]!r} that belongs to no {{target}}; a plain one is written {quote(left[0])}")
    return parts.hostname or ""


# --- the session --------------------------------------------------------------------------------------------


class _Request(NamedTuple):
    url: URL
    headers: dict[str, str]
    body: bytes


class _Lost(Exception):
    """No connection, or none any more: it may be the receiver that is gone, and not the event that is wrong."""


class HttpSession:
    """One send() at a time: the order of a key lies within it. most: as many as take no longer than SEND if none has an answer."""

    def __init__(self, options: HttpSink, client: aiohttp.ClientSession) -> None:
        self.most = min(500, options.concurrency * max(1, int(SEND // options.timeout)))
        self._options = options
        self._client = client
        self._keys = [key(secret) for secret in options.signing]
        self._always = {"User-Agent": f"broker-faas/{_version()}", "Accept-Encoding": "identity", **options.headers}
        if options.token:
            self._always["Authorization"] = f"Bearer {options.token}"
        self._hidden = secrets(options.url, (*options.headers.values(), options.token, *options.signing))
        self._where = urlsplit(options.url).netloc
        self._urls: dict[str, URL] = {}
        self._heard = False  # any answer on this session

    async def send(self, events: Sequence[Outgoing]) -> list[Undelivered | None]:
        """SinkUnavailable only if connections fail and none of the events has an answer. What has none may have been taken."""
        results: list[Undelivered | None] = [Undelivered("not sent: those before it took too long") for _ in events]
        lanes = _lanes(events)
        answered, lost, lost_in_a_row = False, "", 0
        time = asyncio.get_running_loop().time
        until = time() + SEND - self._options.timeout

        async def serve() -> None:
            nonlocal answered, lost, lost_in_a_row
            for lane in lanes:
                for n in lane:
                    # Nobody is there, and each would wait for `timeout` to hear it.
                    gone = lost_in_a_row >= self._options.concurrency
                    if gone or time() > until:
                        results[n] = Undelivered(f"not sent: {lost}") if gone else results[n]
                        continue
                    try:
                        results[n] = await self._delivered(events[n])
                        answered, lost_in_a_row = True, 0
                    except TimeoutError:
                        results[n] = Undelivered(f"{self._where} did not answer within {self._options.timeout:g} seconds")
                        lost_in_a_row = 0
                    except _Lost as error:
                        results[n] = Undelivered(str(error))
                        lost, lost_in_a_row = str(error), lost_in_a_row + 1

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(self._options.concurrency, len(events))):
                tasks.create_task(serve())
        if lost and not answered:
            raise SinkUnavailable(lost)
        return results

    async def _delivered(self, one: Outgoing) -> Undelivered | None:
        url = self._urls.get(one.target) or self._url(one.target)
        if url is None:
            return Undelivered(f"{one.target!r:.80} is no target: words of letters, digits, '_' and '-' with dots between", again=False)
        request = self._request(one, url)
        answer: list[aiohttp.ClientResponse] = []
        body = bytearray()
        try:
            async with asyncio.timeout(self._options.timeout):
                try:
                    await self._ask(request, answer, body)
                except _HUNG_UP:
                    # It gave up a quiet connection as we wrote to it: nobody has read the request, in all likelihood. Seen of uvicorn
                    # (which waits for 5 s) on a busy machine, of several connections at once.
                    if answer or phase.get() is not Phase.REUSED:
                        raise
                    await self._ask(request, answer, body)
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is one
            if not answer:
                if isinstance(error, TimeoutError) and phase.get() is not Phase.CONNECTING:
                    raise TimeoutError from None
                how = "cannot be connected to" if phase.get() is Phase.CONNECTING else "did not answer"
                wants = (
                    ": are http or https, and cert_file, what this port wants?" if isinstance(error, _HUNG_UP) and not self._heard else ""
                )
                raise _Lost(f"{self._where} {how}: {why(error)}{wants}") from None
        self._heard = True
        return verdict(answer[0].status, answer[0].headers, body, now(), self._hidden)

    async def _ask(self, request: _Request, answer: list[aiohttp.ClientResponse], body: bytearray) -> None:
        """Once its head is there, an answer counts, whatever becomes of its body."""
        data = io.BytesIO(request.body) if len(request.body) > _LARGE else request.body
        skip = None if "content-type" in request.headers else _UNTYPED  # aiohttp sorts all headers to leave one out
        post = self._client.post(request.url, data=data, headers=request.headers, skip_auto_headers=skip, allow_redirects=False)
        async with post as response:
            answer.append(response)
            await read(response, body)

    def _url(self, target: str) -> URL | None:
        """None for what is no target: anything else could change the path, or the host."""
        if not is_topic(target):
            return None
        if len(self._urls) >= _TARGETS:
            self._urls.clear()
        self._urls[target] = url = URL(self._options.url.replace("{target}", target), encoded=True)
        return url

    def _request(self, one: Outgoing, url: URL) -> _Request:
        # An event that holds an event has the content type of a structured one: only in an envelope is it told from what it holds.
        nested = (one.event.datacontenttype or "").lower().startswith("application/cloudevents")
        headers, body = to_http(one.event, structured=nested or self._options.format == "structured")
        headers |= self._always
        if self._keys:
            id, timestamp = message_id(one.target, one.event), int(now())
            headers |= {"webhook-id": id, "webhook-timestamp": str(timestamp), "webhook-signature": sign(self._keys, id, timestamp, body)}
        return _Request(url, headers, body)


def _lanes(events: Sequence[Outgoing]) -> Iterator[list[int]]:
    """Positions of events that go one after the other: those of one key, and each without one by itself."""
    lanes: dict[str | int, list[int]] = {}
    for n, one in enumerate(events):
        partitionkey = one.event.partitionkey
        lanes.setdefault(n if partitionkey is None else partitionkey, []).append(n)
    return iter(lanes.values())


def _version() -> str:
    try:
        return version("broker-faas")
    except PackageNotFoundError:
        return "0"
