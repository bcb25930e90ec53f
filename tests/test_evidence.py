# SPDX-License-Identifier: Apache-2.0
"""Which version runs: read from the system, or a reason why not."""

import errno
from pathlib import Path

import pytest

from otad.config import CommandVersion, FileVersion, InstalledVersion, OsReleaseVersion, SlotVersion
from otad.durable import RealDisk
from otad.evidence import Evidence, running_version

ETC, USR = Path("/etc/os-release"), Path("/usr/lib/os-release")


class Serving(RealDisk):
    """These files and no others."""

    def __init__(self, files: dict[Path, bytes | OSError]) -> None:
        self.files = files

    def read(self, path: Path, bytes_max: int) -> bytes:
        content = self.files.get(path, FileNotFoundError(errno.ENOENT, "No such file or directory"))
        if isinstance(content, OSError):
            raise content
        return content[: bytes_max + 1]


async def os_release(content: bytes) -> Evidence:
    return await running_version(OsReleaseVersion("IMAGE_VERSION"), Serving({ETC: content}), None)


def program(directory: Path, script: str) -> CommandVersion:
    path = directory / "version"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return CommandVersion(path)


async def command(directory: Path, script: str) -> Evidence:
    return await running_version(program(directory, script), RealDisk(), None)


# -- os-release


@pytest.mark.parametrize(
    ("content", "version"),
    [
        (b"ID=debian\nIMAGE_VERSION=1-0-0\n", "1-0-0"),
        (b'IMAGE_VERSION="1.0"\n', "1.0"),
        (b"IMAGE_VERSION='1.0'\n", "1.0"),
        (b'IMAGE_VERSION=1."0"\n', "1.0"),
        (b"OTHER_IMAGE_VERSION=9\n#IMAGE_VERSION=8\nIMAGE_VERSION=7", "7"),
        (b"\xff\xfe\nIMAGE_VERSION=1\r\n", "1"),
    ],
)
async def test_a_key_of_os_release_is_read_with_its_quotes_taken_off(content: bytes, version: str) -> None:
    assert await os_release(content) == Evidence(version)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"ID=debian\n", "/etc/os-release: no IMAGE_VERSION in it"),
        (b"", "/etc/os-release: no IMAGE_VERSION in it"),
        (b"IMAGE_VERSION=\n", "/etc/os-release: IMAGE_VERSION: '' is not"),
        (b'IMAGE_VERSION="1 0"\n', "/etc/os-release: IMAGE_VERSION: '1 0' is not"),
        (b'IMAGE_VERSION="1\n', "/etc/os-release: IMAGE_VERSION: '\"1' is not"),
        (b"IMAGE_VERSION=" + b"1" * 65, "is not 1 to 64 of"),
        (b"IMAGE_VERSION=" + b"1" * 1_000_000, "is not 1 to 64 of"),
        ("IMAGE_VERSION=１".encode(), "is not 1 to 64 of"),
        (b"IMAGE_VERSION=$(id)", "is not 1 to 64 of"),
    ],
)
async def test_an_os_release_without_a_usable_version_says_why(content: bytes, problem: str) -> None:
    found = await os_release(content)

    assert found.version is None
    assert problem in found.problem
    assert len(found.problem) < 200


async def test_usr_lib_stands_in_where_etc_has_none() -> None:
    source = OsReleaseVersion("IMAGE_VERSION")

    assert await running_version(source, Serving({USR: b"IMAGE_VERSION=2\n"}), None) == Evidence("2")
    both = Serving({ETC: b"IMAGE_VERSION=1\n", USR: b"IMAGE_VERSION=2\n"})
    assert await running_version(source, both, None) == Evidence("1")
    nothing = await running_version(source, Serving({}), None)
    assert nothing == Evidence(None, "/etc/os-release: not readable")


# -- file


async def test_a_file_is_the_version_without_the_white_space_around_it(tmp_path: Path) -> None:
    (tmp_path / "version").write_text("\n 1.2-rc.1 \n\n")

    assert await running_version(FileVersion(tmp_path / "version"), RealDisk(), None) == Evidence("1.2-rc.1")


@pytest.mark.parametrize("content", [b"", b"1\n2\n", b"1.0 beta", b"\xff\xfe", b"\x1b[31m1", b"1" * 100_000])
async def test_a_file_with_anything_else_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "version").write_bytes(content)
    found = await running_version(FileVersion(tmp_path / "version"), RealDisk(), None)

    assert found.version is None
    assert found.problem.startswith(f"{tmp_path / 'version'}: ")
    assert found.problem.isprintable()
    assert len(found.problem) < 400


async def test_a_file_that_cannot_be_read_says_so_and_is_absent_only_where_there_is_none(tmp_path: Path) -> None:
    missing, directory = tmp_path / "version", tmp_path

    assert await running_version(FileVersion(missing), RealDisk(), None) == Evidence(
        None, f"{missing}: No such file or directory", absent=True
    )
    assert await running_version(FileVersion(directory), RealDisk(), None) == Evidence(
        None, f"{directory}: Is a directory"
    )


# -- command


async def test_a_commands_output_is_the_version(tmp_path: Path) -> None:
    assert await command(tmp_path, "echo 3.0") == Evidence("3.0")


async def test_a_command_that_fails_is_no_evidence_even_if_it_says_a_version(tmp_path: Path) -> None:
    found = await command(tmp_path, "echo 3.0; exit 7")

    assert found == Evidence(None, f"{tmp_path / 'version'}: exit status 7: 3.0")


async def test_a_command_that_hangs_is_ended(tmp_path: Path) -> None:
    source = program(tmp_path, "echo 3.0; sleep 60")
    found = await running_version(source, RealDisk(), None, command_limit_s=0.2)

    assert found == Evidence(None, f"{source.path}: no answer within 200 ms")


@pytest.mark.parametrize("script", ["yes 3.0 | head -c 5000000", "head -c 5000000 /dev/urandom", "echo", ":"])
async def test_a_command_that_says_too_much_or_nothing_is_no_evidence(tmp_path: Path, script: str) -> None:
    found = await command(tmp_path, script)

    assert found.version is None
    assert "is not 1 to 64 of" in found.problem
    assert found.problem.isprintable()
    assert len(found.problem) < 700


async def test_a_command_that_is_none_says_so(tmp_path: Path) -> None:
    missing = await running_version(CommandVersion(tmp_path / "none"), RealDisk(), None)
    source = program(tmp_path, ":")
    source.path.chmod(0o644)

    assert missing == Evidence(None, f"{tmp_path / 'none'}: No such file or directory")
    assert await running_version(source, RealDisk(), None) == Evidence(None, f"{source.path}: Permission denied")


# -- slot


async def test_the_slot_itself_says_its_version(tmp_path: Path) -> None:
    slot = tmp_path / "a.img"
    slot.write_bytes(b"IMAGE_VERSION=4-0\n" + bytes(5000))

    assert await running_version(SlotVersion(), RealDisk(), slot) == Evidence("4-0")


async def test_a_slot_without_a_version_or_none_of_ours_says_so(tmp_path: Path) -> None:
    slot = tmp_path / "a.img"
    slot.write_bytes(bytes(5000))

    assert await running_version(SlotVersion(), RealDisk(), slot) == Evidence(
        None, f"{slot}: no IMAGE_VERSION= in its first 4096 bytes"
    )
    assert await running_version(SlotVersion(), RealDisk(), None) == Evidence(None, "the booted slot is none of otad's")


# -- installed


async def installed(directory: Path, target: str) -> Evidence:
    (directory / "current").symlink_to(target)
    return await running_version(InstalledVersion(), RealDisk(), None, link=directory / "current")


@pytest.mark.parametrize("version", ["2.0.0", "2-0-0", "1", ".", "a.otad-b", "x" * 64])
async def test_the_directory_that_the_link_points_to_says_its_version(tmp_path: Path, version: str) -> None:
    (tmp_path / f"{version}.otad-65a1b2c3-7").mkdir()

    assert await installed(tmp_path, f"{version}.otad-65a1b2c3-7") == Evidence(version)


NAME = "2.0.0.otad-65a1b2c3-7"


@pytest.mark.parametrize(
    "target",
    [f"{NAME}/", f"./{NAME}", f"/{NAME}", f"../apps/{NAME}", f"lib/../{NAME}", f"//./{NAME}//.", "other", "stable"],
)
async def test_it_says_so_however_the_link_is_spelled(tmp_path: Path, target: str) -> None:
    apps = tmp_path / "apps"
    (apps / NAME).mkdir(parents=True)
    (apps / "lib").mkdir()
    (apps / "stable").symlink_to("lib/back")
    (apps / "lib" / "back").symlink_to(f"../{NAME}/.")
    (tmp_path / "other").symlink_to(apps)
    directory = tmp_path / "other" if target == "other" else apps  # configured by another way than the link's
    target = NAME if target == "other" else target

    assert await installed(directory, f"{apps}{target}" if target.startswith("/") else target) == Evidence("2.0.0")


@pytest.mark.parametrize(
    "target",
    [
        "2.0.0",
        f"{NAME}/below",
        "current",
        ".",
        "2.0.0.otad-1-1.partial",
        "sub/2.0.0.otad-1-1",
        "/apps/2.0.0.otad-1-1",
        ".otad-1-1",
        "2 0.otad-1-1",
        "\x1b[",
    ],
)
async def test_a_link_to_anything_else_is_no_evidence(tmp_path: Path, target: str) -> None:
    found = await installed(tmp_path, target)

    assert found == Evidence(None, f"{tmp_path}/current: points to {target!r}, which otad has not installed")
    assert found.problem.isprintable()


async def test_a_link_to_what_is_gone_or_no_link_at_all_is_no_evidence(tmp_path: Path) -> None:
    source, link = InstalledVersion(), tmp_path / "current"

    assert await running_version(source, RealDisk(), None) == Evidence(None, "the module has no directory")
    nothing = Evidence(None, f"{link}: nothing is installed yet", absent=True)
    assert await running_version(source, RealDisk(), None, link=link) == nothing
    assert await running_version(source, RealDisk(), None, link=link / "below") == Evidence(
        None, f"{link}/below: nothing is installed yet", absent=True
    )
    gone = await installed(tmp_path, "2.0.0.otad-1-1")
    assert gone == Evidence(None, f"{tmp_path}/2.0.0.otad-1-1: No such file or directory")
    link.unlink()
    link.mkdir()
    assert await running_version(source, RealDisk(), None, link=link) == Evidence(None, f"{link}: Invalid argument")
