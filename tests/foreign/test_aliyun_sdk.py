# SPDX-License-Identifier: Apache-2.0
"""Aliyun's own Python SDK (1.2.13, from PyPI, unmodified) as a device of the stand-in.

Nobody here wrote that client, and it was made for the real platform: what it understands, and what it is understood
to say, measures how faithful the stand-in is. Each test asserts both ends: what the SDK's user saw, and what the
platform recorded.

What is odd here is the SDK: it never subscribes to a topic of OTA, and `ota_report_version` and
`query_ota_firmware` return OTA_PUB_FAILED although they published, so what they return is not looked at.
"""

import ast
import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from otad.platform.events import (
    Asked,
    Connected,
    Disconnected,
    Informed,
    Misunderstood,
    Notified,
    Refused,
    Registered,
    Served,
)
from otad.platform.jobs import JobState, Package
from otad.platform.mqtt import Return
from otad.platform.platform import Device, Platform
from tests.foreign.sdk import PATIENCE_S, Sdk

CONTENT = bytes(range(256)) * 1000
MD5, SHA256 = hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest()
NAMES = ("a1simpk0001", "gw001", "s3cr3t")  # those of the recorded signatures


@dataclass
class World:
    """A stand-in, a device known to it, and the SDK in that device's role."""

    platform: Platform
    device: Device
    options: dict[str, Any]
    directory: Path
    start: Callable[..., Awaitable[Sdk]]

    def package(self, version: str, *, module: str = "default", sign_method: str = "SHA256", **more: Any) -> Package:
        path = self.directory / "package"
        path.write_bytes(CONTENT)
        return self.platform.add_package(path, version, module, sign_method, **more)

    async def sdk(self, **more: Any) -> Sdk:
        """The SDK, connecting."""
        sdk = await self.start(**self.options | more)
        await sdk.do("connect")
        return sdk

    async def online(self) -> Sdk:
        sdk = await self.sdk()
        await sdk.sees("connected")
        return sdk

    async def download(self, sdk: Sdk, offer: dict[str, Any]) -> tuple[str, bytes]:
        """What the SDK says of the download, and what it has stored."""
        file = self.directory / "received"
        file.write_bytes(b"")
        wanted = {name: offer[name] for name in ("url", "sign_method", "sign")}
        return await sdk.do("download", path=str(file), **wanted), file.read_bytes()

    async def until(self, condition: Callable[[], object]) -> None:
        await self.platform.wait(condition, PATIENCE_S)

    @property
    def informed(self) -> list[tuple[str, str]]:
        return [(event.module, event.version) for event in self.platform.events.of(Informed)]

    @property
    def asked(self) -> list[tuple[str, str | None]]:
        return [(event.module, event.offered) for event in self.platform.events.of(Asked)]

    @property
    def odd(self) -> list[str]:
        """What the platform would not take."""
        return [str(event) for event in self.platform.events if isinstance(event, Misunderstood | Refused)]


@pytest.fixture(params=["plain", "tls"])
async def any_world(
    request: pytest.FixtureRequest, tmp_path: Path, start_sdk: Callable[..., Awaitable[Sdk]]
) -> AsyncIterator[World]:
    async with Platform(tmp_path / "platform", tls=request.param == "tls") as platform:
        device = platform.add_device(*NAMES)
        pk, dn, secret = NAMES
        mqtt: dict[str, Any] = {"port": platform.mqtt_port, "endpoint": platform.address, "secure": ""}
        if platform.ca_file is not None:
            mqtt |= {"secure": "TLS", "cadata": platform.ca_file.read_text()}  # in the place of the SDK's own roots
        yield World(platform, device, {"pk": pk, "dn": dn, "secret": secret, "mqtt": mqtt}, tmp_path, start_sdk)


@pytest.fixture
def world(any_world: World) -> World:
    return any_world


plain = pytest.mark.parametrize("any_world", ["plain"], indirect=True)
"""For what does not differ over TLS."""
tls = pytest.mark.parametrize("any_world", ["tls"], indirect=True)


async def test_a_whole_upgrade(world: World) -> None:
    package = world.package("2.0.0")
    sdk = await world.online()
    await sdk.do("inform", module=None, version="1.0.0")
    await world.until(lambda: world.informed)
    job = world.platform.push(package, world.device)
    offer = await sdk.sees("offer")
    downloaded = await world.download(sdk, offer)
    await sdk.do("inform", module=None, version="2.0.0")
    job = await world.platform.ended(job)
    await sdk.do("disconnect")
    await world.until(lambda: world.platform.events.of(Disconnected))

    assert sdk.all_of("connected") == [{"saw": "connected", "session_present": 0, "rc": 0}]
    package_as_seen = {"version": "2.0.0", "size": len(CONTENT), "module": "default", "extra": ""}
    verified_by = {"url": offer["url"], "sign_method": "SHA256", "sign": SHA256}
    assert sdk.all_of("offer") == [{"saw": "offer", "kind": "pushed", **package_as_seen, **verified_by}]
    assert downloaded == ("SUCCESS", CONTENT)
    assert world.informed == [("default", "1.0.0"), ("default", "2.0.0")]
    assert [(one.range, one.status, one.whole) for one in world.platform.served(package)] == [(None, 200, True)]
    assert job.state == JobState.SUCCEEDED
    assert [event.why for event in world.platform.events.of(Disconnected)] == ["said goodbye"]
    assert world.odd == []


@plain
async def test_a_package_with_an_md5_is_verified(world: World) -> None:
    sdk = await world.online()
    world.platform.push(world.package("2.0.0", sign_method="Md5"), world.device)
    offer = await sdk.sees("offer")
    downloaded = await world.download(sdk, offer)

    assert (offer["sign_method"], offer["sign"]) == ("Md5", MD5)
    assert downloaded == ("SUCCESS", CONTENT)


@plain
@pytest.mark.parametrize("sign_method", ["Md5", "SHA256"])
async def test_a_wrong_digest_is_found(world: World, sign_method: str) -> None:
    world.platform.faults.wrong_digest = True
    sdk = await world.online()
    world.platform.push(world.package("2.0.0", sign_method=sign_method), world.device)
    downloaded = await world.download(sdk, await sdk.sees("offer"))

    assert downloaded == ("OTA_DIGEST_MISMATCH", CONTENT)


@plain
async def test_a_package_of_a_module(world: World) -> None:
    package = world.package("7", module="MCU")
    sdk = await world.online()
    await sdk.do("inform", module=None, version="1.0.0")
    await sdk.do("inform", module="MCU", version="6")
    await world.until(lambda: len(world.informed) == 2)
    job = world.platform.push(package, world.device)
    offer = await sdk.sees("offer", kind="pushed")
    await sdk.do("query", module="MCU")
    answer = await sdk.sees("offer", kind="answered")
    await sdk.do("query", module=None)
    await sdk.sees("log", text="invalid download params")
    downloaded = await world.download(sdk, answer)
    await sdk.do("inform", module="MCU", version="7")
    job = await world.platform.ended(job)

    assert (offer["module"], offer["version"]) == ("MCU", "7")
    assert answer == {**offer, "kind": "answered", "url": answer["url"]}
    assert world.asked == [("MCU", "7"), ("default", None)]
    assert downloaded == ("SUCCESS", CONTENT)
    assert world.informed == [("default", "1.0.0"), ("MCU", "6"), ("MCU", "7")]
    assert job.state == JobState.SUCCEEDED
    assert world.odd == []


@plain
async def test_what_an_operator_adds_is_passed_on_and_a_signature_passed_over(world: World) -> None:
    sdk = await world.online()
    tags, udi = {"site": "杭州"}, '{"note":"tonight"}'
    world.platform.push(world.package("2.0.0", tags=tags, udi=udi, signed=True), world.device)
    offer = await sdk.sees("offer")
    downloaded = await world.download(sdk, offer)

    assert ast.literal_eval(offer["extra"]) == {"site": "杭州", "_package_udi": udi}
    assert downloaded == ("SUCCESS", CONTENT)


async def test_what_is_not_pushed_is_had_by_asking(world: World) -> None:
    sdk = await world.online()
    job = world.platform.push(world.package("2.0.0"), world.device, need_push=False)
    await sdk.do("query", module=None)
    offer = await sdk.sees("offer")
    downloaded = await world.download(sdk, offer)

    assert [one["kind"] for one in sdk.all_of("offer")] == ["answered"]
    assert downloaded == ("SUCCESS", CONTENT)
    assert world.asked == [("default", "2.0.0")]
    assert world.platform.events.of(Notified) == []
    assert world.platform.job(job).state == JobState.NOTIFIED


@plain
async def test_asking_when_there_is_nothing(world: World) -> None:
    sdk = await world.online()
    await sdk.do("query", module=None)
    await sdk.sees("log", text="invalid download params")  # its way to say that the answer has no package

    assert sdk.all_of("offer") == []
    assert world.asked == [("default", None)]


@plain
async def test_a_url_that_is_not_served_any_more_is_asked_for_again(world: World) -> None:
    sdk = await world.online()
    package = world.package("2.0.0")
    world.platform.push(package, world.device)
    offer = await sdk.sees("offer")
    world.platform.faults.next_statuses = [403]
    refused = await world.download(sdk, offer)
    await sdk.do("query", module=None)
    downloaded = await world.download(sdk, await sdk.sees("offer", kind="answered"))

    assert refused == ("OTA_INVALID_URL", b"")
    assert downloaded == ("SUCCESS", CONTENT)
    assert [one.status for one in world.platform.events.of(Served)] == [403, 200]


@plain
async def test_it_comes_back_when_dropped_and_is_notified_again(world: World) -> None:
    sdk = await world.online()
    world.platform.push(world.package("2.0.0"), world.device)
    await sdk.sees("offer")
    before = len(sdk.seen)
    world.platform.kick(world.device)
    await sdk.sees("disconnected")
    again = await sdk.sees("offer", after=before)

    assert again["kind"] == "pushed"
    assert len(sdk.all_of("connected")) == len(world.platform.events.of(Connected)) == 2


@plain
async def test_a_wrong_secret_is_refused(world: World) -> None:
    sdk = await world.sdk(secret="another")
    await world.until(lambda: len(world.platform.events.of(Refused)) == 2)

    assert [event.code for event in world.platform.events.of(Refused)] == [Return.PASSWORD] * 2
    assert sdk.all_of("connected") == []


def _registering(world: World, auth_type: str, product_secret: str | None = None) -> dict[str, Any]:
    """What makes the SDK register by its product's secret, which has its registration switched on."""
    product = world.platform.add_product(world.device.identity.product_key)
    return {"secret": "", "more": {"product_secret": product_secret or product.secret, "auth_type": auth_type}}


@tls
async def test_a_device_without_a_secret_registers(world: World) -> None:
    sdk = await world.sdk(**_registering(world, "register"))
    given = await sdk.sees("secret")
    online = await world.sdk(secret=given["secret"])
    await online.sees("connected")

    assert given["rc"] == 0
    assert given["secret"] == world.platform.device(world.device.identity).secret != world.device.secret
    assert [event.way for event in world.platform.events.of(Registered)] == ["register"]
    assert [event.device for event in world.platform.events.of(Connected)] == [world.device.identity]
    assert world.odd == []


@tls
async def test_a_device_that_nobody_knows_registers(world: World) -> None:
    new = {"dn": "gw002", **_registering(world, "regnwl")}
    sdk = await world.sdk(**new)
    given = await sdk.sees("token")
    login = {name: given[name] for name in ("client_id", "username", "password")}
    online = await world.sdk(dn="gw002", secret="", more=login)
    await online.sees("connected")
    await online.do("inform", module=None, version="1.0.0")
    await world.until(lambda: world.informed)

    assert given["rc"] == 0
    assert given["username"] == "gw002&a1simpk0001"
    assert [event.way for event in world.platform.events.of(Registered)] == ["regnwl"]
    assert [event.device.device_name for event in world.platform.events.of(Informed)] == ["gw002"]
    assert world.odd == []


@pytest.mark.parametrize("auth_type", ["register", "regnwl"])
async def test_a_registration_is_refused(world: World, auth_type: str) -> None:
    """Over TLS for a wrong signature, over TCP whatever it is."""
    is_plain = world.platform.ca_file is None
    sdk = await world.sdk(**_registering(world, auth_type, None if is_plain else "another"))
    given = await sdk.sees("secret" if auth_type == "register" else "token")

    assert given["rc"] != 0
    assert world.platform.events.of(Registered) == []
    assert len(world.odd) == 1


@plain
async def test_its_signature_is_the_recorded_one(world: World) -> None:
    """What this SDK was seen to send at that second, and that the stand-in lets it in."""
    sent = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent.set_result(await reader.read(1024))
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server, asyncio.timeout(PATIENCE_S):
        mqtt = {**world.options["mqtt"], "port": server.sockets[0].getsockname()[1]}
        recorded = await world.sdk(clock=1795435907, mqtt=mqtt)
        connect = await sent
        await recorded.stop()
    let_in = await world.sdk(clock=1795435907)
    await let_in.sees("connected")

    assert b"a1simpk0001&gw001|" in connect
    assert connect.endswith(b"\x00\x28c65a7a431d08a9829c4caee18aed067c1fb26915")


@plain
async def test_the_signature_recorded_of_the_c_sdk_is_let_in(world: World) -> None:
    """As the C SDK 4.2 sends it: the password in upper case, keep-alive 1200 s."""
    client_id = (
        "a1simpk0001.gw001|timestamp=2524608000000,_ss=1,_v=sdk-c-4.2.0,"
        "securemode=3,signmethod=hmacsha256,ext=3,_conn=tcp_1|"
    )
    password = "EDE4A054B689F3FD4DB174716259EDFBDCF470FD37D10C721382A896D9DCD3A7"
    texts = (client_id, "gw001&a1simpk0001", password)
    body = b"\0\4MQTT\4\xc2" + (1200).to_bytes(2) + b"".join(len(text).to_bytes(2) + text.encode() for text in texts)
    assert 128 <= len(body) < 1 << 14
    reader, writer = await asyncio.open_connection("127.0.0.1", world.platform.mqtt_port)
    writer.write(bytes([0x10, len(body) & 0x7F | 0x80, len(body) >> 7]) + body)
    connack = await reader.readexactly(4)
    writer.close()

    assert connack == b"\x20\x02\x00\x00"
