"""A function with a mistake: the feed has more than earthquakes in it. mended/classify.py is the same without."""

from __future__ import annotations

from broker_faas import CloudEvent, Context, RetryPolicy, function
from quakes.journal import note

KNOWN = ("earthquake",)


@function(on="usgs.earthquake", retry=RetryPolicy(max_attempts=3, min_backoff=0.1), concurrency=2, start="first")
def classify(event: CloudEvent, ctx: Context) -> None:
    """Know what it was."""
    note(ctx)
    kind = event.json()["properties"]["type"]
    if kind not in KNOWN:
        raise ValueError(f"{kind} is no kind of event that we know")
