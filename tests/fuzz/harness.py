# SPDX-License-Identifier: Apache-2.0
"""Every parser of bytes from outside, each behind one function that takes any bytes.

    fed("upgrade", payload)

returns when the parser has given a verdict or the exception that its docstring names, and when what it promises of
either holds. Anything else (another exception, a broken promise, more than SECONDS_MAX of processor time) is raised.

Used by `test_corpus` (the kept corpus, and short campaigns by hypothesis) and by `campaign` (coverage-guided, atheris).
A parser of several strings finds them in its bytes in a way that its function says.
"""

# ruff: noqa: PT017  # what a parser raises is its verdict, and is looked at as such

import contextlib
import hashlib
import http.client
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from multidict import CIMultiDict

from otad import clock, tls, units
from otad.cloud import login as device_login
from otad.cloud import registration, trust, wire
from otad.cloud.cloud import Answer, Nothing, Offered, Unusable
from otad.config import load
from otad.control import server
from otad.core import codec
from otad.core.model import DEFAULT_MODULE, Digest
from otad.errors import Code, UpdateError
from otad.installers import format as package_format
from otad.installers import image, tree
from otad.installers import manifest as manifest_json
from otad.installers.archive import Kind, open_package
from otad.installers.stream import HashingReader
from otad.platform import blocks, credentials, files, mqtt
from otad.platform import wire as platform_wire
from otad.transfer import http as transfer_http
from otad.transfer.url import UrlPolicy, public_url

SECONDS_MAX = 2.0
UNPACKED_MAX = 256 << 10
"""Of what an image unpacks to, so many bytes are looked at: a bomb is not the parser's fault."""
SECRET = "s3cret-that-is-not-to-be-repeated"

Parser = Callable[[bytes], object]
PARSERS: dict[str, Parser] = {}
BINARY = frozenset({"package", "archive", "mqtt_packet", "certificate"})
"""Those that never look at JSON."""


def fed(name: str, content: bytes) -> None:
    """Give `content` to the parser; raises where it did what it must not."""
    began = time.thread_time()
    PARSERS[name](content)
    took = time.thread_time() - began
    assert took < SECONDS_MAX, f"{name}: {took:.1f} s of processor time for {len(content)} bytes"


def _parser(parser: Parser) -> Parser:
    PARSERS[parser.__name__] = parser
    return parser


# ------------------------------------------------------------------------------------- what the platform says to us


@_parser
def upgrade(payload: bytes) -> None:
    with contextlib.suppress(wire.Unattributable):
        _check_answer(wire.parse_upgrade(payload))
    with contextlib.suppress(wire.Unattributable):
        _check_answer(wire.parse_upgrade(payload, allow_md5=False, verify=_refuse_all), wants_signature=True)


@_parser
def get_reply(payload: bytes) -> None:
    with contextlib.suppress(wire.Unattributable):
        reply = wire.parse_get_reply(payload, "1", lambda _: DEFAULT_MODULE)
        _check_line(reply.problem)
        if reply.answer is None:
            assert reply.problem
        else:
            _check_answer(reply.answer)


@_parser
def block(payload: bytes) -> None:
    with contextlib.suppress(wire.Unattributable):
        reply = wire.parse_block(payload)
        _check_line(reply.message)
        assert (reply.code == 200) == bool(reply.content)
        assert len(reply.content) <= wire.BLOCK_MAX
        assert reply.total is None or reply.offset + len(reply.content) <= reply.total


@_parser
def framed_block(content: bytes) -> None:
    """The header up to the first line feed, then the file's bytes; length and CRC are made right."""
    header, _, file = content.partition(b"\n")
    header = header[:0xFFFF]
    block(len(header).to_bytes(2, "big") + header + file + _crc16(file).to_bytes(2, "little"))


@_parser
def platform_error(payload: bytes) -> None:
    with contextlib.suppress(wire.Unattributable):
        _, text = wire.parse_error(payload)
        _check_line(text)


@_parser
def ntp(payload: bytes) -> None:
    with contextlib.suppress(wire.Unattributable):
        assert all(0 <= one <= wire.TIME_MAX for one in wire.parse_ntp(payload))


@_parser
def registered(payload: bytes) -> None:
    with _nothing_secret():
        assert wire.parse_registered(payload).device_secret


@_parser
def registration_answer(content: bytes) -> None:
    with _nothing_secret(), contextlib.suppress(wire.RegistrationRefused):
        assert wire.parse_registration_answer(content).device_secret


@_parser
def token(payload: bytes) -> None:
    with _nothing_secret():
        assert wire.parse_token(payload).device_token


@_parser
def identity(payload: bytes) -> None:
    with contextlib.suppress(wire.Unattributable):
        assert all(wire.parse_identity(payload))


@_parser
def registration_http(raw: bytes) -> None:
    """The answer to a registration as it comes from the network."""
    with contextlib.suppress(http.client.HTTPException, OSError, ValueError):  # those that `post` makes into `Lost`
        registration._is_whole(bytearray(raw))
        status, _ = registration._answer(raw)
        assert isinstance(status, int)


@_parser
def digestsign(content: bytes) -> None:
    try:
        assert len(trust._decoded(_text(content), 256)) == 256
    except UpdateError as error:
        assert error.failure.code is Code.SIGNATURE
        _check_line(error.failure.detail)


# ------------------------------------------------------------------------------------- what web servers say to us


@_parser
def http_answer(content: bytes) -> None:
    """A line `STATUS OFFSET SIZE REASON`, and a line for each header, as aiohttp hands them on."""
    first, *lines = content.decode("utf-8", "surrogateescape").split("\n")
    status, offset, size, reason = [*first.split(" ", 3), "", "", "", ""][:4]
    headers = CIMultiDict[str]()
    for line in lines:
        name, _, value = line.partition(":")
        headers.add(name, value)
    response: Any = SimpleNamespace(status=_number(status, 206, 999), reason=reason, headers=headers)
    total = _number(size, 1000, 1 << 50)
    start = min(_number(offset, 10, 1 << 50), total - 1)
    query = hashlib.sha256(content).hexdigest()  # so that it is nowhere in the answer
    url = f"https://example.com/ota/x?auth_key={query}"
    try:
        assert transfer_http._judge(response, url, start, total) in (0, start)
        etag, _ = transfer_http._same_object(response, url, "kept", "https://elsewhere/")
        assert len(etag) <= transfer_http.ETAG_CHARACTERS_MAX
    except (transfer_http._LaterError, transfer_http._ElsewhereError, transfer_http._MismatchError) as error:
        assert query not in str(error)
        _check_line(str(error))


@_parser
def url(content: bytes) -> None:
    """Any text as a URL: a redirect's or `otad install`'s."""
    text = _text(content)
    for policy in (UrlPolicy(), UrlPolicy(allow_http=True, allow_private_hosts=True)):
        try:
            policy.check(text)
            assert text.isascii()
            assert text.isprintable()
        except UpdateError as error:
            assert error.failure.code is Code.URL
            _check_line(error.failure.detail)
    assert not text.isprintable() or not {"?", "#"} & set(public_url(text))


@_parser
def certificate(der: bytes) -> None:
    """When a certificate is valid; the chain was verified before, but by a clock that may be wrong."""
    begins, ends = tls._validity(der)
    assert isinstance(begins, int)
    assert isinstance(ends, int)


# ------------------------------------------------------------------------------------- what is on the gateway


@_parser
def state(content: bytes) -> None:
    with contextlib.suppress(codec.StateError):
        known = codec.decode(content)
        assert codec.decode(codec.encode(known)) == known


@_parser
def checked_state(content: bytes) -> None:
    """The text of `state`; schema and checksum are made right."""
    try:
        text = content.decode()
        plain = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):
        return
    checksum = hashlib.sha256(plain.encode()).hexdigest()
    state(f'{{"schema":{codec.SCHEMA},"checksum":"{checksum}","state":{text}}}'.encode())


@_parser
def floor(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert 0 <= clock._parse(content) <= clock.FLOOR_MAX


@_parser
def stored_identity(content: bytes) -> None:
    try:
        purpose, _ = device_login._decode(content)
        assert purpose
    except ValueError as error:
        assert not isinstance(error, UnicodeError)
        assert SECRET not in str(error)


@_parser
def config(content: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(content)
        file.flush()
        loaded = load(file.name, {})
    for problem in loaded.problems:
        _check_line(str(problem))


@_parser
def control_calls(content: bytes) -> None:
    """What a client of the control socket sends: calls, each ended by a NUL."""
    for message in content.split(b"\0"):
        try:
            call = server._call(message)
            interface, _, method = call.method.rpartition(".")
            if method in server.METHODS.get(interface, {}):
                given = server._checked(call.parameters, server.METHODS[interface][method])
                assert given.keys() <= call.parameters.keys()
                if interface == server.VARLINK:
                    json.dumps(server._varlink(method, given))
        except server._DropError:
            return
        except server._ReplyError as error:
            json.dumps({"error": error.name, "parameters": error.parameters}).encode()


@_parser
def size(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        size = units.parse_size(_text(content))
        assert size >= 0
        near = units.parse_size(units.format_size(size))
        assert abs(near - size) <= size / 10


@_parser
def duration(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        seconds = units.parse_duration(_text(content))
        assert seconds >= 0
        near = units.parse_duration(units.format_duration(seconds))
        assert abs(near - seconds) <= max(seconds / 10, 0.001)


# ------------------------------------------------------------------------------------- packages


@_parser
def package(content: bytes) -> None:
    """A package from its first byte to its end, or to UNPACKED_MAX bytes of what it unpacks to."""
    source = HashingReader(io.BytesIO(content), "sha256")
    kind = package_format.sniff(content[: package_format.HEAD_BYTES])
    assert isinstance(kind, package_format.Format)
    unpacked, lengths = 0, []
    try:
        opened = image.open_image(source, kind, len(content))
        for chunk in opened.chunks(4096):
            unpacked += len(chunk)
            lengths.append(len(chunk))
            if unpacked > UNPACKED_MAX:
                return
    except UpdateError as error:
        assert error.failure.code is Code.FORMAT
        _check_line(error.failure.detail)
        return
    assert all(length == 4096 for length in lengths[:-1])
    assert opened.size in (None, unpacked)
    assert source.hexdigest() == hashlib.sha256(content).hexdigest()
    assert kind is not package_format.Format.RAW or unpacked == len(content)


@_parser
def archive(content: bytes) -> None:
    """A package of files: what would be made of it, entry by entry, and that none of it is outside of the directory."""
    source = HashingReader(io.BytesIO(content), "sha256")
    kind = package_format.sniff(content[: package_format.HEAD_BYTES])
    made: dict[str, str | None] = {}  # by name; where a link points to, None for what is no link
    directories = {""}
    unpacked = 0
    try:
        entries = open_package(source, kind, len(content), manifest_json.TREE_BOUNDS)
        named = (replace(entry, name=entry.name or "app") for entry in entries)
        for entry in tree.fit(named):
            assert entry.name not in made
            assert entry.name.rpartition("/")[0] in directories
            if entry.kind is Kind.DIRECTORY:
                directories.add(entry.name)
            made[entry.name] = entry.target if entry.kind is Kind.LINK else None
            if entry.kind is Kind.OTHER_NAME:
                assert made[entry.target] is None
            if entry.kind is Kind.FILE:
                with_manifest, _ = manifest_json.take_manifest(entry)
                for piece in with_manifest.pieces:
                    unpacked += len(piece)
                    if unpacked > UNPACKED_MAX:
                        return
    except UpdateError as error:
        assert error.failure.code is Code.FORMAT
        _check_line(error.failure.detail)
    for name in made:
        assert not _is_outside(name, made), name


@_parser
def manifest(content: bytes) -> None:
    try:
        found = manifest_json._parsed(content)
        if found is not None:
            found.check(found.files)
    except UpdateError as error:
        assert error.failure.code is Code.FORMAT
        _check_line(error.failure.detail)


# ------------------------------------------------------------------------------------- what devices say to the stand-in


@_parser
def mqtt_packet(content: bytes) -> None:
    """A packet's first byte, and what follows its remaining length."""
    with contextlib.suppress(mqtt.Malformed):
        mqtt.parse(content[0] if content else 0, content[1:])


DEVICE = credentials.Identity("pk", "dn")
DEVICE_TOPICS = (
    "/ota/device/inform/pk/dn",
    "/ota/device/progress/pk/dn",
    "/ota/device/request/pk/dn",
    "/sys/pk/dn/thing/ota/firmware/get",
    "/sys/pk/dn/thing/file/download",
    "/ext/ntp/pk/dn/request",
)


@_parser
def device_message(content: bytes) -> None:
    """A digit that names the topic, and the payload."""
    topic = DEVICE_TOPICS[(content[0] if content else 0) % len(DEVICE_TOPICS)]
    with contextlib.suppress(platform_wire.Unreadable):
        message = platform_wire.parse(topic, content[1:])
        if isinstance(message, platform_wire.Ask):
            platform_wire.to_json(platform_wire.reply(message, None))
        if isinstance(message, platform_wire.AskTime):
            platform_wire.to_json(platform_wire.time_reply(message, 0.0))
        if isinstance(message, platform_wire.AskBlock):
            _answer_block(message)
        for text in _texts(message):
            text.encode()  # the stand-in keeps what it hears in a file


def _answer_block(ask: platform_wire.AskBlock) -> None:
    file = bytes(1000)
    try:
        span = blocks.span_of(ask, len(file))
        assert 0 <= span.start < span.start + span.size <= len(file)
        blocks.block(ask, span, file[span.start : span.start + span.size], len(file))
    except blocks.Unanswerable as error:
        blocks.refusal(ask, error.code, error.message)


@_parser
def range_header(content: bytes) -> None:
    """A Range header, as the stand-in's file server takes it."""
    for standard in (True, False):
        found = files.span_of(_text(content), 1000, standard=standard)
        assert found.status in (200, 206, 416)
        assert found.status == 416 or 0 <= found.start < found.end <= 1000


@_parser
def device_topic(content: bytes) -> None:
    topic = content.decode(errors="replace")
    platform_wire.identity_in(topic)
    platform_wire.belongs_to(topic, DEVICE)
    with contextlib.suppress(platform_wire.Unreadable):
        platform_wire.parse(topic, b'{"params":{}}')


@_parser
def login(content: bytes) -> None:
    """Client id, user name and password, a line each."""
    client_id, username, password = [*content.decode(errors="replace").split("\n", 2), "", ""][:3]
    with contextlib.suppress(credentials.MalformedLogin):
        claim = credentials.parse_login(client_id, username, password)
        expected = credentials.expected_password(claim, SECRET)
        assert credentials.is_proven(claim, SECRET) == (claim.password.lower() == expected)
        credentials.is_of_product(claim.identity, claim.random, claim.sign_method, claim.password, SECRET)


# ------------------------------------------------------------------------------------- what is promised


def _check_answer(answer: Answer, *, wants_signature: bool = False) -> None:
    match answer:
        case Offered(notice, offer):
            assert offer
            assert not wants_signature
            assert 1 <= notice.identity.size <= wire.SIZE_MAX
            assert notice.identity.digest is not None
            assert notice.artifacts
            assert sum(artifact.size for artifact in notice.artifacts) == notice.identity.size
            assert notice.files or notice.url or notice.stream
            for artifact in notice.artifacts:
                assert "/" not in artifact.name
                assert "\0" not in artifact.name
            notice.identity.key.encode("ascii")
        case Unusable(key, _, version, failure, _):
            assert key
            assert len(version) <= 64
            assert failure.code in (Code.MALFORMED, Code.UNSUPPORTED, Code.SIGNATURE)
            _check_line(failure.detail)
        case Nothing():
            pass


def _check_line(text: str) -> None:
    """One line, printable and not endless: it goes to the journal and to the platform."""
    assert text.isprintable(), repr(text)
    assert len(text) <= 4096


def _refuse_all(_: Digest, __: str | None) -> None:
    raise UpdateError(Code.SIGNATURE, "digestsign: refused")


@contextlib.contextmanager
def _nothing_secret() -> Iterator[None]:
    """`Unattributable` is a verdict too, but its text repeats nothing of the message."""
    try:
        yield
    except wire.Unattributable as error:
        assert SECRET[:6] not in str(error)


def _is_outside(name: str, made: Mapping[str, str | None]) -> bool:
    """Whether opening this name below a directory would end outside of it, by the links that there are."""
    rest, followed = name.split("/")[::-1], 0
    at: list[str] = []
    while rest:
        part = rest.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not at:
                return True
            at.pop()
            continue
        at.append(part)
        target = made.get("/".join(at))
        if target is not None and followed < 40:  # the kernel follows so many
            followed += 1
            if target.startswith("/"):
                return True
            at.pop()
            rest += target.split("/")[::-1]
    return False


def _texts(message: object) -> list[str]:
    values = (getattr(message, name) for name in getattr(message, "__slots__", ()))
    return [value for value in values if isinstance(value, str)]


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _number(text: str, otherwise: int, most: int) -> int:
    return min(int(text[:18]), most) if text.isascii() and text.isdigit() else otherwise


def _crc16(content: bytes) -> int:
    """CRC-16/ARC, a bit at a time: not the parser's own way."""
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return crc
