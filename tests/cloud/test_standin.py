# SPDX-License-Identifier: Apache-2.0
"""The session at the stand-in for the cloud, which was written from the same facts by somebody else."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from otad.clock import BUILD, Clock
from otad.cloud.cloud import BlockError, Names, Offered, OfflineError, SessionState
from otad.cloud.login import FILE
from otad.config import DeviceSettings, Registration
from otad.core.model import DEFAULT_MODULE
from otad.durable import RealDisk
from otad.platform.credentials import Identity
from otad.platform.events import Connected, Refused, Registered
from otad.platform.faults import BlockFault
from otad.platform.jobs import Protocol
from otad.platform.platform import Platform
from tests.cloud.session_world import FAST, LIMIT_S, NAMES, Gateway

DEVICE = Identity("a1", "gw001")
PRODUCT = DeviceSettings(product_key="a1", device_name="gw001", product_secret="pr0duct")
FAST_BLOCKS = replace(FAST, block_s=0.3)


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with Platform(tmp_path / "platform", tls=True) as running:
        running.add_product("a1", "pr0duct")
        yield running


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    own = tmp_path / "gateway"
    own.mkdir()
    return own


def gateway(platform: Platform, directory: Path, device: DeviceSettings, **more: Any) -> Gateway:
    if device.registration is Registration.HTTPS:
        device = replace(device, registration_host=f"localhost:{platform.http_port}")
    return Gateway(
        platform.mqtt_port, "localhost", device=device, directory=directory, tls=True, ca_file=platform.ca_file, **more
    )


@pytest.mark.parametrize("way", Registration)
async def test_each_way_of_registration_gives_a_session_now_and_after_a_restart(
    platform: Platform, directory: Path, way: Registration
) -> None:
    if way is not Registration.MQTT_TOKEN:
        platform.add_device("a1", "gw001")
    for _ in range(2):
        async with gateway(platform, directory, replace(PRODUCT, registration=way)) as running:
            await running.online()
            await running.session.inform(DEFAULT_MODULE, "1-0-0")
            assert running.session.names == NAMES

    expected = {Registration.MQTT: "register", Registration.MQTT_TOKEN: "regnwl", Registration.HTTPS: "https"}[way]
    assert [event.way for event in platform.events.of(Registered)] == [expected]
    assert [event.device for event in platform.events.of(Connected)] == [DEVICE] * 2
    assert platform.events.of(Refused) == []


@pytest.mark.parametrize("way", [Registration.MQTT, Registration.HTTPS])
async def test_what_is_put_right_in_the_console_is_noticed(
    platform: Platform, directory: Path, way: Registration
) -> None:
    platform.add_device("a1", "gw001")
    platform.add_product("a1", registration=False)
    async with gateway(platform, directory, replace(PRODUCT, registration=way)) as running:
        await running.shows(SessionState.REFUSED, "dynamic registration is switched o")
        platform.add_product("a1")

        await running.online()


async def test_an_activated_device_that_lost_its_secret_needs_a_reset(platform: Platform, directory: Path) -> None:
    platform.add_device("a1", "gw001")
    device = replace(PRODUCT, registration=Registration.HTTPS)
    async with gateway(platform, directory, device) as running:
        await running.online()
    (directory / FILE).unlink()
    async with gateway(platform, directory, device) as running:
        await running.shows(SessionState.REFUSED, "code 6289: the device is activated already: reset it in the console")
        platform.reset_device(DEVICE)

        await running.online()


async def test_a_secret_that_is_good_no_more_is_replaced_by_turns(platform: Platform, directory: Path) -> None:
    platform.add_device("a1", "gw001")
    async with gateway(platform, directory, PRODUCT) as running:
        await running.online()
    lost = json.loads((directory / FILE).read_bytes())
    (directory / FILE).write_text(json.dumps({**lost, "device_secret": "0ther"}))
    async with gateway(platform, directory, PRODUCT) as running:
        await running.shows(SessionState.REFUSED, "bad user name or password: check that the platform has this device")
        await running.shows(SessionState.REFUSED, "not authorised: registration: check ")
        await running.shows(SessionState.REFUSED, "bad user name or password: check that the platform has this device")
        platform.reset_device(DEVICE)

        await running.online()
    assert json.loads((directory / FILE).read_bytes())["device_secret"] == platform.device(DEVICE).secret


@pytest.mark.parametrize("names", [{}, {"product_key": "a1", "device_name": "gw001"}], ids=["unnamed", "named"])
async def test_a_certificate_is_a_session(platform: Platform, directory: Path, names: dict[str, str]) -> None:
    platform.add_device("a1", "gw001", x509=True)
    place = platform.ca_file.parent / "devices" if platform.ca_file else Path()
    device = DeviceSettings(certificate_file=place / "a1.gw001.pem", key_file=place / "a1.gw001.key", **names)
    for _ in range(2):
        async with gateway(platform, directory, device) as running:
            await running.online()
            await running.session.inform(DEFAULT_MODULE, "1-0-0")
            assert running.session.names == Names("a1", "gw001")

    assert platform.versions(DEVICE) == {"default": "1-0-0"}
    assert len(platform.events.of(Connected)) == (2 if names else 3)  # the first one was told its names


async def test_a_package_comes_in_blocks(platform: Platform, directory: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(range(256)) * 1500)
    known = platform.add_device("a1", "gw001")
    package = platform.add_package(image, "2-0-0", protocol=Protocol.MQTT)
    device = DeviceSettings(product_key="a1", device_name="gw001", device_secret=known.secret)
    async with gateway(platform, directory, device, pace=FAST_BLOCKS) as running:
        await running.online()
        platform.push(package, known)
        offered = await running.next()
        assert isinstance(offered, Offered)
        stream = offered.notice.stream
        assert stream is not None

        content = bytearray()
        while len(content) < image.stat().st_size:
            block = await running.session.block(stream, len(content), 131072)
            assert block.total == image.stat().st_size
            content += block.content
        assert hashlib.sha256(content).digest() == hashlib.sha256(image.read_bytes()).digest()

        for fault in BlockFault:
            platform.faults.next_blocks = [fault]
            with suppress(BlockError):
                assert (await running.session.block(stream, 1024, 256)).content == content[1024:1280]
        platform.faults.next_blocks = [400]
        with pytest.raises(BlockError, match="code 400") as caught:
            await running.session.block(stream, 1024, 256)
        assert caught.value.refused
        assert (await running.session.block(stream, 1024, 256)).content == content[1024:1280]


async def test_the_time_is_learned(platform: Platform, directory: Path) -> None:
    known = platform.add_device("a1", "gw001")
    platform.faults.ntp_shift_s = 365 * 86400
    device = DeviceSettings(product_key="a1", device_name="gw001", device_secret=known.secret)
    clock = Clock(RealDisk(), directory)
    async with gateway(platform, directory, device, clock=clock) as running:
        await running.online()
        async with asyncio.timeout(LIMIT_S):
            while clock.floor == BUILD:
                await asyncio.sleep(0.005)

    assert abs(clock.floor - (platform.now() + 365 * 86400)) < LIMIT_S


async def test_a_second_device_that_the_platform_speaks_of_is_said_at_once(platform: Platform, directory: Path) -> None:
    known = platform.add_device("a1", "gw001")
    platform.faults.error_on_takeover = True
    device = DeviceSettings(product_key="a1", device_name="gw001", device_secret=known.secret)
    first = gateway(platform, directory, device, pace=replace(FAST, first_s=60, max_s=600))
    async with first:
        await first.online()
        async with gateway(platform, directory, device) as second:
            await second.online()
            await first.shows(
                SessionState.OFFLINE, "another device uses this identity: give each gateway a device_name"
            )
            with pytest.raises(OfflineError, match="another device uses this identity"):
                await first.session.inform(DEFAULT_MODULE, "1")
