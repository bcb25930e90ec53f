# SPDX-License-Identifier: Apache-2.0
"""The platform's own certificate authority: who trusts whom, and what of it is kept."""

import asyncio
import ssl
import stat
import sys
import tomllib
from pathlib import Path

import aiohttp
import aiomqtt
import pytest
from conftest import IMAGE, Gateway, login

from otad.platform.ca import Authority, device_of
from otad.platform.credentials import Identity
from otad.platform.platform import Platform


def client(ca_file: Path) -> ssl.SSLContext:
    """A client that trusts this file alone and is as strict as OpenSSL can be."""
    context = ssl.create_default_context(cafile=ca_file)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


async def handshake(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str = "localhost"
) -> tuple[str | None, dict[str, object] | None]:
    """What a server sees of a client which asks for `name`: the version of TLS, and the client's certificate."""
    seen: asyncio.Future[tuple[str | None, dict[str, object] | None]] = asyncio.get_running_loop().create_future()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)  # with TLS 1.3 a client may be refused after it has finished
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        seen.set_result((tls.version(), writer.get_extra_info("peercert")))
        writer.write(b"x")
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0, ssl=server) as listening:
        port = listening.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=name)
        try:
            writer.write(b"x")
            if await reader.read(1) != b"x":
                raise ConnectionResetError
        finally:
            writer.close()
        return await seen


def shows(context: ssl.SSLContext, directory: Path, certificate: bytes, key: bytes) -> ssl.SSLContext:
    """The client with a certificate of its own."""
    file = directory / "client.pem"
    file.write_bytes(certificate + key)
    context.load_cert_chain(file)
    return context


@pytest.mark.parametrize("name", ["gateway.test", "192.0.2.7", "2001:db8::7"])
async def test_the_server_is_trusted_by_each_of_its_names(tmp_path: Path, name: str) -> None:
    authority = Authority(tmp_path)
    server = authority.server_context(["gateway.test", "192.0.2.7", "2001:db8::7"])

    assert await handshake(server, client(authority.ca_file), name) == ("TLSv1.3", None)


async def test_the_server_is_trusted_by_no_other_name(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = authority.server_context(["gateway.test"])

    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        await handshake(server, client(authority.ca_file), "other.test")


async def test_another_authority_is_not_trusted(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "a"), Authority(tmp_path / "b")

    with pytest.raises(ssl.SSLCertVerificationError):
        await handshake(authority.server_context(["localhost"]), client(other.ca_file))


async def test_tls_1_2_is_spoken_with_those_who_know_no_newer(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    old = client(authority.ca_file)
    old.maximum_version = ssl.TLSVersion.TLSv1_2

    assert (await handshake(authority.server_context(["localhost"]), old))[0] == "TLSv1.2"
    assert authority.server_context(["localhost"]).minimum_version is ssl.TLSVersion.TLSv1_2


async def test_a_device_is_known_by_its_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = authority.server_context(["localhost"], asks_devices=True)
    device = shows(client(authority.ca_file), tmp_path, *authority.issue_device("pk", "gateway-1"))

    _, certificate = await handshake(server, device)
    assert certificate is not None
    assert device_of(certificate) == Identity("pk", "gateway-1")


async def test_a_device_may_come_without_a_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = authority.server_context(["localhost"], asks_devices=True)

    _, certificate = await handshake(server, client(authority.ca_file))
    assert not certificate
    assert device_of({}) is None


async def test_a_device_of_another_authority_is_refused(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    server = authority.server_context(["localhost"], asks_devices=True)
    device = shows(client(authority.ca_file), tmp_path, *other.issue_device("pk", "gateway-1"))

    with pytest.raises(OSError, match=r"(?i)unknown.ca|reset|^$"):
        await handshake(server, device)


async def test_the_authority_is_kept(tmp_path: Path) -> None:
    first = Authority(tmp_path)
    device = shows(client(first.ca_file), tmp_path, *first.issue_device("pk", "gateway-1"))
    again = Authority(tmp_path)

    assert await handshake(again.server_context(["localhost"], asks_devices=True), device)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes["ca.key"] == modes["server.pem"] == 0o600


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda directory: (directory / "ca.key").unlink(), r"ca\.key: missing"),
        (lambda directory: (directory / "ca.pem").write_text("nothing"), "cannot be read"),
        (lambda directory: (directory / "ca.key").write_bytes(b""), "cannot be read"),
        (
            lambda directory: (directory / "ca.key").write_bytes(Authority(directory / "b").issue_device("p", "d")[1]),
            "not the key of ca.pem",
        ),
    ],
)
def test_an_authority_that_is_damaged(tmp_path: Path, spoil: object, why: str) -> None:
    Authority(tmp_path)
    spoil(tmp_path)  # type: ignore[operator]

    with pytest.raises(ValueError, match=f"{why}; remove ca.pem and ca.key to get new ones"):
        Authority(tmp_path)


async def test_a_platform_with_tls_serves_devices_and_packages(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(IMAGE)
    async with Platform(tmp_path / "platform", tls=True) as platform:
        device = platform.add_device("pk", "gateway-1")
        settings = tomllib.loads(platform.configuration(device))
        trust = client(Path(settings["mqtt"]["ca_file"]))
        platform.push(platform.add_package(image, "2-0-0"), device)
        async with aiomqtt.Client(
            "127.0.0.1", settings["mqtt"]["port"], tls_context=trust, **login(device)
        ) as connection:
            await Gateway(connection, device).hear()
        package = platform.packages["1"]
        async with aiohttp.ClientSession() as session, session.get(platform.url(package), ssl=trust) as answer:
            assert await answer.read() == IMAGE

    assert settings["download"] == {
        "allow_http": False,
        "allow_private_hosts": True,
        "ca_file": str(tmp_path / "platform" / "ca.pem"),
    }
    async with Platform(tmp_path / "platform", tls=True) as again:
        assert again.ca_file == tmp_path / "platform" / "ca.pem"
        assert ssl.create_default_context(cafile=again.ca_file).get_ca_certs() == trust.get_ca_certs()


async def test_a_certificate_is_all_that_an_x509_device_needs(tmp_path: Path) -> None:
    async with Platform(tmp_path / "platform", tls=True) as platform:
        device = platform.add_device("pk", "gateway-1", x509=True)

    async with Platform(tmp_path / "platform", tls=True) as platform:
        assert platform.devices == [device]
        settings = tomllib.loads(platform.configuration(device))
        assert "device_secret" not in settings["device"]
        trust = client(Path(settings["mqtt"]["ca_file"]))
        trust.load_cert_chain(settings["device"]["certificate_file"], settings["device"]["key_file"])
        async with aiomqtt.Client(
            "127.0.0.1",
            platform.mqtt_port,
            tls_context=trust,
            identifier="any|securemode=2|",
            username="gateway-1&pk",
            keepalive=60,
        ):
            assert platform.is_online(device)

    assert stat.S_IMODE(Path(settings["device"]["key_file"]).stat().st_mode) == 0o600


async def test_tls_may_come_from_an_authority_elsewhere_or_be_a_context(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "elsewhere")
    async with Platform(tmp_path / "a", tls=authority) as platform:
        assert platform.ca_file == authority.ca_file
        assert platform.add_device("pk", "gateway-1", x509=True).x509

    async with Platform(tmp_path / "b", tls=authority.server_context(["127.0.0.1"])) as platform:
        assert platform.ca_file is None
        settings = tomllib.loads(platform.configuration(platform.add_device("pk", "gateway-1")))
        assert settings["mqtt"]["tls"] is True
        assert "ca_file" not in settings["mqtt"]
        with pytest.raises(ValueError, match="x509: needs a platform with TLS and an authority"):
            platform.add_device("pk", "gateway-2", x509=True)


async def test_without_tls_nothing_of_it_is_loaded_or_made(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from otad.platform.platform import Platform;"
        "Platform(pathlib.Path(sys.argv[1]), tls=None); sys.exit('cryptography' in sys.modules)"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, tmp_path / "platform")

    assert await process.wait() == 0
    assert not list((tmp_path / "platform").glob("*.pem"))
