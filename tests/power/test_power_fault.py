# SPDX-License-Identifier: Apache-2.0
"""Every access to storage fails, once or for ever: nothing false is told, nothing unproven may boot, and it goes on.

A fault for ever lasts until the daemon can only wait or end again and again; then the storage takes everything once
more, and what began must be brought to its end.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from otad.core.model import Slot
from tests.power.lives import NEW, OLD, A, Board, System
from tests.power.memory_disk import Fault
from tests.power.test_power_cut import BAD, GOOD

FULL = os.environ.get("OTAD_SWEEP") == "full"
SYSTEMS = {**GOOD, **BAD}


def accesses(directory: Path, system: System) -> int:
    fault = Fault(at=1 << 40)
    Board(directory, system, fault=fault).run()
    return fault.accesses


def must_end_honestly(board: Board) -> None:
    """Upgraded and told so, or back and told why. `Board` itself has objected to anything worse on the way."""
    failures = {told for told in board.story if told.startswith("step -")}
    outcomes = {line["outcome"] for line in board.history() if line["version"] == NEW}
    if board.platform.job == "SUCCEEDED":
        # Evidence that could not be read may cost a second upgrade to the same version, into the other slot.
        booted = Slot(board.variables["booted"])
        assert board.variables["slots"][booted]["confirmed"]
        assert board.holds(booted) == NEW
        assert not failures
        assert outcomes <= {"succeeded"}
    else:
        assert board.platform.job == "FAILED"
        assert board.variables["booted"] == board.variables["primary"] == A
        assert board.variables["slots"][A]["confirmed"]
        assert board.holds(A) == OLD
        assert len(failures) == 1
        assert f"version {NEW}" not in board.story
        assert outcomes
        assert outcomes <= {"failed", "rolled_back"}


def faults(count: int) -> Iterator[tuple[int, int]]:
    """Every access, with the errors in turn."""
    numbers = (errno.EIO, errno.ENOSPC)
    for at in range(1, count + 1):
        for number in numbers if FULL else numbers[at % 2 : at % 2 + 1]:
            yield at, number


SWEEPS = [
    ("raw image", False),
    ("raw image", True),
    ("gzip", False),
    ("says another version", True),
]
if FULL:
    SWEEPS = [(kind, for_ever) for kind in SYSTEMS for for_ever in (False, True)]


@pytest.mark.parametrize(
    ("kind", "for_ever"), SWEEPS, ids=[f"{kind}, {'for ever' if f else 'once'}" for kind, f in SWEEPS]
)
def test_storage_that_fails_never_makes_a_false_end(
    tmp_path: Path, kind: str, for_ever: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(100)
    system = SYSTEMS[kind]
    for at, number in faults(accesses(tmp_path, system)):
        fault = Fault(at, number, for_ever)
        board = Board(tmp_path, system, fault=fault)
        try:
            board.run()
            must_end_honestly(board)
        except AssertionError as error:
            raise AssertionError(f"{error}; {fault}: {board.endings} {board.story}") from error
