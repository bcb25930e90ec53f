# SPDX-License-Identifier: Apache-2.0
"""Who we are: what each attempt says, what is learned and kept, and a session that comes to know it."""

import asyncio
import json
import logging
import os
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from otad.cloud.cloud import Names, Nothing, SessionState
from otad.cloud.credentials import connect_fields, registration_fields, token_fields
from otad.cloud.login import FILE, Connect, Introduce, Login, Register
from otad.cloud.session import Pace
from otad.cloud.wire import Topics, Unattributable
from otad.config import DeviceSettings, MqttSettings, Registration
from otad.core.model import DEFAULT_MODULE
from otad.durable import RealDisk
from otad.errors import ConfigurationError
from tests.broker import Certificate, Mosquitto, free_port, make_certificate
from tests.cloud.session_world import (
    DEVICE,
    FAST,
    LIMIT_S,
    NAMES,
    Gateway,
    accept,
    fields,
    never,
    packet,
    publication,
    said_in,
    scripted,
)

PRODUCT = DeviceSettings(product_key="a1", device_name="gw001", product_secret="pr0duct")
TOKEN = replace(PRODUCT, registration=Registration.MQTT_TOKEN)
HTTPS = replace(PRODUCT, registration=Registration.HTTPS, registration_host="auth.example")
REGISTERED = b'{"productKey":"a1","deviceName":"gw001","deviceSecret":"0btained"}'
TOKEN_GIVEN = b'{"productKey":"a1","deviceName":"gw001","clientId":"Kq7","deviceToken":"t0ken"}'
ANSWERED = b'{"code":200,"data":' + REGISTERED + b',"message":"success"}'
IDENTITY = b'{"productKey":"a2","deviceName":"gw002"}'
SECRETS = ("pr0duct", "0btained", "t0ken")


def login(directory: Path, device: DeviceSettings = PRODUCT, **mqtt: Any) -> Login:
    return Login(device, MqttSettings(**mqtt), directory, RealDisk())


def introduced(to: Login) -> Introduce:
    who = to.next()
    assert isinstance(who, Introduce), who
    return who


def registered(directory: Path, device: DeviceSettings = PRODUCT, told: bytes = REGISTERED) -> Login:
    """One that knows who we are."""
    new = login(directory, device)
    who = new.next()
    assert not isinstance(who, Connect)
    new.learn(who, told)
    return new


def connecting(of: Login) -> Connect:
    who = of.next()
    assert isinstance(who, Connect), who
    return who


# What an attempt says.


def test_a_device_secret_is_all_there_is_to_say(tmp_path: Path) -> None:
    who = connecting(login(tmp_path, DEVICE, tls=False))

    assert (who.fields, who.names, who.tls) == (fields(), NAMES, None)


def test_a_secret_in_a_file_is_read_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "device.secret"
    own = login(tmp_path, replace(DEVICE, device_secret="", device_secret_file=file))
    said = []
    for secret in ("first", " second\n"):
        file.write_text(secret)
        said.append(connecting(own).fields)

    assert said == [connect_fields("a1", "gw001", "first"), connect_fields("a1", "gw001", "second")]


@pytest.mark.parametrize(("device", "topic"), [(PRODUCT, "/ext/register"), (TOKEN, "/ext/regnwl")])
def test_whoever_has_the_products_secret_registers(tmp_path: Path, device: DeviceSettings, topic: str) -> None:
    who = introduced(login(tmp_path, device, instance="iot-1"))

    random = who.fields.client_id.partition("random=")[2].partition(",")[0]
    expected = registration_fields(NAMES, "pr0duct", random, preregistered=device is PRODUCT, instance="iot-1")
    assert (who.fields, who.topic) == (expected, topic)
    assert random.isdecimal()


def test_no_two_registrations_are_alike(tmp_path: Path) -> None:
    own = login(tmp_path)

    assert len({introduced(own).fields.client_id for _ in range(10)}) == 10


@pytest.mark.parametrize(
    ("host", "mqtt", "endpoint"),
    [
        ("auth.example", {"region": "cn-shanghai"}, ("auth.example", 443)),
        ("auth.example:8443", {}, ("auth.example", 8443)),
        ("", {"region": "cn-shanghai", "instance": "iot-1"}, ("iot-auth.cn-shanghai.aliyuncs.com", 443)),
        ("", {"instance": "iot-1"}, ("iot-1.auth.iothub.aliyuncs.com", 443)),
    ],
)
def test_https_has_its_own_end_point(
    tmp_path: Path, host: str, mqtt: dict[str, str], endpoint: tuple[str, int]
) -> None:
    who = login(tmp_path, replace(HTTPS, registration_host=host), **mqtt).next()

    assert isinstance(who, Register)
    assert who.endpoint == endpoint


def test_https_trusts_the_systems_roots_too_and_mqtt_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(make_certificate(tmp_path).file))
    over_https, over_mqtt = login(tmp_path, HTTPS).next(), introduced(login(tmp_path))

    assert isinstance(over_https, Register)
    assert over_mqtt.tls is not None
    assert len(over_https.tls.get_ca_certs()) == len(over_mqtt.tls.get_ca_certs()) + 1
    for context in (over_https.tls, over_mqtt.tls):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
        assert context.check_hostname
        assert context.verify_mode is ssl.CERT_REQUIRED


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    file = tmp_path / "product.secret"
    own = login(tmp_path, replace(PRODUCT, product_secret="", product_secret_file=file))

    with pytest.raises(ConfigurationError, match=f"{file}: No such file"):
        own.next()


def test_a_ca_file_that_is_missing_is_named_until_it_is_there(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    own = login(tmp_path, DEVICE, ca_file=tmp_path / "own.pem")

    with pytest.raises(ConfigurationError, match=r"mqtt.ca_file: .*own.pem: no such file"):
        own.next()
    certificate.file.rename(tmp_path / "own.pem")
    assert connecting(own).tls is not None


# What is learned.


@pytest.mark.parametrize(
    ("device", "told", "expected"),
    [
        (PRODUCT, REGISTERED, connect_fields("a1", "gw001", "0btained")),
        (PRODUCT, b'{"deviceSecret":"0btained"}', connect_fields("a1", "gw001", "0btained")),
        (TOKEN, TOKEN_GIVEN, token_fields(NAMES, "Kq7", "t0ken")),
        (HTTPS, ANSWERED, connect_fields("a1", "gw001", "0btained")),
    ],
    ids=["mqtt", "without names", "token", "https"],
)
def test_what_was_told_is_said_from_then_on_and_after_a_restart(
    tmp_path: Path, device: DeviceSettings, told: bytes, expected: Any
) -> None:
    own = registered(tmp_path, device, told)

    for each in (own, login(tmp_path, device)):
        who = connecting(each)
        assert (who.fields, who.names) == (expected, NAMES)


def test_it_is_kept_as_the_docstring_says_and_for_nobody_elses_eyes(tmp_path: Path) -> None:
    registered(tmp_path)

    file = tmp_path / FILE
    assert json.loads(file.read_bytes()) == {
        "schema": 1,
        "obtained_for": "secret of a1/gw001",
        "product_key": "a1",
        "device_name": "gw001",
        "device_secret": "0btained",
    }
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("before", "told", "after"),
    [
        (PRODUCT, REGISTERED, replace(PRODUCT, device_name="gw002")),
        (PRODUCT, REGISTERED, replace(PRODUCT, product_key="a2")),
        (PRODUCT, REGISTERED, TOKEN),
        (TOKEN, TOKEN_GIVEN, PRODUCT),
    ],
    ids=["device", "product", "to a token", "to a secret"],
)
def test_with_another_configuration_it_is_not_ours(
    tmp_path: Path, before: DeviceSettings, told: bytes, after: DeviceSettings
) -> None:
    registered(tmp_path, before, told)

    introduced(login(tmp_path, after))
    connecting(login(tmp_path, before))


def test_a_secret_stays_the_devices_whichever_way_it_came(tmp_path: Path) -> None:
    registered(tmp_path, HTTPS, ANSWERED)

    assert connecting(login(tmp_path)).fields == connect_fields("a1", "gw001", "0btained")


@pytest.mark.parametrize(
    "told",
    [
        b'{"productKey":"a1","deviceName":"gw002","deviceSecret":"0btained"}',
        b'{"productKey":"a2","deviceSecret":"0btained"}',
        b'{"productKey":"a1","deviceName":"gw001"}',
        b'{"deviceSecret":""}',
        b'{"deviceSecret":"0btained\\n"}',
        b"0btained",
        b"",
    ],
)
def test_what_is_not_for_us_or_no_credential_is_not_learned(tmp_path: Path, told: bytes) -> None:
    own = login(tmp_path)

    with pytest.raises(Unattributable) as caught:
        own.learn(introduced(own), told)
    assert "0btained" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    introduced(own)


def test_what_cannot_be_stored_is_not_used(tmp_path: Path) -> None:
    own = login(tmp_path / "missing")

    with pytest.raises(OSError, match="No such file"):
        own.learn(introduced(own), REGISTERED)
    introduced(own)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not JSON"),
        (b"[" * 5000, "not JSON"),
        (b"[]", "not of schema 1"),
        (b'{"schema":2}', "not of schema 1"),
        (b'{"schema":1}', "product_key, device_name: damaged"),
        (b'{"schema":1,"obtained_for":7}', "obtained_for: damaged"),
        (b"@" * 20000, "more than 16384 bytes"),
        ({"device_secret": None}, "device_secret: damaged"),
        ({"device_secret": ""}, "obtained_for: damaged"),
        ({"device_secret": "0b\ntained"}, "device_secret: damaged"),
        ({"product_key": "a1/+"}, "product_key, device_name: damaged"),
        ({"device_name": "#"}, "product_key, device_name: damaged"),
        ({"obtained_for": "token of a1/gw001"}, "obtained_for: damaged"),
    ],
)
def test_a_damaged_file_is_said_once_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | dict[str, Any], says: str
) -> None:
    registered(tmp_path)
    file = tmp_path / FILE
    if isinstance(content, dict):
        content = json.dumps({**json.loads(file.read_bytes()), **content}).encode()
    file.write_bytes(content)
    caplog.clear()
    own = login(tmp_path)
    who = introduced(own)
    introduced(own)

    assert [record.message for record in caplog.records] == [f"{file}: {says}: passed over"]
    own.learn(who, REGISTERED)
    connecting(login(tmp_path))


def test_a_file_that_cannot_be_read_now_may_be_read_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registered(tmp_path)
    file, aside = tmp_path / FILE, tmp_path / "aside"
    file.rename(aside)
    file.mkdir()
    caplog.clear()
    own = login(tmp_path)
    for _ in range(3):
        introduced(own)

    assert [record.message for record in caplog.records] == [f"{file}: is a directory: passed over"]
    file.rmdir()
    aside.rename(file)
    connecting(own)


def test_what_is_refused_is_asked_for_anew_by_turns(tmp_path: Path) -> None:
    own = registered(tmp_path)
    said = []
    for _ in range(5):
        who = own.next()
        said.append(type(who))
        if isinstance(who, Connect):
            own.refused()

    assert said == [Connect, Introduce, Connect, Introduce, Connect]


def test_what_is_told_anew_takes_the_place_of_what_was_refused(tmp_path: Path) -> None:
    own = registered(tmp_path)
    connecting(own)
    own.refused()
    own.learn(introduced(own), REGISTERED.replace(b"0btained", b"an0ther"))

    for each in (own, login(tmp_path)):
        assert connecting(each).fields == connect_fields("a1", "gw001", "an0ther")


def test_no_secret_is_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []
    signed: list[str] = []
    for device, told in ((PRODUCT, REGISTERED), (TOKEN, TOKEN_GIVEN), (HTTPS, ANSWERED)):
        own = login(tmp_path, device)
        (tmp_path / FILE).unlink(missing_ok=True)
        who = own.next()
        assert not isinstance(who, Connect)
        own.learn(who, told)
        shown += [repr(who), repr(own.next()), repr(own._stored)]
        signed.append(who.fields.password if isinstance(who, Introduce) else who.form.decode())

    for secret in (*SECRETS, *signed):
        assert secret not in "".join(shown) + caplog.text


# Behind a certificate.


@pytest.fixture
def own_certificate(tmp_path: Path) -> Certificate:
    return make_certificate(tmp_path, "gateway", name="own")


def certified(certificate: Certificate, **more: Any) -> DeviceSettings:
    return DeviceSettings(certificate_file=certificate.file, key_file=certificate.key, **more)


def test_a_certificate_with_names_needs_no_more(tmp_path: Path, own_certificate: Certificate) -> None:
    who = connecting(login(tmp_path, certified(own_certificate, product_key="a1", device_name="gw001")))

    assert who.fields.client_id == "a1.gw001|securemode=2,signmethod=hmacsha1,timestamp=2524608000000|"
    assert (who.fields.username, who.fields.password, who.names) == ("gw001&a1", "", NAMES)


def test_a_certificate_without_names_is_told_them(tmp_path: Path, own_certificate: Certificate) -> None:
    own = login(tmp_path, certified(own_certificate))
    who = introduced(own)

    command = ["openssl", "x509", "-in", str(own_certificate.file), "-outform", "DER"]
    der = subprocess.run(command, capture_output=True, check=True).stdout
    digest = subprocess.run(["sha256sum"], input=der, capture_output=True, check=True).stdout.split()[0].decode()
    assert who.fields.client_id == f"{digest[:32]}|securemode=2,signmethod=hmacsha1,timestamp=2524608000000|"
    assert (who.fields.username, who.fields.password, who.topic) == ("", "", "/ext/auth/identity/response")
    assert own.learn(who, IDENTITY) == Names("a2", "gw002")
    for each in (own, login(tmp_path, certified(own_certificate))):
        told = connecting(each)
        assert (told.fields.username, told.names) == ("gw002&a2", Names("a2", "gw002"))
    assert json.loads((tmp_path / FILE).read_bytes()) == {
        "schema": 1,
        "obtained_for": f"names of certificate {digest}",
        "product_key": "a2",
        "device_name": "gw002",
    }


def test_the_certificate_is_known_by_its_bytes_whatever_stands_before_it(
    tmp_path: Path, own_certificate: Certificate
) -> None:
    own = login(tmp_path, certified(own_certificate))
    plain = introduced(own).purpose
    own_certificate.file.write_text(f"not this -----BEGIN CERTIFICATE-----\n{own_certificate.file.read_text()}")

    assert introduced(own).purpose == plain


def test_another_certificate_is_told_its_own_names(tmp_path: Path, own_certificate: Certificate) -> None:
    own = login(tmp_path, certified(own_certificate))
    own.learn(introduced(own), IDENTITY)
    other = make_certificate(tmp_path, "gateway", name="other")
    other.file.replace(own_certificate.file)
    other.key.replace(own_certificate.key)

    introduced(own)


def test_a_certificate_that_is_refused_asks_who_it_is(tmp_path: Path, own_certificate: Certificate) -> None:
    own = login(tmp_path, certified(own_certificate))
    own.learn(introduced(own), IDENTITY)
    connecting(own)
    own.refused()

    introduced(own)
    connecting(own)


def _encrypt(path: Path) -> None:
    locked = path.with_suffix(".locked")
    command = ["openssl", "pkcs8", "-topk8", "-in", str(path), "-passout", "pass:x", "-out", str(locked)]
    subprocess.run(command, capture_output=True, check=True)
    locked.replace(path)


def _trust(path: Path) -> None:
    trusted = path.with_suffix(".trusted")
    command = ["openssl", "x509", "-trustout", "-in", str(path), "-out", str(trusted)]
    subprocess.run(command, capture_output=True, check=True)
    trusted.replace(path)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("which", "spoil", "says"),
    [
        ("file", Path.unlink, "device.certificate_file: {file}: no such file or directory"),
        ("key", Path.unlink, "device.key_file: {key}: no such file or directory"),
        ("file", lambda path: path.write_text("x"), "device.certificate_file: {file}: no certificate in PEM"),
        ("key", lambda path: path.write_text("x"), "device.key_file: {key}: no private key in PEM"),
        ("key", _encrypt, "device.key_file: {key}: encrypted: otad needs a key without a passphrase"),
        ("key", _fifo, "device.key_file: {key}: not a regular file"),
        (
            "file",
            lambda path: path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            "device.certificate_file, device.key_file: {file}, {key}: ",
        ),
        ("file", lambda path: path.write_text("-----BEGIN CERTIFICATE-----\n"), "device.certificate_file, device."),
        ("file", _trust, "device.certificate_file: {file}: no certificate in PEM (-----BEGIN CERTIFICATE-----)"),
    ],
    ids=["no certificate", "no key", "no PEM", "no PEM key", "encrypted", "FIFO", "not DER", "cut short", "trusted"],
)
def test_a_certificate_that_cannot_be_used_is_said_until_it_can(
    tmp_path: Path, own_certificate: Certificate, which: str, spoil: Callable[[Path], Any], says: str
) -> None:
    own = login(tmp_path, certified(own_certificate))
    path: Path = getattr(own_certificate, which)
    content = path.read_bytes()
    spoil(path)

    with pytest.raises(ConfigurationError) as caught:
        own.next()
    assert caught.value.problems[0].startswith(says.format(file=own_certificate.file, key=own_certificate.key))
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    introduced(own)


def test_a_key_of_another_certificate_is_said(tmp_path: Path, own_certificate: Certificate) -> None:
    other = make_certificate(tmp_path, "gateway", name="other")
    own = login(tmp_path, certified(Certificate(own_certificate.file, other.key)))

    with pytest.raises(
        ConfigurationError, match=f"device.key_file: {other.key}: not the key of {own_certificate.file}"
    ):
        own.next()


# A session that comes to know who it is.


class Platform:
    """What connects, and what it says; `answer` is what one is sent after CONNACK, or a code to refuse it with."""

    def __init__(self, answer: Callable[[tuple[str, str, str]], int | bytes]) -> None:
        self.said: asyncio.Queue[tuple[str, str, str]] = asyncio.Queue()
        self.times: list[float] = []
        self.ends: asyncio.Queue[int] = asyncio.Queue()
        self._answer = answer

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, body = await packet(reader)
        assert first == 0x10
        said = said_in(body)
        self.times.append(time.monotonic())
        self.said.put_nowait(said)
        answer = self._answer(said)
        if isinstance(answer, int):
            writer.write(bytes([0x20, 2, 0, answer]))
            return
        writer.write(b"\x20\x02\0\0" + answer)
        while (await packet(reader))[0] != 0xE0:
            pass
        self.ends.put_nowait(len(self.times))


async def soon(work: Awaitable[Any]) -> Any:
    async with asyncio.timeout(LIMIT_S):
        return await work


@pytest.mark.parametrize(
    ("device", "topic", "told", "expected"),
    [
        (PRODUCT, b"/ext/register", REGISTERED, connect_fields("a1", "gw001", "0btained", secure=False)),
        (TOKEN, b"/ext/regnwl", TOKEN_GIVEN, token_fields(NAMES, "Kq7", "t0ken")),
    ],
    ids=["mqtt", "token"],
)
async def test_a_session_registers_says_goodbye_and_comes_back_as_itself(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    device: DeviceSettings,
    topic: bytes,
    told: bytes,
    expected: Any,
) -> None:
    caplog.set_level(logging.DEBUG)
    kept: list[bool] = []

    def answer(said: tuple[str, str, str]) -> bytes:
        kept.append((tmp_path / FILE).exists())
        return publication(b"/ext/other", b"?") + publication(topic, told) if "random=" in said[0] else b""

    platform = Platform(answer)
    async with scripted(platform) as port, Gateway(port, device=device, directory=tmp_path) as gateway:
        assert await gateway.online() == 1

        registration = await soon(platform.said.get())
        assert registration[1] == "gw001&a1"
        assert await soon(platform.ends.get()) == 1
        assert await soon(platform.said.get()) == (expected.client_id, expected.username, expected.password)
        assert kept == [False, True]
        assert gateway.session.names == NAMES
    for secret in (*SECRETS, registration[2], expected.password):
        assert secret not in caplog.text
    assert "the platform has told who we are: a1/gw001" in caplog.messages


async def test_a_registration_that_is_refused_is_said_and_waits_long(tmp_path: Path) -> None:
    platform = Platform(lambda _: 5)
    async with (
        scripted(platform) as port,
        Gateway(port, device=PRODUCT, directory=tmp_path, pace=Pace()) as gateway,
    ):
        detail = await gateway.shows(SessionState.REFUSED, "")

    wait, _, reason = detail.removeprefix("next attempt in ").partition(": ")
    assert int(wait.partition(" min")[0]) in range(5, 8)
    assert reason == (
        "not authorised: registration: check device.product_key, device.device_name and the product secret, and in the "
        "console that dynamic registration is switched on for the product, and that it has the device and never "
        "activated it: one that was activated must be reset there first"
    )


async def test_a_registration_without_an_answer_is_given_up(tmp_path: Path) -> None:
    platform = Platform(lambda _: b"")
    pace = replace(FAST, told_s=0.1)
    async with scripted(platform) as port, Gateway(port, device=PRODUCT, directory=tmp_path, pace=pace) as gateway:
        await gateway.shows(SessionState.OFFLINE, "/ext/register: nothing within 100 ms")
        assert await soon(platform.ends.get()) == 1


async def test_a_registration_that_is_cut_off_is_tried_again(tmp_path: Path) -> None:
    came = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        came += 1
        await accept(reader, writer)
        if came == 2:
            writer.write(publication(b"/ext/register", REGISTERED))
        if came > 1:
            await never(reader)

    async with scripted(script) as port, Gateway(port, device=PRODUCT, directory=tmp_path) as gateway:
        await gateway.online()

    assert came == 3


async def test_a_registration_whose_answer_is_damaged_is_said(tmp_path: Path) -> None:
    platform = Platform(lambda _: publication(b"/ext/register", b'{"deviceSecret":7}'))
    async with scripted(platform) as port, Gateway(port, device=PRODUCT, directory=tmp_path) as gateway:
        await gateway.shows(SessionState.OFFLINE, "/ext/register: deviceSecret: wrong: must be ")


async def test_a_secret_that_cannot_be_stored_is_said_and_not_used(tmp_path: Path) -> None:
    platform = Platform(lambda _: publication(b"/ext/register", REGISTERED))
    async with scripted(platform) as port, Gateway(port, device=PRODUCT, directory=tmp_path / "missing") as gateway:
        await gateway.shows(SessionState.OFFLINE, "what the platform told us cannot be stored: no such file")
        for _ in range(3):
            assert "random=" in (await soon(platform.said.get()))[0]


async def test_a_stored_secret_that_is_refused_alternates_with_registering_and_never_storms(tmp_path: Path) -> None:
    registered(tmp_path)
    platform = Platform(lambda _: 4)
    pace = replace(FAST, refused_first_s=0.001, refused_max_s=0.002, window_s=0.3)
    async with scripted(platform) as port, Gateway(port, device=PRODUCT, directory=tmp_path, pace=pace):
        said = [(await soon(platform.said.get()))[0] for _ in range(11)]

    assert ["random=" in client_id for client_id in said] == [False, True] * 5 + [False]
    assert all(later - earlier > 0.28 for earlier, later in zip(platform.times, platform.times[5:], strict=False))


async def test_a_stored_secret_that_is_refused_is_said(tmp_path: Path) -> None:
    registered(tmp_path)
    async with (
        scripted(Platform(lambda _: 4)) as port,
        Gateway(port, device=PRODUCT, directory=tmp_path, pace=Pace()) as gateway,
    ):
        await gateway.shows(
            SessionState.REFUSED,
            "bad user name or password: check that the platform has this device enabled; if it was reset there, the "
            "next attempt registers it anew",
        )


async def test_a_device_that_was_reset_registers_anew(tmp_path: Path) -> None:
    registered(tmp_path)
    fresh = connect_fields("a1", "gw001", "an0ther", secure=False)

    def answer(said: tuple[str, str, str]) -> int | bytes:
        if "random=" in said[0]:
            return publication(b"/ext/register", REGISTERED.replace(b"0btained", b"an0ther"))
        return b"" if said[2] == fresh.password else 4

    async with scripted(Platform(answer)) as port, Gateway(port, device=PRODUCT, directory=tmp_path) as gateway:
        await gateway.online()

    assert json.loads((tmp_path / FILE).read_bytes())["device_secret"] == "an0ther"


def demanding(tmp_path: Path, trusted: Path) -> ssl.SSLContext:
    """A server that wants to see a certificate."""
    own = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.file, own.key)
    context.load_verify_locations(trusted)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


async def test_a_certificate_learns_its_names_and_speaks_under_them(
    tmp_path: Path, own_certificate: Certificate
) -> None:
    topics = Topics.of("a2", "gw002")

    def answer(said: tuple[str, str, str]) -> bytes:
        if not said[1]:
            return publication(b"/ext/auth/identity/response", IDENTITY)
        reply = b'{"code":200}'
        return publication(b"/sys/a1/gw001/thing/ota/firmware/get_reply", reply) + publication(
            topics.get_reply.encode(), reply
        )

    platform = Platform(answer)
    more: Any = {"device": certified(own_certificate), "directory": tmp_path, "tls": True}
    server = demanding(tmp_path, own_certificate.file)
    async with (
        scripted(platform, ssl=server) as port,
        Gateway(port, "localhost", ca_file=tmp_path / "server.crt", **more) as gateway,
    ):
        await gateway.online()
        assert await gateway.next() == Nothing(DEFAULT_MODULE)
        assert gateway.heard.empty()
        assert (await soon(platform.said.get()))[1:] == ("", "")
        assert (await soon(platform.said.get()))[1:] == ("gw002&a2", "")
        assert gateway.session.names == Names("a2", "gw002")


class Demanding(Mosquitto):
    """A broker that wants to see a certificate of this root. Unlike asyncio it says so, by an alert."""

    def __init__(self, directory: Path, root: Path, version: str) -> None:
        super().__init__(directory, certificate=make_certificate(directory))
        self._lines = f"require_certificate true\ncafile {root}\ntls_version {version}\n"

    def _configuration(self) -> Path:
        file = super()._configuration()
        file.write_text(file.read_text() + self._lines)
        return file


@pytest.mark.parametrize("version", ["tlsv1.2", "tlsv1.3"])
async def test_a_certificate_that_the_platform_takes_is_a_session(
    tmp_path: Path, own_certificate: Certificate, version: str
) -> None:
    device = certified(own_certificate, product_key="a1", device_name="gw001")
    async with (
        Demanding(tmp_path, own_certificate.file, version) as broker,
        Gateway(broker.port, "localhost", device=device, tls=True, ca_file=tmp_path / "server.crt") as gateway,
    ):
        await gateway.online()
        await gateway.session.inform(DEFAULT_MODULE, "1")


@pytest.mark.parametrize(
    ("version", "has_one", "says"),
    [
        ("tlsv1.2", True, "alert unknown ca"),
        ("tlsv1.3", True, "alert unknown ca"),
        ("tlsv1.3", False, "alert certificate required"),
    ],
)
async def test_a_certificate_that_the_platform_does_not_take_is_said_and_waits_long(
    tmp_path: Path, own_certificate: Certificate, version: str, has_one: bool, says: str
) -> None:
    trusted = make_certificate(tmp_path, "another", name="another")
    device = certified(own_certificate, product_key="a1", device_name="gw001") if has_one else DEVICE
    more: Any = {"device": device, "tls": True, "ca_file": tmp_path / "server.crt", "pace": Pace()}
    async with (
        Demanding(tmp_path, trusted.file, version) as broker,
        Gateway(broker.port, "localhost", **more) as gateway,
    ):
        detail = await gateway.shows(SessionState.REFUSED, "does not accept this gateway's certificate: TLS: ")

    assert detail.endswith(f"{says}; see device.certificate_file and device.key_file")


async def test_a_certificate_that_is_missing_is_said_and_waits_long(
    tmp_path: Path, own_certificate: Certificate
) -> None:
    own_certificate.key.unlink()
    async with Gateway(free_port(), device=certified(own_certificate), directory=tmp_path, pace=Pace()) as gateway:
        detail = await gateway.shows(SessionState.REFUSED, f"device.key_file: {own_certificate.key}: no such file")

    assert int(detail.removeprefix("next attempt in ").partition(" min")[0]) in range(5, 8)
