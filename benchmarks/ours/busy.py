"""A millisecond of Python on the CPU."""

from time import thread_time

from benchmarks.marks import here
from broker_faas import CloudEvent, function

marks = here()


@function(on="bench", start="first", concurrency=2)
def noop(event: CloudEvent) -> None:
    until = thread_time() + 0.001
    while thread_time() < until:
        pass
    marks.enter(event.json()["number"])
