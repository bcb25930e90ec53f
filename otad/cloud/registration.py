# SPDX-License-Identifier: Apache-2.0
"""Dynamic registration over HTTPS: one small POST, and what the platform's refusals mean.

    POST https://iot-auth.{region}.aliyuncs.com/auth/register/device
    productKey=...&deviceName=...&random=...&sign=...&signMethod=hmacsha256        (form: credentials.registration_form)

    {"code":200,"data":{"productKey":"...","deviceName":"...","deviceSecret":"..."},"message":"success"}

The end point has a public certificate, unlike the MQTT one: besides the roots of MQTT, the system's are trusted.
Redirects are not followed, and not more than BYTES_MAX is read of an answer. asyncio's streams rather than a thread
with an HTTP client: this can be canceled at any moment, and ends in time whatever the other side does.
"""

import asyncio
import http.client
import io
import re
import socket
import ssl
from typing import cast

from otad.cloud.client import Lost, Refused
from otad.cloud.link import words
from otad.units import format_duration

PATH = "/auth/register/device"
BYTES_MAX = 64 << 10
LIMIT_S = 30.0

_MEANINGS = {
    460: "a parameter is not accepted: check device.product_key and device.device_name",
    401: "the platform does not accept the product secret: check device.product_secret or product_secret_file",
    5005: "there is no such product: check device.product_key",
    6100: "there is no such device: check device.device_name, and add it in the console",
    6250: "there is no such product: check device.product_key",
    6288: "dynamic registration is switched off: switch it on in the console, on the product's page",
    6289: "the device is activated already: reset it in the console, or set device.device_secret_file instead",
    6292: "the platform does not sign with HMAC-SHA256: set device.device_secret_file instead",
    6600: "the signature is wrong: check device.product_secret or product_secret_file",
}
_LATER = (429, *range(500, 600))


def meaning(code: int, message: str) -> Lost:
    """What this refusal of a registration means, and what to do: Refused where only a person can help."""
    if code in _LATER:
        return Lost(f"registration: code {code}: {message}")
    return Refused(f"registration: code {code}: {_MEANINGS.get(code, message)}", says_all=code in _MEANINGS)


async def post(endpoint: tuple[str, int], form: bytes, tls: ssl.SSLContext, limit_s: float = LIMIT_S) -> bytes:
    """Post the form; the answer's body. Raises Lost, or Refused where the end point is the wrong one."""
    host, port = endpoint
    try:
        async with asyncio.timeout(limit_s):
            status, content = _answer(await _exchange(host, port, form, tls))
    except TimeoutError as error:
        raise Lost(f"registration: {host}: no answer within {format_duration(limit_s)}") from error
    except http.client.HTTPException as error:
        raise Lost(f"registration: {host}: the answer is not HTTP") from error
    except (OSError, ValueError) as error:
        raise Lost(f"registration: {host}: {words(error)}") from error
    if status == 200 or content.startswith(b"{"):
        return content
    if status in _LATER:
        raise Lost(f"registration: {host}: HTTP status {status}")
    said = f"registration: {host}: HTTP status {status}: check device.registration_host"
    raise Refused(said, says_all=True)


async def _exchange(host: str, port: int, form: bytes, tls: ssl.SSLContext) -> bytes:
    """The whole answer as it came."""
    reader, writer = await asyncio.open_connection(host, port, ssl=tls, limit=BYTES_MAX)
    try:
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: {host if port == 443 else f'{host}:{port}'}\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\nAccept: application/json\r\n"
            f"Accept-Encoding: identity\r\nContent-Length: {len(form)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode("ascii") + form)
        answer = bytearray()
        while not _is_whole(answer) and (more := await reader.read(4096)):
            answer += more
            if len(answer) > BYTES_MAX:
                raise ValueError(f"an answer of more than {BYTES_MAX} bytes")
        return bytes(answer)
    finally:
        writer.transport.abort()


def _is_whole(answer: bytearray) -> bool:
    """All that was announced is there: a server that keeps the connection open is not waited for."""
    head, end, body = bytes(answer).partition(b"\r\n\r\n")
    announced = re.search(rb"(?i)\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*(\r|\Z)", head)
    return bool(end and announced and len(body) >= int(announced[1]))


def _answer(raw: bytes) -> tuple[int, bytes]:
    """Status and body. Raises HTTPException."""
    response = http.client.HTTPResponse(cast("socket.socket", _Received(raw)), method="POST")
    response.begin()
    try:
        return response.status, response.read()
    except OverflowError as error:  # a length, of the body or of a chunk, that no memory has
        raise http.client.HTTPException(str(error)) from error


class _Received:
    """Stands where the parser expects a socket."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._raw)
