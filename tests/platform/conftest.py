# SPDX-License-Identifier: Apache-2.0
"""A running stand-in, a device known to it, and an ordinary MQTT client in the device's role."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from otad.platform.credentials import expected_password, parse_login
from otad.platform.jobs import Package
from otad.platform.platform import Device, Platform

IMAGE = bytes(range(256)) * 400  # 102,400 bytes, none like its neighbour


class Gateway:
    """A device that says exactly what a test tells it to. It never subscribes."""

    def __init__(self, client: aiomqtt.Client, device: Device) -> None:
        self.client = client
        self.names = str(device)
        self._messages = aiter(client.messages)

    async def say(self, topic: str, payload: str, qos: int = 1) -> None:
        await self.client.publish(f"{topic.replace('{device}', self.names)}", payload, qos=qos)

    async def inform(self, version: str) -> None:
        await self.say("/ota/device/inform/{device}", f'{{"id":1,"params":{{"version":"{version}"}}}}')

    async def progress(self, step: int, desc: str = "") -> None:
        params = {"step": str(step), "desc": desc}
        await self.say("/ota/device/progress/{device}", json.dumps({"id": 1, "params": params}))

    async def ask(self) -> None:
        await self.say("/sys/{device}/thing/ota/firmware/get", '{"id":7, "params":{}}')

    async def hear(self) -> tuple[str, bytes]:
        """The next message, topic and payload."""
        async with asyncio.timeout(5):
            message = await anext(self._messages)
        assert isinstance(message.payload, bytes)
        return str(message.topic).replace(self.names, "{device}"), message.payload


def login(device: Device, *, secret: str | None = None, sign_method: str = "hmacsha256") -> dict[str, Any]:
    """aiomqtt's arguments for this device."""
    client_id = f"test|securemode=3,signmethod={sign_method}|"
    username = f"{device.identity.device_name}&{device.identity.product_key}"
    claim = parse_login(client_id, username, "")
    password = expected_password(claim, secret or device.secret)
    return {"identifier": client_id, "username": username, "password": password, "keepalive": 60}


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with Platform(tmp_path / "platform") as running:
        yield running


@pytest.fixture
def device(platform: Platform) -> Device:
    return platform.add_device("a1B2c3", "gateway-1", "s3cr3t")


@pytest.fixture
def package(platform: Platform, tmp_path: Path) -> Package:
    image = tmp_path / "image"
    image.write_bytes(IMAGE)
    return platform.add_package(image, "2-0-0")


Connect = Callable[..., Any]


@pytest.fixture
async def connect(platform: Platform, device: Device) -> AsyncIterator[Connect]:
    """`await connect()` gives a `Gateway`; keywords go to aiomqtt."""
    async with AsyncExitStack() as stack:

        async def connect(**instead: Any) -> Gateway:
            arguments = {**login(device), **instead}
            client = aiomqtt.Client("127.0.0.1", platform.mqtt_port, **arguments)
            return Gateway(await stack.enter_async_context(client), device)

        yield connect
