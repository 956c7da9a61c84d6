"""One event out an event in."""

from typing import Any

from benchmarks.marks import here
from broker_faas import CloudEvent, function

marks = here()


@function(on="bench", start="first", sends="out")
async def noop(event: CloudEvent) -> dict[str, Any]:
    data = event.json()
    marks.enter(data["number"])
    return dict(data)
