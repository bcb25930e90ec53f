# SPDX-License-Identifier: Apache-2.0
"""Topics and JSON as the platform reads and writes them.

Reading is lenient, because the platform has to live with what is in the field: ids and steps as number or text, a
trailing NUL, a trailing comma, `params` as text, keys nobody knows.

    up    /ota/device/inform/{pk}/{dn}              {"id":1,"params":{"version":"1.0.0","module":"MCU"}}
    up    /ota/device/progress/{pk}/{dn}            {"id":2,"params":{"step":"42","desc":"","module":"MCU"}}
    up    /sys/{pk}/{dn}/thing/ota/firmware/get     {"id":3,"params":{"module":"MCU"}}
    up    /ota/device/request/{pk}/{dn}             the same, legacy; answered on the same topic

Writing is what was captured from the real platform, byte for byte in shape: compact JSON (a widespread client cannot
read a number after a space), and in a notice `code` as the text "1000", `id` as a number of milliseconds, `signMethod`
as `Md5` or `SHA256`, `md5` only with Md5, no `module` for `default`:

    down  /ota/device/upgrade/{pk}/{dn}
          {"code":"1000","data":{"size":4252,"sign":"2e78...","version":"1.1","url":"https://...","signMethod":"Md5",
           "md5":"2e78..."},"id":1695281536874,"message":"success"}
    down  /sys/{pk}/{dn}/thing/ota/firmware/get_reply
          {"id":3,"code":200,"data":{...}}      without a job: {"id":3,"code":200,"data":{}}
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from otad.platform.credentials import Identity
from otad.platform.jobs import DEFAULT_MODULE, Package, SignMethod

Json = Any
"""A JSON value; nothing of it goes further than this file and its tests."""


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
        case ["", "sys", product_key, device_name, "thing", *_]:
            return Identity(product_key, device_name)
        case _:
            return None


def parse(topic: str, payload: bytes) -> Inform | Progress | Ask | None:
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
        case _:
            return None


# A text, or a comma before a closing bracket: only the comma is left out.
_TRAILING_COMMA: Final = re.compile(rb'("(?:[^"\\]|\\.)*")|,(\s*[}\]])')


def parse_json(payload: bytes) -> Json:
    """JSON as devices write it; raises `Unreadable`."""
    text = payload.rstrip(b"\0 \r\n\t")
    try:
        try:
            return json.loads(text)
        except ValueError:
            return json.loads(_TRAILING_COMMA.sub(lambda found: found[1] or found[2], text))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON: {error}") from error


def to_json(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def upgrade_topic(identity: Identity) -> str:
    return f"/ota/device/upgrade/{identity.product_key}/{identity.device_name}"


def reply_topic(identity: Identity, ask: Ask) -> str:
    if ask.is_legacy:
        return f"/ota/device/request/{identity.product_key}/{identity.device_name}"
    return f"/sys/{identity.product_key}/{identity.device_name}/thing/ota/firmware/get_reply"


def offer(package: Package, url: str) -> dict[str, Json]:
    """The `data` of a notice and of a `firmware/get` reply."""
    data: dict[str, Json] = {
        "size": package.size,
        "sign": package.sign,
        "version": package.version,
        "url": url,
        "signMethod": package.sign_method.value,
    }
    if package.sign_method is SignMethod.MD5:
        data["md5"] = package.sign
    if package.module != DEFAULT_MODULE:
        data["module"] = package.module
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
    except (TypeError, ValueError) as error:
        raise Unreadable(f"step {found!r}: not a number") from error
    if not -4 <= step <= 100:
        raise Unreadable(f"step {step}: not within -4..100")
    return step
