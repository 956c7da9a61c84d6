"""docs/reference/executor-protocol.md says what the code does, and is enough to write an executor from."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from broker_faas import decide, errors, pipe
from broker_faas.errors import ExecutorError
from broker_faas.workers import child, executor, frames

from ..executors import REPO, project
from ..helpers import eventually

PAGE = (REPO / "docs/reference/executor-protocol.md").read_text()


def rows(heading: str, columns: int) -> list[list[str]]:
    """The cells of the first table after a heading or phrase."""
    lines = PAGE[PAGE.index(heading) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    cells = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        cells.append([cell.strip().strip("`") for cell in line.strip("|").split("|")][:columns])
    return cells


def test_the_kinds_of_frames_are_those_of_the_code() -> None:
    stated = {(kind, direction) for kind, direction in rows("## Frames", 2)}
    code = {(kind.__struct_config__.tag, "worker → executor") for kind in get_args(frames.ToExecutor)}
    code |= {(kind.__struct_config__.tag, "executor → worker") for kind in get_args(frames.ToWorker)}

    assert stated == code


@pytest.mark.parametrize("kind", [*get_args(frames.ToExecutor), *get_args(frames.ToWorker)])
def test_each_array_has_as_many_elements_as_the_code_encodes(kind: type[msgspec.Struct]) -> None:
    tag = kind.__struct_config__.tag
    (shown,) = [array for stated, _, array in rows("## Frames", 3) if stated == tag]
    example = shown[: shown.index("`")] if "`" in shown else shown
    elements = re.sub(r"\[[^\[\]]*\]", "list", example[1:-1]).split(",")

    assert len(elements) == 1 + len(kind.__struct_fields__)


def test_the_keys_of_hello_and_ready_are_those_of_the_code() -> None:
    assert tuple(key for (key,) in rows("### hello", 1)) == frames.Setup.__struct_fields__
    assert frames.About.__struct_fields__ == ("pid", "functions")
    assert "`about` is a map with `pid` (int) and `functions`" in PAGE


def test_the_fields_of_calls_and_outcomes_are_those_of_the_code() -> None:
    assert [name for (name,) in rows("### run", 1)] == ["id", "function", "topic", "attempt", "headers", "data"]
    assert len(get_args(frames.RunCall)) == 6
    assert tuple(name for (name,) in rows("### done", 1)) == frames.Outcome._fields


def test_the_status_codes_are_those_of_the_code() -> None:
    stated = {name: int(code) for code, name in rows("| status | name |", 2)}
    code = {name: getattr(decide, name) for name in ("OK", "FAILED", "RETRY", "REJECTED", "SKIPPED", "INVALID", "TIMEOUT")}

    assert stated == code
    assert f"`CRASHED` ({decide.CRASHED})" in PAGE


@pytest.mark.parametrize(
    "fact",
    [
        f"# Executor protocol, version {frames.VERSION}\n",
        f"at most {frames.MAX_FRAME} (32 MiB)",
        f"shared memory of {frames.SLOTS * frames.SLOT} bytes",
        f"{frames.SLOTS} slots of {frames.SLOT} bytes",
        f"| {child.SOCKET} | the socket",
        f"| {child.PAGE} | the page",
        f"at most {executor.MAX_REASON} characters",
        f"the last {executor.MAX_DETAIL} characters",
        f"0 … {errors.MAX_DELAY:.0f} ",
        f"above {pipe.OUTPUT_RATE >> 10} KiB a second",
    ],
)
def test_the_numbers_are_those_of_the_code(fact: str) -> None:
    assert fact in PAGE


# Written from the page alone: plain Python stands for any language, with no library of ours and its own msgpack.
FOREIGN = r"""
import hashlib, mmap, os, socket, struct, sys, time

def unpack(b, i):
    t = b[i]; i += 1
    if t < 0x80: return t, i
    if t >= 0xe0: return t - 256, i
    if t < 0x90 or t in (0xde, 0xdf):
        n, i = size(b, i, t, 0x80, 15, {0xde: 2, 0xdf: 4}); out = {}
        for _ in range(n): k, i = unpack(b, i); out[k], i = unpack(b, i)
        return out, i
    if t < 0xa0 or t in (0xdc, 0xdd):
        n, i = size(b, i, t, 0x90, 15, {0xdc: 2, 0xdd: 4}); out = []
        for _ in range(n): v, i = unpack(b, i); out.append(v)
        return out, i
    if t < 0xc0 or t in (0xd9, 0xda, 0xdb): n, i = size(b, i, t, 0xa0, 31, {0xd9: 1, 0xda: 2, 0xdb: 4}); return b[i:i + n].decode(), i + n
    if t in (0xc4, 0xc5, 0xc6): n, i = size(b, i, t, 0, 0, {0xc4: 1, 0xc5: 2, 0xc6: 4}); return b[i:i + n], i + n
    if t in (0xc0, 0xc2, 0xc3): return {0xc0: None, 0xc2: False, 0xc3: True}[t], i
    f, n = {0xca: (">f", 4), 0xcb: (">d", 8), 0xcc: (">B", 1), 0xcd: (">H", 2), 0xce: (">I", 4), 0xcf: (">Q", 8),
            0xd0: (">b", 1), 0xd1: (">h", 2), 0xd2: (">i", 4), 0xd3: (">q", 8)}[t]
    return struct.unpack(f, b[i:i + n])[0], i + n

def size(b, i, t, base, mask, longer):
    if t not in longer: return t - base & mask, i
    return int.from_bytes(b[i:i + longer[t]], "big"), i + longer[t]

def pack(v):
    if v is None: return b"\xc0"
    if isinstance(v, int): return b"\xcf" + struct.pack(">Q", v)
    if isinstance(v, float): return b"\xcb" + struct.pack(">d", v)
    if isinstance(v, bytes): return b"\xc6" + struct.pack(">I", len(v)) + v
    if isinstance(v, str): return b"\xdb" + struct.pack(">I", len(v.encode())) + v.encode()
    if isinstance(v, dict): return b"\xdf" + struct.pack(">I", len(v)) + b"".join(pack(x) for kv in v.items() for x in kv)
    return b"\xdd" + struct.pack(">I", len(v)) + b"".join(map(pack, v))

sock = socket.socket(fileno=3).makefile("rwb")
page = mmap.mmap(4, 16384)

def send(*frame):
    body = pack(frame); sock.write(struct.pack(">I", len(body)) + body); sock.flush()

while head := sock.read(4):
    kind, *rest = unpack(sock.read(struct.unpack(">I", head)[0]), 0)[0]
    if kind == "hello":
        setup = rest[0]
        send("ready", {"pid": os.getpid(), "functions": [f["name"] for f in setup["functions"]]})
    elif kind == "drain":
        sys.exit(0)
    elif kind == "run":
        ok, others = [], []
        for id, function, topic, attempt, headers, data in rest[0]:
            page[8:16] = struct.pack("=Q", time.monotonic_ns()); page[0:8] = struct.pack("=Q", id)
            attributes = dict(line.split(": ", 1) for line in headers.decode().split("\r\n") if line.startswith("ce-"))
            if data == b'"quiet"': ok.append(id)
            elif data == b'"crash"': os.abort()
            elif data == b'"retry"': others.append([id, 2, "later", "", 60.0, []])
            else:
                print("to fd 1", flush=True)
                send("log", [[id, "stdout", "seen " + attributes["ce-id"]]])
                cause = "\0".join([topic, attributes["ce-source"], attributes["ce-id"]])
                h = hashlib.blake2b(cause.encode(), digest_size=11).hexdigest()
                source = "/%s/%s" % (setup["project"], setup["functions"][function]["name"])
                output = {"id": h + ".0", "source": source, "type": "reply", "secret": os.environ["SECRET"]}
                others.append([id, 0, "", "", None, [["replies", output, data]]])
            page[0:8] = bytes(8)
        send("done", ok, others)
"""
DECLARED = """
from broker_faas import function
@function(on="t", sends="replies")
async def foreign(event, ctx):
    return "never run in Python"
"""


async def test_an_executor_written_from_the_page_alone_works(tmp_path: Path) -> None:
    (tmp_path / "foreign.py").write_text(FOREIGN)
    command = (sys.executable, "-S", str(tmp_path / "foreign.py"))
    async with project(tmp_path, app=DECLARED) as opened:
        running = await opened.start("foreign", command=command, env={"SECRET": "known"})
        answered = await running.call(data="hello")
        many = running.send(n=300, data="quiet")
        await eventually(lambda: len(running.answers) == 301)
        retried = await running.call(data="retry")
        await eventually(lambda: running.printed("output"))
        (crashed,) = running.send(data="crash")
        exit = await running.exit()

        # The id is what the Python runtime would have given the output.
        python = await (await opened.start("foreign")).call(data="hello")
        assert answered.outputs[0][1]["id"] == python.outputs[0][1]["id"]
        assert answered.outputs[0][1]["source"] == python.outputs[0][1]["source"]
        assert answered.outputs[0][1]["secret"] == "known"
        assert running.printed("stdout") == "seen 1"
        assert running.printed("output") == "to fd 1"
        assert all(running.answers[id].status == decide.OK for id in many)
        assert (retried.status, retried.after) == (decide.RETRY, 60.0)
        assert (exit.reason, exit.running) == ("SIGABRT", {crashed})


async def test_a_foreign_executor_drains(tmp_path: Path) -> None:
    (tmp_path / "foreign.py").write_text(FOREIGN)
    async with project(tmp_path, app=DECLARED) as opened:
        running = await opened.start("foreign", command=(sys.executable, "-S", str(tmp_path / "foreign.py")))
        running.executor.drain()

        assert (await running.exit()).reason == "drained"


async def test_a_command_that_does_not_exist_says_so(tmp_path: Path) -> None:
    async with project(tmp_path, app=DECLARED) as opened:
        with pytest.raises(ExecutorError, match="command '/nowhere/node' cannot be started: No such file or directory"):
            await opened.start("foreign", command=("/nowhere/node", "x.js"))
