# SPDX-License-Identifier: Apache-2.0
"""Registration over HTTPS, against peers that answer as the platform does, and as it should not."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from otad.cloud import registration
from otad.cloud.client import Lost, Refused
from otad.cloud.cloud import SessionState
from otad.cloud.credentials import connect_fields, registration_form
from otad.cloud.login import FILE
from otad.cloud.session import Pace
from otad.config import DeviceSettings, Registration
from otad.tls import client_context
from tests.broker import Certificate, free_port, make_certificate
from tests.cloud.session_world import LIMIT_S, NAMES, Gateway, Script, never, packet, said_in, scripted

GIVEN = b'{"code":200,"data":{"productKey":"a1","deviceName":"gw001","deviceSecret":"0btained"},"message":"success"}'
DEVICE = DeviceSettings(
    product_key="a1", device_name="gw001", product_secret="pr0duct", registration=Registration.HTTPS
)
FORM = registration_form(NAMES, "pr0duct", "1")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("registration"))


def trusting(certificate: Certificate) -> ssl.SSLContext:
    return client_context(file=certificate.file)


@asynccontextmanager
async def serving(certificate: Certificate, script: Script) -> AsyncIterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.file, certificate.key)
    async with scripted(script, ssl=context) as port:
        yield port


async def request(reader: asyncio.StreamReader) -> tuple[list[str], bytes]:
    """The lines of the head, and the body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
    length = next(int(line.split()[1]) for line in head if line.startswith("Content-Length:"))
    return head, await reader.readexactly(length)


def response(content: bytes = GIVEN, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + content


async def post(port: int, certificate: Certificate, limit_s: float = LIMIT_S) -> bytes:
    return await registration.post(("localhost", port), FORM, trusting(certificate), limit_s)


async def test_the_request_is_what_the_platform_expects(certificate: Certificate) -> None:
    requests: asyncio.Queue[tuple[list[str], bytes]] = asyncio.Queue()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.put_nowait(await request(reader))
        writer.write(response())
        await never(reader)

    async with serving(certificate, script) as port:
        assert await post(port, certificate) == GIVEN

        head, body = requests.get_nowait()
        assert head[:3] == [
            "POST /auth/register/device HTTP/1.1",
            f"Host: localhost:{port}",
            "Content-Type: application/x-www-form-urlencoded",
        ]
        assert body == FORM


@pytest.mark.parametrize(
    "answer",
    [
        response(),
        response(GIVEN, "400 Bad Request"),
        b"HTTP/1.0 200 OK\r\n\r\n" + GIVEN,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(GIVEN), GIVEN),
        b"HTTP/1.1 100 Continue\r\n\r\n" + response(),
        response() + b"more",
    ],
    ids=["plain", "with another status", "HTTP/1.0", "chunked", "continued", "more than announced"],
)
async def test_what_is_answered_is_given(certificate: Certificate, answer: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(answer)

    async with serving(certificate, script) as port:
        assert await post(port, certificate) == GIVEN


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (response(b"", "503 Service Unavailable"), Lost, "HTTP status 503"),
        (response(b"slow", "429 Too Many"), Lost, "HTTP status 429"),
        (response(b"<html>", "404 Not Found"), Refused, "HTTP status 404: check device.registration_host"),
        (response(b"", "302 Found", "Location: https://elsewhere/"), Refused, "HTTP status 302: check device.reg"),
        (b"", Lost, "the answer is not HTTP"),
        (b"\x20\x02\0\0", Lost, "the answer is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{", Lost, "the answer is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n{", Lost, "the answer is not HTTP"),
        (CHUNKED + b"fffffffffffffffff\r\n{", Lost, "the answer is not HTTP"),
        (response(bytes(70 << 10)), Lost, "an answer of more than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (70 << 10), Lost, "an answer of more than 65536 bytes"),
    ],
    ids=[
        *(
            "503",
            "429",
            "404",
            "a redirect",
            "nothing",
            "MQTT",
            "cut off",
            "longer than memory",
            "a chunk longer than it",
        ),
        *("endless", "an endless head"),
    ],
)
async def test_what_is_no_answer_is_said(certificate: Certificate, answer: bytes, error: type[Lost], says: str) -> None:
    came = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        came += 1
        await request(reader)
        writer.write(answer)
        await writer.drain()

    async with serving(certificate, script) as port:
        with pytest.raises(Lost) as caught:
            await post(port, certificate)

    assert type(caught.value) is error
    assert str(caught.value).startswith(f"registration: localhost: {says}")
    assert came == 1


@pytest.mark.parametrize("drips", [False, True])
async def test_a_peer_that_never_ends_is_given_up(certificate: Certificate, drips: bool) -> None:
    gone = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        try:
            while drips:
                writer.write(b"H")
                await writer.drain()
                await asyncio.sleep(0.02)
            await never(reader)
        finally:
            gone.set()

    async with serving(certificate, script) as port:
        with pytest.raises(Lost, match="registration: localhost: no answer within 200 ms"):
            await post(port, certificate, 0.2)
        async with asyncio.timeout(LIMIT_S):
            await gone.wait()


async def test_it_can_be_canceled_at_once(certificate: Certificate) -> None:
    came, gone = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        came.set()
        try:
            await never(reader)
        finally:
            gone.set()

    async with serving(certificate, script) as port, asyncio.timeout(LIMIT_S):
        posting = asyncio.create_task(post(port, certificate, 60))
        await came.wait()
        posting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await posting
        await gone.wait()

    assert posting.cancelled()


async def test_whom_we_do_not_trust_gets_nothing(certificate: Certificate, tmp_path: Path) -> None:
    heard = bytearray()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read())

    async with serving(make_certificate(tmp_path), script) as port:
        with pytest.raises(Lost, match="registration: localhost: certificate: self-signed certificate"):
            await post(port, certificate)

    assert heard == b""


async def test_nobody_there_is_said(certificate: Certificate) -> None:
    with pytest.raises(Lost, match="registration: localhost: "):
        await post(free_port(), certificate)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (6288, "code 6288: dynamic registration is switched off: switch it on in the console"),
        (6289, "code 6289: the device is activated already: reset it in the console"),
        (6600, "code 6600: the signature is wrong: check device.product_secret or product_secret_file"),
        (6100, "code 6100: there is no such device: check device.device_name, and add it in the console"),
        (5005, "code 5005: there is no such product: check device.product_key"),
        (9999, "code 9999: of its own kind"),
    ],
)
async def test_a_refusal_says_what_to_do_and_waits_long(
    certificate: Certificate, tmp_path: Path, code: int, says: str
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(response(b'{"code":%d,"message":"of its own kind"}' % code))

    async with serving(certificate, script) as port:
        device = replace(DEVICE, registration_host=f"localhost:{port}")
        more = {"device": device, "directory": tmp_path, "ca_file": certificate.file, "pace": Pace()}
        async with Gateway(free_port(), **more) as gateway:
            detail = await gateway.shows(SessionState.REFUSED, f"registration: {says}")

    assert int(detail.removeprefix("next attempt in ").partition(" min")[0]) in range(5, 8)
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("code", [429, 500])
async def test_a_refusal_that_passes_is_tried_again_soon(certificate: Certificate, tmp_path: Path, code: int) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(response(b'{"code":%d,"message":"busy"}' % code))

    async with serving(certificate, script) as port:
        device = replace(DEVICE, registration_host=f"localhost:{port}")
        more = {"device": device, "directory": tmp_path, "ca_file": certificate.file}
        async with Gateway(free_port(), **more) as gateway:
            await gateway.shows(SessionState.OFFLINE, f"registration: code {code}: busy")


async def test_a_session_registers_over_https_and_connects_as_itself(certificate: Certificate, tmp_path: Path) -> None:
    connects: asyncio.Queue[tuple[float, tuple[str, str, str], bool]] = asyncio.Queue()

    async def platform(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(response())

    async def broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = said_in((await packet(reader))[1])
        connects.put_nowait((time.monotonic(), said, (tmp_path / FILE).exists()))
        writer.write(b"\x20\x02\0\0")
        await never(reader)

    async with serving(certificate, platform) as registration_port, scripted(broker) as port:
        device = replace(DEVICE, registration_host=f"localhost:{registration_port}")
        async with Gateway(port, device=device, directory=tmp_path, ca_file=certificate.file) as gateway:
            assert await gateway.online() == 1

    _, said, was_stored = connects.get_nowait()
    expected = connect_fields("a1", "gw001", "0btained", secure=False)
    assert said == (expected.client_id, expected.username, expected.password)
    assert was_stored
    assert connects.empty()
