"""[[sink]]: from a function's return value to another system, as a person sets it up and watches it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.helpers import eventually
from tests.terminal import Faas, project

FUNCTIONS = """
from broker_faas import CloudEvent, Context, function
@function(on="orders.created", sends="out:orders.done")
async def reserve(event: CloudEvent) -> dict:
    return {"id": event.json()["id"]}

@function(on="orders.lost", start="first")
async def astray(event: CloudEvent, ctx: Context) -> None:
    ctx.emit("elsewhere:orders.done", event.json())

@function(on=">")
async def everything(event: CloudEvent) -> None:
    print("heard", event.type)
"""

FILE_SINK = '''
"""A sink that is a file of lines; what has `"id": 13` in it is refused."""
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from broker_faas.connectors.sink import Undelivered
from broker_faas.errors import SinkUnavailable

@dataclass(frozen=True, kw_only=True)
class File:
    path: str

    @asynccontextmanager
    async def open(self):
        if not Path(self.path).exists():
            raise SinkUnavailable(f"there is no file {self.path} yet")
        yield Writer(self.path)

class Writer:
    most = 100

    def __init__(self, path):
        self.path = path

    async def send(self, events):
        answers = []
        with open(self.path, "ab") as file:
            for target, event in events:
                if event.json()["id"] == 13 and not Path("mended").exists():
                    answers.append(Undelivered("13 is not wanted here", again=False))
                else:
                    file.write(f"{target} {event.source} {event.id} ".encode() + event.data + b"\\n")
                    answers.append(None)
        return answers
'''


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = project(tmp_path / "shop", FUNCTIONS)
    (folder / "files.py").write_text(FILE_SINK)
    with open(folder / "faas.toml", "a") as toml:
        toml.write('[[sink]]\nname = "out"\ntype = "files:File"\npath = "done.txt"\n')
    return folder


async def test_what_a_function_sends_to_a_sink_leaves_the_bus_and_what_is_refused_can_be_sent_again(bus_url: str, shop: Path) -> None:
    ask, done = Faas(shop, NATS_URL=bus_url), shop / "done.txt"
    ask("functions", "sync")
    with ask.running("worker") as worker, ask.running("connect") as connect:
        worker.wait_for("worker ready")
        for number in (1, 13, 2):
            ask("publish", "orders.created", f'{{"id": {number}}}')
        away = await eventually(lambda: next((row for row in ask.json("sinks") if row["waiting"] == 3 and row.get("error")), None), 30)
        waiting = ask("peek", "out").stdout
        done.touch()
        row = await eventually(
            lambda: next((row for row in ask.json("sinks") if row.get("delivered") == 2 and row["dead_letters"] == 1), None), 30
        )
        [dead] = ask.json("dead", "list", "out")
        (shop / "mended").touch()
        ask("dead", "replay", "out")
        await eventually(lambda: len(done.read_text().splitlines()) == 3, 20)
        heard = worker.said
        assert connect.stop(signal.SIGTERM) == 0
    lines = [line.split(" ", 3) for line in done.read_text().splitlines()]

    assert (away["state"], away["error"]) == ("connecting", "there is no file done.txt yet")
    assert '"id":1' in waiting.replace(" ", "")
    assert (row["state"], row["waiting"], row["dead_letters"]) == ("sending", 0, 1)
    assert dead["reason"] == "13 is not wanted here"
    assert [(target, source, data) for target, source, _, data in lines] == [
        ("orders.done", "/shop/reserve", f'{{"id":{number}}}') for number in (1, 2, 13)
    ]
    assert heard.count("heard orders.created") == 3
    assert "heard out:orders.done" not in heard


async def test_a_function_that_sends_to_a_sink_that_is_not_there_does_not_start(bus_url: str, shop: Path) -> None:
    toml = shop / "faas.toml"
    toml.write_text(toml.read_text().replace('name = "out"', 'name = "outt"'))
    for command in (("check",), ("functions", "sync")):
        said = Faas(shop, NATS_URL=bus_url)(*command, code=78).stderr

        assert "function reserve sends to 'out:orders.done', and faas.toml has no [[sink]] with name = 'out'; did you mean 'outt'?" in said


async def test_an_event_emitted_to_a_sink_that_is_not_there_is_a_dead_letter_that_says_so(bus_url: str, shop: Path) -> None:
    ask = Faas(shop, NATS_URL=bus_url)
    with ask.running("worker") as worker:
        worker.wait_for("worker ready")
        ask("publish", "orders.lost", '{"id": 1}')
        await eventually(lambda: ask.json("dead", "list", "astray"), 20)
        [dead] = ask.json("dead", "list", "astray")

    assert "'elsewhere:orders.done' leaves through no [[sink]] of this project" in dead["reason"]


async def test_dev_runs_sinks_and_functions_know_them_from_other_queues(tmp_path: Path, shop: Path) -> None:
    ask, done = Faas(shop), shop / "done.txt"
    done.touch()
    with ask.running("dev") as dev:
        dev.wait_for("sinks: out")
        dev.wait_for("ready in")
        ask("publish", "orders.created", '{"id": 7}')
        await eventually(done.read_text, 20)
        rows = ask.json("functions")
        changes = ask.json("check", "--against", "bus")

    assert [row["function"] for row in rows] == ["astray", "everything", "reserve"]
    assert {row["change"] for row in changes} == {"same"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('typ = "files:File"', "sink 'out' does not say 'type'"),
        ('type = "kafkaa"', "there is no sink of type 'kafkaa'; did you mean 'kafka'?"),
        ('type = "files:File"\npth = "x"', "sink 'out' has no option 'pth'; did you mean 'path'?"),
        ('type = "files:File"\npath = 3', "sink 'out': Expected `str`, got `int`"),
        ('type = "files:File"\npath = "${NOT_SET}"', "needs the environment variable NOT_SET, which is not set"),
        ('type = "files:File"\npath = "x"\nretry = {attempts = 3}', "retry has no option 'attempts'; did you mean 'max_attempts'?"),
        ('type = "files:File"\npath = "x"\nretry = {max_attempts = 0}', "max_attempts=0 must be a whole number of at least 1"),
        ('type = "files:File"\npath = "x"\n[[sink]]\nname = "out"\ntype = "files:File"', "there is a sink 'out' already"),
        ('type = "files:File"\npath = "x"\n[[sink]]\nname = "reserve"\ntype = "files:File"\npath = "y"', "has the name of a function"),
    ],
)
async def test_a_sink_that_cannot_be_is_refused_with_its_line(shop: Path, line: str, says: str) -> None:
    toml = shop / "faas.toml"
    head = toml.read_text().partition("[[sink]]")[0]
    toml.write_text(f'{head}[[sink]]\nname = "out"\n{line}\n')
    said = Faas(shop)("check", code=78).stderr

    assert says in said
    assert "faas.toml:" in said
