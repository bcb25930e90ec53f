# SPDX-License-Identifier: Apache-2.0
"""The stand-in over Debian's mosquitto, as one of its clients."""

import asyncio
import json
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiomqtt
import pytest

from otad.platform.platform import Platform
from otad.platform.remote import RemoteBroker

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")


@asynccontextmanager
async def mosquitto(port: int) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        str(MOSQUITTO), "-p", str(port), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(5):
            while True:
                with suppress(ConnectionError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.01)
        yield
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def test_an_upgrade_over_mosquitto_that_restarts_in_between(tmp_path: Path, port: int) -> None:
    (tmp_path / "image").write_bytes(b"image")
    notice = "/ota/device/upgrade/pk/dn"
    async with mosquitto(port):
        platform = Platform(tmp_path / "platform", broker=RemoteBroker("127.0.0.1", port))
        running = await platform.__aenter__()
        device = running.add_device("pk", "dn")
        job = running.push(running.add_package(tmp_path / "image", "2"), device)
        async with aiomqtt.Client("127.0.0.1", port) as gateway, asyncio.timeout(5):
            await gateway.subscribe(notice)
            await gateway.publish("/ota/device/inform/pk/dn", '{"id":1,"params":{"version":"1"}}', qos=1)
            message = await anext(aiter(gateway.messages))
            assert isinstance(message.payload, bytes)
            assert json.loads(message.payload)["data"]["version"] == "2"
    try:
        await platform.wait(lambda: not platform.is_online(device))
        async with mosquitto(port), aiomqtt.Client("127.0.0.1", port) as gateway, asyncio.timeout(5):
            await gateway.subscribe("/sys/pk/dn/thing/ota/firmware/get_reply")
            while not platform.is_online(device):
                await gateway.publish("/sys/pk/dn/thing/ota/firmware/get", '{"id":1,"params":{}}')
                await asyncio.sleep(0.05)
            await anext(aiter(gateway.messages))
            await gateway.publish("/ota/device/inform/pk/dn", '{"id":1,"params":{"version":"2"}}', qos=1)
            assert (await platform.ended(job)).state == "SUCCEEDED"
    finally:
        await platform.__aexit__(None, None, None)


async def test_a_broker_that_is_not_there(tmp_path: Path, port: int) -> None:
    with pytest.raises(ConnectionError, match=f"broker 127.0.0.1:{port}"):
        async with Platform(tmp_path / "platform", broker=RemoteBroker("127.0.0.1", port)):
            pass
