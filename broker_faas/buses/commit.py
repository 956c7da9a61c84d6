"""Publishing to one stream: publishes that arrive while one is awaited leave together.

A lane has one write in flight, so what is stored keeps the order of the calls. A few records go as plain publishes in one write,
more as an atomic batch (ADR-50): with every record fsynced, one costs 0.6 ms plain and 2.4 ms as a batch, 500 cost 112 and 10.

A batch that holds a duplicate is rejected whole, without saying which record it was: then the records go one by one, and the
server answers `duplicate` for those it has. No partition has two plain records in flight: were the first refused and the
second stored, their order would be lost.

A call with positions that must follow the ones it knows (decision 12) always goes as a batch, which the server refuses whole if one
does not. It never goes one by one: what is in the way is found by a dry run, and the rest goes as a batch again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby

from ..bus import Record
from ..errors import BusError, BusRefused, BusUnavailable, Overtaken
from .calls import Call, Item, queued
from .connection import Connection
from .records import DRY, DUPLICATE, FULL, INCOMPLETE, LATER, MOVING, NO_ATOMIC, NOT_LAST, ROLLUP, Verdict, follows, frame, refusal, verdict
from .replies import not_permitted

log = logging.getLogger(__name__)

FEW = 10  # records up to this go plain
MAX_BATCH = 1000  # records: the server's limit
MAX_WAVE = 256  # plain records in one write: 0.15 s of fsyncs
MAX_WRITE = 8 << 20  # bytes of one write, or of those of one batch
AT_ONCE = 128  # records of a batch in one write: the server takes them in while the next ones are made
MAX_QUEUED = 10_000  # records, and
MAX_QUEUED_BYTES = 32 << 20  # bytes that wait; publish() waits beyond
SLOWEST = 256 << 10  # bytes a second of a link on which publishing still works
SPACE_AGE = 1.0  # seconds between looks at the stream's size while publishing
_DENIED = -1


class Lane:
    """used, max_bytes: of the stream, as last seen plus what was sent since; max_bytes 0: no limit, or not permitted to look."""

    def __init__(self, connection: Connection, stream: str, try_seconds: float) -> None:
        self.stream = stream
        self.used = self.max_bytes = 0
        self._looked = -SPACE_AGE
        self._connection = connection
        self._try_seconds = try_seconds
        self._queue: deque[Item] = deque()  # bounded by MAX_QUEUED and MAX_QUEUED_BYTES
        self._queued_bytes = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._turn = asyncio.Lock()
        self._crowd = 0  # publishes that wait for room
        self._looking = asyncio.Lock()
        self._atomic = True
        self._nonce = secrets.token_hex(4)
        self._batches = 0

    async def submit(self, records: Sequence[Record], call: Call) -> None:
        """Queued behind what was submitted before. Waits while the queue is full; await the call's outcome for the rest."""
        items = [queued(record, call) for record in records]
        size = sum([item.size for item in items])
        if self._crowd or self._is_full(len(items), size):
            self._crowd += 1
            try:
                async with asyncio.timeout_at(call.deadline), self._turn:  # first come, first served
                    while self._is_full(len(items), size):
                        self._room.clear()
                        await self._room.wait()
            finally:
                self._crowd -= 1
        self._queue.extend(items)
        self._queued_bytes += size
        self._arrived.set()

    def _is_full(self, count: int, size: int) -> bool:
        return bool(self._queue) and (len(self._queue) + count > MAX_QUEUED or self._queued_bytes + size > MAX_QUEUED_BYTES)

    async def run(self) -> None:
        items: list[Item] = []
        try:
            while True:
                await self._arrived.wait()
                if items := self._take():
                    await self.look()
                    await self._store(items)
                    self.used += sum(item.size for item in items)
        finally:
            for item in [*items, *self._queue]:
                item.failed(BusUnavailable("the bus was closed meanwhile; what was published may or may not be stored"))

    async def look(self, max_age: float = SPACE_AGE) -> None:
        """Reads the stream's size, unless it was read in the last max_age seconds."""
        async with self._looking:  # whoever comes meanwhile wants that answer, and not the one before
            now = asyncio.get_running_loop().time()
            if now - self._looked < max_age:
                return
            self._looked = now
            try:
                info = await self._connection.api(f"STREAM.INFO.{self.stream}")
            except BusError as e:
                if isinstance(e, BusRefused) and not e.code:
                    self._looked = float("inf")  # not permitted to look
                return
            self.used, self.max_bytes = info["state"]["bytes"], max(0, info["config"]["max_bytes"])

    def _take(self) -> list[Item]:
        """The next group: one record for each message id."""
        if self._queue and self._queue[0].call.left == len(self._queue) <= MAX_BATCH and self._queued_bytes <= MAX_WRITE:
            # All that waits is of one call: a third of the cost for what connectors bring.
            alone = {item.record.msg_id: item for item in self._queue if item.wanted}
            if len(alone) == len(self._queue):
                self._queue.clear()
                self._queued_bytes = 0
                self._arrived.clear()
                self._room.set()
                return list(alone.values())
        group: dict[str, Item] = {}
        size = 0
        call: Call | None = None
        while self._queue:
            item = self._queue[0]
            if item.call.last is None:
                room = len(group) < MAX_BATCH and size + item.size <= MAX_WRITE
            elif item.call is call:  # stored whole, if it is one batch: only the server's limit cuts it
                room = len(group) < MAX_BATCH
            else:
                room = len(group) + item.call.left <= MAX_BATCH and size + item.size <= MAX_WRITE
            if group and not room:
                break
            first = group.get(item.record.msg_id)
            if first and first.call is not item.call and (first.call.last or item.call.last):
                break  # what becomes of a call that is stored whole or not is no other's
            self._queue.popleft()
            self._queued_bytes -= item.size
            if not item.wanted:
                continue
            call = item.call
            if first:
                first.joined(item)
            else:
                group[item.record.msg_id] = item
                size += item.size
        if not self._queue:
            self._arrived.clear()
        self._room.set()
        return list(group.values())

    async def _store(self, items: list[Item]) -> None:
        """Until each item is stored, refused, or nobody waits for it any more."""
        whole, pause = True, 0.02
        while items := [item for item in items if item.wanted]:
            await self._connection.up.wait()
            if self._atomic and any(item.call.last for item in items):
                later = await self._following(items)
            elif len(items) > FEW and whole and self._atomic:
                whole = await self._as_batch(items)
                later = whole
            else:
                later = await self._one_by_one(items)
            if later and any(item.wanted for item in items):
                await asyncio.sleep(pause)
                pause = min(1.0, pause * 2)

    def _patience(self, items: list[Item]) -> float:
        """Seconds until they are sent again. A slow link that is still busy with them must not get them a second time."""
        return self._try_seconds + sum([item.size for item in items]) / SLOWEST

    async def _as_batch(self, items: list[Item]) -> bool:
        """All or none. False: the server rejects it as a batch, and one by one will tell which record is to blame."""
        said = await self._batch(items, {})
        if said is None:
            return True
        if said.code in FULL and len({item.call for item in items}) == 1:
            for item in items:
                item.failed(refusal(said.code, said.text, item.record, self.stream))
            return True
        return said.code in LATER or said.code == 0  # else one by one: some calls may fit, and each has its own outcome

    async def _following(self, items: list[Item]) -> bool:
        """All or none, and only behind the positions that are known. True: what is still wanted has to be sent again, after a pause."""
        said = await self._batch(items, _following(items))
        if said is not None and said.code == 0:
            return False
        if said is None or said.code in LATER or said.code == NO_ATOMIC:
            return True
        calls = [list(some) for _, some in groupby(items, lambda item: id(item.call))]
        if len(calls) > 1:  # each has its own outcome
            for some in calls:
                await self._store(some)
            return True
        if said.code == MOVING:
            return True
        if said.code == NOT_LAST:
            items[0].failed(_overtaken(items[0].call, said.text))
        elif said.code in FULL or (await self._dry_run(items) == 0 and said.code not in (DUPLICATE, INCOMPLETE, _DENIED, 503)):
            items[0].failed(refusal(said.code, said.text, items[0].record, self.stream))
        return not any(item.ended for item in items)

    async def _dry_run(self, items: list[Item]) -> int | None:
        """Ends what is stored already, or never can be: how many. None: no answer. items: of one call."""
        async with self._connection.expect([item.record.subject for item in items]) as replies:
            self._connection.write(b"".join([frame(item.record, f"{replies.prefix}{n}", DRY) for n, item in enumerate(items)]))
            answered = await replies.wait(self._patience(items))
        if not answered:
            return None
        found = [Verdict(_DENIED) if n in replies.denied else verdict(*answer) for n, answer in enumerate(replies.answers) if answer]
        stored = [(item, one) for item, one in zip(items, found, strict=True) if one.code == 0]
        if len(stored) < len(items) and (positions := [item for item, _ in stored if item.position]):
            # Whoever stored this position stored what is before it: not the same as here.
            positions[0].failed(_overtaken(positions[0].call, "this position is stored, with other events"))
            return 1
        for item, one in stored:
            item.stored(True, one.sequence)
        refused = [(item, one) for item, one in zip(items, found, strict=True) if one.code and one.code != ROLLUP and one.code not in LATER]
        for item, one in refused:
            if one.code == _DENIED:
                item.failed(not_permitted(item.record.subject))
            elif one.code == 503:
                await self._exists(items)
            else:
                item.failed(refusal(one.code, one.text, item.record, self.stream))
        return len(stored) + len(refused)

    async def _batch(self, items: list[Item], following: dict[int, bytes]) -> Verdict | None:
        """One atomic batch. following: headers of some, by their number from 1. None: no answer."""
        self._batches += 1
        head = b"Nats-Batch-Id: %b%x\r\nNats-Batch-Sequence: " % (self._nonce.encode(), self._batches)
        async with self._connection.expect([item.record.subject for item in items[-1:]]) as replies:
            last = len(items)
            heads = [b"%b%d\r\n" % (head, n) for n in range(1, last + 1)]
            heads[-1] += b"Nats-Batch-Commit: 1\r\n"
            for n, follows_it in following.items():
                heads[n - 1] += follows_it
            answers = [""] * (last - 1) + [f"{replies.prefix}0"]
            # crash point: batch-before-write
            for n in range(0, last, AT_ONCE):
                some = zip(items[n : n + AT_ONCE], answers[n:], heads[n:], strict=False)
                sent = self._connection.write(b"".join([frame(item.record, answer, ours) for item, answer, ours in some]))
            # crash point: batch-written
            await replies.wait(self._patience(items))
            # crash point: batch-answered
            answer = replies.answers[0]
        if answer is None:
            for item in items:
                item.resent = item.resent or sent
            return None
        if replies.denied:
            return Verdict(_DENIED)
        said = verdict(*answer)
        if said.code == 0:
            for sequence, item in enumerate(items, said.sequence - last + 1):
                item.stored(False, sequence)
        elif said.code == NO_ATOMIC:
            log.warning("stream takes no atomic batches: publishing is ten times slower", extra={"stream": self.stream})
            self._atomic = False
        return said

    async def _one_by_one(self, items: list[Item]) -> bool:
        """In order, several in one write where order allows. True: something has to be sent again, after a pause."""
        for wave in _waves(items):
            wave = [item for item in wave if item.wanted]
            if not wave:
                continue
            async with self._connection.expect([item.record.subject for item in wave]) as replies:
                frames = [frame(item.record, f"{replies.prefix}{n}", _alone(item)) for n, item in enumerate(wave)]
                # crash point: records-before-write
                sent = self._connection.write(b"".join(frames))
                # crash point: records-written
                await replies.wait(self._patience(wave))
                # crash point: records-answered
            again = False
            for n, (item, answer) in enumerate(zip(wave, replies.answers, strict=True)):
                if n in replies.denied:
                    item.failed(not_permitted(item.record.subject))
                elif answer is None:
                    item.resent, again = item.resent or sent, True
                else:
                    code, text, duplicate, sequence = verdict(*answer)
                    if code == 0:
                        item.stored(duplicate, sequence)
                    elif code in LATER or code == MOVING:
                        again = True
                    elif code == 503:
                        again = True
                        await self._exists(wave)
                    else:
                        item.failed(refusal(code, text, item.record, self.stream))
            if again:
                return True
        return False

    async def _exists(self, items: list[Item]) -> None:
        """Nobody took the record: a server that is starting, or no such stream?"""
        try:
            await self._connection.api(f"STREAM.INFO.{self.stream}")
        except BusRefused as e:
            if e.code:  # else this user may publish, and may not ask
                for item in items:
                    item.failed(e)
        except BusError:
            pass


def _following(items: list[Item]) -> dict[int, bytes]:
    """Headers of a batch, by the number of the record in it, from 1: behind what its calls with positions must be.

    A call of more than one batch has its positions in the last: in the others, any of its records says it for them.
    """
    found: dict[int, bytes] = {}
    for _, some in groupby(enumerate(items, 1), lambda one: id(one[1].call)):
        part = list(some)
        if last := part[0][1].call.last:
            there = {item.record.subject: n for n, item in part if item.record.subject in last}
            others = (n for n, _ in part if n not in there.values())
            for subject, sequence in last.items():
                if subject in there:
                    found[there[subject]] = follows(sequence)
                elif n := next(others, 0):
                    found[n] = follows(sequence, subject.encode())
    return found


def _overtaken(call: Call, how: str) -> Overtaken:
    return Overtaken(f"another has stored {', '.join(list(call.last or ())[:3])} since it was read ({how}): reading goes on behind that")


def _alone(item: Item) -> bytes:
    """Header of a record that goes by itself, to a stream that takes no batches."""
    return follows(item.call.last[item.record.subject]) if item.call.last and item.position else b""


def _waves(items: list[Item]) -> Iterator[list[Item]]:
    """Consecutive items that may be in flight at once: no partition twice, bounded."""
    wave: list[Item] = []
    keyed: set[str] = set()
    size = 0
    for item in items:
        subject = item.record.subject
        partition = subject[-4:]
        # What a position speaks for is stored before it is sent: it is the last of its call, and not wanted when that has failed.
        behind = subject.startswith("pos.") and bool(wave) and not wave[-1].record.subject.startswith("pos.")
        if len(wave) == MAX_WAVE or size + item.size > MAX_WRITE or partition in keyed or behind:
            yield wave
            wave, keyed, size = [], set(), 0
        wave.append(item)
        size += item.size
        if subject.startswith(("ev.", "out.", "re.")) and not subject.endswith(".-.-"):
            keyed.add(partition)
    yield wave
