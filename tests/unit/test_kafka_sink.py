"""Options and answers of connectors/sinks/kafka.py; what it does with a broker: tests/integration/test_kafka_sink.py."""

from __future__ import annotations

import re
from typing import Any

import aiokafka.errors as kafka
import pytest
from aiokafka import TopicPartition
from aiokafka.cluster import ClusterMetadata
from aiokafka.structs import PartitionMetadata

from broker_faas.connectors.kafka_parts.sending import _hashed
from broker_faas.connectors.kafka_parts.verdicts import OF_A_PARTITION, OF_A_RECORD, named_wrongly, of_a_partition, of_a_record
from broker_faas.connectors.sinks.kafka import KafkaSink

REMOTE: dict[str, Any] = {"servers": "10.0.0.1:9092"}
PLACE = TopicPartition("t", 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (REMOTE, "it needs TLS"),
        ({"servers": "kafka"}, "servers must look like"),
        ({"username": "u"}, "only with them"),
        ({"cert_file": "x"}, "given together"),
        ({"timeout": 0.5}, "timeout must lie between 1 and 35"),
        ({"timeout": 36}, "timeout must lie between 1 and 35"),
        ({"timeout": float("nan")}, "timeout must lie between 1 and 35"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KafkaSink(**{"servers": "localhost:9092"} | options)


def test_the_password_is_in_no_repr() -> None:
    made = KafkaSink(servers="localhost:9092", security_protocol="SASL_PLAINTEXT", username="u", password="secret!")

    assert "secret!" not in repr(made)


@pytest.mark.parametrize(
    ("error", "again", "said"),
    [
        (kafka.MessageSizeTooLargeError(), False, r"1,234 bytes is larger than topic 't' takes \(max.message.bytes\)"),
        (kafka.RecordListTooLargeError(), False, "larger than topic 't' takes"),
        (kafka.InvalidTimestampError(), True, "this machine's clock"),
        (kafka.UnknownError(), True, "needs a partitionkey"),
        (kafka.CorruptRecordException(), True, "CorruptRecordException"),
    ],
)
def test_what_a_refusal_of_one_record_means(error: kafka.KafkaError, again: bool, said: str) -> None:
    answer = of_a_record(error, "t", 1234)

    assert answer.again is again
    assert re.search(said, answer.reason)


def cluster(leader: int = 1, in_sync: int = 3, topic: str = "t") -> ClusterMetadata:
    made = ClusterMetadata(bootstrap_servers="localhost:9092")
    made._partitions = {topic: {0: PartitionMetadata(topic, 0, leader, [1, 2, 3], [1, 2, 3][:in_sync], 0)}}
    return made


@pytest.mark.parametrize(
    ("error", "there", "said"),
    [
        (kafka.TopicAuthorizationFailedError("t"), cluster(), "shop may not write to topic 't' in Kafka: it needs the right Write"),
        (kafka.InvalidTopicError(), cluster(), "Kafka lets nobody write to 't'"),
        (kafka.NotLeaderForPartitionError(), cluster(topic="other"), "there is no topic 't' in Kafka, or shop may not see it"),
        (kafka.LeaderNotAvailableError(), cluster(-1), "partition 0 of topic 't' has no leader"),
        (None, cluster(-1), "partition 0 of topic 't' has no leader"),
        (None, cluster(1, 1), "partition 0 of topic 't' does not confirm; 1 of 3 replicas are in sync"),
        (kafka.NotLeaderForPartitionError(), cluster(), "partition 0 of topic 't': NotLeaderForPartitionError"),
    ],
)
def test_why_nothing_can_be_written_to_a_partition(error: kafka.KafkaError | None, there: ClusterMetadata, said: str) -> None:
    answer = of_a_partition(error, PLACE, there, "shop")

    assert answer is not None
    assert answer.reason.startswith(said)
    assert answer.again is not isinstance(error, kafka.InvalidTopicError)


def test_a_partition_with_which_nothing_is_wrong_is_no_reason() -> None:
    assert of_a_partition(None, PLACE, cluster(), "shop") is None


def test_an_error_of_the_producer_is_neither_a_records_nor_a_partitions() -> None:
    """It means a new connection."""
    for error in (kafka.OutOfOrderSequenceNumber, kafka.ProducerFenced, kafka.UnknownProducerId, kafka.ProducerClosed, kafka.KafkaError):
        assert not issubclass(error, (*OF_A_RECORD, *OF_A_PARTITION))


@pytest.mark.parametrize(("name", "fits"), [("orders.done", True), ("x" * 249, True), ("x" * 250, False), (".", False), ("..", False)])
def test_names_that_no_topic_can_have(name: str, fits: bool) -> None:
    assert (named_wrongly(name) is None) is fits


@pytest.mark.parametrize(
    ("key", "hashed"),
    [("21", -973932308), ("foobar", -790332482), ("a-little-bit-long-string", -985981536)],
)
def test_keys_are_hashed_as_javas_clients_do(key: str, hashed: int) -> None:
    """Values of org.apache.kafka.common.utils.UtilsTest."""
    assert _hashed(key) == hashed & 0x7FFFFFFF
