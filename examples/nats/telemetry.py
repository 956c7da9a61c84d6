"""Temperatures of devices: what is too hot raises an alarm, and an alarm goes to whoever is on duty."""

from dataclasses import dataclass

from broker_faas import CloudEvent, Context, function


@dataclass
class Temperature:
    celsius: float


@function(on="devices.*.temperature")
async def watch(temperature: Temperature, ctx: Context) -> None:
    """The subject at the other NATS is the topic here: it names the device."""
    device = ctx.topic.split(".")[1]
    if temperature.celsius > 80:
        ctx.emit("alarms.hot", {"device": device, "celsius": temperature.celsius}, key=device)


@function(on="alarms.*", ordered=True)
def alarm(event: CloudEvent) -> None:
    """Of one device, one after the other. A plain function: it may block."""
    said = event.json()
    print(f"{said['device']} is at {said['celsius']:.1f} °C")
