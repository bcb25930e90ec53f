# SPDX-License-Identifier: Apache-2.0
"""Aliyun's own Python device SDK, unmodified, at the end of two pipes. Runs in .venv-sdk; imports nothing of ours.

    python sdk_client.py '{"pk", "dn", "secret"?, "more": {LinkKit's keywords}, "mqtt": {config_mqtt's keywords},
                           "clock"?: seconds}'

reads one order per line, `{"do": ..., ...}`:

    connect, disconnect
    inform      module, version         `ota_report_version`
    query       module                  `query_ota_firmware`
    download    url, path, sign_method, sign

and writes one line for each thing that the SDK's user sees, `{"saw": ...}`:

    connected   session_present, rc
    disconnected rc
    offer       kind ("pushed" or "answered"), version, size, url, sign_method, sign, module, extra
    message     topic, payload          what the SDK passes on because it makes nothing of it
    secret      rc, secret              of the dynamic registration
    token       rc, client_id, username, password
    returned    do, value               an order is done
    log         level, text             the SDK's own log from "info" on
"""

import json
import logging
import sys
import threading
import time
from enum import Enum
from typing import Any

from linkkit import linkkit

KINDS = {1: "pushed", 2: "answered"}

_writing = threading.Lock()


def saw(what: str, **more: Any) -> None:
    """Write one line. The SDK calls back from several threads."""
    with _writing:
        sys.stdout.write(json.dumps({"saw": what, **more}) + "\n")
        sys.stdout.flush()


class Log(logging.Handler):
    """The SDK's log as lines."""

    def emit(self, record: logging.LogRecord) -> None:
        saw("log", level=record.levelname, text=record.getMessage())


def made(options: dict[str, Any]) -> linkkit.LinkKit:
    """The SDK's object with every callback that these tests look at."""
    device = linkkit.LinkKit(
        "127.0.0.1", options["pk"], options["dn"], options.get("secret", ""), **options.get("more", {})
    )
    logging.getLogger("linkkit").addHandler(Log())
    device.enable_logger(logging.INFO)
    device.config_mqtt(**options["mqtt"])

    def on_offer(kind: int, version: str, size: int, url: str, sign_method: str, sign: str, *rest: str) -> None:
        module, extra = rest
        package = {"version": version, "size": size, "module": module, "extra": extra}
        saw("offer", kind=KINDS[kind], url=url, sign_method=sign_method, sign=sign, **package)

    device.on_connect = lambda present, rc, _: saw("connected", session_present=present, rc=rc)
    device.on_disconnect = lambda rc, _: saw("disconnected", rc=rc)
    device.on_ota_message_arrived = on_offer
    device.on_topic_message = lambda topic, payload, _qos, _: saw(
        "message", topic=topic, payload=payload.decode(errors="backslashreplace")
    )
    device.on_device_dynamic_register = lambda rc, secret, _: saw("secret", rc=rc, secret=secret)
    device.on_device_dynamic_register_nwl_reply = lambda rc, client_id, username, password: saw(
        "token", rc=rc, client_id=client_id, username=username, password=password
    )
    return device


def obey(device: linkkit.LinkKit, order: dict[str, Any]) -> Any:
    match order:
        case {"do": "connect"}:
            return device.connect_async()
        case {"do": "disconnect"}:
            return device.disconnect()
        case {"do": "inform", "module": module, "version": version}:
            return device.ota_report_version(module, version)
        case {"do": "query", "module": module}:
            return device.query_ota_firmware(module)
        case {"do": "download", "url": url, "path": path, "sign_method": sign_method, "sign": sign}:
            return device.download_ota_firmware(url, path, sign_method, sign)
        case _:
            raise ValueError(f"no such order: {order}")


def main() -> None:
    options = json.loads(sys.argv[1])
    if "clock" in options:
        time.time = lambda: options["clock"]  # the world's clock stands still, so that a signature is known beforehand
    device = made(options)
    for line in sys.stdin:
        order = json.loads(line)
        value = obey(device, order)
        saw("returned", do=order["do"], value=value.name if isinstance(value, Enum) else value)


if __name__ == "__main__":
    main()
