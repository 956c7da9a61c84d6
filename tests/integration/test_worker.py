"""A worker, its executors and a real server: what happens to events."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from broker_faas.bus import Record
from broker_faas.buses.nats import NatsBus
from broker_faas.layout import DEAD, EVENTS, event_record, faas_headers
from broker_faas.workers.feed import Feed
from broker_faas.workers.host import open_worker
from broker_faas.workers.worker import LOST_DELIVERIES
from tests.helpers import eventually
from tests.project import Project, event

FAST = "retry=RetryPolicy(max_attempts=3, min_backoff=0.05, jitter=0)"


async def dead(bus_url: str) -> list[dict[str, str]]:
    """Our headers of every dead letter."""
    import nats

    client = await nats.connect(bus_url)
    try:
        jetstream = client.jetstream()
        state = (await jetstream.stream_info("dead")).state
        letters = []
        for seq in range(state.first_seq, state.last_seq + 1):
            message = await jetstream.get_msg("dead", seq)
            head = "".join(f"{name}: {value}\r\n" for name, value in (message.headers or {}).items())
            letters.append(
                faas_headers(head.encode()) | {"data": (message.data or b"").decode("utf-8", "replace"), "subject": str(message.subject)}
            )
        return letters
    finally:
        await client.close()


async def test_an_event_runs_every_function_that_listens_and_outputs_run_the_next(bus_url: str, tmp_path: Path) -> None:
    code = """
        @function(on="orders.created", sends="orders.reserved")
        async def reserve(event, ctx): return {"id": event.json()["id"], "reserved": True}
        @function(on="orders.*")
        def audit(event, ctx): note("audit", f"{ctx.topic} {event.source} {event.json()['id']}")
    """
    project = Project(tmp_path, code)
    async with project.running(bus_url) as running:
        await running.publish("orders.created", {"id": 7})
        await eventually(lambda: len(project.lines("audit")) == 2)

    source = f"/{project.config.project}/reserve"

    assert ["orders.created /test 7", f"orders.reserved {source} 7"] == sorted(project.lines("audit"))


async def test_one_event_on_two_topics_of_a_function_has_two_outputs(bus_url: str, tmp_path: Path) -> None:
    project = Project(
        tmp_path,
        """
        @function(on="a.*", sends="out")
        async def f(event, ctx):
            ctx.emit("out", ctx.topic)
            return ctx.topic
        @function(on="out")
        async def g(event): note("out", event.json())
    """,
    )
    async with project.running(bus_url) as running:
        one = event("t", 1, 1)
        await running.bus.publish([event_record("a.x", one), event_record("a.y", one)])
        await eventually(lambda: len(project.lines("out")) == 4, timeout=5)

    assert ["a.x", "a.x", "a.y", "a.y"] == sorted(project.lines("out"))


async def test_a_failing_event_is_tried_max_attempts_times_and_then_is_a_dead_letter_with_its_story(bus_url: str, tmp_path: Path) -> None:
    project = Project(
        tmp_path,
        f"""
        @function(on="a", {FAST})
        async def fails(event, ctx):
            note("tried", ctx.attempt)
            raise ValueError("no good: 42")
    """,
    )
    async with project.running(bus_url) as running:
        await running.publish("a", {"n": 1})
        await eventually(lambda: running.counts("fails").dead == 1)

        assert ["1", "2", "3"] == project.lines("tried")
        assert (1, 0, 1) == (running.counts("fails").accepted, running.counts("fails").done, running.counts("fails").dead)

    (letter,) = await dead(bus_url)

    assert ("a", "3", '{"n":1}') == (letter["topic"], letter["attempts"], letter["data"])
    assert "ValueError: no good: 42" in letter["reason"]
    assert "app.py" in letter["detail"]
    assert 12 == len(letter["version"])


async def test_reject_and_a_model_mismatch_and_data_without_a_place_are_dead_letters_at_once(bus_url: str, tmp_path: Path) -> None:
    project = Project(
        tmp_path,
        """
        from dataclasses import dataclass
        @dataclass
        class Order: id: int
        @function(on="a")
        async def rejects(event): raise Reject("never")
        @function(on="a")
        def wants_order(order: Order): pass
        @function(on="a")
        async def nowhere(event): return {"x": 1}
        @function(on="a", sends="b")
        async def unencodable(event): return object()
    """,
    )
    async with project.running(bus_url) as running:
        await running.publish("a", {"id": "seven"})
        await eventually(lambda: sum(feed.counts.dead for feed in running.worker.feeds) == 4)

    reasons = {letter["subject"].rpartition("--")[2]: (letter["attempts"], letter["reason"]) for letter in await dead(bus_url)}

    assert {"rejects", "wants_order", "nowhere", "unencodable"} == set(reasons)
    assert {"1"} == {attempts for attempts, _ in reasons.values()}
    assert "never" in reasons["rejects"][1]
    assert "id" in reasons["wants_order"][1]
    assert "sends" in reasons["nowhere"][1]


async def test_bytes_that_are_no_event_are_a_dead_letter_and_the_next_event_runs(bus_url: str, tmp_path: Path) -> None:
    project = Project(tmp_path, '@function(on="a")\nasync def f(event): note("ran", event.id)')
    async with project.running(bus_url) as running:
        await running.bus.publish([Record("ev.a.-.-", "raw", b"", b"\x00\xff garbage")])
        await running.publish("a", {})
        await eventually(lambda: project.lines("ran") == ["0"] and running.counts("f").dead == 1)

    (letter,) = await dead(bus_url)

    assert "1" == letter["attempts"]


async def test_another_clients_record_too_large_for_a_dead_letter_is_cut_and_says_so(bus_url: str, tmp_path: Path) -> None:
    import nats

    project = Project(tmp_path, '@function(on="a")\nasync def f(event): note("ran", event.id)')
    async with project.running(bus_url) as running:
        client = await nats.connect(bus_url)
        await client.jetstream().publish("ev.a.-.-", b"{}", headers={"x-large": "y" * 65_300})
        await client.close()
        await running.publish("a", {})
        await eventually(lambda: project.lines("ran") == ["0"] and running.counts("f").dead == 1)

    (letter,) = await dead(bus_url)

    assert "bytes of headers and 2 of data" in letter["cut"]


async def test_a_call_that_takes_longer_than_the_lease_of_its_event_runs_once(bus_url: str, tmp_path: Path) -> None:
    """Another worker would get it, were its lease not renewed."""
    project = Project(
        tmp_path,
        """
        @function(on="a", start="first")
        async def f(event):
            note("ran", event.id)
            await asyncio.sleep(2.5)
    """,
    )
    async with project.running(bus_url, ack_wait=1.0) as one, project.running(bus_url, ack_wait=1.0) as two:
        await one.publish("a", 1)
        await eventually(lambda: one.counts("f").done + two.counts("f").done == 1)

    assert project.lines("ran") == ["0"]


async def test_a_retry_longer_than_thirty_seconds_is_scheduled_and_comes_back_with_its_attempt(bus_url: str, tmp_path: Path) -> None:
    project = Project(
        tmp_path,
        """
        @function(on="a")
        async def later(event, ctx):
            note("ran", ctx.attempt)
            if ctx.attempt == 1: raise Retry(after=31)
    """,
    )
    async with project.running(bus_url) as running:
        await running.publish("a", {})
        await eventually(lambda: running.counts("later").retried == 1)
        lag = await eventually(lambda: running.bus.lag(running.feed("later").queue))

        assert (0, 0, 1) == (lag.waiting, lag.in_progress, lag.scheduled)

        await eventually(lambda: project.lines("ran") == ["1", "2"], timeout=40)


async def test_a_delayed_publish_arrives_at_its_time_and_not_before(bus_url: str, tmp_path: Path) -> None:
    project = Project(tmp_path, '@function(on="a.b")\nasync def f(event, ctx): note("ran", f"{ctx.topic} {time.time()}")')
    async with project.running(bus_url) as running:
        at = time.time() + 1.5
        await running.publish_at(at, "a.b", {})
        (line,) = await eventually(lambda: project.lines("ran"))

    topic, ran = line.split()

    assert "a.b" == topic
    assert at <= float(ran) < at + 2


async def test_an_executor_that_crashes_costs_the_guilty_event_its_attempts_and_its_neighbours_none(bus_url: str, tmp_path: Path) -> None:
    project = Project(
        tmp_path,
        f"""
        @function(on="a", concurrency=8, {FAST})
        async def f(event, ctx):
            if event.json() == "bad": os._exit(3)
            await asyncio.sleep(0.02)
            note("ok", f"{{event.id}} {{ctx.attempt}}")
    """,
    )
    async with project.running(bus_url) as running:
        await running.publish("a", *["good"] * 10, "bad", *["good"] * 10)
        await eventually(lambda: running.counts("f").done == 20 and running.counts("f").dead == 1, timeout=30)

    (letter,) = await dead(bus_url)

    assert "exit code 3" in letter["reason"]
    assert {"1"} == {line.split()[1] for line in project.lines("ok")}


@pytest.mark.parametrize(
    ("handler", "deed"),
    [
        ("async def", "asyncio.get_running_loop().call_soon(os.abort)"),
        ("async def", "asyncio.get_running_loop().call_soon(os._exit, 0)"),
        ("def", "os.closerange(3, 4096)"),
    ],
)
async def test_an_event_whose_executor_dies_before_it_can_answer_is_a_dead_letter_in_the_end(
    bus_url: str, tmp_path: Path, handler: str, deed: str
) -> None:
    """It has returned: nothing is running, and at first nobody is charged."""
    project = Project(
        tmp_path,
        f"""
        @function(on="a", retry=RetryPolicy(max_attempts=2, min_backoff=0.05))
        {handler} f(event, ctx):
            note("attempts", ctx.attempt)
            {deed}
        @function(on="b")
        async def g(event, ctx): note("ran", f"{{event.id}} {{ctx.attempt}}")
    """,
    )
    async with project.running(bus_url) as running:
        await running.publish("a", 0)
        # Nothing else runs meanwhile: an answer that leaves in the same turn of the executor's loop would take this one's along.
        await eventually(lambda: running.counts("f").dead == 1, timeout=25)
        await running.publish("b", 1, first=1)
        await eventually(lambda: running.counts("g").done == 1)

        assert ["1", "1", "1", "2"] == project.lines("attempts")  # twice with others to suspect, then alone
        assert {"1 1"} == set(project.lines("ran"))  # its answer may have been lost too

    (letter,) = await dead(bus_url)

    assert "2" == letter["attempts"]
    assert letter["reason"].startswith("executor ended while running it: ")


async def test_an_event_that_kills_the_zygote_is_a_dead_letter_in_the_end_and_the_others_run(
    bus_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_faas.workers.host.MAX_BACKOFF", 0.1)
    project = Project(
        tmp_path,
        """
        @function(on="a", retry=RetryPolicy(max_attempts=1))
        def f(event):
            note("killed", event.id)
            os.kill(os.getppid(), 9)
            time.sleep(1)
        @function(on="b")
        def g(event, ctx): note("ran", f"{event.id} {ctx.attempt}")
    """,
    )
    async with project.running(bus_url) as running:
        await running.publish("a", 0)
        await eventually(lambda: project.lines("killed"))
        await running.publish("b", 1, first=1)
        await eventually(lambda: running.counts("f").dead == 1, timeout=8)
        await eventually(lambda: running.counts("g").done == 1)

        assert 3 == len(project.lines("killed"))
        assert "1 1" == project.lines("ran")[-1]

    (letter,) = await dead(bus_url)

    assert letter["reason"].startswith("the process that executors are forked from died while only it ran")


async def test_a_call_whose_outcome_is_garbage_runs_again(bus_url: str, tmp_path: Path) -> None:
    project = Project(
        tmp_path,
        """
        from broker_faas import invoke
        invoke._is_delay = lambda after: True  # an executor that is not ours checks nothing
        @function(on="a")
        async def f(event, ctx):
            note("attempts", ctx.attempt)
            if len((HERE / "attempts").read_text()) > 2: return
            retry = Retry("later")
            retry.after = -1
            raise retry
    """,
    )
    async with project.running(bus_url) as running:
        await running.publish("a", 0)
        await eventually(lambda: running.counts("f").done == 1, timeout=5)

        assert ["1", "1"] == project.lines("attempts")


async def test_an_ordered_function_keeps_a_keys_order_through_failures(bus_url: str, tmp_path: Path) -> None:
    project = Project(
        tmp_path,
        """
        @function(on="a", ordered=True, retry=RetryPolicy(max_attempts=3, min_backoff=0.05))
        async def f(event, ctx):
            key, n = event.partitionkey, event.json()
            note(key, f"start {n}")
            await asyncio.sleep(0.005)
            if n == 3 and ctx.attempt == 1: raise ValueError("once")
            note(key, f"end {n}")
    """,
    )
    async with project.running(bus_url) as running:
        for n in range(8):
            await running.bus.publish([_keyed(key, n) for key in "xyz"])
        await eventually(lambda: running.counts("f").done == 24)

    expected = [f"{what} {n}" for n in range(8) for what in (["start", "start", "end"] if n == 3 else ["start", "end"])]

    assert [expected] * 3 == [project.lines(key) for key in "xyz"]


def _keyed(key: str, n: int) -> Record:
    return event_record("a", event("a", n, n, key).replace(id=f"{key}{n}"))


async def test_an_ordered_function_says_when_an_event_has_no_key(bus_url: str, tmp_path: Path) -> None:
    project = Project(tmp_path, '@function(on="a", ordered=True)\nasync def f(event): pass')
    async with project.running(bus_url) as running:
        await running.publish("a", 1, 2)
        await eventually(lambda: running.counts("f").done == 2)

        assert 2 == running.counts("f").unkeyed


async def test_a_drain_finishes_what_is_held_and_takes_nothing_new(bus_url: str, tmp_path: Path) -> None:
    project = Project(
        tmp_path,
        """
        @function(on="a", concurrency=2)
        async def f(event):
            note("start", event.id)
            await asyncio.sleep(0.3)
            note("end", event.id)
    """,
    )
    async with project.running(bus_url) as running:
        await running.publish("a", *range(10))
        await eventually(lambda: len(project.lines("start")) == 2)
        running.stop.set()
        await running.task

        counts = running.counts("f")
        lag = await running.bus.lag(running.feed("f").queue)

        assert sorted(project.lines("start")) == sorted(project.lines("end"))
        assert (counts.accepted, 0) == (counts.done, counts.handed_back)
        assert 10 == counts.done + lag.total


async def test_a_cancelled_worker_hands_back_and_another_takes_over_at_once(bus_url: str, tmp_path: Path) -> None:
    project = Project(
        tmp_path,
        """
        @function(on="a", concurrency=4)
        async def f(event, ctx):
            note("start", event.id)
            if (HERE / "go").exists(): note("end", event.id)
            else: await asyncio.sleep(3600)
    """,
    )
    async with NatsBus(bus_url).open() as bus:
        async with project.worker(bus) as first:
            await first.publish("a", *range(4))
            await eventually(lambda: len(project.lines("start")) == 4)
            (tmp_path / "go").touch()
            first.task.cancel()
            await asyncio.wait([first.task])

            assert 4 == first.counts("f").handed_back

        started = time.monotonic()
        async with project.worker(bus) as second:
            await eventually(lambda: second.counts("f").done == 4)

        assert time.monotonic() - started < 10  # ack_wait is 30 s: it was handed back, not waited for


async def test_an_event_that_is_handed_back_again_and_again_is_charged_no_attempt(bus_url: str, tmp_path: Path) -> None:
    """The workers that had it stopped at once; what it might have done to them, they would have reported."""
    project = Project(
        tmp_path,
        """
        @function(on="a", retry=RetryPolicy(max_attempts=1))
        async def f(event, ctx):
            note("attempts", ctx.attempt)
            await asyncio.sleep(3600)
    """,
    )
    turns = LOST_DELIVERIES + 3
    async with NatsBus(bus_url).open() as bus, open_worker(project.config, bus) as first:
        for turn in range(1, turns + 1):
            worker = replace(first)
            working = asyncio.create_task(worker.run(asyncio.Event()))
            await worker.ready.wait()
            if turn == 1:
                await bus.publish([event_record("a", event("a", 1, 1))])
            await eventually(lambda: len(project.lines("attempts")) == turn, timeout=5)  # noqa: B023
            working.cancel()
            await asyncio.wait([working])
        lag = await bus.lag(worker.feeds[0].queue)
        letters = (await bus.api(f"STREAM.INFO.{DEAD}"))["state"]["messages"]

    assert ["1"] * turns == project.lines("attempts")
    assert (1, 0) == (lag.total, letters)


async def test_an_event_that_comes_again_while_it_is_held_does_not_run_twice(
    bus_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease ended, as when the bus cannot be reached for a while."""
    monkeypatch.setattr(Feed, "renew", lambda feed: None)
    project = Project(
        tmp_path,
        """
        @function(on="a")
        async def f(event):
            note("start", event.id)
            while not (HERE / "go").exists(): await asyncio.sleep(0.01)
    """,
    )
    async with project.running(bus_url, ack_wait=0.5) as running:
        await running.publish("a", 1)
        feed = running.feed("f")
        await eventually(lambda: any(held.delivery.deliveries > 1 for held in feed.held) or len(feed.held) > 1)
        (tmp_path / "go").touch()
        await eventually(lambda: not feed.held)
        lag = await running.bus.lag(feed.queue)

        assert (1, 0) == (feed.counts.done, lag.total)

    assert ["0"] == project.lines("start")


async def test_a_drain_does_not_wait_for_an_executor_that_is_still_starting(bus_url: str, tmp_path: Path) -> None:
    project = Project(
        tmp_path,
        """
        from contextlib import asynccontextmanager
        @asynccontextmanager
        async def lifespan():
            if (HERE / "hang").exists(): await asyncio.sleep(3600)
            yield
        @function(on="a", concurrency=1)
        async def f(event):
            note("start", event.id)
            while not (HERE / "go").exists(): await asyncio.sleep(0.01)
    """,
    )
    async with project.running(bus_url) as running:
        await running.publish("a", 0)
        await eventually(lambda: project.lines("start"))
        (tmp_path / "hang").touch()
        await running.publish("a", 1, 2, first=1)
        await eventually(lambda: running.feed("f").pool._forks)
        running.stop.set()
        (tmp_path / "go").touch()
        await eventually(running.task.done, timeout=3)

        assert running.counts("f").accepted == running.counts("f").done > 0


async def test_a_worker_that_can_have_no_executor_leaves_its_events_to_one_that_can(
    bus_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_faas.workers.dispatch.SICK_AFTER", 1)
    monkeypatch.setattr("broker_faas.workers.worker.SICK_PAUSE", 0.1)
    code = """
        from contextlib import asynccontextmanager
        @asynccontextmanager
        async def lifespan():
            if (HERE / "sick").exists(): raise OSError("no way to the database")
            yield
        @function(on="a", retry=RetryPolicy(max_attempts=2))
        async def f(event, ctx): note("ran", f"{event.json()} {ctx.attempt}")
    """
    folders = [tmp_path / node / "shop" for node in ("sick", "well")]
    for folder in folders:
        folder.mkdir(parents=True)
    sick, well = (Project(folder, code) for folder in folders)
    (sick.folder / "sick").touch()
    async with NatsBus(bus_url).open() as bus, sick.worker(bus) as first:
        await first.publish("a", *range(20))
        await eventually(lambda: first.counts("f").accepted)
        async with well.worker(bus) as second:
            await eventually(lambda: second.counts("f").done == 20, timeout=8)

        assert {f"{n} 1" for n in range(20)} == set(well.lines("ran"))
        assert [] == sick.lines("ran")


async def test_what_a_function_prints_is_logged(bus_url: str, tmp_path: Path) -> None:
    project = Project(tmp_path, '@function(on="a")\ndef f(event): print("hello from", event.id)')
    async with project.running(bus_url) as running:
        await running.publish("a", {})
        await eventually(lambda: "hello from 0" in project.printed)


async def test_a_functions_environment_reaches_its_executors_and_no_others(bus_url: str, tmp_path: Path) -> None:
    code = """
        @function(on="a")
        async def rich(event): note("rich", os.environ.get("SECRET", "-"))
        @function(on="a")
        async def poor(event): note("poor", os.environ.get("SECRET", "-"))
    """
    project = Project(tmp_path, code, '[function.rich]\nenv = {SECRET = "s3"}\n')
    async with project.running(bus_url) as running:
        await running.publish("a", {})
        await eventually(lambda: project.lines("rich") and project.lines("poor"))

    assert (["s3"], ["-"]) == (project.lines("rich"), project.lines("poor"))


async def test_outputs_of_an_event_that_ran_twice_are_stored_once(bus_url: str, tmp_path: Path) -> None:
    """The worker died after it had stored the outputs and before it settled: the same ids come again."""
    project = Project(
        tmp_path,
        """
        @function(on="a", sends="b", retry=RetryPolicy(min_backoff=0.05))
        async def f(event, ctx):
            ctx.emit("b", {"n": 1})
            return {"n": 2}
        @function(on="b")
        async def g(event): note("got", event.id)
    """,
    )
    async with NatsBus(bus_url).open() as bus:
        async with project.worker(bus) as running:
            await running.publish("a", {})
            await eventually(lambda: len(project.lines("got")) == 2)
            queue = running.feed("f").queue
        await bus.api(f"CONSUMER.DELETE.{EVENTS}.{queue.name}")  # the bus forgets that it was settled
        app = tmp_path / "app.py"
        app.write_text(app.read_text().replace('on="a"', 'on="a", start="first"'))
        async with project.worker(bus) as running:
            await eventually(lambda: running.counts("f").done == 1)
            stored = (await bus.api(f"STREAM.INFO.{EVENTS}"))["state"]["messages"]

    assert (3, 2) == (stored, len(project.lines("got")))


async def test_a_worker_waits_with_its_outputs_while_the_bus_is_full(bus_url: str, tmp_path: Path) -> None:
    project = Project(tmp_path, '@function(on="a", sends="b")\nasync def f(event): return {"pad": "x" * 300_000}')
    async with NatsBus(bus_url, max_bytes=1 << 20, patience=1.0).open() as bus, project.worker(bus) as running:
        await running.publish("a", *range(6))
        await eventually(lambda: running.counts("f").done >= 2)
        await asyncio.sleep(0)

        assert running.counts("f").accepted == 6
        assert running.counts("f").done < 6

        await bus.api("STREAM.PURGE.events", {"filter": "ev.b.>"})
        await eventually(lambda: running.counts("f").done >= 4, timeout=20)
        await bus.api("STREAM.PURGE.events", {"filter": "ev.b.>"})
        await eventually(lambda: running.counts("f").done == 6, timeout=20)
