# SPDX-License-Identifier: Apache-2.0
"""One package's way to its place: fetch, write and check side by side.

    fetch == bounded queue ==> write -- durable watermark --> check

A package of several files is one row of bytes in the order of the notice, for the staging file; the digest of each is
compared soon after its last byte is durable.

The digest is computed once, over what the medium holds, one durable range behind the writer. Writer and checker share
one number and nothing else: after a restart the checker reads the prefix again while the download goes on, and a slow
medium does not stall it. Memory is flat whatever the size: the buffers of `Pace`, and what the source holds.
"""

import asyncio
import contextlib
import errno
import hashlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

from otad.core.model import Artifact, Deployment, PlaceKind
from otad.durable import Place, pages
from otad.errors import Code, UpdateError
from otad.telemetry import Progress
from otad.threads import in_thread
from otad.transfer.pipe import Pipe
from otad.transfer.source import Begin, Piece, Source, StartOver, Waiting
from otad.units import format_size

log = logging.getLogger(__name__)

RANGE_BYTES = 1 << 20
"""What is read back begins and ends on this, but for the end: odd ranges leave pages in memory behind."""
STEP_BYTES = 8 << 20
"""At most so much is read back at once: a canceled checker ends soon."""
HEAD_BYTES = 512
"""So much of the beginning is enough to tell what a package is."""
IDLE_STARTS_MAX = 10
IDLE_PAUSE_FIRST_S = 30.0
IDLE_PAUSE_MAX_S = 3600.0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`bytes` of the place are durable. `fetched` and `resumed` count since the last checkpoint."""

    place: PlaceKind
    bytes: int
    etag: str
    etag_url: str
    joined: bool
    fetched: int
    resumed: int


class Places(Protocol):
    """Opens where a package may land. An opened place stays open after `download`; who made it closes it."""

    async def open_slot(self, deployment: Deployment) -> Place:
        """The target, prepared and opened exclusively. UpdateError SLOT, BOOT or SPACE."""
        ...

    async def open_staging(self, deployment: Deployment) -> Place:
        """The staging file. UpdateError SPACE."""
        ...


@dataclass(frozen=True, slots=True)
class Pace:
    """How much at once, and how often. All sizes are multiples of durable.ALIGNMENT."""

    buffer_bytes: int = 512 << 10
    buffers: int = 2
    check_bytes: int = 512 << 10
    checkpoint_bytes: int = 8 << 20
    checkpoint_s: float = 15.0
    progress_s: float = 0.25


USUAL = Pace()


async def download(
    deployment: Deployment,
    source: Source,
    places: Places,
    unpack: bool,
    checkpointed: Callable[[Checkpoint], Awaitable[object]],
    progress: Callable[[Progress], None],
    *,
    is_raw: Callable[[bytes], bool],
    pace: Pace = USUAL,
) -> PlaceKind:
    """Bring the package to its place: durable there, and equal to the notice's digests as the medium holds it.

    Goes on from the deployment's checkpoint; `checkpointed` returns when one is remembered. `is_raw` tells from the
    first HEAD_BYTES whether the package is an image as it stands, for the slot, or something for the staging file;
    without `unpack` it is not asked. Several files, and what is installed in place, are for the staging file without a
    question. Raises UpdateError. When canceled, returns only after the chunk in flight has been written.
    """
    meter = _Meter(deployment, progress, pace.progress_s)
    await _pause_after_idle_starts(deployment.idle_starts, meter)
    transfer = _Transfer(deployment, source, places, is_raw if unpack else None, checkpointed, meter, pace)
    task = asyncio.current_task()
    assert task is not None
    canceled = task.cancelling()
    while True:
        try:
            # A task of its own: in Python 3.11 and 3.12 an error within a TaskGroup swallows a cancellation that comes
            # at the same time, and only from outside of it can be seen that there was one.
            return await asyncio.create_task(transfer.run(), name="transfer")
        except StartOver as order:
            if task.cancelling() > canceled:
                raise asyncio.CancelledError from order
            log.warning("download starts over: %s", order)
            await transfer.forget()


class _Transfer:
    """What fetch, write and check share."""

    def __init__(
        self,
        deployment: Deployment,
        source: Source,
        places: Places,
        is_raw: Callable[[bytes], bool] | None,
        checkpointed: Callable[[Checkpoint], Awaitable[object]],
        meter: "_Meter",
        pace: Pace,
    ) -> None:
        self._deployment, self._source, self._places, self._is_raw = deployment, source, places, is_raw
        self._checkpointed, self._meter, self._pace = checkpointed, meter, pace
        self._size = deployment.notice.identity.size
        # The first bytes decide on the place: while none of them is durable, others may decide otherwise.
        self._kind = deployment.place if deployment.checkpoint else None
        self._open: dict[PlaceKind, Place] = {}
        self._buffers = [pages(pace.buffer_bytes) for _ in range(pace.buffers)]
        self._pipe = Pipe(deployment.checkpoint, self._buffers)
        self._durable = _Watermark(deployment.checkpoint)
        self._etag, self._etag_url, self._joined = deployment.etag, deployment.etag_url, deployment.joined
        self._fetched = self._resumed = 0  # since the last checkpoint
        self._flowed = False

    async def run(self) -> PlaceKind:
        """UpdateError or StartOver: raised when all three have let go."""
        ended: list[Exception] = []
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._fetch(), name="fetch")
                tasks.create_task(self._land(tasks), name="write")
        except* (UpdateError, StartOver) as group:
            ended = [error for error in group.exceptions if isinstance(error, UpdateError | StartOver)]
        for error in sorted(ended, key=lambda error: isinstance(error, StartOver)):
            raise error  # what failed at the place weighs more than what the server says
        assert self._kind is not None
        return self._kind

    async def forget(self) -> None:
        """What has come so far is of another object."""
        self._etag = self._etag_url = ""
        self._joined = False
        self._durable = _Watermark(0)
        self._pipe = Pipe(0, self._buffers)
        self._meter.position = self._meter.checked = 0
        if self._kind is not None:
            await self._checkpoint(self._kind)
        self._kind = None

    # ------------------------------------------------------------------------------------------ fetch

    async def _fetch(self) -> None:
        begin = Begin(self._durable.bytes, self._size, self._etag, self._etag_url)
        position = begin.offset
        if position == self._size:
            return  # only to be checked; the server need not be there
        async with contextlib.aclosing(self._source.pieces(begin, self._meter.wait)) as pieces:
            async for piece in pieces:
                self._count(piece, position)
                position += len(piece.content)
                await self._pipe.put(piece.content)
                self._meter.move(position)
        self._pipe.flush()
        if position != self._size:
            raise RuntimeError(f"source ended at {position} of {self._size} bytes")

    def _count(self, piece: Piece, position: int) -> None:
        self._fetched += piece.brought
        if piece.etag:
            self._etag, self._etag_url = piece.etag, piece.etag_url
        if piece.first and position:
            self._joined = True
            self._resumed += self._flowed
            self._meter.resumed += self._flowed
        self._flowed = self._flowed or bool(piece.content)

    # ------------------------------------------------------------------------------------------ write

    async def _land(self, tasks: asyncio.TaskGroup) -> None:
        kind = self._kind = self._kind or await self._decide()
        place = await self._opened(kind)
        tasks.create_task(self._check(place), name="check")
        await self._write(place, kind)

    async def _decide(self) -> PlaceKind:
        if self._deployment.in_place or len(self._deployment.notice.artifacts) > 1:
            return PlaceKind.STAGING
        if self._is_raw is None:
            return PlaceKind.SLOT
        head = await self._pipe.head(min(HEAD_BYTES, self._size))
        return PlaceKind.SLOT if self._is_raw(head) else PlaceKind.STAGING

    async def _opened(self, kind: PlaceKind) -> Place:
        if kind not in self._open:
            open_it = self._places.open_slot if kind == PlaceKind.SLOT else self._places.open_staging
            place = self._open[kind] = await open_it(self._deployment)
            if not place.from_medium:
                log.warning("%s is in memory: reading it back proves nothing", self._name(kind))
            if place.bytes < self._size:
                has, needs = format_size(place.bytes), format_size(self._size)
                raise UpdateError(Code.SPACE, f"{self._name(kind)}: has {has}, the package {needs}")
        return self._open[kind]

    async def _write(self, place: Place, kind: PlaceKind) -> None:
        pace = self._pace
        written, synced_at = self._durable.bytes, time.monotonic()
        while written < self._size:
            chunk = await self._pipe.take(max(0, synced_at + pace.checkpoint_s - time.monotonic()))
            if chunk is not None:
                written = chunk.offset + len(chunk.content)
                with self._place_errors(kind):
                    await in_thread(place.write, chunk.offset, chunk.content)
                self._pipe.give_back(chunk)
            fresh, is_due = written - self._durable.bytes, time.monotonic() - synced_at >= pace.checkpoint_s
            if fresh and (fresh >= pace.checkpoint_bytes or is_due or written == self._size):
                with self._place_errors(kind):
                    await in_thread(place.sync)
                self._durable.rise(written)
                await self._checkpoint(kind)
            if is_due or written == self._durable.bytes:
                synced_at = time.monotonic()

    async def _checkpoint(self, kind: PlaceKind) -> None:
        """Have it remembered before another byte is written: what a power cut costs is then one checkpoint, always."""
        checkpoint = Checkpoint(
            kind, self._durable.bytes, self._etag, self._etag_url, self._joined, self._fetched, self._resumed
        )
        self._fetched = self._resumed = self._meter.resumed = 0
        await self._checkpointed(checkpoint)

    # ------------------------------------------------------------------------------------------ check

    async def _check(self, place: Place) -> None:
        artifacts = self._deployment.notice.artifacts
        assert sum(artifact.size for artifact in artifacts) == self._size, "a recovered deployment downloads nothing"
        proof = _Proof(artifacts, self._name(self._kind))
        buffers = pages(self._pace.check_bytes), pages(self._pace.check_bytes)
        checked = 0
        with ThreadPoolExecutor(1, "read-back") as reader:
            while checked < self._size:
                await self._durable.reach(min(checked + RANGE_BYTES, self._size))
                end = min(self._durable.bytes, checked + STEP_BYTES)
                if end < self._size:
                    end -= end % RANGE_BYTES
                with self._place_errors(self._kind):
                    await in_thread(_read_range, place, checked, end, buffers, proof, reader)
                checked = end
                self._meter.check(checked)

    def _name(self, kind: PlaceKind | None) -> str:
        return f"slot {self._deployment.target}" if kind == PlaceKind.SLOT else "staging file"

    @contextlib.contextmanager
    def _place_errors(self, kind: PlaceKind | None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            code = Code.SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else Code.MEDIUM
            raise UpdateError(code, f"{self._name(kind)}: {error.strerror or error}") from error


class _Proof:
    """The digests of a row of artifacts. Fed with their bytes from the first on; a wrong one ends in UpdateError."""

    def __init__(self, artifacts: Sequence[Artifact], place: str) -> None:
        self._artifacts, self._place = iter(artifacts), place
        self._next()

    def update(self, content: memoryview) -> None:
        while len(content) >= self._left:
            self._digest.update(content[: self._left])
            content = content[self._left :]
            self._compare()
            if not self._next():
                return
        self._digest.update(content)
        self._left -= len(content)

    def _next(self) -> bool:
        following = next(self._artifacts, None)
        if following is not None:
            self._artifact, self._left = following, following.size
            self._digest = hashlib.new(following.digest.method, usedforsecurity=False)
        return following is not None

    def _compare(self) -> None:
        wanted, found = self._artifact.digest, self._digest.hexdigest()
        if found != wanted.hex:
            file = f"{self._artifact.name} in the {self._place}" if self._artifact.name else self._place
            raise UpdateError(Code.DIGEST, f"{file}: {wanted.method} is {found}, the notice says {wanted.hex}")


def _read_range(
    place: Place,
    begin: int,
    end: int,
    buffers: tuple[memoryview, memoryview],
    proof: _Proof,
    reader: Executor,
) -> None:
    """Feed the proof from the medium, reading the next bytes while these are hashed.

    Many buffers per change of threads: small buffers cost no time this way, and keep memory small.
    """
    (front, back), length = buffers, len(buffers[0])
    ahead = reader.submit(place.read_into, begin, front)
    for offset in range(begin, end, length):
        count = min(length, end - offset)
        if (found := ahead.result()) < count:
            raise OSError(errno.EIO, f"gives back {found} of {count} bytes at {offset}")
        if offset + length < end:
            ahead = reader.submit(place.read_into, offset + length, back)
        proof.update(front[:count])
        front, back = back, front


class _Watermark:
    """The number that writer and checker share: bytes known durable."""

    def __init__(self, durable: int) -> None:
        self.bytes = durable
        self._risen = asyncio.Event()

    def rise(self, durable: int) -> None:
        self.bytes = durable
        self._risen.set()

    async def reach(self, wanted: int) -> None:
        while self.bytes < wanted:
            self._risen.clear()
            await self._risen.wait()


class _Meter:
    """Turns what happens into progress, a few times a second."""

    def __init__(self, deployment: Deployment, progress: Callable[[Progress], None], every_s: float) -> None:
        self._publish, self._every_s = progress, every_s
        self.position, self.checked, self.resumed = deployment.checkpoint, 0, 0
        self._shown = Progress(deployment.id, self.position, deployment.notice.identity.size)
        self._shown_at = time.monotonic()
        self._rated = (self.position, self._shown_at)  # where and when the rate was last taken

    def move(self, position: int) -> None:
        self.position = position
        if self._shown.waits_for or time.monotonic() - self._shown_at >= self._every_s:
            self._show()

    def check(self, checked: int) -> None:
        self.checked = checked
        if checked == self._shown.total or time.monotonic() - self._shown_at >= self._every_s:
            self._show(self._shown.waits_for, self._shown.waits_until)

    def wait(self, waiting: Waiting) -> None:
        self._show(waiting.reason, waiting.until)

    def _show(self, waits_for: str = "", waits_until: float | None = None) -> None:
        now = time.monotonic()
        rate, (begun, since) = self._shown.rate, self._rated
        if waits_for:
            rate, self._rated = 0.0, (self.position, now)
        elif now - since >= self._every_s:  # what came in a moment says nothing of what a second brings
            fresh = max(0, self.position - begun) / max(now - since, 0.001)
            rate, self._rated = (rate + fresh) / 2 if rate else fresh, (self.position, now)
        self._shown = replace(
            self._shown,
            bytes=self.position,
            checked=self.checked,
            rate=rate,
            resumed=self.resumed,
            waits_for=waits_for,
            waits_until=waits_until,
        )
        self._shown_at = now
        self._publish(self._shown)


def idle_pause_s(idle_starts: int) -> float:
    """Starts that bring nothing come ever more rarely: something here may be what ends them."""
    if idle_starts <= IDLE_STARTS_MAX:
        return 0
    longest_s = min(IDLE_PAUSE_MAX_S, IDLE_PAUSE_FIRST_S * 2.0 ** min(idle_starts - IDLE_STARTS_MAX - 1, 32))
    return longest_s * random.uniform(0.5, 1.0)  # noqa: S311


async def _pause_after_idle_starts(idle_starts: int, meter: _Meter) -> None:
    if pause_s := idle_pause_s(idle_starts):
        meter.wait(Waiting(f"{idle_starts} starts without a new checkpoint", time.time() + pause_s))
        await asyncio.sleep(pause_s)
