"""A run's own space: namespaces for its network, mounts and processes, which end with it; and what this machine does not allow.

Needs util-linux, iproute2, nftables and e2fsprogs (the Makefile installs them where it may), and root for loop devices and cgroups.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from subprocess import run

from benchmarks.servers import RABBITMQ

from ..kafka_server import Missing, jars
from .scenario import Scenario

UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
ROOT = Path(__file__).parents[2]
HOOK = Path(__file__).parent / "hook"


@cache
def missing(need: str) -> str:
    """Why a scenario that needs this cannot run here; "" if it can. need: root, loop, nft, cgroup, kafka, rabbitmq."""
    if missing_root := _fails(*UNSHARE, "true"):
        return f"no namespaces of its own (root is needed): {missing_root}"
    match need:
        case "root":
            return "" if shutil.which("ip") else "iproute2 is not installed"
        case "nft":
            return _fails("unshare", "--net", "nft", "list", "ruleset")
        case "loop":
            return "" if shutil.which("mkfs.ext4") and Path("/dev/loop-control").exists() else "no loop devices or no mkfs.ext4"
        case "cgroup":
            return "" if os.access("/sys/fs/cgroup/memory", os.W_OK) else "no writable memory controller (cgroup v1)"
        case "kafka":
            try:
                jars()
            except Missing as why:
                return str(why)
            return ""
        case "rabbitmq":
            return "" if RABBITMQ else "RabbitMQ is not installed: tools/test-servers, or apt-get install rabbitmq-server"
    raise ValueError(need)


def cannot_run(scenario: Scenario) -> str:
    """Why; "" if it can."""
    return next((why for need in scenario.needs if (why := missing(need))), "")


def _fails(*command: str) -> str:
    try:
        done = run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    return done.stderr.strip() if done.returncode else ""


async def inside(arguments: list[str], folder: Path, timeout: float, env: Mapping[str, str]) -> int:
    """`python -m …` in a space of its own; its exit status. Output goes to folder/run.log. After `timeout` seconds all of it is killed."""
    with open(folder / "run.log", "ab") as log:
        # A shell is process 1 of the space: it waits for whatever is orphaned there.
        process = await asyncio.create_subprocess_exec(
            *UNSHARE, "sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-m", *arguments,
            cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=os.environ | env,
        )  # fmt: skip
        try:
            async with asyncio.timeout(timeout):
                return await process.wait()
        except TimeoutError:
            log.write(f"not over after {timeout:g} s: killed\n".encode())
            return 1
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
