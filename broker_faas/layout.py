"""How events lie on the bus: subjects, ids, records, streams and consumers. Pure; this is the on-disk format.

stream   subjects                                    what
events   ev.{topic}.{a}.{b}                          events; a, b: two hex digits of the partition key's hash, or - -
         out.{sink}.{topic}.{a}.{b}                  events that leave through a sink (decision 11)
         re.{queue}.{a}.{b}                          replays for one ordered function (decision 2)
         pos.{connector}.{partition}                 how far a connector has stored a partition of its source
retries  at.{queue}.{sequence}.{attempt} → go.{queue}  schedules and what they deliver
         at.publish.{id} → go.publish                delayed publishes, relayed to events by any worker
dead     dead.{queue}                                dead letters
         quarantine.{connector}                      what a source has and cannot become an event
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from .bus import Delivery, Queue, Record
from .errors import ConfigError, EventTooLarge
from .event import CloudEvent
from .topics import check_destination, check_pattern, is_destination, minimal, sink_of

EVENTS, RETRIES, DEAD = "events", "retries", "dead"
MAX_DATA = 1 << 20  # bytes of data of one event
MAX_HEADERS = 44 << 10  # bytes of its attributes on the wire: JetStream refuses 64 KiB (10097), and a dead letter adds up to 18
MAX_RECORD = MAX_DATA + MAX_HEADERS
MAX_STORED = MAX_RECORD + (16 << 10)  # what may lie on the bus: a retry or dead letter carries our headers on top
MAX_HELD_DELAY = 30.0  # seconds a retry is held by its consumer; longer ones wait in `retries`
DUPLICATE_WINDOW = 120.0  # seconds
UNKEYED = "unkeyed"  # the partition of events without a key


_ID_BYTES = 11
_ID_HASH = blake2b(digest_size=_ID_BYTES)


# --- subjects and ids ---------------------------------------------------------------------------------------


def partition(key: str | None) -> str:
    """`a.b`: two hex digits of the key's hash, or `-.-` without a key."""
    if not key:
        return "-.-"
    digits = blake2b(key.encode(), digest_size=1).hexdigest()
    return f"{digits[0]}.{digits[1]}"


EVENT = ("ev.", "out.")  # what subjects of events begin with


def event_subject(topic: str, key: str | None) -> str:
    return f"{_begins(topic)}.{partition(key)}"


def topic_of(subject: str) -> str:
    """The topic of an event's subject."""
    kind, _, rest = subject.rsplit(".", 2)[0].partition(".")
    return rest.replace(".", ":", 1) if kind == "out" else rest


def _begins(topic: str) -> str:
    sink, words = sink_of(topic)
    return f"out.{sink}.{words}" if sink else f"ev.{words}"


def key_hash(*parts: str) -> str:
    """22 hex characters for any strings: message ids, output ids. Parts cannot run into each other (NUL is in none)."""
    hash = _ID_HASH.copy()  # a third less than a new one
    hash.update("\0".join(parts).encode())
    return hash.hexdigest()


def output_id(event: CloudEvent, n: int, topic: str) -> str:
    """Id of the n-th output (from 0) of a function on `event`, which came from `topic`; the output's source names the function."""
    return f"{key_hash(topic, event.source, event.id)}.{n}"


def project_source(project: str, function: str) -> str:
    return f"/{project}/{function}"


def sink_queue(project: str, sink: str) -> Queue:
    """From the first event that is stored: what functions sent before the sink ran for the first time is not lost."""
    return Queue(f"{project}--{sink}", (f"{sink}:>",), start="first")


# --- records ------------------------------------------------------------------------------------------------


def event_record(topic: str, event: CloudEvent) -> Record:
    """Raises TopicInvalid, EventTooLarge."""
    return event_records(topic)(event)


def event_records(topic: str) -> Callable[[CloudEvent], Record]:
    """event_record() for many of one topic, at half the cost. Raises TopicInvalid; what it returns, EventTooLarge."""
    check_destination(topic)
    begins = f"{_begins(topic)}."
    id_of = blake2b(f"{topic}\0".encode(), digest_size=_ID_BYTES)
    ids_of: dict[str, Any] = {}  # sources come again,
    tails: dict[str | None, str] = {}  # and keys

    def record(event: CloudEvent) -> Record:
        headers, data, key = event.headers(), event.data or b"", event.partitionkey
        if len(data) > MAX_DATA:
            raise EventTooLarge(len(data), MAX_DATA, "data")
        if len(headers) > MAX_HEADERS:
            raise EventTooLarge(len(headers), MAX_HEADERS, "attributes")
        tail = tails.get(key)
        if tail is None:
            tail = tails[key] = partition(key)
        id = ids_of.get(event.source)
        if id is None:
            id = ids_of[event.source] = id_of.copy()
            id.update(f"{event.source}\0".encode())
        id = id.copy()
        id.update(event.id.encode())
        return Record(begins + tail, id.hexdigest(), headers, data)

    return record


def delayed_record(topic: str, event: CloudEvent, at: float) -> Record:
    """Published to `topic` at unix time `at`: stored now, delivered on go.publish, relayed by any worker. Raises as event_record()."""
    later = event_record(topic, event)  # what is too large for `events` must not wait in `retries`, where there is more room
    headers = _schedule(at, "go.publish") + _faas(Topic=topic) + later.headers
    return Record(f"at.publish.{later.msg_id}", f"at:{later.msg_id}", headers, later.data)


class Origin(NamedTuple):
    """Where a delivery comes from, the same for every redelivery, retry and replay of one event to one queue.

    topic: "" if unknown. sequence: the events stream's sequence as text, or `replay-{dead seq}-{n}`.
    attempts: attempts made before this record was stored. first: unix time the event was first stored.
    """

    topic: str
    sequence: str
    attempts: int
    first: float


def origin(delivery: Delivery) -> Origin:
    """Pure; header parsing is paid only by what is no plain event."""
    if delivery.subject.startswith(EVENT):
        return Origin(topic_of(delivery.subject), str(delivery.seq), 0, delivery.stored_at)
    faas = faas_headers(delivery.headers)
    # Other clients may write here too: what is not of our making counts as not said.
    topic, sequence, attempts, first = (faas.get(name, "") for name in ("topic", "sequence", "attempts", "first"))
    return Origin(
        topic if is_destination(topic) else "",
        # A sequence of `retries` is none of `events`: a dead letter's id must not be another one's.
        sequence if re.fullmatch(r"[0-9a-z-]{1,60}", sequence) else f"other-{delivery.seq}",
        int(attempts) if re.fullmatch(r"[0-9]{1,6}", attempts) else 0,
        float(first) if re.fullmatch(r"[0-9]{1,11}(\.[0-9]{1,9})?", first) else delivery.stored_at,
    )


def retry_record(queue: Queue, delivery: Delivery, attempts: int, at: float) -> Record:
    """The same event again at unix time `at`, to this queue only. attempts: made so far."""
    from_ = origin(delivery)
    headers = (
        _schedule(at, f"go.{queue.name}")
        + _faas(Topic=from_.topic, Sequence=from_.sequence, Attempts=str(attempts), First=f"{from_.first:.3f}")
        + event_headers(delivery.headers)
    )
    return Record(f"at.{queue.name}.{from_.sequence}.{attempts}", f"at:{queue.name}:{from_.sequence}:{attempts}", headers, delivery.data)


def back_record(queue: Queue, delivery: Delivery, attempts: int, at: float) -> Record:
    """Handed back by a worker that did not run it: as retry_record(), with as many attempts as before. Stored once a delivery."""
    record = retry_record(queue, delivery, attempts, at)
    return record._replace(msg_id=f"back:{queue.name}:{delivery.source}:{delivery.seq}")


def dead_record(queue: Queue, delivery: Delivery, *, reason: str, detail: str, attempts: int, now: float, version: str) -> Record:
    """The whole event with why it died. reason: one line; detail: traceback or longer text, cut to 8 KiB of wire.

    The id is derived from the original's sequence: storing it twice stores it once.
    """
    from_ = origin(delivery)
    head = _faas(
        Topic=from_.topic,
        Sequence=from_.sequence,
        Attempts=str(attempts),
        First=f"{from_.first:.3f}",
        Last=f"{now:.3f}",
        Reason=reason.encode("utf-8", "replace")[:1000].decode("utf-8", "ignore"),  # bytes: each is up to three on the wire
        Fingerprint=fingerprint(reason, detail),
        Version=version,
        Detail=detail,
    )
    return Record(f"dead.{queue.name}", f"dlq:{queue.name}:{from_.sequence}", head + event_headers(delivery.headers), delivery.data)


def position_subject(connector: str, partition: str) -> str:
    """partition: of the source, any text."""
    return f"pos.{connector}.{_token(partition)}"


def position_record(connector: str, partition: str, position: str) -> Record:
    """Everything of this partition up to and including `position` is stored, if this is: it is published behind it."""
    subject = position_subject(connector, partition)
    return Record(subject, f"{subject}:{_token(position)}", b"", position.encode())


def quarantine_record(
    connector: str, where: str, reason: str, headers: Mapping[str, str], data: bytes, now: float, again: bytes = b""
) -> Record:
    """What a source has and cannot become an event, as it is. where: its position there. headers: of the source, told in JSON.

    again: what connectors/replay.py needs beside the data; without it, as in older records and where too much is cut, there is no replay.
    """
    told = json.dumps(headers)  # which takes surrogates as well
    head = {"Position": where, "Reason": reason[:1000], "First": f"{now:.3f}", "Headers": told}
    kept = b"Faas-Again: %b\r\n" % b64encode(again) if again else b""
    long = len(quote(told, safe=_SAFE)) > _MAX_DETAIL
    if long or len(data) > MAX_DATA or len(kept) > _MAX_AGAIN:
        head["Cut"] = f"{len(told)} bytes of headers and {len(data)} of data"
        head["Headers"] = told[: _MAX_DETAIL // 3] if long else told
    if len(data) > MAX_DATA or len(kept) > _MAX_AGAIN:
        data, kept = data[:MAX_DATA], b""
    return Record(f"quarantine.{connector}", f"quarantine:{connector}:{key_hash(where)}", _faas(**head) + kept, data)


def shortened(record: Record, limit: int) -> Record:
    """A quarantine record for a server that takes `limit` bytes: with as much data as there is room for, and saying so in `Faas-Cut`."""
    if len(record.headers) + len(record.data) <= limit:
        return record
    lines = [line for line in record.headers.split(b"\r\n") if line and not line.startswith((b"Faas-Again:", b"Faas-Cut:"))]
    headers = b"".join(line + b"\r\n" for line in lines) + _faas(Cut=f"{len(record.data)} bytes of data")
    return record._replace(headers=headers, data=record.data[: max(0, limit - len(headers))])


def _token(text: str) -> str:
    """Any text as one word of a subject."""
    return re.sub(r"[^A-Za-z0-9_-]", lambda found: "".join(f"={byte:02X}" for byte in found[0].encode()), text)


def cut(record: Record) -> Record:
    """A dead letter that the bus does not take whole: without data and foreign headers, and saying so in `Faas-Cut`.

    Only another client's records come to this: ours leave room for what a dead letter adds.
    """
    ours = b"".join(line + b"\r\n" for line in record.headers.split(b"\r\n") if line.startswith(b"Faas-"))
    lost = f"{len(record.headers) - len(ours)} bytes of headers and {len(record.data)} of data"
    return record._replace(headers=ours + _faas(Cut=lost), data=b"")


def replay_record(queue: Queue, dead: Delivery, n: int) -> Record:
    """Dead letter `dead` (its seq in `dead`) to the function that failed, as attempt 1. n: how often it was replayed before.

    An ordered function gets it through its partitions, so that it never overlaps with another event of its key.
    """
    faas = faas_headers(dead.headers)
    sequence = f"replay-{dead.seq}-{n}"
    ours = _faas(Topic=faas.get("topic", ""), Sequence=sequence, Attempts="0", First=faas.get("first", "0"))
    headers = ours + event_headers(dead.headers)
    subject = f"go.{queue.name}"
    if queue.partitions:
        subject = f"re.{queue.name}.{partition(_partitionkey(dead))}"
    return Record(subject, f"replay:{queue.name}:{dead.seq}:{n}", headers, dead.data)


def _partitionkey(delivery: Delivery) -> str | None:
    try:
        return CloudEvent.from_headers(delivery.headers, delivery.data).partitionkey
    except Exception:  # no event at all: it has no key, and is replayed all the same
        return None


def fingerprint(reason: str, detail: str) -> str:
    """Same cause, same fingerprint: the reason without its numbers and quoted values, and the function it was raised in.

    Neither the folder nor the line counts: the same failure of the next version, or on another machine, is in the same group.
    """
    raised = re.findall(r'^ *File "(?:[^"]*/)?([^"/]+)", line \d+, in (.+)$', detail, re.MULTILINE)
    shape = re.sub(r"'[^']*'|\"[^\"]*\"|0x[0-9a-fA-F]+|\d+", "…", reason)
    where = " ".join(raised[-1]) if raised else ""
    return blake2b(f"{shape}\0{where}".encode("utf-8", "replace"), digest_size=4).hexdigest()


# --- headers ------------------------------------------------------------------------------------------------

_MAX_DETAIL = 8 << 10
_MAX_AGAIN = 24 << 10  # bytes of a quarantine record's line, beside three others of up to 8 KiB
_SAFE = " !#$&'()*+,-./:;<=>?@[]^_`{|}~"


def _faas(**values: str) -> bytes:
    """`Faas-{Name}: value` lines; values percent-encoded so that no byte of them can end a line."""
    return "".join(f"Faas-{name}: {_encoded(value)}\r\n" for name, value in values.items()).encode()


def _encoded(value: str) -> str:
    text = quote(value, safe=_SAFE, errors="replace")
    if len(text) > _MAX_DETAIL:  # keep the end of a traceback: that is where it was raised
        tail = text[-_MAX_DETAIL:]
        text = "..." + tail[re.match(r"[0-9A-F]{0,2}(?=[^0-9A-F]|%|$)|", tail).end() :]  # type: ignore[union-attr]
    return text


def _schedule(at: float, target: str) -> bytes:
    when = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return f"Nats-Schedule: @at {when}\r\nNats-Schedule-Target: {target}\r\n".encode()


def header_lines(headers: bytes) -> list[tuple[str, str]]:
    """(lower-case name, value) of each line, in order; the `NATS/1.0` line is skipped."""
    lines = []
    for line in headers.decode("utf-8", "replace").split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            lines.append((name.strip().lower(), value.strip()))
    return lines


def faas_headers(headers: bytes) -> dict[str, str]:
    """Our own headers, names without `faas-`: topic, sequence, attempts, first, last, reason, fingerprint, version, detail."""
    return {name[5:]: unquote(value) for name, value in header_lines(headers) if name.startswith("faas-")}


def event_headers(headers: bytes) -> bytes:
    """The lines that are the event's own: without `Nats-*` and `Faas-*`, which would act on the bus again."""
    kept = []
    for line in headers.split(b"\r\n"):
        low = line[:5].lower()
        if b":" in line and low != b"nats-" and low != b"faas-":
            kept.append(line + b"\r\n")
    return b"".join(kept)


# --- streams and consumers ----------------------------------------------------------------------------------


def streams(*, max_bytes: int, dead_bytes: int, replicas: int = 1) -> list[dict[str, Any]]:
    """JetStream stream configurations. Limits retention, `discard: new`, nothing ages away (the reaper frees space)."""
    common: dict[str, Any] = {
        "retention": "limits",
        "storage": "file",
        "compression": "none",
        "num_replicas": replicas,
        "max_age": 0,
        "max_consumers": 10_000,
        "duplicate_window": int(DUPLICATE_WINDOW * 1e9),
        "allow_direct": False,
        "allow_atomic": True,
    }
    # The server's own limits: a dead letter or retry carries our headers on top of a full record.
    bounded = common | {"discard": "new"}
    return [
        bounded | {"name": EVENTS, "subjects": ["ev.>", "out.>", "re.>", "pos.>"], "max_bytes": max_bytes, "max_msg_size": MAX_STORED},
        # Schedules refuse `discard: new` and need rollup headers: this stream has no limit of its own, the account's bounds it.
        common | {"name": RETRIES, "subjects": ["at.>", "go.>"], "allow_msg_schedules": True, "allow_rollup_hdrs": True},
        bounded | {"name": DEAD, "subjects": ["dead.>", "quarantine.>"], "max_bytes": dead_bytes},
    ]


def filters(pattern: str, tail: str = "*.*") -> str:
    """The subject filter of a pattern. `d.>` means one or more parts after d, and then the two of the partition."""
    begins = _begins(pattern)
    if begins.endswith(".>"):
        return f"{begins[:-1]}*.*.>" if tail == "*.*" else ""
    return f"{begins}.{tail}"


def consumers(queue: Queue) -> list[tuple[str, dict[str, Any]]]:
    """(stream, consumer configuration) of every durable consumer of a queue.

    Plain: one on events. Ordered: one a partition (max_ack_pending 1) and one for events without a key, which have
    no order. Both: one on retries, for scheduled retries and replays.
    """
    common: dict[str, Any] = {
        "ack_policy": "explicit",
        "ack_wait": int(queue.ack_wait * 1e9),
        "max_deliver": -1,
        "replay_policy": "instant",
        "max_waiting": 512,
        "metadata": {"faas.queue": queue.name, "faas.topics": " ".join(queue.topics), "faas.partitions": str(queue.partitions)},
    }
    wide = common | {"max_ack_pending": 50_000}
    started = common | _start(queue.start)
    for topic in queue.topics:
        check_pattern(sink_of(topic)[1])
    topics = minimal(queue.topics)
    retries = (RETRIES, wide | {"durable_name": queue.name, "filter_subject": f"go.{queue.name}", "deliver_policy": "all"})
    if not topics:  # `publish`: delayed publishes on their way to the events stream
        return [retries]
    if not queue.partitions:
        config = started | {"durable_name": queue.name, "filter_subjects": [filters(topic) for topic in topics], "max_ack_pending": 50_000}
        return [(EVENTS, config), retries]
    if any(topic == ">" or topic.endswith(".>") for topic in topics):
        raise ConfigError(
            f"queue {queue.name}: an ordered function cannot listen to '>' (partitions are the last two parts of a subject). "
            "Name the topics, or use '*'."
        )
    ordered = []
    for digits in [f"{number:0{_width(queue)}x}" for number in range(queue.partitions)] + [UNKEYED]:
        config = {"durable_name": f"{queue.name}--{digits}", "filter_subjects": [filters(topic, _tail(digits)) for topic in topics]}
        ordered.append((EVENTS, started | config | {"max_ack_pending": 50_000 if digits == UNKEYED else 1}))
    return [*ordered, retries]


def replay_filter(queue: Queue, subject: str) -> tuple[str, str]:
    """(durable, filter) by which an ordered queue hears a replay on this subject: not one of those that it is made with (decision 2)."""
    a, b = subject.rsplit(".", 2)[1:]
    digits = UNKEYED if a == "-" else (a + b)[: _width(queue)]
    return f"{queue.name}--{digits}", f"re.{queue.name}.{_tail(digits)}"


def _width(queue: Queue) -> int:
    """Hex digits of a partition's number."""
    return 1 if queue.partitions == 16 else 2


def _tail(digits: str) -> str:
    """The last two parts of a partition's subjects."""
    return "-.-" if digits == UNKEYED else ".".join(digits) if len(digits) == 2 else f"{digits}.*"


def _start(start: str) -> dict[str, Any]:
    match start:
        case "new":
            return {"deliver_policy": "new"}
        case "first":
            return {"deliver_policy": "all"}
        case _:
            return {"deliver_policy": "by_start_time", "opt_start_time": start}
