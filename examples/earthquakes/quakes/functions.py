"""What happens when the earth moves. start="first": a new queue begins with the events that were published before it existed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from broker_faas import Context, function

from .journal import note
from .model import Alert, Feature
from .report import Report


@function(on="usgs.earthquake", sends="quake.alert", start="first")
async def alert(feature: Feature, ctx: Context) -> Alert | None:
    """Tell the world about magnitude 4.5 and above."""
    note(ctx)
    quake = feature.properties
    if quake.mag is None or quake.mag < 4.5:
        return None
    longitude, latitude, depth = feature.geometry.coordinates
    return Alert(feature.id, quake.mag, quake.place or "somewhere", quake.time / 1000, longitude, latitude, depth, quake.url)


@function(on="quake.alert", concurrency=1, start="first")
def report(alert: Alert, ctx: Context) -> None:
    """Add an alert to the page, data/report.html."""
    note(ctx)
    Report(Path(os.environ["DATA"])).add(alert)


@function(on="usgs.earthquake", ordered=True, start="first")
async def region(feature: Feature, ctx: Context) -> None:
    """One region's events, one at a time and in their order; the journal is the proof."""
    note(ctx)
    await asyncio.sleep(0)  # every other call of this executor may run now: one of the same region would be seen
    note(ctx, "left")
