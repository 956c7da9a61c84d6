"""Durable consumers of JetStream: who reads which stream, and how far. Information as the server gives it (CONSUMER.INFO)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import BusRefused, BusUnavailable
from .store import Api, stored, together

PAUSES = (0.0, 0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # seconds before each try to list: an election takes up to 5
NO_CONSUMER, EXISTS, NO_STORE = 10014, 10148, 10012  # JetStream's err_codes; EXISTS: with another configuration

Consumer = dict[str, Any]  # a CONSUMER.INFO answer


# --- asking -------------------------------------------------------------------------------------------------


async def find(bus: Api, stream: str, name: str) -> Consumer | None:
    try:
        return await bus.api(f"CONSUMER.INFO.{stream}.{name}")
    except BusRefused as error:
        if error.code == NO_CONSUMER:
            return None
        raise


async def listing(bus: Api, stream: str) -> list[Consumer]:
    """Every durable consumer, or BusUnavailable: never a part of them, for what is missing would be robbed.

    The server sends them by name, 256 at a time. Each page begins with the last one of the page before: if it does not,
    consumers came or went in between, and the list starts anew. So it does while one has no leader: on a cluster every new
    consumer elects one, and workers that start together make theirs while others look.
    """
    why = ""
    for wait in PAUSES:
        await asyncio.sleep(wait)
        found, why = await _listed(bus, stream)
        if not why:
            return [one for one in found if one["config"].get("durable_name")]
    raise BusUnavailable(why)


async def _listed(bus: Api, stream: str) -> tuple[list[Consumer], str]:
    """(all consumers, "") or ([], why not)."""
    found: list[Consumer] = []
    while True:
        answer = await bus.api(f"CONSUMER.LIST.{stream}", {"offset": max(len(found) - 1, 0)})
        page = answer.get("consumers") or []
        if missing := answer.get("missing") or answer.get("offline"):
            return [], f"consumers {', '.join(missing)} of {stream} have no leader now; try again later"
        more = page[1:] if found else page
        moved = bool(found) and (not page or page[0]["name"] != found[-1]["name"])
        if not moved:
            found += more
            if len(found) >= answer["total"]:
                return found, ""
        if moved or not more:
            return [], f"the consumers of {stream} change faster than they can be listed; try again later"


async def of_queue(bus: Api, stream: str, queue: str) -> list[Consumer]:
    return [one for one in await listing(bus, stream) if queue_of(one) == queue]


def filters_of(consumer: Mapping[str, Any]) -> tuple[str, ...]:
    config = consumer["config"]
    return tuple(config.get("filter_subjects") or [config.get("filter_subject") or ">"])


def queue_of(consumer: Mapping[str, Any]) -> str:
    """The queue that a durable consumer belongs to; its own name if it is none of ours."""
    return str((consumer["config"].get("metadata") or {}).get("faas.queue") or consumer["name"])


def unsettled(consumer: Mapping[str, Any], last_seq: int) -> int:
    """A sequence below which the consumer has settled everything. last_seq: the stream's, read BEFORE the consumer.

    With nothing waiting and nothing in flight that is all there was: the ack floor of a rare topic stands still. The server
    counts what waits a moment after it is stored: true only of events that are older than that, else see `counted()`.
    """
    if not consumer["num_pending"] and not consumer["num_ack_pending"]:
        return last_seq + 1
    return int(consumer["ack_floor"]["stream_seq"]) + 1


async def counted(bus: Api, stream: str, infos: Sequence[Consumer]) -> list[Consumer]:
    """The same, at least 1 waiting where something was stored but not yet counted: measured, an event that was acknowledged
    to its publisher is missing in num_pending for a moment. For decisions that would lose it."""

    async def count(one: Consumer) -> Consumer:
        if not one["num_pending"] and not one["num_ack_pending"]:
            after = one["ack_floor"]["stream_seq"] + 1
            if any(await together(stored(bus, stream, seq=after, next_by_subj=subject) for subject in filters_of(one))):
                return one | {"num_pending": 1}
        return one

    return await together(count(one) for one in infos)


def lag_of(infos: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """(waiting, in progress) of some consumers."""
    waiting = in_progress = 0
    for one in infos:
        waiting += one["num_pending"]
        in_progress += one["num_ack_pending"]
    return waiting, in_progress


def topics_of(consumer: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple((consumer["config"].get("metadata") or {}).get("faas.topics", "").split())


def former_names(queue: str, retries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names that a queue had before it was renamed, from its durable on `retries`."""
    return [subject[3:] for one in retries for subject in filters_of(one) if subject.startswith("go.") and subject != f"go.{queue}"]


# --- changing -----------------------------------------------------------------------------------------------


async def create(bus: Api, stream: str, config: Mapping[str, Any]) -> None:
    """Make one; one of this name that is there already stays as it is."""
    name = config["durable_name"]
    try:
        await bus.api(f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": dict(config), "action": "create"})
    except BusRefused as error:
        if error.code == NO_STORE:
            raise BusRefused(
                f"{error}: the server cannot read what it has on disk of this consumer. Stop it, delete streams/{stream}/obs/{name} in its "
                "store and start it: what is kept of the queue's events comes again",
                error.code,
            ) from None
        if error.code != EXISTS:  # else: another worker has just made it
            raise


async def change(bus: Api, stream: str, found: Consumer, options: dict[str, Any], filters: Sequence[str]) -> None:
    """Give it other options and these filters; its position stays."""
    kept = {key: value for key, value in found["config"].items() if not key.startswith("filter")}
    config = kept | options | filtered(filters)
    await bus.api(f"CONSUMER.CREATE.{stream}.{found['name']}", {"stream_name": stream, "config": config, "action": "update"})


def filtered(filters: Sequence[str]) -> dict[str, Any]:
    return {"filter_subject": filters[0]} if len(filters) == 1 else {"filter_subjects": list(filters)}


def starting_at(seq: int, config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key != "opt_start_time"}
    return kept | {"deliver_policy": "by_start_sequence", "opt_start_seq": seq}


async def remove(bus: Api, stream: str, name: str) -> None:
    try:
        await bus.api(f"CONSUMER.DELETE.{stream}.{name}")
    except BusRefused as error:
        if error.code != NO_CONSUMER:
            raise
