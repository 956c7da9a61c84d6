"""Places a hundred orders in Kafka, keyed by customer, as a shop might. Two are suspicious, and one is broken."""

import asyncio
import json
import logging
import os

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

TOPIC, HELD = "example-orders", "example-held"
SERVERS = os.environ["KAFKA_BOOTSTRAP_SERVERS"]
ODD: dict[int, dict[str, object]] = {
    42: {"amount": 2400.0, "to": "BR"},
    77: {"amount": 1999.9, "card": "US"},
    90: {"amount": "12,50"},
}

logging.getLogger("aiokafka").setLevel(logging.ERROR)  # that a new topic has no leader for a moment is no news


def order(number: int) -> dict[str, object]:
    customer = ("ada", "grace", "edsger", "barbara")[number % 4]
    return {"number": number, "customer": customer, "amount": 20.0 + number, "card": "DE", "to": "DE"} | ODD.get(number, {})


async def main() -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=SERVERS)
    await admin.start()
    missing = {TOPIC, HELD} - {*await admin.list_topics()}
    await admin.create_topics([NewTopic(topic, num_partitions=4, replication_factor=1) for topic in missing])
    await admin.close()

    producer = AIOKafkaProducer(bootstrap_servers=SERVERS, acks="all")
    await producer.start()
    for one in [order(number) for number in range(1, 101)]:
        await producer.send(TOPIC, json.dumps(one).encode(), key=str(one["customer"]).encode())
    await producer.stop()  # sends what is left
    print(f"placed 100 orders in {TOPIC}")


asyncio.run(main())
