"""What the README and the tutorial tell a reader to type works, and prints what they show."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from ..markdown import ROOT, blocks
from ..typist import Typist

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("nats_binary")]


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_what_is_written_works(page: str, tmp_path: Path) -> None:
    with Typist(tmp_path).at_work() as typist:
        typist.type(block for block in blocks(ROOT / page) if "demo" not in block.words)


def test_the_celery_page_runs(tmp_path: Path, bus_url: str) -> None:
    with Typist(tmp_path, {"NATS_URL": bus_url}).at_work() as typist:
        typist.type(blocks(ROOT / "docs/coming-from-celery.md"))


def test_the_commands_of_the_first_screen_are_in_the_makefile() -> None:
    typed = next(block for block in blocks(ROOT / "README.md") if "make demo" in block.text)
    targets = re.findall(r"^make (\w+)", typed.text, re.MULTILINE)

    assert ["demo", "test"] == targets
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())

    assert [] == [link for link in links if not (page.parent / link).exists()]
