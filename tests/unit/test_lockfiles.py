"""Lock files pin everything by hash and name no registry: they work behind any mirror."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock")


def pins(lock: str) -> list[str]:
    """Logical lines: `name==version ; marker --hash=… --hash=…`."""
    return (ROOT / lock).read_text().replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("lock", [*LOCKS, "requirements-peers.lock"])
def test_every_package_is_pinned_with_hashes(lock: str) -> None:
    loose = [pin for pin in pins(lock) if not re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; [^\n]+?)?(\s+--hash=sha256:[0-9a-f]{64})+", pin)]

    assert loose == []


@pytest.mark.parametrize("lock", [*LOCKS, "requirements-peers.lock"])
def test_no_address_is_in_a_lock_file(lock: str) -> None:
    assert not re.search(r"://|@|--(extra-)?index|--find-links", (ROOT / lock).read_text())


def test_tests_run_with_what_the_demo_runs_with() -> None:
    runtime, everything = ({pin.split()[0] for pin in pins(lock)} for lock in LOCKS)

    assert runtime <= everything
