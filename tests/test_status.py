# SPDX-License-Identifier: Apache-2.0
"""`next` has an answer in every state, and the document is what its definition says."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otad.cloud.cloud import SessionState, SessionView
from otad.core.events import Failed, Finished, Noticed, RollBackRequested
from otad.core.model import (
    DEFAULT_MODULE,
    NO_SLOT,
    Deployment,
    DeploymentId,
    Inform,
    ModuleName,
    Phase,
    PlaceKind,
    Slot,
    SlotView,
    State,
)
from otad.core.step import step
from otad.core.work import work_for
from otad.errors import Code, Failure
from otad.status import Situation, SlotFacts, document, next_words
from otad.telemetry import Progress
from tests.control.definition import conform
from tests.control.gateway import BOARD, MIB, NOTICE, NOW, A, B, Gateway, situation, started

ID = DeploymentId("6b03dca4-1")


def deploying(phase: Phase = Phase.DOWNLOADING, **more: Any) -> State:
    deployment = Deployment(ID, NOTICE, phase, old=A, target=B, began=NOW, tries_allowed=3)
    return replace(started(), deployment=replace(deployment, **more))


def at(phase: Phase, progress: Progress | None = None, **more: Any) -> Situation:
    return situation(deploying(phase, **more), progress=progress)


def idle(session: SessionState, detail: str = "", state: State | None = None, **more: Any) -> Situation:
    return situation(state, session=SessionView(session, NOW, detail), **more)


def on_trial(**more: Any) -> Situation:
    state = deploying(Phase.CONFIRMING, on_trial=True, **more)
    board = replace(BOARD, booted=B, primary=B)
    return situation(replace(state, board=board), board=board)


def in_place(phase: Phase, progress: Progress | None = None) -> Situation:
    identity = replace(NOTICE.identity, module=ModuleName("app"))
    notice = replace(NOTICE, identity=identity)
    return at(phase, progress, notice=notice, old=NO_SLOT, target=NO_SLOT, place=PlaceKind.STAGING)


def moving(**more: Any) -> Progress:
    return Progress(ID, **more)


OWED = replace(started(), outbox=(Inform(1, DEFAULT_MODULE), Inform(2, DEFAULT_MODULE)))
TAINTED = replace(started(), tainted=(A,))
FRESH_BOOT = replace(started(), settled=None)
NOWHERE = replace(BOARD, booted=None)
WAITS = {"waits_for": "the network (connection refused)", "waits_until": NOW + 42}

NEXT = {
    "idle, online": (idle(SessionState.ONLINE), "nothing to do: waits for a notice, asks again at 14:05"),
    "idle, asks in two days": (
        idle(SessionState.ONLINE, asks_at=NOW + 2 * 86400),
        "nothing to do: waits for a notice, asks again at 2026-11-25 10:15",
    ),
    "idle, does not know when it asks": (
        idle(SessionState.ONLINE, asks_at=None),
        "nothing to do: waits for a notice",
    ),
    "reports owed": (
        idle(SessionState.ONLINE, state=OWED),
        "send 2 reports to the platform, then wait for a notice",
    ),
    "connecting": (idle(SessionState.CONNECTING), "connect to the platform, then ask for an upgrade"),
    "connecting, reports owed": (
        idle(SessionState.CONNECTING, state=OWED),
        "connect to the platform, then send 2 reports",
    ),
    "offline": (
        idle(SessionState.OFFLINE, "connection refused, next attempt at 10:15:42"),
        "connect to the platform again: connection refused, next attempt at 10:15:42",
    ),
    "offline, reports owed": (
        idle(SessionState.OFFLINE, "no route to host", OWED),
        "connect to the platform again: no route to host; 2 reports to send",
    ),
    "credentials refused": (
        idle(SessionState.REFUSED, "bad user name or password, next attempt at 11:15"),
        "nothing until this is put right (credentials or trust): bad user name or password, next attempt at 11:15",
    ),
    "configuration wrong": (
        idle(SessionState.OFF, "1 error", problems=("config.toml: mqtt: one of host, instance and region is needed",)),
        "nothing until this is put right: config.toml: mqtt: one of host, instance and region is needed",
    ),
    "configuration wrong, and online": (
        idle(SessionState.ONLINE, passes_over="config.toml: health.directory: must be a path"),
        "nothing: no package is taken until this is put right: config.toml: health.directory: must be a path",
    ),
    "in place, half switched": (
        in_place(Phase.ACTIVATING, moving(bytes=45 * MIB, total=60 * MIB)),
        "switch module app to it (75 % done), then check its version and health",
    ),
    "no platform": (
        idle(SessionState.OFF, "no end point"),
        "nothing to do, there is no platform to ask: no end point",
    ),
    "in place, installing": (
        in_place(Phase.INSTALLING, moving(bytes=8 * MIB, total=16 * MIB)),
        "write 8 MiB more to module app",
    ),
    "in place, switching": (
        in_place(Phase.ACTIVATING),
        "switch module app to it, then check its version and health",
    ),
    "in place, waits for its version": (
        in_place(Phase.CONFIRMING, moving(waits_for="the new version to show", waits_until=NOW + 42)),
        "wait for the new version to show until 10:15:42, then trust module app, or roll it back",
    ),
    "in place, rolling back": (
        in_place(Phase.ROLLING_BACK),
        "bring back what module app had before, then report it",
    ),
    "another module waits": (
        replace(in_place(Phase.ROLLING_BACK), waiting={DEFAULT_MODULE: "9"}),
        "bring back what module app had before, then report it; then 9 of module default",
    ),
    "fresh boot": (
        idle(SessionState.ONLINE, state=FRESH_BOOT),
        "mark slot a good, then nothing to do: waits for a notice, asks again at 14:05",
    ),
    "fresh boot, store unwritable": (
        idle(
            SessionState.ONLINE,
            state=FRESH_BOOT,
            progress=Progress(None, waits_for="the boot loader's store (EIO)", waits_until=NOW + 42),
        ),
        (
            "wait for the boot loader's store (EIO), next attempt at 10:15:42, then mark slot a good, "
            "then nothing to do: waits for a notice, asks again at 14:05"
        ),
    ),
    "tainted slot": (
        idle(SessionState.ONLINE, state=TAINTED),
        (
            "slot a stays unconfirmed, its package was refused (`otad mark-good` trusts it); "
            "nothing to do: waits for a notice, asks again at 14:05"
        ),
    ),
    "not started": (situation(State()), "find out which slot is booted"),
    "not started, store unreadable": (
        situation(State(), progress=Progress(None, waits_for="the boot loader's store (EIO)", waits_until=NOW + 42)),
        "wait for the boot loader's store (EIO), next attempt at 10:15:42, then find out which slot is booted",
    ),
    "booted slot is none of ours": (
        situation(replace(started(), board=NOWHERE)),
        "nothing until slot a or b is booted: this system runs from none of them, and nothing is written",
    ),
    "none of ours, with a deployment": (
        situation(replace(deploying(), board=NOWHERE)),
        "nothing until slot a or b is booted: this system runs from none of them, and nothing is written",
    ),
    "downloading": (
        at(Phase.DOWNLOADING, moving(bytes=70 * MIB, total=512 * MIB, rate=2.0 * MIB + 9000)),
        "download 442 MiB more, about 3 min 40 s",
    ),
    "downloading, no rate yet": (
        at(Phase.DOWNLOADING, moving(bytes=70 * MIB, total=512 * MIB)),
        "download 442 MiB more",
    ),
    "downloading, not begun": (at(Phase.DOWNLOADING), "download 512 MiB more"),
    "downloading, after a restart": (at(Phase.DOWNLOADING, checkpoint=64 * MIB), "download 448 MiB more"),
    "downloading, late progress of another": (
        at(Phase.DOWNLOADING, Progress(DeploymentId("other"), 100 * MIB, 512 * MIB)),
        "download 512 MiB more",
    ),
    "waiting for the network": (
        at(Phase.DOWNLOADING, moving(bytes=70 * MIB, total=512 * MIB, **WAITS)),
        "wait for the network (connection refused), next attempt at 10:15:42, then download 442 MiB more",
    ),
    "checking": (
        at(Phase.DOWNLOADING, moving(bytes=512 * MIB, total=512 * MIB, checked=500 * MIB), place=PlaceKind.SLOT),
        "check 12 MiB more on the medium, then activate slot b",
    ),
    "checking a staging file": (
        at(Phase.DOWNLOADING, moving(bytes=512 * MIB, total=512 * MIB, checked=500 * MIB), place=PlaceKind.STAGING),
        "check 12 MiB more on the medium, then install it to slot b",
    ),
    "checked": (
        at(Phase.DOWNLOADING, moving(bytes=512 * MIB, total=512 * MIB, checked=512 * MIB)),
        "activate slot b",
    ),
    "installing": (
        at(Phase.INSTALLING, moving(bytes=100 * MIB, total=900 * MIB, rate=20.0 * MIB)),
        "write 800 MiB more to slot b, about 40 s",
    ),
    "installing, image's size not known": (
        at(Phase.INSTALLING, moving(bytes=100 * MIB)),
        "write on to slot b, 100 MiB so far, then activate it",
    ),
    "installing, written": (
        at(Phase.INSTALLING, moving(bytes=900 * MIB, total=900 * MIB, checked=880 * MIB)),
        "check 20 MiB more on the medium, then activate it",
    ),
    "activating": (at(Phase.ACTIVATING), "make slot b primary, then reboot"),
    "rebooting": (at(Phase.REBOOTING), "reboot into slot b"),
    "rebooting, ordered": (
        at(Phase.REBOOTING, moving(waits_for="the reboot into slot b", waits_until=NOW + 601)),
        "wait for the reboot into slot b, next attempt at 10:25",
    ),
    "confirming": (
        on_trial(),
        "check the version and the health of slot b, then mark it good, or roll back to slot a",
    ),
    "confirming, a check runs": (
        replace(on_trial(), progress=moving(waits_for="health check 20-app", waits_until=NOW + 900)),
        "wait for health check 20-app until 10:30, then mark slot b good, or roll back to slot a",
    ),
    "confirming, by hand": (on_trial(by_hand=True), "mark slot b good, by hand"),
    "rolling back": (
        replace(
            on_trial(),
            state=replace(on_trial().state, deployment=deploying(Phase.ROLLING_BACK, on_trial=True).deployment),
        ),
        "make slot a primary and reboot into it",
    ),
    "rolling back, old slot runs": (
        at(Phase.ROLLING_BACK, on_trial=True),
        "mark slot b bad, then report the rollback",
    ),
}


@pytest.mark.parametrize(("seen", "words"), NEXT.values(), ids=NEXT.keys())
def test_next_says_what_happens_next(seen: Situation, words: str) -> None:
    assert next_words(seen) == words


@pytest.mark.parametrize("seen", [seen for seen, _ in NEXT.values()], ids=NEXT.keys())
def test_the_document_is_what_its_definition_says(seen: Situation) -> None:
    conform("Status", json.loads(json.dumps(document(seen))))


def test_a_whole_document() -> None:
    gateway = Gateway()
    gateway.notice()
    gateway.fail()
    gateway.state = replace(gateway.state, refusals=(replace(gateway.state.refusals[0], lapses=NOW + 86400),))
    ended_by_failing = gateway.state
    state = replace(
        ended_by_failing,
        deployment=Deployment(
            DeploymentId("x-9"),
            replace(NOTICE, identity=replace(NOTICE.identity, version="3-0-0")),
            Phase.DOWNLOADING,
            old=A,
            target=B,
            began=NOW,
            tries_allowed=3,
            tries=1,
            checkpoint=64 * MIB,
            resumed=1,
            reason=Failure(Code.DIGEST, "sha256: what the medium holds is another package"),
        ),
    )
    progress = Progress(
        DeploymentId("x-9"), 70 * MIB, 512 * MIB, 48 * MIB, 2.0 * MIB, 1, "the network (timed out)", NOW + 5.5
    )

    found = document(situation(state, progress=progress, problems=("module default: version not known",)))

    assert found == {
        "schema": 1,
        "otad_version": found["otad_version"],
        "device": {"product_key": "a1B2c3D4e5F", "device_name": "gateway-0001"},
        "session": {"state": "online", "since": "2026-11-23T10:15:00Z", "detail": ""},
        "booted": "a",
        "slots": {
            "a": {
                "bootname": "A",
                "device": "/dev/disk/by-partlabel/rootfs-a",
                "good": True,
                "primary": True,
                "attempts_left": 3,
                "confirmed": True,
                "version": "1-0-0",
            },
            "b": {
                "bootname": "B",
                "device": "/dev/disk/by-partlabel/rootfs-b",
                "good": False,
                "primary": False,
                "attempts_left": 0,
                "confirmed": False,
                "version": None,
            },
        },
        "modules": {"default": {"version": "1-0-0"}},
        "deployment": {
            "id": "x-9",
            "module": "default",
            "version": "3-0-0",
            "phase": "downloading",
            "target": "b",
            "since": "2026-11-23T10:15:00Z",
            "bytes": 73400320,
            "total": 536870912,
            "checked": 50331648,
            "checkpoint": 67108864,
            "rate": 2097152,
            "resumed": 2,
            "attempt": 2,
            "waits_for": "the network (timed out)",
            "waits_until": "2026-11-23T10:15:05Z",
            "reason": "sha256: what the medium holds is another package",
            "held": None,
        },
        "waiting": {},
        "refused": [
            {
                "module": "default",
                "version": "2-0-0",
                "reason": "example.com: 404 Not Found",
                "since": "2026-11-23T10:15:00Z",
                "lapses": "2026-11-24T10:15:00Z",
            }
        ],
        "last": {
            "id": found["last"]["id"],  # type: ignore[index, call-overload]
            "module": "default",
            "version": "2-0-0",
            "origin": "platform",
            "outcome": "failed",
            "code": "http_status",
            "reason": "example.com: 404 Not Found",
            "began": "2026-11-23T10:15:00Z",
            "ended": "2026-11-23T10:15:00Z",
            "bytes": 0,
            "resumed": 0,
            "tries": 1,
        },
        "outbox": 1,
        "problems": ["module default: version not known"],
        "next": "wait for the network (timed out), next attempt at 10:15:05, then download 442 MiB more, "
        "about 3 min 41 s",
    }
    conform("Status", found)


def test_a_store_that_cannot_be_read_leaves_null_and_no_guess() -> None:
    found = document(situation(board=None))

    assert found["booted"] == "a"
    assert found["slots"]["a"] == {  # type: ignore[index, call-overload]
        "bootname": "A",
        "device": "/dev/disk/by-partlabel/rootfs-a",
        "good": None,
        "primary": False,
        "attempts_left": None,
        "confirmed": None,
        "version": "1-0-0",
    }


def test_the_booted_slot_has_the_version_that_runs() -> None:
    facts = {A: SlotFacts("A", "/dev/a", None), B: SlotFacts("B", "/dev/b", None)}

    slots = document(situation(slots=facts))["slots"]

    assert [slots[name]["version"] for name in "ab"] == ["1-0-0", None]  # type: ignore[index, call-overload]


def test_the_url_of_a_package_is_in_no_document() -> None:
    assert "signature" not in json.dumps(document(at(Phase.DOWNLOADING)))


@given(
    now=st.integers(-(10**18), 10**18),
    asks_at=st.none() | st.floats(-1e18, 1e18),
    until=st.none() | st.floats(-1e18, 1e18),
    size=st.integers(0, 1 << 60),
    done=st.integers(0, 1 << 60),
    rate=st.floats(0, 1e15),
    phase=st.sampled_from(Phase),
    session=st.sampled_from(SessionState),
    waits=st.text(max_size=5),
)
def test_no_clock_and_no_count_is_without_a_status(
    now: int,
    asks_at: float | None,
    until: float | None,
    size: int,
    done: int,
    rate: float,
    phase: Phase,
    session: SessionState,
    waits: str,
) -> None:
    seen = situation(
        deploying(phase, began=now),
        now=now,
        asks_at=asks_at,
        session=SessionView(session, now, waits),
        progress=moving(bytes=done, total=size, rate=rate, waits_for=waits, waits_until=until),
    )

    conform("Status", document(seen))
    assert next_words(seen)


def test_every_state_of_an_upgrade_says_what_is_next() -> None:
    """From notice to rollback, by the real core: no two phases say the same."""
    state, said = started(), []
    state = step(state, Noticed(NOTICE, "offer", "1-0-0", 3, NOW))
    while state.deployment is not None and state.deployment.phase is not Phase.REBOOTING:
        said.append(next_words(situation(state)))
        work = work_for(state)
        assert work is not None
        state = step(state, Finished(work, NOW))
    work = work_for(state)
    assert work is not None
    said.append(next_words(situation(state)))
    state = step(state, Failed(work, Failure(Code.BOOT, "no reboot"), NOW))
    said.append(next_words(situation(state)))

    assert said == [
        "download 512 MiB more",
        "make slot b primary, then reboot",
        "reboot into slot b",
        "mark slot b bad, then report the rollback",
    ]


def test_a_rollback_by_hand_says_where_it_goes() -> None:
    board = replace(BOARD, slots=(BOARD.slots[0], SlotView(B, True, 3, True)))
    state = step(started(), RollBackRequested(board, DEFAULT_MODULE, "1-0-0", NOW))

    assert state.deployment is not None
    assert state.deployment.target == Slot("a")
    assert next_words(situation(state)) == "make slot b primary and reboot into it"
