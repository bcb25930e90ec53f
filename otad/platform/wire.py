# SPDX-License-Identifier: Apache-2.0
"""Topics and JSON as the platform reads and writes them.

Reading is lenient, because the platform has to live with what is in the field: ids and steps as number or text, a
trailing NUL, a trailing comma, `params` as text, keys nobody knows.

    up    /ota/device/inform/{pk}/{dn}              {"id":1,"params":{"version":"1.0.0","module":"MCU"}}
    up    /ota/device/progress/{pk}/{dn}            {"id":2,"params":{"step":"42","desc":"","module":"MCU"}}
    up    /sys/{pk}/{dn}/thing/ota/firmware/get     {"id":3,"params":{"module":"MCU"}}
    up    /ota/device/request/{pk}/{dn}             the same, legacy; answered on the same topic
    up    /sys/{pk}/{dn}/thing/file/download        {"id":"4","params":{"fileToken":"default","fileInfo":
          {"streamId":7,"fileId":1,},"fileBlock":{"size":5120,"offset":0}}}       answered by blocks.py
    up    /ext/ntp/{pk}/{dn}/request                {"deviceSendTime":"1571724098000"}

Writing is what was captured from the real platform, byte for byte in shape: compact JSON (a widespread client cannot
read a number after a space), and in a notice `code` as the text "1000", `id` as a number of milliseconds, `signMethod`
as `Md5` or `SHA256`, `md5` only with Md5, no `module` for `default`. The order of the keys is that of the captures,
because there are devices that read them with sscanf():

    down  /ota/device/upgrade/{pk}/{dn}
          {"code":"1000","data":{"size":4252,"sign":"2e78...","version":"1.1","url":"https://...","signMethod":"Md5",
           "md5":"2e78..."},"id":1695281536874,"message":"success"}
          over MQTT
          {"code":"1000","data":{"size":4252,"streamId":12332,"sign":"2e78...","dProtocol":"mqtt","version":"1.1",
           "signMethod":"Md5","streamFileId":1,"md5":"2e78..."},"id":1695281536874,"message":"success"}
          of several files, that is two or more
          {..."data":{"version":"1.1","signMethod":"Md5","files":[{"fileSize":4252,"fileName":"a.bin","fileUrl":
           "https://...","fileMd5":"2e78...","fileSign":"2e78..."},...]}...}
          and where they apply: "isDiff":1, "digestsign":"<base64>", "module":"MCU",
          "extData":{"<tag>":"...","_package_udi":"..."}
    down  /sys/{pk}/{dn}/thing/ota/firmware/get_reply
          {"id":3,"code":200,"data":{...}}      without a job: {"id":3,"code":200,"data":{}}
    down  /ext/ntp/{pk}/{dn}/response           {"deviceSendTime":"...","serverRecvTime":"...","serverSendTime":"..."}
    down  /ext/error/{pk}/{dn}                  {"id":"...","code":427,"data":{"productKey":"...","deviceName":"..."},
                                                 "message":"..."}
    down  /ext/register, /ext/regnwl            {"productKey":"...","deviceName":"...","deviceSecret":"..."}, or
                                                 "clientId" and "deviceToken"
    down  /ext/auth/identity/response           {"productKey":"...","deviceName":"..."}

`digestsign` belongs to one file; of several each has its own, in its entry of `files` (which no capture shows).
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from otad.platform.credentials import Identity
from otad.platform.jobs import DEFAULT_MODULE, Package, PackageFile, SignMethod

Json = Any
"""A JSON value; nothing of it goes further than this file and its tests."""

FILE_ID: Final = 1
"""`streamFileId` of the only file."""

ECHO_BYTES: Final = 32 << 10
"""Of a request for a block, id and token together as JSON: what answers it says them again in at most 65535 bytes."""


@dataclass(frozen=True, slots=True)
class Inform:
    module: str
    version: str


@dataclass(frozen=True, slots=True)
class Progress:
    module: str
    step: int
    desc: str


@dataclass(frozen=True, slots=True)
class Ask:
    """`firmware/get`; `request_id` is echoed as it came."""

    module: str
    request_id: int | str
    is_legacy: bool = False


@dataclass(frozen=True, slots=True)
class AskBlock:
    """`file/download`; `request_id` and `token` are echoed as they came. None: missing, or not a number."""

    request_id: int | str
    token: str | None
    stream_id: int | None
    file_id: int | None
    size: int | None
    offset: int | None


@dataclass(frozen=True, slots=True)
class AskTime:
    """NTP over MQTT; `sent` is echoed."""

    sent: str


class Unreadable(ValueError):  # noqa: N818
    """A message that even a lenient reader makes no sense of."""


def belongs_to(topic: str, identity: Identity) -> bool:
    """Whether a topic (or filter) is one of this device's own: its two names, next to each other, near the start."""
    levels = topic.split("/")
    names = [identity.product_key, identity.device_name]
    return any(levels[at : at + 2] == names for at in range(1, 5))


def identity_in(topic: str) -> Identity | None:
    """The device that a topic of the OTA service is about, or None."""
    match topic.split("/"):
        case ["", "ota", "device", _, product_key, device_name]:
            return Identity(product_key, device_name)
        case ["", "sys", product_key, device_name, "thing", *_] | ["", "ext", "ntp", product_key, device_name, _]:
            return Identity(product_key, device_name)
        case _:
            return None


def parse(topic: str, payload: bytes) -> Inform | Progress | Ask | AskBlock | AskTime | None:
    """What a device said; None on a topic that the stand-in does not know. Raises `Unreadable`."""
    match topic.split("/"):
        case ["", "ota", "device", "inform", _, _]:
            params = _params(payload)
            version = params.get("version")
            if not isinstance(version, str) or not version:
                raise Unreadable(f"version {version!r}: not a text")
            return Inform(_module(params), version)
        case ["", "ota", "device", "progress", _, _]:
            params = _params(payload)
            return Progress(_module(params), _step(params.get("step")), str(params.get("desc", "")))
        case ["", "ota", "device", "request", _, _]:
            message = parse_json(payload)
            if isinstance(message, dict) and "code" in message:
                return None  # our own answer, come back from a broker that serves subscriptions
            return Ask(_module(_params(payload)), _id(payload), is_legacy=True)
        case ["", "sys", _, _, "thing", "ota", "firmware", "get"]:
            return Ask(_module(_params(payload)), _id(payload))
        case ["", "sys", _, _, "thing", "file", "download"]:
            return _block(payload)
        case ["", "ext", "ntp", _, _, "request"]:
            message = parse_json(payload)
            if not isinstance(message, dict):
                raise Unreadable(f"{message!r}: not an object")
            return AskTime(str(message.get("deviceSendTime", "")))
        case _:
            return None


# A text, or a comma before a closing bracket: only the comma is left out. A text that does not end is taken whole, and
# nothing is tried twice: a message may be long.
_TRAILING_COMMA: Final = re.compile(rb'("(?:[^"\\]|\\.)*+(?:"|\\?\Z))|,(\s*+[}\]])', re.DOTALL)


def parse_json(payload: bytes) -> Json:
    """JSON as devices write it; raises `Unreadable`."""
    text = payload.rstrip(b"\0 \r\n\t")
    try:
        try:
            found = json.loads(text)
        except ValueError:
            found = json.loads(_TRAILING_COMMA.sub(lambda part: part[1] or part[2], text))
        to_json(found)  # half a character could be neither answered nor kept
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON: {error}") from error
    return found


def to_json(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def upgrade_topic(identity: Identity) -> str:
    return f"/ota/device/upgrade/{identity.product_key}/{identity.device_name}"


def reply_topic(identity: Identity, ask: Ask) -> str:
    if ask.is_legacy:
        return f"/ota/device/request/{identity.product_key}/{identity.device_name}"
    return f"/sys/{identity.product_key}/{identity.device_name}/thing/ota/firmware/get_reply"


def block_topic(identity: Identity) -> str:
    return f"/sys/{identity.product_key}/{identity.device_name}/thing/file/download_reply"


def time_topic(identity: Identity) -> str:
    return f"/ext/ntp/{identity.product_key}/{identity.device_name}/response"


def error_topic(identity: Identity) -> str:
    return f"/ext/error/{identity.product_key}/{identity.device_name}"


def offer(
    package: Package,
    url: str = "",
    file_urls: Sequence[str] = (),
    stream_id: int | None = None,
    sign: Callable[[str], str] | None = None,
) -> dict[str, Json]:
    """The `data` of a notice and of a `firmware/get` reply.

    `url` is where the only file is to be fetched, "" for not at all; `file_urls` are those of the package's files, in
    their order; `stream_id` names the only file for MQTT; `sign` makes a digest in hex into a signature in base64.
    """
    data: dict[str, Json] = {}
    if not package.files:
        data["size"] = package.size
        if stream_id is not None:
            data["streamId"] = stream_id
        data["sign"] = package.sign
        if stream_id is not None:
            data["dProtocol"] = "mqtt"
    data["version"] = package.version
    if package.diff:
        data["isDiff"] = 1
    if url:
        data["url"] = url
    data["signMethod"] = package.sign_method.value
    if package.files:
        data["files"] = [
            _file(file, file_url, package.sign_method, sign)
            for file, file_url in zip(package.files, file_urls, strict=True)
        ]
    else:
        if stream_id is not None:
            data["streamFileId"] = FILE_ID
        if package.sign_method is SignMethod.MD5:
            data["md5"] = package.sign
        if sign is not None:
            data["digestsign"] = sign(package.sign)
    if package.module != DEFAULT_MODULE:
        data["module"] = package.module
    if package.tags or package.udi:
        data["extData"] = {**package.tags, **({"_package_udi": package.udi} if package.udi else {})}
    return data


def notice(data: dict[str, Json], now: float) -> dict[str, Json]:
    return {"code": "1000", "data": data, "id": int(now * 1000), "message": "success"}


def reply(ask: Ask, data: dict[str, Json] | None) -> dict[str, Json]:
    """The answer to `firmware/get`; `data` is None where there is no job."""
    if not ask.is_legacy:
        return {"id": ask.request_id, "code": 200, "data": data or {}}
    if data is None:
        return {"id": ask.request_id, "code": 500, "message": "none upgrade operation of the device."}
    return {"id": ask.request_id, "code": "1000", "data": data, "message": "success"}


def throttled(ask: Ask) -> dict[str, Json]:
    """The answer to a `firmware/get` too many."""
    return {"id": ask.request_id, "code": 429, "message": "rate limit, too many requests"}


def time_reply(ask: AskTime, now: float) -> dict[str, Json]:
    """What an NTP request is answered; all times are texts of milliseconds."""
    ms = str(int(now * 1000))
    return {"deviceSendTime": ask.sent, "serverRecvTime": ms, "serverSendTime": ms}


def error(identity: Identity, code: int, message: str, now: float) -> dict[str, Json]:
    """What a device is told of its own session, unasked."""
    return {"id": str(int(now) % (1 << 32)), "code": code, "data": names(identity), "message": message}


def names(identity: Identity) -> dict[str, Json]:
    return {"productKey": identity.product_key, "deviceName": identity.device_name}


def _file(file: PackageFile, url: str, method: SignMethod, sign: Callable[[str], str] | None) -> dict[str, Json]:
    entry: dict[str, Json] = {"fileSize": file.size, "fileName": file.name, "fileUrl": url}
    if method is SignMethod.MD5:
        entry["fileMd5"] = file.sign
    entry["fileSign"] = file.sign
    if sign is not None:
        entry["digestsign"] = sign(file.sign)
    return entry


def _block(payload: bytes) -> AskBlock:
    params = _params(payload)
    info, block, token = params.get("fileInfo"), params.get("fileBlock"), params.get("fileToken")
    request_id, token = _id(payload), None if token is None else str(token)
    if (size := len(to_json([request_id, token]))) > ECHO_BYTES:
        raise Unreadable(f"id, fileToken: {size} bytes, more than {ECHO_BYTES}")
    return AskBlock(
        request_id,
        token,
        _number(info, "streamId"),
        _number(info, "fileId"),
        _number(block, "size"),
        _number(block, "offset"),
    )


def _number(found: Json, key: str) -> int | None:
    try:
        return int(found[key])
    except (TypeError, ValueError, KeyError, OverflowError):
        return None


def _params(payload: bytes) -> dict[str, Json]:
    message = parse_json(payload)
    params = message.get("params", {}) if isinstance(message, dict) else None
    if isinstance(params, str):
        params = parse_json(params.encode())
    if not isinstance(params, dict):
        raise Unreadable(f"params {params!r}: not an object")
    return params


def _id(payload: bytes) -> int | str:
    found = parse_json(payload).get("id", 0)
    return found if isinstance(found, int | str) else str(found)


def _module(params: dict[str, Json]) -> str:
    module = params.get("module") or DEFAULT_MODULE
    if not isinstance(module, str):
        raise Unreadable(f"module {module!r}: not a text")
    return module


def _step(found: Json) -> int:
    try:
        step = int(found)
    except (TypeError, ValueError, OverflowError) as error:
        raise Unreadable(f"step {found!r}: not a number") from error
    if not -4 <= step <= 100:
        raise Unreadable(f"step {step}: not within -4..100")
    return step
