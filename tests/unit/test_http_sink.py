"""What the options of an HTTP sink may be, what answers mean, and how webhooks are signed. No server."""

from __future__ import annotations

import re
import tomllib
from base64 import b64encode
from dataclasses import fields
from typing import Any

import msgspec
import pytest

from broker_faas.connectors.http_parts.answers import retry_after, secrets, text, verdict
from broker_faas.connectors.http_parts.signature import key, message_id, sign
from broker_faas.connectors.sink import Undelivered
from broker_faas.connectors.sinks.http import HttpSink
from broker_faas.errors import MAX_DELAY
from broker_faas.event import CloudEvent

from ..markdown import ROOT, blocks

LOCAL = "http://127.0.0.1:8080/events/{target}"
NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "ftp://127.0.0.1/"}, "url must look like"),
        ({"url": "https://"}, "url must look like"),
        ({"url": "https://host:port/"}, "url must look like"),
        ({"url": "https://host:0/"}, "url must look like"),
        ({"url": "https://[::1/"}, "url must look like"),
        ({"url": "https://user:hunter2@host/"}, "user or password"),
        ({"url": "https://{target}.example.com/"}, "only behind the host"),
        ({"url": "https://host:{target}/"}, "only behind the host"),
        ({"url": "https://host/#{target}"}, "no fragment"),
        ({"url": "https://host/a b"}, "url must look like"),
        ({"url": "https://host/é"}, "url must look like"),
        ({"url": "https://host/a\r\nX: y"}, "url must look like"),
        ({"url": "https://host/{topic}"}, r"'\{' that belongs to no \{target\}; a plain one is written %7B"),
        ({"url": "http://10.0.0.1/hunter2"}, r"another machine \(10.0.0.1\): it needs TLS"),
        ({"headers": {"a b": "c"}}, "no name of a header"),
        ({"headers": {"A": "hunter2\r\nB: c"}}, "headers.A must be a value"),
        ({"headers": {"A": ""}}, "headers.A must be a value"),
        ({"headers": {"ce-id": "1"}}, "said by the event"),
        ({"headers": {"Content-Type": "a/b"}}, "said by the event"),
        ({"headers": {"Transfer-Encoding": "chunked"}}, "said by the event"),
        ({"headers": {"Webhook-Id": "1"}}, "said by the event"),
        ({"headers": {"authorization": "hunter2"}, "token": "hunter2"}, "exclude each other"),
        ({"token": "hunter2\r\nA: b"}, "token must be"),
        ({"secret": "hunter2"}, "secret must be whsec_"),
        ({"secret": "whsec_hunter2"}, "24 to 64 random bytes in base64"),
        ({"secret": ("whsec_" + b64encode(b"hunter2" * 10).decode(),)}, "24 to 64 random bytes"),
        ({"timeout": 0}, "timeout must be"),
        ({"timeout": 61}, "timeout must be"),
        ({"timeout": float("nan")}, "timeout must be"),
        ({"concurrency": 0}, "concurrency must lie"),
        ({"concurrency": 257}, "concurrency must lie"),
        ({"url": "https://host/", "cert_file": "c.pem"}, "given together"),
        ({"ca_file": "ca.pem"}, "are for https"),
    ],
)
def test_options_out_of_bounds_are_refused_and_no_secret_is_shown(options: dict[str, Any], said: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=said) as raised:
        msgspec.convert({"url": LOCAL} | options, HttpSink)

    assert "hunter2" not in str(raised.value)


def test_options_do_not_show_what_may_be_secret() -> None:
    shown = repr(
        HttpSink(
            url="https://hooks.example.com/T0/hunter2",
            token="hunter2",
            headers={"X-Key": "hunter2"},
            secret="whsec_" + b64encode(b"hunter2" * 4).decode(),
        )
    )

    assert "hunter2" not in shown
    assert b64encode(b"hunter2")[:6].decode() not in shown


@pytest.mark.parametrize(
    "url", ["https://host", "https://host?to={target}", "https://[::1]:8443/a;b=c/%7B{target}%7D", "http://[::1]/{target}"]
)
def test_what_urls_may_look_like(url: str) -> None:
    assert HttpSink(url=url).url == url


def test_another_machine_is_sent_to_without_tls_if_one_says_so() -> None:
    assert HttpSink(url="http://10.0.0.1/", insecure=True).insecure


def test_the_page_shows_every_option_and_its_example_can_be_used() -> None:
    page = ROOT / "docs" / "connectors" / "http.md"
    section = page.read_text().partition("### Options of the sink")[2].partition("\n##")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    example = tomllib.loads([block.text for block in blocks(page) if block.language == "toml"][-1])["sink"][0]
    secret = {"token": "hunter2", "secret": SECRET}

    assert {option.name for option in fields(HttpSink)} == set(re.findall(r"`(\w+)`", "".join(rows)))
    assert HttpSink(**{name: value for name, value in (example | secret).items() if name not in ("name", "type")}).token == "hunter2"


# --- answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_2xx_is_delivered(status: int) -> None:
    assert verdict(status, {"retry-after": "7"}, b"no", NOW) is None


@pytest.mark.parametrize(("status", "again"), [(101, False), (301, False), (304, False), (400, False), (401, False), (404, False)])
@pytest.mark.parametrize(
    ("more", "also"), [(408, True), (410, False), (413, False), (425, True), (429, True), (499, False), (500, True), (504, True)]
)
def test_what_another_attempt_can_help(status: int, again: bool, more: int, also: bool) -> None:
    for one, expected in ((status, again), (more, also), (503, True), (599, True)):
        answer = verdict(one, {}, b"", NOW)

        assert answer is not None
        assert (answer.again, answer.after) == (expected, None)


def test_the_reason_tells_status_and_text() -> None:
    answer = verdict(422, {}, b"<p>no\tsuch\r\n\x1b[31morder\x00 \xe2\x80\xae \xff</p>", NOW)

    assert answer == Undelivered("it answered 422 Unprocessable Entity: <p>no such [31morder �</p>", again=False)


def test_a_text_is_one_line_of_200_characters_at_most() -> None:
    assert text(b"a " * 50_000) == ("a " * 100)[:199] + "…"
    assert text("\u2028\u0085\n\r\v".encode()) == ""
    assert len(text(b"\xff" * 70_000)) == 200


def test_what_is_compressed_is_not_shown() -> None:
    assert verdict(500, {"content-encoding": "gzip"}, b"\x1f\x8b", NOW) == Undelivered("it answered 500 Internal Server Error")


def test_a_redirect_says_where_it_leads_but_not_the_path() -> None:
    answer = verdict(308, {"location": "https://other.example.com/T0/hunter2?key=hunter2"}, b"", NOW)

    assert answer is not None
    assert not answer.again
    assert "a redirect to https://other.example.com, and those are not followed" in answer.reason
    assert "hunter2" not in answer.reason


@pytest.mark.parametrize("location", ["", "/a", "//h", "javascript:alert(1)", "https://[::1", "https://h\u202e/"])
def test_a_location_that_is_no_address_is_not_shown(location: str) -> None:
    answer = verdict(302, {"location": location}, b"", NOW)

    assert answer is not None
    assert "redirect, and" in answer.reason


@pytest.mark.parametrize(
    ("value", "after"),
    [
        ("7", 7.0),
        (" 120 ", 120.0),
        ("99999999", MAX_DELAY),
        ("9" * 5000, MAX_DELAY),
        ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
        ("Sunday, 06-Nov-94 08:49:47 GMT", 10.0),
        ("Sun Nov  6 08:49:47 1994", 10.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_DELAY),
        ("Sun, 06 Nov 1994 08:49:36 GMT", None),
        ("0", None),
        ("", None),
        ("-7", None),
        ("7.5", None),
        ("1e3", None),
        ("NaN", None),
        ("\u0667", None),
        ("5 minutes", None),
        ("Sun, 99 Nov 1994 08:49:47 GMT", None),
        ("x" * 100_000, None),
    ],
)
def test_retry_after(value: str, after: float | None) -> None:
    assert retry_after(value, NOW) == after
    assert verdict(503, {"retry-after": value}, b"", NOW) == Undelivered("it answered 503 Service Unavailable", True, after)


def test_what_answers_repeat_of_our_secrets_is_not_in_a_reason() -> None:
    hidden = secrets("https://h/services/T0AB/k%2Fhunter2?sig=a%20hunter3&x={target}", ["Basic hunter4", "hunter5", ""])
    body = b"cannot POST /services/T0AB/k%2Fhunter2?sig=a%20hunter3, k/hunter2, a hunter3; hunter4 is not Basic hunter4, hunter5"
    answer = verdict(404, {}, body, NOW, hidden)

    assert answer is not None
    assert "hunter" not in answer.reason
    assert "cannot POST" in answer.reason


# --- signatures ---------------------------------------------------------------------------------------------

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_the_example_of_standard_webhooks() -> None:
    signature = sign([key(SECRET)], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')

    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_two_secrets_are_two_signatures() -> None:
    keys = key(SECRET), b"\xff" * 32

    assert sign(keys, "a", 1, b"\xff").split(" ") == [sign([one], "a", 1, b"\xff") for one in keys]


def test_an_id_holds_no_dot_and_is_the_same_for_each_attempt() -> None:
    event = CloudEvent(type="t", source="/s", id="a.1")

    assert message_id("x", event) == message_id("x", event.replace(type="u"))
    assert "." not in message_id("x.y", event)
    assert 3 == len({message_id("x", event), message_id("y", event), message_id("x", event.replace(id="a.2"))})
