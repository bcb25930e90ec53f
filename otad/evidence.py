# SPDX-License-Identifier: Apache-2.0
"""Which version runs, by evidence: from the system itself, never from what otad remembers.

A version that cannot be read, or that the platform would not take, is None together with the reason. It is then never
informed; status and doctor say why.
"""

import errno
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from otad import programs
from otad.boot.simulated import slot_version
from otad.config import CommandVersion, FileVersion, InstalledVersion, OsReleaseVersion, SlotVersion, VersionSource
from otad.durable import Disk, leads_to
from otad.installed import version_in
from otad.threads import in_thread
from otad.units import format_duration

COMMAND_LIMIT_S = 10.0
_BYTES_MAX = 64 << 10
_VALID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Evidence:
    """A version, or why there is none. `absent`: because nothing is installed yet, which is no fault."""

    version: str | None
    problem: str = ""
    absent: bool = False


async def running_version(
    source: VersionSource,
    disk: Disk,
    booted: Path | None,
    command_limit_s: float = COMMAND_LIMIT_S,
    link: Path | None = None,
) -> Evidence:
    """The version that runs.

    `booted` is the booted slot's device, where it is one of ours; `link` is the one that a module of files is switched
    by.
    """
    match source:
        case OsReleaseVersion(key):
            return await in_thread(_os_release, disk, key)
        case FileVersion(path):
            return await in_thread(_file, disk, path)
        case CommandVersion(path):
            return await _command(path, command_limit_s)
        case SlotVersion():
            if booted is None:
                return Evidence(None, "the booted slot is none of otad's")
            version = await in_thread(slot_version, disk, booted)
            return Evidence(version, "" if version else f"{booted}: no IMAGE_VERSION= in its first 4096 bytes")
        case InstalledVersion():
            if link is None:
                return Evidence(None, "the module has no directory")
            return await in_thread(_installed, disk, link)


def _os_release(disk: Disk, key: str) -> Evidence:
    """os-release(5): /etc/os-release, else /usr/lib/os-release; shell-like quoting."""
    for path in (Path("/etc/os-release"), Path("/usr/lib/os-release")):
        try:
            text = disk.read(path, _BYTES_MAX).decode(errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            name, equals, value = line.partition("=")
            if equals and name.strip() == key:
                try:
                    words = shlex.split(value)
                except ValueError:
                    words = []
                return _checked(words[0] if len(words) == 1 else value, f"{path}: {key}")
        return Evidence(None, f"{path}: no {key} in it")
    return Evidence(None, "/etc/os-release: not readable")


def _file(disk: Disk, path: Path) -> Evidence:
    try:
        content = disk.read(path, _BYTES_MAX)
    except OSError as error:
        return Evidence(None, f"{path}: {error.strerror}", absent=error.errno == errno.ENOENT)
    return _checked(content.decode(errors="replace").strip(), str(path))


def _installed(disk: Disk, link: Path) -> Evidence:
    """Of the directory that the link leads to, however it is spelled, and that is there."""
    try:
        target = disk.read_link(link)
        if target is None:
            return Evidence(None, f"{link}: nothing is installed yet", absent=True)
        version = version_in(leads_to(disk, link) or "")
        if version is None:
            return Evidence(None, f"{link}: points to {target[:64]!r}, which otad has not installed")
        disk.names(link.parent / target)
    except OSError as error:
        return Evidence(None, f"{error.filename or link}: {error.strerror}")
    return Evidence(version)


async def _command(path: Path, limit_s: float) -> Evidence:
    try:
        result = await programs.run([str(path)], limit_s, errors=False)
    except OSError as error:
        return Evidence(None, f"{path}: {error.strerror}")
    if result.status is None:
        return Evidence(None, f"{path}: no answer within {format_duration(limit_s)}")
    if result.status != 0:
        return Evidence(None, f"{path}: exit status {result.status}: {result.last_line}")
    return _checked(result.output.strip(), str(path))


def _checked(version: str, where: str) -> Evidence:
    if _VALID.fullmatch(version):
        return Evidence(version)
    return Evidence(None, f"{where}: {version[:64]!r} is not 1 to 64 of A-Z a-z 0-9 . _ -")
