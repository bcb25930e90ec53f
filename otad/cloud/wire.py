# SPDX-License-Identifier: Apache-2.0
"""The platform's OTA messages: topics, what we send as bytes, what we hear as values. Pure, and the only place that
knows the platform's spelling.

What we send is compact JSON; `module` is left out for the default module, and `id` and `step` are strings:

    /ota/device/inform/{pk}/{dn}               {"id":"1","params":{"version":"1.0.1","module":"MCU"}}
    /ota/device/progress/{pk}/{dn}             {"id":"2","params":{"step":"42","desc":"...","module":"MCU"}}
    /sys/{pk}/{dn}/thing/ota/firmware/get      {"id":"3","version":"1.0","params":{"module":"MCU"},
                                                "method":"thing.ota.firmware.get"}

What we hear is a package, pushed on `/ota/device/upgrade/{pk}/{dn}` or given as the answer on
`/sys/{pk}/{dn}/thing/ota/firmware/get_reply`. There, `"data":{}` or none means that nothing is offered:

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
      md5         the same again with MD5; may stand alone
      isDiff      true or 1: a differential package; not available yet
      dProtocol   "mqtt": blocks over MQTT instead of `url`; not available yet
      files       a package of several files; not available yet
      digestsign  a signature over the digest; not looked at yet (the configuration refuses to ask for it)

Other keys are passed over. NUL bytes behind the document and a byte order mark before it are tolerated; what JSON does
not allow (duplicate keys, NaN) is not, nor what only an attacker sends (depth).

Nothing but `Unattributable` is ever raised for what a payload contains: a package with a wrong field, or one that otad
cannot carry out yet, is an answer too, `Unusable`, so that the platform can be told.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeGuard
from urllib.parse import urlsplit

from otad.cloud.cloud import Answer, Nothing, Offered, Unusable
from otad.core.model import DEFAULT_MODULE, DESC_CHARACTERS, Digest, DigestMethod, Identity, ModuleName, Notice
from otad.errors import Code, UpdateError

PAYLOAD_MAX = 256 << 10
URL_MAX = 8 << 10
SIZE_MAX = 1 << 50
DEPTH_MAX = 32


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

    @classmethod
    def of(cls, product_key: str, device_name: str) -> "Topics":
        device = f"{product_key}/{device_name}"
        get = f"/sys/{device}/thing/ota/firmware/get"
        return cls(
            inform=f"/ota/device/inform/{device}",
            progress=f"/ota/device/progress/{device}",
            get=get,
            get_reply=f"{get}_reply",
            upgrade=f"/ota/device/upgrade/{device}",
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to `firmware/get`. `answer` is None where the platform did not give one, and `problem` says why."""

    id: str
    answer: Answer | None
    problem: str = ""


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


def parse_upgrade(payload: bytes, *, allow_md5: bool = True) -> Offered | Unusable:
    """The package that is pushed. Raises Unattributable."""
    message = _message(payload)
    if message.problem:
        raise Unattributable(message.problem)
    if not message.content:
        raise Unattributable("data: missing")
    # A message without id is itself, byte for byte.
    offer = f"push:{message.id or hashlib.sha256(payload).hexdigest()}"
    return _package(message.content, offer, allow_md5=allow_md5)


def parse_get_reply(
    payload: bytes, connection: str, module_asked: Callable[[str], ModuleName], *, allow_md5: bool = True
) -> Reply:
    """The answer to a `firmware/get`; `module_asked` says what the request with this id was about.

    Raises Unattributable. All answers within one `connection` are one offer: asking again does not make it another.
    """
    message = _message(payload)
    if message.problem:
        return Reply(message.id, None, message.problem)
    if not message.content:
        return Reply(message.id, Nothing(module_asked(message.id)))
    return Reply(message.id, _package(message.content, f"get:{connection}", allow_md5=allow_md5))


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


def _package(content: dict[str, Any], offer: str, *, allow_md5: bool) -> Offered | Unusable:
    module = content.get("module")
    if module is None:
        module = DEFAULT_MODULE
    if not _is_name(module):
        raise Unattributable(f"module: {_shown(module)}: must be {_NAME_SAYS}")
    try:
        return Offered(_notice(ModuleName(module), content, allow_md5=allow_md5), offer)
    except UpdateError as error:
        version = content.get("version")
        shown = version if _is_name(version) else ""
        return Unusable(_key(content), ModuleName(module), shown, error.failure, offer)


def _key(content: dict[str, Any]) -> str:
    """The same for the same package, however often its download is signed anew."""
    text = json.dumps(_lasting(content), sort_keys=True, separators=(",", ":"))
    return f"malformed:{hashlib.sha256(text.encode()).hexdigest()}"


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(member) for key, member in value.items() if key not in _PASSING}
    return [_lasting(member) for member in value] if isinstance(value, list) else value


def _notice(module: ModuleName, content: dict[str, Any], *, allow_md5: bool) -> Notice:
    """The package as an order. Raises UpdateError, UNSUPPORTED or MALFORMED."""
    version = content.get("version")
    if not _is_name(version):
        _refuse("version", version, _NAME_SAYS)
    _refuse_unsupported(content)
    size = _size(content)
    digest = _digest(content, allow_md5=allow_md5)
    # `digestsign` belongs here: it signs the digest just read.
    return Notice(Identity(module, version, size, digest), _url(content))


def _refuse_unsupported(content: dict[str, Any]) -> None:
    if content.get("files"):
        raise UpdateError(Code.UNSUPPORTED, "files: a package of several files: not available in this version")
    if content.get("isDiff") not in (None, 0, "", "0", "false"):  # False is 0
        raise UpdateError(Code.UNSUPPORTED, "isDiff: a differential package: not available in this version")
    protocol = content.get("dProtocol")
    if protocol not in (None, "") and _word(protocol).lower() not in ("http", "https"):
        raise UpdateError(Code.UNSUPPORTED, f"dProtocol: {_shown(protocol)}: not available in this version, use HTTPS")


def _size(content: dict[str, Any]) -> int:
    value = content.get("size")
    size = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,16}", value) else value
    if type(size) is not int or not 1 <= size <= SIZE_MAX:  # not isinstance: True is no size
        _refuse("size", value, f"a whole number of bytes, 1 to {SIZE_MAX}")
    return size


def _digest(content: dict[str, Any], *, allow_md5: bool) -> Digest:
    named, md5 = content.get("signMethod"), content.get("md5")
    word = "md5" if named in (None, "") and md5 is not None else _word(named).lower()
    if word not in tuple(DigestMethod):
        _refuse("signMethod", named, "MD5 or SHA256")
    method = DigestMethod(word)
    if method is DigestMethod.SHA256:
        return Digest(method, _hex(content, "sign", 64))
    if not allow_md5:
        detail = "signMethod: MD5: not accepted here: sign with SHA256, or set trust.allow_md5 = true on the gateway"
        raise UpdateError(Code.UNSUPPORTED, detail)
    digest = _hex(content, "sign" if content.get("sign") is not None else "md5", 32)
    if md5 is not None and _hex(content, "md5", 32) != digest:
        _refuse("md5", md5, "the same as sign")
    return Digest(method, digest)


def _hex(content: dict[str, Any], name: str, length: int) -> str:
    value = content.get(name)
    if not isinstance(value, str) or not re.fullmatch(f"[0-9A-Fa-f]{{{length}}}", value):
        _refuse(name, value, f"{length} hexadecimal digits")
    return value.lower()


def _url(content: dict[str, Any]) -> str:
    """The URL, untouched: its query part is signed. No message shows more of it than its scheme."""
    url = content.get("url")
    if not isinstance(url, str):
        _refuse("url", url, "a string")
    if not re.fullmatch(r"[!-\[\]-~]*", url):  # a backslash is a slash to some readers and a letter to others
        _refuse_url("must be printable ASCII, without spaces and backslashes")
    if not 1 <= len(url) <= URL_MAX:
        _refuse_url(f"{len(url)} characters: must be 1 to {URL_MAX}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        _refuse_url("must have a host, and a port up to 65535 if any")
    if parts.scheme not in ("http", "https"):
        _refuse_url(f"{_shown(parts.scheme)}: must be https or http")
    if "@" in parts.netloc:
        _refuse_url("must not carry a user name")
    if not re.fullmatch(r"[a-z0-9._-]{1,253}|[0-9a-f:.]{2,45}", host) or port == 0:
        _refuse_url("must have a host, and a port up to 65535 if any")
    return url


def _refuse(name: str, value: Any, says: str) -> NoReturn:
    shown = "missing" if value is None else _shown(value)
    raise UpdateError(Code.MALFORMED, f"{name}: {shown}: must be {says}")


def _refuse_url(says: str) -> NoReturn:
    raise UpdateError(Code.MALFORMED, f"url: {says}")


def _is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and re.fullmatch("[A-Za-z0-9._-]{1,64}", value) is not None


def _word(value: Any) -> str:
    """A number or string as a short text; "" for anything else."""
    if type(value) is int:
        return str(value)
    return value if isinstance(value, str) and len(value) <= 64 and value.isprintable() else ""


def _shown(value: Any) -> str:
    """`value` for a message: short, in one line, printable."""
    match value:
        case str():
            short = value if len(value) <= 40 else f"{value[:37]}..."
            return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short) + '"'
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
_PASSING = frozenset({"url", "fileUrl", "extData", "streamId"})  # what is made anew for each message
