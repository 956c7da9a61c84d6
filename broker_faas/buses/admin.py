"""Making, changing, renaming and deleting what functions need on the bus: streams and queues. Idempotent; never loses an event silently.

A queue is the durable consumers of layout.consumers(). After a rename its filters on `go.` and `re.` (retries and replays) hold
the former names, too, so that what was scheduled under those keeps coming. Those on `re.` are there while there are replays.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from time import time
from typing import Any, NamedTuple

from .. import layout
from ..bus import Lag, Queue
from ..errors import BusRefused, ConfigError
from ..layout import DEAD, EVENTS, RETRIES
from ..topics import covers
from . import consumers, store
from .consumers import Consumer, former_names, topics_of
from .store import Api

log = logging.getLogger(__name__)

REPLAYED = 3600.0  # seconds after a replay was announced during which it may still be on its way to its consumers

# --- streams ------------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """An option of a stream that is not as it should be."""

    stream: str
    option: str
    wanted: object
    found: object

    def __str__(self) -> str:
        return f"stream {self.stream} has {self.option} = {self.found!r}, not {self.wanted!r}"


async def differences(bus: Api, wanted: Iterable[Mapping[str, Any]]) -> list[Difference]:
    """What of layout.streams() is not on the bus as it should be. provision.ensure_streams() mends what loses nothing."""
    found: list[Difference] = []
    for config in wanted:
        have = (await store.info(bus, config["name"]))["config"]
        # The server leaves out what is zero or false.
        for option, value in config.items():
            if (have.get(option) or 0) != (value or 0):
                found.append(Difference(config["name"], option, value, have.get(option)))
    return found


# --- queues -------------------------------------------------------------------------------------------------


async def ensure_queue(bus: Api, queue: Queue) -> list[tuple[str, dict[str, Any]]]:
    """Make the queue, or bring it in line with the code: its consumers. ConfigError instead of a change that would lose waiting events.

    A queue begins at one moment: consumers that are missing start where the first of them was made. A topic that is
    added is heard from the queue's own position on: of what is stored, events that came after it are delivered, too.
    """
    wanted = layout.consumers(queue)
    infos = await store.together(consumers.find(bus, stream, config["durable_name"]) for stream, config in wanted)
    present = [one for one in infos if one]
    on_events = [one for (stream, _), one in zip(wanted, infos, strict=True) if stream == EVENTS]
    if others := await _other_kind(bus, queue, {config["durable_name"] for stream, config in wanted if stream == EVENTS}):
        await _switch(bus, queue, others, whole=all(on_events))
        return await ensure_queue(bus, queue)
    if not present:
        await _free_name(bus, queue.name)
    else:
        await _check_narrowing(bus, queue, [one for one in on_events if one], wanted)

    async def ensure(stream: str, config: dict[str, Any], one: Consumer | None) -> None:
        if one:
            await _update(bus, stream, one, config)
        else:
            await consumers.create(bus, stream, config if stream == RETRIES or not present else _since_first(config, present))
            # crash point: consumer-made

    await store.together(ensure(stream, config, one) for (stream, config), one in zip(wanted, infos, strict=True))
    return wanted


def _since_first(config: Mapping[str, Any], present: Sequence[Consumer]) -> dict[str, Any]:
    """A queue of which only a part was made before its maker died."""
    if config["deliver_policy"] != "new":
        return dict(config)
    return dict(config) | {"deliver_policy": "by_start_time", "opt_start_time": min(one["created"] for one in present)}


async def _check_narrowing(bus: Api, queue: Queue, present: Sequence[Consumer], wanted: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    filters = {config["durable_name"]: config["filter_subjects"] for stream, config in wanted if stream == EVENTS}

    def loses(one: Consumer) -> bool:
        return any(_is_event(old) and not any(covers(new, old) for new in filters[one["name"]]) for old in consumers.filters_of(one))

    lost = await consumers.counted(bus, EVENTS, [one for one in present if loses(one)])
    if waiting := sum(consumers.lag_of(lost)):
        old = topics_of(lost[0])
        raise ConfigError(
            f"queue {queue.name} has {waiting} events waiting and would not hear all of them any more: its topics were "
            f"{', '.join(old)} and are now {', '.join(queue.topics)}. Keep the old topics until it is drained, then take them away."
        )


async def _update(bus: Api, stream: str, found: Consumer, wanted: Mapping[str, Any]) -> None:
    have = found["config"]
    over = await _settled_replays(bus, stream, found)
    filters = [filter for filter in _with_former(wanted, found) if filter not in over]
    change: dict[str, Any] = {key: wanted[key] for key in ("ack_wait", "max_ack_pending")}
    change["metadata"] = have.get("metadata", {}) | wanted["metadata"]
    if set(filters) != set(consumers.filters_of(found)) or any(have.get(key) != value for key, value in change.items()):
        await consumers.change(bus, stream, found, change, filters)


async def hear_replays(bus: Api, queue: Queue, heard: Iterable[tuple[str, str]]) -> None:
    """Before replays of an ordered queue are stored, and again within REPLAYED seconds. heard: as of layout.replay_filter()."""

    async def hear(durable: str, filter: str) -> None:
        if (found := await consumers.find(bus, EVENTS, durable)) is None:
            raise BusRefused(f"queue {queue.name} has no consumer {durable}; start its worker first", consumers.NO_CONSUMER)
        metadata = found["config"].get("metadata", {}) | {"faas.replay": f"{time():.3f}"}
        filters = consumers.filters_of(found)
        await consumers.change(bus, EVENTS, found, {"metadata": metadata}, filters if filter in filters else [*filters, filter])

    await store.together(hear(*one) for one in heard)


async def _settled_replays(bus: Api, stream: str, found: Consumer) -> list[str]:
    """Filters that it needs no more: with a second one an event costs the server three times as much."""
    replays = [filter for filter in consumers.filters_of(found) if filter.startswith("re.")]
    announced = float(found["config"].get("metadata", {}).get("faas.replay", 0))
    if stream != EVENTS or not replays or time() < announced + REPLAYED:
        return []
    after = found["ack_floor"]["stream_seq"] + 1
    left = await store.together(store.stored(bus, EVENTS, seq=after, next_by_subj=filter) for filter in replays)
    return [] if any(left) else replays


def _with_former(config: Mapping[str, Any], found: Consumer | None) -> list[str]:
    """The filters it should have, and those for retries and replays under former names that it has."""
    filters = list(config.get("filter_subjects") or [config["filter_subject"]])
    return filters + [old for old in (consumers.filters_of(found) if found else ()) if not _is_event(old) and old not in filters]


def _is_event(subject: str) -> bool:
    return not subject.startswith(("go.", "re."))


# --- plain <-> ordered --------------------------------------------------------------------------------------


async def _other_kind(bus: Api, queue: Queue, names: Collection[str]) -> list[Consumer]:
    """Consumers on `events` that this queue has as another kind (plain, 16 or 256 partitions). names: of those that it should have."""
    firsts = {queue.name, f"{queue.name}--0", f"{queue.name}--00"} - set(names)
    if queue.topics and any(await store.together(consumers.find(bus, EVENTS, first) for first in firsts)):
        return [one for one in await consumers.of_queue(bus, EVENTS, queue.name) if one["name"] not in names]
    return []


async def _switch(bus: Api, queue: Queue, others: Sequence[Consumer], *, whole: bool) -> None:
    """From one kind to another, once drained. The new consumers are there before the old ones go. whole: they are all there."""
    if not whole:
        last = (await store.info(bus, EVENTS))["state"]["last_seq"]
        again = await consumers.of_queue(bus, EVENTS, queue.name)  # for their lag may be older than `last`
        others = await consumers.counted(bus, EVENTS, [one for one in again if one["name"] in {other["name"] for other in others}])
        if waiting := sum(consumers.lag_of(others)):
            raise ConfigError(
                f"queue {queue.name} switches between plain and ordered with {waiting} events waiting, which would lose them. "
                "Drain it first: let the code as it was finish them, then deploy the change."
            )
        for stream, config in layout.consumers(queue):
            await consumers.create(bus, stream, config if stream == RETRIES else consumers.starting_at(last + 1, config))
    for one in others:
        await consumers.remove(bus, EVENTS, one["name"])


# --- rename and delete --------------------------------------------------------------------------------------


async def rename(bus: Api, was: str, queue: Queue) -> bool:
    """Make `queue` go on where the queue `was` stands, then delete `was`. False if there is no such queue (any more).

    Nothing is lost: `was` goes only when all of `queue` is there. At least once: what was in flight, or settled out of
    order behind something in flight, is delivered once more, as attempt 1. Retries, schedules and replays under the old
    name keep coming, and dead letters stay where they are: the new queue answers for both names. Stop the workers of the
    old code first; those of an ordered function could otherwise overlap. A killed rename is finished by the next one.
    """
    last = {stream: (await store.info(bus, stream))["state"]["last_seq"] for stream in (EVENTS, RETRIES)}
    old = {(stream, one["name"]): one for stream in (EVENTS, RETRIES) for one in await consumers.of_queue(bus, stream, was)}
    if not old:
        return False
    wanted = layout.consumers(queue)
    there = await store.together(consumers.find(bus, stream, config["durable_name"]) for stream, config in wanted)
    if not all(one and _heir_of(one) == was for one in there):  # else one that was killed had all made, and maybe begun to delete
        if any(one and _heir_of(one) != was for one in there):
            await _check_nothing_left(bus, was, queue, old.values())
        await _free_name(bus, queue.name, heir=was)
        await _inherit(bus, was, queue, old, last)
    for stream, name in sorted(old):  # events before retries: a killed rename still finds the last one
        await consumers.remove(bus, stream, name)
    log.info("queue renamed", extra={"was": was, "queue": queue.name})
    return True


async def _inherit(bus: Api, was: str, queue: Queue, old: Mapping[tuple[str, str], Consumer], last: Mapping[str, int]) -> None:
    """Make the new queue's consumers, each where its twin of the old queue stands."""
    counted = {key: (await consumers.counted(bus, key[0], [one]))[0] for key, one in old.items()}
    wanted = layout.consumers(queue)
    twins = [(stream, config, counted.get((stream, was + config["durable_name"].removeprefix(queue.name)))) for stream, config in wanted]
    if all(one for stream, _, one in twins if stream == EVENTS):
        as_new = [one | {"name": config["durable_name"]} for stream, config, one in twins if one and stream == EVENTS]
        await _check_narrowing(bus, queue, as_new, wanted)
    elif waiting := sum(consumers.lag_of(one for (stream, _), one in counted.items() if stream == EVENTS)):
        raise ConfigError(
            f"queue {was} is renamed to {queue.name} and switches between plain and ordered, with {waiting} events waiting. "
            "Do one after the other, and drain it before the switch."
        )
    for stream, config, one in twins:
        bare = {key: value for key, value in config.items() if not key.startswith("filter")}
        replayed = {key: value for key, value in (one or {"config": {}})["config"].get("metadata", {}).items() if key == "faas.replay"}
        bare["metadata"] = config["metadata"] | replayed | {"faas.was": was}
        filters = _with_former(config, one)
        position = consumers.unsettled(one, last[stream]) if one else last[stream] + 1
        await consumers.create(bus, stream, consumers.starting_at(position, bare | consumers.filtered(filters)))


def _heir_of(consumer: Consumer) -> str:
    """The queue whose position it took over; "" if none."""
    return str(consumer["config"].get("metadata", {}).get("faas.was", ""))


async def _check_nothing_left(bus: Api, was: str, queue: Queue, old: Iterable[Consumer]) -> None:
    """A queue that exists and was not made by a rename that died has a position of its own."""
    if left := sum(consumers.lag_of(old)) + await _scheduled(bus, was):
        raise ConfigError(
            f"cannot rename queue {was} to {queue.name}: both exist, and {was} has {left} events left. "
            f"Let a worker with the old code drain {was}, or discard them with `faas functions prune`."
        )


async def _scheduled(bus: Api, name: str) -> int:
    return len(await store.subjects(bus, RETRIES, f"at.{name}.>"))


async def delete_queue(bus: Api, name: str) -> Lag:
    """Delete a queue with all that waits for it; how many events that discards. Its dead letters stay, until they are purged.

    Not while a worker serves it: that one would make it again.
    """
    events, retries = await consumers.of_queue(bus, EVENTS, name), await consumers.of_queue(bus, RETRIES, name)
    if not events and not retries:
        return Lag(0, 0, 0)
    names = [name, *former_names(name, retries)]
    scheduled = sum([await _scheduled(bus, one) for one in names])
    for one in events:
        await consumers.remove(bus, EVENTS, one["name"])
    for former in names:
        await store.purge(bus, RETRIES, f"at.{former}.>")
        await store.purge(bus, RETRIES, f"go.{former}")
        await store.purge(bus, EVENTS, f"re.{former}.>")
    for one in retries:  # last: a killed delete still finds it
        await consumers.remove(bus, RETRIES, one["name"])
    waiting, in_progress = consumers.lag_of([*events, *retries])
    return Lag(waiting, in_progress, scheduled)


async def _free_name(bus: Api, name: str, heir: str = "") -> None:
    """Before a queue is made under a name that another one has inherited: nothing of the old one may be left. But `heir` may have it."""
    for one in await consumers.listing(bus, RETRIES):
        owner = consumers.queue_of(one)
        if owner in (name, heir) or name not in former_names(owner, [one]):
            continue
        retries = await _scheduled(bus, name) + sum(consumers.lag_of([one]))
        dead = sum((await store.subjects(bus, DEAD, f"dead.{name}")).values())
        if retries or dead:
            raise ConfigError(
                f"queue {name} was renamed to {owner}, which still has {retries} retries to serve and {dead} dead letters of that name. "
                "Give the new function another name, or wait for the retries and replay or purge the dead letters."
            )
        for stream in (EVENTS, RETRIES):
            for each in await consumers.of_queue(bus, stream, owner):
                kept = [filter for filter in consumers.filters_of(each) if filter != f"go.{name}" and not filter.startswith(f"re.{name}.")]
                await consumers.change(bus, stream, each, {}, kept)
