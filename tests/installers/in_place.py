# SPDX-License-Identifier: Apache-2.0
"""What the tests of modules that are switched in place share: packages, deployments, a staging directory."""

import gzip
import hashlib
import io
import lzma
import tarfile
import zipfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import pytest
import zstandard

from otad.core.model import (
    NO_SLOT,
    Artifact,
    Deployment,
    DeploymentId,
    Digest,
    DigestMethod,
    Identity,
    ModuleName,
    Notice,
    Phase,
    PlaceKind,
    Tag,
)
from otad.durable import Disk, Place, pages
from otad.errors import Failure, UpdateError
from otad.installers.staging import Staging
from otad.telemetry import Progress

MIB = 1 << 20
APP = ModuleName("app")
FILES = {"run": b"#!/bin/sh\n", "data/one": b"1" * 5000, "data/deep/two": b"", "data/deep/three": bytes(300_000)}

Files = Mapping[str, bytes]


def sha256(content: bytes) -> Digest:
    return Digest(DigestMethod.SHA256, hashlib.sha256(content).hexdigest())


def tar(files: Files, *members: tarfile.TarInfo, mode: int = 0o644, format_: int = tarfile.PAX_FORMAT) -> bytes:
    """The files, then members without content."""
    package = io.BytesIO()
    with tarfile.open(fileobj=package, mode="w", format=format_) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            archive.addfile(member, io.BytesIO(content))
        for member in members:
            archive.addfile(member)
    return package.getvalue()


def member(name: str, type_: bytes, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = type_, target
    return made


def zipped(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return package.getvalue()


PACKERS: dict[str, Callable[[Files], bytes]] = {
    "tar": tar,
    "tar.gz": lambda files: gzip.compress(tar(files), mtime=0),
    "tar.xz": lambda files: lzma.compress(tar(files)),
    "tar.zst": lambda files: zstandard.ZstdCompressor().compress(tar(files)),
    "zip": zipped,
    "zip, stored": lambda files: zipped(files, zipfile.ZIP_STORED),
}


def deployment(
    package: bytes | Files, version: str = "2.0.0", id_: str = "65a1b2c3-7", tags: Sequence[Tag] = (), tries: int = 0
) -> Deployment:
    """Of a package that has arrived in its staging file; of several files, where they are given by name."""
    files: tuple[Artifact, ...] = ()
    if isinstance(package, bytes):
        identity = Identity(APP, version, len(package), sha256(package))
    else:
        files = tuple(Artifact(name, len(body), sha256(body), f"https://x/{name}") for name, body in package.items())
        whole = b"".join(package.values())
        identity = Identity(APP, version, len(whole), sha256(b"/".join(package.values())))
    return Deployment(
        id=DeploymentId(id_),
        notice=Notice(identity, "" if files else "https://x", files=files, tags=tuple(tags)),
        phase=Phase.INSTALLING,
        old=NO_SLOT,
        target=NO_SLOT,
        began=0,
        tries_allowed=3,
        tries=tries,
        place=PlaceKind.STAGING,
        checkpoint=identity.size,
    )


async def stage(staging: Staging, deployment: Deployment, package: bytes | Files) -> None:
    """The package in its staging file, as a transfer leaves it."""
    place = await staging.open(deployment)
    write(place, package if isinstance(package, bytes) else b"".join(package.values()))


def write(place: Place, content: bytes) -> None:
    buffer = pages(MIB)
    for at in range(0, len(content), MIB):
        part = content[at : at + MIB]
        buffer[: len(part)] = part
        place.write(at, buffer[: len(part)])
    place.sync()


def new_staging(disk: Disk, directory: Path) -> Staging:
    disk.make_directory(directory / "staging")
    return Staging(disk, directory / "staging")


def read_tree(directory: Path) -> dict[str, bytes]:
    """The files below a directory; links are followed, as whoever uses them does."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


async def failure(work: Awaitable[object]) -> Failure:
    with pytest.raises(UpdateError) as caught:
        await work
    return caught.value.failure


def ignore(progress: Progress) -> None:
    """Nobody looks."""
