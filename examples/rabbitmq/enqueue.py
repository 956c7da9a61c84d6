"""Puts twenty mails into a queue, as whatever fills your work queue does. One mailbox is busy, and one address is none."""

import asyncio
import json
import os

import aiormq
from pamqp.commands import Basic

QUEUE = "example-mails"


async def main() -> None:
    connection = await aiormq.connect(os.environ["AMQP_URL"])
    channel = await connection.channel()
    await channel.queue_declare(QUEUE, durable=True)
    for invoice in range(1, 21):
        to = {7: "busy@example.com", 13: "nobody"}.get(invoice, f"customer-{invoice}@example.com")
        named = Basic.Properties(message_id=f"invoice-{invoice}", delivery_mode=2, content_type="application/json")
        await channel.basic_publish(json.dumps({"invoice": invoice, "to": to}).encode(), routing_key=QUEUE, properties=named)
    await connection.close()
    print(f"put 20 mails into {QUEUE}")


asyncio.run(main())
