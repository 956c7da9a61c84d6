"""FastStream on Kafka: acknowledged after execution, which commits, one by one or, with BENCH_BATCH, that many at a time."""

from __future__ import annotations

import os
from functools import partial

from faststream import AckPolicy, FastStream  # type: ignore[import-not-found]
from faststream.kafka import KafkaBroker  # type: ignore[import-not-found]

from benchmarks.marks import here

BATCH = int(os.environ.get("BENCH_BATCH", "0"))
broker = KafkaBroker(os.environ["BENCH_URL"], logger=None)
app = FastStream(broker, logger=None)
marks = here()

subscriber = partial(
    broker.subscriber,
    os.environ["BENCH_TOPIC"],
    group_id=os.environ["BENCH_GROUP"],
    auto_offset_reset="earliest",
    ack_policy=AckPolicy.NACK_ON_ERROR,
)

if BATCH:

    @subscriber(batch=True, max_records=BATCH)  # type: ignore[untyped-decorator]
    async def batch(some: list[dict]) -> None:  # type: ignore[type-arg]
        for data in some:
            marks.enter(data["number"])

else:

    @subscriber()  # type: ignore[untyped-decorator]
    async def noop(data: dict) -> None:  # type: ignore[type-arg]
        marks.enter(data["number"])
