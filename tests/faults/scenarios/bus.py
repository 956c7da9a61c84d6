"""One nats-server: killed, without power, without space, frozen."""

from __future__ import annotations

from ..run import Run
from ..scenario import scenario


@scenario("F21", "nats-server is killed with SIGKILL at random instants", proves=("I-D1", "I-U4", "I-L3"))
async def killed(run: Run) -> None:
    for _ in range(run.times(10, short=2)):
        await run.pause(1, 4)
        await run.kill_server()


@scenario(
    "F22",
    "the power fails at random instants: what was acknowledged is on disk",
    proves=("I-D1", "I-D2", "I-U4"),
    needs=("root", "loop"),
    disk="ext4",
)
async def power_cut(run: Run) -> None:
    for _ in range(run.times(10, short=2)):
        await run.pause(2, 6)
        await run.power_cut()


@scenario("F24", "nats-server stands still for 12 s, then for 30 s", proves=("I-D1", "I-U4", "I-L3"))
async def frozen(run: Run) -> None:
    for seconds in (12.0,) if run.short else (12.0, 30.0):
        await run.pause(1, 3)
        await run.freeze(run.nats, "nats-server", seconds, duplicates=run.in_flight * len(run.workers))
