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

from otad.platform.jobs import Protocol
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


@pytest.mark.parametrize("version", [aiomqtt.ProtocolVersion.V311, aiomqtt.ProtocolVersion.V5], ids=["3.1.1", "5"])
async def test_blocks_and_the_time_over_mosquitto(tmp_path: Path, port: int, version: aiomqtt.ProtocolVersion) -> None:
    image = bytes(range(256)) * 40
    (tmp_path / "image").write_bytes(image)
    async with mosquitto(port), Platform(tmp_path / "platform", broker=RemoteBroker("127.0.0.1", port)) as platform:
        device = platform.add_device("pk", "dn")
        package = platform.add_package(tmp_path / "image", "2", protocol=Protocol.MQTT)
        job = platform.push(package, device)
        async with aiomqtt.Client("127.0.0.1", port, protocol=version) as gateway, asyncio.timeout(5):
            messages = aiter(gateway.messages)
            for topic in ("ota/device/upgrade/pk/dn", "sys/pk/dn/thing/file/download_reply", "ext/ntp/pk/dn/response"):
                await gateway.subscribe(f"/{topic}")
            await gateway.publish("/ota/device/inform/pk/dn", '{"id":1,"params":{"version":"1"}}', qos=1)
            notice = json.loads(await payload(messages))["data"]
            content = b""
            while len(content) < notice["size"]:
                wanted = {"size": 4096, "offset": len(content)}
                info = {"streamId": notice["streamId"], "fileId": notice["streamFileId"]}
                request = {"id": "1", "params": {"fileInfo": info, "fileBlock": wanted}}
                await gateway.publish("/sys/pk/dn/thing/file/download", json.dumps(request))
                answer = await payload(messages)
                content += answer[2 + int.from_bytes(answer[:2]) : -2]
            await gateway.publish("/ext/ntp/pk/dn/request", '{"deviceSendTime":"7"}')
            told = json.loads(await payload(messages))
            await gateway.publish("/ota/device/inform/pk/dn", '{"id":1,"params":{"version":"2"}}', qos=1)
            ended = await platform.ended(job)

    assert content == image
    assert told["deviceSendTime"] == "7"
    assert ended.state == "SUCCEEDED"
    assert [one.sent for one in platform.blocks(package)] == [4096, 4096, 2048]


async def payload(messages: AsyncIterator[aiomqtt.Message]) -> bytes:
    """That of the next message."""
    found = (await anext(messages)).payload
    assert isinstance(found, bytes)
    return found


async def test_a_broker_that_is_not_there(tmp_path: Path, port: int) -> None:
    with pytest.raises(ConnectionError, match=f"broker 127.0.0.1:{port}"):
        async with Platform(tmp_path / "platform", broker=RemoteBroker("127.0.0.1", port)):
            pass
