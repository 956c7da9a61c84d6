"""What the options of a RabbitMQ connector may be, and which errors are worth coming again for. No server."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from aiormq import exceptions as amqp

from broker_faas.connectors.amqp.connection import told
from broker_faas.connectors.rabbitmq import RabbitmqConnector

LOCAL = "amqp://guest:secret@127.0.0.1:5672"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "http://127.0.0.1", "queue": "q"}, "url must look like"),
        ({"url": "amqps://127.0.0.1?no_verify_ssl=1", "queue": "q"}, "url must look like"),
        ({"url": "amqp://u:secret@[::1", "queue": "q"}, "url must look like"),
        ({"url": "amqp://u:secret@10.0.0.1", "queue": "q"}, r"another machine \(10.0.0.1\): it needs TLS"),
        ({}, "one of the two"),
        ({"queue": "a", "queues": ("b",)}, "one of the two"),
        ({"queues": ("a", "a")}, "twice"),
        ({"queues": ("a", "")}, "1 to 255 bytes"),
        ({"queue": "é" * 128}, "1 to 255 bytes"),
        ({"queue": "a\0"}, "control characters"),
        ({"queue": "q", "event_type": ""}, "event_type"),
        ({"queue": "q", "key": "routing-key", "key_header": "x"}, "exclude each other"),
        ({"queue": "q", "prefetch": 0}, "prefetch must lie"),
        ({"queue": "q", "prefetch": 65_536}, "prefetch must lie"),
        ({"queue": "q", "batch": 501}, "batch must lie"),
        ({"queue": "q", "ca": "ca.pem"}, "are for amqps"),
        ({"queue": "q", "url": "amqps://h", "cert": "c.pem"}, "belong together"),
        ({"queue": "q", "offset": -1}, "offset must be"),
        ({"queue": "q", "offset": "yesterday"}, "offset must be"),
        ({"queue": "q", "offset": 1 << 63}, "offset must be"),
    ],
)
def test_options_out_of_bounds_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text) as raised:
        RabbitmqConnector(**{"url": LOCAL} | options)

    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("offset", ["first", "last", "next", 0, "2026-01-31T09:30:00Z"])
def test_offsets_of_streams(offset: Any) -> None:
    assert RabbitmqConnector(url=LOCAL, queue="q", offset=offset).names == ("q",)


def test_another_machine_without_tls_is_read_if_one_says_so() -> None:
    made = RabbitmqConnector(url="amqp://u:secret@10.0.0.1", queue="q", insecure=True)

    assert "secret" not in repr(made)


@pytest.mark.parametrize(
    ("error", "for_good"),
    [
        (amqp.ChannelNotFoundEntity("NOT_FOUND - no queue 'q' in vhost '/'"), True),
        (amqp.ChannelNotFoundEntity("NOT_FOUND - home node 'a@b' of durable queue 'q' is down or inaccessible"), False),
        (amqp.ChannelNotFoundEntity("NOT_FOUND - no exchange 'x' in vhost '/'"), True),
        (amqp.ChannelAccessRefused("ACCESS_REFUSED - access to queue 'q' refused for user 'u'"), True),
        (amqp.ChannelAccessRefused("ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use"), False),
        (amqp.ProbableAuthenticationError("ACCESS_REFUSED - Login was refused"), True),
        (amqp.ConnectionNotAllowed("NOT_ALLOWED - vhost x not found"), True),
        (amqp.ConnectionClosed(320, "CONNECTION_FORCED"), False),
        (amqp.AMQPConnectionError("reset"), False),
        (ssl.SSLCertVerificationError("self-signed"), True),
        (TimeoutError(), False),
        (ConnectionRefusedError("nobody there"), False),
    ],
)
def test_an_error_says_whether_it_is_worth_coming_again(error: Exception, for_good: bool) -> None:
    assert told(error)[0] is for_good


def test_errors_hold_no_password() -> None:
    assert "secret" not in told(OSError(f"cannot reach {LOCAL}"))[1]
