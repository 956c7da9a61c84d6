"""Bearer keys of the gateway: who may publish to which topics.

A file of JSON with the hash of each key: a key itself is shown once, when it is made, and kept nowhere.
"""

from __future__ import annotations

import fcntl
import hmac
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import msgspec

from ..errors import ConfigError
from ..topics import check_pattern, matches

log = logging.getLogger(__name__)

PREFIX = "faas_"  # what a scanner for leaked secrets looks for
LARGEST = 4 << 20  # bytes of the file
_NAME = re.compile(r"[A-Za-z0-9._-]{1,60}")


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """sha256: of the key, in hex. topics: patterns that it may publish to. created: RFC 3339.

    A plain hash is enough: a key is 256 random bits, which nobody guesses, however fast. Slow hashes are for passwords.
    """

    name: str
    sha256: str
    topics: tuple[str, ...]
    created: str

    def covers(self, topic: str) -> bool:
        return any(matches(pattern, topic) for pattern in self.topics)


class KeyFile:
    """The keys in a file, for the command line. Each change is one new file in the place of the old: a reader sees all of it or none.

    Raises ConfigError if the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, name: str, topics: tuple[str, ...] = ()) -> str:
        """Makes a key, and returns it. topics: none means all. Raises ConfigError if the name is taken or is none, TopicInvalid."""
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name[:80]!r} is no name of a key: letters, digits, '.', '_' and '-', at most 60 characters.")
        patterns = tuple(dict.fromkeys(check_pattern(topic) for topic in topics)) or (">",)
        secret = PREFIX + secrets.token_urlsafe(32)
        with self._changing() as keys:
            if any(key.name == name for key in keys):
                raise ConfigError(f"there is a key {name!r} already. Choose another name, or revoke that one first.")
            keys.append(Key(name, digest(secret), patterns, datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")))
        return secret

    def revoke(self, name: str) -> bool:
        """Whether there was such a key. The file stays when its last key goes: nobody may publish then."""
        with self._changing() as keys:
            rest = [key for key in keys if key.name != name]
            found = len(rest) < len(keys)
            keys[:] = rest
        return found

    def read(self) -> list[Key] | None:
        """None without a file."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would wait for a writer
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error.strerror}.") from None
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"{self.path} is no file; name another one: keys = … under [gateway].")
            if mode & 0o022:
                raise ConfigError(f"{self.path} can be written by others, who could add keys of their own: chmod 600 {self.path}")
            return msgspec.json.decode(os.read(descriptor, LARGEST), type=list[Key])
        except (OSError, msgspec.MsgspecError, UnicodeError):
            raise ConfigError(f"{self.path} holds no keys: it is damaged, or no file of `faas keys`. Restore it, or delete it.") from None
        finally:
            os.close(descriptor)

    @contextmanager
    def _changing(self) -> Iterator[list[Key]]:
        """The keys, to be changed; written when the context is left without an error. One process at a time."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written: {error.strerror}.") from None
        with open(descriptor, "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = self.read() or []
            before = list(keys)
            yield keys
            if keys != before:
                self._write(msgspec.json.format(msgspec.json.encode(keys), indent=2) + b"\n")

    def _write(self, data: bytes) -> None:
        """After a power cut there is the old file or the new one, whole."""
        new = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.new")
        try:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(new, self.path)
        except OSError as error:
            with suppress(OSError):
                new.unlink()
            raise ConfigError(f"{self.path} cannot be written: {error.strerror}.") from None
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Keys:
    """What the gateway asks: reads the file again when it is another one, so that a revoked key ends with the next request.

    A gateway that had keys never opens by itself: without the file, or with one that cannot be used, nobody may publish.
    """

    def __init__(self, file: KeyFile) -> None:
        self._file = file
        self._keys: list[Key] | None = None
        self._seen: tuple[int, ...] | None = None  # what stat() says of the file that was read
        self._problem = ""  # that was logged

    @property
    def wanted(self) -> bool:
        """Whether a key is needed. False only if there never was a file. Raises ConfigError if it cannot be used."""
        self._refresh()
        return self._keys is not None

    def find(self, secret: str) -> Key | None:
        """The key whose secret this is. Takes the same time for a wrong one, however much of it is right."""
        self._refresh()
        presented, found = digest(secret), None
        for key in self._keys or ():
            if hmac.compare_digest(presented, key.sha256):
                found = key
        return found

    def _refresh(self) -> None:
        """Two microseconds while nothing has changed: a stat() a request."""
        try:
            about = os.stat(self._file.path)
            seen: tuple[int, ...] | None = (about.st_ino, about.st_mtime_ns, about.st_size, about.st_mode)
        except FileNotFoundError:
            if self._keys is None:
                return  # and not read(): without descriptors left it would say something else
            seen = None
        except OSError:
            seen = None
        if seen == self._seen and seen is not None:
            return
        if self._keys is not None:
            self._keys = []  # until the new file is read: what cannot be used lets nobody in
        self._seen = None
        try:
            keys = self._file.read()
        except ConfigError as error:
            if self._problem != str(error):  # once, however many requests come
                self._problem = str(error)
                log.error("the keys cannot be used: nobody may publish", extra={"why": self._problem})
            raise
        self._problem = ""
        if keys is not None:
            self._keys, self._seen = keys, seen


def digest(secret: str) -> str:
    return sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
