"""What users install: the package whole, real files instead of links, and no generic top-level name."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRAMES = "broker_faas/workers/frames.py"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    return folder


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_archives_hold_real_files_and_one_top_level_name(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        files = wheel.namelist()
        frames = wheel.read(FRAMES)
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        links = [member.name for member in sdist if member.issym() or member.islnk()]
        sources = {member.name.partition("/")[2].split("/")[0] for member in sdist}

    assert {file.split("/")[0] for file in files if ".dist-info" not in file} == {"broker_faas"}
    assert "broker_faas/connectors/__init__.py" in files
    assert "broker_faas/py.typed" in files
    assert frames == (ROOT / "workers" / "frames.py").read_bytes()
    assert links == []
    assert {"broker_faas", "LICENSE", "pyproject.toml"} <= sources
    assert not {"workers", "connectors", "tests"} & sources


def test_installed_in_a_clean_environment_it_imports_and_runs(built: Path, tmp_path: Path) -> None:
    """Its dependencies are lent by the environment of the tests: nothing is downloaded."""
    venv.create(tmp_path, with_pip=False, symlinks=True)
    python = str(tmp_path / "bin" / "python")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", str(next(built.glob("*.whl"))))
    site_packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site_packages / "lent.pth").write_text(sysconfig.get_path("purelib"))
    program = "from importlib.util import find_spec; import broker_faas.workers.frames as frames; "
    program += "print(frames.__file__, find_spec('workers'), find_spec('connectors'))"

    assert run(python, "-I", "-c", program).split() == [str(site_packages / FRAMES), "None", "None"]
    assert "Usage: faas" in run(str(tmp_path / "bin" / "faas"), "--help")
