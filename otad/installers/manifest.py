# SPDX-License-Identifier: Apache-2.0
"""What an archive says of itself: the file `manifest.json` at its root, before any other file.

    {"version": "2.0.0", "module": "app", "files": {"bin/app": "<sha256>", "etc/app.conf": "<sha256>"}}

`version` is what the package brings, `module` what it is for (may be left out), `files` the SHA-256 of files in the
archive by their names in it (may be left out, or name some of them only). It saves typing at `otad install`, and finds
what went wrong where the archive was put together or announced; who made the package is told by its digest and
signature alone.

An object that has none of these three keys is somebody else's manifest.json, and a file like any other. One that has,
and is not as described, is the package's fault. Other keys are left for later versions.
"""

import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from otad.core.model import Identity
from otad.errors import UpdateError
from otad.installers.archive import Bounds, Entry, Kind, open_package
from otad.installers.format import HEAD_BYTES, sniff
from otad.installers.stream import HashingReader, fault, shown

MANIFEST = "manifest.json"
MANIFEST_BYTES = 4 << 20
TREE_BOUNDS = Bounds(entries=65536, directory_bytes=16 << 20)
"""Of an archive that becomes a directory; what holds an image is smaller."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """`module` is None where the archive does not say it. `files`: lower-case SHA-256 by name."""

    version: str
    module: str | None
    files: Mapping[str, str]

    def check_notice(self, identity: Identity) -> None:
        """What it is must be what was announced."""
        if self.version != identity.version:
            raise _fault(f"says version {self.version}, the notice says {identity.version}")
        if self.module is not None and self.module != identity.module:
            raise _fault(f"says module {self.module}, the notice says {identity.module}")

    def check(self, digests: Mapping[str, str]) -> None:
        """`digests` has the SHA-256 of all files by name: those named here must be there, and be the same."""
        there = {_plain(name): digest for name, digest in digests.items()}
        for name, wanted in self.files.items():
            if name not in there:
                raise _fault(f"files: {shown(name)}: not in the archive")
            if there[name] != wanted:
                raise _fault(f"files: {shown(name)}: SHA-256 is {there[name]}, not {wanted}")


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of the package in a file; None where it has none.

    Reads no further than to the first file's end. UpdateError FORMAT for an archive or a manifest that is damaged,
    OSError for a file that cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        size = file.seek(0, 2)
        entries = open_package(HashingReader(file, "sha256"), sniff(head), size, TREE_BOUNDS)
        first = next((entry for entry in entries if entry.kind is Kind.FILE), None)
        return take_manifest(first)[1] if first is not None else None


def is_manifest(name: str) -> bool:
    """Whether a file of this name is one, if it is the first."""
    return _plain(name) == MANIFEST


def take_manifest(first: Entry) -> tuple[Entry, Manifest | None]:
    """An archive's first file, still to be read, and the manifest that it is, if it is one."""
    if not is_manifest(first.name):
        return first, None
    if first.size is None or first.size > MANIFEST_BYTES:
        raise _fault(f"{first.size} bytes: more than {MANIFEST_BYTES}")
    content = b"".join(first.pieces)
    return replace(first, pieces=iter((content,))), _parsed(content)


def _parsed(content: bytes) -> Manifest | None:
    try:
        document = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise _fault(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise _fault("not a JSON object")
    if not document.keys() & {"version", "module", "files"}:
        return None
    version, module, files = document.get("version"), document.get("module"), document.get("files")
    if not isinstance(version, str) or not _NAME.fullmatch(version):
        raise _fault(f"version: {_said(version)}: must be 1 to 64 of A-Z a-z 0-9 . _ -")
    if module is not None and (not isinstance(module, str) or not _NAME.fullmatch(module)):
        raise _fault(f"module: {_said(module)}: must be 1 to 64 of A-Z a-z 0-9 . _ -")
    return Manifest(version, module, _files(files))


def _files(files: object) -> dict[str, str]:
    if files is None:
        return {}
    if not isinstance(files, dict):
        raise _fault("files: must be an object of names and SHA-256 digests")
    digests: dict[str, str] = {}
    for name, digest in files.items():
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise _fault(f"files: {shown(name)}: must be a SHA-256, 64 hexadecimal digits")
        digests[_plain(name)] = digest.lower()
    return digests


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):  # the last one would win
        raise ValueError("a key stands twice in one object")
    return members


def _plain(name: str) -> str:
    return posixpath.normpath(name)


def _said(value: object) -> str:
    return "missing" if value is None else shown(str(value))


def _fault(reason: str) -> UpdateError:
    return fault(MANIFEST, reason)
