"""What a connector reads from a real Kafka: the rows of the fault matrix that are about its protocol.

The bus forgets ids after three seconds here, and not after two minutes: that a position is stored once is shown by positions alone.
"""

from __future__ import annotations

import signal

from ..run import Run
from ..scenario import scenario
from .connector import POINTS as PUMP
from .connector import crashes

CONNECTOR = """
[[connector]]
name = "orders"
type = "kafka"
servers = "${KAFKA}"
topics = ["load"]
group = "faults"
session_timeout = 6.0
heartbeat_interval = 0.5
rebalance_timeout = 6.0
"""
KAFKA = {
    "broker": "kafka",
    "connector": CONNECTOR,
    "short": False,
    "needs": ("root", "kafka"),
    "patches": (("broker_faas.layout", "DUPLICATE_WINDOW = 120.0", "DUPLICATE_WINDOW = 3.0"),),
}


@scenario(
    "F7-kafka",
    "Kafka's connector dies at each line that matters: nothing is lost, no position is stored twice",
    proves=("I-D1", "I-D4", "I-D5", "I-U2", "I-O1"),
    crash=PUMP,
    exits=(-signal.SIGKILL,),
    **KAFKA,
)
async def log_crashes(run: Run) -> None:
    await crashes(run)
