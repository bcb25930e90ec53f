# SPDX-License-Identifier: Apache-2.0
"""Fetch, write and check side by side: what is durable, what is said of it, and what happens when a part breaks."""

import asyncio
import contextlib
import errno
import random
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transfer_world import (
    BEHIND,
    IMAGE,
    SMALL,
    Answer,
    Gateway,
    Places,
    Request,
    WebServer,
    deployment_of,
    hang_after,
    http_source,
    part,
    raw,
    status,
    whole,
)

from otad.core.model import (
    DEFAULT_MODULE,
    Deployment,
    DeploymentId,
    Digest,
    DigestMethod,
    Identity,
    Notice,
    Phase,
    PlaceKind,
    Slot,
)
from otad.durable import Place
from otad.errors import Code, UpdateError
from otad.telemetry import Progress
from otad.transfer.download import Checkpoint, _Meter, download
from otad.transfer.source import Begin, Piece, StartOver, Waiting

SIZE = len(IMAGE)


@dataclass
class ListSource:
    """Gives `content` in pieces of this size; stops for ever at `holds_at`."""

    content: bytes = IMAGE
    piece_bytes: int = 10_000
    holds_at: int | None = None
    begun: Begin | None = None
    ended: bool = False

    async def pieces(self, begin: Begin, waits: Callable[[Waiting], None]) -> AsyncGenerator[Piece, None]:
        self.begun = begin
        try:
            for at in range(begin.offset, begin.size, self.piece_bytes):
                if self.holds_at is not None and at >= self.holds_at:
                    await asyncio.Event().wait()
                content = self.content[at : min(at + self.piece_bytes, begin.size)]
                yield Piece(content, len(content), at == begin.offset, '"one"', "https://h/p")
                await asyncio.sleep(0)
        finally:
            self.ended = True


class NobodySource:
    """A server that is down, and a test that fails if it is asked."""

    async def pieces(self, begin: Begin, waits: Callable[[Waiting], None]) -> AsyncGenerator[Piece, None]:
        raise AssertionError("asked")
        yield


@dataclass
class Broken:
    """A real place with a fault: `write`, `sync` or `read_into` raises from the given offset on, or lies."""

    place: Place
    write_errno: int = 0
    sync_errno: int = 0
    read_errno: int = 0
    beyond: int = 0
    lies: bool = False
    short: bool = False
    syncs: int = 0
    writing: threading.Event | None = None  # set when a write has begun,
    go_on: threading.Event | None = None  # which waits for this
    written: int = 0

    @property
    def bytes(self) -> int:
        return self.place.bytes

    @property
    def from_medium(self) -> bool:
        return self.place.from_medium

    def write(self, offset: int, content: memoryview) -> None:
        if self.write_errno and offset >= self.beyond:
            raise OSError(self.write_errno, "broken")
        if self.writing is not None and self.go_on is not None:
            self.writing.set()
            self.go_on.wait(10)
        self.place.write(offset, content)
        self.written = offset + len(content)

    def sync(self) -> None:
        self.syncs += 1
        if self.sync_errno and self.written > self.beyond:
            raise OSError(self.sync_errno, "broken")
        self.place.sync()

    def read_into(self, offset: int, buffer: memoryview) -> int:
        if self.read_errno:
            raise OSError(self.read_errno, "broken")
        count = self.place.read_into(offset, buffer)
        if self.lies:
            buffer[0] ^= 1
        return 0 if self.short else count

    def close(self) -> None:
        self.place.close()


def broken(gateway: Gateway, **faults: object) -> Broken:
    """The next opened place has these faults."""
    fault = Broken(None, **faults)  # type: ignore[arg-type]

    def wrap(place: Place) -> Place:
        fault.place = place
        return fault

    gateway.places.wrap = wrap
    return fault


async def fails(gateway: Gateway, source: object = None) -> UpdateError:
    with pytest.raises(UpdateError) as caught:
        await asyncio.wait_for(gateway.download(source or ListSource()), 10)  # type: ignore[arg-type]
    return caught.value


# ---------------------------------------------------------------------------------------------- what is durable


async def test_a_checkpoint_is_told_after_so_many_bytes_and_at_the_end(gateway: Gateway) -> None:
    await gateway.download(ListSource())

    ends = [checkpoint.bytes for checkpoint in gateway.checkpoints]
    assert ends == [65536, 131072, 196608, 262144, SIZE]
    assert gateway.checkpoints[-1] == Checkpoint(
        PlaceKind.SLOT, SIZE, '"one"', "https://h/p", joined=False, fetched=gateway.checkpoints[-1].fetched, resumed=0
    )
    assert gateway.deployment.fetched == SIZE


async def test_what_a_checkpoint_says_is_on_the_medium_by_then(gateway: Gateway) -> None:
    fault = broken(gateway)
    seen: list[tuple[int, int]] = []
    keep = gateway._checkpointed

    async def checkpointed(checkpoint: Checkpoint) -> None:
        await keep(checkpoint)
        seen.append((len(gateway.checkpoints), fault.syncs))
        assert gateway.places.slot.read_bytes()[: checkpoint.bytes] == IMAGE[: checkpoint.bytes]

    gateway._checkpointed = checkpointed  # type: ignore[method-assign]
    await gateway.download(ListSource())

    assert [syncs for _, syncs in seen] == [checkpoints for checkpoints, _ in seen]


async def test_a_slow_link_gets_its_checkpoints_by_time(gateway: Gateway) -> None:
    """Bytes that do not fill a buffer, and nothing after them: durable all the same, before the timer has run twice."""
    gateway.pace = replace(SMALL, checkpoint_s=0.05)
    downloading = asyncio.create_task(gateway.download(ListSource(holds_at=20_000)))
    while not gateway.checkpoints or gateway.checkpoints[-1].bytes < 20_000:
        await asyncio.sleep(0.005)
        assert not downloading.done()
    downloading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await downloading

    assert gateway.checkpoints[-1].bytes == 20_000
    await gateway.download(ListSource())
    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND


async def test_goes_on_at_the_checkpoint_and_checks_what_was_there(gateway: Gateway) -> None:
    gateway.places.slot.write_bytes(IMAGE[:100_001] + bytes(SIZE - 100_001) + BEHIND)
    gateway.deployment = replace(
        gateway.deployment, place=PlaceKind.SLOT, checkpoint=100_001, etag='"x"', etag_url="https://h/p"
    )
    source = ListSource()
    await gateway.download(source)

    assert source.begun == Begin(100_001, SIZE, '"x"', "https://h/p")
    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND
    assert gateway.deployment.joined
    assert gateway.deployment.fetched == SIZE - 100_001


async def test_a_prefix_that_rotted_is_noticed(gateway: Gateway) -> None:
    gateway.places.slot.write_bytes(b"\xff" + IMAGE[1:100_000] + bytes(SIZE - 100_000) + BEHIND)
    gateway.deployment = replace(gateway.deployment, place=PlaceKind.SLOT, checkpoint=100_000)

    assert (await fails(gateway)).failure.code == Code.DIGEST
    assert gateway.deployment.joined


async def test_nothing_is_fetched_when_all_is_there(gateway: Gateway) -> None:
    gateway.places.slot.write_bytes(IMAGE + BEHIND)
    gateway.deployment = replace(gateway.deployment, place=PlaceKind.SLOT, checkpoint=SIZE)

    assert await gateway.download(NobodySource()) == PlaceKind.SLOT
    assert gateway.checkpoints == []
    assert gateway.progress[-1].checked == SIZE


@pytest.mark.parametrize("method", DigestMethod)
async def test_both_digests_are_known(method: DigestMethod, gateway: Gateway) -> None:
    gateway.deployment = deployment_of(method=method)
    await gateway.download(ListSource())

    gateway.deployment = deployment_of(IMAGE[:-1] + b"?", method)
    assert (await fails(gateway)).failure.code == Code.DIGEST


@pytest.mark.parametrize("size", [1, 511, 512, 513, 4096, 16384, 65536, 65537, 1 << 20, (1 << 20) + 1, 3_000_000])
async def test_any_size_fits(size: int, gateway: Gateway) -> None:
    content = random.Random(size).randbytes(size)
    gateway.places.slot.write_bytes(bytes(size) + BEHIND)
    gateway.deployment = deployment_of(content)
    await gateway.download(ListSource(content, piece_bytes=70_000))

    assert gateway.places.slot.read_bytes() == content + BEHIND


# ---------------------------------------------------------------------------------------------- where to


async def test_the_first_bytes_decide_before_anything_is_opened(gateway: Gateway) -> None:
    heads: list[bytes] = []

    def is_raw(head: bytes) -> bool:
        heads.append(head)
        assert gateway.places.opened == []
        return False

    gateway.is_raw = is_raw

    assert await gateway.download(ListSource(piece_bytes=100)) == PlaceKind.STAGING
    assert heads == [IMAGE[:512]]
    assert gateway.places.opened == [PlaceKind.STAGING]
    assert gateway.places.staging.read_bytes() == IMAGE
    assert {checkpoint.place for checkpoint in gateway.checkpoints} == {PlaceKind.STAGING}


async def test_a_package_smaller_than_a_head_is_told_from_what_there_is(gateway: Gateway) -> None:
    gateway.deployment = deployment_of(b"PK")
    gateway.is_raw = lambda head: head != b"PK"

    assert await gateway.download(ListSource(b"PK")) == PlaceKind.STAGING


async def test_nobody_is_asked_when_nothing_is_unpacked(gateway: Gateway) -> None:
    gateway.unpack, gateway.is_raw = False, lambda head: False

    assert await gateway.download(ListSource()) == PlaceKind.SLOT


async def test_the_place_stays_as_long_as_there_are_bytes_in_it(gateway: Gateway) -> None:
    gateway.is_raw = lambda head: False
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(gateway.download(ListSource(holds_at=150_000)), 0.3)
    gateway.is_raw = lambda head: pytest.fail("asked again")

    assert gateway.deployment.checkpoint == 131072
    assert await gateway.download(ListSource()) == PlaceKind.STAGING
    assert gateway.places.staging.read_bytes() == IMAGE


async def test_another_object_is_looked_at_anew(gateway: Gateway) -> None:
    """What was taken for an image turned out to be another object: the next first bytes decide again."""

    class Two(ListSource):
        async def pieces(self, begin: Begin, waits: Callable[[Waiting], None]) -> AsyncGenerator[Piece, None]:
            if self.begun is None:
                self.begun = begin
                yield Piece(bytes(100_000), 100_000, True, '"zero"', "https://h/p")
                raise StartOver("another object")
            assert begin == Begin(0, SIZE)
            async for piece in super().pieces(begin, waits):
                yield piece

    gateway.is_raw = lambda head: head == bytes(512)

    assert await gateway.download(Two()) == PlaceKind.STAGING
    assert gateway.places.staging.read_bytes() == IMAGE
    begins = [checkpoint for checkpoint in gateway.checkpoints if checkpoint.bytes == 0]
    assert [replace(begin, fetched=0) for begin in begins] == [Checkpoint(PlaceKind.SLOT, 0, "", "", False, 0, 0)]
    assert not gateway.deployment.joined


async def test_a_slot_that_is_too_small_says_both_sizes(gateway: Gateway) -> None:
    gateway.places.slot.write_bytes(bytes(200 << 10))
    error = await fails(gateway)

    assert error.failure.code == Code.SPACE
    assert str(error) == "slot b: has 200 KiB, the package 293 KiB"
    assert gateway.places.slot.read_bytes() == bytes(200 << 10)


@pytest.mark.parametrize("code", [Code.SLOT, Code.BOOT])
async def test_what_the_slot_says_no_to_ends_the_try(code: Code, gateway: Gateway) -> None:
    def wrap(place: Place) -> Place:
        raise UpdateError(code, "slot b: no")

    gateway.places.wrap = wrap

    assert (await fails(gateway)).failure.code == code


# ---------------------------------------------------------------------------------------------- what breaks


@pytest.mark.parametrize(
    ("faults", "code"),
    [
        ({"write_errno": errno.ENOSPC, "beyond": 100_000}, Code.SPACE),
        ({"write_errno": errno.EDQUOT}, Code.SPACE),
        ({"write_errno": errno.EIO, "beyond": 100_000}, Code.MEDIUM),
        ({"write_errno": errno.EROFS}, Code.MEDIUM),
        ({"sync_errno": errno.EIO, "beyond": 65536}, Code.MEDIUM),
        ({"sync_errno": errno.ENOSPC}, Code.SPACE),
        ({"read_errno": errno.EIO}, Code.MEDIUM),
        ({"short": True}, Code.MEDIUM),
        ({"lies": True}, Code.DIGEST),
    ],
    ids=str,
)
@pytest.mark.parametrize("holds_at", [None, 250_000])
async def test_a_place_that_breaks(
    faults: dict[str, object], code: Code, holds_at: int | None, gateway: Gateway
) -> None:
    """The fetcher, waiting for a buffer that never comes back or for bytes that never come, is let go all the same."""
    if holds_at and not faults.keys() & {"write_errno", "sync_errno"}:
        content = IMAGE * 5  # what is read back comes in ranges of 1 MiB
        gateway.places.slot.write_bytes(bytes(SIZE) + BEHIND + bytes(len(content)))
        gateway.deployment = deployment_of(content)
        source = ListSource(content, holds_at=None if code == Code.DIGEST else 1_300_000)
    else:
        source = ListSource(holds_at=holds_at)
    fault = broken(gateway, **faults)
    error = await fails(gateway, source)

    assert error.failure.code == code
    assert source.ended
    assert str(error).startswith("slot b: ")
    if "sync_errno" in faults:
        assert fault.syncs == len(gateway.checkpoints) + 1  # never again on this descriptor
    behind = gateway.places.slot.read_bytes()[gateway.deployment.notice.identity.size :]
    assert behind == BEHIND or not behind.strip(b"\0")


async def test_cancel_returns_when_the_chunk_in_flight_is_written(gateway: Gateway) -> None:
    fault = broken(gateway, writing=threading.Event(), go_on=threading.Event())
    downloading = asyncio.create_task(gateway.download(ListSource()))
    assert fault.writing is not None
    assert fault.go_on is not None
    await asyncio.to_thread(fault.writing.wait, 10)
    downloading.cancel()
    for _ in range(100):
        await asyncio.sleep(0)
    assert not downloading.done()
    fault.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await downloading

    assert fault.written == 16384
    assert gateway.places.slot.read_bytes()[:16384] == IMAGE[:16384]


async def test_what_the_source_fails_with_ends_the_try(server: WebServer, gateway: Gateway) -> None:
    server.answers = [part(100_000)] + [status("404 Not Found")] * 9

    error = await fails(gateway, http_source(server, fresh=(server.url("/b"),)))

    assert error.failure.code == Code.HTTP_STATUS


async def test_a_source_that_ends_early_is_a_bug(gateway: Gateway) -> None:
    class Short(ListSource):
        async def pieces(self, begin: Begin, waits: Callable[[Waiting], None]) -> AsyncGenerator[Piece, None]:
            yield Piece(IMAGE[:1000], 1000, True)

    with pytest.raises(ExceptionGroup) as caught:
        await gateway.download(Short())

    assert caught.group_contains(RuntimeError)


async def test_many_idle_starts_delay_the_next(gateway: Gateway) -> None:
    gateway.deployment = replace(gateway.deployment, idle_starts=11)
    downloading = asyncio.create_task(gateway.download(NobodySource()))
    while not gateway.progress:
        await asyncio.sleep(0)
    downloading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await downloading

    assert gateway.progress[0].waits_for == "11 starts without a new checkpoint"
    assert gateway.progress[0].waits_until is not None
    assert gateway.places.opened == []


async def test_progress_never_runs_ahead_and_ends_complete(server: WebServer, gateway: Gateway) -> None:
    server.answers = [part(100_000), hang_after(part(100_000))]
    await gateway.download(http_source(server))

    last = gateway.progress[-1]
    assert (last.bytes, last.checked, last.total, last.waits_for) == (SIZE, SIZE, SIZE, "")
    assert all(progress.checked <= progress.bytes <= SIZE for progress in gateway.progress)
    counts = [progress.bytes for progress in gateway.progress]
    assert counts == sorted(counts)
    assert gateway.deployment.resumed == 2


# ---------------------------------------------------------------------------------------------- again and again


@pytest.mark.parametrize("seed", range(8))
async def test_ended_anywhere_it_goes_on_and_fetches_little_twice(
    seed: int, server: WebServer, gateway: Gateway
) -> None:
    """At most one checkpoint and what was in flight, for each end; the memory of the process is lost each time."""
    chance = random.Random(seed)
    ends = 0
    while gateway.deployment.checkpoint < SIZE:
        reached = 0
        stop_at = gateway.deployment.checkpoint + chance.randrange(1, 150_000)
        stop = asyncio.Event()

        def look(progress: object, stop: asyncio.Event = stop, stop_at: int = stop_at) -> None:
            nonlocal reached
            reached = max(reached, gateway.progress[-1].bytes)
            if reached >= stop_at:
                stop.set()

        gateway.on_progress = look
        downloading = asyncio.create_task(gateway.download(http_source(server)))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([downloading, stopping], timeout=10, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        downloading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await downloading
        ends += 1
        in_flight = SMALL.buffer_bytes * (SMALL.buffers + 1)
        assert reached - gateway.deployment.checkpoint <= SMALL.checkpoint_bytes + in_flight
    gateway.on_progress = lambda progress: None
    await gateway.download(NobodySource())

    assert ends >= 2
    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND
    assert server.starts == sorted(server.starts)


def faults() -> st.SearchStrategy[list[Answer]]:
    where = st.integers(0, SIZE)
    once = st.one_of(
        where.map(part),
        where.map(whole),
        where.map(lambda count: whole(count, Content_Length=None)),
        where.map(lambda count: part(count, ETag=None)),
        st.integers(0, SIZE - 1).map(lambda start: part(Content_Range=f"bytes {start}-{SIZE - 1}/{SIZE}")),
        st.sampled_from([206, 400, 403, 408, 416, 429, 500, 503]).map(lambda code: status(f"{code} No")),
        st.sampled_from([b"", b"HTTP/1.1 ", b"HTTP/1.1 206 OK\r\n\r\n", b"\0" * 100]).map(raw),
    )
    return st.lists(once, max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers=faults(), stops=st.lists(st.integers(1, SIZE - 1), max_size=3))
def test_whatever_happened_the_slot_holds_the_image_and_nothing_else_is_touched(
    answers: list[Answer], stops: list[int], tmp_path: Path
) -> None:
    async def go() -> Gateway:
        gateway = Gateway(Places(tmp_path), deployment_of())
        served = WebServer(answers=list(answers))
        listening = await asyncio.start_server(served.run, "127.0.0.1", 0)
        served.port = listening.sockets[0].getsockname()[1]
        for stop_at in sorted(stops):
            downloading = asyncio.create_task(gateway.download(http_source(served)))
            gateway.on_progress = lambda progress, stop_at=stop_at, it=downloading: (  # type: ignore[misc]
                it.cancel() if progress.bytes >= stop_at else None
            )
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait_for(downloading, 20)
        gateway.on_progress = lambda progress: None
        await asyncio.wait_for(gateway.download(http_source(served)), 20)
        listening.close()
        return gateway

    gateway = asyncio.run(go())

    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND
    assert gateway.deployment.checkpoint == SIZE


async def test_a_server_that_lies_about_its_range_is_found_out(server: WebServer, gateway: Gateway) -> None:
    async def lie(served: WebServer, request: Request, writer: asyncio.StreamWriter) -> None:
        served.content = bytes(SIZE)
        await part()(served, request, writer)

    server.answers = [part(100_000), lie]
    error = await fails(gateway, http_source(server))

    assert error.failure.code == Code.DIGEST
    assert gateway.deployment.joined  # so it is repeated once before it counts as the package's fault


async def test_a_cancellation_that_meets_a_changed_object_is_not_lost(tmp_path: Path) -> None:
    """Both arrive while the writer is in its thread: what is awaited must end, or nothing else is ever done."""
    writing, go_on = threading.Event(), threading.Event()

    class SlowPlace:
        bytes, from_medium = 8 << 20, True

        def write(self, offset: int, content: memoryview) -> None:
            writing.set()
            assert go_on.wait(10)

        def sync(self) -> None: ...

        def read_into(self, offset: int, buffer: memoryview) -> int:
            return 0

        def close(self) -> None: ...

    class ChangedSource:
        async def pieces(self, begin: Begin, waits: Callable[[Waiting], None]) -> AsyncGenerator[Piece, None]:
            yield Piece(bytes(1 << 20), 1 << 20, first=True)
            await asyncio.to_thread(writing.wait)
            raise StartOver("another object")

    class SlowPlaces:
        async def open_slot(self, deployment: Deployment) -> Place:
            return SlowPlace()

        async def open_staging(self, deployment: Deployment) -> Place:
            raise AssertionError

    identity = Identity(DEFAULT_MODULE, "2", 4 << 20, Digest(DigestMethod.SHA256, "ab" * 32))
    deployment = Deployment(DeploymentId("d"), Notice(identity, ""), Phase.DOWNLOADING, Slot("a"), Slot("b"), 0, 3)
    task = asyncio.create_task(
        download(deployment, ChangedSource(), SlowPlaces(), True, lambda _: None, lambda _: None, is_raw=lambda _: True)
    )
    await asyncio.to_thread(writing.wait)
    for _ in range(20):  # the source has raised by now, and the writer is still in its thread
        await asyncio.sleep(0.01)
    task.cancel()
    go_on.set()
    await asyncio.wait([task], timeout=10)

    assert task.cancelled()


def test_the_first_bytes_after_a_wait_are_no_rate() -> None:
    """Half a MiB a millisecond after the answer is not 500 MiB per second: the time left would be a lie."""
    identity = Identity(DEFAULT_MODULE, "2", 4 << 20, Digest(DigestMethod.SHA256, "ab" * 32))
    deployment = Deployment(DeploymentId("d"), Notice(identity, ""), Phase.DOWNLOADING, Slot("a"), Slot("b"), 0, 3)
    seen: list[Progress] = []
    meter = _Meter(deployment, seen.append, 60)
    meter.wait(Waiting("the server to answer"))
    meter.move(512 << 10)

    assert (seen[-1].bytes, seen[-1].waits_for, seen[-1].rate) == (512 << 10, "", 0.0)
