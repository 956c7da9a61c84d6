"""`faas connect`, `faas connectors`, `faas quarantine`: as a person runs them, against a real bus."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker_faas.buses import store
from broker_faas.buses.nats import NatsBus
from broker_faas.buses.reading import read
from broker_faas.errors import BusUnavailable
from broker_faas.event import CloudEvent
from tests.helpers import eventually
from tests.markdown import blocks
from tests.terminal import COMMAND, Faas, Running, project

LINES = '''
"""A source that is a file of lines; what is acknowledged is written to another."""
import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from broker_faas.connectors.batch import Batch, Refused
from broker_faas.errors import SourceRefused
from broker_faas.event import CloudEvent

@dataclass(frozen=True, kw_only=True)
class Lines:
    path: str
    batch: int = 2

    def items(self, source, begin, n):
        lines = Path(self.path).read_bytes().splitlines()[begin:begin + n]
        return [
            Refused(f"line {begin + i}", "is not ASCII", {"n": str(begin + i)}, line) if not line.isascii()
            else CloudEvent(type="line", source=source, id=str(begin + i), data=line)
            for i, line in enumerate(lines)
        ]

    @asynccontextmanager
    async def open(self, source, positions):
        if not Path(self.path).exists():
            raise SourceRefused(f"there is no file {self.path}")
        yield Reader(self, source, int(await positions("file") or -1) + 1)

    async def peek(self, source, n):
        return Batch([("lines", self.items(source, 0, n))], None, {})

class Reader:
    def __init__(self, options, source, at):
        self.options, self.source, self.at = options, source, at

    async def __aiter__(self):
        while True:
            if items := self.options.items(self.source, self.at, self.options.batch):
                self.at += len(items)
                yield Batch([("lines", items)], self.at, {"file": str(self.at - 1)})
            else:
                await asyncio.sleep(0.05)

    async def ack(self, token):
        Path(self.options.path + ".acked").write_text(str(token))

    async def lag(self):
        return len(Path(self.options.path).read_bytes().splitlines()) - self.at
'''


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """A project with a connector of its own class."""
    folder = project(tmp_path / "shop", "")
    (folder / "lines.py").write_text(LINES)
    (folder / "orders.txt").write_bytes(b"one\ntwo\n\xff\xfe\nfour\n")
    with open(folder / "faas.toml", "a") as toml:
        toml.write('[[connector]]\nname = "orders"\ntype = "lines:Lines"\npath = "orders.txt"\nto = "shop.orders"\n')
        toml.write('where = {not = {exact = {id = "3"}}}\n')
    return folder


@contextmanager
def connecting(folder: Path, url: str) -> Iterator[Running]:
    with Faas(folder, NATS_URL=url).running("connect") as running:
        yield running


def faas(folder: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As a process: what it logs goes to its own stdout."""
    environ = Faas(folder, NATS_URL=url).environment
    return subprocess.run([*COMMAND, *arguments], cwd=folder, env=environ, capture_output=True, text=True, timeout=50, check=False)


async def test_what_a_source_has_becomes_events_and_a_second_start_stores_nothing_twice(bus_url: str, lines: Path) -> None:
    acked = lines / "orders.txt.acked"
    for _ in range(2):
        acked.unlink(missing_ok=True)
        with connecting(lines, bus_url) as running:
            with open(lines / "orders.txt", "ab") as file:
                file.write(b"more\n")
            last = len((lines / "orders.txt").read_bytes().splitlines())
            await eventually(lambda last=last: acked.exists() and acked.read_text() == str(last), 30)  # type: ignore[misc]
            assert running.stop(signal.SIGTERM) == 0
    async with NatsBus(bus_url).open() as bus:
        events = [CloudEvent.from_headers(one.headers, one.data) async for one in read(bus.connection, "events", ["ev.shop.orders.>"])]

    assert [(event.id, event.data) for event in events] == [("0", b"one"), ("1", b"two"), ("4", b"more"), ("5", b"more")]
    assert {event.source for event in events} == {"/shop/orders"}


async def test_a_person_sees_what_connectors_do_and_what_is_in_quarantine(bus_url: str, lines: Path) -> None:
    ask = Faas(lines, NATS_URL=bus_url)
    assert ask.json("connectors")[0]["state"] == "not running"
    with connecting(lines, bus_url):
        await eventually(lambda: (lines / "orders.txt.acked").exists(), 30)
        await eventually(lambda: ask.json("connectors")[0].get("read") == 4, 30)
        [row] = ask.json("connectors")
    [refused] = ask.json("quarantine", "list")
    shown = ask("quarantine", "show", str(refused["number"])).stdout
    ask("quarantine", "purge", "--connector", "orders", "--yes")

    assert (row["stored"], row["filtered"], row["quarantined"], row["state"]) == (2, 1, 1, "reading")
    assert (refused["connector"], refused["position"], refused["reason"], refused["size"]) == ("orders", "line 2", "is not ASCII", 2)
    assert "\\xff\\xfe" in shown
    assert ask.json("quarantine", "list") == []


async def test_a_dry_run_shows_the_events_and_acknowledges_nothing(bus_url: str, lines: Path) -> None:
    said = faas(lines, bus_url, "connect", "orders", "--dry-run").stdout.splitlines()

    assert said[0] == "orders: the next 4 events"
    assert '"data": "one"' in said[1]
    assert said[3:] == ["  line 2: quarantined: is not ASCII", "  3: dropped by where"]
    assert not (lines / "orders.txt.acked").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('paht = "x"\n', "connector 'orders' has no option 'paht'; did you mean 'path'?"),
        ("batch = true\n", "connector 'orders': Expected `int`, got `bool`"),
        ('[[connector]]\nname = "k"\ntype = "kafak"\n', "there is no connector of type 'kafak'"),
        ('[[connector]]\nname = "k"\ntype = "lines:Nope"\n', "lines has no class Nope"),
        ('[[connector]]\nname = "k"\ntype = "nowhere:Nope"\n', "there is no module 'nowhere'"),
        ('[[connector]]\nname = "k"\ntype = "lines:Lines"\npath = "${NOPE}"\n', "needs the environment variable NOPE, which is not set"),
    ],
)
def test_a_connector_that_cannot_be_made_is_78_and_says_where(bus_url: str, lines: Path, change: str, says: str) -> None:
    with open(lines / "faas.toml", "a") as toml:
        toml.write(change)
    done, checked = faas(lines, bus_url, "connect"), faas(lines, bus_url, "check")

    assert (done.returncode, checked.returncode) == (78, 78)
    assert done.stderr == checked.stderr
    assert says in done.stderr
    assert "faas.toml:" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_topic_that_no_function_has_a_queue_for_is_warned_of(bus_url: str, lines: Path) -> None:
    """Its events would be stored, and a function that is synced later would begin behind them."""
    unheard = "no function has a queue for this topic"
    with connecting(lines, bus_url) as running:
        running.wait_for(unheard)
        running.wait_for("shop.orders")
    (lines / "functions.py").write_text("from broker_faas import function\n@function(on='shop.*')\ndef ship(event): ...\n")
    faas(lines, bus_url, "functions", "sync")
    (acked := lines / "orders.txt.acked").unlink(missing_ok=True)
    with open(lines / "orders.txt", "ab") as file:
        file.write(b"more\n")
    with connecting(lines, bus_url) as running:
        await eventually(acked.exists, 30)
        said = running.said

    assert unheard not in said


DECODERS = """
def upper(data, headers):
    if data == b"two": raise ValueError("no upper two")
    return {"line": data.decode().upper(), "id": headers.get("id")}

async def later(data, headers): ...
"""


@pytest.fixture
def decoded(lines: Path) -> Path:
    """The same project with a decoder."""
    (lines / "decoders.py").write_text(DECODERS)
    with open(lines / "faas.toml", "a") as toml:
        toml.write('decode = "decoders:upper"\n')
    return lines


async def test_a_decoder_makes_the_data_of_events_and_a_dry_run_shows_it(bus_url: str, decoded: Path) -> None:
    dry = faas(decoded, bus_url, "connect", "orders", "--dry-run").stdout.splitlines()
    ask = Faas(decoded, NATS_URL=bus_url)
    with connecting(decoded, bus_url) as running:
        await eventually(lambda: ask.json("connectors")[0].get("read") == 4, 30)
        assert running.stop(signal.SIGTERM) == 0

    assert '"datacontenttype": "application/json", "data": {"line": "ONE", "id": "0"}' in dry[1]
    assert dry[2] == "  1: quarantined: the decoder raised ValueError (decoders.py:3): no upper two"
    assert dry[3:] == ["  line 2: quarantined: is not ASCII", "  3: dropped by where"]
    assert [json.loads(event.data or b"") for event in await on_bus(bus_url)] == [{"line": "ONE", "id": "0"}]
    assert [row["reason"][:20] for row in ask.json("quarantine", "list")] == ["the decoder raised V", "is not ASCII"]


@pytest.mark.parametrize(
    ("decode", "says"),
    [
        ("decoders", "decode must be a function of the project's, like decoders:avro"),
        ("decoders:nope", "connector 'orders': decode: module 'decoders' has no function 'nope'"),
        ("nowhere:avro", "connector 'orders': decode: there is no module 'nowhere' in the project's folder"),
        ("decoders:later", "connector 'orders': decode: decoders:later is async"),
    ],
)
def test_a_decoder_that_cannot_be_used_is_78_and_says_where(bus_url: str, decoded: Path, decode: str, says: str) -> None:
    toml = (decoded / "faas.toml").read_text().replace("decoders:upper", decode)
    (decoded / "faas.toml").write_text(toml)
    line = toml.splitlines().index(f'decode = "{decode}"') + 1
    done, checked = faas(decoded, bus_url, "connect"), faas(decoded, bus_url, "check")

    assert (done.returncode, checked.returncode) == (78, 78)
    assert done.stderr == checked.stderr
    assert says in done.stderr
    assert f"faas.toml:{line}: " in done.stderr
    assert "Traceback" not in done.stderr


async def on_bus(url: str) -> list[CloudEvent]:
    async with NatsBus(url).open() as bus:
        return [CloudEvent.from_headers(one.headers, one.data) async for one in read(bus.connection, "events", ["ev.>"])]


async def test_a_replay_translates_again_stores_what_is_an_event_now_and_keeps_the_rest(bus_url: str, decoded: Path) -> None:
    ask = Faas(decoded, NATS_URL=bus_url)
    with connecting(decoded, bus_url):
        await eventually(lambda: ask.json("connectors")[0].get("read") == 4, 30)
    before = ask("quarantine", "replay", "orders", code=1)
    (decoded / "decoders.py").write_text(DECODERS.replace('b"two"', 'b"never"'))
    [two, other] = ask.json("quarantine", "list")
    dry = ask("quarantine", "replay", "orders", "--dry-run", code=1)
    assert len(ask.json("quarantine", "list")) == 2
    done = ask("quarantine", "replay", "orders", str(two["number"]))
    after = ask("quarantine", "replay", "orders", "-o", "json", code=1)

    assert "no upper two" in before.stdout
    assert before.stdout.splitlines()[-1] == "replayed 0 records of orders"
    assert dry.stdout.splitlines()[0] == f"{two['number']}: would be 1 on shop.orders"
    assert dry.stdout.splitlines()[-1] == "would replay 1 record of orders"
    assert done.stdout == "replayed 1 record of orders\n"
    assert [(event.id, json.loads(event.data or b"")["line"]) for event in await on_bus(bus_url)] == [("0", "ONE"), ("1", "TWO")]
    assert [row["number"] for row in ask.json("quarantine", "list")] == [other["number"]]
    [row] = json.loads(after.stdout)
    assert (row["number"], row["id"]) == (other["number"], None)
    assert "keeps too little of a record" in row["reason"]


async def test_a_replay_that_died_before_it_deleted_stores_nothing_twice(
    bus_url: str, decoded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late: the bus is told to forget ids."""
    ask = Faas(decoded, NATS_URL=bus_url)
    with connecting(decoded, bus_url):
        await eventually(lambda: ask.json("connectors")[0].get("read") == 4, 30)
    (decoded / "decoders.py").write_text(DECODERS.replace('b"two"', 'b"never"'))
    [two, _] = ask.json("quarantine", "list")
    deleting = store.delete

    async def dies(*_: object, **__: object) -> bool:
        raise BusUnavailable("killed")

    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", dies)
        ask("quarantine", "replay", "orders", str(two["number"]), code=75)
    async with NatsBus(bus_url).open() as bus:
        config = (await store.info(bus, "events"))["config"]
        await bus.api("STREAM.UPDATE.events", config | {"duplicate_window": int(1e8)})
        await asyncio.sleep(0.5)  # time that ids are remembered
    assert store.delete is deleting
    done = ask("quarantine", "replay", "orders", str(two["number"]))

    assert done.stdout == "replayed 1 record of orders\n"
    assert [event.id for event in await on_bus(bus_url)] == ["0", "1"]
    assert len(ask.json("quarantine", "list")) == 1


async def test_a_replay_of_what_this_server_does_not_take_stays_and_takes_nothing_along(bus_url: str, decoded: Path) -> None:
    (decoded / "orders.txt").write_bytes(b"two\n" * 3)
    ask = Faas(decoded, NATS_URL=bus_url)
    with connecting(decoded, bus_url):
        await eventually(lambda: ask.json("connectors")[0].get("read") == 3, 30)
    (decoded / "decoders.py").write_text('def upper(data, headers): return "x" * (3000 if headers["id"] == "1" else 3)\n')
    async with NatsBus(bus_url).open() as bus:
        config = (await store.info(bus, "events"))["config"]
        await bus.api("STREAM.UPDATE.events", config | {"max_msg_size": 2000})
    done = ask("quarantine", "replay", "orders", code=1)
    [left] = ask.json("quarantine", "list")

    assert [event.id for event in await on_bus(bus_url)] == ["0", "2"]
    assert left["position"] == "/shop/orders 1"
    assert "exceeds the bus limit" in done.stdout
    assert done.stdout.splitlines()[-1] == "replayed 2 records of orders"


def test_a_replay_of_what_is_not_there_says_so(bus_url: str, decoded: Path) -> None:
    ask = Faas(decoded, NATS_URL=bus_url)
    with connecting(decoded, bus_url) as running:
        running.wait_for("connectors run")

    assert "there is no connector 'order'; did you mean 'orders'?" in ask("quarantine", "replay", "order", code=78).stderr
    assert "nothing in quarantine has the number 99" in ask("quarantine", "replay", "orders", "99", code=1).stderr


def test_a_source_that_refuses_is_78(bus_url: str, lines: Path) -> None:
    (lines / "orders.txt").unlink()
    done = faas(lines, bus_url, "connect")

    assert done.returncode == 78
    assert "there is no file orders.txt" in done.stderr


def test_a_dry_run_of_a_kafka_that_is_away_says_so_once(bus_url: str, lines: Path, unused_tcp_port: int) -> None:
    with open(lines / "faas.toml", "a") as toml:
        toml.write(f'[[connector]]\nname = "k"\ntype = "kafka"\nservers = "127.0.0.1:{unused_tcp_port}"\ngroup = "g"\ntopics = ["t"]\n')
    done = faas(lines, bus_url, "connect", "k", "--dry-run")

    assert done.returncode == 75
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"127.0.0.1', {unused_tcp_port}" in done.stderr


async def test_the_connector_of_your_own_that_the_docs_show_runs(bus_url: str, tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs/connectors/index.md"
    folder = project(tmp_path / "shop", "")
    (folder / "numbers_.py").write_text(next(block.text for block in blocks(page) if "class Counter" in block.text))
    with open(folder / "faas.toml", "a") as toml:
        toml.write('[[connector]]\nname = "n"\ntype = "numbers_:Counter"\nevery = 0.01\n')
    dry = faas(folder, bus_url, "connect", "--dry-run").stdout
    with connecting(folder, bus_url):
        ask = Faas(folder, NATS_URL=bus_url)
        await eventually(lambda: ask.json("connectors")[0].get("stored", 0) > 5, 30)

    assert dry.startswith('n: the next 10 events\n  numbers: {"specversion": "1.0", "id": "0", "source": "/shop/n"')
