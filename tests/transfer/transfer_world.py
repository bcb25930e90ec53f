# SPDX-License-Identifier: Apache-2.0
"""What the transfer's tests share: a web server and a platform that misbehave as told, a slot in a file, and a watched
download.
"""

import asyncio
import hashlib
import random
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from otad.cloud.cloud import Answer as Offering
from otad.cloud.cloud import Block, BlockError, Offered, OfflineError
from otad.cloud.off import Off
from otad.config import DownloadSettings
from otad.core.model import (
    DEFAULT_MODULE,
    Artifact,
    Deployment,
    DeploymentId,
    Digest,
    DigestMethod,
    Identity,
    ModuleName,
    Notice,
    Phase,
    PlaceKind,
    Slot,
    Stream,
)
from otad.durable import Place, RealDisk
from otad.telemetry import Progress
from otad.transfer.blocks import BlockSource
from otad.transfer.download import Checkpoint, Pace, download
from otad.transfer.http import HttpSource
from otad.transfer.source import Source

QUICK = DownloadSettings(
    connect_timeout_s=2, stall_timeout_s=0.2, backoff_max_s=0.005, allow_http=True, allow_private_hosts=True
)
SMALL = Pace(buffer_bytes=16 << 10, buffers=2, check_bytes=32 << 10, checkpoint_bytes=64 << 10, progress_s=0)
IMAGE = random.Random(1).randbytes(300_007)
BEHIND = b"what lies behind " * 1000


@dataclass(frozen=True)
class Request:
    """What a client asked for. `start` is -1 without a Range."""

    path: str
    headers: dict[str, str]
    start: int


Answer = Callable[["WebServer", Request, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class WebServer:
    """Answers each request with the next of `answers`, then for ever properly. `files`: other contents by path."""

    content: bytes = IMAGE
    files: dict[str, bytes] = field(default_factory=dict)
    etag: str = '"one"'
    answers: list[Answer] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    port: int = 0
    tls: ssl.SSLContext | None = None
    released: asyncio.Event = field(default_factory=asyncio.Event)  # ends answers that hang

    @property
    def starts(self) -> list[int]:
        return [request.start for request in self.requests]

    @property
    def paths(self) -> list[str]:
        return [request.path.partition("?")[0] for request in self.requests]

    def content_of(self, request: Request) -> bytes:
        return self.files.get(request.path.partition("?")[0], self.content)

    def url(self, path: str = "/ota/image.bin", host: str = "127.0.0.1") -> str:
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{host}:{self.port}{path}?auth_key=secret-signature"

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line, *lines = head.rstrip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (entry.partition(":") for entry in lines)}
            found = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
            request = Request(line.split()[1], headers, int(found[1]) if found else -1)
            self.requests.append(request)
            answer = self.answers.pop(0) if self.answers else properly
            await answer(self, request, writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def head(status: str, **headers: object) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode()


async def properly(server: WebServer, request: Request, writer: asyncio.StreamWriter) -> None:
    await part()(server, request, writer)


def part(count: int | None = None, **changed: object) -> Answer:
    """206 for what was asked, ended after `count` bytes; headers may be changed, or left out by None."""

    async def answer(server: WebServer, request: Request, writer: asyncio.StreamWriter) -> None:
        content, start = server.content_of(request), max(request.start, 0)
        total = len(content)
        headers: dict[str, object] = {
            "Content_Length": total - start,
            "Content_Range": f"bytes {start}-{total - 1}/{total}",
            "ETag": server.etag,
            **changed,
        }
        writer.write(head("206 Partial Content", **{k: v for k, v in headers.items() if v is not None}))
        writer.write(content[start:] if count is None else content[start : start + count])

    return answer


def whole(count: int | None = None, content: bytes | None = None, **changed: object) -> Answer:
    """200 with everything, whatever was asked, ended after `count` bytes."""

    async def answer(server: WebServer, request: Request, writer: asyncio.StreamWriter) -> None:
        body = server.content_of(request) if content is None else content
        headers: dict[str, object] = {"Content_Length": len(body), "ETag": server.etag, **changed}
        writer.write(head("200 OK", **{k: v for k, v in headers.items() if v is not None}))
        writer.write(body if count is None else body[:count])

    return answer


def status(line: str, body: bytes = b"<Error/>", **headers: object) -> Answer:
    async def answer(server: WebServer, request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(line, **{"Content_Length": len(body), **headers}) + body)

    return answer


def raw(content: bytes) -> Answer:
    async def answer(server: WebServer, request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(content)

    return answer


def hang_after(answer: Answer) -> Answer:
    async def hanging(server: WebServer, request: Request, writer: asyncio.StreamWriter) -> None:
        await answer(server, request, writer)
        await writer.drain()
        await server.released.wait()

    return hanging


@dataclass
class Places:
    """A slot with something behind the image, and a staging file, on real storage."""

    directory: Path
    opened: list[PlaceKind] = field(default_factory=list)
    wrap: Callable[[Place], Place] = lambda place: place
    places: list[Place] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slot.write_bytes(b"\xee" * len(IMAGE) + BEHIND)

    @property
    def slot(self) -> Path:
        return self.directory / "slot"

    @property
    def staging(self) -> Path:
        return self.directory / "staging"

    async def open_slot(self, deployment: Deployment) -> Place:
        return self._opened(PlaceKind.SLOT, RealDisk().open_place(self.slot))

    async def open_staging(self, deployment: Deployment) -> Place:
        size = deployment.notice.identity.size
        return self._opened(PlaceKind.STAGING, RealDisk().create_place(self.staging, size))

    def _opened(self, kind: PlaceKind, place: Place) -> Place:
        self.opened.append(kind)
        self.places.append(place)
        return self.wrap(place)

    def close(self) -> None:
        while self.places:
            self.places.pop().close()


@dataclass
class Gateway:
    """A deployment, what the daemon would remember of it, and everything that was heard."""

    places: Places
    deployment: Deployment
    checkpoints: list[Checkpoint] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    on_progress: Callable[[Progress], None] = lambda progress: None
    pace: Pace = SMALL
    unpack: bool = True
    is_raw: Callable[[bytes], bool] = lambda head: True

    async def download(self, source: Source) -> PlaceKind:
        try:
            return await download(
                self.deployment,
                source,
                self.places,
                self.unpack,
                self._checkpointed,
                self._progressed,
                is_raw=self.is_raw,
                pace=self.pace,
            )
        finally:
            self.places.close()

    async def _checkpointed(self, checkpoint: Checkpoint) -> None:
        self.checkpoints.append(checkpoint)
        self.deployment = replace(
            self.deployment,
            place=checkpoint.place,
            checkpoint=checkpoint.bytes,
            etag=checkpoint.etag,
            etag_url=checkpoint.etag_url,
            joined=checkpoint.joined,
            fetched=self.deployment.fetched + checkpoint.fetched,
            resumed=self.deployment.resumed + checkpoint.resumed,
        )

    def _progressed(self, progress: Progress) -> None:
        self.progress.append(progress)
        self.on_progress(progress)

    @property
    def waited_for(self) -> str:
        return "\n".join(progress.waits_for for progress in self.progress)


def deployment_of(
    content: bytes = IMAGE, method: DigestMethod = DigestMethod.SHA256, url: str = "", **more: object
) -> Deployment:
    digest = Digest(method, hashlib.new(method, content).hexdigest())
    identity = Identity(DEFAULT_MODULE, "2-0-0", len(content), digest)
    base = Deployment(DeploymentId("1"), Notice(identity, url), Phase.DOWNLOADING, Slot("a"), Slot("b"), 0, 3)
    return replace(base, **more)  # type: ignore[arg-type]


def http_source(server: WebServer, limits: DownloadSettings = QUICK, fresh: tuple[str | None, ...] = ()) -> HttpSource:
    """A source whose platform answers with each of `fresh` in turn, then with nothing."""
    told = list(fresh)

    async def fresh_url() -> str | None:
        return told.pop(0) if told else None

    return HttpSource(limits, server.url, fresh_url)


BlockAnswer = Callable[["Platform", int, int], Awaitable[Block]]
"""What the platform makes of a question for a block: from which byte on, and how many at most."""


@dataclass
class Platform(Off):
    """A platform with a session to it: gives blocks for the newest numbers, and an offer for whoever asks.

    Each question for a block has the next of `answers`, then for ever what is right.
    """

    content: bytes = IMAGE
    answers: list[BlockAnswer] = field(default_factory=list)
    asked: list[tuple[int, int]] = field(default_factory=list)  # for blocks: from which byte on, how many
    streams: list[Stream] = field(default_factory=list)
    valid: Stream = field(default_factory=lambda: Stream(100, 1))
    offers: list[Offering | None] = field(default_factory=list)  # in turn; the last one stays
    gets: int = 0  # times it was asked what it offers
    block_bytes_max: int = 131072
    in_flight: int = 0
    connection: int = 1
    online: bool = True
    _connected: asyncio.Event = field(default_factory=asyncio.Event)  # replaced by each connection

    def __post_init__(self) -> None:
        super().__init__("", 0)

    def connect(self) -> None:
        self.connection, self.online = self.connection + 1, True
        self._connected.set()
        self._connected = asyncio.Event()

    async def connected(self, after: int) -> int:
        while not self.online or self.connection <= after:
            await self._connected.wait()
        return self.connection

    async def ask(self, module: ModuleName, timeout_s: float = 10) -> Offering | None:
        if not self.online:
            raise OfflineError("the network is unreachable")
        self.gets += 1
        if not self.offers:
            return None
        return self.offers.pop(0) if len(self.offers) > 1 else self.offers[0]

    async def block(self, stream: Stream, offset: int, size: int) -> Block:
        self.in_flight += 1
        assert self.in_flight == 1
        assert 1 <= size <= 131072
        assert size >= 256 or offset + size == len(self.content)
        try:
            if not self.online:
                raise OfflineError("the network is unreachable")
            self.asked.append((offset, size))
            self.streams.append(stream)
            answer = self.answers.pop(0) if self.answers else right
            if stream != self.valid and answer is right:
                answer = refused
            await asyncio.sleep(0)
            return await answer(self, offset, size)
        finally:
            self.in_flight -= 1


async def right(platform: Platform, offset: int, size: int) -> Block:
    if size > platform.block_bytes_max:
        raise BlockError("460: block too large", refused=True)
    return Block(platform.content[offset : offset + size], len(platform.content))


async def damaged(platform: Platform, offset: int, size: int) -> Block:
    raise BlockError("is damaged")


async def late(platform: Platform, offset: int, size: int) -> Block:
    raise BlockError("none within 10 s")


async def refused(platform: Platform, offset: int, size: int) -> Block:
    raise BlockError("code 500: file not found", refused=True)


async def lost(platform: Platform, offset: int, size: int) -> Block:
    raise OfflineError("closed by the platform")


def of_another(total: int) -> BlockAnswer:
    async def answer(platform: Platform, offset: int, size: int) -> Block:
        return Block(bytes(size), total)

    return answer


def bytes_of(count: int) -> BlockAnswer:
    """So many bytes, whatever was asked for."""

    async def answer(platform: Platform, offset: int, size: int) -> Block:
        return Block((platform.content[offset:] + bytes(count))[:count], len(platform.content))

    return answer


def block_source(platform: Platform, limits: DownloadSettings = QUICK) -> BlockSource:
    """A source whose fresh notices bring the numbers that are valid by then."""
    known = [platform.valid]

    async def fresh() -> bool:
        platform.gets += 1
        before, known[0] = known[0], platform.valid
        return before != known[0]

    return BlockSource(
        lambda offset, size: platform.block(known[0], offset, size),
        fresh,
        limits,
        online=lambda: platform.connected(platform.connection),
    )


def offered(deployment: Deployment, **changed: object) -> Offered:
    """The deployment's package again, with a fresh URL or stream."""
    return Offered(replace(deployment.notice, **changed), "get:1")  # type: ignore[arg-type]


def package_of(
    contents: Sequence[bytes], method: DigestMethod = DigestMethod.SHA256, url: Callable[[str], str] = str
) -> Deployment:
    """A deployment of several files, "file 0" and so on, at /0 and so on."""
    files = tuple(
        Artifact(f"file {k}", len(content), Digest(method, hashlib.new(method, content).hexdigest()), url(f"/{k}"))
        for k, content in enumerate(contents)
    )
    deployment = deployment_of(b"".join(contents), method)
    digest = Digest(DigestMethod.SHA256, hashlib.sha256(b"of all their digests").hexdigest())
    identity = replace(deployment.notice.identity, digest=digest)
    return replace(deployment, notice=Notice(identity, "", files=files))
