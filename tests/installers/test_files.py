# SPDX-License-Identifier: Apache-2.0
"""A module of files: a directory for each version, whole before the link points to it, and the way back."""

import asyncio
import errno
import gzip
import hashlib
import json
import lzma
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from otad.config import InstalledVersion
from otad.core.model import Deployment
from otad.durable import RealDisk, Tree
from otad.errors import Code, Failure
from otad.evidence import Evidence, running_version
from otad.installers.files import FilesInstaller
from otad.installers.installer import InPlace
from otad.installers.staging import RESERVE_BYTES
from otad.telemetry import Progress
from tests.installers.in_place import (
    FILES,
    MIB,
    PACKERS,
    Files,
    deployment,
    failure,
    ignore,
    new_staging,
    read_tree,
    stage,
    tar,
)

SECOND = "65a1b2ff-8"
THIRD = "65a1b300-9"


class Disk(RealDisk):
    """A real one with as much room as a test says, whose trees may be looked at while they are filled."""

    def __init__(self) -> None:
        self.free = 1 << 40
        self.tree: Callable[[Tree], Tree] = lambda tree: tree

    def free_bytes(self, directory: Path) -> int:
        return self.free

    def create_tree(self, path: Path) -> Tree:
        return self.tree(super().create_tree(path))


class World:
    """A module's directory, and an installer."""

    def __init__(self, directory: Path) -> None:
        self.disk = Disk()
        self.staging = new_staging(self.disk, directory)
        self.directory = directory / "apps"
        self.link = self.directory / "current"
        self.command: tuple[str, ...] = ()
        self.progress: list[Progress] = []
        self.format_auto = True
        self.timeout_s = 20.0

    @property
    def installer(self) -> InPlace:
        return FilesInstaller(
            self.disk, self.staging, self.directory, "current", self.command, self.timeout_s, self.format_auto
        )

    async def install(self, package: bytes | Files, version: str = "2.0.0", id_: str = "65a1b2c3-7") -> Deployment:
        """Up to the switch."""
        new = deployment(package, version, id_)
        await stage(self.staging, new, package)
        await self.installer.install(new, self.progress.append)
        return new

    async def switch(self, files: Files, version: str, id_: str) -> Deployment:
        new = await self.install(tar(files), version, id_)
        await self.installer.activate(new, self.progress.append)
        return new

    async def refusal(self, package: bytes | Files) -> Failure:
        """Why it was not installed; nothing is there that looks as if it were."""
        found = await failure(self.install(package))
        names = os.listdir(self.directory)
        assert [name for name in names if not name.endswith(".partial") and name != "current"] == []
        return found

    async def version(self) -> Evidence:
        return await running_version(InstalledVersion(), self.disk, None, link=self.link)

    def names(self) -> list[str]:
        return sorted(os.listdir(self.directory))

    def program(self, script: str) -> None:
        path = self.directory.parent / "after"
        path.write_text(f"#!/bin/sh\ncd {self.directory.parent}\n{script}\n")
        path.chmod(0o755)
        self.command = (str(path),)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# -- installing


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS.keys())
async def test_an_archive_becomes_a_directory_and_the_link_points_to_it(
    world: World, pack: Callable[[Files], bytes]
) -> None:
    new = await world.install(pack(FILES))
    assert not world.link.exists()
    await world.installer.activate(new, world.progress.append)

    assert read_tree(world.link) == FILES
    assert os.readlink(world.link) == "2.0.0.otad-65a1b2c3-7"
    assert world.names() == ["2.0.0.otad-65a1b2c3-7", "current"]
    assert await world.version() == Evidence("2.0.0")


async def test_several_files_become_files_of_their_names_and_archives_stay_as_they_are(world: World) -> None:
    files = {"firmware.bin": b"f" * 70_001, "web.tar": tar(FILES), "manifest.json": b"{", "empty": b""}
    await world.installer.activate(await world.install(files), world.progress.append)

    assert read_tree(world.link) == files


async def test_a_file_by_itself_is_called_as_its_module(world: World) -> None:
    await world.install(b"just bytes")

    assert read_tree(world.directory) == {"2.0.0.otad-65a1b2c3-7/app": b"just bytes"}


async def test_a_compressed_file_by_itself_is_unpacked(world: World) -> None:
    await world.install(gzip.compress(bytes(3 * MIB)))

    assert read_tree(world.directory) == {"2.0.0.otad-65a1b2c3-7/app": bytes(3 * MIB)}


async def test_where_nothing_is_to_be_unpacked_an_archive_is_a_file(world: World) -> None:
    world.format_auto = False
    package = PACKERS["tar.gz"](FILES)
    await world.install(package)

    assert read_tree(world.directory) == {"2.0.0.otad-65a1b2c3-7/app": package}


@pytest.mark.parametrize(("content", "mode"), [(b"\x7fELF...", 0o755), (b"#!/bin/sh\n", 0o755), (b"text", 0o644)])
async def test_a_program_by_itself_may_be_run(world: World, content: bytes, mode: int) -> None:
    await world.install(content)

    assert (world.directory / "2.0.0.otad-65a1b2c3-7" / "app").stat().st_mode & 0o7777 == mode


async def test_an_installation_tells_how_far_it_is(world: World) -> None:
    package = gzip.compress(tar({"a": os.urandom(3 * MIB), "b": os.urandom(3 * MIB)}))
    new = await world.install(package)
    await asyncio.sleep(0)

    steps = [(progress.bytes, progress.checked) for progress in world.progress]
    assert len(steps) > 5
    assert steps == sorted(steps)
    assert world.progress[-1] == Progress(new.id, bytes=len(package), total=len(package), checked=len(package))


async def test_an_installation_begins_anew_and_nothing_of_the_first_is_left(world: World) -> None:
    new = await world.install(tar({"old": b"", **FILES}))
    (world.directory / "2.0.0.otad-65a1b2c3-7" / "leftover").touch()
    (world.directory / "2.0.0.otad-65a1b2c3-7.partial" / "sub").mkdir(parents=True)
    await world.installer.install(new, world.progress.append)

    assert read_tree(world.directory / "2.0.0.otad-65a1b2c3-7") == {"old": b"", **FILES}
    assert world.names() == ["2.0.0.otad-65a1b2c3-7"]


async def test_what_the_link_points_to_is_not_made_again(world: World) -> None:
    new = await world.switch(FILES, "2.0.0", "65a1b2c3-7")
    (world.link / "written-by-the-app").touch()
    await world.installer.install(new, world.progress.append)

    assert (world.link / "written-by-the-app").exists()


async def test_a_staging_file_that_has_changed_is_found_out(world: World) -> None:
    for package, damage in ((tar(FILES), 512), (gzip.compress(tar(FILES)), 60), (b"x" * 5000, 0)):
        new = deployment(package)
        await stage(world.staging, new, package[:damage] + b"?" + package[damage + 1 :])

        found = await failure(world.installer.install(new, world.progress.append))
        assert found == Failure(Code.DIGEST, "staging file: no longer what was checked there")
        world.staging.release()


async def test_a_staging_file_that_only_now_is_too_large_is_found_out(world: World) -> None:
    changed = gzip.compress(tar({"zeros": bytes(20 * MIB)}))
    world.disk.free = 10 * MIB + RESERVE_BYTES
    new = deployment(bytes(len(changed)))
    await stage(world.staging, new, changed)

    found = await failure(world.installer.install(new, world.progress.append))
    assert found == Failure(Code.DIGEST, "staging file: no longer what was checked there")


async def test_of_several_files_the_one_that_has_changed_is_named(world: World) -> None:
    files = {"one": b"1" * 5000, "two": b"2" * 5000}
    new = deployment(files)
    await stage(world.staging, new, files | {"two": b"2" * 4999 + b"?"})

    found = await failure(world.installer.install(new, world.progress.append))
    assert found == Failure(Code.DIGEST, "staging file: 'two': no longer what was checked there")


async def test_a_medium_that_does_not_give_back_what_was_written_is_found_out(world: World) -> None:
    class Forgetful(Wrapped):
        def chunks(self, name: str) -> Iterator[bytes]:
            content = bytearray(b"".join(self.tree.chunks(name)))
            if name == "data/one":
                content[4711] ^= 1
            yield bytes(content)

    world.disk.tree = Forgetful

    assert await world.refusal(tar(FILES)) == Failure(Code.MEDIUM, "'data/one': does not give back what was written")


async def test_a_canceled_installation_returns_after_the_chunk_in_flight(world: World) -> None:
    loop = asyncio.get_running_loop()
    begun, may_go_on, made = asyncio.Event(), threading.Event(), list[str]()

    class Slow(Wrapped):
        def make_file(self, name: str, chunks: Iterable[bytes | memoryview], *, executable: bool = False) -> None:
            def held() -> Iterator[bytes | memoryview]:
                for chunk in chunks:
                    loop.call_soon_threadsafe(begun.set)
                    assert may_go_on.wait(10)
                    made.append(name)
                    yield chunk

            self.tree.make_file(name, held(), executable=executable)

    world.disk.tree = Slow
    installing = asyncio.create_task(world.install(tar({"one": bytes(2 * MIB), "two": b"2"})))
    async with asyncio.timeout(10):
        await begun.wait()
    installing.cancel()
    done, _ = await asyncio.wait([installing], timeout=0.1)
    assert not done, "it returned while a chunk was being written"

    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await installing
    assert made == ["one"]
    assert world.names() == ["2.0.0.otad-65a1b2c3-7.partial"]


class Wrapped:
    """A tree with something in between."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def make_directory(self, name: str) -> None:
        self.tree.make_directory(name)

    def make_file(self, name: str, chunks: Iterable[bytes | memoryview], *, executable: bool = False) -> None:
        self.tree.make_file(name, chunks, executable=executable)

    def make_link(self, name: str, target: str) -> None:
        self.tree.make_link(name, target)

    def make_other_name(self, name: str, file: str) -> None:
        self.tree.make_other_name(name, file)

    def sync(self, name: str) -> None:
        self.tree.sync(name)

    def chunks(self, name: str) -> Iterator[bytes]:
        return self.tree.chunks(name)

    def close(self) -> None:
        self.tree.close()


# -- room


async def test_a_package_that_does_not_fit_unpacked_is_refused(world: World) -> None:
    package = gzip.compress(tar({"zeros": bytes(20 * MIB)}))
    world.disk.free = 20 * MIB + RESERVE_BYTES

    found = await world.refusal(package)
    assert found.code == Code.SPACE
    assert "unpacks to at least 20 MiB" in found.detail
    assert sum(map(len, read_tree(world.directory).values())) == 0, "it was known before the first byte"


async def test_a_package_that_just_fits_is_installed(world: World) -> None:
    world.disk.free = 20 * MIB + RESERVE_BYTES + 2 * 4096
    await world.install(gzip.compress(tar({"zeros": bytes(20 * MIB)})))


async def test_a_file_whose_size_nobody_knows_ends_where_the_room_does(world: World) -> None:
    world.disk.free = 20 * MIB + RESERVE_BYTES

    found = await world.refusal(gzip.compress(bytes(60 * MIB)))
    assert found.code == Code.SPACE
    assert sum(map(len, read_tree(world.directory).values())) <= 20 * MIB


async def test_a_bomb_is_refused_long_before_the_room_ends(world: World) -> None:
    package = lzma.compress(tar({"zeros": bytes(100 * MIB)}), preset=1)
    assert len(package) * 1000 < 36 * MIB

    found = await world.refusal(package)
    assert found.code == Code.SPACE
    assert found.detail.startswith("package: unpacks to more than 1000 times its 15")
    assert sum(map(len, read_tree(world.directory).values())) == 0


async def test_a_full_file_system_says_so(world: World) -> None:
    class Full(Wrapped):
        def make_directory(self, name: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    world.disk.tree = Full

    assert await world.refusal(tar(FILES)) == Failure(Code.SPACE, f"{world.directory}: No space left on device")


# -- switching


async def test_the_link_is_switched_and_points_back_after_a_restore(world: World) -> None:
    await world.switch({"v": b"1"}, "1.0.0", "65a1b2c3-7")
    new = await world.switch({"v": b"2"}, "2.0.0", SECOND)
    assert (read_tree(world.link), await world.version()) == ({"v": b"2"}, Evidence("2.0.0"))

    for _ in range(2):
        await world.installer.restore(new, world.progress.append)
        assert (read_tree(world.link), await world.version()) == ({"v": b"1"}, Evidence("1.0.0"))


async def test_where_there_was_nothing_before_a_restore_takes_the_link_away(world: World) -> None:
    new = await world.switch(FILES, "2.0.0", SECOND)
    for _ in range(2):
        await world.installer.restore(new, world.progress.append)

        assert not world.link.is_symlink()
        assert world.names() == []
        assert await world.version() == Evidence(None, f"{world.link}: nothing is installed yet", absent=True)


async def test_a_switch_made_twice_still_knows_the_way_back(world: World) -> None:
    await world.switch({"v": b"1"}, "1.0.0", "65a1b2c3-7")
    new = await world.switch({"v": b"2"}, "2.0.0", SECOND)
    await world.installer.activate(new, world.progress.append)
    await world.installer.restore(new, world.progress.append)

    assert read_tree(world.link) == {"v": b"1"}


async def test_a_restore_before_the_switch_changes_nothing(world: World) -> None:
    await world.switch({"v": b"1"}, "1.0.0", "65a1b2c3-7")
    await world.switch({"v": b"2"}, "2.0.0", SECOND)
    new = await world.install(tar({"v": b"3"}), "3.0.0", THIRD)
    await world.installer.restore(new, world.progress.append)

    assert read_tree(world.link) == {"v": b"2"}


async def test_a_first_installation_forgets_what_somebody_removed(world: World) -> None:
    await world.switch({"v": b"1"}, "1.0.0", "65a1b2c3-7")
    await world.switch({"v": b"2"}, "2.0.0", SECOND)
    world.link.unlink()
    new = await world.switch({"v": b"3"}, "3.0.0", THIRD)
    await world.installer.restore(new, world.progress.append)

    assert not world.link.is_symlink()


async def test_an_owners_own_directory_is_what_is_gone_back_to(world: World) -> None:
    (world.directory / "factory").mkdir(parents=True)
    world.link.symlink_to("factory")
    new = await world.switch(FILES, "2.0.0", SECOND)
    await world.installer.restore(new, world.progress.append)

    assert os.readlink(world.link) == "factory"
    assert await world.version() == Evidence(None, f"{world.link}: points to 'factory', which otad has not installed")


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch], ids=["directory", "file"])
async def test_what_is_no_link_is_left_alone(world: World, make: Callable[[Path], None]) -> None:
    world.directory.mkdir()
    make(world.link)
    found = Failure(Code.INSTALL, f"{world.link}: not a symbolic link, and not otad's to remove")

    assert await failure(world.install(tar(FILES))) == found
    assert await failure(world.installer.activate(deployment(tar(FILES)), world.progress.append)) == found
    assert world.names() == ["current"]


async def test_what_was_never_installed_is_not_switched_to(world: World) -> None:
    await world.switch({"v": b"1"}, "1.0.0", "65a1b2c3-7")
    new = deployment(tar(FILES), "2.0.0", SECOND)
    (world.directory / "2.0.0.otad-65a1b2ff-8.partial").mkdir()

    found = await failure(world.installer.activate(new, world.progress.append))
    assert found == Failure(Code.INSTALL, f"{world.directory}/2.0.0.otad-65a1b2ff-8: not there")
    assert read_tree(world.link) == {"v": b"1"}


async def test_a_link_to_something_that_is_gone_is_no_evidence(world: World) -> None:
    await world.switch(FILES, "2.0.0", SECOND)
    world.disk.remove_tree(world.directory / "2.0.0.otad-65a1b2ff-8")

    gone = world.directory / "2.0.0.otad-65a1b2ff-8"
    assert await world.version() == Evidence(None, f"{gone}: No such file or directory")


# -- the command


async def test_the_command_runs_after_each_switch_and_knows_what_runs_now(world: World) -> None:
    await world.switch({"v": b"1"}, "1.0.0", "65a1b2c3-7")
    world.program('echo "$OTAD_MODULE $OTAD_VERSION $OTAD_DEPLOYMENT $(cat "$OTAD_DIRECTORY/v" apps/current/v)" >> log')
    new = await world.switch({"v": b"2"}, "2.0.0", SECOND)
    await world.installer.restore(new, world.progress.append)

    log = (world.directory.parent / "log").read_text().splitlines()
    assert log == [f"app 2.0.0 {SECOND} 22", f"app 1.0.0 {SECOND} 11"]


async def test_where_nothing_is_left_to_run_the_command_hears_that(world: World) -> None:
    world.program('echo "[$OTAD_VERSION] [$OTAD_DIRECTORY]" >> log')
    new = await world.switch(FILES, "2.0.0", SECOND)
    await world.installer.restore(new, world.progress.append)

    log = (world.directory.parent / "log").read_text().splitlines()
    assert log[-1] == "[] []"


async def test_a_command_that_fails_is_why_the_switch_did(world: World) -> None:
    world.program("echo no port; exit 3")
    new = await world.install(tar(FILES))

    found = await failure(world.installer.activate(new, world.progress.append))
    assert found == Failure(Code.INSTALL, f"{world.command[0]}: exit status 3: no port")
    assert read_tree(world.link) == FILES
    assert (await failure(world.installer.restore(new, world.progress.append))).code == Code.INSTALL
    assert not world.link.is_symlink()


async def test_a_command_that_hangs_is_ended(world: World) -> None:
    world.program("echo waiting; sleep 60")
    world.timeout_s = 0.3

    found = await failure(world.switch(FILES, "2.0.0", SECOND))
    assert found == Failure(Code.INSTALL, f"{world.command[0]}: not done within 300 ms: waiting")


async def test_a_command_that_is_none_is_why_the_switch_did(world: World) -> None:
    world.command = ("/nothing/of/the/kind",)

    found = await failure(world.switch(FILES, "2.0.0", SECOND))
    assert found == Failure(Code.INSTALL, "/nothing/of/the/kind: No such file or directory")


# -- tidying


async def test_what_runs_and_what_ran_before_are_kept_and_older_ones_removed(world: World) -> None:
    await world.switch({"v": b"1"}, "1.0.0", "65a1b2c3-7")
    await world.switch({"v": b"2"}, "2.0.0", SECOND)
    await world.switch({"v": b"3"}, "3.0.0", THIRD)
    world.installer.tidy(None)

    assert world.names() == [".current.previous", "2.0.0.otad-65a1b2ff-8", "3.0.0.otad-65a1b300-9", "current"]


async def test_only_what_otad_has_made_is_ever_removed(world: World) -> None:
    world.directory.mkdir()
    foreign = ["1.2.3.4-5", "app-1.2.3-4", "factory", "2.0.0", "2.0.0.partial", "otad-1-2", ".hidden", "x.otad-y!"]
    for name in foreign:
        (world.directory / name).mkdir()
    await world.switch(FILES, "2.0.0", SECOND)
    (world.directory / "1.0.0.otad-1-1").mkdir()
    (world.directory / "1.0.0.otad-1-2.partial" / "sub").mkdir(parents=True)
    world.installer.tidy(None)

    assert world.names() == sorted([*foreign, "2.0.0.otad-65a1b2ff-8", "current"])


HAND = [
    ("{}/", "a slash"),
    ("./{}", "a dot"),
    ("{apps}/{}", "all of the path"),
    ("../apps/{}", "around"),
    ("stable", "a link of the owner's"),
    ("{other}/{}", "another way to the directory"),
]


@pytest.mark.parametrize("spelling", [spelling for spelling, _ in HAND], ids=[what for _, what in HAND])
async def test_what_the_owner_switched_to_is_kept_and_gone_back_to(world: World, spelling: str) -> None:
    await world.switch({"v": b"1"}, "1.0.0", "65a1b2c3-7")
    await world.switch({"v": b"2"}, "2.0.0", SECOND)
    name = os.readlink(world.link)
    (world.directory / "stable").symlink_to(name)
    (world.directory.parent / "other").symlink_to("apps")
    world.link.unlink()
    world.link.symlink_to(spelling.format(name, apps=world.directory, other=world.directory.parent / "other"))
    world.installer.tidy(None)
    assert (read_tree(world.link), await world.version()) == ({"v": b"2"}, Evidence("2.0.0"))

    world.program('echo "$OTAD_VERSION $(cat "$OTAD_DIRECTORY/v")" >> log')
    new = await world.switch({"v": b"3"}, "3.0.0", THIRD)
    world.installer.tidy(new)
    await world.installer.restore(new, world.progress.append)
    world.installer.tidy(None)
    assert (read_tree(world.link), await world.version()) == ({"v": b"2"}, Evidence("2.0.0"))
    assert "3.0.0.otad-65a1b300-9" not in world.names()
    assert (world.directory.parent / "log").read_text() == "3.0.0 3\n2.0.0 2\n"


@pytest.mark.parametrize("spelling", ["{}/", "{apps}/{}"])
async def test_a_deployments_own_link_is_known_however_it_is_spelled(world: World, spelling: str) -> None:
    await world.switch({"v": b"1"}, "1.0.0", "65a1b2c3-7")
    new = await world.switch({"v": b"2"}, "2.0.0", SECOND)
    name = os.readlink(world.link)
    world.link.unlink()
    world.link.symlink_to(spelling.format(name, apps=world.directory))
    (world.link / "written-by-the-app").touch()
    await world.installer.install(new, world.progress.append)
    await world.installer.activate(new, world.progress.append)
    assert (world.link / "written-by-the-app").exists()

    await world.installer.restore(new, world.progress.append)
    assert read_tree(world.link) == {"v": b"1"}


@pytest.mark.parametrize(
    "target",
    [None, "9.0.0.otad-1-1", "1.0.0.otad-1-1/below", "1.0.0.otad-1-1.partial", "factory", "/", "current", "file/x"],
)
async def test_where_nobody_knows_what_runs_nothing_whole_is_removed(world: World, target: str | None) -> None:
    for name in ("1.0.0.otad-1-1", "2.0.0.otad-1-2", "factory", "1.0.0.otad-1-1.partial", "2.0.0.otad-1-2.partial"):
        (world.directory / name).mkdir(parents=True)
    (world.directory / "file").touch()
    if target is not None:
        world.link.symlink_to(target)
    world.installer.tidy(None)

    kept = {"1.0.0.otad-1-1", "2.0.0.otad-1-2", "factory", "file"} | ({target} & {"1.0.0.otad-1-1.partial"})
    assert set(world.names()) - {"current"} == kept


async def test_a_directory_where_the_link_should_be_stops_no_tidying(world: World) -> None:
    (world.directory / "1.0.0.otad-1-1").mkdir(parents=True)
    world.link.mkdir()
    world.installer.tidy(None)

    assert world.names() == ["1.0.0.otad-1-1", "current"]


async def test_what_would_be_gone_back_to_is_kept_however_that_is_spelled(world: World) -> None:
    await world.switch({"v": b"1"}, "1.0.0", "65a1b2c3-7")
    new = await world.switch({"v": b"2"}, "2.0.0", SECOND)
    previous = world.directory / ".current.previous"  # as an earlier otad may have written it
    name = os.readlink(previous)
    previous.unlink()
    previous.symlink_to(f"{world.directory}/{name}/")
    world.installer.tidy(new)
    await world.installer.restore(new, world.progress.append)

    assert (read_tree(world.link), os.readlink(world.link)) == ({"v": b"1"}, name)


async def test_a_link_is_kept_whatever_it_is_called(world: World) -> None:
    installer = FilesInstaller(world.disk, world.staging, world.directory, "x.otad-1", (), 20, True)
    new = await world.install(tar(FILES))
    await installer.activate(new, ignore)
    installer.tidy(None)

    assert world.names() == ["2.0.0.otad-65a1b2c3-7", "x.otad-1"]


async def test_tidying_keeps_what_the_deployment_is_at(world: World) -> None:
    await world.switch(FILES, "1.0.0", THIRD)
    new = await world.install(tar(FILES), "2.0.0", SECOND)
    (world.directory / "2.0.0.otad-65a1b2ff-8.partial").mkdir()
    (world.directory / "2.0.0.otad-65a1b2c3-7").mkdir()
    (world.directory / "2.0.0.otad-65a1b2c3-7.partial").mkdir()
    world.installer.tidy(new)

    runs = ["1.0.0.otad-65a1b300-9", "current"]
    assert world.names() == sorted([*runs, "2.0.0.otad-65a1b2ff-8", "2.0.0.otad-65a1b2ff-8.partial"])
    world.installer.tidy(None)
    assert world.names() == runs


async def test_where_nothing_was_installed_there_is_nothing_to_tidy(world: World) -> None:
    world.installer.tidy(None)

    assert not world.directory.exists()


# -- the manifest


async def test_files_that_a_manifest_names_are_compared(world: World) -> None:
    def package(digest: str) -> bytes:
        manifest = {"version": "2.0.0", "files": {"./data/one": digest}}
        return tar({"manifest.json": json.dumps(manifest).encode(), **FILES})

    good = hashlib.sha256(FILES["data/one"]).hexdigest()
    await world.installer.activate(await world.install(package(good)), world.progress.append)
    assert set(read_tree(world.link)) == {"manifest.json", *FILES}

    found = await failure(world.install(package("0" * 64), id_=SECOND))
    assert found == Failure(Code.FORMAT, f"manifest.json: files: 'data/one': SHA-256 is {good}, not {'0' * 64}")


async def test_a_file_that_a_manifest_names_must_be_there(world: World) -> None:
    manifest = json.dumps({"version": "2.0.0", "files": {"gone": "0" * 64}}).encode()

    found = await world.refusal(tar({"manifest.json": manifest, **FILES}))
    assert found == Failure(Code.FORMAT, "manifest.json: files: 'gone': not in the archive")


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ({"version": "9.9"}, "says version 9.9, the notice says 2.0.0"),
        ({"version": "2.0.0", "module": "mcu"}, "says module mcu, the notice says app"),
    ],
)
async def test_a_manifest_of_something_else_is_refused(world: World, manifest: dict[str, str], reason: str) -> None:
    found = await world.refusal(gzip.compress(tar({"manifest.json": json.dumps(manifest).encode(), **FILES})))

    assert found == Failure(Code.FORMAT, f"manifest.json: {reason}")
    assert read_tree(world.directory) == {}, "before anything was written"


async def test_a_manifest_of_what_was_announced_is_taken(world: World) -> None:
    manifest = json.dumps({"version": "2.0.0", "module": "app"}).encode()
    await world.installer.activate(
        await world.install(tar({"manifest.json": manifest, **FILES})), world.progress.append
    )

    assert await world.version() == Evidence("2.0.0")


async def test_somebody_elses_manifest_is_a_file(world: World) -> None:
    files = {"manifest.json": b'{"name": "web app", "icons": []}', "index.html": b"<html>"}
    await world.installer.activate(await world.install(tar(files)), world.progress.append)

    assert read_tree(world.link) == files
