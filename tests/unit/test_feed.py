"""What a feed makes of an event that comes again while it is still held, and how many events it asks for."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import pytest

from broker_faas.bus import Delivery, Queue
from broker_faas.event import CloudEvent
from broker_faas.layout import event_record
from broker_faas.workers.dispatch import Pool
from broker_faas.workers.feed import Feed

from .test_dispatch import spec

EVENT = event_record("a", CloudEvent(type="t", source="/s", id="1"))


def delivery(seq: int, deliveries: int, source: str = "events/p--f") -> Delivery:
    return Delivery(EVENT.subject, EVENT.headers, EVENT.data, seq, deliveries, 1000.0, source, f"{source}.{seq}.{deliveries}")


def holding(*deliveries: Delivery) -> Feed:
    feed = Feed(spec(), Queue("p--f", ("a",)), cast(Pool, None), 0)
    feed.take([*deliveries], count(1))
    return feed


class Settled:
    """A subscription that remembers the tokens it was told."""

    prefetch = 100

    def __init__(self) -> None:
        self.done: list[str] = []

    def settle(self, done: list[Delivery], again: Any = (), renew: Any = ()) -> None:
        self.done += [one.token for one in done]


def test_an_event_that_comes_again_while_it_is_held_does_not_run_twice() -> None:
    feed = holding(delivery(7, 1))
    new = delivery(8, 1)

    fresh, again = feed.take([delivery(7, 2), new], count(2))

    assert ([new], []) == ([held.delivery for held in fresh], again)


def test_an_event_that_came_again_while_it_was_held_is_settled_under_its_new_lease() -> None:
    feed = holding(delivery(7, 1))
    subscription = Settled()
    feed.subscription = cast(Any, subscription)
    feed.take([delivery(7, 2)], count(2))
    feed.settle([*feed.held], [])

    assert ["events/p--f.7.2"] == subscription.done


def test_events_that_come_again_and_are_not_held_here_run() -> None:
    again, of_retries = delivery(6, 2), delivery(7, 2, "retries/p--f")
    new, held = holding(delivery(7, 1)).take([again, of_retries], count(2))

    assert ([], [again, of_retries]) == (new, [one.delivery for one in held])


@pytest.mark.parametrize(
    ("ended", "seconds", "prefetch"),
    [(0, 10.0, 5), (1, 1.0, 5), (40, 1.0, 25), (1000, 1.0, 505), (10_000, 0.1, 8000)],
)
def test_as_much_is_asked_for_as_can_run_at_once_and_half_a_second_of_work(ended: int, seconds: float, prefetch: int) -> None:
    feed = Feed(spec(concurrency=4), Queue("p--f", ("a",)), cast(Pool, SimpleNamespace(size=1, sick=False, executors=[])), 0)
    feed.subscription = cast(Any, Settled())
    feed._ended, feed._measured = ended, 1000.0
    feed.resize(1000.0 + seconds)

    assert cast(Settled, feed.subscription).prefetch == prefetch
