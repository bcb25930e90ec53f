# SPDX-License-Identifier: Apache-2.0
"""A package over HTTP: the device side's only importer of aiohttp, and only while there is something to fetch.

Each request asks for everything from one byte on. What an answer is worth is decided by `_judge`; what becomes of one
that is worth nothing is decided in `pieces`:

- The network, the server's load, a range that begins elsewhere: back off and go on, for ever.
- 4xx: ask for a fresh URL. One that differs is tried at once, the same one after a pause. What is 404, 410 and the like
  at a second URL fails. 400 and 403 do not: the signature may have expired again.
- Another size, or another ETag on the same URL: the bytes so far are of another object. StartOver, at most twice.
- Encoded content, or a redirect that breaks a rule: again after a pause, at most twice.

Alibaba's object storage answers a range it does not like with 200 and the whole object unless it is asked for
`x-oss-range-behavior: standard`; a content delivery network in front of it may do so even then. An answer that does not
say how long the whole is does not say another length: the digest decides.

Where the package may come another way, three attempts in a row without a byte to speak of are enough: NoWay.
"""

import asyncio
import contextlib
import errno
import logging
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from otad import __version__
from otad.config import DownloadSettings
from otad.errors import Code, UpdateError
from otad.threads import in_thread
from otad.tls import DateError, client_context
from otad.transfer.source import (
    FLOWING_BYTES,
    MISMATCHES_MAX,
    PATIENCE,
    Another,
    Begin,
    NoWay,
    Piece,
    Rate,
    StartOver,
    Waiting,
    backoff_s,
)
from otad.transfer.url import UrlPolicy, etag_url, public_url
from otad.units import format_duration

if TYPE_CHECKING:
    import aiohttp
    import yarl

log = logging.getLogger(__name__)

REDIRECTS_MAX = 3
DRIP_BYTES_PER_S = 64
DRIP_STALLS = 2
"""While it is waited for, the server must bring DRIP_BYTES_PER_S on the average of so many stall time-outs."""
ETAG_CHARACTERS_MAX = 256
READ_BYTES = 64 << 10
"""More makes aiohttp hold more, and is slower: measured from 32 KiB to 1 MiB."""
RECEIVE_BYTES = 1 << 20
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WAIT = frozenset({407, 408, 425, 429})  # 4xx that time cures
_FRESH_MAY_EXPIRE_TOO = frozenset({400, 403})
_WHOLE = re.compile(r"[0-9]{1,18}", re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes\s+([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.ASCII | re.IGNORECASE)
_ETAG = re.compile(r"[!-~]+", re.ASCII)


class _LaterError(Exception):
    """Nothing to be had now. `after_s`: how long the server wants to be left alone."""

    def __init__(self, reason: str, after_s: float = 0) -> None:
        super().__init__(reason)
        self.after_s = after_s


class _ElsewhereError(Exception):
    """The server does not give the object under this URL; `final` if a second such URL ends the matter."""

    def __init__(self, reason: str, *, final: bool) -> None:
        super().__init__(reason)
        self.final = final


class _MismatchError(Exception):
    """The answer is of another object, or breaks a rule; `code` is what it means if it stays so."""

    def __init__(self, code: Code, reason: str, *, other_object: bool = False) -> None:
        super().__init__(reason)
        self.code, self.other_object = code, other_object


class HttpSource:
    """One package on web servers, for one try.

    `url` gives the newest URL that the platform told; `fresh_url` asks it for another one, None while there is none to
    be had. A `local` source is what a person at the gateway ordered: any address, also plain http, and no platform to
    ask for another. `floor`: see `tls.client_context`. With `another` it does not wait for long where there is another
    way: see `source.NoWay`.
    """

    def __init__(
        self,
        limits: DownloadSettings,
        url: Callable[[], str],
        fresh_url: Callable[[], Awaitable[str | None]] | None = None,
        *,
        local: bool = False,
        floor: Callable[[], int] | None = None,
        another: Another | None = None,
    ) -> None:
        self._limits, self._floor, self._another = limits, floor, another
        self._newest_url, self._fresh_url = url, fresh_url
        self._told = self._url = url()
        self._policy = UrlPolicy(limits.allow_http or local, limits.allow_private_hosts or local)
        self._tls: ssl.SSLContext | None = None
        self._rate = Rate(limits.rate_limit)
        self._attempt = 0  # consecutive ones that brought nothing to speak of; -1: the one under way has
        self._troubled = False  # the log says so, and has still to say that it is over
        self._mismatches = 0
        self._elsewhere: str | None = None  # the URL that was refused first since bytes flowed
        self._waits: Callable[[Waiting], None] = lambda _: None

    async def pieces(self, begin: Begin, waits: Callable[[Waiting], None]) -> AsyncGenerator[Piece, None]:
        """See `Source.pieces`. Fails only for what waiting cannot cure."""
        self._waits, self._attempt = waits, 0
        # glibc learns from a large block coming back not to return each piece's memory to the kernel: without, a
        # transfer faults in up to 300 MB of pages, half as much CPU again. The block itself is never touched.
        bytes(4 << 20)
        offset, etag, etag_at = begin.offset, begin.etag, begin.etag_url
        while offset < begin.size:
            self._believe_the_newest()
            self._policy.check(self._url)
            waits(Waiting(f"{_host(self._url)} to answer"))
            begun_at = offset
            try:
                async with self._answer(offset) as (response, here):
                    named = _same_object(response, here, etag, etag_at)
                    position = _judge(response, here, offset, begin.size)
                    first = True
                    async with contextlib.aclosing(self._body(response)) as body:
                        async for content in body:
                            etag, etag_at = named  # only now are there bytes that go by this name
                            fresh = content[max(0, offset - position) : begin.size - position]
                            position += len(content)
                            offset += len(fresh)
                            if offset - begun_at >= FLOWING_BYTES:
                                self._flows(begun_at)
                            yield Piece(fresh, len(content), first and bool(fresh), etag, etag_at)
                            first = first and not fresh
                            if offset == begin.size:
                                self._tls = None  # its roots are large, and a row of files has a source for each
                                return
                if offset - begun_at < FLOWING_BYTES:  # else a range given in parts: no reason to wait
                    raise _LaterError(f"{_host(here)} ended its answer early")
            except _LaterError as trouble:
                await self._pause(str(trouble), trouble.after_s)
            except _ElsewhereError as trouble:
                await self._look_elsewhere(trouble)
            except _MismatchError as trouble:
                self._mismatches += 1
                if self._mismatches > MISMATCHES_MAX:
                    raise UpdateError(trouble.code, str(trouble)) from trouble
                await self._pause(str(trouble))
                if trouble.other_object:
                    raise StartOver(str(trouble)) from trouble

    async def size(self) -> int:
        """How many bytes the URL leads to, by one request that reads no body. UpdateError where it cannot be told."""
        self._policy.check(self._url)
        try:
            async with self._answer(0) as (response, here):
                ranged = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
                told = {200: response.headers.get("Content-Length", ""), 206: ranged[3] if ranged else ""}
                total = told.get(response.status)
                if total is None or not _WHOLE.fullmatch(total):
                    reason = f"{response.status} {_clean(response.reason or '')}".rstrip()
                    raise UpdateError(Code.HTTP_STATUS, f"{public_url(here)}: does not say how large it is: {reason}")
                return int(total)
        except (_LaterError, _MismatchError) as trouble:
            raise UpdateError(Code.HTTP_STATUS, str(trouble)) from trouble

    # ------------------------------------------------------------------------------------------ one request

    @contextlib.asynccontextmanager
    async def _answer(self, offset: int) -> AsyncIterator["tuple[aiohttp.ClientResponse, str]"]:
        """The answer to a request for everything from `offset` on, and the URL that gave it after redirects."""
        import aiohttp  # noqa: PLC0415  # 12 MB that the idle daemon does without

        limits, url = self._limits, self._url
        connector = aiohttp.TCPConnector(
            socket_factory=self._socket,
            force_close=True,
            use_dns_cache=False,
        )
        # sock_read is the stall time-out; aiohttp stops its clock while we do not read.
        timeout = aiohttp.ClientTimeout(connect=limits.connect_timeout_s, sock_read=limits.stall_timeout_s)
        headers = {
            "Range": f"bytes={offset}-",
            "x-oss-range-behavior": "standard",
            "Accept": "*/*",
            "Accept-Encoding": "identity",  # anything else makes a range mean nothing
            "User-Agent": f"otad/{__version__}",
        }
        try:
            async with aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                timeout=timeout,
                read_bufsize=self._read_bytes(),
            ) as session:
                for _ in range(REDIRECTS_MAX + 1):
                    encrypted = urlsplit(url).scheme == "https"
                    # Headers that drip in would never stall.
                    async with asyncio.timeout(limits.connect_timeout_s + limits.stall_timeout_s):
                        response = await session.get(
                            _as_it_stands(url),
                            headers=headers,
                            allow_redirects=False,
                            proxy=limits.proxy or None,
                            ssl=await self._context() if encrypted else True,
                        )
                    async with response:
                        if response.status not in _REDIRECTS:
                            yield response, url
                            return
                        url = self._redirected(url, response.headers.get("Location", ""))
                raise _MismatchError(Code.URL, f"{public_url(self._url)}: more than {REDIRECTS_MAX} redirects")
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            raise _LaterError(f"{_host(url)}: {self._words(error)}") from error

    def _redirected(self, url: str, location: str) -> str:
        try:
            target = urljoin(url, location)
            self._policy.check(target)
        except ValueError as error:
            raise _MismatchError(Code.URL, f"{_host(url)} redirects to what is no URL") from error
        except UpdateError as error:
            raise _MismatchError(Code.URL, f"{_host(url)} redirects to {error}") from error
        if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
            raise _MismatchError(Code.URL, f"{_host(url)} redirects to {public_url(target)}: not encrypted any more")
        return target

    def _socket(self, address: "aiohttp.AddrInfoType") -> socket.socket:
        """A socket for this address: the one place that knows what a name has become, however often it changes."""
        family, kind, protocol, _, target = address
        objection = None if self._limits.proxy else self._policy.objection(str(target[0]))
        if objection:
            raise OSError(errno.EACCES, objection)
        opened = socket.socket(family, kind, protocol)
        # Deep enough to go on while a buffer is written, shallow enough for a rate limit to reach the server.
        rate = self._limits.rate_limit
        deep = min(RECEIVE_BYTES, max(rate, 16384)) if rate else RECEIVE_BYTES
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, deep)
        return opened

    async def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            file = self._limits.ca_file
            try:
                self._tls = await in_thread(client_context, file=file, floor=self._floor)
            except OSError as error:
                raise _LaterError(f"{file or 'the system roots'}: {error.strerror or error}") from error
        return self._tls

    # ------------------------------------------------------------------------------------------ its body

    async def _body(self, response: "aiohttp.ClientResponse") -> AsyncGenerator[bytes, None]:
        """The body as it comes in, no faster than the rate limit; _LaterError if it only drips."""
        window_s = DRIP_STALLS * self._limits.stall_timeout_s
        waited, came = 0.0, 0
        asked_at = time.monotonic()
        patience = asyncio.timeout(window_s)  # what stands between two chunks may never end, and stalls nothing
        try:
            async with patience:
                async for content, _ in response.content.iter_chunks():
                    patience.reschedule(None)
                    now = time.monotonic()
                    waited, came = waited + now - asked_at, came + len(content)
                    if waited > window_s:
                        if came < waited * DRIP_BYTES_PER_S:
                            raise _LaterError(f"{_host(str(response.url))}: {_only(came, waited)}")
                        waited, came = 0.0, 0
                    if content:  # aiohttp marks the end of a chunk, in chunked encoding, by an empty one
                        await self._rate.keep(len(content))
                        yield content
                    asked_at = time.monotonic()
                    patience.reschedule(asyncio.get_running_loop().time() + window_s)
        except TimeoutError as error:
            if not patience.expired():
                raise
            raise _LaterError(f"{_host(str(response.url))}: {_only(0, window_s)}") from error

    def _read_bytes(self) -> int:
        rate = self._limits.rate_limit
        return min(READ_BYTES, max(rate // 4, 4096)) if rate else READ_BYTES

    def _flows(self, offset: int) -> None:
        if self._elsewhere not in (None, self._url):
            log.info("%s: the fresh URL works; goes on after byte %d", public_url(self._url), offset)
        elif self._troubled:
            log.info("%s: goes on after byte %d", public_url(self._url), offset)
        self._attempt, self._elsewhere, self._troubled = -1, None, False

    # ------------------------------------------------------------------------------------------ and if there is none

    def _believe_the_newest(self) -> None:
        """A URL told in the meantime is newer than one that was asked for."""
        told = self._newest_url()
        if told != self._told:
            self._told = self._url = told

    async def _look_elsewhere(self, trouble: _ElsewhereError) -> None:
        second = self._elsewhere not in (None, self._url)
        if self._fresh_url is None or (trouble.final and second):
            raise UpdateError(Code.HTTP_STATUS, str(trouble)) from trouble
        if self._elsewhere is None:
            log.info("asked for a fresh URL: %s", trouble)
            self._elsewhere, self._troubled = self._url, True
        self._waits(Waiting(f"a fresh URL: {trouble}"))
        self._believe_the_newest()
        refused, fresh = self._url, await self._fresh_url()
        if fresh:
            self._url = fresh
        self._told = self._newest_url()  # asking may have changed it
        if self._url == refused or second:
            await self._pause(str(trouble))

    async def _pause(self, reason: str, at_least_s: float = 0) -> None:
        longest_s = self._limits.backoff_max_s
        delay_s = max(backoff_s(max(0, self._attempt), longest_s), min(at_least_s, longest_s))
        if not self._troubled:
            log.warning("%s; again in %s", reason, format_duration(delay_s))
            self._troubled = True
        self._attempt += 1
        if self._attempt >= PATIENCE and self._another is not None and await self._another():
            raise NoWay(reason)
        self._waits(Waiting(reason, time.time() + delay_s))
        await asyncio.sleep(delay_s)

    def _words(self, error: Exception) -> str:
        """What happened, never with aiohttp's own text where that may hold the URL."""
        import aiohttp  # noqa: PLC0415

        match error:
            case aiohttp.ClientConnectorCertificateError(certificate_error=DateError() as cause):
                return f"its certificate is not accepted: {cause.verify_message}"
            case aiohttp.ClientConnectorCertificateError(certificate_error=ssl.SSLCertVerificationError() as cause):
                clock = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
                return f"its certificate is not accepted: {cause.verify_message} (the clock says {clock})"
            case aiohttp.ClientConnectorSSLError():
                return f"no encrypted connection: {_strerror(error.os_error)}"
            case aiohttp.ClientConnectorDNSError():
                return f"the name cannot be resolved: {_strerror(error.os_error)}"
            case aiohttp.ClientProxyConnectionError():
                return f"the proxy cannot be reached: {_strerror(error.os_error)}"
            case aiohttp.ClientHttpProxyError():
                return f"the proxy answers {error.status}"
            case aiohttp.ClientConnectorError():
                return f"no connection: {_strerror(error.os_error)}"
            case aiohttp.ConnectionTimeoutError():
                return f"no connection within {format_duration(self._limits.connect_timeout_s)}"
            case aiohttp.SocketTimeoutError():
                return f"no byte for {format_duration(self._limits.stall_timeout_s)}"
            case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError():
                return "the connection ended early"
            case aiohttp.ClientResponseError():
                return "the answer is not HTTP"
            case TimeoutError():
                return "no answer in time"
            case OSError():
                return _strerror(error)
            case _:
                return type(error).__name__


def _same_object(response: "aiohttp.ClientResponse", url: str, etag: str, etag_at: str) -> tuple[str, str]:
    """The ETag to remember and what it belongs to; _MismatchError if it says that the object is another one."""
    here, at = response.headers.get("ETag", "").removeprefix("W/"), etag_url(url)
    if response.status not in (200, 206) or len(here) > ETAG_CHARACTERS_MAX or not _ETAG.fullmatch(here):
        return etag, etag_at
    if etag and at == etag_at and here != etag:
        raise _MismatchError(Code.CONTENT, f"{public_url(url)}: the object has changed", other_object=True)
    return here, at


def _judge(response: "aiohttp.ClientResponse", url: str, offset: int, size: int) -> int:
    """The package's byte that the body begins with, at most `offset`. Raises if the body is worth nothing."""
    status, headers = response.status, response.headers
    said = f"{public_url(url)}: {status} {_clean(response.reason or '')}".rstrip()
    if status in (200, 206) and headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
        raise _MismatchError(Code.CONTENT, f"{public_url(url)}: sent encoded, which was not asked for")
    match status:
        case 200:
            length = headers.get("Content-Length")
            _same_total(url, length, size)
            return 0
        case 206:
            found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
            if found is None:
                raise _LaterError(f"{said}: does not say which range")
            _same_total(url, found[3], size)
            if int(found[1]) != offset:
                raise _LaterError(f"{said}: begins at byte {found[1]} instead of {offset}")
            return offset
        case 416:
            _same_total(url, headers.get("Content-Range", "").rpartition("/")[2], size)
            raise _ElsewhereError(f"{said}: from byte {offset} of {size}", final=False)
        case _ if 400 <= status < 500 and status not in _WAIT:
            raise _ElsewhereError(said, final=status not in _FRESH_MAY_EXPIRE_TOO)
        case _:
            raise _LaterError(said, _retry_after_s(headers.get("Retry-After", "")))


def _same_total(url: str, told: str | None, size: int) -> None:
    if told and told.isascii() and told.isdigit() and int(told[:19]) != size:
        reason = f"{public_url(url)}: has {told[:19]} bytes, the notice says {size}"
        raise _MismatchError(Code.CONTENT, reason, other_object=True)


def _retry_after_s(value: str) -> float:
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return 0


def _as_it_stands(url: str) -> "yarl.URL":
    import yarl  # noqa: PLC0415  # comes with aiohttp

    return yarl.URL(url, encoded=True)  # a signed URL does not survive normalisation


def _only(came: int, waited_s: float) -> str:
    return f"only {came} bytes in {format_duration(waited_s)}"


def _host(url: str) -> str:
    return _clean(urlsplit(url).netloc.rpartition("@")[2]) or "the server"


def _strerror(error: OSError) -> str:
    said = error.strerror or str(error) or type(error).__name__
    if error.errno and said.startswith("Connect call failed"):  # asyncio's words for all that connect(2) says
        said = os.strerror(error.errno)
    return _clean(said)


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:120])
