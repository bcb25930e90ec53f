# SPDX-License-Identifier: Apache-2.0
"""What the broker keeps for a device that is away, and how much it takes of one that is there."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from conftest import Gateway, login
from raw_client import Message, RawClient

from otad.platform.broker import MAX_PAYLOAD, EmbeddedBroker
from otad.platform.events import Asked, Connected, Disconnected, Informed, Refused
from otad.platform.jobs import Package
from otad.platform.platform import Device, Platform

Connect = Callable[..., Awaitable[Gateway]]

NEWS = "/ext/error/a1B2c3/gateway-1"


@pytest.fixture
async def raw(platform: Platform, device: Device) -> AsyncIterator[RawClient]:
    async with RawClient(platform.mqtt_port) as client:
        yield client


async def leave(platform: Platform, device: Device, client: RawClient) -> None:
    client.send(0xE0)
    await platform.wait(lambda: not platform.is_online(device))


ComeBack = Callable[..., Awaitable[tuple[RawClient, bool]]]


@pytest.fixture
async def come_back() -> AsyncIterator[ComeBack]:
    """`await come_back(platform, device, ...)`: a client that is connected, and whether its session goes on."""
    async with AsyncExitStack() as stack:

        async def come_back(platform: Platform, device: Device, **more: Any) -> tuple[RawClient, bool]:
            client = await stack.enter_async_context(RawClient(platform.mqtt_port))
            present, code = await client.connect(**login(device), **more)
            assert code == 0
            return client, present

        yield come_back


# Sessions.


async def test_what_was_not_acknowledged_comes_again(
    platform: Platform, device: Device, package: Package, raw: RawClient, come_back: ComeBack
) -> None:
    assert await raw.connect(**login(device), clean=False) == (False, 0)
    platform.send(device.identity, NEWS, b"one", 1)
    platform.send(device.identity, NEWS, b"two", 1)
    raw.acknowledge(await raw.message())
    two = await raw.message()
    await leave(platform, device, raw)
    back, present = await come_back(platform, device, clean=False)

    assert two == Message(NEWS, b"two", qos=1, packet_id=2)
    assert present
    assert await back.message() == Message(NEWS, b"two", qos=1, packet_id=2, again=True)
    await back.pong()


async def test_what_was_sent_to_a_device_that_was_away_is_there_when_it_comes(
    platform: Platform, device: Device, raw: RawClient, come_back: ComeBack
) -> None:
    await raw.connect(**login(device), clean=False)
    await leave(platform, device, raw)
    platform.send(device.identity, NEWS, b"kept", 1)
    platform.send(device.identity, NEWS, b"lost", 0)
    back, _ = await come_back(platform, device, clean=False)

    assert await back.message() == Message(NEWS, b"kept", qos=1, packet_id=1)
    await back.pong()


async def test_an_ordinary_client_obtains_what_was_kept(platform: Platform, device: Device, connect: Connect) -> None:
    async with aiomqtt.Client("127.0.0.1", platform.mqtt_port, clean_session=False, **login(device)):
        pass
    await platform.wait(lambda: platform.events.of(Disconnected))
    platform.send(device.identity, NEWS, b"kept", 1)
    gateway = await connect(clean_session=False)

    assert await gateway.hear() == ("/ext/error/{device}", b"kept")


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
async def test_a_clean_session_keeps_nothing_and_finds_nothing(
    platform: Platform, device: Device, raw: RawClient, come_back: ComeBack, before: bool, after: bool
) -> None:
    await raw.connect(**login(device), clean=before)
    platform.send(device.identity, NEWS, b"one", 1)
    await raw.message()
    await leave(platform, device, raw)
    platform.send(device.identity, NEWS, b"two", 1)
    back, present = await come_back(platform, device, clean=after)

    assert not present
    await back.pong()


async def test_a_session_goes_over_to_the_connection_that_replaces_its_own(
    platform: Platform, device: Device, raw: RawClient, come_back: ComeBack
) -> None:
    await raw.connect(**login(device), clean=False)
    platform.send(device.identity, NEWS, b"one", 1)
    await raw.message()
    newer, present = await come_back(platform, device, clean=False)

    assert present
    assert (await newer.message()).again
    assert await raw.is_closed()


async def test_mqtt_31_has_no_word_for_a_session(
    platform: Platform, device: Device, raw: RawClient, come_back: ComeBack
) -> None:
    await raw.connect(**login(device), clean=False, level=3)
    await leave(platform, device, raw)
    platform.send(device.identity, NEWS, b"kept", 1)
    back, present = await come_back(platform, device, clean=False, level=3)

    assert not present
    assert (await back.message()).payload == b"kept"


async def test_messages_are_not_kept_for_ever(tmp_path: Path, come_back: ComeBack) -> None:
    broker = EmbeddedBroker(session_s=0)
    async with Platform(tmp_path / "platform", broker=broker) as platform:
        device = platform.add_device("pk", "dn")
        client, _ = await come_back(platform, device, clean=False)
        await leave(platform, device, client)
        platform.send(device.identity, NEWS, b"old", 1)
        back, present = await come_back(platform, device, clean=False)

        assert present
        await back.pong()


async def test_a_session_outlives_the_brokers_absence(
    platform: Platform, device: Device, raw: RawClient, come_back: ComeBack
) -> None:
    await raw.connect(**login(device), clean=False)
    await platform.take_broker_away()
    platform.send(device.identity, NEWS, b"kept", 1)
    await platform.bring_broker_back()
    back, present = await come_back(platform, device, clean=False)

    assert present
    assert (await back.message()).payload == b"kept"


# Limits.


async def test_a_payload_of_256_kib_is_taken_and_a_larger_one_ends_the_connection(
    platform: Platform, device: Device, raw: RawClient
) -> None:
    topic = f"/ota/device/inform/{device}"
    await raw.connect(**login(device))
    raw.publish(topic, b'{"params":{"version":"1"}}'.ljust(MAX_PAYLOAD))
    await raw.pong()
    raw.publish(topic, b'{"params":{"version":"2"}}'.ljust(MAX_PAYLOAD + 1))

    assert await raw.is_closed()
    assert [event.version for event in platform.events.of(Informed)] == ["1"]


@pytest.mark.parametrize("more", ["x" * 128, "a/b/c/d/e/f"], ids=["long", "deep"])
async def test_a_topic_beyond_the_limits_is_foreign(
    platform: Platform, device: Device, raw: RawClient, more: str
) -> None:
    topic = f"/{device}/{more}"
    await raw.connect(**login(device))
    raw.publish(topic, b"{}", packet_id=7)
    raw.subscribe(topic)

    assert await raw.packet() == (0x40, b"\x00\x07")
    assert await raw.packet() == (0x90, b"\x00\x01\x80")
    assert [event.why for event in platform.events.of(Refused)] == [f"published on {topic}"]


async def test_ten_filters_at_once_and_a_hundred_in_all(device: Device, raw: RawClient) -> None:
    await raw.connect(**login(device))
    granted = []
    for start in range(0, 110, 11):
        raw.subscribe(*(f"/{device}/user/{number}" for number in range(start, start + 11)))
        _, answer = await raw.packet()
        granted.append(list(answer[2:]))
    raw.subscribe(f"/{device}/user/0", f"/{device}/user/10")  # one that it has, one that was refused
    _, answer = await raw.packet()

    assert granted == [[1] * 10 + [0x80]] * 10
    assert list(answer[2:]) == [1, 0x80]


async def test_an_unsubscribed_filter_makes_room(device: Device, raw: RawClient) -> None:
    await raw.connect(**login(device))
    for start in range(0, 100, 10):
        raw.subscribe(*(f"/{device}/user/{number}" for number in range(start, start + 10)))
        await raw.packet()
    topic = f"/{device}/user/5".encode()
    raw.send(0xA2, b"\x00\x02" + bytes([0, len(topic)]) + topic)
    assert await raw.packet() == (0xB0, b"\x00\x02")
    raw.subscribe(f"/{device}/user/100")

    assert await raw.packet() == (0x90, b"\x00\x01\x01")


async def test_connecting_too_often(platform: Platform, device: Device) -> None:
    other = platform.add_device("a1B2c3", "gateway-2")
    platform.faults.connects_per_minute = 2
    codes = []
    for one in (device, device, device, other):
        async with RawClient(platform.mqtt_port) as client:
            codes.append((await client.connect(**login(one)))[1])

    assert codes == [0, 0, 3, 0]
    assert [event.why for event in platform.events.of(Refused)] == ["more than 2 CONNECTs a minute"]


async def test_sending_too_fast(platform: Platform, device: Device, raw: RawClient) -> None:
    platform.faults.uplinks_per_s = 2
    await raw.connect(**login(device))
    for version in "123":  # all in one go: the second must not be over before the last
        raw.publish(f"/ota/device/inform/{device}", f'{{"params":{{"version":"{version}"}}}}'.encode())
    raw.publish(f"/sys/{device}/thing/ota/firmware/get", b'{"id":7,"params":{}}')

    message = await raw.message()
    assert message.topic == f"/sys/{device}/thing/ota/firmware/get_reply"
    assert message.payload == b'{"id":7,"code":429,"message":"rate limit, too many requests"}'
    assert [event.version for event in platform.events.of(Informed)] == ["1", "2"]
    assert platform.events.of(Asked) == []


async def test_a_device_that_was_too_fast_is_heard_again(platform: Platform, device: Device, raw: RawClient) -> None:
    platform.faults.uplinks_per_s = 1
    topic, ask = f"/sys/{device}/thing/ota/firmware/get", b'{"id":7,"params":{}}'
    await raw.connect(**login(device))
    raw.publish(topic, ask)
    raw.publish(topic, ask)
    codes = [json.loads((await raw.message()).payload)["code"] for _ in range(2)]
    async with asyncio.timeout(5):
        while codes[-1] == 429:
            raw.publish(topic, ask)
            codes.append(json.loads((await raw.message()).payload)["code"])

    assert codes[:2] == [200, 429]
    assert codes[-1] == 200


# Misbehaviour.


async def test_a_notice_before_suback(platform: Platform, device: Device, package: Package, raw: RawClient) -> None:
    platform.faults.suback_delay_s = 0.1
    await raw.connect(**login(device))
    raw.subscribe(f"/ota/device/upgrade/{device}")
    raw.send(0xC0)
    assert await raw.packet() == (0xD0, b"")  # the broker has the SUBSCRIBE
    platform.push(package, device)

    assert (await raw.message()).topic == f"/ota/device/upgrade/{device}"
    assert await raw.packet() == (0x90, b"\x00\x01\x01")


@pytest.mark.parametrize("keepalive", [0, 5, 65535])
async def test_any_keepalive(platform: Platform, device: Device, raw: RawClient, keepalive: int) -> None:
    platform.faults.any_keepalive = True

    assert await raw.connect(**{**login(device), "keepalive": keepalive}) == (False, 0)
    await raw.pong()


async def test_a_connection_that_is_replaced_may_be_told(platform: Platform, device: Device, connect: Connect) -> None:
    platform.faults.error_on_takeover = True
    older = await connect()
    await connect()
    topic, payload = await older.hear()

    assert topic == "/ext/error/{device}"
    assert payload.endswith(
        b'"code":427,"data":{"productKey":"a1B2c3","deviceName":"gateway-1"},'
        b'"message":"the device has connected again"}'
    )
    with pytest.raises(aiomqtt.MqttError):
        await older.hear()
    assert len(platform.events.of(Connected)) == 2


async def test_an_error_can_be_sent_at_any_time(platform: Platform, device: Device, connect: Connect) -> None:
    gateway = await connect()
    platform.send_error(device, 520, "device no session")

    topic, payload = await gateway.hear()
    assert topic == "/ext/error/{device}"
    assert b'"code":520' in payload
    assert platform.is_online(device)
