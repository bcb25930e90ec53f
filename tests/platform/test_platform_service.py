# SPDX-License-Identifier: Apache-2.0
"""The whole stand-in, talked to as a device does: notices, replies, jobs, events, and what survives a restart."""

import asyncio
import hashlib
import json
import time
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import IMAGE, Gateway

from otad.platform.events import (
    Asked,
    Connected,
    Disconnected,
    Informed,
    JobChanged,
    Misunderstood,
    Notified,
    Progressed,
    TimeAsked,
    as_json,
)
from otad.platform.jobs import Package
from otad.platform.platform import Device, Platform

Connect = Callable[..., Awaitable[Gateway]]
ASK_REPLY = "/sys/{device}/thing/ota/firmware/get_reply"


async def test_an_upgrade_from_notice_to_success(
    platform: Platform, device: Device, package: Package, connect: Connect
) -> None:
    gateway = await connect()
    await gateway.inform("1-0-0")
    job = platform.push(package, device)
    topic, payload = await gateway.hear()
    notice = json.loads(payload)
    await gateway.progress(1)
    await gateway.progress(100)
    await gateway.inform("2-0-0")
    await platform.ended(job)
    platform.kick(device)
    await platform.wait(lambda: not platform.is_online(device))

    assert topic == "/ota/device/upgrade/{device}"
    assert notice["data"]["sign"] == hashlib.sha256(IMAGE).hexdigest()
    assert b" " not in payload
    assert [(type(event), getattr(event, "state", None)) for event in platform.events] == [
        (Connected, None),
        (Informed, None),
        (JobChanged, "QUEUED"),
        (JobChanged, "NOTIFIED"),
        (Notified, None),
        (Progressed, None),
        (JobChanged, "IN_PROGRESS"),
        (Progressed, None),
        (Informed, None),
        (JobChanged, "SUCCEEDED"),
        (Disconnected, None),
    ]


async def test_the_notice_is_there_on_connect(
    platform: Platform, device: Device, package: Package, connect: Connect
) -> None:
    platform.push(package, device)
    gateway = await connect()

    topic, _ = await gateway.hear()
    assert topic == "/ota/device/upgrade/{device}"


async def test_asking_gives_a_fresh_url_each_time(
    platform: Platform, device: Device, package: Package, connect: Connect
) -> None:
    platform.push(package, device, need_push=False)
    gateway = await connect()
    urls = set()
    for _ in range(2):
        await gateway.ask()
        topic, payload = await gateway.hear()
        reply = json.loads(payload)
        urls.add(reply["data"]["url"])
        assert (topic, reply["id"], reply["code"]) == (ASK_REPLY, 7, 200)

    assert len(urls) == 2
    assert [event.offered for event in platform.events.of(Asked)] == ["2-0-0", "2-0-0"]


async def test_asking_without_a_job(connect: Connect) -> None:
    gateway = await connect()
    await gateway.ask()

    assert await gateway.hear() == (ASK_REPLY, b'{"id":7,"code":200,"data":{}}')


async def test_the_legacy_request_is_answered_on_its_own_topic(connect: Connect) -> None:
    gateway = await connect()
    await gateway.say("/ota/device/request/{device}", '{"id":1,"params":{}}')

    topic, payload = await gateway.hear()
    assert (topic, json.loads(payload)["code"]) == ("/ota/device/request/{device}", 500)


async def test_nonsense_is_recorded_and_answered_by_nothing(platform: Platform, connect: Connect) -> None:
    gateway = await connect()
    await gateway.say("/ota/device/progress/{device}", "?")
    await gateway.say("/sys/{device}/thing/event/property/post", "{}")

    assert [event.why for event in platform.events.of(Misunderstood)] == [
        "not JSON: Expecting value: line 1 column 1 (char 0)",
        "not a topic of the OTA service",
    ]


async def test_the_time_is_told_to_who_asks(platform: Platform, connect: Connect) -> None:
    gateway = await connect()
    before = time.time()
    await gateway.say("/ext/ntp/{device}/request", '{"deviceSendTime":"1571724098000"}')
    topic, payload = await gateway.hear()
    after = time.time()
    answer = json.loads(payload)

    assert topic == "/ext/ntp/{device}/response"
    assert sorted(answer) == ["deviceSendTime", "serverRecvTime", "serverSendTime"]
    assert answer["deviceSendTime"] == "1571724098000"
    assert int(before * 1000) <= int(answer["serverRecvTime"]) <= int(answer["serverSendTime"]) <= after * 1000
    assert len(platform.events.of(TimeAsked)) == 1


async def test_a_job_times_out_by_itself(
    platform: Platform, device: Device, package: Package, connect: Connect
) -> None:
    gateway = await connect()
    job = platform.push(package, device, timeout_s=0.1)
    await gateway.progress(1)

    ended = await platform.ended(job, timeout=5)
    assert (ended.state, ended.reason) == ("FAILED", "timeout after 0.1 s")


async def test_a_restart_keeps_devices_packages_and_jobs(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(IMAGE)
    async with Platform(tmp_path / "platform") as platform:
        device = platform.add_device("pk", "dn")
        package = platform.add_package(image, "2-0-0", "MCU", "Md5")
        job = platform.push(package, device, timeout_s=60, source_versions=("1",))
        platform.push(package, device)

    async with Platform(tmp_path / "platform") as again:
        assert again.devices == [device]
        assert dict(again.packages) == {"1": package}
        assert again.job(job) == job
        assert again.job("2").reason == "job 1 is unfinished: 2-0-0 QUEUED"
        assert again.add_package(image, "3-0-0").id == "2"


def test_what_may_not_be_added(platform: Platform, device: Device, tmp_path: Path) -> None:
    (tmp_path / "image").touch()
    with pytest.raises(ValueError, match="exists already"):
        platform.add_device(device.identity.product_key, device.identity.device_name)
    with pytest.raises(ValueError, match="version '1 0'"):
        platform.add_package(tmp_path / "image", "1 0")


async def test_the_configuration_is_toml(platform: Platform, device: Device) -> None:
    assert tomllib.loads(platform.configuration(device)) == {
        "device": {"product_key": "a1B2c3", "device_name": "gateway-1", "device_secret": "s3cr3t"},
        "mqtt": {"host": "127.0.0.1", "port": platform.mqtt_port, "tls": False},
        "download": {"allow_http": True, "allow_private_hosts": True},
    }


async def test_events_can_be_followed_and_written_as_json(platform: Platform, device: Device, connect: Connect) -> None:
    follower = platform.events.follow()
    first = asyncio.ensure_future(anext(follower))
    await connect()

    event = as_json(await first)
    assert json.loads(json.dumps(event)) == {"event": "Connected", "at": event["at"], "device": str(device)}
    await follower.aclose()


async def test_waiting_in_vain_says_what_happened_last(platform: Platform, connect: Connect) -> None:
    await connect()
    with pytest.raises(TimeoutError, match=r"not so within 0.01 s. Last: a1B2c3/gateway-1: connected"):
        await platform.wait(lambda: False, timeout=0.01)


# Misbehaviour.


def spell(**faults: Any) -> Callable[[Platform], None]:
    def apply(platform: Platform) -> None:
        for name, value in faults.items():
            assert hasattr(platform.faults, name)
            setattr(platform.faults, name, value)

    return apply


@pytest.mark.parametrize(
    ("spelling", "path", "value"),
    [
        (spell(sign_method_text="MD5"), ("data", "signMethod"), "MD5"),
        (spell(notice_code=200), ("code",), 200),
        (spell(wrong_size=5), ("data", "size"), 5),
        (spell(wrong_digest=True), ("data", "sign"), hashlib.sha256(IMAGE).digest()),
        (spell(edit_notice=lambda notice: notice["data"].update(version=[])), ("data", "version"), []),
    ],
    ids=["signMethod", "code", "size", "digest", "anything"],
)
async def test_notices_in_another_spelling(
    platform: Platform,
    device: Device,
    package: Package,
    connect: Connect,
    spelling: Callable[[Platform], None],
    path: tuple[str, ...],
    value: object,
) -> None:
    spelling(platform)
    platform.push(package, device)
    _, payload = await (await connect()).hear()

    found = json.loads(payload)
    for key in path:
        found = found[key]
    if path == ("data", "sign"):
        assert isinstance(value, bytes)
        assert len(found) == 64
        assert bytes.fromhex(found) != value
    else:
        assert found == value


async def test_an_id_as_text_and_a_trailing_nul(
    platform: Platform, device: Device, package: Package, connect: Connect
) -> None:
    spell(notice_id_as_text=True, trailing_nul=True)(platform)
    platform.push(package, device)
    _, payload = await (await connect()).hear()

    assert payload.endswith(b"}\0")
    assert json.loads(payload[:-1])["id"].isdecimal()


async def test_a_notice_several_times(platform: Platform, device: Device, package: Package, connect: Connect) -> None:
    platform.faults.pushes = 3
    gateway = await connect()
    platform.push(package, device)

    assert len({await gateway.hear() for _ in range(3)}) == 1


async def test_a_notice_that_is_lost(platform: Platform, device: Device, package: Package, connect: Connect) -> None:
    platform.faults.pushes = 0
    gateway = await connect()
    job = platform.push(package, device)
    await gateway.ask()

    assert (await gateway.hear())[0] == ASK_REPLY
    assert platform.job(job).state == "NOTIFIED"


async def test_a_notice_that_is_late(platform: Platform, device: Device, package: Package, connect: Connect) -> None:
    platform.faults.push_delay_s = 0.1
    gateway = await connect()
    platform.push(package, device)
    await gateway.ask()

    assert [(await gateway.hear())[0] for _ in range(2)] == [ASK_REPLY, "/ota/device/upgrade/{device}"]


async def test_a_notice_again_at_each_inform(
    platform: Platform, device: Device, package: Package, connect: Connect
) -> None:
    platform.faults.push_on_inform = True
    gateway = await connect()
    platform.push(package, device)
    first = await gateway.hear()
    await gateway.inform("1-0-0")
    second = await gateway.hear()
    await gateway.progress(1)
    await gateway.inform("1-0-0")
    await gateway.ask()

    assert first[0] == second[0] == "/ota/device/upgrade/{device}"
    assert (await gateway.hear())[0] == ASK_REPLY


async def test_asking_in_vain(platform: Platform, connect: Connect) -> None:
    gateway = await connect()
    platform.faults.no_reply = True
    await gateway.ask()
    await platform.wait(lambda: platform.events.of(Asked))
    platform.faults.no_reply = False
    await gateway.say("/ota/device/request/{device}", "{}")

    assert (await gateway.hear())[0] == "/ota/device/request/{device}"


async def test_a_time_that_is_ahead(platform: Platform, connect: Connect) -> None:
    platform.faults.ntp_shift_s = 86400
    gateway = await connect()
    await gateway.say("/ext/ntp/{device}/request", '{"deviceSendTime":"1"}')
    _, payload = await gateway.hear()

    ahead_s = int(json.loads(payload)["serverSendTime"]) / 1000 - time.time()
    assert abs(ahead_s - 86400) < 60


async def test_asking_for_the_time_in_vain(platform: Platform, connect: Connect) -> None:
    platform.faults.no_ntp = True
    gateway = await connect()
    await gateway.say("/ext/ntp/{device}/request", '{"deviceSendTime":"1"}')
    await gateway.ask()

    assert (await gateway.hear())[0] == ASK_REPLY
    assert len(platform.events.of(TimeAsked)) == 1
