"""broker_faas/buses/provision.py: streams that several processes make at the same moment."""

from __future__ import annotations

from typing import Any

import pytest

from broker_faas.buses.provision import NO_ROOM, NO_STREAM, ensure_streams
from broker_faas.errors import BusRefused


class Server:
    """It has no stream, and refuses so many times to make one."""

    def __init__(self, refusals: int, code: int) -> None:
        self.refusals, self.code, self.made = refusals, code, 0

    async def api(self, what: str, payload: Any = None) -> dict[str, Any]:
        if what.startswith("STREAM.INFO"):
            raise BusRefused("no such stream", NO_STREAM)
        if self.refusals:
            self.refusals -= 1
            raise BusRefused("insufficient storage resources available", self.code)
        self.made += 1
        return {}


async def test_a_stream_that_another_process_is_making_is_waited_for() -> None:
    """Tried on nats-server 2.15.1: while two make it, its max_bytes count twice, and the second is told that there is no room."""
    server = Server(2, NO_ROOM)
    await ensure_streams(server, [({"name": "events"}, set())])  # type: ignore[arg-type]

    assert server.made == 1


@pytest.mark.parametrize(("refusals", "code"), [(1, 10052), (9, NO_ROOM)])
async def test_what_the_server_will_not_make_is_told(refusals: int, code: int) -> None:
    with pytest.raises(BusRefused):
        await ensure_streams(Server(refusals, code), [({"name": "events"}, set())])  # type: ignore[arg-type]
