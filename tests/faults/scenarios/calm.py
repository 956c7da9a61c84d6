"""Nothing goes wrong: what every other scenario is compared with."""

from __future__ import annotations

from ..run import Run
from ..scenario import scenario


@scenario("calm", "nothing goes wrong: no event runs twice", proves=("I-D6", "I-U4", "I-O1", "I-V1", "I-X3", "I-X4"), lease=3.0)
async def calm(run: Run) -> None:
    await run.pause(*((2, 2) if run.short else (30, 30)))
