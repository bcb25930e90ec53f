# SPDX-License-Identifier: Apache-2.0
"""The power fails at every operation of an upgrade: wherever it was, the upgrade ends as it should.

One uninterrupted upgrade counts the operations. Then for each of them the same upgrade again with the power cut there.
OTAD_SWEEP=full widens each sweep: every fate for single cuts, far more pairs and seeds.
"""

import functools
import gzip
import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from tests.power.lives import IN_FLIGHT_BYTES, NEW, OLD, PACE, A, B, Board, Parts, System, packed, raw
from tests.power.memory_disk import Fate

FULL = os.environ.get("OTAD_SWEEP") == "full"
TRIAL_OPERATIONS = 60
"""More than there are from a boot to mark-good."""

Cuts = list[tuple[int, Fate]]

GOOD = {
    "raw image": raw(),
    "gzip": packed(functools.partial(gzip.compress, mtime=0)),
    "zstd": packed(zstandard.ZstdCompressor().compress),
}
BAD = {
    "says another version": raw(label="9-9-9", is_healthy=False),
    "does not boot": raw(label="", is_healthy=False),
}


def every_cut(directory: Path, system: System, *, thorough: bool) -> Iterator[Cuts]:
    """Each operation of an uninterrupted upgrade with nothing unsynced kept, and with some; else these in turn."""
    for at in range(1, operations(directory, system) + 1):
        fates: tuple[Fate, ...] = ("none", at)
        if FULL:
            fates = ("none", "all", at, at + 1_000_000)
        elif not thorough:
            fates = fates[at % 2 : at % 2 + 1]
        for fate in fates:
            yield [(at, fate)]


def operations(directory: Path, system: System, parts: Parts | None = None) -> int:
    return Board(directory, system, parts=parts).run().power.operations


def must_succeed(directory: Path, system: System, cuts: Cuts, parts: Parts | None = None) -> None:
    board = Board(directory, system, parts=parts).run(list(cuts))
    try:
        assert board.variables["booted"] == B
        assert board.variables["slots"][B] == {"good": True, "attempts": 3, "confirmed": True}
        assert board.holds(B) == NEW
        assert board.platform.job == "SUCCEEDED"
        assert board.steps == sorted(board.steps), "progress was taken back"
        assert board.story.index("step 100") < board.story.index(f"version {NEW}")
        assert [(line["version"], line["outcome"]) for line in board.history()] == [(NEW, "succeeded")]
        assert board.served_twice <= len(cuts) * (PACE.checkpoint_bytes + IN_FLIGHT_BYTES)
        assert not [path for path in board.storage.names if path.parent.name == "staging"]
    except (AssertionError, ValueError) as error:
        raise AssertionError(f"{error}; cuts {cuts}: {board.story}") from error


def must_return(directory: Path, system: System, cuts: Cuts, parts: Parts | None = None) -> None:
    board = Board(directory, system, parts=parts).run(list(cuts))
    try:
        must_be_back(board)
        served, told = board.served, [told for told in board.story if told.startswith("step -")]
        board.platform.again()
        board.run()
        must_be_back(board)
        again = [told for told in board.story if told.startswith("step -")]
        assert board.served == served, "a refused package was fetched again"
        assert len(again) == len(told) + 1
        assert len(set(again)) == 1, "two outcomes"
    except (AssertionError, ValueError) as error:
        raise AssertionError(f"{error}; cuts {cuts}: {board.story}") from error


def must_be_back(board: Board) -> None:
    assert board.variables["booted"] == board.variables["primary"] == A
    assert board.variables["slots"][A] == {"good": True, "attempts": 3, "confirmed": True}
    assert not board.variables["slots"][B]["good"]
    assert board.holds(A) == OLD
    assert board.platform.job == "FAILED"
    failed = next(at for at, told in enumerate(board.story) if told.startswith("step -1 "))
    if "boot b" in board.story:
        tried = board.story.index("boot b")
        assert not [told for told in board.story[tried:failed] if told.startswith("version")], "informed before -1"
    assert f"version {OLD}" in board.story[failed:]
    assert [line["version"] for line in board.history()] == [NEW]
    assert board.history()[0]["outcome"] in ("rolled_back", "failed")


@pytest.mark.parametrize("kind", GOOD)
def test_an_upgrade_survives_a_cut_at_every_operation(tmp_path: Path, kind: str) -> None:
    for cuts in every_cut(tmp_path, GOOD[kind], thorough=kind != "zstd"):
        must_succeed(tmp_path, GOOD[kind], cuts)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_system_is_left_for_good_wherever_the_power_fails(tmp_path: Path, kind: str) -> None:
    for cuts in every_cut(tmp_path, BAD[kind], thorough=kind == "says another version"):
        must_return(tmp_path, BAD[kind], cuts)


@pytest.mark.parametrize("kind", [*GOOD, *BAD])
def test_a_second_cut_during_the_recovery_changes_nothing(tmp_path: Path, kind: str) -> None:
    random_cuts(tmp_path, kind, runs=2000 if FULL else 40, cuts=(2, 2))


@pytest.mark.parametrize("kind", [*GOOD, *BAD])
def test_a_power_that_fails_again_and_again_changes_nothing(tmp_path: Path, kind: str) -> None:
    random_cuts(tmp_path, kind, runs=1000 if FULL else 20, cuts=(3, 8))


def test_power_that_fails_at_each_boot_of_a_good_system_is_a_fall_back(tmp_path: Path) -> None:
    log = Board(tmp_path, GOOD["raw image"]).run().power.log
    on_trial = log.index("fsync boot/", log.index("acknowledge step 99")) + 3

    must_return(tmp_path, GOOD["raw image"], [(on_trial, "all"), (8, "all"), (8, "all")])


def random_cuts(directory: Path, kind: str, runs: int, cuts: tuple[int, int]) -> None:
    """A failure shows the cuts, which are all that is needed to see it again.

    Every other cut leaves the time to confirm: power that fails at each boot uses up a good system's attempts.
    """
    system, must = (GOOD[kind], must_succeed) if kind in GOOD else (BAD[kind], must_return)
    count = operations(directory, system)
    for seed in range(runs):
        chooser = random.Random(f"{kind} {cuts} {seed}")
        chosen: Cuts = []
        for first in itertools.islice(itertools.cycle((1, TRIAL_OPERATIONS)), chooser.randint(*cuts)):
            fates: tuple[Fate, ...] = ("none", "all", chooser.randrange(1 << 30))
            chosen.append((chooser.randint(first, count), chooser.choice(fates)))
        must(directory, system, chosen)
