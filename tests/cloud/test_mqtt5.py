# SPDX-License-Identifier: Apache-2.0
"""MQTT 5, which is spoken where the configuration says so: against a real broker, and peers with reason codes."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from otad.cloud.cloud import Nothing, OfflineError, SessionState
from otad.cloud.session import Pace
from otad.config import MqttVersion
from otad.core.model import DEFAULT_MODULE
from tests.broker import Mosquitto
from tests.cloud.session_world import (
    FAST,
    LIMIT_S,
    SECRET,
    TOPICS,
    Gateway,
    fields,
    never,
    packet,
    scripted,
)

V5: Any = {"version": MqttVersion.V5}
RIVAL = "another device uses this identity: give each gateway a device_name and a credential of its own"


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    async with Mosquitto(tmp_path) as running:
        yield running


async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, properties: bytes = b"") -> bytes:
    """Answer CONNECT with CONNACK of MQTT 5; what CONNECT said."""
    first, body = await packet(reader)
    assert first == 0x10
    writer.write(bytes([0x20, 3 + len(properties), 0, 0, len(properties)]) + properties)
    return body


async def test_a_session_says_and_hears_what_it_does_with_3_1_1(broker: Mosquitto) -> None:
    async with Gateway(broker.port, **V5) as gateway, aiomqtt.Client("127.0.0.1", broker.port) as peer:
        await peer.subscribe(TOPICS.inform, 1)
        await gateway.online()
        await gateway.session.inform(DEFAULT_MODULE, "1-0-0")
        async with asyncio.timeout(LIMIT_S):
            message = await anext(aiter(peer.messages))
        await peer.publish(TOPICS.get_reply, b'{"code":200}', qos=1)

        assert message.payload == b'{"id":"1","params":{"version":"1-0-0"}}'
        assert await gateway.next() == Nothing(DEFAULT_MODULE)
        await broker.logged("p5, c1, k60, u'gw001&a1'")


async def test_connect_is_clean_and_of_level_5() -> None:
    connects: asyncio.Queue[bytes] = asyncio.Queue()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connects.put_nowait(await accept(reader, writer))
        await never(reader)

    async with scripted(script) as port, Gateway(port, keepalive_s=300.0, **V5) as gateway:
        await gateway.online()

    said = [text.encode() for text in (fields().client_id, fields().username, fields().password)]
    body = b"".join(len(text).to_bytes(2, "big") + text for text in said)
    assert connects.get_nowait() == b"\0\x04MQTT\x05\xc2\x01\x2c\0" + body


async def test_a_broker_that_goes_and_comes_is_connected_again(broker: Mosquitto) -> None:
    async with Gateway(broker.port, **V5) as gateway:
        first = await gateway.online()
        await broker.restart()

        await gateway.online(after=first)
        await gateway.session.inform(DEFAULT_MODULE, "1")
        mark = len(broker.log)
    await broker.logged("Received DISCONNECT from a1.gw001", after=mark)


async def test_wrong_credentials_are_refused_in_the_same_words(tmp_path: Path) -> None:
    users = {fields().username: "another"}
    async with Mosquitto(tmp_path, users=users) as broker, Gateway(broker.port, pace=Pace(), **V5) as gateway:
        detail = await gateway.shows(SessionState.REFUSED, "not authorised: check device.product_key")

    assert int(detail.removeprefix("next attempt in ").partition(" min")[0]) in range(5, 8)


@pytest.mark.parametrize(
    ("code", "state", "says"),
    [
        (0x80, SessionState.OFFLINE, "the platform refuses the connection: Unspecified error"),
        (
            0x84,
            SessionState.REFUSED,
            'MQTT 5 is not spoken here: a platform without MQTT 5 needs mqtt.version = "3.1.1"',
        ),
        (0x85, SessionState.OFFLINE, "the platform does not accept the client id: check device.client_id"),
        (0x86, SessionState.REFUSED, "bad user name or password: check device.product_key"),
        (0x87, SessionState.REFUSED, "not authorised: check device.product_key"),
        (0x88, SessionState.OFFLINE, "the platform says that it is unavailable"),
        (0x89, SessionState.OFFLINE, "the platform says that it is busy"),
        (0x8A, SessionState.REFUSED, "banned by the platform: check device.product_key"),
        (0x97, SessionState.OFFLINE, "the platform says that a quota is exceeded"),
        (0x9D, SessionState.OFFLINE, "the platform refuses the connection: Server moved"),
        (0x9F, SessionState.OFFLINE, "the platform says that this device connects too often"),
    ],
)
async def test_each_refusal_is_said_in_its_own_words(code: int, state: SessionState, says: str) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(bytes([0x20, 3, 0, code, 0]))
        await never(reader)

    async with scripted(script) as port, Gateway(port, pace=Pace(), **V5) as gateway:
        detail = await gateway.shows(state, says)

    wait = range(5, 8) if state is SessionState.REFUSED else range(2, 4)
    assert int(detail.removeprefix("next attempt in ").split()[0]) in wait


@pytest.mark.parametrize(
    ("answer", "state", "says"),
    [
        (b"\x20\x02\0\x01", SessionState.REFUSED, "MQTT 5 is not spoken here: "),
        (b"\x20\x02\0\0", SessionState.OFFLINE, "what is sent is not MQTT; "),
        (b"\x20\x02\0\x05", SessionState.OFFLINE, "what is sent is not MQTT; "),
        (b"", SessionState.OFFLINE, "closed by the platform; "),
    ],
    ids=["says so", "accepts it as another", "refuses it as another", "closes"],
)
async def test_a_broker_of_3_1_1_is_told_from_its_answer_and_never_fallen_back_to(
    answer: bytes, state: SessionState, says: str
) -> None:
    levels: set[int] = set()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        levels.add((await packet(reader))[1][6])
        writer.write(answer)
        if answer:
            await never(reader)

    async with scripted(script) as port, Gateway(port, **V5) as gateway:
        for _ in range(2):
            detail = await gateway.shows(state, says)
            await gateway.shows(SessionState.CONNECTING, says)

    assert detail.endswith('a platform without MQTT 5 needs mqtt.version = "3.1.1"')
    assert levels == {5}


@pytest.mark.parametrize(
    ("farewell", "says"),
    [
        (b"\xe0\0", "ended by the platform"),
        (b"\xe0\x02\0\0", "ended by the platform"),
        (b"\xe0\x02\x8e\0", RIVAL),
        (b"\xe0\x02\x98\0", "ended by the platform's administrator: check that it has this device enabled"),
        (b"\xe0\x01\x8b", "ended by the platform: server shutting down"),
        (b"\xe0\x02\x96\0", "ended by the platform: message rate too high"),
        (b"\xe0\x0a\x87\x08\x1f\0\x05hello", "ended by the platform: not authorized"),
        (b"\xe0\x02\x77\0", "what is sent is not MQTT"),
    ],
    ids=["bare", "normal", "taken over", "administrative", "shutting down", "rate", "with a reason", "unknown"],
)
async def test_what_the_platform_says_at_the_end_is_the_reason(farewell: bytes, says: str) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        await packet(reader)
        writer.write(farewell)
        await never(reader)

    async with scripted(script) as port, Gateway(port, pace=Pace(), **V5) as gateway:
        detail = await gateway.shows(SessionState.OFFLINE, "next attempt")

    assert detail.partition(": ")[2] == says


class Narrow(Mosquitto):
    """A broker that takes small packets only."""

    def _configuration(self) -> Path:
        file = super()._configuration()
        file.write_text(file.read_text() + "max_packet_size 300\n")
        return file


async def test_a_real_brokers_reason_is_understood(tmp_path: Path) -> None:
    async with Narrow(tmp_path) as broker, Gateway(broker.port, **V5) as gateway:
        await gateway.online()

        with pytest.raises(OfflineError, match="ended by the platform: packet too large"):
            await gateway.session.step(DEFAULT_MODULE, 1, "€" * 100)


async def test_a_publication_that_the_platform_does_not_take_is_not_acknowledged() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        while True:
            first, body = await packet(reader)
            if first & 0xF0 == 0x30:
                at = 2 + int.from_bytes(body[:2], "big")
                writer.write(b"\x40\x03" + body[at : at + 2] + b"\x97")

    async with scripted(script) as port, Gateway(port, **V5) as gateway:
        await gateway.online()
        with pytest.raises(OfflineError, match="the platform does not take what it is sent: quota exceeded"):
            await gateway.session.inform(DEFAULT_MODULE, "1")


async def test_a_publication_that_nobody_is_subscribed_to_is_acknowledged(broker: Mosquitto) -> None:
    async with Gateway(broker.port, **V5) as gateway:
        await gateway.online()
        await gateway.session.inform(DEFAULT_MODULE, "1")  # mosquitto says 0x10, no matching subscribers

        assert gateway.session.connection == 1


@pytest.mark.parametrize(
    "hostile",
    [
        b"\x30\x03\0\0\0",
        b"\x30\x05\0\1a\x02\x77",
        b"\x30\x05\0\1a\xff\xff",
        b"\x30\x08\0\1a\x04\x23\0\0\0",
        b"\xf0\x02\x18\0",
        b"\x40\x03\0\1\x77",
        b"\x90\x04\0\1\0\x77",
        b"\xe0\x03\x8b\x7f\x1f",
    ],
    ids=["no topic", "odd property", "endless properties", "topic alias", "AUTH", "PUBACK", "SUBACK", "DISCONNECT"],
)
async def test_a_packet_that_breaks_the_protocol_ends_the_connection_only(hostile: bytes) -> None:
    gone = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        if not gone.is_set():
            writer.write(hostile)
        await never(reader)
        gone.set()

    async with scripted(script) as port, Gateway(port, **V5) as gateway:
        await gateway.online(after=1)
        assert gone.is_set()


@pytest.mark.parametrize("keepalive", [0, 600])
async def test_a_servers_longer_keep_alive_does_not_keep_us_from_pinging(keepalive: int) -> None:
    pings: asyncio.Queue[float] = asyncio.Queue()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer, b"\x13" + keepalive.to_bytes(2, "big"))
        while True:
            if (await packet(reader))[0] == 0xC0:
                pings.put_nowait(time.monotonic())
                writer.write(b"\xd0\0")

    async with scripted(script) as port, Gateway(port, keepalive_s=1, **V5) as gateway:
        await gateway.online()
        async with asyncio.timeout(LIMIT_S):
            for _ in range(2):
                await pings.get()
        assert gateway.session.connection == 1


async def test_no_credential_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    users = {fields().username: "another"}
    async with Mosquitto(tmp_path, users=users) as broker, Gateway(broker.port, pace=FAST, **V5) as gateway:
        await gateway.shows(SessionState.REFUSED, "not authorised")

    assert SECRET not in caplog.text
    assert fields().password not in caplog.text
