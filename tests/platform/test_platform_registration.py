# SPDX-License-Identifier: Apache-2.0
"""How a device without a secret gets in: dynamic registration over MQTT and HTTPS, tokens, and certificates."""

import hmac
import json
import ssl
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import aiomqtt
import pytest
from conftest import Gateway, login
from raw_client import Message, RawClient

from otad.platform import registration
from otad.platform.ca import Authority
from otad.platform.events import Connected, Informed, Refused, Registered
from otad.platform.platform import Device, Platform

PK, DN, SECRET = "a1product", "gateway-1", "pr0duct"


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with Platform(tmp_path / "platform", address="localhost", tls=True) as running:
        running.add_product(PK, SECRET)
        yield running


def trust(platform: Platform, *identity: Path) -> ssl.SSLContext:
    """A client's TLS, with its certificate and key if it has any."""
    context = ssl.create_default_context(cafile=platform.ca_file)
    if identity:
        context.load_cert_chain(*identity)
    return context


def sign(dn: str = DN, secret: str = SECRET, random: str = "567345", digest: str = "sha256") -> str:
    """As a device does it: the names' values in the names' alphabetical order, nothing between them."""
    return hmac.new(secret.encode(), f"deviceName{dn}productKey{PK}random{random}".encode(), digest).hexdigest()


def registering(way: str, **instead: Any) -> dict[str, Any]:
    """The strings of a CONNECT, as the C SDK writes them."""
    client_id = f"{DN}.{PK}|random=567345,authType={way},securemode=2,signmethod=hmacsha256|"
    return {"identifier": client_id, "username": f"{DN}&{PK}", "password": sign().upper(), "keepalive": 60, **instead}


@asynccontextmanager
async def asking(platform: Platform, way: str, **instead: Any) -> AsyncIterator[RawClient]:
    """A connection that registers, let in."""
    async with RawClient(platform.mqtt_port, trust(platform)) as client:
        assert await client.connect(**registering(way, **instead)) == (False, 0)
        yield client


async def registered(platform: Platform, way: str, **instead: Any) -> dict[str, str]:
    """What a registration brings."""
    async with asking(platform, way, **instead) as client:
        message = await client.message()
    assert message == Message(f"/ext/{way}", message.payload)
    found: dict[str, str] = json.loads(message.payload)
    return found


async def refused(platform: Platform, tls: bool = True, **connect: Any) -> tuple[int, str]:
    """The code of a CONNACK, and what the platform thinks of it."""
    async with RawClient(platform.mqtt_port, trust(platform) if tls else None) as client:
        _, code = await client.connect(**connect)
        assert await client.is_closed()
    return code, platform.events.of(Refused)[-1].why


def with_token(given: dict[str, str], **instead: Any) -> dict[str, Any]:
    client_id = f"{given['clientId']}|authType=connwl,securemode=-2,_ss=1,ext=3,_v=sdk-c-4.2.0|"
    return {
        "identifier": client_id,
        "username": f"{DN}&{PK}",
        "password": given["deviceToken"],
        "keepalive": 60,
        **instead,
    }


async def enters(platform: Platform, **connect: Any) -> bool:
    """Whether a device gets in and is heard."""
    before = len(platform.events.of(Informed))
    async with aiomqtt.Client("localhost", platform.mqtt_port, tls_context=trust(platform), **connect) as client:
        await client.publish(f"/ota/device/inform/{PK}/{DN}", '{"params":{"version":"1"}}', qos=1)
    return len(platform.events.of(Informed)) == before + 1


# Registered beforehand.


async def test_a_device_gets_a_secret_and_connects_with_it(platform: Platform) -> None:
    device = platform.add_device(PK, DN)
    given = await registered(platform, "register")
    issued = Device(device.identity, given["deviceSecret"])

    assert given == {"productKey": PK, "deviceName": DN, "deviceSecret": platform.device(device.identity).secret}
    assert given["deviceSecret"] != device.secret
    assert platform.events.of(Connected) == []
    assert [(one.device, one.way) for one in platform.events.of(Registered)] == [(device.identity, "register")]
    assert await enters(platform, **login(issued))


async def test_the_last_secret_is_the_good_one(platform: Platform) -> None:
    device = platform.add_device(PK, DN)
    secrets = [(await registered(platform, "register"))["deviceSecret"] for _ in range(2)]

    assert secrets[0] != secrets[1]
    assert (await refused(platform, **login(Device(device.identity, secrets[0]))))[0] == 4
    assert await enters(platform, **login(Device(device.identity, secrets[1])))


async def test_an_activated_device_registers_no_more_until_it_is_reset(platform: Platform) -> None:
    device = platform.add_device(PK, DN)
    given = await registered(platform, "register")
    await enters(platform, **login(Device(device.identity, given["deviceSecret"])))

    assert await refused(platform, **registering("register")) == (5, "code 6289: device is already activated")
    platform.reset_device(device)
    assert (await registered(platform, "register"))["deviceSecret"] != given["deviceSecret"]


async def test_a_connection_that_registers_is_good_for_nothing_else(platform: Platform) -> None:
    platform.add_device(PK, DN)
    async with asking(platform, "register") as client:
        await client.message()
        client.publish(f"/ota/device/inform/{PK}/{DN}", b'{"params":{"version":"1"}}', packet_id=1)
        assert await client.packet() == (0x40, b"\x00\x01")
        client.subscribe(f"/ota/device/upgrade/{PK}/{DN}", "/ext/register")
        assert await client.packet() == (0x90, b"\x00\x01\x80\x01")

    assert platform.events.of(Informed) == []
    assert platform.events.of(Connected) == []


async def test_it_leaves_the_device_online_that_has_the_name(platform: Platform) -> None:
    device = platform.add_device(PK, DN)
    context = trust(platform)
    async with aiomqtt.Client("localhost", platform.mqtt_port, tls_context=context, **login(device)) as client:
        await refused(platform, **registering("register"))
        await registered(platform, "regnwl")
        platform.send_error(device, 520, "still here")

        assert (await Gateway(client, device).hear())[0] == "/ext/error/{device}"


async def test_an_ordinary_client_hears_it_without_subscribe(platform: Platform) -> None:
    device = platform.add_device(PK, DN)
    context = trust(platform)
    async with aiomqtt.Client("localhost", platform.mqtt_port, tls_context=context, **registering("register")) as one:
        topic, payload = await Gateway(one, device).hear()

    assert (topic, json.loads(payload)["deviceName"]) == ("/ext/register", DN)


@pytest.mark.parametrize("keepalive", [0, 5, 3600])
async def test_keepalive_is_not_checked(platform: Platform, keepalive: int) -> None:
    platform.add_device(PK, DN)
    async with asking(platform, "register", keepalive=keepalive) as client:
        await client.message()
        await client.pong()


@pytest.mark.parametrize("method", ["md5", "sha1", "sha256"])
async def test_each_sign_method_and_the_newer_form_of_the_client_id(platform: Platform, method: str) -> None:
    platform.add_device(PK, DN)
    client_id = f"any|securemode=-2,authType=register,random=Xy9,signmethod=hmac{method},instanceId=iot-1|"

    given = await registered(platform, "register", identifier=client_id, password=sign(random="Xy9", digest=method))
    assert given["deviceName"] == DN


@pytest.mark.parametrize(
    ("instead", "answer"),
    [
        ({"password": sign(secret="another")}, (4, "code 6600: the signature is wrong")),
        ({"password": ""}, (4, "code 6600: the signature is wrong")),
        ({"username": f"ghost&{PK}", "password": sign("ghost")}, (5, "code 6100: device not found")),
        ({"username": f"{DN}&a1other"}, (5, "code 6250: product not found")),
        ({"username": f"{DN}&a1silent"}, (5, "code 6288: dynamic registration is off")),
        ({"identifier": "x|authType=register,signmethod=hmacsha256|"}, (2, "authType=register without random")),
        ({"identifier": "x|authType=registar,random=1|"}, (2, "authType 'registar'")),
    ],
    ids=["wrong secret", "no password", "device", "product", "product without a secret", "random", "authType"],
)
async def test_registration_is_refused(platform: Platform, instead: dict[str, Any], answer: tuple[int, str]) -> None:
    platform.add_device(PK, DN)
    platform.add_device("a1silent", DN)

    assert await refused(platform, **registering("register", **instead)) == answer
    assert platform.events.of(Registered) == []


async def test_the_switch_is_off_and_on_again(platform: Platform) -> None:
    platform.add_device(PK, DN)
    platform.add_product(PK, registration=False)
    assert await refused(platform, **registering("register")) == (5, "code 6288: dynamic registration is off")
    platform.add_product(PK)

    assert (await registered(platform, "register"))["deviceName"] == DN


async def test_without_tls_there_is_no_registration_but_by_order(tmp_path: Path) -> None:
    async with Platform(tmp_path / "plain") as platform:
        platform.add_product(PK, SECRET)
        platform.add_device(PK, DN)
        answer = await refused(platform, tls=False, **registering("register"))
        platform.faults.register_without_tls = True
        async with RawClient(platform.mqtt_port) as client:
            await client.connect(**registering("register"))
            message = await client.message()

    assert answer == (5, "registration without TLS")
    assert message.topic == "/ext/register"


# Not registered beforehand.


async def test_an_unknown_device_gets_a_token_and_connects_with_it(platform: Platform) -> None:
    given = await registered(platform, "regnwl")

    assert set(given) == {"productKey", "deviceName", "clientId", "deviceToken"}
    assert [str(device) for device in platform.devices] == [f"{PK}/{DN}"]
    assert await enters(platform, **with_token(given))
    assert await enters(platform, **with_token(given))


async def test_five_devices_may_have_one_name(platform: Platform) -> None:
    tokens = [await registered(platform, "regnwl") for _ in range(5)]

    assert await refused(platform, **registering("regnwl")) == (5, "code 6289: 5 devices have this name already")
    assert len({one["clientId"] for one in tokens} | {one["deviceToken"] for one in tokens}) == 10
    assert [await enters(platform, **with_token(given)) for given in tokens] == [True] * 5


async def test_a_reset_device_has_no_token_any_more(platform: Platform) -> None:
    given = await registered(platform, "regnwl")
    platform.reset_device(platform.devices[0])

    assert (await refused(platform, **with_token(given)))[0] == 5
    assert await enters(platform, **with_token(await registered(platform, "regnwl")))


@pytest.mark.parametrize(
    ("instead", "code"),
    [
        ({"password": "0" * 64}, 4),
        ({"identifier": "another|authType=connwl,securemode=-2|"}, 5),
        ({"username": f"ghost&{PK}"}, 5),
        ({"keepalive": 29}, 2),
    ],
    ids=["token", "client id", "device", "keep-alive"],
)
async def test_a_token_login_is_refused(platform: Platform, instead: dict[str, Any], code: int) -> None:
    given = await registered(platform, "regnwl")

    assert (await refused(platform, **with_token(given, **instead)))[0] == code


async def test_a_token_is_compared_letter_by_letter(platform: Platform) -> None:
    given = await registered(platform, "regnwl")

    assert (await refused(platform, **with_token(given, password=given["deviceToken"].upper())))[0] == 4


async def test_a_name_that_is_none_is_not_made_known(platform: Platform) -> None:
    name = "gate way"
    code, why = await refused(platform, **registering("regnwl", username=f"{name}&{PK}", password=sign(name)))

    assert code == 5
    assert why.startswith("code 460: ")
    assert platform.devices == []


async def test_a_restart_keeps_products_tokens_and_who_is_activated(tmp_path: Path) -> None:
    async with Platform(tmp_path / "platform", address="localhost", tls=True) as platform:
        platform.add_product(PK, SECRET)
        given = await registered(platform, "regnwl")
        await enters(platform, **with_token(given))

    async with Platform(tmp_path / "platform", address="localhost", tls=True) as again:
        assert await enters(again, **with_token(given))
        assert (await refused(again, **registering("register")))[1] == "code 6289: device is already activated"
    assert (tmp_path / "platform/registration.json").stat().st_mode & 0o777 == 0o600


# Over HTTPS.


def form(**instead: str) -> dict[str, str]:
    return {
        "productKey": PK,
        "deviceName": DN,
        "random": "567345",
        "sign": sign(),
        "signMethod": "hmacsha256",
        **instead,
    }


async def posted(platform: Platform, fields: dict[str, str]) -> dict[str, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(platform.url_of(registration.PATH), data=fields, ssl=trust(platform)) as answer,
    ):
        assert (answer.status, answer.content_type) == (200, "application/json")
        body = await answer.read()
    found: dict[str, Any] = json.loads(body)
    assert body == json.dumps(found, separators=(",", ":")).encode()  # a widespread client reads nothing else
    return found


async def test_a_secret_over_https(platform: Platform) -> None:
    device = platform.add_device(PK, DN)
    answer = await posted(platform, form())
    secret = platform.device(device.identity).secret

    assert answer == {
        "code": 200,
        "data": {"productKey": PK, "deviceName": DN, "deviceSecret": secret},
        "message": "success",
    }
    assert secret != device.secret
    assert platform.url_of(registration.PATH) == f"https://localhost:{platform.http_port}/auth/register/device"
    assert [one.way for one in platform.events.of(Registered)] == ["https"]


@pytest.mark.parametrize(
    ("instead", "code"),
    [
        ({"sign": "00"}, 6600),
        ({"sign": ""}, 460),
        ({"random": ""}, 460),
        ({"signMethod": "hmacsha512"}, 6292),
        ({"deviceName": "ghost", "sign": sign("ghost")}, 6100),
        ({"productKey": "a1other"}, 6250),
        ({"productKey": "a1silent"}, 6288),
    ],
    ids=["signature", "no signature", "random", "signMethod", "device", "product", "switched off"],
)
async def test_registration_over_https_is_refused(platform: Platform, instead: dict[str, str], code: int) -> None:
    platform.add_device(PK, DN)
    platform.add_device("a1silent", DN)

    answer = await posted(platform, form(**instead))
    assert (answer["code"], sorted(answer)) == (code, ["code", "message"])


async def test_an_activated_device_is_refused_over_https(platform: Platform) -> None:
    device = platform.add_device(PK, DN)
    await enters(platform, **login(device))

    assert await posted(platform, form()) == {"code": 6289, "message": "device is already activated"}


@pytest.mark.parametrize(("method", "digest"), [("hmacmd5", "md5"), ("hmacsha1", "sha1"), ("HmacSHA256", "sha256")])
async def test_each_sign_method_over_https(platform: Platform, method: str, digest: str) -> None:
    platform.add_device(PK, DN)

    answer = await posted(platform, form(signMethod=method, sign=sign(digest=digest).upper()))
    assert answer["code"] == 200


# Certificates.


def certificate_of(platform: Platform, device: Device) -> tuple[Path, Path]:
    found = tomllib.loads(platform.configuration(device))["device"]
    return Path(found["certificate_file"]), Path(found["key_file"])


NAMELESS = {"identifier": "x", "username": "", "password": "", "keepalive": 60}


async def test_a_certificate_is_enough_and_tells_the_names(platform: Platform) -> None:
    device = platform.add_device(PK, DN, x509=True)
    async with RawClient(platform.mqtt_port, trust(platform, *certificate_of(platform, device))) as client:
        assert await client.connect(**NAMELESS) == (False, 0)
        message = await client.message()

        assert message.topic == "/ext/auth/identity/response"
        assert message.payload == b'{"productKey":"%b","deviceName":"%b"}' % (PK.encode(), DN.encode())
        assert platform.is_online(device)


async def test_later_the_names_are_said_and_not_told(platform: Platform, tmp_path: Path) -> None:
    device = platform.add_device(PK, DN, x509=True)
    (tmp_path / "image").write_bytes(b"image")
    platform.push(platform.add_package(tmp_path / "image", "2"), device)
    connect = {"username": f"{DN}&{PK}", "password": "", "keepalive": 60}
    client_id = "x|securemode=2,signmethod=hmacsha1,timestamp=2524608000000|"
    async with RawClient(platform.mqtt_port, trust(platform, *certificate_of(platform, device))) as client:
        assert await client.connect(client_id, **connect) == (False, 0)

        assert (await client.message()).topic == f"/ota/device/upgrade/{PK}/{DN}"


async def test_an_ordinary_client_without_name_and_password(platform: Platform) -> None:
    device = platform.add_device(PK, DN, x509=True)
    context = trust(platform, *certificate_of(platform, device))
    async with aiomqtt.Client("localhost", platform.mqtt_port, tls_context=context, keepalive=60) as client:
        topic, _ = await Gateway(client, device).hear()

    assert topic == "/ext/auth/identity/response"


async def test_the_certificate_of_another_device(platform: Platform) -> None:
    platform.add_device(PK, "gateway-2")
    device = platform.add_device(PK, DN, x509=True)
    context = trust(platform, *certificate_of(platform, device))
    async with RawClient(platform.mqtt_port, context) as client:
        _, code = await client.connect("x|securemode=2|", f"gateway-2&{PK}", "")

    assert code == 5
    assert platform.events.of(Refused)[-1].why == f"the certificate is that of {device}"


async def test_the_certificate_of_a_device_that_is_not_known(platform: Platform, tmp_path: Path) -> None:
    files = tmp_path / "ghost.pem", tmp_path / "ghost.key"
    for file, content in zip(files, Authority(tmp_path / "platform").issue_device(PK, "ghost"), strict=True):
        file.write_bytes(content)
    async with RawClient(platform.mqtt_port, trust(platform, *files)) as client:
        _, code = await client.connect(**NAMELESS)

    assert code == 5


async def test_without_a_certificate_a_name_is_needed(platform: Platform) -> None:
    platform.add_device(PK, DN, x509=True)

    assert (await refused(platform, **NAMELESS))[0] == 2
    assert (await refused(platform, **{**NAMELESS, "identifier": "x|a=b|", "username": f"{DN}&{PK}"}))[0] == 4


async def test_a_password_counts_with_a_certificate_too(platform: Platform) -> None:
    device = platform.add_device(PK, DN, x509=True)
    context = trust(platform, *certificate_of(platform, device))
    async with RawClient(platform.mqtt_port, context) as client:
        assert await client.connect(**{**login(device), "password": "wrong"}) == (False, 4)
    async with RawClient(platform.mqtt_port, context) as client:
        assert await client.connect(**login(device)) == (False, 0)
