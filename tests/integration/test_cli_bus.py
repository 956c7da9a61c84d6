"""Commands against a bus: a real server, a worker in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker_faas.buses.nats import NatsBus

from ..terminal import COMMAND, Faas, project

pytestmark = pytest.mark.timeout(90)

NOTE = "note: this bus is not known to be durable: name its monitoring port, monitor_url, in faas.toml\n"
FUNCTIONS = """
import os, time
from pathlib import Path
from broker_faas import CloudEvent, Reject, RetryPolicy, function

@function(on="orders.created", retry=RetryPolicy(max_attempts=2, min_backoff=0.01))
async def reserve(event: CloudEvent) -> None:
    \"\"\"Reserve what was ordered.\"\"\"
    if not Path("mended").exists() and event.json().get("bad"):
        raise ValueError(f"no stock for {event.json()['id']}")
    with open("ran.txt", "a") as file:
        file.write(f"{event.json()['id']}\\n")

@function(on="orders.*")
async def audit(event: CloudEvent) -> None: ...

@function(on="slow.things")
def slow(event: CloudEvent) -> None:
    time.sleep(event.json())
    Path("slept.txt").write_text("yes")
"""


@pytest.fixture
def faas(tmp_path: Path, bus_url: str) -> Faas:
    return Faas(project(tmp_path / "shop", FUNCTIONS), NATS_URL=bus_url)


@pytest.fixture
def empty(tmp_path: Path, bus_url: str) -> Faas:
    return Faas(project(tmp_path / "empty", "", name="empty"), NATS_URL=bus_url)


def wait(condition: Callable[[], Any], timeout: float = 20.0) -> Any:
    deadline = time.monotonic() + timeout
    while not (seen := condition()):
        assert time.monotonic() < deadline, f"not true within {timeout:g} s"
        time.sleep(0.05)
    return seen


def ran(faas: Faas) -> list[str]:
    path = faas.folder / "ran.txt"
    return path.read_text().splitlines() if path.exists() else []


# --- a bus that nobody has used -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lag"], f"{NOTE}There are no queues on this bus yet. Start a worker ('faas dev' or 'faas worker'), or 'faas functions sync'.\n"),
        (["events"], "No events are kept. Publish one: faas publish orders.created '{\"id\": 1}'\n"),
        (["events", "a.b"], "No events on a.b are kept. Publish one: faas publish a.b '{\"id\": 1}'\n"),
        (["dead", "list"], "No dead letters.\n"),
        (["dead", "list", "--group"], "No dead letters.\n"),
        (["peek", "reserve"], "Nothing waits for reserve; 'faas lag' counts what is scheduled for later.\n"),
    ],
    ids=" ".join,
)
def test_an_empty_bus_is_listed_kindly(empty: Faas, arguments: list[str], said: str) -> None:
    done = empty(*arguments)

    assert (done.stdout, done.stderr) == ("", said)
    assert empty.json(*arguments) == []


def test_a_project_without_functions_says_how_to_make_one(empty: Faas) -> None:
    assert (
        empty("functions").stderr == f"{NOTE}No functions in functions, and no queues on the bus. Mark a function with @function(on=…).\n"
    )
    assert "Mark a function with @function(on=…)." in empty("check", code=1).stderr


def test_doctor_of_an_empty_bus_says_what_to_do(faas: Faas) -> None:
    findings = {one["check"]: one for one in faas.json("doctor")}

    assert (findings["streams"]["says"], findings["streams"]["do"]) == (
        "this bus has never been used",
        "Start a worker: faas dev, or faas worker.",
    )
    assert findings["project"]["says"] == "shop; functions: audit, reserve, slow"
    assert (findings["bus"]["status"], findings["durability"]["status"]) == ("ok", "warn")


# --- publish ------------------------------------------------------------------------------------------------


def test_publishing_to_nobody_says_so_and_stores_it(faas: Faas) -> None:
    done = faas("publish", "nobody.hears", '{"id": 1}', "--key", "42", "--header", "tenant=a", "--id", "7", "--subject", "s", "--type", "t")

    assert done.stdout == "stored 1 event on nobody.hears; id 7\n"
    assert (
        done.stderr == "note: no function listens to nobody.hears yet, so nothing will run. 'faas functions' shows who listens to what.\n"
    )
    (row,) = faas.json("events", "nobody.hears")
    event = row["event"]
    assert event.pop("time")
    assert event == {
        "specversion": "1.0", "id": "7", "source": "/shop/publish", "type": "t", "subject": "s", "partitionkey": "42", "tenant": "a",
        "datacontenttype": "application/json", "data": {"id": 1},
    }  # fmt: skip


def test_the_same_id_is_stored_once(faas: Faas) -> None:
    faas("publish", "a.b", "1", "--id", "7")
    said = faas("publish", "a.b", "1", "--id", "7").stdout

    assert said == "stored 0 events on a.b; 1 more were there already (same id within 2 minutes); id 7\n"


def test_a_file_is_published_in_order_and_again_with_its_ids_only_once(faas: Faas) -> None:
    (faas.folder / "o.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(2500)))
    first = faas("publish", "a.b", "-f", "o.jsonl", "--id", "run").stdout
    again = faas("publish", "a.b", "-f", "o.jsonl", "--id", "run").stdout

    assert re.match(r"stored 2,500 events on a.b in .* \([\d,]+/s\)\n", first)
    assert again.endswith("; 2,500 more were there already (same id within 2 minutes)\n")
    assert [row["event"]["data"]["n"] for row in faas.json("events", "a.b", "-n", "2500")] == [*range(2500)]


def test_a_file_with_bad_lines_is_refused_before_anything_is_sent(faas: Faas) -> None:
    (faas.folder / "o.jsonl").write_text('{"n": 1}\n{"n": \n{"specversion": "1.0", "id": "1", "type": "t"}\n')
    done = faas("publish", "a.b", "-f", "o.jsonl", code=1)

    lines = done.stderr.splitlines()
    assert lines[0].startswith("o.jsonl:2: not JSON: ")
    assert lines[1] == "o.jsonl:3: attribute 'source' is missing; it is required"
    assert lines[2] == "faas: 2 bad lines in o.jsonl; nothing was sent. Mend them, or leave them out: --skip-bad."
    assert faas.json("events") == []


def test_bad_lines_can_be_left_out(faas: Faas) -> None:
    (faas.folder / "o.jsonl").write_text('{"n": 1}\n{"n": \n{"n": 3}\n')
    done = faas("publish", "a.b", "-f", "o.jsonl", "--skip-bad")

    assert "stored 2 events on a.b" in done.stdout
    assert "1 bad line left out" in done.stderr
    assert done.stderr.count("o.jsonl:2: not JSON") == 1


def test_a_pipe_is_sent_as_it_comes_and_ends_at_its_first_bad_line(faas: Faas) -> None:
    done = subprocess.run(
        f"(echo 1; echo 2; echo '{{'; echo 4) | {COMMAND[0]} -c '{COMMAND[2]}' publish a.b -f -",
        shell=True, cwd=faas.folder, env=faas.environment, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 1
    assert "stdin:3: not JSON" in done.stderr
    assert re.search(r"faas: stored 2 events on a.b in .*, up to the bad line. Mend it, or leave such lines out: --skip-bad.", done.stderr)
    assert [row["event"]["data"] for row in faas.json("events")] == [1, 2]


def test_a_line_of_a_slow_pipe_is_stored_before_the_next_one_comes(faas: Faas) -> None:
    process = subprocess.Popen(
        [*COMMAND, "publish", "a.b", "-f", "-"],
        cwd=faas.folder,
        env=faas.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    process.stdin.write('{"n": 1}\n')
    process.stdin.flush()
    wait(lambda: [row["event"]["data"]["n"] for row in faas.json("events")] == [1])
    said, _ = process.communicate('{"n": 2}\n')

    assert process.returncode == 0
    assert "stored 2 events" in said


def test_the_byte_order_mark_of_a_file_is_no_part_of_its_first_event(faas: Faas) -> None:
    (faas.folder / "o.jsonl").write_bytes(b'\xef\xbb\xbf{"n": 1}\n{"n": 2}\n')
    faas("publish", "a.b", "-f", "o.jsonl")

    assert [row["event"]["data"]["n"] for row in faas.json("events", "a.b")] == [1, 2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-f", "o.jsonl", "--rate", "nan"], "--rate must be a number above 0."),
        (["1", "--delay", "99999999d"], "'99999999d' is more than 100 years"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_numbers_that_nobody_can_wait_for_are_refused(faas: Faas, options: list[str], said: str) -> None:
    (faas.folder / "o.jsonl").write_text("1\n")
    refused = faas("publish", "a.b", *options, code=2)

    assert said in refused.stderr
    assert faas.json("events") == []


def test_a_closed_standard_input_is_no_file_to_publish(faas: Faas) -> None:
    done = subprocess.run(
        ["sh", "-c", f"exec {COMMAND[0]} -c '{COMMAND[2]}' publish a.b -f - <&-"],
        cwd=faas.folder, env=faas.environment, capture_output=True, text=True,
    )  # fmt: skip

    assert (done.returncode, "standard input is closed." in done.stderr) == (2, True)


def test_publishing_goes_on_when_nobody_reads_its_output(faas: Faas) -> None:
    (faas.folder / "o.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(300)))
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, "publish", "a.b", "-f", "o.jsonl"],
        cwd=faas.folder,
        env=faas.environment,
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=writer,
    )
    os.close(writer)

    assert done.returncode == 0
    assert len(faas.json("events", "-n", "300")) == 300


def test_a_delayed_event_is_delivered_when_it_is_due(faas: Faas) -> None:
    with faas.running("worker") as worker:
        worker.wait_for("worker ready")
        said = faas("publish", "orders.created", '{"id": 1}', "--delay", "1500ms").stdout
        stored = time.monotonic()

        assert re.match(r"stored 1 event on orders.created, due \d{4}-\d\d-\d\d \d\d:\d\d:\d\d.\d{3}[+-]\d\d:\d\d; id ", said)
        wait(lambda: ran(faas) == ["1"])
        assert time.monotonic() - stored > 0.5


# --- worker -------------------------------------------------------------------------------------------------


def test_a_worker_tells_systemd_logs_json_and_drains_on_sigterm(faas: Faas, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        with faas.running("worker", NOTIFY_SOCKET=str(tmp_path / "notify")) as worker:
            heard = [systemd.recv(100)]
            faas("publish", "slow.things", "1.5")
            wait(lambda: any(row["in_progress"] for row in faas.json("lag")))
            code = worker.stop(signal.SIGTERM)
            heard.append(systemd.recv(100))

    assert (heard, code) == ([b"READY=1", b"STOPPING=1"], 0)
    assert (faas.folder / "slept.txt").exists()  # what ran was finished
    logs = [json.loads(line) for line in worker.lines]
    assert {"message": "worker ready", "level": "info"}.items() <= next(one for one in logs if one["message"] == "worker ready").items()
    assert [row["total"] for row in faas.json("lag")] == [0, 0, 0]


def test_a_second_signal_stops_at_once_and_hands_back(faas: Faas) -> None:
    with faas.running("worker") as worker:
        worker.wait_for("worker ready")
        faas("publish", "slow.things", "30")
        wait(lambda: any(row["in_progress"] for row in faas.json("lag")))
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for("drain")
        code = worker.stop(signal.SIGTERM, timeout=10)

    assert code == 1
    assert "faas: stopped at once; what was not finished runs again when a worker starts." in worker.said
    assert sum(row["total"] for row in faas.json("lag")) == 1


def test_what_is_shown_of_a_worker_adds_up(faas: Faas) -> None:
    (faas.folder / "o.jsonl").write_text("".join(f'{{"id": {n}, "bad": {str(n % 10 == 0).lower()}}}\n' for n in range(200)))
    with faas.running("worker") as worker:
        worker.wait_for("worker ready")
        faas("publish", "orders.created", "-f", "o.jsonl")
        seen = [faas.json("functions") for _ in range(3)]
        wait(lambda: sum(row["total"] for row in faas.json("lag")) == 0)
        seen.append(faas.json("functions"))
        said = faas("functions").stdout

    for rows in seen:
        for row in rows:
            assert row["accepted"] == row["done"] + row["dead"] + row["discarded"] + row["handed_back"] + row["held"]
    (reserve,) = [row for row in seen[-1] if row["function"] == "reserve"]
    assert (reserve["accepted"], reserve["done"], reserve["dead"], reserve["dead_letters"]) == (200, 180, 20, 20)
    assert said.splitlines()[0].split("  ")[0] == "function"
    assert "held" in said.splitlines()[0]


# --- dead letters -------------------------------------------------------------------------------------------


def test_dead_letters_are_listed_shown_replayed_and_gone(faas: Faas) -> None:
    with faas.running("worker") as worker:
        worker.wait_for("worker ready")
        for n in (1, 2, 3):
            faas("publish", "orders.created", json.dumps({"id": n, "bad": True}))
        letters = wait(lambda: len(found := faas.json("dead", "list")) == 3 and found)
        (group,) = faas.json("dead", "list", "--group")
        shown = faas("dead", "show", str(letters[0]["seq"])).stdout
        document = faas.json("dead", "show", str(letters[0]["seq"]))
        dry = faas("dead", "replay", "--all", "--dry-run").stdout
        (faas.folder / "mended").touch()
        one = faas("dead", "replay", str(letters[0]["seq"])).stdout
        rest = faas("dead", "replay", "--group", group["fingerprint"], "--rate", "100").stdout
        wait(lambda: sorted(ran(faas)) == ["1", "2", "3"])

    assert [letter["reason"] for letter in letters] == [f"ValueError: no stock for {n}" for n in (1, 2, 3)]
    assert (group["count"], group["function"]) == (3, "reserve")
    for text in ("ValueError: no stock for 1", "shop--reserve", "functions.py", "raise ValueError", '"bad": true', "attempts     2"):
        assert text in shown
    assert document["event"]["data"] == {"id": 1, "bad": True}
    assert dry == "would replay 3 dead letters to reserve\n"
    assert (one, rest) == ("replayed 1 dead letter to reserve\n", "replayed 2 dead letters to reserve\n")
    assert faas.json("dead", "list") == []
    assert faas("dead", "replay", "--all", code=1).stderr.startswith("faas: there are no dead letters.")
    assert (
        faas("dead", "show", "1", code=1).stderr == "faas: there is no dead letter 1 (any more); `faas dead list` shows those there are\n"
    )


def test_dead_letters_are_purged_only_when_that_is_meant(faas: Faas) -> None:
    with faas.running("worker") as worker:
        worker.wait_for("worker ready")
        faas("publish", "orders.created", '{"id": 1, "bad": true}')
        wait(lambda: faas.json("dead", "list"))
    asked = faas("dead", "purge", "reserve", code=2)
    purged = faas("dead", "purge", "reserve", "--yes").stdout

    assert asked.stderr == "faas: Discard 1 dead letter for good? There is nobody to ask: say --yes.\n"
    assert re.fullmatch(r"reserve: 1 dead letter, the latest failed .*\ndiscarded 1 dead letter\n", purged)
    assert faas.json("dead", "list") == []
    assert "which ones?" in faas("dead", "purge", "--yes", code=2).stderr


# --- queues -------------------------------------------------------------------------------------------------


def test_queues_are_made_before_workers_start_and_hold_what_comes(faas: Faas) -> None:
    made = faas("functions", "sync").stdout
    again = faas("functions", "sync").stdout
    faas("publish", "orders.created", '{"id": 1}')
    lag = {row["function"]: row["waiting"] for row in faas.json("lag")}
    (peeked,) = faas.json("peek", "reserve")

    assert made == "".join(f"shop--{name}: new: starts at new events\n" for name in ("audit", "reserve", "slow"))
    assert again == "Every function has its queue; nothing to do.\n"
    assert lag == {"audit": 1, "reserve": 1, "slow": 0}
    assert (peeked["state"], peeked["topic"], peeked["event"]["data"]) == ("waiting", "orders.created", {"id": 1})
    assert "there is no queue shop--nobody on the bus; `faas functions` lists them" in faas("peek", "nobody", code=1).stderr


def test_a_queue_without_function_is_named_and_pruned_only_when_that_is_meant(faas: Faas) -> None:
    faas("functions", "sync")
    faas("publish", "orders.created", '{"id": 1}')
    code = FUNCTIONS.replace('@function(on="orders.*")\n', "")
    (faas.folder / "functions.py").write_text(code)
    listed = {row["function"]: row["note"] for row in faas.json("functions")}
    asked = faas("functions", "prune", code=2)
    pruned = faas("functions", "prune", "--yes").stdout

    assert listed == {"reserve": "", "slow": "", "audit": "its function is gone: 'faas functions prune' deletes it"}
    assert "Delete 1 queue? There is nobody to ask: say --yes." in asked.stderr
    assert pruned == "shop--audit: 1 event would be discarded\ndeleted 1 queue, discarded 1 event\n"
    assert faas("functions", "prune").stdout == "Every queue has its function; nothing to prune.\n"


def test_check_against_the_bus_says_what_a_deploy_changes_and_refuses_what_loses_events(faas: Faas) -> None:
    before = faas.json("check", "--against", "bus")
    faas("functions", "sync")
    same = faas("check", "--against", "bus")
    faas("publish", "orders.created", '{"id": 1}')
    (faas.folder / "functions.py").write_text(FUNCTIONS.replace('on="orders.created"', 'on="orders.placed"'))
    refused = faas("check", "--against", "bus", code=1)
    sync = faas("functions", "sync", code=78)
    with faas.running("worker") as worker:
        code = worker.process.wait(20)

    assert {(row["function"], row["change"]) for row in before} == {("audit", "new"), ("reserve", "new"), ("slow", "new")}
    assert same.stderr == "ok\n"
    assert "those of orders.created would be lost; drain first" in refused.stdout
    assert refused.stderr == "faas: 1 change would lose events; a worker with this code refuses to start.\n"
    assert sync.stderr.startswith("faas: nothing was changed: shop--reserve: topics orders.created become orders.placed")
    assert (code, "shop--reserve" in worker.said) == (78, True)


# --- events -------------------------------------------------------------------------------------------------


def test_the_latest_events_of_a_topic_are_found_behind_many_others(faas: Faas) -> None:
    faas("publish", "rare.one", '"here"')
    (faas.folder / "o.jsonl").write_text("0\n" * 700)
    faas("publish", "many.more", "-f", "o.jsonl")

    assert [row["event"]["data"] for row in faas.json("events", "rare.one", "-n", "3")] == ["here"]
    assert len(faas.json("events")) == 20
    assert len(faas.json("events", "--since", "10m")) == 701
    assert faas.json("events", "--since", "2100-01-01T00:00:00Z") == []


async def test_subjects_that_are_no_utf_8_are_listed_beside_the_others(faas: Faas, bus_url: str) -> None:
    async with NatsBus(bus_url).open() as bus:
        bus.connection.write(b"PUB ev.a.\xff.-.- 1\r\n1\r\n")
        await bus.connection.flush()
    faas("publish", "a.b", "2")

    assert [row["topic"] for row in faas.json("events")] == ["a.\ufffd", "a.b"]
    assert "a.\ufffd" in faas("events").stdout


def test_following_shows_what_comes_and_ends_with_its_reader(faas: Faas) -> None:
    with faas.running("events", "orders.>", "--follow", "-o", "json") as following:
        wait(lambda: faas("publish", "orders.created", '{"id": 1}').stdout and following.lines)
        faas("publish", "other.topic", "2")
        faas("publish", "orders.paid", '{"id": 3}')
        following.wait_for("orders.paid")
        code = following.stop(signal.SIGINT)

    assert code == 130
    assert {json.loads(line)["topic"] for line in following.lines if line.strip()} == {"orders.created", "orders.paid"}


def test_a_reader_that_has_seen_enough_is_no_error(faas: Faas) -> None:
    (faas.folder / "o.jsonl").write_text('"' + "x" * 1000 + '"\n' + ('"' + "y" * 1000 + '"\n') * 500)
    faas("publish", "a.b", "-f", "o.jsonl")
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {COMMAND[0]} -c '{COMMAND[2]}' events -n 501 | head -1"],
        cwd=faas.folder, env=faas.environment, capture_output=True, text=True,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("sequence")


# --- no bus, wrong bus, wrong project -----------------------------------------------------------------------


@pytest.mark.parametrize("command", [["lag"], ["publish", "a.b", "1"]], ids=" ".join)
def test_a_bus_that_is_not_there_is_75_and_says_where(tmp_path: Path, command: list[str]) -> None:
    faas = Faas(project(tmp_path / "shop", ""), NATS_URL="nats://127.0.0.1:1")
    done = faas(*command, code=75)

    assert "faas: no NATS server at nats://127.0.0.1:1 within" in done.stderr


def test_no_bus_at_all_is_78_and_says_how_to_get_one(tmp_path: Path) -> None:
    outside = Faas(tmp_path)("publish", "a.b", "1", code=78).stderr
    inside = Faas(project(tmp_path / "shop", ""))("publish", "a.b", "1", code=78).stderr

    assert outside.startswith("faas: no bus: --url and NATS_URL are not given, and there is no faas.toml here or above. Start `faas dev`")
    assert inside.startswith(
        f"faas: no bus: no `faas dev` runs in {tmp_path / 'shop'}, and there is no --url, NATS_URL or bus.url in faas.toml."
    )


def test_every_status_says_that_a_bus_is_not_known_to_be_durable(tmp_path: Path, bus_url: str) -> None:
    faas = Faas(project(tmp_path / "shop", FUNCTIONS), NATS_URL=bus_url)

    assert (faas("functions").stderr, faas("lag").stderr[: len(NOTE)]) == (NOTE, NOTE)


def test_an_event_can_be_published_from_outside_of_any_project(tmp_path: Path, bus_url: str) -> None:
    said = Faas(tmp_path)("publish", "a.b", "1", "--url", bus_url).stdout

    assert said.startswith("stored 1 event on a.b; id ")


def test_a_password_is_never_shown(tmp_path: Path, bus_url: str) -> None:
    faas = Faas(project(tmp_path / "shop", ""))
    password = bus_url.split(":")[2].split("@")[0]
    wrong = bus_url.replace(password, "wrongsecret")
    refused = faas("lag", "--url", wrong, code=78)
    shown = faas("config", "show", "--origin", "--url", bus_url)

    assert "wrongsecret" not in refused.stderr
    assert "credentials" in refused.stderr
    assert password not in shown.stdout
    assert re.search(r"bus\.url +nats://.*@127\.0\.0\.1:\d+ +--url", shown.stdout)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('grave = 1\n', "has no option 'grave'"),
        ('keep = "long"\n', "keep"),
        ('[bus]\nurl = "${NOT_SET}"\n', "needs the environment variable NOT_SET, which is not set"),
        ('[function.nobody]\ntimeout = 3\n', "there is no function 'nobody'"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_78_and_names_the_line(tmp_path: Path, toml: str, said: str) -> None:
    faas = Faas(project(tmp_path / "shop", FUNCTIONS, toml=toml))
    error = faas("check", code=78).stderr

    assert error.startswith("faas: faas.toml:")
    assert said in error


def test_a_topic_that_is_none_is_refused_before_a_bus_is_looked_for(tmp_path: Path) -> None:
    error = Faas(tmp_path)("publish", "orders..created", "1", code=1).stderr

    assert error.startswith("faas: topic 'orders..created' has an empty part. Topics are dot-separated words")


def test_a_bug_of_ours_is_70_and_the_traceback_is_for_debug(tmp_path: Path) -> None:
    program = "import sys; from broker_faas.cli import main, lag; lag.find = lambda url: 1 / 0; main.main(sys.argv[1:])"
    environment = Faas(tmp_path).environment
    plain = subprocess.run([COMMAND[0], "-c", program, "lag"], env=environment, capture_output=True, text=True)
    debug = subprocess.run([COMMAND[0], "-c", program, "--debug", "lag"], env=environment, capture_output=True, text=True)

    assert (plain.returncode, debug.returncode) == (70, 70)
    assert plain.stderr == (
        "faas: internal error: ZeroDivisionError: division by zero. This is a bug of ours; 'faas --debug lag …' shows where.\n"
    )
    assert "Traceback" in debug.stderr
