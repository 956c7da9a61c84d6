"""The ledgers themselves."""

from __future__ import annotations

import time
from pathlib import Path

from .ledger import End, lately, read


def test_what_ended_lately_is_counted_and_torn_lines_are_not(tmp_path: Path) -> None:
    assert lately(tmp_path, 1.0) == 0

    now = time.monotonic()
    ends = [f"\nend\t{now - age}\tp0-{n}\tf\tok\t.\n" for n, age in enumerate((30.0, 1.5, 0.2, 0.1))]
    (tmp_path / "functions").write_text("".join(ends) + f"\nstart\t{now}\tp0-9\tk\tf\t1\t7\tsha\t.\n" + f"\nend\t{now}\tp0-9\tf")

    assert lately(tmp_path, 1.0) == 2
    assert lately(tmp_path, 10.0) == 3


def test_a_ledger_is_read_up_to_a_torn_line(tmp_path: Path) -> None:
    (tmp_path / "functions").write_text("\nend\t1.5\tp0-1\tf\tok\t.\n\nend\t2.5\tp0-2\tf")

    assert read(tmp_path).ends == [End(1.5, "p0-1", "f", "ok")]
