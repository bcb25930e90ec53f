# SPDX-License-Identifier: Apache-2.0
"""Which work a state asks for, and that nothing but the state decides it."""

from dataclasses import replace

import pytest

from otad.core.model import (
    DEFAULT_MODULE,
    Board,
    BootId,
    Deployment,
    DeploymentId,
    Identity,
    Notice,
    Phase,
    Slot,
    SlotView,
    State,
)
from otad.core.work import (
    Activate,
    Confirm,
    Download,
    Install,
    MarkGood,
    Reboot,
    RollBack,
    Work,
    is_on_trial,
    wants_mark_good,
    work_for,
)

A, B = Slot("a"), Slot("b")
BOOT = BootId("boot-1")
ID = DeploymentId("64-1")
BOARD = Board(A, A, (SlotView(A, True, 3, True), SlotView(B, False, 0, False)))
ON_B = replace(BOARD, booted=B)
DEPLOYMENT = Deployment(ID, Notice(Identity(DEFAULT_MODULE, "2", 1, None), ""), Phase.DOWNLOADING, A, B, 0, 3, run=7)
AT_REST = State(known=True, boot_id=BOOT, board=BOARD, settled=BOOT)
FRESHLY_BOOTED = replace(AT_REST, settled=BootId("boot-0"))


def in_phase(phase: Phase, state: State = AT_REST) -> State:
    return replace(state, deployment=replace(DEPLOYMENT, phase=phase))


@pytest.mark.parametrize(
    ("state", "work"),
    [
        pytest.param(State(), None, id="nothing is known of the machine"),
        pytest.param(AT_REST, None, id="nothing to do"),
        pytest.param(FRESHLY_BOOTED, MarkGood(A, BOOT), id="a fresh boot: idle work"),
        pytest.param(in_phase(Phase.DOWNLOADING, FRESHLY_BOOTED), MarkGood(A, BOOT), id="idle work comes first"),
        pytest.param(in_phase(Phase.ROLLING_BACK, FRESHLY_BOOTED), MarkGood(A, BOOT), id="also after a fall-back"),
        pytest.param(replace(FRESHLY_BOOTED, tainted=(A,)), None, id="a tainted slot is not marked good"),
        pytest.param(
            replace(in_phase(Phase.DOWNLOADING, FRESHLY_BOOTED), tainted=(A,)),
            Download(ID, 7),
            id="a tainted slot may download the way out",
        ),
        pytest.param(
            in_phase(Phase.CONFIRMING, replace(FRESHLY_BOOTED, board=ON_B)),
            Confirm(ID, 7),
            id="on trial only the health gate marks good",
        ),
        pytest.param(
            in_phase(Phase.ROLLING_BACK, replace(FRESHLY_BOOTED, board=ON_B)),
            RollBack(ID, 7),
            id="rolling back, the target is not marked good",
        ),
        pytest.param(
            in_phase(Phase.REBOOTING, replace(FRESHLY_BOOTED, board=replace(BOARD, booted=None))),
            None,
            id="a rescue system: nothing is written, marked or concluded",
        ),
        pytest.param(in_phase(Phase.DOWNLOADING, replace(AT_REST, boot_id=None)), None, id="no boot id"),
        pytest.param(in_phase(Phase.DOWNLOADING, replace(AT_REST, board=None)), None, id="no board"),
        pytest.param(in_phase(Phase.DOWNLOADING), Download(ID, 7), id="downloading"),
        pytest.param(in_phase(Phase.INSTALLING), Install(ID, 7), id="installing"),
        pytest.param(in_phase(Phase.ACTIVATING), Activate(ID, 7), id="activating"),
        pytest.param(in_phase(Phase.REBOOTING), Reboot(ID, 7), id="rebooting"),
        pytest.param(in_phase(Phase.CONFIRMING), Confirm(ID, 7), id="confirming"),
        pytest.param(in_phase(Phase.ROLLING_BACK), RollBack(ID, 7), id="rolling back"),
    ],
)
def test_the_state_alone_says_what_runs(state: State, work: Work | None) -> None:
    assert work_for(state) == work


def test_each_kind_of_work_of_one_run_is_another_work() -> None:
    works = {Download(ID, 1), Install(ID, 1), Activate(ID, 1), Reboot(ID, 1), Confirm(ID, 1), RollBack(ID, 1)}

    assert len(works) == 6


def test_another_run_is_another_work() -> None:
    assert Download(ID, 1) != Download(ID, 2)


@pytest.mark.parametrize(
    ("state", "on_trial"),
    [
        (State(), False),
        (replace(AT_REST, board=ON_B), False),
        (in_phase(Phase.REBOOTING), False),
        (in_phase(Phase.REBOOTING, replace(AT_REST, board=ON_B)), True),
    ],
)
def test_on_trial_is_who_runs_the_target_of_a_deployment(state: State, on_trial: bool) -> None:
    assert is_on_trial(state) is on_trial


def test_without_a_board_nothing_is_marked_good() -> None:
    assert wants_mark_good(State()) is False
