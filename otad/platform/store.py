# SPDX-License-Identifier: Apache-2.0
"""What a platform keeps in its directory: `platform.json` and the packages' files.

    {"schema": 1, "key": "<signs URLs>",
     "devices": [{"product_key": "...", "device_name": "...", "secret": "...", "versions": {"default": "1-0-0"}}],
     "packages": [{"id": "1", "module": "default", "version": "2-0-0", "file": "1.bin", "size": 1, "sign_method":
                   "SHA256", "sign": "...", "etag": "..."}],
     "jobs": [{"id": "1", "device": {...}, "package": "1", "options": {...}, "state": "NOTIFIED", ...}]}

Written to a new file and renamed, so that a killed platform comes up with one state or the other.
No fsync: it is a stand-in, a power cut may cost it its jobs.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from otad.platform.credentials import Identity
from otad.platform.jobs import Job, JobState, Options, Package, Retry, SignMethod, Step

SCHEMA: Final = 1
VERSION_FORM: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(slots=True)
class Kept:
    """The content of `platform.json`."""

    key: str = field(default_factory=lambda: secrets.token_hex(16))
    secrets: dict[Identity, str] = field(default_factory=dict)
    versions: dict[Identity, dict[str, str]] = field(default_factory=dict)
    packages: dict[str, Package] = field(default_factory=dict)
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
                {**asdict(identity), "secret": secret, "versions": kept.versions.get(identity, {})}
                for identity, secret in kept.secrets.items()
            ],
            "packages": [_package_document(package) for package in kept.packages.values()],
            "jobs": [{**asdict(job), "package": job.package.id} for job in kept.jobs],
        }
        new = self._path.with_suffix(".new")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(document, file, ensure_ascii=False, indent=1)
        new.replace(self._path)

    def take_in(self, package_id: str, path: Path, version: str, module: str, sign_method: SignMethod) -> Package:
        """Copy a file into the directory as a package. Takes as long as reading it twice; may run in a thread."""
        if not VERSION_FORM.fullmatch(version):
            raise ValueError(f"version {version!r}: not 1 to 64 letters, digits, dots, dashes, underscores")
        copy = self.directory / "packages" / f"{package_id}.bin"
        shutil.copyfile(path, copy)
        with copy.open("rb") as file:
            md5 = hashlib.file_digest(file, _md5).hexdigest()
            file.seek(0)
            sign = md5 if sign_method is SignMethod.MD5 else hashlib.file_digest(file, "sha256").hexdigest()
        return Package(package_id, module, version, copy, copy.stat().st_size, sign_method, sign, md5.upper())

    def _parse(self, document: dict[str, Any]) -> Kept:
        kept = Kept(key=document["key"])
        for device in document["devices"]:
            identity = Identity(device["product_key"], device["device_name"])
            kept.secrets[identity] = device["secret"]
            kept.versions[identity] = device["versions"]
        for one in document["packages"]:
            kept.packages[one["id"]] = Package(
                one["id"],
                one["module"],
                one["version"],
                self.directory / "packages" / one["file"],
                one["size"],
                SignMethod(one["sign_method"]),
                one["sign"],
                one["etag"],
            )
        kept.jobs = [_parse_job(one, kept.packages) for one in document["jobs"]]
        return kept


def _package_document(package: Package) -> dict[str, Any]:
    document = asdict(package)
    document["file"] = document.pop("path").name
    return document


def _parse_job(document: dict[str, Any], packages: dict[str, Package]) -> Job:
    options = document["options"]
    retry = options["retry"]
    return Job(
        **{
            **document,
            "device": Identity(**document["device"]),
            "package": packages[document["package"]],
            "options": Options(
                **{
                    **options,
                    "source_versions": tuple(options["source_versions"]),
                    "retry": Retry(**retry) if retry else None,
                }
            ),
            "state": JobState(document["state"]),
            "log": tuple(Step(**step) for step in document["log"]),
        }
    )


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)
