# SPDX-License-Identifier: Apache-2.0
"""The platform's messages: topics, what we send as bytes, what we hear as values. Pure, and the only place that knows
the platform's spelling.

What we send is compact JSON; `module` is left out for the default module, and `id` and `step` are strings:

    /ota/device/inform/{pk}/{dn}               {"id":"1","params":{"version":"1.0.1","module":"MCU"}}
    /ota/device/progress/{pk}/{dn}             {"id":"2","params":{"step":"42","desc":"...","module":"MCU"}}
    /sys/{pk}/{dn}/thing/ota/firmware/get      {"id":"3","version":"1.0","params":{"module":"MCU"},
                                                "method":"thing.ota.firmware.get"}
    /sys/{pk}/{dn}/thing/file/download         {"id":"4","version":"1.0","params":{"fileToken":"default",
                                                "fileInfo":{"streamId":12332,"fileId":1},
                                                "fileBlock":{"size":131072,"offset":0}}}
    /ext/ntp/{pk}/{dn}/request                 {"deviceSendTime":"1695281536874"}

A package
---------
It is pushed on `/ota/device/upgrade/{pk}/{dn}` or given as the answer on `/sys/{pk}/{dn}/thing/ota/firmware/get_reply`.
There, `"data":{}` or none means that nothing is offered:

    {"code":"1000","data":{"size":4252,"version":"1.1","url":"https://ota-cn-shanghai.iot-thing.aliyuncs.com/ota/...",
     "sign":"2e78...3865","signMethod":"Md5","md5":"2e78...3865"},"id":1695281536874,"message":"success"}

    code        1000 or 200, number or string; another one says why there is no answer
    id          number or string; a push has the platform's own, an answer has ours
    data        the package:
      module      1 to 64 of A-Z a-z 0-9 . _ -; absent for the default module
      version     1 to 64 of A-Z a-z 0-9 . _ -
      size        bytes, 1 to 2^50; number or decimal string
      url         http or https, at most 8 KiB of printable ASCII, without user name
      signMethod  MD5 or SHA256, in any case; may be absent where `md5` is there
      sign        the digest of the whole package, hex in any case
      md5         the same again with MD5; may stand alone; beside SHA256 it is not looked at
      digestsign  a signature over the digest (`trust`), in any case of letters; not looked at without a key
      isDiff      true or 1: a differential package. There is no patcher: unsupported
      dProtocol   "mqtt": in blocks over MQTT, `url` may be absent; else absent, "http" or "https"
      streamId, streamFileId
                  0 to 2^63-1, number or decimal string, both or none: what to ask blocks of. The platform gives none
                  beyond 16 MiB: of a larger package these are passed over, and without `url` it is unsupported
      extData     the operator's words about the package, an object. Kept are values that are strings of at most 4096
                  characters under keys of 1 to 64 of printable ASCII, in the order of the keys, at most 8 KiB in all
      files       instead of size, url, sign and md5, and never over MQTT: 2 to 20 files, of which each has
        fileName    what a file may be called in any directory: printable, 1 to 255 bytes, no slash of either kind,
                    no dot in front, and no two that differ only in case
        fileSize, fileUrl, fileSign, fileMd5, digestsign
                    as size, url, sign, md5 and digestsign, with the `signMethod` of the package

A package of several files is one row of bytes, the files in the order of their names (by code points), whatever their
order in the message: listed otherwise it is the same package. Its size is the sum of theirs, and a `size` beside
`files` must say the same. Its digest, by which it is known again, is that of the UTF-8 text which has for each file, in
that order, the line

    NAME NUL SIZE NUL DIGEST LF         SIZE in decimal, DIGEST in small hexadecimal, both methods as `signMethod`

Other keys are passed over: how a package is treated is the configuration's to say, never a message's. NUL bytes behind
the document and a byte order mark before it are tolerated; what JSON does not allow (duplicate keys, NaN) is not, nor
what only an attacker sends (depth).

Nothing but `Unattributable` is ever raised for what a payload contains: a package with a wrong field, or one that otad
cannot carry out, is an answer too, `Unusable`, so that the platform can be told.

A block
-------
What is asked for with `thing/file/download` is answered on `.../download_reply`, half in text and half in bytes. The
two numbers are of different byte order:

    2 bytes       J, big endian
    J bytes       {"id":"4","code":200,"msg":"...",
                   "data":{"fileToken":"...","fileLength":1238848,"bSize":1491,"bOffset":2}}
    bSize bytes   of the file, from bOffset on
    2 bytes       little endian: CRC-16/ARC of the file's bytes (x^16 + x^15 + x^2 + 1 reflected, from 0)

With another `code` than 200 nothing need follow the text. `fileLength` may be absent.

The rest
--------
    /ext/ntp/{pk}/{dn}/response    {"deviceSendTime":"...","serverRecvTime":"...","serverSendTime":"..."}
    /ext/error/{pk}/{dn}           {"id":...,"code":520,"message":"...","data":{...}}
    /ext/register                  {"productKey":"...","deviceName":"...","deviceSecret":"..."}
    /ext/regnwl                    {"productKey":"...","deviceName":"...","clientId":"...","deviceToken":"..."}
    /ext/auth/identity/response    {"productKey":"...","deviceName":"..."}
    over HTTPS, for a registration {"code":200,"data":{"productKey":"...","deviceName":"...","deviceSecret":"..."},
                                    "message":"success"}

Times are in ms since 1970, and numbers may be decimal strings. The two names may be absent from what a registration
gives. Of the values of the last four no message repeats anything, whatever is wrong with them.
"""

import hashlib
import json
import math
import re
import sys
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NoReturn, TypeAlias, TypeGuard
from urllib.parse import urlsplit

from otad.cloud.cloud import BLOCK_BYTES_MAX, BLOCKS_BYTES_MAX, Answer, Nothing, Offered, Unusable
from otad.core.model import (
    DEFAULT_MODULE,
    DESC_CHARACTERS,
    Artifact,
    Digest,
    DigestMethod,
    Identity,
    ModuleName,
    Notice,
    Stream,
    Tag,
)
from otad.errors import Code, Failure, UpdateError

PAYLOAD_MAX = 256 << 10
URL_MAX = 8 << 10
SIZE_MAX = 1 << 50
DEPTH_MAX = 32
FILES_MIN, FILES_MAX = 2, 20
FILE_NAME_BYTES_MAX = 255
TAG_CHARACTERS_MAX = 4096
TAGS_BYTES_MAX = 8 << 10
BLOCK_MIN, BLOCK_MAX = 256, BLOCK_BYTES_MAX  # bytes that may be asked for at once; the last block may be shorter
STREAM_MAX = (1 << 63) - 1
TIME_MAX = 253_402_300_799_999  # ms since 1970: the last one of the year 9999
SECRET_MAX = 2048

# What the platform says without being asked, to a connection that is made for it.
REGISTER_TOPIC = "/ext/register"
REGISTER_UNKNOWN_TOPIC = "/ext/regnwl"
IDENTITY_TOPIC = "/ext/auth/identity/response"

Verify: TypeAlias = Callable[[Digest, str | None], None]
"""Returns where the signature (None: there is none) is good for the digest; else raises UpdateError, SIGNATURE."""


class Unattributable(Exception):  # noqa: N818  # not an error of ours, and of nobody's update
    """A message that cannot be answered: it does not even say which module it is about."""


@dataclass(frozen=True, slots=True)
class Topics:
    """Where one device speaks and listens."""

    inform: str
    progress: str
    get: str
    get_reply: str
    upgrade: str
    download: str
    download_reply: str
    error: str
    ntp_request: str
    ntp_response: str

    @classmethod
    def of(cls, product_key: str, device_name: str) -> "Topics":
        device = f"{product_key}/{device_name}"
        get = f"/sys/{device}/thing/ota/firmware/get"
        download = f"/sys/{device}/thing/file/download"
        return cls(
            inform=f"/ota/device/inform/{device}",
            progress=f"/ota/device/progress/{device}",
            get=get,
            get_reply=f"{get}_reply",
            upgrade=f"/ota/device/upgrade/{device}",
            download=download,
            download_reply=f"{download}_reply",
            error=f"/ext/error/{device}",
            ntp_request=f"/ext/ntp/{device}/request",
            ntp_response=f"/ext/ntp/{device}/response",
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to `firmware/get`. `answer` is None where the platform did not give one, and `problem` says why."""

    id: str
    answer: Answer | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class BlockReply:
    """A block of a file, undamaged; or why there is none: `code` is not 200 then, and `content` empty."""

    id: str
    code: int | None
    message: str
    offset: int
    total: int | None  # bytes of the whole file, where it is said
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Registered:
    """What a registration gives. The names are "" where the platform does not repeat them."""

    product_key: str
    device_name: str
    device_secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Token:
    """What a registration without one beforehand gives: `device_token` is the password of client `client_id`."""

    product_key: str
    device_name: str
    client_id: str
    device_token: str = field(repr=False)


class RegistrationRefused(Exception):  # noqa: N818  # an answer
    """The platform answered a registration, and says no."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"code {code}: {message}")
        self.code = code
        self.message = message


def inform(request_id: int, module: ModuleName, version: str) -> bytes:
    """The payload that tells a module's version."""
    return _compact({"id": str(request_id), "params": {"version": version, **_named(module)}})


def progress(request_id: int, module: ModuleName, step: int, desc: str) -> bytes:
    """The payload that tells a step: 0 to 100, or -1 to -4. A longer `desc` than the platform takes is cut."""
    if len(desc) > DESC_CHARACTERS:
        desc = f"{desc[: DESC_CHARACTERS - 1]}…"
    return _compact({"id": str(request_id), "params": {"step": str(step), "desc": desc, **_named(module)}})


def get(request_id: int, module: ModuleName) -> bytes:
    """The payload that asks what is offered for a module."""
    method = "thing.ota.firmware.get"
    return _compact({"id": str(request_id), "version": "1.0", "params": _named(module), "method": method})


def file_request(request_id: int, stream: Stream, offset: int, size: int) -> bytes:
    """The payload that asks for `size` bytes of a package, BLOCK_MIN to BLOCK_MAX, from `offset` on."""
    params = {
        "fileToken": "default",  # the platform only gives it back; SDKs say this
        "fileInfo": {"streamId": stream.stream_id, "fileId": stream.file_id},
        "fileBlock": {"size": size, "offset": offset},
    }
    return _compact({"id": str(request_id), "version": "1.0", "params": params})


def ntp_request(sent_ms: int) -> bytes:
    """The payload that asks for the time; `sent_ms` is ours, in ms since 1970."""
    return _compact({"deviceSendTime": str(sent_ms)})


def parse_upgrade(payload: bytes, *, allow_md5: bool = True, verify: Verify | None = None) -> Offered | Unusable:
    """The package that is pushed. Raises Unattributable."""
    message = _message(payload)
    if message.problem:
        raise Unattributable(message.problem)
    if not message.content:
        raise Unattributable("data: missing")
    # A message without id is itself, byte for byte.
    offer = f"push:{message.id or hashlib.sha256(payload).hexdigest()}"
    return _package(message.content, offer, allow_md5=allow_md5, verify=verify)


def parse_get_reply(
    payload: bytes,
    connection: str,
    module_asked: Callable[[str], ModuleName],
    *,
    allow_md5: bool = True,
    verify: Verify | None = None,
) -> Reply:
    """The answer to a `firmware/get`; `module_asked` says what the request with this id was about.

    Raises Unattributable. All answers within one `connection` are one offer: asking again does not make it another.
    """
    message = _message(payload)
    if message.problem:
        return Reply(message.id, None, message.problem)
    if not message.content:
        return Reply(message.id, Nothing(module_asked(message.id)))
    answer = _package(message.content, f"get:{connection}", allow_md5=allow_md5, verify=verify)
    return Reply(message.id, answer)


def parse_block(payload: bytes) -> BlockReply:
    """The answer to a `file_request`. Raises Unattributable, also for what was damaged on the way."""
    if len(payload) > PAYLOAD_MAX:
        raise Unattributable(f"{len(payload)} bytes: more than {PAYLOAD_MAX}")
    begins = 2 + int.from_bytes(payload[:2], "big")
    if len(payload) < begins:
        raise Unattributable(f"{len(payload)} bytes: must be {begins} at least")
    header = _document(payload[2:begins])
    code, message = _whole(header.get("code"), SIZE_MAX), _text(header.get("msg"))
    if code != 200:
        return BlockReply(_word(header.get("id")), code, message, 0, None, b"")
    block = header.get("data")
    if not isinstance(block, dict):
        raise Unattributable(f"data: {_shown(block)}: must be an object")
    size, offset, total = (_whole(block.get(name), SIZE_MAX) for name in ("bSize", "bOffset", "fileLength"))
    if size is None or not 1 <= size <= BLOCK_MAX:
        raise Unattributable(f"bSize: {_shown(block.get('bSize'))}: must be 1 to {BLOCK_MAX}")
    if offset is None:
        raise Unattributable(f"bOffset: {_shown(block.get('bOffset'))}: must be 0 to {SIZE_MAX}")
    if block.get("fileLength") is not None and (total is None or total < offset + size):
        raise Unattributable(f"fileLength: {_shown(block['fileLength'])}: must be {offset + size} at least")
    if len(payload) != begins + size + 2:
        raise Unattributable(f"{len(payload)} bytes: must be {begins + size + 2}")
    content, theirs = payload[begins:-2], int.from_bytes(payload[-2:], "little")
    if (ours := crc16(content)) != theirs:
        raise Unattributable(f"CRC: {theirs:04x}: that of the bytes is {ours:04x}")
    return BlockReply(_word(header.get("id")), code, message, offset, total, content)


def crc16(content: bytes) -> int:
    """CRC-16/ARC. Two bytes at a time: a block of 128 KiB must not keep everything else waiting."""
    # From 0, a zero byte in front changes nothing.
    pairs = array("H", content if len(content) % 2 == 0 else b"\0" + content)
    if sys.byteorder == "big":
        pairs.byteswap()
    table, crc = _crc16_table(), 0
    for pair in pairs:
        crc = table[crc ^ pair]
    return crc


@cache
def _crc16_table() -> "array[int]":
    """The CRC of each pair of bytes: 128 KiB, made when the first block comes."""
    table = array("H", [0])
    for bit in range(16):
        crc = 1 << bit
        for _ in range(16):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
        table += array("H", [crc ^ lower for lower in table])  # the CRC of a sum is the sum of the CRCs
    return table


def parse_ntp(payload: bytes) -> tuple[int, int, int]:
    """deviceSendTime, serverRecvTime and serverSendTime, each 0 to TIME_MAX. Raises Unattributable."""
    document = _document(payload)
    sent, received, answered = (
        _time(document, name) for name in ("deviceSendTime", "serverRecvTime", "serverSendTime")
    )
    return sent, received, answered


def _time(document: dict[str, Any], name: str) -> int:
    value = _whole(document.get(name), TIME_MAX)
    if value is None:
        raise Unattributable(f"{name}: {_shown(document.get(name))}: must be ms since 1970")
    return value


def parse_error(payload: bytes) -> tuple[int | None, str]:
    """Code (None: there is none) and text, in one line, of what is said on `Topics.error`. Raises Unattributable."""
    document = _document(payload)
    return _whole(document.get("code"), SIZE_MAX), _text(document.get("message"))


def parse_registered(payload: bytes) -> Registered:
    """What is pushed on REGISTER_TOPIC. Raises Unattributable."""
    return _registered(_document(payload))


def parse_registration_answer(content: bytes) -> Registered:
    """What the platform answers to a registration over HTTPS. Raises RegistrationRefused, Unattributable."""
    document = _document(content)
    code = _whole(document.get("code"), SIZE_MAX)
    if code is None:
        raise Unattributable("code: must be a number")
    if code != 200:
        raise RegistrationRefused(code, _text(document.get("message")))
    registered = document.get("data")
    if not isinstance(registered, dict):
        raise Unattributable("data: must be an object")
    return _registered(registered)


def parse_token(payload: bytes) -> Token:
    """What is pushed on REGISTER_UNKNOWN_TOPIC. Raises Unattributable."""
    document = _document(payload)
    return Token(
        *_names(document),
        client_id=_credential(document, "clientId", _CLIENT_ID),
        device_token=_credential(document, "deviceToken", _SECRET),
    )


def parse_identity(payload: bytes) -> tuple[str, str]:
    """Product key and device name, as pushed on IDENTITY_TOPIC. Raises Unattributable."""
    product_key, device_name = _names(_document(payload))
    for name, value in (("productKey", product_key), ("deviceName", device_name)):
        if not value:
            raise Unattributable(f"{name}: missing")
    return product_key, device_name


def _registered(document: dict[str, Any]) -> Registered:
    return Registered(*_names(document), device_secret=_credential(document, "deviceSecret", _SECRET))


def _names(document: dict[str, Any]) -> tuple[str, str]:
    """Product key and device name; "" where there is none."""
    product_key, device_name = (
        "" if document.get(name) is None else _credential(document, name, form)
        for name, form in (("productKey", _PRODUCT_KEY), ("deviceName", _DEVICE_NAME))
    )
    return product_key, device_name


def _credential(document: dict[str, Any], name: str, form: tuple[str, str]) -> str:
    """A value that no message repeats."""
    value, (pattern, says) = document.get(name), form
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise Unattributable(f"{name}: {'missing' if value is None else 'wrong'}: must be {says}")
    return value


@dataclass(frozen=True, slots=True)
class _Message:
    """An envelope. `id` is "" where there is none; `problem` is what a code other than success says."""

    id: str
    content: dict[str, Any]
    problem: str


def _message(payload: bytes) -> _Message:
    document = _document(payload)
    content = document.get("data")
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise Unattributable(f"data: {_shown(content)}: must be an object")
    code, message = document.get("code"), document.get("message")
    problem = "" if code is None or _word(code) in ("200", "1000") else f"code {_shown(code)}: {_shown(message)}"
    if _word(code) == "500" and not content and isinstance(message, str) and message.startswith("none upgrade"):
        problem = ""  # the legacy way to say that nothing is offered
    return _Message(_word(document.get("id")), content, problem)


def _document(payload: bytes) -> dict[str, Any]:
    """The JSON object in `payload`, of bounded depth."""
    if len(payload) > PAYLOAD_MAX:
        raise Unattributable(f"{len(payload)} bytes: more than {PAYLOAD_MAX}")
    try:
        document = json.loads(
            payload.rstrip(b"\0").decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_fraction,
            parse_constant=_constant,
        )
    except RecursionError:  # no ValueError, and the decoder's own limit is where the stack ends
        raise Unattributable("not JSON: nested too deeply") from None
    except ValueError as error:
        raise Unattributable(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Unattributable("not a JSON object")
    level: list[Any] = [document]
    for _ in range(DEPTH_MAX):
        level = [member for value in level for member in _members(value)]
        if not level:
            return document
    raise Unattributable(f"not JSON: nested more than {DEPTH_MAX} deep")


def _members(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):  # the last one would win, and two readers could see two packages
        raise ValueError("a key stands twice in one object")
    return members


def _integer(digits: str) -> int:
    """The number; one of very many digits (int() is quadratic in them) is out of every range, and stays so."""
    return int(digits[:21])


def _fraction(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number that is too large")
    return number


def _constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a JSON value")


def _package(content: dict[str, Any], offer: str, *, allow_md5: bool, verify: Verify | None) -> Offered | Unusable:
    module = content.get("module")
    if module is None:
        module = DEFAULT_MODULE
    if not _is_name(module):
        raise Unattributable(f"module: {_shown(module)}: must be {_NAME_SAYS}")
    try:
        return Offered(_notice(ModuleName(module), content, allow_md5=allow_md5, verify=verify), offer)
    except UpdateError as error:
        version = content.get("version")
        shown = version if _is_name(version) else ""
        return Unusable(_key(content, error.failure), ModuleName(module), shown, error.failure, offer)


def _key(content: dict[str, Any], failure: Failure) -> str:
    """The same for the same package, however often its download is signed anew."""
    text = json.dumps(_lasting(content), sort_keys=True, separators=(",", ":"))
    if failure.code is Code.SIGNATURE:
        text += failure.detail  # what is wrong with a signature may as well be wrong with our key
    return f"malformed:{hashlib.sha256(text.encode()).hexdigest()}"


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(member) for key, member in value.items() if key not in _PASSING}
    return [_lasting(member) for member in value] if isinstance(value, list) else value


def _notice(module: ModuleName, content: dict[str, Any], *, allow_md5: bool, verify: Verify | None) -> Notice:
    """The package as an order. Raises UpdateError: UNSUPPORTED, MALFORMED or SIGNATURE."""
    version = content.get("version")
    if not _is_name(version):
        _refuse("version", version, _NAME_SAYS)
    if content.get("isDiff") not in (None, 0, "", "0", "false"):  # False is 0
        detail = "isDiff: a differential package: otad has no patcher, push the full package"
        raise UpdateError(Code.UNSUPPORTED, detail)
    protocol = content.get("dProtocol")
    word = "https" if protocol in (None, "") else _word(protocol).lower()
    if word not in ("http", "https", "mqtt"):
        raise UpdateError(Code.UNSUPPORTED, f"dProtocol: {_shown(protocol)}: must be https or mqtt")
    tags = _tags(content.get("extData"))
    # From here on whatever has a digest has passed `verify`: nothing else makes an Artifact.
    if content.get("files") not in (None, []):
        if word == "mqtt":
            raise UpdateError(Code.UNSUPPORTED, "files: over MQTT comes one file only: use HTTPS")
        files = _files(content, allow_md5=allow_md5, verify=verify)
        return Notice(_identity_of_all(module, version, files), url="", files=files, tags=tags)
    only = _artifact(content, _ONLY, _method(content, allow_md5=allow_md5), verify, may_lack_url=word == "mqtt")
    stream = _stream(content, is_needed=word == "mqtt")
    if only.size > BLOCKS_BYTES_MAX:
        stream = None
    if not only.url and stream is None:
        detail = f"size: {only.size}: over MQTT at most {BLOCKS_BYTES_MAX} bytes: use HTTPS"
        raise UpdateError(Code.UNSUPPORTED, detail)
    return Notice(Identity(module, version, only.size, only.digest), only.url, stream=stream, tags=tags)


def _files(content: dict[str, Any], *, allow_md5: bool, verify: Verify | None) -> tuple[Artifact, ...]:
    """The files in the order of their names."""
    entries = content["files"]
    if not isinstance(entries, list):
        _refuse("files", entries, f"a list of {FILES_MIN} to {FILES_MAX} files")
    if not FILES_MIN <= len(entries) <= FILES_MAX:
        _refuse("files", len(entries), f"{FILES_MIN} to {FILES_MAX} files")
    for name in ("url", "sign", "md5", "streamId", "streamFileId"):
        if content.get(name) not in (None, ""):
            raise UpdateError(Code.MALFORMED, f"{name}: beside files: must be absent")
    method = _method(content, allow_md5=allow_md5)
    files = tuple(_file(number, entry, method, verify) for number, entry in enumerate(entries))
    seen: set[str] = set()
    for file in files:
        if file.name.casefold() in seen:
            raise UpdateError(Code.MALFORMED, f"files: {_shown(file.name)}: stands twice, in whatever case")
        seen.add(file.name.casefold())
    size = sum(file.size for file in files)
    if size > SIZE_MAX:
        _refuse("files", size, f"{SIZE_MAX} bytes in all at most")
    if content.get("size") is not None and _size(content, "size") != size:
        _refuse("size", content["size"], f"{size}, as the files say")
    return tuple(sorted(files, key=lambda file: file.name))


def _file(number: int, entry: Any, method: DigestMethod, verify: Verify | None) -> Artifact:
    if not isinstance(entry, dict):
        _refuse(f"files[{number}]", entry, "an object")
    try:
        return replace(_artifact(entry, _OF_SEVERAL, method, verify), name=_file_name(entry))
    except UpdateError as error:
        raise UpdateError(error.failure.code, f"files[{number}]: {error}") from error


def _file_name(entry: dict[str, Any]) -> str:
    """A name that means the same file wherever the owner puts the directory, and none outside of it."""
    name = entry.get("fileName")
    if (
        not isinstance(name, str)
        or not name.isprintable()  # nor is half a character printable, which could not be encoded
        or not 1 <= len(name.encode()) <= FILE_NAME_BYTES_MAX
        or name.startswith(".")
        or "/" in name
        or "\\" in name
    ):
        says = f"a printable name of 1 to {FILE_NAME_BYTES_MAX} bytes, without slashes and without a dot in front"
        _refuse("fileName", name, says)
    return name


def _identity_of_all(module: ModuleName, version: str, files: tuple[Artifact, ...]) -> Identity:
    lines = "".join(f"{file.name}\0{file.size}\0{file.digest.hex}\n" for file in files)
    method = files[0].digest.method
    digest = hashlib.new(method, lines.encode(), usedforsecurity=False).hexdigest()
    return Identity(module, version, sum(file.size for file in files), Digest(method, digest))


@dataclass(frozen=True, slots=True)
class _Spelling:
    """How the fields of a file are called."""

    size: str
    url: str
    sign: str
    md5: str


_ONLY = _Spelling("size", "url", "sign", "md5")
_OF_SEVERAL = _Spelling("fileSize", "fileUrl", "fileSign", "fileMd5")


def _artifact(
    content: dict[str, Any],
    spelling: _Spelling,
    method: DigestMethod,
    verify: Verify | None,
    *,
    may_lack_url: bool = False,
) -> Artifact:
    size = _size(content, spelling.size)
    digest = _digest(content, spelling, method)
    if verify is not None:
        verify(digest, _signature(content))
    has_url = not may_lack_url or content.get(spelling.url) not in (None, "")
    return Artifact("", size, digest, _url(content, spelling.url) if has_url else "")


def _size(content: dict[str, Any], name: str) -> int:
    size = _whole(content.get(name), SIZE_MAX)
    if not size:
        _refuse(name, content.get(name), f"a whole number of bytes, 1 to {SIZE_MAX}")
    return size


def _method(content: dict[str, Any], *, allow_md5: bool) -> DigestMethod:
    named = content.get("signMethod")
    word = "md5" if named in (None, "") and content.get("md5") is not None else _word(named).lower()
    if word not in tuple(DigestMethod):
        _refuse("signMethod", named, "MD5 or SHA256")
    if word == DigestMethod.MD5 and not allow_md5:
        detail = "signMethod: MD5: not accepted here: sign with SHA256, or set trust.allow_md5 = true on the gateway"
        raise UpdateError(Code.UNSUPPORTED, detail)
    return DigestMethod(word)


def _digest(content: dict[str, Any], spelling: _Spelling, method: DigestMethod) -> Digest:
    if method is DigestMethod.SHA256:
        return Digest(method, _hex(content, spelling.sign, 64))
    md5 = content.get(spelling.md5)
    digest = _hex(content, spelling.sign if content.get(spelling.sign) is not None else spelling.md5, 32)
    if md5 is not None and _hex(content, spelling.md5, 32) != digest:
        _refuse(spelling.md5, md5, f"the same as {spelling.sign}")
    return Digest(method, digest)


def _signature(content: dict[str, Any]) -> str | None:
    """`digestsign`, None where there is none. Raises UpdateError, SIGNATURE, for one that cannot be one."""
    values = [value for key, value in content.items() if key.lower() == "digestsign"]
    if len(values) > 1:  # two readers could see two signatures
        raise UpdateError(Code.SIGNATURE, "digestsign: stands twice, in whatever case")
    if not values or values[0] is None:
        return None
    if not isinstance(values[0], str):
        raise UpdateError(Code.SIGNATURE, f"digestsign: {_shown(values[0])}: must be base64")
    return values[0]


def _stream(content: dict[str, Any], *, is_needed: bool) -> Stream | None:
    names = ("streamId", "streamFileId")
    if not is_needed and all(content.get(name) is None for name in names):
        return None
    numbers = [_whole(content.get(name), STREAM_MAX) for name in names]
    for name, number in zip(names, numbers, strict=True):
        if number is None:
            _refuse(name, content.get(name), f"a whole number, 0 to {STREAM_MAX}")
    return Stream(*(number for number in numbers if number is not None))


def _tags(value: Any) -> tuple[Tag, ...]:
    """What is kept of the operator's words. A package is never refused for them."""
    tags: list[Tag] = []
    left = TAGS_BYTES_MAX
    for key, text in sorted(value.items()) if isinstance(value, dict) else ():
        if re.fullmatch("[!-~]{1,64}", key) and _is_tag_text(text):
            size = len(key) + len(text.encode())
            if size <= left:
                tags.append(Tag(key, text))
                left -= size
    return tuple(tags)


def _is_tag_text(value: Any) -> TypeGuard[str]:
    """Not too long, and what any program may be given: without NUL and without half a character."""
    return isinstance(value, str) and len(value) <= TAG_CHARACTERS_MAX and not re.search("[\0\ud800-\udfff]", value)


def _hex(content: dict[str, Any], name: str, length: int) -> str:
    value = content.get(name)
    if not isinstance(value, str) or not re.fullmatch(f"[0-9A-Fa-f]{{{length}}}", value):
        _refuse(name, value, f"{length} hexadecimal digits")
    return value.lower()


def _url(content: dict[str, Any], name: str) -> str:
    """The URL, untouched: its query part is signed. No message shows more of it than its scheme."""
    url = content.get(name)
    if not isinstance(url, str):
        _refuse(name, url, "a string")
    if not re.fullmatch(r"[!-\[\]-~]*", url):  # a backslash is a slash to some readers and a letter to others
        _refuse_url(name, "must be printable ASCII, without spaces and backslashes")
    if not 1 <= len(url) <= URL_MAX:
        _refuse_url(name, f"{len(url)} characters: must be 1 to {URL_MAX}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        _refuse_url(name, "must have a host, and a port up to 65535 if any")
    if parts.scheme not in ("http", "https"):
        _refuse_url(name, f"{_shown(parts.scheme)}: must be https or http")
    if "@" in parts.netloc:
        _refuse_url(name, "must not carry a user name")
    if not re.fullmatch(r"[a-z0-9._-]{1,253}|[0-9a-f:.]{2,45}", host) or port == 0:
        _refuse_url(name, "must have a host, and a port up to 65535 if any")
    return url


def _refuse(name: str, value: Any, says: str) -> NoReturn:
    shown = "missing" if value is None else _shown(value)
    raise UpdateError(Code.MALFORMED, f"{name}: {shown}: must be {says}")


def _refuse_url(name: str, says: str) -> NoReturn:
    raise UpdateError(Code.MALFORMED, f"{name}: {says}")


def _is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and re.fullmatch("[A-Za-z0-9._-]{1,64}", value) is not None


def _word(value: Any) -> str:
    """A number or string as a short text; "" for anything else."""
    if type(value) is int:
        return str(value)
    return value if isinstance(value, str) and len(value) <= 64 and value.isprintable() else ""


def _whole(value: Any, most: int) -> int | None:
    """A whole number, 0 to `most`, or a short string of its digits; None for anything else."""
    if isinstance(value, str) and re.fullmatch("[0-9]{1,19}", value):
        value = int(value)
    return value if type(value) is int and 0 <= value <= most else None  # not isinstance: True is no number


def _text(value: Any) -> str:
    """A text of the platform's for a message: short, in one line, printable; "" for anything else."""
    return _said(value)[:DESC_CHARACTERS] if isinstance(value, str) else ""


def _said(text: str) -> str:
    """The beginning of `text`, printable, and without the query part of any URL: it may be a signature."""
    text = re.sub(r"(:(?:\\?/){2}[^?\s]*\?)\S*", r"\1...", text[:512])
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shown(value: Any) -> str:
    """`value` for a message: short, in one line, printable."""
    match value:
        case str():
            said = _said(value)
            return f'"{said if len(said) <= 40 else f"{said[:37]}..."}"'
        case bool() | None:
            return json.dumps(value)
        case dict():
            return "an object"
        case list():
            return "a list"
        case _:
            return str(value)


def _named(module: ModuleName) -> dict[str, str]:
    return {} if module == DEFAULT_MODULE else {"module": module}


def _compact(document: dict[str, Any]) -> bytes:
    # Compact because a device SDK's reader of this format stumbles over spaces, and a server's may be of its kind.
    # A lone surrogate cannot be encoded; a description may carry one that an installer printed.
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


_NAME_SAYS = "1 to 64 of A-Z a-z 0-9 . _ -"
_PASSING = frozenset({"url", "fileUrl", "extData", "streamId", "streamFileId"})  # what is made anew for each message

# The names as the configuration takes them: they become part of topics and of the user name.
_PRODUCT_KEY = ("[A-Za-z0-9]{1,64}", "1 to 64 letters and digits")
_DEVICE_NAME = ("[A-Za-z0-9_.:@-]{4,32}", "4 to 32 characters of A-Z a-z 0-9 - _ @ . :")
_CLIENT_ID = ("[!-{}~]{1,256}", "1 to 256 printable ASCII characters other than |")
_SECRET = (f"[!-~]{{1,{SECRET_MAX}}}", f"1 to {SECRET_MAX} printable ASCII characters")
