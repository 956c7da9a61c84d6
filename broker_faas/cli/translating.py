"""What a connector of faas.toml makes of batches: its route, its decoder, and both at work without a bus."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..bus import Record
    from ..config import Config, ConnectorConfig
    from ..connectors.batch import Batch, Item, Refused, Route
    from ..connectors.decoder import Decoder


def route_of(config: Config, one: ConnectorConfig) -> Route:
    from ..connectors.batch import Route
    from ..layout import project_source

    return Route(name=one.name, source=project_source(config.project, one.name), to=one.to, where=one.where)


def decoder_of(config: Config, one: ConnectorConfig) -> Decoder | None:
    """It sees of the environment what executors do."""
    from ..connectors.decoder import Decoder
    from ..workers.zygote import scrubbed

    if one.decode is None:
        return None
    return Decoder(
        function=one.decode,
        root=config.root,
        place=f"{one.places['decode']}: connector {one.name!r}: decode",
        connector=one.name,
        environ=scrubbed(os.environ, config.worker.pass_env),
        import_timeout=config.worker.import_timeout,
    )


class Became(NamedTuple):
    """name: at the source. given, item: before and behind the decoder. record: of the item, or why there is none."""

    name: str
    given: Item
    item: Item
    record: Record | Refused


@asynccontextmanager
async def translating(config: Config, one: ConnectorConfig) -> AsyncIterator[Callable[[Batch], Awaitable[list[Became]]]]:
    """What batches of this connector become, one by one. Raises ConfigError."""
    from ..connectors.batch import record_of
    from ..connectors.decoder import decoded

    route = route_of(config, one)
    async with AsyncExitStack() as stack:
        decoder = decoder_of(config, one)
        decoding = await stack.enter_async_context(decoder.open()) if decoder else None

        async def translate(batch: Batch) -> list[Became]:
            given, behind = batch.items, route
            if decoding:
                batch, behind = await decoded(route, batch, decoding), replace(route, where=None)
            return [
                Became(name, one, item, record_of(behind, name, item)) for (name, one), (_, item) in zip(given, batch.items, strict=True)
            ]

        yield translate
