"""What buses/wire.py and connection.py need of nats-py's inside. Red here after an upgrade: read its changes before going on."""

from __future__ import annotations

import asyncio
import inspect
from importlib.metadata import version

import pytest
import uvloop
from nats.aio.client import Client
from nats.aio.transport import TcpTransport

from broker_faas.bus import Queue, Record
from broker_faas.buses.nats import NatsBus
from broker_faas.buses.wire import Cutter, WireClient
from broker_faas.errors import BusRefused
from tests.helpers import eventually

QUEUE = Queue("shop--reserve", ("orders.created",), start="first")


def test_nats_py_is_the_version_this_seam_was_written_for() -> None:
    assert version("nats-py").startswith("2.16.")


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        (Client._process_err, ["self", "err_msg"]),
        (Client._process_op_err, ["self", "e"]),
        (Client._connect_to_server, ["self", "s"]),
        (Client._process_connect_init, ["self"]),
        (Client._process_info, ["self", "info", "initial_connection"]),
        (Client._connect_command, ["self"]),
        (Client._read_loop, ["self"]),
        (Client.flush, ["self", "timeout"]),
        (TcpTransport.write, ["self", "payload"]),
        (TcpTransport.writelines, ["self", "payload"]),
    ],
)
def test_what_is_overridden_or_used_still_looks_the_same(method: object, parameters: list[str]) -> None:
    assert callable(method)
    assert list(inspect.signature(method).parameters) == parameters


def test_the_client_keeps_what_is_read_of_it() -> None:
    client = WireClient()

    assert {"_transport", "_subs", "_max_payload", "_pending", "_pending_data_size", "sinks"} <= vars(client).keys()


PAYLOADS = [b"", b"x", b"\r\n", b"HMSG a 1 5 5\r\n", b"y" * 5000]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 1 << 20])
def test_messages_are_cut_out_however_the_bytes_arrive(size: int) -> None:
    seen: list[tuple[bytes, ...]] = []
    others: list[bytes] = []
    cutter = Cutter({7: lambda *message: seen.append(message)}, others.append)
    head = b"NATS/1.0\r\na: b\r\n\r\n"
    stream, expected = b"", []
    for payload in PAYLOADS:
        stream += b"HMSG ev.a 7 $JS.ACK.x %d %d\r\n%b%b\r\n" % (len(head), len(head) + len(payload), head, payload)
        stream += b"MSG ev.b 7 reply %d\r\n%b\r\nPONG\r\n" % (len(payload), payload)
        stream += b"MSG ev.c 8 %d\r\n%b\r\n" % (len(payload), payload)  # of a subscription that is gone
        stream += b"HMSG _INBOX.1 7 %d %d\r\n%b\r\n+OK\r\n" % (len(head), len(head), head)
        expected += [(b"ev.a", b"$JS.ACK.x", head, payload), (b"ev.b", b"reply", b"", payload), (b"_INBOX.1", b"", head, b"")]
    for start in range(0, len(stream), size):
        cutter.feed(stream[start : start + size])

    assert seen == expected
    assert others == [b"PONG\r\n", b"+OK\r\n"] * len(PAYLOADS)


@pytest.mark.parametrize(
    "garbage", [b"MSG a 7 x\r\n", b"HMSG a 7 r 9 3\r\n", b"HMSG a 7 r -9 -3\r\n", b"MSG a 7 -5\r\n", b"MSG a seven 0\r\n\r\n", b"MSG\r\n"]
)
def test_what_cannot_be_a_message_is_an_error_and_not_an_endless_loop(garbage: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        Cutter({}, lambda line: None).feed(garbage)


async def test_a_server_that_writes_garbage_costs_a_reconnect(bus_url: str) -> None:
    async with NatsBus(bus_url).open() as bus:
        tap = bus._connection.client._transport._io_writer.transport.get_protocol()  # type: ignore[union-attr]
        tap.feed(b"MSG a 7 -5\r\n")
        await eventually(lambda: bus._connection.client.stats["reconnects"] == 1)
        await eventually(lambda: bus.connected)

        assert await bus.publish([Record("ev.orders.created.-.-", "1", b"", b"")]) == 0


async def test_an_error_that_nats_py_would_close_for_is_survived(bus_url: str) -> None:
    async with NatsBus(bus_url).open() as bus:
        bus._connection.client._transport.write(b"NONSENSE\r\n")  # type: ignore[union-attr]  # the server answers -ERR and hangs up
        await eventually(lambda: bus._connection.client.stats["reconnects"] == 1)
        await eventually(lambda: bus.connected)

        assert not bus.closed.is_set()
        assert await bus.publish([Record("ev.orders.created.-.-", "1", b"", b"")]) == 0


async def test_a_sink_that_fails_costs_a_reconnect_and_not_the_connection(bus_url: str) -> None:
    async with NatsBus(bus_url).open() as bus, bus.subscribe(QUEUE, 10) as subscription:
        whole = bus._connection.client.sinks[subscription._sid]

        def failing(*message: bytes) -> None:
            bus._connection.client.sinks[subscription._sid] = whole
            raise RuntimeError("a bug")

        bus._connection.client.sinks[subscription._sid] = failing
        await bus.publish([Record("ev.orders.created.-.-", str(n), b"", b"") for n in range(3)])
        await eventually(lambda: bus._connection.client.stats["reconnects"] == 1)
        async with asyncio.timeout(10):
            await bus.publish([Record("ev.orders.created.-.-", "last", b"", b"last")])
            async for batch in subscription:
                if batch[-1].data == b"last":
                    break

        assert bus.connected


async def test_a_flush_after_a_subscription_comes_after_it_on_the_wire(bus_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with NatsBus(bus_url).open() as bus:
        written: list[bytes] = []
        writer = bus._connection.client._transport._io_writer  # type: ignore[union-attr]

        def write(*lines: bytes) -> None:
            written.extend(lines)
            writer.transport.write(b"".join(lines))

        monkeypatch.setattr(writer, "write", write)
        monkeypatch.setattr(writer, "writelines", lambda lines: write(*lines))
        await bus._connection.subscribe("some.inbox", lambda *message: None)

        assert [line.split()[0] for line in written] == [b"SUB", b"PING"]


async def test_refusals_name_the_subject(bus_url: str) -> None:
    """nats-py hands "permissions violation" to a callback alone, in lower case."""
    async with NatsBus(bus_url).open() as bus:
        client = bus._connection.client
        asking = asyncio.ensure_future(bus._connection.apis([("X", None)]))
        await asyncio.sleep(0)
        client._transport._io_reader.feed_data(b"-ERR 'Permissions Violation for Publish to \"$JS.API.X\"'\r\n")  # type: ignore[union-attr]
        [answer] = await asking

        assert isinstance(answer, BusRefused)
        assert "$JS.API.X" in str(answer)


async def test_a_connection_that_was_lost_a_moment_ago_takes_nothing_and_raises_nothing_new(bus_url: str) -> None:
    """uvloop's transport raises RuntimeError at who writes then, before nats-py has heard of it."""

    async def lost() -> tuple[bool, bool]:
        async with NatsBus(bus_url).open() as bus:
            connection, client = bus._connection, bus._connection.client
            client._transport._io_writer.transport.abort()  # type: ignore[union-attr]
            sent = flushed = True
            for _ in range(20):
                sent = sent and client.send(b"PING\r\n")
                flushed = flushed and await connection.flush(0.1)
                await asyncio.sleep(0)
            return sent, flushed

    assert await asyncio.to_thread(uvloop.run, lost()) == (False, False)
