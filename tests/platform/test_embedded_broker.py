# SPDX-License-Identifier: Apache-2.0
"""The broker with a real MQTT client, and where that is too polite, with bytes."""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from conftest import Gateway, login

from otad.platform.broker import EmbeddedBroker
from otad.platform.credentials import expected_password, parse_login
from otad.platform.events import Connected, Disconnected, Refused
from otad.platform.jobs import Package
from otad.platform.mqtt import Return, remaining_length
from otad.platform.platform import Device, Platform

Connect = Callable[..., Awaitable[Gateway]]

NOTICE = "/ota/device/upgrade/{device}"


async def test_a_notice_arrives_without_subscribe(
    platform: Platform, device: Device, package: Package, connect: Connect
) -> None:
    gateway = await connect()
    platform.push(package, device)

    topic, _ = await gateway.hear()
    assert topic == NOTICE


async def test_subscribing_changes_nothing(
    platform: Platform, device: Device, package: Package, connect: Connect
) -> None:
    gateway = await connect()
    codes = await gateway.client.subscribe([(f"/ota/device/upgrade/{device}", 1), ("/ota/device/upgrade/#", 1)])
    platform.push(package, device)
    await gateway.hear()
    await gateway.ask()

    topic, _ = await gateway.hear()
    assert topic == "/sys/{device}/thing/ota/firmware/get_reply"
    assert [getattr(code, "value", code) for code in codes] == [1, 0x80]


@pytest.mark.parametrize("sign_method", ["hmacmd5", "hmacsha1", "hmacsha256"])
async def test_every_sign_method_is_taken(device: Device, connect: Connect, sign_method: str) -> None:
    await connect(**login(device, sign_method=sign_method))


async def test_the_password_may_be_upper_case(device: Device, connect: Connect) -> None:
    await connect(password=login(device)["password"].upper())


@pytest.mark.parametrize(
    ("instead", "code"),
    [
        ({"password": "00"}, Return.PASSWORD),
        ({"password": ""}, Return.PASSWORD),
        ({"username": "gateway-2&a1B2c3"}, Return.NOT_AUTHORISED),
        ({"username": "gateway-1"}, Return.IDENTIFIER),
        ({"identifier": "test"}, Return.IDENTIFIER),
        ({"keepalive": 29}, Return.IDENTIFIER),
        ({"keepalive": 1201}, Return.IDENTIFIER),
        ({"protocol": aiomqtt.ProtocolVersion.V5}, Return.PROTOCOL),
    ],
    ids=str,
)
async def test_connect_is_refused(platform: Platform, connect: Connect, instead: dict[str, Any], code: Return) -> None:
    with pytest.raises(aiomqtt.MqttError):
        await connect(**instead)

    assert [event.code for event in platform.events.of(Refused)] == [code]
    assert platform.events.of(Connected) == []


async def test_the_code_is_on_the_wire(platform: Platform, device: Device) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", platform.mqtt_port)
    writer.write(connect_packet(**{**login(device), "password": "wrong"}))

    assert await reader.read() == b"\x20\x02\x00\x04"
    writer.close()


@pytest.mark.parametrize("keepalive", [30, 1200])
async def test_the_ends_of_the_keepalive_range_are_taken(connect: Connect, keepalive: int) -> None:
    await connect(keepalive=keepalive)


async def test_a_silent_connection_is_closed(tmp_path: Path) -> None:
    broker = EmbeddedBroker(keepalive_s=range(1, 1201))
    async with Platform(tmp_path / "platform", broker=broker) as platform:
        device = platform.add_device("pk", "dn")
        reader, writer = await asyncio.open_connection("127.0.0.1", platform.mqtt_port)
        writer.write(connect_packet(**{**login(device), "keepalive": 1}))

        async with asyncio.timeout(5):
            assert await reader.read() == b"\x20\x02\x00\x00"
        writer.close()
        await platform.wait(lambda: platform.events.of(Disconnected))

    assert [event.why for event in platform.events.of(Disconnected)] == ["silent for 1.5 times 1 s"]


async def test_mqtt_31_is_spoken_too(connect: Connect) -> None:
    await connect(protocol=aiomqtt.ProtocolVersion.V31)


async def test_a_wrong_password_does_not_disturb_the_device(
    platform: Platform, device: Device, package: Package, connect: Connect
) -> None:
    gateway = await connect()
    with pytest.raises(aiomqtt.MqttError):
        await connect(password="wrong")
    platform.push(package, device)

    topic, _ = await gateway.hear()
    assert topic == NOTICE


async def test_the_older_connection_of_a_device_is_closed(
    platform: Platform, device: Device, package: Package, connect: Connect
) -> None:
    older = await connect()
    newer = await connect(identifier="elsewhere|signmethod=hmacmd5|", **with_password(device))
    with pytest.raises(aiomqtt.MqttError):
        await older.hear()
    platform.push(package, device)

    topic, _ = await newer.hear()
    assert topic == NOTICE
    assert [event.why for event in platform.events.of(Disconnected)] == ["the device connected again"]
    assert platform.is_online(device)


async def test_a_kicked_device_is_offline(platform: Platform, device: Device, connect: Connect) -> None:
    gateway = await connect()
    platform.kick(device)
    with pytest.raises(aiomqtt.MqttError):
        await gateway.hear()

    await platform.wait(lambda: not platform.is_online(device))


async def test_a_foreign_topic_is_acknowledged_and_dropped(
    platform: Platform, device: Device, connect: Connect
) -> None:
    platform.add_device("a1B2c3", "gateway-2")
    gateway = await connect()
    await gateway.say("/ota/device/inform/a1B2c3/gateway-2", '{"id":1,"params":{"version":"9"}}')

    assert platform.events.of(Refused)[0].why == "published on /ota/device/inform/a1B2c3/gateway-2"
    assert platform.is_online(device)


async def test_the_notice_has_the_qos_it_was_sent_with(platform: Platform, device: Device, package: Package) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", platform.mqtt_port)
    writer.write(connect_packet(**login(device)))
    assert await reader.readexactly(4) == b"\x20\x02\x00\x00"
    first_bytes = []
    for qos in (0, 1):
        platform.faults.notice_qos = qos
        platform.push(package, device, overwrite=True)
        first, low, high = await reader.readexactly(3)
        await reader.readexactly((low & 0x7F) + (high << 7))
        first_bytes.append(first)
    writer.close()

    assert first_bytes == [0x30, 0x32]


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\xc0\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x10\xff\xff\xff\xff\x7f",
        b"\x10\xff\xff\xff\x7f",
        b"\x10\x02\x00\x09",
        b"\x10\x04\x00\x04MQ",
        b"\xf0\x00",
    ],
    ids=["nothing", "ping first", "HTTP", "endless length", "huge", "short string", "cut", "unknown type"],
)
async def test_bytes_that_are_not_a_connect_end_the_connection(
    platform: Platform, connect: Connect, packet: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", platform.mqtt_port)
    writer.write(packet)
    writer.write_eof()

    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    await connect()


@pytest.mark.parametrize(
    "packet",
    [b"\x34\x06\x00\x01x\x00\x01y", b"\x82\x02\x00\x01", b"\x20\x02\x00\x00", b"\x30\x01x"],
    ids=["QoS 2", "no filter", "CONNACK", "short publish"],
)
async def test_what_the_platform_does_not_speak_ends_the_connection(
    platform: Platform, device: Device, packet: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", platform.mqtt_port)
    writer.write(connect_packet(**login(device)) + packet)

    async with asyncio.timeout(5):
        assert await reader.read() == b"\x20\x02\x00\x00"
    writer.close()


async def test_the_broker_goes_away_and_comes_back(
    platform: Platform, device: Device, package: Package, connect: Connect
) -> None:
    before = await connect()
    await platform.take_broker_away()
    with pytest.raises(aiomqtt.MqttError):
        await before.hear()
    with pytest.raises(aiomqtt.MqttError):
        await connect()
    platform.push(package, device)
    await platform.bring_broker_back()

    topic, _ = await (await connect()).hear()
    assert topic == NOTICE


async def test_connect_is_refused_with_the_code_asked_for(platform: Platform, connect: Connect) -> None:
    platform.faults.connack = Return.UNAVAILABLE
    with pytest.raises(aiomqtt.MqttError):
        await connect()
    platform.faults.connack = None

    await connect()
    assert [event.code for event in platform.events.of(Refused)] == [Return.UNAVAILABLE]


def with_password(device: Device) -> dict[str, Any]:
    claim = parse_login("elsewhere|signmethod=hmacmd5|", login(device)["username"], "")
    return {"password": expected_password(claim, device.secret)}


def connect_packet(identifier: str, username: str, password: str, keepalive: int) -> bytes:
    strings = b"".join(struct.pack("!H", len(text)) + text.encode() for text in (identifier, username, password))
    body = b"\x00\x04MQTT\x04\xc2" + struct.pack("!H", keepalive) + strings
    return b"\x10" + remaining_length(len(body)) + body
