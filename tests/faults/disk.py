"""Disks for the system under test: one that can be full, and one whose power can be cut.

The power cut is the file system's own: ext4 takes EXT4_IOC_SHUTDOWN and from that instant writes nothing more, neither data nor its
journal (xfstests tests crash consistency this way). What the server had synced is in the image, what it had not is gone with the page
cache. The server is stopped first: whatever it acknowledged, it had said before the cut.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from pathlib import Path

_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
_NO_LOG_FLUSH = 2


class Disk:
    """A file system of its own at `place`. kind: "ext4" (on a loop device; its image lies in `images`) or "tmpfs". size: bytes."""

    def __init__(self, place: Path, images: Path, kind: str, size: int) -> None:
        self.place = place
        self.kind = kind
        self.size = size
        self._image = images / f"{place.name}.img"

    def make(self) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        if self.kind == "tmpfs":
            call("mount", "-t", "tmpfs", "-o", f"size={self.size}", "tmpfs", str(self.place))
            return
        with open(self._image, "wb") as image:
            image.truncate(self.size)
        call("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
        call("mount", "-o", "loop", str(self._image), str(self.place))

    def cut(self) -> None:
        """From now on nothing reaches the image."""
        root = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(root, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(root)

    def revive(self) -> None:
        """After cut(), and when nothing has a file open there: as the machine finds it when power is back."""
        call("umount", str(self.place))
        call("mount", "-o", "loop", str(self._image), str(self.place))

    def resize(self, size: int) -> None:
        """Of a tmpfs."""
        call("mount", "-o", f"remount,size={size}", str(self.place))


def call(*command: str) -> str:
    """Standard output. AssertionError, with what it said, if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout
