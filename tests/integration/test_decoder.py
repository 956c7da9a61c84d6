"""A decoder runs apart: whatever it does, its connector goes on, and only the guilty record is refused."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

from broker_faas.connectors import pump as pump_module
from broker_faas.connectors.batch import Batch, Raw, Refused, Route
from broker_faas.connectors.decoder import Decoder, Decoding, decoded
from broker_faas.connectors.decoder_parts import process
from broker_faas.connectors.decoder_parts.frames import Kind
from broker_faas.connectors.pump import Pump
from broker_faas.errors import ConfigError, SourceUnavailable
from broker_faas.event import CloudEvent
from broker_faas.layout import MAX_DATA, faas_headers
from broker_faas.where import exact
from broker_faas.workers.zygote import scrubbed
from tests.helpers import eventually
from tests.sources import Scripted, Store
from tests.terminal import REPOSITORY

DECODERS = '''
import ctypes, os, signal, subprocess, sys, time
from pathlib import Path
from broker_faas import Reject, Retry

HERE = Path(__file__).parent

def told(data, headers):
    """Does what the data says."""
    match data.decode("latin-1").split(" ", 1):
        case ["hang"]: time.sleep(1000)
        case ["spin"]:
            while True: pass
        case ["crash"]: ctypes.string_at(0)
        case ["exit"]: os._exit(3)
        case ["sys.exit"]: sys.exit(4)
        case ["raise"]: raise ValueError("no magic byte")
        case ["nan"]: return {"n": float("nan")}
        case ["object"]: return object()
        case ["set"]: return {1, 2}
        case ["large"]: return "x" * (2 << 20)
        case ["none"]: return None
        case ["bytes"]: return b"\\x00\\xff"
        case ["text"]: return "größe"
        case ["number"]: return 1.5
        case ["list"]: return [1, None]
        case ["headers"]: return dict(headers)
        case ["environ"]: return sorted(os.environ)
        case ["size"]: return len(data)
        case ["print"]: print("told by a decoder"); sys.stderr.write("and on stderr\\n")
        case ["fd1"]: os.write(1, b"\\xffraw\\n"); subprocess.run(["echo", "by a child"])
        case ["child"]: return subprocess.Popen(["sleep", "1000"]).pid
        case ["reject"]: raise Reject("not ours")
        case ["retry"]:
            tries = HERE / "tries"
            tries.write_text(str(int(tries.read_text()) + 1 if tries.exists() else 1))
            if int(tries.read_text()) < 3: raise Retry("the registry is away")
        case ["pid"]: return os.getpid()
        case ["wait"]:
            (HERE / "waits").touch()
            while not (HERE / "go").exists(): time.sleep(0.01)
        case ["scribble"]:
            for fd in range(3, 256):
                try: os.write(fd, b"\\xff" * 100)
                except OSError: pass
        case [_]: return {"size": len(data)}
    return {"was": data.decode()}

async def later(data, headers): return {}
def short(data): return {}
number = 1
'''


def decoder(folder: Path, name: str = "decoders:told", code: str = DECODERS, patience: float = 60.0) -> Decoder:
    (folder / "decoders.py").write_text(textwrap.dedent(code))
    environ = scrubbed({**os.environ, "PYTHONPATH": str(REPOSITORY), "KAFKA_PASSWORD": "secret", "NATS_URL": "nats://secret@"})
    place = "faas.toml:12: connector 'c': decode"
    return Decoder(function=name, root=folder, place=place, connector="c", environ=environ, import_timeout=patience)


async def answers(decoding: Decoding, *data: bytes) -> list[tuple[Kind, bytes, str]]:
    return [(one.kind, one.data, one.text) for one in await decoding.decode([(one, {}) for one in data])]


@pytest.mark.parametrize(
    ("data", "kind", "made"),
    [
        (b"text", Kind.JSON, '"größe"'),
        (b"number", Kind.JSON, "1.5"),
        (b"list", Kind.JSON, "[1,null]"),
        (b"set", Kind.JSON, "[1,2]"),
        (b"none", Kind.NOTHING, ""),
        (b"abc", Kind.JSON, '{"size":3}'),
        (bytes(MAX_DATA), Kind.JSON, '{"size":1048576}'),
    ],
)
async def test_what_it_returns_becomes_the_data(tmp_path: Path, data: bytes, kind: Kind, made: str) -> None:
    async with decoder(tmp_path).open() as decoding:
        [(kind_, body, _)] = await answers(decoding, data)

    assert (kind_, body.decode()) == (kind, made)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"raise", r"the decoder raised ValueError \(decoders.py:\d+\): no magic byte"),
        (b"sys.exit", r"the decoder raised SystemExit \(decoders.py:\d+\): 4"),
        (b"nan", "NaN or an infinity"),
        (b"object", "data of type object cannot be written as JSON"),
        (b"large", "decoded data of 2,097,154 bytes exceeds the bus limit"),
        (b"reject", "the decoder refused it: not ours"),
        (b"exit", "the decoder's process ended: exit code 3"),
        (b"crash", "the decoder's process ended: SIGSEGV"),
        (b"hang", r"the decoder took longer than 0.5 s"),
        (b"spin", r"the decoder took longer than 0.5 s"),
        (b"scribble", "the decoder's process wrote what it must not"),
    ],
)
async def test_a_guilty_record_is_refused_and_its_neighbours_are_decoded(
    tmp_path: Path, data: bytes, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "DEADLINE", 0.5)
    async with decoder(tmp_path).open() as decoding:
        found = await answers(decoding, b"a", b"b", data, b"c", data, b"d")

    assert [kind for kind, _, _ in found] == [Kind.JSON, Kind.JSON, Kind.REFUSED, Kind.JSON, Kind.REFUSED, Kind.JSON]
    assert all(re.search(says, found[n][2]) for n in (2, 4)), found


async def test_it_sees_no_secrets_of_the_connector(tmp_path: Path) -> None:
    async with decoder(tmp_path).open() as decoding:
        [(_, environ, _)] = await answers(decoding, b"environ")

    assert {"PATH", "PYTHONPATH"} <= set(json.loads(environ))
    assert not {"KAFKA_PASSWORD", "NATS_URL"} & set(json.loads(environ))


async def test_what_it_prints_goes_to_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "broker_faas.output")
    async with decoder(tmp_path).open() as decoding:
        found = await answers(decoding, b"print", b"fd1", b"a")
        await eventually(lambda: "by a child" in "".join(record.text for record in caplog.records))  # type: ignore[attr-defined]
    said = "\n".join(record.text for record in caplog.records)  # type: ignore[attr-defined]

    assert [kind for kind, _, _ in found] == [Kind.JSON] * 3
    assert all(text in said for text in ("told by a decoder", "and on stderr", "\ufffdraw"))


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("decoders:nope", "x = 1", "module 'decoders' has no function 'nope'"),
        ("nowhere:told", "", "there is no module 'nowhere' in the project's folder"),
        ("decoders:told", "import nowhere", "No module named 'nowhere'"),
        ("decoders:told", "\n\n1 / 0", 'decoders.py", line 3'),
        ("decoders:told", "import os; os._exit(5)", "the process that imports 'decoders' died (exit code 5)"),
        ("decoders:told", "import time; time.sleep(1000)", "importing 'decoders' did not end within 3 s"),
        ("decoders:later", DECODERS, "decoders:later is async; a decoder is a plain function: def later(data, headers)"),
        ("decoders:short", DECODERS, "decoders:short cannot be called with (data, headers)"),
        ("decoders:number", DECODERS, "decoders:number is no function, but int"),
    ],
)
async def test_one_that_cannot_be_used_says_why_and_where(tmp_path: Path, name: str, code: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        async with decoder(tmp_path, name, code, 3.0 if "sleep(1000)" in code and code != DECODERS else 60.0).open():
            pass

    assert str(error.value).startswith("faas.toml:12: connector 'c': decode: ")
    assert says in str(error.value)


async def test_a_process_that_is_killed_from_outside_costs_no_record(tmp_path: Path) -> None:
    async with decoder(tmp_path).open() as decoding:
        before = decoding.pid
        asked = asyncio.ensure_future(answers(decoding, b"a", b"wait", b"b"))
        await eventually(lambda: (tmp_path / "waits").exists())
        os.kill(before, signal.SIGKILL)
        (tmp_path / "go").touch()
        found = await asked

        assert [kind for kind, _, _ in found] == [Kind.JSON] * 3
        assert decoding.pid != before


async def test_one_that_always_dies_for_no_record_ends_the_session(tmp_path: Path) -> None:
    """Not for ever: the source is opened again after a pause."""
    dying = "import os, threading, time\ndef told(data, headers): return 1\nimport broker_faas.connectors.decoder_parts.child as child\n"
    dying += "def serve(*_): os._exit(9)\nimport sys\nsys.modules['__main__'].serve = serve\n"
    async with decoder(tmp_path, code=dying).open() as decoding:
        with pytest.raises(SourceUnavailable, match="decoder decoders:told does not work: the decoder's process ended: exit code 9"):
            await answers(decoding, b"a")


async def test_leaving_it_ends_the_process_and_what_it_started(tmp_path: Path) -> None:
    async with decoder(tmp_path).open() as decoding:
        [(_, child, _)] = await answers(decoding, b"child")
        pid = decoding.pid

    assert not Path(f"/proc/{pid}").exists()
    await eventually(lambda: gone(int(child)))


def gone(pid: int) -> bool:
    """Or a zombie that nobody waits for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_cancelled_it_begins_anew_with_the_next_batch(tmp_path: Path) -> None:
    async with decoder(tmp_path).open() as decoding:
        asked = asyncio.ensure_future(answers(decoding, b"wait"))
        await eventually(lambda: (tmp_path / "waits").exists())
        asked.cancel()
        await asyncio.wait([asked])

        assert await answers(decoding, b"abc") == [(Kind.JSON, b'{"size":3}', "")]


async def test_new_code_takes_over_with_the_next_batch_and_broken_code_changes_nothing(tmp_path: Path) -> None:
    async with decoder(tmp_path, code="def told(data, headers): return 1").open() as decoding:
        first = decoding.pid
        before = await answers(decoding, b"a")
        decoder(tmp_path, code="def told(data, headers): return 'two'")
        await decoding.renew()
        after = await answers(decoding, b"a")
        decoder(tmp_path, code="1 / 0")
        with pytest.raises(ConfigError, match="ZeroDivisionError"):
            await decoding.renew()
        still = await answers(decoding, b"a")

    assert [data for [(_, data, _)] in (before, after, still)] == [b"1", b'"two"', b'"two"']
    assert gone(first)


async def test_killed_its_connector_leaves_no_process(tmp_path: Path) -> None:
    decoder(tmp_path)
    host = """
    import asyncio, os, sys
    from pathlib import Path
    from broker_faas.connectors.decoder import Decoder
    async def main():
        one = Decoder(function="decoders:told", root=Path(sys.argv[1]), place="", connector="c", environ=dict(os.environ))
        async with one.open() as decoding:
            print(decoding.pid, flush=True)
            await decoding.decode([(b"hang", {})])
    asyncio.run(main())
    """
    environ = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", textwrap.dedent(host), str(tmp_path)]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) as running:  # noqa: ASYNC220
        assert running.stdout
        pid = int(running.stdout.readline())
        running.kill()
        running.wait()
        await eventually(lambda: gone(pid))


# --- what a batch becomes -----------------------------------------------------------------------------------


def event(n: int, data: bytes | None, **more: str) -> CloudEvent:
    return CloudEvent(type="t", source="/s", id=str(n), data=data, **more)


def batch_of(items: Sequence[CloudEvent | Refused]) -> Batch:
    return Batch([("orders", items)], None, {}, lambda _, n: Raw(f"o/{n}", {"h": str(n)}, b"raw", None))


async def test_the_data_is_replaced_and_the_rest_of_an_event_stays(tmp_path: Path) -> None:
    native = event(0, b"headers", datacontenttype="application/avro", subject="x", partitionkey="k", contentencoding="gzip")
    items = [native, event(1, b"bytes", datacontenttype="a/b"), event(2, None), event(3, b"none"), event(4, b"raise")]
    async with decoder(tmp_path).open() as decoding:
        [(_, found)] = (await decoded(Route(name="c", source="/p/c"), batch_of(items), decoding)).parts
    json_, bytes_, nothing, none, refused = found

    assert json_ == event(0, b'{"h":"0"}', datacontenttype="application/json", subject="x", partitionkey="k")
    assert bytes_ == event(1, b"\x00\xff", datacontenttype="a/b")
    assert nothing == event(2, None)
    assert none == event(3, None)
    assert isinstance(refused, Refused)
    assert refused.event == items[4]


async def test_what_where_drops_is_not_decoded(tmp_path: Path) -> None:
    source, store = Scripted([event(n, b"%d" % n, datacontenttype="a/b" if n % 2 else "a/c") for n in range(6)]), Store()
    route = Route(name="c", source="/p/c", where=exact(datacontenttype="a/b"))
    async with asyncio.TaskGroup() as tasks:
        stop = asyncio.Event()
        pump = Pump(source, route, store, store.position, decoder(tmp_path))  # type: ignore[arg-type]
        task = tasks.create_task(pump.run(stop))
        await eventually(lambda: source.acked == 6, 30)
        stop.set()
        await task

    assert store.events == ["1", "3", "5"]
    assert [record.data for record in store.on("ev.")] == [b'{"size":1}'] * 3
    assert (pump.status.read, pump.status.stored, pump.status.filtered) == (6, 3, 3)


async def test_order_is_kept_and_what_cannot_be_decoded_is_quarantined_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "LEAST_PAUSE", 0.001)
    data = [b"raise" if n == 5 else b"exit" if n == 8 else b"retry" if n == 11 else b"%d" % n for n in range(20)]
    source, store = Scripted([event(n, one) for n, one in enumerate(data)]), Store()
    pump = Pump(source, Route(name="c", source="/p/c"), store, store.position, decoder(tmp_path))  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as tasks:
        stop = asyncio.Event()
        task = tasks.create_task(pump.run(stop))
        await eventually(lambda: source.acked == 20, 30)
        stop.set()
        await task
    first, second = store.on("quarantine.c")

    assert store.events == [str(n) for n in range(20) if n not in (5, 8)]
    assert (first.data, second.data) == (b"raise", b"exit")
    assert "no magic byte" in faas_headers(first.headers)["reason"]
    assert "exit code 3" in faas_headers(second.headers)["reason"]
    assert (tmp_path / "tries").read_text() == "3"
    assert pump.status.error == "the registry is away"
