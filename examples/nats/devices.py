"""Measures two hundred temperatures of ten devices, and their battery too, into a stream of JetStream. One device is hot."""

import asyncio
import json
import os

import nats

STREAM = "EXAMPLE_DEVICES"


async def main() -> None:
    client = await nats.connect(os.environ["DEVICES_NATS_URL"])
    jetstream = client.jetstream()
    await jetstream.add_stream(name=STREAM, subjects=["devices.>"])
    for n in range(200):
        celsius = 81.5 if n == 123 else 40 + n % 7
        await jetstream.publish(f"devices.pump-{n % 10}.temperature", json.dumps({"celsius": celsius}).encode())
        await jetstream.publish(f"devices.pump-{n % 10}.battery", b'{"volts": 3.3}')
    await client.close()
    print(f"measured 200 temperatures into {STREAM}")


asyncio.run(main())
