"""The checker on ledgers written by hand: each says exactly the names of the checks that must be red."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from .checker import Expected, check
from .checks import leaves, prompt, reasons, uncharged
from .ledger import Ack, Attempt, Dead, End, Fault, Ledgers, Start, Stored
from .order import Frozen

FIELDS = {"topic": "load", "attempts": "5", "first": "1", "last": "2", "reason": "no", "version": "v", "fingerprint": "f"}
PLAIN = Expected(functions=frozenset({"f"}), acknowledged=1)
ORDERED = Expected(functions=frozenset({"f"}), ordered=frozenset({"f"}), acknowledged=1)


def published(*ids: str, every: float = 1.0) -> Ledgers:
    """Ledgers in which these events were published, `every` seconds, and acknowledged 0.1 s later; nothing has run."""
    attempts = [Attempt(n * every, id, "k", f"sha {id}") for n, id in enumerate(ids)]
    return Ledgers(attempts, [Ack(attempt.t + 0.1, attempt.id) for attempt in attempts], [], [], [])


def ran(run: Ledgers, id: str, start: float, end: float | None = None, how: str = "ok", **fields: Any) -> Ledgers:
    """The same, and an execution of f more; without `end` it was killed."""
    started = Start(start, id, "k", "f", 1, 100, f"sha {id}")._replace(**fields)
    starts = sorted([*run.starts, started])
    ends = run.ends if end is None else sorted([*run.ends, End(end, id, started.function, how)])
    return run._replace(starts=starts, ends=ends)


def all_ran(run: Ledgers, *ids: str) -> Ledgers:
    for attempt in run.attempts:
        if not ids or attempt.id in ids:
            run = ran(run, attempt.id, attempt.t + 0.2, attempt.t + 0.3)
    return run


def died(run: Ledgers, id: str, **fields: str) -> Ledgers:
    return run._replace(dead=[*run.dead, Dead(id, "f", f"sha {id}", FIELDS | fields)])


THREE = ("p0-0", "p0-1", "p0-2")


def test_a_run_in_which_every_event_is_done_once_is_green() -> None:
    verdict = check(all_ran(published(*THREE)), ORDERED)

    assert verdict.ok
    assert (verdict.acknowledged, verdict.done, verdict.duplicates) == (3, 3, 0)


@pytest.mark.parametrize(
    ("known", "part"), [(("p0-1", "p0-2"), "prefix"), (("p0-0", "p0-2"), "middle"), (("p0-0", "p0-1"), "postfix"), (("p1-0",), "all")]
)
def test_what_was_acknowledged_and_never_ran_is_lost_and_the_verdict_says_where(known: tuple[str, ...], part: str) -> None:
    verdict = check(all_ran(published(*THREE, "p1-0"), *known, "p1-0"), PLAIN)

    assert verdict.red == {"lost"}
    assert verdict.lost == (3 if part == "all" else 1)
    assert f"({part})" in verdict.problems[0][1]


def test_an_event_that_was_started_and_never_ended_is_lost() -> None:
    assert check(ran(all_ran(published(*THREE), "p0-0", "p0-1"), "p0-2", 3.0), PLAIN).red == {"lost"}


def test_what_failed_and_has_no_dead_letter_is_lost() -> None:
    assert check(ran(all_ran(published(*THREE), "p0-0", "p0-1"), "p0-2", 3.0, 3.1, "err"), PLAIN).red == {"lost"}


def test_an_event_that_one_of_two_functions_never_ran_is_lost() -> None:
    both = Expected(functions=frozenset({"f", "g"}), acknowledged=1)

    assert check(all_ran(published(*THREE)), both).red == {"lost"}


def test_what_the_bus_does_not_hold_any_more_is_lost() -> None:
    run = all_ran(published(*THREE))._replace(stored=[Stored(id, "load", f"sha {id}") for id in ("p0-0", "p0-2")])

    assert check(run, PLAIN).red == {"lost"}


def test_what_was_never_acknowledged_may_be_missing_and_may_have_run() -> None:
    run = published(*THREE, "p0-3")
    run = all_ran(run._replace(acks=run.acks[:2]), "p0-0", "p0-1", "p0-2")
    verdict = check(run, PLAIN)

    assert verdict.ok
    assert verdict.recovered == 1


def test_an_event_that_nobody_published_is_unexpected() -> None:
    assert check(ran(all_ran(published(*THREE)), "p9-0", 5.0, 5.1), PLAIN).red == {"unexpected"}


def test_other_data_than_was_published_is_altered() -> None:
    run = ran(all_ran(published(*THREE), "p0-0", "p0-1"), "p0-2", 3.0, 3.1, sha="another")

    assert check(run, PLAIN).red == {"altered"}


def test_an_event_that_is_on_the_bus_twice_is_stored_twice() -> None:
    run = all_ran(published(*THREE))._replace(stored=[Stored(id, "load", f"sha {id}") for id in (*THREE, "p0-1")])

    assert check(run, PLAIN).red == {"stored twice"}


def test_two_writes_of_an_event_to_its_source_may_be_on_the_bus_and_one_of_them_twice_may_not() -> None:
    """A producer of another broker tries again what was not confirmed, and then the event has two positions there."""
    run = all_ran(published(*THREE))
    writes = [
        Stored(id, "load", f"sha {id}", position) for id, position in (("p0-0", "load/0/1"), ("p0-1", "load/0/2"), ("p0-2", "load/0/3"))
    ]
    other = Stored("p0-1", "load", "sha p0-1", "load/0/4")

    assert check(run._replace(stored=[*writes, other]), PLAIN).ok
    assert check(run._replace(stored=[*writes, other, other]), PLAIN).red == {"stored twice"}


def test_more_executions_than_the_faults_explain_are_duplicates() -> None:
    run = ran(ran(all_ran(published(*THREE)), "p0-0", 5.0, 5.1), "p0-1", 6.0, 6.1)

    assert check(run, Expected(functions=frozenset({"f"}), acknowledged=1, duplicates=1)).red == {"duplicates"}
    assert check(run, Expected(functions=frozenset({"f"}), acknowledged=1, duplicates=2)).ok


# --- order


def test_an_event_that_starts_before_an_earlier_one_of_its_key_is_over_is_out_of_order() -> None:
    run = ran(ran(published("p0-0", "p0-1"), "p0-1", 2.0, 2.1), "p0-0", 3.0, 3.1)

    assert check(run, ORDERED).red == {"order"}
    assert check(run, PLAIN).ok


def test_two_events_of_a_key_at_once_are_out_of_order() -> None:
    run = ran(all_ran(published("p0-0", "p0-1")), "p0-0", 2.0, 3.0)  # once more, later
    run = ran(run, "p0-1", 2.5, 2.6)

    assert check(run, Expected(functions=frozenset({"f"}), ordered=frozenset({"f"}), acknowledged=1, duplicates=2)).red == {"order"}


def test_events_of_two_keys_have_no_order() -> None:
    run = ran(ran(published("p0-0", "p0-1"), "p0-1", 2.0, 4.0, key="other"), "p0-0", 3.0, 3.1)

    assert check(run, ORDERED).ok


def test_an_event_that_is_done_may_be_run_again_after_later_ones() -> None:
    run = ran(all_ran(published(*THREE)), "p0-0", 5.0, 5.1)

    assert check(run, Expected(functions=frozenset({"f"}), ordered=frozenset({"f"}), acknowledged=1, duplicates=1)).ok


def test_the_next_event_may_start_when_the_one_before_is_dead() -> None:
    run = died(ran(ran(published("p0-0", "p0-1"), "p0-0", 0.2, 0.3, "err"), "p0-1", 1.2, 1.3), "p0-0")

    assert check(run, Expected(functions=frozenset({"f"}), ordered=frozenset({"f"}), acknowledged=1, dies=frozenset({"p0-0"}))).ok


def handed_over(*, pid: int = 7, started: float = 1.0, ended: float = 9.5) -> Ledgers:
    """p0-0 is at `pid` when that freezes at 2.0; another one does it at 6.0, and goes on with p0-1 at 9.0; the freeze ends at 9.2."""
    run = ran(published("p0-0", "p0-1"), "p0-0", started, ended, pid=pid)
    return ran(ran(run, "p0-0", 6.0, 6.1), "p0-1", 9.0, 9.6)


def frozen(*pids: int) -> Expected:
    window = Frozen(frozenset(pids), 2.0, 9.7)
    return Expected(functions=frozenset({"f"}), ordered=frozenset({"f"}), acknowledged=1, duplicates=1, frozen=[window])


def test_what_a_frozen_executor_was_at_may_run_beside_the_next_event() -> None:
    late = ran(ran(published("p0-0", "p0-1"), "p0-0", 6.0, 6.1), "p0-1", 9.0, 9.6)

    assert check(handed_over(), frozen(7)).ok
    assert check(ran(late, "p0-0", 9.3, 9.5, pid=7), frozen(7)).ok  # it was on its way to it


def test_the_same_overlap_without_a_freeze_is_out_of_order() -> None:
    late = ran(ran(published("p0-0", "p0-1"), "p0-0", 6.0, 6.1), "p0-1", 9.0, 9.6)

    assert check(ran(late, "p0-0", 8.9, 9.5, pid=7), frozen()).red == {"order"}
    assert check(ran(late, "p0-0", 8.9, 9.5, pid=8), frozen(7)).red == {"order"}  # an executor that was not frozen


def test_a_freeze_excuses_nothing_that_began_after_it() -> None:
    run = ran(ran(published("p0-0", "p0-1"), "p0-0", 6.0, 6.1), "p0-1", 9.0, 12.0)

    assert check(ran(run, "p0-0", 10.0, 10.1, pid=7), frozen(7)).red == {"order"}


def test_a_freeze_excuses_no_event_that_only_frozen_executors_ran() -> None:
    run = ran(published("p0-0", "p0-1"), "p0-0", 1.0, 9.5, pid=7)

    assert check(ran(run, "p0-1", 9.0, 9.6), frozen(7)).red == {"order"}


# --- dead letters

DYING = Expected(functions=frozenset({"f"}), acknowledged=1, dies=frozenset({"p0-2"}))


def test_an_event_that_must_die_and_has_its_dead_letter_is_green() -> None:
    assert check(died(all_ran(published(*THREE), "p0-0", "p0-1"), "p0-2"), DYING).ok


def test_a_dead_letter_of_an_event_that_nothing_is_wrong_with_is_red() -> None:
    assert check(died(all_ran(published(*THREE), "p0-0", "p0-1"), "p0-2"), PLAIN).red == {"dead letters"}


def test_a_dead_letter_of_a_function_in_which_nothing_dies_is_red() -> None:
    both = Expected(functions=frozenset({"f", "g"}), acknowledged=1, dies=DYING.dies, dying=frozenset({"g"}))
    run = died(all_ran(published(*THREE), "p0-0", "p0-1"), "p0-2")
    for id in THREE:
        run = ran(run, id, 5.0, 5.1, function="g")

    assert check(run._replace(dead=[letter._replace(function="g") for letter in run.dead]), both).red == {"lost", "dead letters"}
    assert check(run, both).red == {"dead letters"}


def test_an_event_that_is_done_and_dead_is_red() -> None:
    assert check(died(all_ran(published(*THREE)), "p0-2"), DYING).red == {"dead letters"}


def test_two_dead_letters_of_an_event_are_red() -> None:
    assert check(died(died(all_ran(published(*THREE), "p0-0", "p0-1"), "p0-2"), "p0-2"), DYING).red == {"dead letters"}


def test_an_event_that_must_die_and_has_no_dead_letter_is_red() -> None:
    assert check(all_ran(published(*THREE)), DYING).red == {"dead letters"}


@pytest.mark.parametrize("name", FIELDS)
def test_an_incomplete_dead_letter_is_red(name: str) -> None:
    assert check(died(all_ran(published(*THREE), "p0-0", "p0-1"), "p0-2", **{name: ""}), DYING).red == {"dead letters"}


def test_a_dead_letter_that_does_not_hold_what_was_published_is_red() -> None:
    run = all_ran(published(*THREE), "p0-0", "p0-1")

    assert check(run._replace(dead=[Dead("p0-2", "f", "another", FIELDS)]), DYING).red == {"dead letters"}


# --- liveness, recovery, and runs that say nothing


def test_a_run_without_any_success_is_no_liveness() -> None:
    assert check(published(*THREE), PLAIN).red == {"lost", "liveness"}


def faulted(run: Ledgers, begin: float, heal: float, what: str = "x") -> Ledgers:
    return run._replace(faults=[*run.faults, Fault("planned", begin, what), Fault("begin", begin, what, "seen"), Fault("heal", heal, what)])


def test_no_success_for_too_long_after_a_fault_is_no_liveness() -> None:
    run = published(*(f"p0-{n}" for n in range(20)))
    run = faulted(all_ran(run, "p0-0"), 1.0, 2.0)
    for n in range(1, 20):
        run = ran(run, f"p0-{n}", 20.0 + n, 20.5 + n)

    assert check(run, PLAIN).red == {"liveness"}
    assert check(run, Expected(functions=frozenset({"f"}), acknowledged=1, gap=30)).ok


def test_fewer_successes_a_second_than_before_the_fault_are_no_recovery() -> None:
    run = published(*(f"p0-{n}" for n in range(300)), every=0.1)
    slow = faulted(all_ran(run, *(f"p0-{n}" for n in range(100))), 10.0, 11.0)
    for n in range(100, 300):
        slow = ran(slow, f"p0-{n}", 11 + (n - 100) * 0.2, 11.05 + (n - 100) * 0.2)
    recovers = Expected(functions=frozenset({"f"}), acknowledged=1, recovers=5)

    assert check(slow, recovers).red == {"recovery"}
    assert check(slow, PLAIN).ok
    assert check(faulted(all_ran(run), 10.0, 11.0), recovers).ok


def test_a_recovery_that_could_not_be_looked_at_is_vacuous() -> None:
    run = all_ran(published(*(f"p0-{n}" for n in range(10))))
    recovers = Expected(functions=frozenset({"f"}), acknowledged=1, recovers=5)

    assert check(run, recovers).red == {"vacuous"}
    assert check(faulted(run, 4.0, 5.0), recovers).red == {"vacuous"}  # nothing was published so long afterwards


def test_too_few_events_are_vacuous() -> None:
    assert check(all_ran(published(*THREE)), Expected(functions=frozenset({"f"}), acknowledged=4)).red == {"vacuous"}


def test_a_fault_that_was_planned_and_not_seen_is_vacuous() -> None:
    run = all_ran(published(*THREE))

    assert check(run._replace(faults=[Fault("planned", 1.0, "kill")]), PLAIN).red == {"vacuous"}


def test_one_of_two_faults_of_a_name_that_was_not_seen_is_vacuous() -> None:
    run = faulted(all_ran(published(*THREE)), 1.0, 1.5)

    assert check(run._replace(faults=[*run.faults, Fault("planned", 2.0, "x")]), PLAIN).red == {"vacuous"}


def test_faults_that_made_nothing_come_again_are_vacuous() -> None:
    expected = Expected(functions=frozenset({"f"}), acknowledged=1, redelivery=True)
    run = all_ran(published(*THREE))

    assert check(run, expected).red == {"vacuous"}
    assert check(ran(run._replace(ends=[]), "p0-0", 0.05), expected).red == {"lost", "liveness"}


# --- checks of single scenarios


def test_a_reason_that_is_another_than_the_deeds_is_red() -> None:
    run = died(died(published(*THREE), "p0-1", reason="SIGKILL"), "p0-2", reason="boom")

    assert {check for check, _ in reasons(run, "f", {"raise": ("boom", 5)}, lambda id: "raise")} == {"reasons"}
    assert not [*reasons(died(published(*THREE), "p0-2", reason="boom"), "f", {"raise": ("boom", 5)}, lambda id: "raise")]


def test_other_attempts_than_the_deeds_are_red() -> None:
    run = died(published(*THREE), "p0-2", reason="boom")

    assert {check for check, _ in reasons(run, "f", {"raise": ("boom", 2)}, lambda id: "raise")} == {"reasons"}


def test_a_deed_that_nothing_died_of_is_vacuous() -> None:
    assert {check for check, _ in reasons(published(*THREE), "f", {"raise": ("boom", 2)}, lambda id: "raise")} == {"vacuous"}


def test_a_second_attempt_of_an_event_that_nothing_is_wrong_with_is_charged() -> None:
    run = ran(all_ran(published(*THREE)), "p0-1", 5.0, 5.1, attempt=2)

    assert {check for check, _ in uncharged(run, lambda id: False)} == {"charged"}
    assert not [*uncharged(run, lambda id: id == "p0-1")]


def test_a_dead_letter_that_was_run_for_too_long_is_red() -> None:
    run = died(ran(ran(published("p0-0"), "p0-0", 1.0), "p0-0", 8.0), "p0-0")

    assert {check for check, _ in leaves(run, 5.0)} == {"leaves"}
    assert not [*leaves(run, 10.0)]


def test_events_that_wait_long_are_not_prompt() -> None:
    run = ran(published("p0-0"), "p0-0", 3.0, 3.1)

    assert {check for check, _ in prompt(run, "f", 1.0)} == {"prompt"}
    assert not [*prompt(run, "f", 4.0)]
    assert {check for check, _ in prompt(run, "f", 4.0, among=lambda key: key == "other")} == {"vacuous"}


def test_an_execution_that_was_killed_did_not_last_until_its_event_ran_again() -> None:
    """Everything died at 1.35: what was done just before comes again, and then what was killed. One after the other, each time."""
    run = ran(published("p0-0", "p0-1", every=1.0), "p0-0", 0.2, 0.3)
    run = ran(ran(ran(run, "p0-1", 1.2, pid=7), "p0-0", 5.0, 5.1), "p0-1", 5.2, 5.3)

    assert check(run, replace(ORDERED, duplicates=1)).red == set()


def test_a_second_run_of_what_is_done_may_overlap_with_the_next_event_of_its_key() -> None:
    """The server heard the acknowledgement of the first run after it had handed the event out again."""
    run = ran(published("p0-0", "p0-1"), "p0-0", 0.2, 0.3)
    run = ran(ran(run, "p0-0", 1.2, 1.4), "p0-1", 1.3, 1.5)
    expected = replace(ORDERED, duplicates=1)
    frozen_server = [Fault("planned", 0.5, "freeze nats-server"), Fault("begin", 0.5, "freeze nats-server")]

    assert check(run._replace(faults=frozen_server), expected).red == set()
    assert check(run, expected).red == {"order"}


def test_a_second_run_of_what_failed_may_not() -> None:
    run = ran(published("p0-0", "p0-1"), "p0-0", 0.2, 0.3, "err")
    run = ran(ran(run, "p0-0", 1.2, 1.4), "p0-1", 1.3, 1.5)
    faults = [Fault("planned", 0.5, "kill nats-server"), Fault("begin", 0.5, "kill nats-server")]

    assert check(run._replace(faults=faults), ORDERED).red == {"order"}
