# SPDX-License-Identifier: Apache-2.0
"""The power fails at every operation of a module's upgrade: the link always points to something whole.

One uninterrupted run counts the operations. Then for each of them the same again with the power cut there, in all the
ways in which what was not synced may have reached the medium, and everything once more from the start.
OTAD_SWEEP=full widens each sweep.
"""

import asyncio
import errno
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from otad.core.model import Deployment
from otad.durable import Tree
from otad.errors import Code, UpdateError
from otad.installers.files import FilesInstaller
from otad.installers.staging import Staging
from tests.installers.in_place import Files, deployment, ignore, member, tar, write
from tests.power.memory_disk import Directory, Fate, Fault, Inode, Link, MemoryDisk, Power, PowerCut, Storage

FULL = os.environ.get("OTAD_SWEEP") == "full"
ROOT = Path("/var/lib/otad")
APPS = ROOT / "apps"
OLD = {"run": b"old", "data/one": b"1" * 3000}
NEW = {"run": b"new", "data/one": b"2" * 3000, "data/deep/two": b"", "more": b"3" * 600_000}
Disks = Callable[[Storage, Power, Fault | None], MemoryDisk]
Work = Callable[[FilesInstaller, Deployment], Awaitable[None]]


def package(files: Files) -> bytes:
    return tar(files, member("data/link", b"2", "../run"), member("same", b"1", "run"))


FIRST = deployment(package(OLD), "1.0.0", "65a1b2c3-7"), package(OLD)
SECOND = deployment(package(NEW), "2.0.0", "65a1b2ff-8"), package(NEW)


class Broken(AssertionError):  # noqa: N818
    """A promise was broken."""


class Gateway:
    """What outlives a life: the storage, and a switch."""

    def __init__(self, disks: Disks = MemoryDisk) -> None:
        self.storage, self.power = Storage(), Power()
        self.disks = disks
        self.fault: Fault | None = None
        self.storage.provide_directory(ROOT / "staging")
        self.storage.provide_directory(APPS)

    def live(self, what: tuple[Deployment, bytes], work: Work) -> None:
        """One life, in which the package is there and `work` is done, as far as the power lets it."""
        asyncio.run(self._live(*what, work))

    async def _live(self, new: Deployment, content: bytes, work: Work) -> None:
        staged = Staging(MemoryDisk(self.storage, Power()), ROOT / "staging")
        write(await staged.open(new), content)
        staged.release()
        disk = self.disks(self.storage, self.power, self.fault)
        staging = Staging(disk, ROOT / "staging")
        try:
            await work(FilesInstaller(disk, staging, APPS, "current", (), 60, True), new)
        finally:
            staging.release()

    def cut(self, fate: Fate) -> None:
        self.storage.cut(fate)
        self.power.restore()

    def linked(self) -> Files | None:
        """What the link leads to; None where there is none."""
        link = self.storage.find(APPS / "current")
        if not isinstance(link, Link):
            return None
        new = APPS / link.target
        if not isinstance(self.storage.find(new), Directory):
            raise Broken("leads nowhere")
        inodes = {path.relative_to(new): inode for path, inode in self.storage.names.items() if new in path.parents}
        files = {str(path): bytes(inode.durable) for path, inode in inodes.items()}
        to_run = self.storage.find(new / "data/link")
        if not isinstance(to_run, Link) or files.pop("same", None) != files.get("run"):
            raise Broken("not whole")
        return files

    def require(self, *allowed: Files | None) -> None:
        found = self.linked()
        if found is None and None not in allowed:
            raise Broken("no link")
        if found not in allowed:
            raise Broken("the wrong one" if found in (OLD, NEW) else "not whole")

    def upgraded(self) -> "Gateway":
        """With the first version installed, and written out."""
        self.live(FIRST, upgrade)
        self.storage.shut_down()
        self.power = Power()
        return self


async def upgrade(installer: FilesInstaller, new: Deployment) -> None:
    """What is done until the module is switched, tidied up as it is between two works."""
    installer.tidy(new)
    await installer.install(new, ignore)
    installer.tidy(new)
    await installer.activate(new, ignore)


async def roll_back(installer: FilesInstaller, new: Deployment) -> None:
    installer.tidy(new)
    await installer.restore(new, ignore)
    installer.tidy(None)


def fates(at: int) -> tuple[Fate, ...]:
    return ("none", "all", at, at + 1000, at + 2000) if not FULL else ("none", "all", *range(at, at + 40_000, 1000))


def operations(gateway: Gateway, what: tuple[Deployment, bytes], work: Work) -> int:
    gateway.live(what, work)
    return gateway.power.operations


def survive(
    gateway: Gateway, what: tuple[Deployment, bytes], work: Work, after: Files | None, cuts: list[tuple[int, Fate]]
) -> None:
    """Do the work with the power failing at these operations, each counted from the cut before; look after each."""
    before = gateway.linked()
    for at, fate in cuts:
        gateway.power.restore(gateway.power.operations + at)
        try:
            gateway.live(what, work)
        except PowerCut:
            pass
        gateway.cut(fate)
        gateway.require(before, after)
    gateway.live(what, work)
    gateway.cut("none")
    gateway.require(after)


def after_the_upgrade(cuts: list[tuple[int, Fate]], *, first: bool = False, disks: Disks = MemoryDisk) -> None:
    gateway = Gateway(disks) if first else Gateway(disks).upgraded()
    survive(gateway, SECOND, upgrade, NEW, cuts)
    # The way back must be known as well.
    gateway.live(SECOND, roll_back)
    gateway.cut("none")
    gateway.require(None if first else OLD)


def after_the_restore(cuts: list[tuple[int, Fate]], *, first: bool = False) -> None:
    gateway = Gateway() if first else Gateway().upgraded()
    gateway.live(SECOND, upgrade)
    gateway.cut("none")
    survive(gateway, SECOND, roll_back, None if first else OLD, cuts)
    assert sorted(gateway.storage.directory(APPS).names) == (
        [] if first else [".current.previous", "1.0.0.otad-65a1b2c3-7", "current"]
    )


def every_cut(count: int, *more: int) -> Iterator[tuple[int, Fate]]:
    """Each operation with each fate; `more` are further seeds."""
    assert count > 2
    return ((at, fate) for at in range(1, count + 1) for fate in (*fates(at), *more))


@pytest.mark.parametrize("first", [False, True], ids=["second installation", "first installation"])
def test_an_upgrade_survives_a_cut_at_every_operation(first: bool) -> None:
    count = operations(Gateway() if first else Gateway().upgraded(), SECOND, upgrade)
    assert count > 25
    for cut in every_cut(count):
        after_the_upgrade([cut], first=first)


@pytest.mark.parametrize("first", [False, True], ids=["second installation", "first installation"])
def test_the_way_back_survives_a_cut_at_every_operation(first: bool) -> None:
    gateway = Gateway() if first else Gateway().upgraded()
    gateway.live(SECOND, upgrade)
    gateway.storage.shut_down()
    gateway.power = Power()
    for cut in every_cut(operations(gateway, SECOND, roll_back)):
        after_the_restore([cut], first=first)


@pytest.mark.parametrize("work", [upgrade, roll_back])
def test_a_process_that_ends_anywhere_leaves_nothing_that_only_looks_done(work: Work) -> None:
    """Killed, not cut: the next one sees what need not be durable, and the power fails after it."""
    at = 0
    while True:
        at += 1
        gateway = Gateway().upgraded()
        if work is roll_back:
            gateway.live(SECOND, upgrade)
            gateway.storage.shut_down()
        gateway.power.restore(gateway.power.operations + at)
        try:
            gateway.live(SECOND, work)
        except PowerCut:
            pass
        else:
            break
        gateway.power.restore()
        gateway.live(SECOND, work)
        gateway.cut("none")
        gateway.require(NEW if work is upgrade else OLD)
    assert at > 5


def test_power_that_fails_again_and_again_changes_nothing() -> None:
    count = operations(Gateway().upgraded(), SECOND, upgrade)
    for seed in range(2000 if FULL else 100):
        chooser = random.Random(seed)
        cuts: list[tuple[int, Fate]] = [
            (chooser.randint(1, count), chooser.choice(fates(seed))) for _ in range(chooser.randint(2, 6))
        ]
        after_the_upgrade(cuts)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
def test_storage_that_fails_at_any_access_is_told_as_such_and_breaks_nothing(number: int, for_ever: bool) -> None:
    at = 0
    while True:
        at += 1
        gateway = Gateway().upgraded()
        gateway.fault = fault = Fault(at, number, for_ever)
        told: Code | None = None
        try:
            gateway.live(SECOND, upgrade)
        except UpdateError as error:
            told = error.failure.code
        except OSError:
            tidying = ("list", "readlink", "unlink", "fsync", "rmdir")
            assert fault.hit.startswith(tidying), "only tidying lets its caller say it"
        assert told in (None, Code.SPACE if number == errno.ENOSPC else Code.MEDIUM)
        if not fault.hit:
            break
        gateway.cut("none")
        gateway.require(OLD, NEW)
        fault.is_healed = True
        gateway.live(SECOND, upgrade)
        gateway.cut("none")
        gateway.require(NEW)
    assert at > 45


# Bugs planted where the sweeps must find them.


class NoFileSync(MemoryDisk):
    def sync(self, path: Path, inode: Inode) -> None:
        if APPS not in path.parents:
            super().sync(path, inode)


class NoTreeSync(MemoryDisk):
    """Files are durable, the names in the tree are not."""

    def create_tree(self, path: Path) -> Tree:
        tree = super().create_tree(path)
        sync = tree.sync

        def sync_files(name: str) -> None:
            if isinstance(self.storage.find(path / name), Inode):
                sync(name)

        tree.sync = sync_files  # type: ignore[method-assign]
        return tree


class NoSyncAtAll(MemoryDisk):
    def sync_directory(self, path: Path) -> None:
        pass


class NoSyncAfterRename(MemoryDisk):
    def rename(self, old: Path, new: Path) -> None:
        self.move(old, new)


class LinksInPlace(MemoryDisk):
    def replace_link(self, path: Path, target: str) -> None:
        if self.storage.find(path) is not None:
            self.unlink(path)
            self.sync_directory(path.parent)
        self.link(path, Link(target), "symlink")
        self.sync_directory(path.parent)


class ForgetsThePrevious(MemoryDisk):
    def replace_link(self, path: Path, target: str) -> None:
        if path.name != ".current.previous":
            super().replace_link(path, target)


class RemembersTooLate(MemoryDisk):
    """The way back is not durable before the switch is."""

    def replace_link(self, path: Path, target: str) -> None:
        if path.name != ".current.previous":
            super().replace_link(path, target)
            return
        node = self.storage.find(path)
        if node is not None:
            self.unlink(path)
        self.link(path, Link(target), "symlink")


PLANTED: dict[type[MemoryDisk], tuple[str, bool]] = {  # what is broken, and whether at the first installation
    NoFileSync: ("not whole", True),
    NoTreeSync: ("not whole", True),
    NoSyncAtAll: ("no link", True),
    NoSyncAfterRename: ("leads nowhere", True),
    LinksInPlace: ("no link", False),
    ForgetsThePrevious: ("no link", False),
    RemembersTooLate: ("no link", False),
}


@pytest.mark.parametrize("disk", PLANTED, ids=lambda disk: disk.__name__)
def test_a_planted_bug_is_found(disk: type[MemoryDisk]) -> None:
    why, first = PLANTED[disk]
    with pytest.raises(Broken, match=why):
        sweep(disk, first=first)


def sweep(disk: type[MemoryDisk], *, first: bool) -> None:
    gateway = Gateway(disk) if first else Gateway(disk).upgraded()
    for cut in every_cut(operations(gateway, SECOND, upgrade), *range(8)):
        after_the_upgrade([cut], first=first, disks=disk)


def test_a_write_that_is_lost_in_silence_is_found_out() -> None:
    class LosesAWrite(MemoryDisk):
        def write(self, path: Path, inode: Inode, offset: int, content: bytes) -> None:
            if path.name != "more":
                super().write(path, inode, offset, content)

    gateway = Gateway(LosesAWrite)
    with pytest.raises(UpdateError, match="'more': does not give back what was written"):
        gateway.live(SECOND, upgrade)
    gateway.require(None)
