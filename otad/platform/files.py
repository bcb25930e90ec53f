# SPDX-License-Identifier: Apache-2.0
"""The file server that packages are downloaded from: object storage behind a CDN, as the platform's devices see it.

    GET /ota/<32 hex>/<id>.bin?auth_key=<unix time>-<rand>-<uid>-<md5 of "path-time-rand-uid-key">
    GET /ota/<32 hex>/<id>.bin?Expires=<unix time>&OSSAccessKeyId=..&Signature=..&security-token=..   (fault oss_urls)

- One range is answered with 206 if it lies within the object. Any other range gets 200 and the whole object, unless
  the request says `x-oss-range-behavior: standard`: then an end too far is clipped and a start too far is a 416.
- ETag is the object's MD5, upper case, quoted. Content-Length is always there.
- Each file of a package with several is an object of its own, `<id>-<place>.bin`.
- A URL older than its time to live, or with a wrong hash, gets 403: from the CDN with `X-Tengine-Error`, from object
  storage with an XML body that names both times and an error code (0002-00000069). An object that is not there is 404
  `NoSuchKey`.

Every request is recorded with the bytes it was sent, so that `bytes_twice` can say what was fetched more than once.
Bytes count when they are handed to the kernel; it holds at most `SEND_BUFFER` that a client may not have seen.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import os
import re
import secrets
import shutil
import socket
import ssl
import zipfile
import zlib
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode
from xml.sax.saxutils import escape

from aiohttp import web

from otad.platform.events import BlockServed, Served
from otad.platform.faults import Faults
from otad.platform.jobs import Package, PackageFile, SignMethod

CHUNK_BYTES: Final = 256 << 10
SEND_BUFFER: Final = 256 << 10
UID: Final = "0"  # the third field of auth_key; the CDN's documents fix it
TOKEN_BYTES: Final = 600  # of a security token, which makes a URL longer than 900 characters
_ACCESS_KEY: Final = "STS.NUoTaDpLaTfOrMsTaNdIn0001"

# The CDN's words (help.aliyun.com, document 100581), and object storage's codes for the same.
EXPIRED, WRONG, MISSING = "expired timestamp", "invalid md5hash", "no url arg auth_key"

_ERRORS: Final = {
    400: ("InvalidArgument", "The request is not valid."),
    403: ("AccessDenied", "Request has expired."),
    404: ("NoSuchKey", "The specified key does not exist."),
    416: ("InvalidRange", "The requested range cannot be satisfied."),
    500: ("InternalError", "Please contact the server administrator."),
    503: ("ServiceUnavailable", "Please reduce your request rate."),
}


@dataclass(frozen=True, slots=True)
class Span:
    """What of an object is to be sent, and with which status."""

    status: int
    start: int
    end: int
    """The first byte that is not sent."""


def span_of(range_text: str | None, size: int, *, standard: bool) -> Span:
    """How object storage answers a Range header; `standard` is `x-oss-range-behavior: standard`."""
    whole = Span(200, 0, size)
    if range_text is None:
        return whole
    found = re.fullmatch(r"bytes=([0-9]{0,40})-([0-9]{0,40})", range_text.strip())
    if not found or found[0] == "bytes=-":
        # Several ranges are "bytes" too; the documents disagree on them, and no device should send them.
        return Span(416, 0, 0) if standard and range_text.startswith("bytes=") else whole
    if not found[1]:
        length = int(found[2])
        if 0 < length <= size:
            return Span(206, size - length, size)
        return Span(206, 0, size) if standard and length else whole
    start, last = int(found[1]), int(found[2]) if found[2] else size - 1
    if start > last and found[2]:
        return whole
    if start < size and last < size:
        return Span(206, start, last + 1)
    if not standard:
        return whole
    return Span(206, start, size) if start < size else Span(416, 0, 0)


def bytes_twice(served: Iterable[Served | BlockServed]) -> int:
    """Of the bytes sent in these answers about one package, how many were sent before."""
    files: dict[str, list[tuple[int, int]]] = {}
    for one in served:
        if one.sent:
            file = one.file if isinstance(one, Served) else ""
            files.setdefault(file, []).append((one.start, one.start + one.sent))
    return sum(_overlap(spans) for spans in files.values())


def _overlap(spans: list[tuple[int, int]]) -> int:
    total = sum(end - start for start, end in spans)
    distinct = reached = 0
    for start, end in sorted(spans):
        distinct += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total - distinct


def zipped(package: Package) -> Package:
    """A package of several files as one file, a ZIP archive of them beside the first: as some consoles deliver it."""
    path = package.path.with_name(f"{package.id}.zip")
    if not path.exists():
        with zipfile.ZipFile(path, "w") as archive:
            for file in package.files:
                # The same bytes each time: the digest has to stand.
                entry = zipfile.ZipInfo(file.name)
                with file.path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target)
    with path.open("rb") as content:
        md5 = hashlib.file_digest(content, _md5).hexdigest()
        content.seek(0)
        sign = md5 if package.sign_method is SignMethod.MD5 else hashlib.file_digest(content, "sha256").hexdigest()
    return replace(package, path=path, size=path.stat().st_size, sign=sign, etag=md5.upper(), files=())


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class _Object:
    """A file that can be downloaded."""

    package: Package
    file: str
    """Its name among several, or ""."""
    path: Path
    size: int
    etag: str


class FileServer:
    """Serves packages under signed URLs that expire."""

    def __init__(
        self,
        faults: Faults,
        record: Callable[[Served], None],
        clock: Callable[[], float],
        *,
        key: str,
        host: str,
        address: str,
        port: int,
        url_ttl_s: float = 24 * 3600.0,
        tls: ssl.SSLContext | None = None,
        routes: Iterable[web.RouteDef] = (),
    ) -> None:
        self.url_ttl_s = url_ttl_s
        self.base = ""
        """Scheme, host and port that URLs begin with; known once started."""
        self._faults = faults
        self._record = record
        self._clock = clock
        self._key = key
        self._host = host
        self._address = address
        self._port = port
        self._tls = tls
        self._routes = tuple(routes)
        self._objects: dict[str, _Object] = {}
        self._sending: set[asyncio.Transport] = set()
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        return self._port

    async def start(self) -> None:
        app = web.Application()
        app.add_routes(self._routes)
        app.router.add_get("/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port, ssl_context=self._tls, reuse_address=True)
        await site.start()
        self._port = int(self._runner.addresses[0][1])
        self.base = f"{'https' if self._tls else 'http'}://{self._address}:{self._port}"

    async def stop(self) -> None:
        if self._runner is not None:
            self.cut()
            await self._runner.cleanup()
            self._runner = None

    def cut(self) -> None:
        """Close every connection on which a body is being sent, at once."""
        for transport in tuple(self._sending):
            transport.abort()

    def add(self, package: Package) -> None:
        if not package.files:
            found = _Object(package, "", package.path, package.size, package.etag)
            self._objects[self._path(package, None)] = found
        for file in package.files:
            found = _Object(package, file.name, file.path, file.size, file.etag)
            self._objects[self._path(package, file)] = found

    def remove(self, package: Package) -> None:
        """Requests for it are answered with 404 from now on."""
        self._objects = {path: found for path, found in self._objects.items() if found.package.id != package.id}

    def url(self, package: Package, file: PackageFile | None = None) -> str:
        """A URL for this package, or for one of its several files, signed now; no two are the same."""
        path = self._path(package, file)
        now = int(self._clock())
        if not self._faults.oss_urls:
            claim = f"{now}-{secrets.token_hex(8)}-{UID}"
            return f"{self.base}{path}?auth_key={claim}-{self._signature(path, claim)}"
        expires, token = str(int(now + self._ttl_s)), base64.b64encode(secrets.token_bytes(TOKEN_BYTES)).decode()
        signed = {"Expires": expires, "OSSAccessKeyId": _ACCESS_KEY}
        signed |= {"Signature": self._oss_signature(path, expires, token), "security-token": token}
        return f"{self.base}{path}?{urlencode(signed)}"

    @property
    def _ttl_s(self) -> float:
        found = self._faults.url_ttl_s
        return self.url_ttl_s if found is None else found

    def _path(self, package: Package, file: PackageFile | None) -> str:
        place = hashlib.md5(f"{self._key}{package.id}".encode(), usedforsecurity=False).hexdigest()
        number = "" if file is None else f"-{[one.name for one in package.files].index(file.name)}"
        return f"/ota/{place}/{package.id}{number}{'.zip' if package.path.suffix == '.zip' else '.bin'}"

    def _signature(self, path: str, claim: str) -> str:
        return hashlib.md5(f"{path}-{claim}-{self._key}".encode(), usedforsecurity=False).hexdigest()

    def _oss_signature(self, path: str, expires: str, token: str) -> str:
        # Signature version 1: the string that is signed has verb, MD5, type, time and resource.
        text = f"GET\n\n\n{expires}\n{path}?security-token={token}"
        return base64.b64encode(hmac.new(self._key.encode(), text.encode(), "sha1").digest()).decode()

    def _objection(self, request: web.Request) -> str | None:
        """Why a request's URL is not good, in the CDN's words; None if it is."""
        query = request.query
        if "Signature" in query:
            expires = query.get("Expires", "")
            expected = self._oss_signature(request.path, expires, query.get("security-token", ""))
            if not expires.isdecimal() or not hmac.compare_digest(query["Signature"].encode(), expected.encode()):
                return WRONG
            return None if self._clock() < int(expires) else EXPIRED
        if "auth_key" not in query:
            return MISSING
        claim, _, signature = query["auth_key"].rpartition("-")
        issued = claim.partition("-")[0]
        expected = self._signature(request.path, claim)
        if not issued.isdecimal() or not hmac.compare_digest(signature.encode(), expected.encode()):
            return WRONG
        return None if self._clock() < int(issued) + self._ttl_s else EXPIRED

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        faults = self._faults
        found = self._objects.get(request.path)
        status = faults.next_statuses.pop(0) if faults.next_statuses else faults.every_status
        if status is not None:
            return self._error(request, found, status)
        if objection := self._objection(request):
            return self._error(request, found, 403, objection=objection)
        if found is None:
            return self._error(request, None, 404)
        if faults.redirect_to is not None:
            self._note(request, found, 302)
            return web.Response(status=302, headers={"Location": faults.redirect_to})
        return await self._send(request, found)

    async def _send(self, request: web.Request, found: _Object) -> web.StreamResponse:
        faults = self._faults
        size = max(0, found.size + faults.size_delta)
        standard = request.headers.get("x-oss-range-behavior", "").lower() == "standard"
        wanted = None if faults.ignore_range or faults.gzip else request.headers.get("Range")
        span = span_of(wanted, size, standard=standard)
        if span.status == 416:
            return self._error(request, found, 416, {"Content-Range": f"bytes */{size}"})
        headers = {
            "Server": "Tengine",
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            "ETag": f'"{found.etag if faults.etag is None else faults.etag}"',
            "Last-Modified": formatdate(found.path.stat().st_mtime, usegmt=True),
        }
        start, end = span.start, span.end
        if span.status == 206:
            start = min(max(0, start + faults.range_shift), end)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        content = Content(found.path, faults)
        if faults.gzip:
            end = content.compress(size)
            headers["Content-Encoding"] = "gzip"
        response = web.StreamResponse(status=span.status, headers=headers)
        response.content_length = end - start
        transport = request.transport
        sent = 0
        try:
            with contextlib.closing(content):
                if transport is None:
                    return response
                self._sending.add(transport)
                _limit_send_buffer(transport)
                await response.prepare(request)
                if request.method != "HEAD":
                    async with contextlib.aclosing(self._paced(content, start, end, transport)) as chunks:
                        async for chunk in chunks:
                            sent += len(chunk)  # handed over, even if the client leaves while it is being sent
                            await response.write(chunk)
                if sent < end - start:
                    transport.close()  # what has been written still arrives
                    return response
                await response.write_eof()
        except ConnectionError:
            pass
        finally:
            if transport is not None:
                self._sending.discard(transport)
            self._note(request, found, span.status, start, sent, sent == end - start)
        return response

    async def _paced(
        self, content: "Content", start: int, end: int, transport: asyncio.Transport
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of a body, as fast and as far as the faults allow at each moment."""
        faults = self._faults
        at = start
        while at < end:
            while faults.stall_after is not None and at - start >= faults.stall_after:
                if transport.is_closing():
                    return
                await asyncio.sleep(0.02)
            limit = min(end, at + CHUNK_BYTES)
            for fault in (faults.cut_after, faults.stall_after):
                if fault is not None and at - start < fault:
                    limit = min(limit, start + fault)
            if faults.cut_after is not None and at - start >= faults.cut_after and self._may_cut():
                return
            rate = faults.rate
            if rate is not None:
                limit = min(limit, at + max(1, int(rate / 20)))
            yield content.read(at, limit)
            if rate is not None:
                await asyncio.sleep((limit - at) / rate)
            at = limit

    def _may_cut(self) -> bool:
        faults = self._faults
        if faults.cut_times is None:
            return True
        cuts = faults.cut_times > 0
        faults.cut_times -= 1
        if faults.cut_times <= 0:
            faults.cut_after = faults.cut_times = None
        return cuts

    def _error(
        self,
        request: web.Request,
        found: _Object | None,
        status: int,
        headers: dict[str, str] | None = None,
        *,
        objection: str = EXPIRED,
    ) -> web.Response:
        if found is not None:
            self._note(request, found, status)
        is_oss, now = "Signature" in request.query, self._clock()
        code, message = _ERRORS.get(status, ("Error", "The request was refused."))
        more: dict[str, str] = {}
        if status == 404:
            more = {"Key": request.path[1:], "EC": "0026-00000001"}
        elif status == 403 and is_oss and objection == WRONG:
            code = "SignatureDoesNotMatch"
            message = "The request signature we calculated does not match the signature you provided."
            more = {"EC": "0002-00000040"}
        elif status == 403 and is_oss:
            expires = request.query.get("Expires", "")
            at = float(expires) if expires.isdecimal() else now
            more = {"Expires": _oss_time(at), "ServerTime": _oss_time(now), "EC": "0002-00000069"}
        request_id = secrets.token_hex(12).upper()
        facts = {"Code": code, "Message": message, "RequestId": request_id, "HostId": request.host, **more}
        lines = "".join(f"  <{name}>{escape(text)}</{name}>\n" for name, text in facts.items())
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>\n{lines}</Error>\n'
        answer = web.Response(status=status, text=body, content_type="application/xml", headers=headers)
        answer.headers["Server"] = "AliyunOSS" if is_oss else "Tengine"
        answer.headers["x-oss-request-id"] = request_id
        if "EC" in more:
            answer.headers["x-oss-ec"] = more["EC"]
        if status == 403 and not is_oss:
            answer.headers["X-Tengine-Error"] = f"denied by req auth: {objection}"
        return answer

    def _note(
        self,
        request: web.Request,
        found: _Object,
        status: int,
        start: int = 0,
        sent: int = 0,
        whole: bool = True,
    ) -> None:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self._record(
            Served(
                self._clock(),
                found.package.id,
                found.package.version,
                request.headers.get("Range"),
                status,
                start,
                sent,
                whole,
                headers,
                found.file,
            )
        )


class Content:
    """The bytes of a file, as the faults have them."""

    def __init__(self, path: Path, faults: Faults) -> None:
        self._faults = faults
        self._packed: bytes | None = None
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, start: int, end: int) -> bytes:
        if self._packed is not None:
            return self._packed[start:end]
        found = os.pread(self._file, end - start, start)
        wrong = self._faults.corrupt_at
        if wrong is not None and start <= wrong < start + len(found):
            at = wrong - start
            found = found[:at] + bytes([found[at] ^ 0xFF]) + found[at + 1 :]
        return found.ljust(end - start, b"\0")

    def compress(self, size: int) -> int:
        """From now on be the gzip form of the first `size` bytes; how long that is. All of it is in memory."""
        self._packed = zlib.compress(self.read(0, size), 1, wbits=31)
        return len(self._packed)

    def close(self) -> None:
        os.close(self._file)


def _oss_time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _limit_send_buffer(transport: asyncio.Transport) -> None:
    found = transport.get_extra_info("socket")
    if found is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
