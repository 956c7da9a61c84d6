"""The open sink: batches of events to their partitions, and what became of each event."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import aiokafka.errors as kafka
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.partitioner import murmur2
from aiokafka.producer.message_accumulator import BatchBuilder

from ...errors import SinkUnavailable
from ...kafka_binding import to_kafka
from ..sink import Outgoing, Undelivered
from .errors import shown
from .producer import BATCH, confirmed, number_anew
from .verdicts import BEHIND, OF_A_PARTITION, OF_A_RECORD, TOO_LARGE, missing, named_wrongly, of_a_partition, of_a_record, silent

LOOKING = 5.0  # seconds for a look at what the cluster has
TOGETHER = 32  # batches on their way: 8 MiB, or one event each

Places: TypeAlias = tuple[Sequence[TopicPartition], TopicPartition]
"""Of a topic: its partitions, and the one for events without a key."""


class Sending:
    """sink.Sink of an idempotent producer. timeout: seconds until a batch counts as not confirmed; a send() takes three of it at most.

    A partition is given one batch after the other. So what follows an event is never written before it, and one that is refused holds up
    none but those of its own key.
    """

    most = 1000

    def __init__(self, producer: AIOKafkaProducer, user: str, timeout: float, *, structured: bool) -> None:
        self._producer = producer
        self._user = user
        self._timeout = timeout
        self._structured = structured
        self._turn = 0  # of the partitions, for events without a key
        self._rooms: dict[str, int] = {}  # bytes of a batch, of topics that take less than others
        self._ended = ""  # why this producer can send no more

    async def send(self, events: Sequence[Outgoing]) -> Sequence[Undelivered | None]:
        if self._ended:
            raise SinkUnavailable(self._ended)
        sent = _Round(events, asyncio.get_running_loop().time() + 2 * self._timeout)
        parts = await self._parts(sent)
        async with asyncio.TaskGroup() as tasks:
            for partition, numbers in parts.items():
                tasks.create_task(self._deliver(sent, partition, numbers))
        if sent.lost:
            raise SinkUnavailable(self._ended)
        return sent.answers

    async def _parts(self, sent: _Round) -> dict[TopicPartition, list[int]]:
        """The numbers of the events of each partition, in order; those that have none are answered."""
        topics = await self._topics({event.target for event in sent.events})
        parts: dict[TopicPartition, list[int]] = {}
        for number, (target, event) in enumerate(sent.events):
            places = topics[target]
            if isinstance(places, Undelivered):
                sent.answers[number] = places
                continue
            key = event.partitionkey
            parts.setdefault(places[1] if key is None else places[0][_hashed(key) % len(places[0])], []).append(number)
        return parts

    async def _topics(self, targets: set[str]) -> dict[str, Places | Undelivered]:
        self._turn += 1
        cluster = self._producer.client.cluster
        if any(cluster.partitions_for_topic(topic) is None for topic in targets) and not await self._look():
            self._ended = "Kafka does not answer"
            raise SinkUnavailable(self._ended)
        found: dict[str, Places | Undelivered] = {}
        for topic in targets:
            if numbers := sorted(cluster.partitions_for_topic(topic) or ()):
                places = [TopicPartition(topic, number) for number in numbers]
                led = [one for one in places if cluster.leader_for_partition(one) != -1] or places
                found[topic] = places, led[self._turn % len(led)]
            else:
                found[topic] = named_wrongly(topic) or missing(topic, self._user)
        return found

    async def _deliver(self, sent: _Round, partition: TopicPartition, numbers: list[int]) -> None:
        """Answers all of these events."""
        runs = deque([numbers])  # in order; of a batch that is refused, its halves: bounded by the events of one send()
        behind: set[str] = set()  # keys that have an event before
        while runs:
            batch, taken, rest = self._filled(sent, partition.topic, runs.popleft(), behind)
            if rest:
                runs.appendleft(rest)
            if not taken:
                continue
            async with sent.together:
                error = await self._write(sent, batch, partition)
            if isinstance(error, Undelivered):
                for number in (*taken, *(number for run in runs for number in run)):
                    sent.answers[number] = error
                return
            if error is None:
                continue
            if len(taken) > 1:
                if isinstance(error, TOO_LARGE):
                    self._rooms[partition.topic] = batch.size() // 2
                half = len(taken) // 2
                runs.extendleft((taken[half:], taken[:half]))
                continue
            answer = sent.answers[taken[0]] = of_a_record(error, partition.topic, batch.size())
            if answer.again and (key := sent.events[taken[0]].event.partitionkey) is not None:
                behind.add(key)

    def _filled(self, sent: _Round, topic: str, run: list[int], behind: set[str]) -> tuple[BatchBuilder, list[int], list[int]]:
        """(a batch, the numbers of its events, those that have no room in it)."""
        room = self._rooms.get(topic, BATCH)
        batch = self._producer.create_batch()
        taken: list[int] = []
        for place, number in enumerate(run):
            event = sent.events[number].event
            if behind and event.partitionkey in behind:
                sent.answers[number] = BEHIND
                continue
            key, headers, value = to_kafka(event, self._structured)
            if (taken and batch.size() >= room) or batch.append(timestamp=None, key=key, value=value, headers=headers) is None:
                return batch, taken, run[place:]
            taken.append(number)
        return batch, taken, []

    async def _write(self, sent: _Round, batch: BatchBuilder, partition: TopicPartition) -> kafka.KafkaError | Undelivered | None:
        """None: it is confirmed. An error: of one of its records. Undelivered: of all that this partition is still to be given."""
        if self._ended:
            return self._lose(sent, self._ended)
        if asyncio.get_running_loop().time() > sent.until:
            return self._lose(sent, "Kafka is slow: there were more events than it confirms in time")
        try:
            await confirmed(self._producer, batch, partition, self._timeout)
            sent.confirmed = True
            return None
        except TimeoutError:  # the producer goes on trying, and cannot be told to stop
            self._ended = f"Kafka has not confirmed within {self._timeout:g} s"
            if await self._look():
                known = of_a_partition(None, partition, self._producer.client.cluster, self._user)
                if known or sent.confirmed:
                    return known or silent(partition)
            return self._lose(sent, self._ended)
        except OF_A_PARTITION as error:
            number_anew(self._producer)
            await self._look()
            return of_a_partition(error, partition, self._producer.client.cluster, self._user)
        except OF_A_RECORD as error:
            number_anew(self._producer)
            return error
        except kafka.KafkaError as error:
            return self._lose(sent, f"Kafka: {shown(error)}")

    def _lose(self, sent: _Round, reason: str) -> Undelivered:
        """What was not confirmed is sent by another producer: all of it, and in its order."""
        sent.lost = True
        self._ended = self._ended or reason
        return Undelivered(reason)

    async def _look(self) -> bool:
        """Whether the cluster said what it has."""
        try:
            async with asyncio.timeout(LOOKING):
                return bool(await self._producer.client.force_metadata_update())
        except TimeoutError:
            return False


class _Round:
    """One send(). until: no batch is begun later. confirmed: one was. lost: not all is known, and the producer cannot go on."""

    def __init__(self, events: Sequence[Outgoing], until: float) -> None:
        self.events = events
        self.answers: list[Undelivered | None] = [None] * len(events)
        self.until = until
        self.confirmed = self.lost = False
        self.together = asyncio.Semaphore(TOGETHER)


@lru_cache(maxsize=4096)  # 3 µs for a short key
def _hashed(key: str) -> int:
    """As Java's clients choose the partition of a key."""
    return murmur2(key.encode()) & 0x7FFFFFFF  # type: ignore[no-any-return]
