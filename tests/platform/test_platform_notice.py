# SPDX-License-Identifier: Apache-2.0
"""What a notice and a reply say of packages of every kind, and what the file server then has."""

import base64
import hashlib
import io
import json
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from conftest import IMAGE, Gateway
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from otad.platform.jobs import Package, Protocol
from otad.platform.platform import Device, Platform

Connect = Callable[..., Awaitable[Gateway]]
Json = dict[str, Any]

FILES = {"kernel.bin": b"k" * 3000, "root.img": IMAGE, "empty.bin": b""}


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "image").write_bytes(IMAGE)
    return tmp_path / "image"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    return [tmp_path / name for name in FILES]


@pytest.fixture
def several(platform: Platform, files: list[Path]) -> Package:
    return platform.add_package(files, "3-0-0", sign_method="Md5")


async def noticed(platform: Platform, device: Device, package: Package, connect: Connect) -> Json:
    """The data of the notice."""
    gateway = await connect()
    platform.push(package, device)
    _, payload = await gateway.hear()
    data: Json = json.loads(payload)["data"]
    return data


async def fetched(url: str) -> bytes:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.status == 200
        return await answer.read()


async def test_a_package_of_several_files(
    platform: Platform, device: Device, several: Package, connect: Connect
) -> None:
    data = await noticed(platform, device, several, connect)
    urls = [file.pop("fileUrl") for file in data["files"]]

    assert data == {
        "version": "3-0-0",
        "signMethod": "Md5",
        "files": [
            {"fileSize": len(content), "fileName": name, "fileMd5": md5(content), "fileSign": md5(content)}
            for name, content in FILES.items()
        ],
    }
    assert [await fetched(url) for url in urls] == list(FILES.values())


async def test_the_same_bytes_of_another_file_are_not_sent_twice(platform: Platform, several: Package) -> None:
    for file in several.files:
        await fetched(platform.url(several, file))
    assert platform.bytes_twice(several) == 0
    await fetched(platform.url(several, several.files[0]))

    assert platform.bytes_twice(several) == len(FILES["kernel.bin"])
    assert platform.bytes_sent(several) == sum(map(len, FILES.values())) + len(FILES["kernel.bin"])
    assert {one.file for one in platform.served(several)} == set(FILES)


async def test_a_deleted_package_has_no_file_left(platform: Platform, several: Package) -> None:
    urls = [platform.url(several, file) for file in several.files]
    platform.delete_package(several)

    async with aiohttp.ClientSession() as session:
        for url in urls:
            async with session.get(url) as answer:
                assert answer.status == 404


async def test_tags_a_text_of_ones_own_and_a_difference(
    platform: Platform, device: Device, image: Path, connect: Connect
) -> None:
    udi = '{"notice":"升级"}'
    package = platform.add_package(image, "2-0-0", "MCU", tags={"ring": "one", "site.id": "7"}, udi=udi, diff=True)
    gateway = await connect()
    await gateway.say("/ota/device/inform/{device}", '{"params":{"version":"1-0-0","module":"MCU"}}')
    platform.push(package, device, source_versions=("1-0-0",))
    _, payload = await gateway.hear()
    data = json.loads(payload)["data"]

    assert data["isDiff"] == 1
    assert data["module"] == "MCU"
    assert data["extData"] == {"ring": "one", "site.id": "7", "_package_udi": udi}
    assert "升级".encode() in payload


async def test_a_plain_package_says_nothing_of_what_it_is_not(
    platform: Platform, device: Device, package: Package, connect: Connect
) -> None:
    data = await noticed(platform, device, package, connect)

    assert set(data) == {"size", "sign", "version", "url", "signMethod"}


async def test_over_mqtt_there_is_no_url(platform: Platform, device: Device, image: Path, connect: Connect) -> None:
    package = platform.add_package(image, "2-0-0", protocol=Protocol.MQTT)
    data = await noticed(platform, device, package, connect)

    assert isinstance(data.pop("streamId"), int)
    assert data == {
        "size": len(IMAGE),
        "sign": hashlib.sha256(IMAGE).hexdigest(),
        "dProtocol": "mqtt",
        "version": "2-0-0",
        "signMethod": "SHA256",
        "streamFileId": 1,
    }


async def test_both_ways_at_once(platform: Platform, device: Device, image: Path, connect: Connect) -> None:
    package = platform.add_package(image, "2-0-0", protocol=Protocol.BOTH)
    data = await noticed(platform, device, package, connect)

    assert data["dProtocol"] == "mqtt"
    assert await fetched(data["url"]) == IMAGE


# Secure upgrade.


def is_signed(platform: Platform, content: bytes, digest: str, signature: str) -> bool:
    """As a device sees it: `digest` is the name of a hash function."""
    key = load_pem_public_key(platform.signing_key.encode())
    assert isinstance(key, RSAPublicKey)
    assert (key.key_size, key.public_numbers().e) == (2048, 65537)
    try:
        key.verify(base64.b64decode(signature), hashlib.new(digest, content).digest(), PKCS1v15(), SHA256())
    except InvalidSignature:
        return False
    return True


@pytest.mark.parametrize(("sign_method", "digest"), [("Md5", "md5"), ("SHA256", "sha256")])
async def test_a_signature_is_over_the_raw_digest(
    platform: Platform, device: Device, image: Path, connect: Connect, sign_method: str, digest: str
) -> None:
    package = platform.add_package(image, "2-0-0", sign_method=sign_method, signed=True)
    data = await noticed(platform, device, package, connect)

    assert is_signed(platform, IMAGE, digest, data["digestsign"])
    assert not is_signed(platform, b"another", digest, data["digestsign"])


@pytest.mark.parametrize(("sign_method", "digest"), [("Md5", "md5"), ("SHA256", "sha256")])
async def test_each_of_several_files_has_its_own_signature(
    platform: Platform, device: Device, files: list[Path], connect: Connect, sign_method: str, digest: str
) -> None:
    package = platform.add_package(files, "4-0-0", sign_method=sign_method, signed=True)
    data = await noticed(platform, device, package, connect)

    assert "digestsign" not in data
    assert [file["fileName"] for file in data["files"]] == list(FILES)
    for file, content in zip(data["files"], FILES.values(), strict=True):
        assert is_signed(platform, content, digest, file["digestsign"])
        assert not is_signed(platform, content + b"x", digest, file["digestsign"])


@pytest.mark.parametrize("fault", ["no_signature", "wrong_signature"])
async def test_signatures_of_several_files_that_are_missing_or_wrong(
    platform: Platform, device: Device, files: list[Path], connect: Connect, fault: str
) -> None:
    setattr(platform.faults, fault, True)
    package = platform.add_package(files, "4-0-0", signed=True)
    data = await noticed(platform, device, package, connect)

    assert [file.get("digestsign") is not None for file in data["files"]] == [fault == "wrong_signature"] * 3
    assert not any(
        is_signed(platform, content, "sha256", file.get("digestsign", ""))
        for file, content in zip(data["files"], FILES.values(), strict=True)
    )


async def test_the_archive_of_signed_files_is_signed(
    platform: Platform, device: Device, files: list[Path], connect: Connect
) -> None:
    platform.faults.zip_files = True
    package = platform.add_package(files, "4-0-0", signed=True)
    data = await noticed(platform, device, package, connect)

    assert is_signed(platform, await fetched(data["url"]), "sha256", data["digestsign"])


async def test_the_key_is_kept_for_the_owner_alone(tmp_path: Path) -> None:
    first = Platform(tmp_path / "platform").signing_key
    again = Platform(tmp_path / "platform").signing_key

    assert first == again
    assert first.startswith("-----BEGIN PUBLIC KEY-----\n")
    assert (tmp_path / "platform/digestsign.key").stat().st_mode & 0o777 == 0o600


async def test_a_missing_signature(platform: Platform, device: Device, image: Path, connect: Connect) -> None:
    platform.faults.no_signature = True
    package = platform.add_package(image, "2-0-0", signed=True)

    assert "digestsign" not in await noticed(platform, device, package, connect)


async def test_a_wrong_signature(platform: Platform, device: Device, image: Path, connect: Connect) -> None:
    platform.faults.wrong_signature = True
    package = platform.add_package(image, "2-0-0", signed=True)
    signature = (await noticed(platform, device, package, connect))["digestsign"]

    assert len(base64.b64decode(signature)) == 256
    assert not is_signed(platform, IMAGE, "sha256", signature)


async def test_a_wrong_digest_is_signed_nevertheless(
    platform: Platform, device: Device, image: Path, connect: Connect
) -> None:
    platform.faults.wrong_digest = True
    package = platform.add_package(image, "2-0-0", signed=True)
    data = await noticed(platform, device, package, connect)

    wrong = bytes(byte ^ 0xFF for byte in hashlib.sha256(IMAGE).digest())
    assert data["sign"] == wrong.hex()
    key = load_pem_public_key(platform.signing_key.encode())
    assert isinstance(key, RSAPublicKey)
    key.verify(base64.b64decode(data["digestsign"]), wrong, PKCS1v15(), SHA256())


# Misbehaviour with several files.


async def test_several_files_in_one_archive(
    platform: Platform, device: Device, several: Package, connect: Connect
) -> None:
    platform.faults.zip_files = True
    data = await noticed(platform, device, several, connect)
    content = await fetched(data["url"])

    assert "files" not in data
    assert (data["size"], data["sign"], data["md5"]) == (len(content), md5(content), md5(content))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == FILES


async def test_the_archive_is_the_same_each_time(
    platform: Platform, device: Device, several: Package, connect: Connect
) -> None:
    platform.faults.zip_files = True
    first = await noticed(platform, device, several, connect)
    gateway = await connect()
    _, payload = await gateway.hear()

    assert json.loads(payload)["data"]["sign"] == first["sign"]
    assert json.loads(payload)["data"]["url"] != first["url"]


async def test_wrong_digests_and_sizes_of_several_files(
    platform: Platform, device: Device, several: Package, connect: Connect
) -> None:
    platform.faults.wrong_digest = True
    platform.faults.wrong_size = 5
    data = await noticed(platform, device, several, connect)

    wrong = [bytes(byte ^ 0xFF for byte in bytes.fromhex(md5(content))).hex() for content in FILES.values()]
    assert [file["fileSign"] for file in data["files"]] == [file["fileMd5"] for file in data["files"]] == wrong
    assert [file["fileSize"] for file in data["files"]] == [5, len(IMAGE), 0]
