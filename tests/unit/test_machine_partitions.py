"""An ordered queue by chance: workers that come, stall, die and settle late; events of a key run one after the other all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker_faas.bus import Delivery, Queue, Record
from broker_faas.buses.memory import Memory, MemoryBus, MemorySubscription
from broker_faas.layout import event_subject

from .test_memory_bus import Clock, pass_time

QUEUE = Queue("p--o", ("orders",), partitions=16, start="first")
KEYS = ("k0", "k1", "k2", "k3", "")  # the first two share a partition; the last is no key, and has no order
ACK_WAIT = QUEUE.ack_wait


def partition(key: str) -> str:
    """Of sixteen: the first of the two digits."""
    return event_subject("orders", key).split(".")[-2]


class Worker:
    """running: what it executes, until when its leases last. stalled: it renews nothing, and its executions end with their leases."""

    def __init__(self, subscription: MemorySubscription, leave: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.subscription = subscription
        self.leave = leave
        self.running: dict[int, Delivery] = {}
        self.late: list[Delivery] = []  # their leases have ended, and it may not have noticed


class Partitions(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.exits = AsyncExitStack()
        self.workers: list[Worker] = []
        self.keys: dict[int, str] = {}  # of each event's sequence
        self.leases: dict[int, float] = {}  # of what runs somewhere: until when
        self.ended: set[int] = set()
        self.bus: Memory = self.runner.run(self.exits.enter_async_context(MemoryBus(clock=self.clock).open()))

    @initialize()
    def begin(self) -> None:
        self.join(5)
        self.join(2)

    @rule(prefetch=st.integers(1, 20))
    def join(self, prefetch: int) -> None:
        if len(self.workers) < 4:
            stack = AsyncExitStack()
            subscription = self.runner.run(stack.enter_async_context(self.bus.subscribe(QUEUE, prefetch)))
            self.workers.append(Worker(subscription, stack.aclose))

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=8))
    def publish(self, keys: list[str]) -> None:
        records = []
        for key in keys:
            seq = len(self.keys) + 1
            self.keys[seq] = key
            records.append(Record(event_subject("orders", key), f"id{seq}", b"", str(seq).encode()))
        self.runner.run(self.bus.publish(records))

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        self._takes(data.draw(st.sampled_from(self.workers)))

    @rule()
    def all_take(self) -> None:
        for worker in self.workers:
            self._takes(worker)

    @rule(word=st.sampled_from(["done", "again", "renew"]))
    def take_over(self, word: str) -> None:
        """All were stopped for longer than their leases. The last that came go on first, and then the others say what they meant to."""
        self.all_take()
        self.pass_time(31.0)
        for worker in reversed(self.workers):
            self._takes(worker)
        for worker in self.workers:
            late, worker.late = [one for one in worker.late if self.keys[one.seq]], []
            done, again = (late if word == "done" else []), [(one, 0.0) for one in late if word == "again"]
            self._call(partial(worker.subscription.settle, done, again, late if word == "renew" else []))
        self.all_take()

    def _takes(self, worker: Worker) -> None:
        for delivery in self._call(worker.subscription.take):
            assert delivery.seq == int(delivery.data)
            self._starts(delivery)
            worker.running[delivery.seq] = delivery
            self.leases[delivery.seq] = self.clock.now + ACK_WAIT

    def _starts(self, delivery: Delivery) -> None:
        assert delivery.seq not in self.leases, "nothing runs twice at once"
        assert delivery.seq not in self.ended, "nothing runs after its end"
        if not self.keys[delivery.seq]:
            return
        for seq, key in self.keys.items():
            if partition(key) == partition(self.keys[delivery.seq]):
                assert seq not in self.leases, f"{seq} still runs when {delivery.seq} starts"
                assert seq >= delivery.seq or seq in self.ended, f"{delivery.seq} starts before {seq} has ended"

    @precondition(lambda self: any(worker.running for worker in self.workers))
    @rule(data=st.data(), delay=st.none() | st.sampled_from([0.0, 1.0, 29.0]))
    def settle(self, data: st.DataObject, delay: float | None) -> None:
        """It has ended, or is to run again."""
        worker = data.draw(st.sampled_from([one for one in self.workers if one.running]))
        delivery = worker.running.pop(data.draw(st.sampled_from(sorted(worker.running))))
        del self.leases[delivery.seq]
        if delay is None:
            self.ended.add(delivery.seq)
            self._call(lambda: worker.subscription.settle([delivery]))
        else:
            self._call(lambda: worker.subscription.settle([], [(delivery, delay)]))

    @precondition(lambda self: any(worker.late for worker in self.workers))
    @rule(data=st.data(), delay=st.none() | st.sampled_from([0.0, 1.0, 29.0]), renew=st.booleans())
    def settle_late(self, data: st.DataObject, delay: float | None, renew: bool) -> None:
        """What a worker says that was stopped for longer than its lease: somebody else may be at it, or through."""
        worker = data.draw(st.sampled_from([one for one in self.workers if one.late]))
        delivery = worker.late.pop(data.draw(st.integers(0, len(worker.late) - 1)))
        if not self.keys[delivery.seq]:
            return  # without order, a late word counts: that is another test's
        if renew:
            self._call(lambda: worker.subscription.settle([], [], [delivery]))
        elif delay is None:
            self._call(lambda: worker.subscription.settle([delivery]))
        else:
            self._call(lambda: worker.subscription.settle([], [(delivery, delay)]))
        self.all_take()

    @precondition(lambda self: any(worker.running for worker in self.workers))
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([one for one in self.workers if one.running]))
        self._call(lambda: worker.subscription.settle([], [], [*worker.running.values()]))
        self.leases |= dict.fromkeys(worker.running, self.clock.now + ACK_WAIT)

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """With all it runs; nobody tells the bus."""
        worker = self.workers.pop(data.draw(st.integers(0, len(self.workers) - 1)))
        for seq in worker.running:
            del self.leases[seq]
        self.runner.run(worker.leave())

    @rule(seconds=st.sampled_from([0.5, 10.0, 29.5, 31.0]))
    def pass_time(self, seconds: float) -> None:
        """Executions whose lease ends are ended by whoever watches them; their worker may still speak of them."""
        self._call(lambda: pass_time(self.bus, self.clock, seconds))
        over = {seq for seq, until in self.leases.items() if until <= self.clock.now}
        for worker in self.workers:
            worker.late += [worker.running.pop(seq) for seq in sorted(over & worker.running.keys())]
        for seq in over:
            del self.leases[seq]

    @invariant()
    def one_event_of_a_partition_is_in_flight(self) -> None:
        keyed = [partition(self.keys[seq]) for seq in self.leases if self.keys[seq]]

        assert len(keyed) == len(set(keyed))

    def _call(self, work: Callable[[], Any]) -> Any:
        async def call() -> Any:
            return work()

        return self.runner.run(call())

    def teardown(self) -> None:
        """All workers but a new one die: it gets whatever has not ended, and then there is nothing left."""
        try:
            while self.workers:
                worker = self.workers.pop()
                for seq in worker.running:
                    del self.leases[seq]
                self.runner.run(worker.leave())
            self.join(100)
            for _ in range(len(self.keys) + 2):
                self.pass_time(31.0)
                for delivery in self._call(self.workers[0].subscription.take):
                    self._starts(delivery)
                    self.ended.add(delivery.seq)
                    self._call(partial(self.workers[0].subscription.settle, [delivery]))

            assert self.ended == set(self.keys), "nothing is lost"
            assert self.runner.run(self.bus.lag(QUEUE)).total == 0
        finally:
            self.runner.run(self.exits.aclose())
            self.runner.close()


TestPartitions = Partitions.TestCase
TestPartitions.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, database=None)


def test_two_of_the_keys_share_a_partition() -> None:
    assert len({partition(key) for key in KEYS}) == len(KEYS) - 1
    assert partition(KEYS[0]) == partition(KEYS[1])
