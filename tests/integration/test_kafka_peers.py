"""Kafka with clients nobody here wrote, kcat (librdkafka) and the CloudEvents SDK: they read what we write, and we what they write."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event, from_structured_event, to_binary, to_structured
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent as SdkEvent

from broker_faas.connectors.batch import Refused
from broker_faas.connectors.sink import Outgoing
from broker_faas.connectors.sinks.kafka import KafkaSink
from broker_faas.event import CloudEvent
from tests.systems.kafka import Topic, records, topic_on

pytestmark = pytest.mark.timeout(240)  # a broker takes its time to start

JSON = "application/json"
TIME = "2026-01-31T09:30:00.123456Z"  # the SDK makes one up for an event without
EVENTS = [
    CloudEvent(
        type="orders.done",
        source="urn:x:%C3%A4",
        id="é 1%",
        data='{"b": 1,  "a":"ü\u2028"}'.encode(),
        datacontenttype=JSON,
        subject="naïve 日本",
        time=TIME,
        partitionkey="ключ",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        n=7,
    ),
    CloudEvent(type="t", source="/", time=TIME, id="2", data=bytes(range(256)), datacontenttype="application/octet-stream"),
    CloudEvent(type="t", source="/", time=TIME, id="3", data="é\n".encode(), datacontenttype="text/plain", partitionkey="k"),
    CloudEvent(type="t", source="/", time=TIME, id="4", data=b"", datacontenttype="text/plain"),
    CloudEvent(type="t", source="/", time=TIME, id="5", partitionkey="k"),
]


class Message(NamedTuple):
    key: bytes | None
    headers: Mapping[str, str]
    value: bytes | None


async def run(*argv: str, stdin: bytes = b"") -> bytes:
    process = await asyncio.create_subprocess_exec(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = await process.communicate(stdin)
    assert process.returncode == 0, err.decode()
    return out


async def read_by_kcat(kcat: str, topic: Topic) -> list[Message]:
    """Each as a line of two lengths and the headers, then the bytes."""
    out = await run(kcat, "-C", "-q", "-e", "-o", "beginning", "-b", topic.servers, "-t", topic.name, "-f", "%K %S %h\n%k%s")
    messages = []
    while out:
        line, _, out = out.partition(b"\n")
        key, value, headers = line.decode().split(" ", 2)
        taken: list[bytes | None] = []
        for length in (int(key), int(value)):
            taken.append(None if length < 0 else out[:length])
            out = out[max(length, 0) :]
        messages.append(Message(taken[0], dict(header.split("=", 1) for header in headers.split(",")), taken[1]))
    return messages


async def written(topic: Topic, events: Sequence[CloudEvent], **options: Any) -> None:
    async with KafkaSink(servers=topic.servers, **options).open() as sink:
        assert await sink.send([Outgoing(topic.name, event) for event in events]) == [None] * len(events)


async def read_by_us(topic: Topic, n: int) -> list[CloudEvent | Refused]:
    return [item for _, item in (await topic.options().peek("/p/c", n)).items]


# --- they read us -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "gzip", "lz4", "snappy", "zstd"])
async def test_kcat_reads_what_the_sink_writes_byte_for_byte(kafka: str, kcat: str, compression: Any) -> None:
    topic = await topic_on(kafka)
    await written(topic, EVENTS, compression=compression)
    messages = await read_by_kcat(kcat, topic)

    for event, message in zip(EVENTS, messages, strict=True):
        expected = {f"ce_{name}": value for name, value in event.attributes.items() if name != "datacontenttype"}
        if event.datacontenttype:
            expected["content-type"] = event.datacontenttype
        key = None if event.partitionkey is None else event.partitionkey.encode()
        assert message == Message(key, expected, event.data)


async def test_the_sdk_reads_what_the_sink_writes(kafka: str) -> None:
    topic = await topic_on(kafka)
    await written(topic, EVENTS)
    await written(topic, EVENTS, format="structured")
    found = await records(kafka, topic.name, 2 * len(EVENTS))
    binary = [from_binary_event(as_sdk(one)) for one in found[: len(EVENTS)]]
    structured = [from_structured_event(as_sdk(one)) for one in found[len(EVENTS) :]]

    for event, *theirs in zip(EVENTS, binary, structured, strict=True):
        for one in theirs:
            assert attributes_of(one) == {**event.attributes}
    assert [one.value for one in found[: len(EVENTS)]] == [event.data for event in EVENTS]
    assert [one.get_data() for one in structured[:3]] == [EVENTS[0].json(), EVENTS[1].data, EVENTS[2].text()]


def as_sdk(record: ConsumerRecord) -> KafkaMessage:
    return KafkaMessage(dict(record.headers), record.key, record.value or b"")


def attributes_of(event: Any) -> dict[str, str]:
    """As text; a time as it was written."""
    found = {name: value for name, value in event.get_attributes().items() if value is not None}
    if time := found.get("time"):
        found["time"] = time.isoformat().replace("+00:00", "Z")
    return {name: str(value) for name, value in found.items()}


# --- we read them -------------------------------------------------------------------------------------------


async def test_we_read_what_kcat_writes(kafka: str, kcat: str, tmp_path: Path) -> None:
    topic = await topic_on(kafka)
    (tmp_path / "value").write_bytes(EVENTS[1].data or b"")
    event = EVENTS[0].replace(data=EVENTS[1].data, datacontenttype="application/octet-stream")
    headers = [f"ce_{name}={value}" for name, value in event.attributes.items() if name != "datacontenttype"]
    given = [word for header in [*headers, "content-type=application/octet-stream"] for word in ("-H", header)]
    await run(kcat, "-P", "-b", kafka, "-t", topic.name, "-p", "0", "-k", "ключ", *given, str(tmp_path / "value"))

    assert await read_by_us(topic, 1) == [event]


@pytest.mark.parametrize("write", [to_binary, to_structured])
async def test_we_read_what_the_sdk_writes(kafka: str, write: Any) -> None:
    topic = await topic_on(kafka)
    theirs = SdkEvent({**EVENTS[0].attributes, "time": EVENTS[0].timestamp}, {"b": 1, "a": "ü"})
    message = write(theirs, JSONFormat())
    async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
        await producer.send_and_wait(
            topic.name, message.value, key=message.key if message.key is None else message.key.encode(), headers=[*message.headers.items()]
        )
    [read] = await read_by_us(topic, 1)

    assert isinstance(read, CloudEvent)
    assert read.attributes == EVENTS[0].attributes
    assert read.json() == {"b": 1, "a": "ü"}


async def test_a_key_goes_where_other_clients_send_it(kafka: str, kcat: str) -> None:
    """Those of Java by default, those of librdkafka with partitioner=murmur2_random."""
    topic = await topic_on(kafka, 7)
    keys = [f"k{n}" for n in range(30)] + ["ключ", "a", "abc", "abcd"]
    await written(topic, [CloudEvent(type="t", source="/", id=key, partitionkey=key) for key in keys])
    lines = "".join(f"{key}|x\n" for key in keys).encode()
    await run(kcat, "-P", "-b", kafka, "-t", topic.name, "-K", "|", "-X", "topic.partitioner=murmur2_random", stdin=lines)
    found = await records(kafka, topic.name, 2 * len(keys))
    ours = {one.key: one.partition for one in found if one.value is None}
    theirs = {one.key: one.partition for one in found if one.value == b"x"}

    assert len(ours) == len(keys)
    assert ours == theirs
