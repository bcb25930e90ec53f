# SPDX-License-Identifier: Apache-2.0
"""Each parser of bytes from outside gives a verdict or its documented exception, nothing else, in bounded time.

What is a verdict, and what is promised of it, stands in `harness`. Four ways to look for one that is not:

- the kept corpus: inputs that `tests/fuzz/run` found to reach something that no other one did
- messages of the right shape with some of their fields wrong, by hypothesis: the same ones each time; so many as
  OTAD_FUZZ_EXAMPLES says, and others each time, where that is set
- large inputs of one thing over and over, where time could grow with their square
- documents nested to each depth at which Python's own limit could be met at another place than where it is caught
"""

import bisect
import io
import json
import os
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.harness import BINARY, DEVICE_TOPICS, PARSERS, SECRET, fed

CORPUS = Path(__file__).parent / "corpus"
CORPUS_BYTES_MAX = 300 << 10
EXAMPLES = int(os.environ.get("OTAD_FUZZ_EXAMPLES", "250"))

Bytes = st.SearchStrategy[bytes]

every_parser = pytest.mark.parametrize("parser", PARSERS)


@every_parser
def test_what_was_found_before_is_dealt_with(parser: str) -> None:
    inputs = sorted((CORPUS / parser).iterdir())
    for path in inputs:
        try:
            fed(parser, path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{path.relative_to(CORPUS)}: {path.read_bytes()[:300]!r}") from error

    assert inputs


def test_the_corpus_is_small_and_has_no_parser_too_many() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(PARSERS)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) <= CORPUS_BYTES_MAX


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")  # where it shows a long input that fails
@every_parser
def test_messages_with_wrong_fields_are_dealt_with(parser: str) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize="OTAD_FUZZ_EXAMPLES" not in os.environ,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(_inputs(parser))
    def feed(content: bytes) -> None:
        fed(parser, content)

    feed()


@pytest.mark.parametrize("parser", sorted(PARSERS.keys() - BINARY))
@pytest.mark.parametrize("brackets", ["[]", '{"x":}'], ids=["lists", "objects"])
def test_documents_of_any_depth_are_dealt_with(parser: str, brackets: str) -> None:
    def document(key: str, depth: int) -> str:
        begin, end = brackets[:-1], brackets[-1]
        return f'{{"{key}":{begin * depth}{"1" if end == "}" else ""}{end * depth}}}'

    deepest = bisect.bisect_left(range(2000), True, key=lambda depth: _is_too_deep(document("x", depth)))
    for depth in (31, 32, 33, *range(deepest - 30, deepest + 3), 100_000):
        for key in _NESTING_KEYS:
            fed(parser, _framed(parser, document(key, depth).encode()))


LARGE_BYTES = 64 << 10
REPEATED = (
    *(b"[", b'{"a":', b'"', b'\\"', b"\\u0061", b"1", b" ", b",", b", ", b'"a":1,', b"?", b"://?", b"a=b,", b"-", b"/"),
    *(b".", b"1 h ", b"\0", b"x:\n", b"\xe9", b"a/"),
)
AROUND = (
    *(
        (b"", b""),
        (b'"', b""),
        (b'{"data":', b"}"),
        (b'{"message":"', b'"}'),
        (b'{"params":', b""),
        (b'{"id":"', b'"}'),
    ),
    *((b"id|", b"|\ndn&pk\n"), (b"bytes=", b"")),
)


@every_parser
def test_large_inputs_take_no_more_than_their_time(parser: str) -> None:
    for repeated in REPEATED:
        for begin, end in AROUND:
            content = begin + repeated * (LARGE_BYTES // len(repeated)) + end
            fed(parser, _framed(parser, content))


_NESTING_KEYS = ("data", "params", "id", "schema", "known", "state", "method", "parameters", "message", "files")


def _is_too_deep(text: str) -> bool:
    """Whether Python's reader gives up. It does so somewhat earlier within a parser, which is called from here."""
    try:
        json.loads(text)
    except RecursionError:
        return True
    return False


# --------------------------------------------------------------------------------------------- messages

_texts = st.one_of(
    st.text(max_size=40),
    st.text('\ud800\udfff\0\n\u202e\u2028é/\\.%{}"', max_size=12),
    st.sampled_from(("a" * 65, "9" * 5000, "x" * 70_000, SECRET, "../..", "none upgrade operation of the device.")),
)
_numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.sampled_from((0, -1, 10**400, 2**31, 2**63, 2**64)),
    st.floats(),
    st.booleans(),
)
_json = st.recursive(
    st.none() | _numbers | _texts,
    lambda member: st.lists(member, max_size=4) | st.dictionaries(_texts, member, max_size=4),
    max_leaves=8,
)


def _either(*right: Any) -> st.SearchStrategy[Any]:
    """One of the right values, or, less often, a text, or anything."""
    return st.one_of(st.sampled_from(right), st.sampled_from(right), _texts, _json)


def _object(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Most of the fields, and sometimes one that nobody knows."""
    known = st.fixed_dictionaries({}, optional=fields)
    whole = st.fixed_dictionaries(fields)
    return st.one_of(whole, whole, known, st.builds(lambda a, b: {**a, **b}, whole, st.dictionaries(_texts, _json)))


def _dumped(documents: st.SearchStrategy[Any]) -> Bytes:
    """The documents as JSON: compact or not, ASCII or not, sometimes with what should not stand around it."""

    def dump(document: Any, ascii_only: bool, compact: bool, before: bytes, behind: bytes) -> bytes:
        separators = (",", ":") if compact else None
        text = json.dumps(document, ensure_ascii=ascii_only, separators=separators)
        return before + text.encode(errors="surrogatepass") + behind

    ends = st.sampled_from((b"", b"", b"", b"\0", b"\0\0\n", b",", b"}"))
    begins = st.sampled_from((b"", b"", b"", b"\xef\xbb\xbf", b" ", b"\xff"))
    return st.builds(dump, documents, st.booleans(), st.booleans(), begins, ends)


_url = st.one_of(
    st.sampled_from(("https://example.com/ota/x?auth_key=", "http://127.0.0.1:80/x?", "https://[::1]:443/?")).flatmap(
        lambda url: st.sampled_from((url + SECRET, url, url.upper(), url + "\\", url + "é", "x" + url))
    ),
    _json,
)
_md5, _sha256 = "2e78" * 8, "aB" * 32
_names = {"productKey": _either("a1B2c3"), "deviceName": _either("gateway-0001")}
_extra = _either({"_package_udi": "{}", "k": "v"}) | st.dictionaries(_texts, _texts, max_size=3)
_file = _object(
    fileSize=_either(1, 5, "7"),
    fileName=_either("a.bin", "b.bin", "A.BIN", "../a", "."),
    fileUrl=_url,
    fileSign=_either(_md5, _sha256),
    fileMd5=_either(_md5),
    digestsign=_either("QUJD"),
)
_package = st.one_of(
    _object(
        size=_either(1, 4252, "4252", 1 << 50),
        version=_either("1.1", "2-0-0"),
        url=_url,
        sign=_either(_md5, _sha256),
        signMethod=_either("Md5", "MD5", "SHA256", "sha256"),
        module=_either("MCU", "default"),
        extData=_extra,
    ),
    _object(
        size=_either(1, 4252, 1 << 25),
        version=_either("1.1"),
        sign=_either(_md5),
        md5=_either(_md5),
        signMethod=_either("Md5", None),
        dProtocol=_either("mqtt", "https", "MQTT"),
        streamId=_either(1, "2", 2**63),
        streamFileId=_either(1),
        url=_url,
        digestsign=_either("QUJD", None),
        isDiff=_either(0, 1, False),
    ),
    _object(
        version=_either("1.1"),
        signMethod=_either("Md5", "SHA256"),
        files=st.lists(_file, max_size=4),
        size=_either(6, None),
    ),
)
_envelope = _object(
    code=_either("1000", 200, 500), id=_either(1695281536874, "3"), data=_package, message=_either("success")
)
_header = _object(
    id=_either("1"),
    code=_either(200, "200", 400),
    msg=_either("success"),
    data=_object(fileToken=_either("x"), fileLength=_either(4096, "9"), bSize=_either(1, 16), bOffset=_either(0, 4)),
)
_device = {
    "inform": _object(version=_either("1.0.0"), module=_either("MCU", None)),
    "progress": _object(step=_either("42", 42, "-1", -4, 100), desc=_either("", "x"), module=_either("MCU")),
    "block": _object(
        fileToken=_either("default"),
        fileInfo=_object(streamId=_either(7, "7"), fileId=_either(1)),
        fileBlock=_object(size=_either(5120), offset=_either(0)),
    ),
}
_identity = _object(
    module=_either("default"),
    version=_either("2-0-0"),
    size=_either(1),
    digest=_either(None, {"method": "md5", "hex": _md5}),
)
_report = _object(
    kind=_either("step", "inform"),
    serial=_either(1),
    module=_either("default"),
    step=_either(-1, 100),
    desc=_either(""),
    identity=_identity,
)
_state = _object(
    known=_either(True),
    serial=_either(1),
    boot_id=_either("x", None),
    outbox=st.lists(_report, max_size=3),
    tainted=st.lists(_either("a"), max_size=2),
    honoured=_either([], ["push:1"]),
    last=_either(None),
    deployment=_either(None),
)
_call = _object(
    method=_either(
        *(f"io.otad.Update.{name}" for name in ("GetStatus", "Install", "Cancel")),
        *(f"org.varlink.service.{name}" for name in ("GetInfo", "GetInterfaceDescription")),
    ),
    parameters=_object(
        url=_url,
        version=_either("1"),
        sha256=_either("ab" * 32),
        module=_either("x"),
        size=_either(5),
        interface=_either("io.otad.Update"),
    )
    | _either({}, None, {"interface": "io.otad.Update"}),
    oneway=_either(False, True),
    more=_either(False, True),
)
_header_lines = st.sampled_from(
    (
        *("Content-Range: bytes 10-999/1000", "Content-Range: bytes 10-999/*", "Content-Range: bytes */1000"),
        *("Content-Range: BYTES  10 - 9/9", "Content-Length: 1000", "Content-Length: -1", "Content-Length: ٣"),
        *("Content-Encoding: gzip", "Content-Encoding: identity ", 'ETag: W/"x"', "ETag: " + "e" * 300, "ETag: é"),
        *(
            "Retry-After: 120",
            "Retry-After: " + "9" * 400,
            "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT",
            "Retry-After: -1",
        ),
        *("Retry-After: Wed, 99 Oct 99999 07:28:00 -0000", "Retry-After: 0 0 0", "Retry-After: ²"),
    )
)
_toml_values = st.sampled_from(
    (
        '""',
        '"x"',
        '"8 MiB"',
        '"5 min"',
        "0",
        "-1",
        "1.5",
        "inf",
        "nan",
        "true",
        "[]",
        '["a"]',
        "{}",
        "1979-05-27",
        '"é\\u0000"',
        "9" * 30,
        '"/dev/null"',
        '"."',
    )
)


def _toml() -> Bytes:
    """Configuration with the keys there are, and values of which few are right."""
    from otad.config import SECTIONS

    keys = [
        (f"{section.name}.x" if section.names else section.name, key.name)
        for section in SECTIONS
        for key in section.keys
    ]
    lines = st.builds(lambda key, value: f"{key[0]}.{key[1]} = {value}", st.sampled_from(keys), _toml_values)
    return st.lists(lines, max_size=6, unique_by=lambda line: line.partition(" ")[0]).map(
        lambda found: "\n".join(found).encode()
    )


def _mqtt_text(text: bytes) -> bytes:
    return struct.pack("!H", len(text) & 0xFFFF) + text


def _connect() -> Bytes:
    field = st.sampled_from((b"id|securemode=3|", b"dn&pk", b"", b"\xff", b"x" * 70)).map(_mqtt_text)
    head = st.sampled_from((b"\0\4MQTT\4", b"\0\4MQTT\5", b"\0\6MQIsdp\3", b"\0\4MQTT\6"))
    flags = st.sampled_from((b"\xc2\0\x3c", b"\x02\0\x3c", b"\xc6\0\x3c", b"\xff\xff\xff"))
    return st.builds(lambda h, f, rest: b"\x10" + h + f + b"".join(rest), head, flags, st.lists(field, max_size=5))


_good_names = st.sampled_from(("a", "b", "d", "d/a", "d/b", "e/f/c"))
_bad_names = st.one_of(
    st.sampled_from(("d/", "./d", "D", "../a", "/a", "a/../b", "manifest.json", "é" * 60, "a\\b", "a/b")),
    st.lists(st.sampled_from(("a", "b", "..", ".", "", "d" * 150)), min_size=1, max_size=5).map("/".join),
)
_names_of_entries = st.sampled_from((_good_names,) * 5 + (_bad_names,)).flatmap(lambda names: names)
_targets = st.one_of(
    st.lists(st.sampled_from(("..", "a", "d")), min_size=1, max_size=4).map("/".join), _good_names, st.just("/a")
)
_contents = st.sampled_from(
    (b"", b"x", b"#!/bin/sh\n", b'{"version":"1","files":{"a":"' + b"ab" * 32 + b'"}}', b"\0" * 600)
)
_kinds = st.sampled_from(
    (*(b"0", b"2") * 6, b"1", b"1", b"5", b"3", b"7")
)  # typeflag: files, symbolic and hard links, others


def _tars() -> Bytes:
    def make(entries: list[tuple[str, bytes, str, bytes]], kind: int, packed: bool) -> bytes:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w:gz" if packed else "w", format=kind) as archive:
            for name, content, target, type_ in entries:
                member = tarfile.TarInfo(name)
                member.type, member.linkname = type_, target
                member.size = len(content) if type_ == tarfile.REGTYPE else 0
                archive.addfile(member, io.BytesIO(content))
        return made.getvalue()

    entry = st.tuples(_names_of_entries, _contents, _targets, _kinds)
    formats = st.sampled_from((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
    entries = st.lists(entry, min_size=1, max_size=6, unique_by=lambda entry: entry[0]) | st.lists(entry, max_size=3)
    return st.builds(make, entries, formats, st.booleans())


def _zips() -> Bytes:
    def make(entries: list[tuple[str, bytes, int]], method: int) -> bytes:
        made = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(made, "w", method) as archive:
            warnings.simplefilter("ignore")  # two of one name
            for name, content, mode in entries:
                member = zipfile.ZipInfo(name or "x")
                member.create_system, member.external_attr = 3, mode << 16
                archive.writestr(member, content)
        return made.getvalue()

    modes = st.sampled_from((0o100644, 0o100755, 0o120777, 0o120777, 0o120777, 0o040755, 0o020644, 0))
    entry = st.tuples(_names_of_entries, _contents | _targets.map(str.encode), modes)
    entries = st.lists(entry, min_size=1, max_size=5, unique_by=lambda entry: entry[0]) | st.lists(entry, max_size=3)
    return st.builds(make, entries, st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def _changed(parser: str) -> Bytes:
    """An input of the corpus with a few bytes changed, cut or put in."""

    def change(content: bytes, at: int, gone: int, put_in: bytes) -> bytes:
        at %= len(content) + 1
        return content[:at] + put_in + content[at + gone :]

    kept = [path.read_bytes() for path in sorted((CORPUS / parser).iterdir())]
    small = st.integers(0, 6)
    return st.builds(change, st.sampled_from(kept), st.integers(0, 1 << 12), small, st.binary(max_size=6))


@cache
def _inputs(parser: str) -> Bytes:
    return st.one_of(_SHAPED[parser](), _changed(parser)) if parser in _SHAPED else _changed(parser)


def _framed(parser: str, document: bytes) -> bytes:
    """The document where this parser looks for one."""
    match parser:
        case "block":
            return struct.pack("!H", len(document) & 0xFFFF) + document
        case "framed_block":
            return document + b"\nx"
        case "device_message":
            return b"5" + document if b"deviceSendTime" in document else b"0" + document
        case "registration_http":
            return b"HTTP/1.1 200 OK\r\n\r\n" + document
        case _:
            return document


def _registration(*, answer: bool) -> st.SearchStrategy[Any]:
    given = _object(**_names, deviceSecret=_either(SECRET))
    return _object(code=_either(200, 6289), data=given, message=_either("success", "x")) if answer else given


def _messages_of_devices() -> Bytes:
    kinds = {0: "inform", 1: "progress", 2: "inform", 3: "inform", 4: "block"}

    def of(topic: int) -> Bytes:
        if topic == 5:
            body = _object(deviceSendTime=_either("1571724098000", 1))
        else:
            body = _object(id=_either(1, "2"), params=_device[kinds[topic]], method=_either("x"))
        return _dumped(body).map(lambda payload: b"%d" % topic + payload)

    return st.sampled_from(range(len(DEVICE_TOPICS))).flatmap(of)


def _http_answers() -> Bytes:
    first = st.sampled_from(
        ("206 10 1000 Partial", "200 0 1000 OK", "416 10 1000 x", "503 1 10 \x7f", "403 9 10 é", "301 0 1 x")
    )
    lines = st.builds(lambda line, headers: "\n".join([line, *headers]), first, st.lists(_header_lines, max_size=4))
    return lines.map(str.encode)


_SHAPED: dict[str, Callable[[], Bytes]] = {
    "upgrade": lambda: _dumped(_envelope),
    "get_reply": lambda: _dumped(_envelope),
    "framed_block": lambda: st.builds(lambda head, file: head + b"\n" + file, _dumped(_header), st.binary(max_size=20)),
    "platform_error": lambda: _dumped(_object(code=_either(427, "520"), message=_either("kicked"), id=_json)),
    "ntp": lambda: _dumped(
        _object(
            **{name: _either("1571724098000", 1) for name in ("deviceSendTime", "serverRecvTime", "serverSendTime")}
        )
    ),
    "registered": lambda: _dumped(_registration(answer=False)),
    "registration_answer": lambda: _dumped(_registration(answer=True)),
    "token": lambda: _dumped(_object(**_names, clientId=_either("abc"), deviceToken=_either(SECRET))),
    "identity": lambda: _dumped(_object(**_names)),
    "http_answer": _http_answers,
    "checked_state": lambda: _dumped(_state),
    "floor": lambda: _dumped(
        _object(schema=_either(1), floor=_either(1700000000), utc=_either("2023-11-14T22:13:20Z"))
    ),
    "stored_identity": lambda: _dumped(
        _object(
            schema=_either(1),
            obtained_for=_either("secret of a/b", "token of a/b"),
            product_key=_either("a1"),
            device_name=_either("gw-0001"),
            device_secret=_either(SECRET),
            client_id=_either(""),
            device_token=_either(""),
        )
    ),
    "config": _toml,
    "control_calls": lambda: st.lists(_dumped(_call), max_size=3).map(b"\0".join),
    "package": lambda: _tars() | _zips(),
    "archive": lambda: _tars() | _tars() | _zips(),
    "manifest": lambda: _dumped(
        _object(
            version=_either("1"),
            module=_either("app", None),
            files=_either({}, {"a": "ab" * 32, "./a": "AB" * 32}) | st.dictionaries(_texts, _either("ab" * 32)),
        )
    ),
    "mqtt_packet": _connect,
    "device_message": _messages_of_devices,
    "range_header": lambda: st.builds(
        lambda unit, first, last: f"{unit}={first}-{last}".encode(),
        st.sampled_from(("bytes", "bytes", "byte", "Bytes", "bytes=bytes")),
        st.sampled_from(("", "0", "10", "999", "1000", "9" * 30, "9" * 5000, "٣", "-1")),
        st.sampled_from(("", "0", "499", "999", "1000", "9" * 5000, "²", "5,7-9")),
    ),
}
