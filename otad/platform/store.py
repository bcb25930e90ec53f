# SPDX-License-Identifier: Apache-2.0
"""What a platform keeps in its directory: `platform.json` and the packages' files.

    {"schema": 1, "key": "<signs URLs>",
     "devices": [{"product_key": "...", "device_name": "...", "secret": "...", "versions": {"default": "1-0-0"}},
                 {"product_key": "...", "device_name": "...", "secret": "...", "x509": true, "versions": {}}],
     "packages": [{"id": "1", "module": "default", "version": "2-0-0", "file": "1.bin", "size": 1, "sign_method":
                   "SHA256", "sign": "...", "etag": "...", "files": [{"name": "app.bin", "file": "1.0.bin", ...}],
                   "tags": {}, "udi": "", "diff": false, "signed": false, "protocol": "https"}],
     "batches": [{"id": "1", "package": "1", "selection": {...}, "options": {...}, "planned": false, ...}],
     "jobs": [{"id": "1", "batch": "1", "device": {...}, "package": "1", "options": {...}, "state": "NOTIFIED", ...}]}

Beside it `devices/`, the certificates of X.509 devices with their keys, and with TLS the files of `ca`. What an earlier
version did not write is read as not set.

Written to a new file and renamed, so that a killed platform comes up with one state or the other.
No fsync: it is a stand-in, a power cut may cost it its jobs.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, TypedDict, Unpack

from otad.platform.credentials import Identity
from otad.platform.jobs import (
    RETRY_COUNTS,
    RETRY_INTERVALS_S,
    Batch,
    Dynamic,
    Job,
    JobState,
    Options,
    Package,
    PackageFile,
    Protocol,
    Retry,
    Selection,
    SignMethod,
    Step,
)

SCHEMA: Final = 1
VERSION_FORM: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class PackageOptions(TypedDict, total=False):
    """What a package may be besides its files, as keywords; `Package` says what each means."""

    tags: Mapping[str, str]
    udi: str
    diff: bool
    signed: bool
    protocol: Protocol


@dataclass(slots=True)
class Kept:
    """The content of `platform.json`."""

    key: str = field(default_factory=lambda: secrets.token_hex(16))
    secrets: dict[Identity, str] = field(default_factory=dict)
    x509: set[Identity] = field(default_factory=set)
    """Devices that are configured with a certificate rather than their secret."""
    versions: dict[Identity, dict[str, str]] = field(default_factory=dict)
    packages: dict[str, Package] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)


class Store:
    """One platform's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._path = directory / "platform.json"

    def open(self) -> Kept:
        """Make the directory if need be and read what it holds; raises ValueError if that is of another schema."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.directory / "packages").mkdir(exist_ok=True)
        try:
            document = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return Kept()
        if document.get("schema") != SCHEMA:
            raise ValueError(f"{self._path}: schema {document.get('schema')!r}, not {SCHEMA}")
        return self._parse(document)

    def save(self, kept: Kept) -> None:
        document = {
            "schema": SCHEMA,
            "key": kept.key,
            "devices": [
                {
                    **asdict(identity),
                    "secret": secret,
                    "x509": identity in kept.x509,
                    "versions": kept.versions.get(identity, {}),
                }
                for identity, secret in kept.secrets.items()
            ],
            "packages": [_package_document(package) for package in kept.packages.values()],
            "batches": [_refer(batch) for batch in kept.batches],
            "jobs": [_refer(job) for job in kept.jobs],
        }
        new = self._path.with_suffix(".new")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            # Written often: dumps with no indent is the fast way.
            file.write(json.dumps(document, ensure_ascii=False, default=asdict))
        new.replace(self._path)

    def take_in(
        self,
        package_id: str,
        paths: Sequence[Path],
        version: str,
        module: str,
        sign_method: SignMethod,
        **options: Unpack[PackageOptions],
    ) -> Package:
        """Copy files into the directory as a package. Takes as long as reading them twice; may run in a thread."""
        if not VERSION_FORM.fullmatch(version):
            raise ValueError(f"version {version!r}: not 1 to 64 letters, digits, dots, dashes, underscores")
        if not paths:
            raise ValueError("package: no file given")
        packages = self.directory / "packages"
        if len(paths) == 1:
            copies = [packages / f"{package_id}.bin"]
        else:
            copies = [packages / f"{package_id}.{number}.bin" for number in range(len(paths))]
        found = zip(paths, copies, strict=True)
        files = tuple(PackageFile(path.name, copy, path.stat().st_size, "") for path, copy in found)
        several = files if len(files) > 1 else ()
        size = sum(file.size for file in files)
        # Made before anything is copied: it refuses what does not go together.
        package = Package(package_id, module, version, copies[0], size, sign_method, "", "", files=several, **options)
        try:
            for path, copy in zip(paths, copies, strict=True):
                shutil.copyfile(path, copy)
            files = tuple(_hashed(file, sign_method) for file in files)
        except BaseException:
            for copy in copies:
                copy.unlink(missing_ok=True)
            raise
        return replace(
            package,
            size=sum(file.size for file in files),
            sign=files[0].sign,
            etag=files[0].etag,
            files=files if several else (),
        )

    def keep_certificate(self, identity: Identity, certificate: bytes, key: bytes) -> None:
        """Both are PEM."""
        directory = self.directory / "devices"
        directory.mkdir(exist_ok=True)
        for path, content in zip(self.certificate_files(identity), (certificate, key), strict=True):
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(content)

    def certificate_files(self, identity: Identity) -> tuple[Path, Path]:
        """Where an X.509 device's certificate and its key are."""
        name = f"{identity.product_key}.{identity.device_name}"
        directory = self.directory.absolute() / "devices"
        return directory / f"{name}.pem", directory / f"{name}.key"

    def _parse(self, document: dict[str, Any]) -> Kept:
        kept = Kept(key=document["key"])
        for device in document["devices"]:
            identity = Identity(device["product_key"], device["device_name"])
            kept.secrets[identity] = device["secret"]
            if device.get("x509"):
                kept.x509.add(identity)
            kept.versions[identity] = device["versions"]
        for one in document["packages"]:
            kept.packages[one["id"]] = self._parse_package(one)
        kept.batches = [_parse_batch(one, kept.packages) for one in document.get("batches", [])]
        kept.jobs = [_parse_job(one, kept.packages) for one in document["jobs"]]
        return kept

    def _parse_package(self, document: dict[str, Any]) -> Package:
        packages = self.directory / "packages"
        return Package(
            document["id"],
            document["module"],
            document["version"],
            packages / document["file"],
            document["size"],
            SignMethod(document["sign_method"]),
            document["sign"],
            document["etag"],
            files=tuple(
                PackageFile(one["name"], packages / one["file"], one["size"], one["sign"], one["etag"])
                for one in document.get("files", [])
            ),
            tags=document.get("tags", {}),
            udi=document.get("udi", ""),
            diff=document.get("diff", False),
            signed=document.get("signed", False),
            protocol=Protocol(document.get("protocol", Protocol.HTTPS)),
        )


def _package_document(package: Package) -> dict[str, Any]:
    document = asdict(package)
    for one in (document, *document["files"]):
        one["file"] = one.pop("path").name
    return document


def _refer(one: Batch | Job) -> dict[str, Any]:
    """The document of one, with its package by id."""
    return {part.name: getattr(one, part.name) for part in fields(one)} | {"package": one.package.id}


def _parse_batch(document: dict[str, Any], packages: dict[str, Package]) -> Batch:
    selection = document["selection"]
    return Batch(
        **{
            **document,
            "package": packages[document["package"]],
            "selection": Selection(
                devices=tuple(Identity(**device) for device in selection["devices"]),
                product=selection["product"],
                source_versions=tuple(selection["source_versions"]),
                dynamic=Dynamic(selection["dynamic"]) if selection["dynamic"] else None,
            ),
            "options": _parse_options(document["options"]),
        }
    )


def _parse_job(document: dict[str, Any], packages: dict[str, Package]) -> Job:
    return Job(
        **{
            **document,
            "device": Identity(**document["device"]),
            "package": packages[document["package"]],
            "options": _parse_options(document["options"]),
            "state": JobState(document["state"]),
            "log": tuple(Step(**step) for step in document["log"]),
        }
    )


def _parse_options(document: dict[str, Any]) -> Options:
    source_versions = tuple(document["source_versions"])
    return Options(**{**document, "source_versions": source_versions, "retry": _parse_retry(document["retry"])})


def _parse_retry(document: dict[str, Any] | None) -> Retry | None:
    """An earlier version took any numbers: the next smaller ones that there are."""
    if document is None or document["count"] < min(RETRY_COUNTS):
        return None
    return Retry(
        max(count for count in RETRY_COUNTS if count <= document["count"]),
        max(interval_s for interval_s in RETRY_INTERVALS_S if interval_s <= max(0, document["interval_s"])),
    )


def _hashed(file: PackageFile, sign_method: SignMethod) -> PackageFile:
    with file.path.open("rb") as content:
        md5 = hashlib.file_digest(content, _md5).hexdigest()
        content.seek(0)
        sign = md5 if sign_method is SignMethod.MD5 else hashlib.file_digest(content, "sha256").hexdigest()
    return replace(file, size=file.path.stat().st_size, sign=sign, etag=md5.upper())


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)
