# SPDX-License-Identifier: Apache-2.0
"""Bugs planted at the seams: each must be caught by the sweeps, and for the right reason.

A sweep that finds nothing proves nothing, unless it is known to find what there is to be found.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from otad.boot.control import BootControl
from otad.boot.simulated import SimulatedBoot
from otad.coordinator import CarryOut
from otad.core.model import Board as BoardView
from otad.core.model import Deployment, Ended, Slot, State
from otad.core.work import Confirm, Download, RollBack, Work
from otad.errors import UpdateError
from otad.installers.slots import SlotInstaller
from otad.store import Store
from otad.worker import RebootByExit
from tests.power.lives import Board, Parts, System
from tests.power.memory_disk import Inode, MemoryDisk
from tests.power.test_power_cut import BAD, GOOD, every_cut, must_return, must_succeed

# -- storage


class NoDirectorySync(MemoryDisk):
    def sync_directory(self, path: Path) -> None:
        pass


class NoFileSync(MemoryDisk):
    """State and variables are renamed into place without being on the medium."""

    def sync(self, path: Path, inode: Inode) -> None:
        if path.suffix != ".tmp":
            super().sync(path, inode)


class NoPlaceSync(MemoryDisk):
    def sync(self, path: Path, inode: Inode) -> None:
        if path.suffix not in (".img", ".package"):
            super().sync(path, inode)


class NoHistorySync(MemoryDisk):
    def sync(self, path: Path, inode: Inode) -> None:
        if path.suffix != ".jsonl":
            super().sync(path, inode)


class WritesInPlace(MemoryDisk):
    """Truncates the old file and writes the new content into it."""

    def replace(self, path: Path, content: bytes) -> None:
        if path not in self.storage.names:
            super().replace(path, content)
            return
        inode = self.lookup(path)

        def truncate() -> None:
            inode.content.clear()
            inode.durable.clear()
            inode.pending.clear()

        self.operation(f"truncate {path.name}", truncate)
        self.write(path, inode, 0, content)
        self.sync(path, inode)


class RenamesFirst(MemoryDisk):
    def replace(self, path: Path, content: bytes) -> None:
        temporary = path.with_name(path.name + ".tmp")
        inode = Inode()
        self.link(temporary, inode)
        self.write(temporary, inode, 0, content)
        self.move(temporary, path)
        self.sync(path, inode)
        self.sync_directory(path.parent)


class LosesWrites(MemoryDisk):
    """A medium that drops the fourth write to a slot and says nothing: not a bug, if somebody looks."""

    count = 0

    def write(self, path: Path, inode: Inode, offset: int, content: bytes) -> None:
        self.count += path.suffix == ".img"
        if path.suffix != ".img" or self.count != 4:
            super().write(path, inode, offset, content)


# -- boot loader


class Wrapped(SimulatedBoot):
    def __init__(self, real: SimulatedBoot, board: Board) -> None:
        super().__init__(real._disk, real._file.parent, board.devices, 3)


class NeverMarksBad(Wrapped):
    def mark_bad(self, slot: Slot) -> None:
        pass


class OnlySaysBad(Wrapped):
    """Answers as if the slot were marked bad, and writes nothing."""

    bad: Slot | None = None

    def mark_bad(self, slot: Slot) -> None:
        self.bad = slot

    def view(self) -> BoardView:
        board = super().view()
        return replace(board, slots=tuple(replace(v, good=v.good and v.name != self.bad) for v in board.slots))


class NeverMarksGood(Wrapped):
    def mark_good(self, slot: Slot) -> None:
        pass


class ConfirmsAtOnce(Wrapped):
    def set_primary(self, slot: Slot, attempts: int) -> None:
        super().set_primary(slot, attempts)
        super().mark_good(slot)


# -- state


class NeverSaves(Store):
    def save(self, state: State) -> None:
        pass


class SavesLate(Store):
    """One state behind: what is begun is durable only when the next thing happens."""

    held: State | None = None

    def save(self, state: State) -> None:
        if self.held is not None:
            super().save(self.held)
        self.held = state


class ForgetsReports(Store):
    def save(self, state: State) -> None:
        super().save(replace(state, outbox=()))


class ForgetsRefusals(Store):
    def save(self, state: State) -> None:
        super().save(replace(state, refusals=()))


class NeverFiles(Store):
    def file(self, ended: Ended) -> None:
        pass


# -- works


def switches_first(carry_out: CarryOut, board: Board, boot: BootControl, installer: SlotInstaller) -> CarryOut:
    async def planted(work: Work, deployment: Deployment | None) -> bool:
        if isinstance(work, Download) and deployment is not None:
            boot.set_primary(deployment.target, 3)
        return await carry_out(work, deployment)

    return planted


def believes_the_digest(carry_out: CarryOut, board: Board, boot: BootControl, installer: SlotInstaller) -> CarryOut:
    async def planted(work: Work, deployment: Deployment | None) -> bool:
        try:
            return await carry_out(work, deployment)
        except UpdateError:
            if not isinstance(work, Download) or deployment is None:
                raise
            installer.prove(deployment)
            return True

    return planted


def skips_the_check_after_a_restart(
    carry_out: CarryOut, board: Board, boot: BootControl, installer: SlotInstaller
) -> CarryOut:
    async def planted(work: Work, deployment: Deployment | None) -> bool:
        if isinstance(work, Download) and deployment is not None and deployment.checkpoint:
            installer.prove(deployment)
            return True
        return await carry_out(work, deployment)

    return planted


def asks_no_health(carry_out: CarryOut, board: Board, boot: BootControl, installer: SlotInstaller) -> CarryOut:
    async def planted(work: Work, deployment: Deployment | None) -> bool:
        if isinstance(work, Confirm) and deployment is not None:
            boot.mark_good(deployment.target)
            return True
        return await carry_out(work, deployment)

    return planted


def confirms_nothing(carry_out: CarryOut, board: Board, boot: BootControl, installer: SlotInstaller) -> CarryOut:
    async def planted(work: Work, deployment: Deployment | None) -> bool:
        return True if isinstance(work, Confirm) else await carry_out(work, deployment)

    return planted


def only_leaves(carry_out: CarryOut, board: Board, boot: BootControl, installer: SlotInstaller) -> CarryOut:
    """Rolls back without marking the bad slot."""

    async def planted(work: Work, deployment: Deployment | None) -> bool:
        if not isinstance(work, RollBack) or deployment is None:
            return await carry_out(work, deployment)
        boot.set_primary(deployment.old, 3)
        if boot.view().booted == deployment.target:
            raise RebootByExit
        return True

    return planted


@dataclass(frozen=True)
class Planted:
    parts: Parts
    caught: str  # what the sweep says
    system: System = GOOD["raw image"]
    must: Callable[..., None] = must_succeed


BUGS = {
    "directories are not synced": Planted(Parts(disk=NoDirectorySync), "may be booted|durably confirmed"),
    "files are not synced": Planted(Parts(disk=NoFileSync), "unreadable"),
    "slots are not synced": Planted(Parts(disk=NoPlaceSync), "may be booted"),
    "staging files are not synced": Planted(Parts(disk=NoPlaceSync), "may be booted", GOOD["gzip"]),
    "history is not synced": Planted(Parts(disk=NoHistorySync), r"\[\] == \["),
    "files are written in place": Planted(Parts(disk=WritesInPlace), "unreadable"),
    "files are renamed before they are synced": Planted(Parts(disk=RenamesFirst), "unreadable"),
    "mark bad does nothing": Planted(Parts(boot=NeverMarksBad), "'a' == 'b'"),
    "mark bad only says so": Planted(Parts(boot=OnlySaysBad), "may be booted"),
    "mark good does nothing": Planted(Parts(boot=NeverMarksGood), "before the slot is durably confirmed"),
    "activating confirms": Planted(Parts(boot=ConfirmsAtOnce), "not healthy", BAD["says another version"], must_return),
    "the state is not saved": Planted(Parts(store=NeverSaves), "'step 100' is not in list"),
    "the state is saved late": Planted(Parts(store=SavesLate), r"\d+ <= "),
    "reports are not saved": Planted(Parts(store=ForgetsReports), "'step 100' is not in list"),
    "refusals are not saved": Planted(
        Parts(store=ForgetsRefusals), "'2-0-0', '2-0-0'", BAD["says another version"], must_return
    ),
    "history is not filed": Planted(Parts(store=NeverFiles), r"\[\] == \["),
    "the switch comes first": Planted(Parts(carry_out=switches_first), "'a' == 'b'|may be booted"),
    "the digest does not matter": Planted(Parts(disk=LosesWrites, carry_out=believes_the_digest), "may be booted"),
    "memory is believed after a restart": Planted(Parts(carry_out=skips_the_check_after_a_restart), "may be booted"),
    "health is not asked": Planted(
        Parts(carry_out=asks_no_health), "not healthy", BAD["says another version"], must_return
    ),
    "success before mark good": Planted(Parts(carry_out=confirms_nothing), "before the slot is durably confirmed"),
    "the bad slot is not marked": Planted(
        Parts(carry_out=only_leaves), "not True", BAD["says another version"], must_return
    ),
}


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS.keys())
def test_a_planted_bug_is_caught(tmp_path: Path, bug: Planted, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(100)
    sweep = list(every_cut(tmp_path, bug.system, thorough=True))
    random.Random(0).shuffle(sweep)  # in this order most are met sooner

    def run_them_all() -> None:
        for cuts in [[], *sweep]:
            bug.must(tmp_path, bug.system, cuts, bug.parts)

    with pytest.raises(AssertionError, match=bug.caught):
        run_them_all()
