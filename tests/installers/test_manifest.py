# SPDX-License-Identifier: Apache-2.0
"""What an archive says of itself: read from its beginning, believed only as far as it is sound."""

import gzip
import hashlib
import io
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from otad.errors import Code, UpdateError
from otad.installers.format import HEAD_BYTES, sniff
from otad.installers.image import open_image
from otad.installers.manifest import MANIFEST_BYTES, Manifest, read_manifest
from otad.installers.stream import HashingReader
from tests.installers.in_place import FILES, MIB, PACKERS, Files, member, tar, zipped

SUM = "ab" * 32
FULL = {"version": "2.0.0", "module": "app", "files": {"./run": SUM.upper()}, "later": [1]}


def said(manifest: object, files: Files = FILES) -> dict[str, bytes]:
    content = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    return {"manifest.json": content, **files}


def read(package: bytes, directory: Path) -> Manifest | None:
    path = directory / "package"
    path.write_bytes(package)
    return read_manifest(path)


def refusal(package: bytes, directory: Path) -> str:
    with pytest.raises(UpdateError) as caught:
        read(package, directory)
    assert caught.value.failure.code is Code.FORMAT
    assert caught.value.failure.detail.isprintable()
    return caught.value.failure.detail


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS.keys())
def test_an_archive_says_its_version_module_and_files(pack: Callable[[Files], bytes], tmp_path: Path) -> None:
    assert read(pack(said(FULL)), tmp_path) == Manifest("2.0.0", "app", {"run": SUM})


def test_the_version_alone_is_enough(tmp_path: Path) -> None:
    assert read(tar(said({"version": "2-0-0"})), tmp_path) == Manifest("2-0-0", None, {})


def test_directories_may_come_before_it(tmp_path: Path) -> None:
    package = tar({}, member("./", b"5"), member("./bin", b"5"))[:1024] + tar({"./manifest.json": b'{"version": "1"}'})

    assert read(package, tmp_path) == Manifest("1", None, {})


@pytest.mark.parametrize(
    "package",
    [
        tar(FILES),
        tar({**FILES, "manifest.json": b'{"version": "1"}'}),
        tar({"sub/manifest.json": b'{"version": "1"}'}),
        tar({"Manifest.json": b'{"version": "1"}'}),
        tar(said({"name": "web app", "icons": []})),
        tar(said({})),
        zipped({**FILES, "manifest.json": b'{"version": "1"}'}),
        zipped({}),
        gzip.compress(b"an image"),
        b'{"version": "1"}',
        b"",
    ],
    ids=range(11),
)
def test_what_has_none_has_none(package: bytes, tmp_path: Path) -> None:
    assert read(package, tmp_path) is None


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (b"{", "not JSON: "),
        (b"\xff\xfe", "not JSON: "),
        (b"[" * 100_000, "not JSON: "),
        (b'{"version": "1", "version": "2"}', "not JSON: a key stands twice"),
        (b"[]", "not a JSON object"),
        ({"module": "app"}, "version: missing: must be 1 to 64"),
        ({"files": {}}, "version: missing: must be 1 to 64"),
        ({"version": 2}, "version: '2': must be"),
        ({"version": "2 0"}, "version: '2 0': must be"),
        ({"version": "\x1b[2J"}, "version: '\\x1b[2J': must be"),
        ({"version": ""}, "version: '': must be"),
        ({"version": "1", "module": ""}, "module: '': must be"),
        ({"version": "1", "module": ["a"]}, "module: \"['a']\": must be"),
        ({"version": "1", "files": []}, "files: must be an object"),
        ({"version": "1", "files": {"a\n": "ab"}}, "files: 'a\\n': must be a SHA-256"),
        ({"version": "1", "files": {"a": None}}, "files: 'a': must be a SHA-256"),
        (b" " * (MANIFEST_BYTES + 1), "more than 4194304"),
    ],
    ids=range(17),
)
def test_a_malformed_one_is_refused_in_clear_words(manifest: object, reason: str, tmp_path: Path) -> None:
    found = refusal(tar(said(manifest)), tmp_path)

    assert found.startswith("manifest.json: ")
    assert reason in found


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    package = bytearray(gzip.compress(tar(said(FULL))))
    package[20:40] = bytes(20)

    assert refusal(bytes(package), tmp_path)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_manifest(tmp_path / "none")


def test_only_the_beginning_is_read(tmp_path: Path) -> None:
    """Whatever comes behind: it is not looked at, damaged or not, and it costs no time."""
    package = tar(said(FULL)) + os.urandom(MIB)
    path = tmp_path / "package"
    path.write_bytes(lzma.compress(package)[:-MIB] + os.urandom(MIB))
    os.truncate(path, 1 << 40)

    assert read_manifest(path) == Manifest("2.0.0", "app", {"run": SUM})


# An image with a manifest before it.


def image(package: bytes) -> bytes:
    reader = HashingReader(io.BytesIO(package), "sha256")
    return b"".join(open_image(reader, sniff(package[:HEAD_BYTES]), len(package)).chunks())


def image_refusal(package: bytes) -> str:
    with pytest.raises(UpdateError) as caught:
        image(package)
    assert caught.value.failure.code is Code.FORMAT
    return caught.value.failure.detail


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS.keys())
@pytest.mark.parametrize("compressed", [False, True], ids=["image", "compressed image"])
def test_an_image_behind_a_manifest_is_the_image(pack: Callable[[Files], bytes], compressed: bool) -> None:
    content = b"image" * 1000
    stored = gzip.compress(content) if compressed else content
    manifest = {"version": "2-0-0", "files": {"rootfs.img": hashlib.sha256(stored).hexdigest()}}

    assert image(pack(said(manifest, {"rootfs.img": stored}))) == content
    assert image(pack(said({"version": "2-0-0"}, {"rootfs.img": stored}))) == content


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS.keys())
def test_an_image_that_is_not_what_the_manifest_says_is_refused(pack: Callable[[Files], bytes]) -> None:
    files = {"rootfs.img": b"image"}
    other = {"version": "2", "files": {"rootfs.img": SUM}}
    missing = {"version": "2", "files": {"kernel.img": SUM}}

    wrong = hashlib.sha256(b"image").hexdigest()
    assert (
        image_refusal(pack(said(other, files))) == f"manifest.json: files: 'rootfs.img': SHA-256 is {wrong}, not {SUM}"
    )
    assert image_refusal(pack(said(missing, files))) == "manifest.json: files: 'kernel.img': not in the archive"


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS.keys())
def test_a_manifest_does_not_make_room_for_more(pack: Callable[[Files], bytes]) -> None:
    two = {"rootfs.img": b"image", "second": b"image"}

    assert "holds more than one file: 'rootfs.img' and 'second'" in image_refusal(pack(said({"version": "2"}, two)))
    assert "holds no file" in image_refusal(pack(said({"version": "2"}, {})))
    assert image_refusal(pack(said(b"{", two))).startswith(("manifest.json: not JSON", "zip: holds more"))
    assert "'manifest.json' and 'rootfs.img'" in image_refusal(pack(said({}, {"rootfs.img": b"image"})))
