"""The no-op as a plain function."""

from benchmarks.marks import here
from broker_faas import CloudEvent, function

marks = here()


@function(on="bench", start="first", concurrency=2)
def noop(event: CloudEvent) -> None:
    marks.enter(event.json()["number"])
