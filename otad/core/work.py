# SPDX-License-Identifier: Apache-2.0
"""What should be running now, derived from the state and from nothing else.

`work_for` is asked after every event; whoever runs the work starts it, keeps it, or cancels it and starts another.
Normal running, the restart after a power cut, cancel and supersede are therefore one path. Two work values are equal
exactly if they are the same run, and results carry their work: a late one is known by not being equal.
"""

from dataclasses import dataclass
from typing import assert_never

from otad.core.model import Board, BootId, DeploymentId, Phase, Slot, State


@dataclass(frozen=True, slots=True)
class MarkGood:
    """Idle work of each fresh boot: the booted slot is good and has its boot attempts back."""

    slot: Slot
    boot_id: BootId


@dataclass(frozen=True, slots=True)
class Download:
    """Bring the package to its place and check there what the medium holds."""

    deployment: DeploymentId
    run: int


@dataclass(frozen=True, slots=True)
class Install:
    """Carry the staging file's image into the target and check there what the medium holds."""

    deployment: DeploymentId
    run: int


@dataclass(frozen=True, slots=True)
class Activate:
    """Make the target primary for the next boot, with fresh boot attempts."""

    deployment: DeploymentId
    run: int


@dataclass(frozen=True, slots=True)
class Reboot:
    """Reboot into the target. Ends only with this process."""

    deployment: DeploymentId
    run: int


@dataclass(frozen=True, slots=True)
class Confirm:
    """Compare the evidence, run the health checks, mark the booted target good."""

    deployment: DeploymentId
    run: int


@dataclass(frozen=True, slots=True)
class RollBack:
    """Make the old slot primary, mark the target bad; reboot if the target is the booted one."""

    deployment: DeploymentId
    run: int


Work = MarkGood | Download | Install | Activate | Reboot | Confirm | RollBack


def work_for(state: State) -> Work | None:
    """The work that should be running now; None when there is nothing to do, or nothing that we may do."""
    board, deployment = state.board, state.deployment
    if board is None or board.booted is None or state.boot_id is None:
        return None  # none of our slots is booted: nothing is written, marked or concluded
    is_switching = deployment is not None and deployment.in_place and deployment.phase == Phase.ACTIVATING
    if wants_mark_good(state) and not is_switching:  # a program that is installing something is not interrupted
        return MarkGood(board.booted, state.boot_id)
    if deployment is None:
        return None
    match deployment.phase:
        case Phase.DOWNLOADING:
            return Download(deployment.id, deployment.run)
        case Phase.INSTALLING:
            return Install(deployment.id, deployment.run)
        case Phase.ACTIVATING:
            return Activate(deployment.id, deployment.run)
        case Phase.REBOOTING:
            return Reboot(deployment.id, deployment.run)
        case Phase.CONFIRMING:
            return Confirm(deployment.id, deployment.run)
        case Phase.ROLLING_BACK:
            return RollBack(deployment.id, deployment.run)
        case _:
            assert_never(deployment.phase)


def is_on_trial(state: State) -> bool:
    """The booted slot is the target of a deployment: only the health gate may mark it good."""
    return state.board is not None and state.deployment is not None and state.board.booted == state.deployment.target


def is_unconfirmed(board: Board) -> bool:
    """The boot loader says of the booted slot that nobody has trusted it yet."""
    view = board.view(board.booted) if board.booted is not None else None
    return view is not None and view.confirmed is False


def wants_mark_good(state: State) -> bool:
    """This boot's idle work is still to be done, and allowed."""
    deployment = state.deployment
    return (
        state.board is not None
        and state.board.booted is not None
        and state.settled != state.boot_id
        and not is_on_trial(state)
        and state.board.booted not in state.tainted
        # It has to be proven, and will be when what is being switched has ended.
        and not (deployment is not None and deployment.switched and deployment.in_place and is_unconfirmed(state.board))
    )
