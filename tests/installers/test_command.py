# SPDX-License-Identifier: Apache-2.0
"""A module that the owner's program installs: what it is told, what it may answer, and what becomes of that."""

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from otad.core.model import Deployment, Tag
from otad.durable import RealDisk
from otad.errors import Code, Failure
from otad.installers.command import CommandInstaller
from otad.telemetry import Progress
from tests.installers.in_place import FILES, MIB, Files, deployment, failure, new_staging, read_tree, stage, tar

TOLD = ("MODULE", "VERSION", "DEPLOYMENT", "SIZE", "DIGEST", "TAGS", "ATTEMPT", "FILE", "DIRECTORY")


class World:
    """A program, and its installer."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.disk = RealDisk()
        self.staging = new_staging(self.disk, directory)
        self.program = directory / "flash"
        self.progress: list[Progress] = []
        self.installer = self.new_installer()

    def new_installer(self, timeout_s: float = 20.0) -> CommandInstaller:
        return CommandInstaller(self.staging, self.disk, (str(self.program), "--slot", "0"), timeout_s)

    def does(self, script: str) -> None:
        self.program.write_text(f"#!/bin/sh\ncd {self.directory}\necho run >> runs\n{script}\n")
        self.program.chmod(0o755)

    @property
    def runs(self) -> int:
        return len((self.directory / "runs").read_text().splitlines())

    async def install(self, package: bytes | Files, new: Deployment | None = None) -> Deployment:
        new = new or deployment(package)
        await stage(self.staging, new, package)
        await self.installer.install(new, self.progress.append)
        return new

    def said(self) -> list[str]:
        return (self.directory / "said").read_text().splitlines()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# -- what it is told


async def test_the_program_gets_the_file_and_what_there_is_to_know(world: World) -> None:
    tags = [Tag("room", 'a "b"'), Tag("n", "\0\n=")]
    new = deployment(b"\x7fMCU", tags=tags, tries=1)
    echo = "\n".join(f"printf '%s\\n' \"$OTAD_{name}\" >> said" for name in TOLD)
    world.does(f'echo "$*" >> said\n{echo}\ncat "$OTAD_FILE" > flashed')
    await world.install(b"\x7fMCU", new)
    await world.installer.activate(new, world.progress.append)

    digest = new.notice.identity.digest
    assert digest is not None
    assert world.said() == [
        "--slot 0 install",
        "app",
        "2.0.0",
        "65a1b2c3-7",
        "4",
        f"sha256:{digest.hex}",
        r'{"room":"a \"b\"","n":"\u0000\n="}',
        "2",
        str(world.staging.path(new)),
        "",
    ]
    assert json.loads(world.said()[6]) == {tag.key: tag.value for tag in tags}
    assert (world.directory / "flashed").read_bytes() == b"\x7fMCU"


async def test_an_archive_is_handed_on_as_it_came(world: World) -> None:
    package = tar(FILES)
    world.does('cp "$OTAD_FILE" flashed')
    await world.installer.activate(await world.install(package), world.progress.append)

    assert (world.directory / "flashed").read_bytes() == package


async def test_several_files_are_handed_on_in_a_directory(world: World) -> None:
    files = {"boot.bin": b"b" * 70_000, "app.bin": b"a" * 4096, "empty": b""}
    world.does('echo "[$OTAD_FILE]" > said; cp -r "$OTAD_DIRECTORY" flashed')
    await world.installer.activate(await world.install(files), world.progress.append)

    assert world.said() == ["[]"]
    assert read_tree(world.directory / "flashed") == files


async def test_going_back_is_another_word_with_the_same_knowledge(world: World) -> None:
    world.does('echo "$3 $OTAD_VERSION $OTAD_MODULE" > said; [ -e "$OTAD_FILE" ]')
    new = await world.install(b"firmware")
    await world.installer.restore(new, world.progress.append)

    assert world.said() == ["rollback 2.0.0 app"]


async def test_it_can_be_run_again_by_a_new_process(world: World) -> None:
    world.does('cp "$OTAD_FILE" flashed')
    new = await world.install(b"firmware")
    world.staging.release()
    await world.new_installer().activate(new, world.progress.append)
    await world.new_installer().activate(new, world.progress.append)

    assert (world.runs, (world.directory / "flashed").read_bytes()) == (2, b"firmware")


# -- the staging file


@pytest.mark.parametrize("several", [False, True], ids=["one file", "several files"])
async def test_a_staging_file_that_has_changed_is_found_out(world: World, several: bool) -> None:
    package: bytes | Files = {"one": b"1" * 5000, "two": b"2"} if several else b"1" * 5001
    new = deployment(package)
    await stage(world.staging, new, b"1" * 4000 + b"?" + b"1" * 999 + b"2")

    found = await failure(world.installer.install(new, world.progress.append))
    name = "staging file: 'one'" if several else "staging file"
    assert found == Failure(Code.DIGEST, f"{name}: no longer what was checked there")
    assert not world.staging.tree(new).exists()


async def test_proving_tells_how_far_it_is(world: World) -> None:
    package = os.urandom(3 * MIB + 5)
    new = await world.install(package)
    await asyncio.sleep(0)

    assert len(world.progress) >= 3
    assert world.progress[-1] == Progress(new.id, bytes=len(package), total=len(package))


async def test_what_lies_in_the_staging_directory_is_tidied_with_it(world: World) -> None:
    files = {"one": b"1", "two": b"2"}
    new = await world.install(files)
    other = deployment(files, id_="65a1b2ff-8")
    (world.staging.directory / "65a1b2ff-8.files.partial" / "sub").mkdir(parents=True)
    world.installer.tidy(new)
    world.staging.tidy(new)
    assert sorted(os.listdir(world.staging.directory)) == ["65a1b2c3-7.files", "65a1b2c3-7.package"]

    world.staging.release()
    world.staging.tidy(other)
    assert os.listdir(world.staging.directory) == []


# -- what it answers


async def test_a_program_that_says_no_is_quoted(world: World) -> None:
    world.does("echo starting; echo 'no answer from the bootloader' >&2; exit 3")
    new = await world.install(b"firmware")

    expected = Failure(Code.INSTALL, f"{world.program}: exit status 3: no answer from the bootloader")
    assert await failure(world.installer.activate(new, world.progress.append)) == expected
    assert await failure(world.installer.restore(new, world.progress.append)) == expected


async def test_a_program_that_dies_is_quoted(world: World) -> None:
    world.does("kill -SEGV $$")

    found = await failure(world.installer.activate(await world.install(b"firmware"), world.progress.append))
    assert found == Failure(Code.INSTALL, f"{world.program}: killed by signal 11: no output")


async def test_a_program_that_is_none_says_so(world: World) -> None:
    found = await failure(world.installer.activate(await world.install(b"firmware"), world.progress.append))

    assert found == Failure(Code.INSTALL, f"{world.program}: No such file or directory")


async def test_a_program_that_hangs_is_ended(world: World) -> None:
    world.does("echo erasing; sleep 60")
    world.installer = world.new_installer(timeout_s=0.3)

    found = await failure(world.installer.activate(await world.install(b"firmware"), world.progress.append))
    assert found == Failure(Code.INSTALL, f"{world.program}: not done within 300 ms: erasing")


async def test_a_program_that_asks_to_be_run_again_is(world: World) -> None:
    world.does('echo "radio busy"; [ $(wc -l < runs) -ge 2 ] || exit 75')
    new = await world.install(b"firmware")
    before = time.time()
    await world.installer.activate(new, world.progress.append)

    assert world.runs == 2
    (wait,) = [progress for progress in world.progress if progress.waits_for]
    assert wait.waits_for == "flash: radio busy"
    assert before < (wait.waits_until or 0) <= time.time() < before + 20, "the next run, not the end of all"
    assert world.progress[-1].waits_for == ""


async def test_asking_to_be_run_again_ends_with_the_time(world: World) -> None:
    world.does("echo radio busy; exit 75")
    world.installer = world.new_installer(timeout_s=0.5)

    found = await failure(world.installer.activate(await world.install(b"firmware"), world.progress.append))
    assert found == Failure(Code.INSTALL, f"{world.program}: not done within 500 ms: radio busy")
    assert world.runs == 1


async def test_lines_of_progress_move_the_progress_and_others_do_not(world: World) -> None:
    world.does(
        "for n in 0 10 10 55 100; do echo progress $n; done; echo progress 101; echo 'progress x'; echo ' progress 5'"
    )
    new = await world.install(b"f" * 1000)
    await asyncio.sleep(0)
    world.progress.clear()
    await world.installer.activate(new, world.progress.append)

    assert [progress.bytes for progress in world.progress] == [0, 100, 550, 1000, 1000]
    assert {progress.total for progress in world.progress} == {1000}


async def test_a_canceled_order_leaves_no_program_behind(world: World) -> None:
    world.does("echo $$ > pid; sleep 60")
    new = await world.install(b"firmware")
    running = asyncio.create_task(world.installer.activate(new, world.progress.append))
    pid_file = world.directory / "pid"
    async with asyncio.timeout(10):
        while not pid_file.exists() or not pid_file.read_text().endswith("\n"):
            await asyncio.sleep(0.01)
    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    assert not Path(f"/proc/{int(pid_file.read_text())}").exists()
