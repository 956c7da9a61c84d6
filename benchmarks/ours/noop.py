"""The no-op that every contender runs."""

from benchmarks.marks import here
from broker_faas import CloudEvent, function

marks = here()


@function(on="bench", start="first")
async def noop(event: CloudEvent) -> None:
    marks.enter(event.json()["number"])
