"""Files of the server's store, harmed while the server is stopped."""

from __future__ import annotations

import random
from pathlib import Path


def streams(store: Path) -> Path:
    """The folder with a folder for each stream, of a store with one account."""
    [found] = store.glob("jetstream/*/streams")
    return found


def flip(file: Path, at: int, rng: random.Random) -> str:
    """Another bit in the byte at this offset. What was done."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    return f"a bit of byte {at} of {len(data)} in {file.parent.name}/{file.name}"


def flip_any(file: Path, rng: random.Random) -> str:
    return flip(file, rng.randrange(file.stat().st_size), rng)


def flip_data(stream: Path, id: str, rng: random.Random) -> str:
    """A bit of the data of this event, wherever it lies."""
    wanted = f"\r\nce-id: {id}\r\n".encode()
    for block in sorted(stream.glob("msgs/*.blk")):
        where = block.read_bytes().find(wanted)
        if where >= 0:
            end_of_headers = block.read_bytes().index(b"\r\n\r\n", where)
            return flip(block, end_of_headers + 4 + rng.randrange(20), rng)  # 20 bytes: the smallest that events have
    raise AssertionError(f"{id} is in no block of {stream}")


def cut(file: Path, rng: random.Random, most: int) -> str:
    """Its end, up to so many bytes. What was done."""
    size = file.stat().st_size
    gone = rng.randint(1, min(most, size))
    with open(file, "r+b") as opened:
        opened.truncate(size - gone)
    return f"the last {gone} of {size} bytes of {file.parent.name}/{file.name}"


def cut_any(file: Path, rng: random.Random) -> str:
    return cut(file, rng, file.stat().st_size)


def fill(file: Path) -> int:
    """Until the volume has no byte left; how many were written."""
    written = 0
    with open(file, "wb", buffering=0) as filler:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    written += filler.write(b"\0" * size)
            except OSError:
                pass
    return written
