# SPDX-License-Identifier: Apache-2.0
"""What people see, whole. `next` and the documents are test_status's."""

import json
from datetime import UTC, timedelta, timezone
from textwrap import dedent
from typing import Any

import pytest

from otad import __version__
from otad.render import Style, bar, change_key, change_text, history_text, printable, slots_text, status_text
from tests.control.gateway import MIB, Gateway

PLAIN = Style(zone=UTC)
TERMINAL = Style(glyphs=True, bars=True, zone=UTC)


def idle() -> dict[str, Any]:
    return dict(Gateway().document())


def downloading() -> dict[str, Any]:
    gateway = Gateway()
    gateway.notice()
    gateway.download(70 * MIB)
    return dict(gateway.document())


def failed() -> dict[str, Any]:
    gateway = Gateway()
    gateway.notice()
    gateway.fail()
    return dict(gateway.document())


def text(block: str) -> str:
    return dedent(block).strip("\n").replace("{otad}", __version__)


def test_idle() -> None:
    assert status_text(idle(), PLAIN) == text("""
        device      gateway-0001, product a1B2c3D4e5F, otad {otad}
        session     online since 2026-11-23 10:15:00

        SLOT  VERSION  STATE                  ATTEMPTS  BOOTNAME  DEVICE
        a     1-0-0    booted, primary, good         3  A         /dev/disk/by-partlabel/rootfs-a
        b     -        bad                           0  B         /dev/disk/by-partlabel/rootfs-b

        next: nothing to do: waits for a notice, asks again at 14:05
        """)


def test_downloading() -> None:
    assert status_text(downloading(), PLAIN) == text("""
        device      gateway-0001, product a1B2c3D4e5F, otad {otad}
        session     online since 2026-11-23 10:15:00

        SLOT  VERSION  STATE                  ATTEMPTS  BOOTNAME  DEVICE
        a     1-0-0    booted, primary, good         3  A         /dev/disk/by-partlabel/rootfs-a
        b     -        bad, being written            0  B         /dev/disk/by-partlabel/rootfs-b

        deployment  2-0-0 to slot b: downloading
                    13 %  70 MiB of 512 MiB  2 MiB/s  3 min 41 s left  64 MiB checked
                    after a power cut it goes on from 64 MiB

        next: download 442 MiB more, about 3 min 41 s
        """)


def test_downloading_on_a_terminal() -> None:
    assert status_text(downloading(), TERMINAL) == text("""
        device      gateway-0001, product a1B2c3D4e5F, otad {otad}
        session     online since 2026-11-23 10:15:00

          SLOT  VERSION  STATE                  ATTEMPTS  BOOTNAME  DEVICE
        ● a     1-0-0    booted, primary, good         3  A         /dev/disk/by-partlabel/rootfs-a
        × b     -        bad, being written            0  B         /dev/disk/by-partlabel/rootfs-b

        deployment  2-0-0 to slot b: downloading
                    ━━━━──────────────────────────  13 %  70 MiB of 512 MiB  2 MiB/s  3 min 41 s left  64 MiB checked
                    after a power cut it goes on from 64 MiB

        next: download 442 MiB more, about 3 min 41 s
        """)


def test_failed_and_refused() -> None:
    status = failed() | {"problems": ["config.toml: modules.app.version: missing"], "outbox": 2}
    status["modules"]["app"] = {"version": None}

    assert status_text(status, PLAIN) == text("""
        device      gateway-0001, product a1B2c3D4e5F, otad {otad}
        session     online since 2026-11-23 10:15:00
        problem     config.toml: modules.app.version: missing

        SLOT  VERSION  STATE                  ATTEMPTS  BOOTNAME  DEVICE
        a     1-0-0    booted, primary, good         3  A         /dev/disk/by-partlabel/rootfs-a
        b     -        bad                           0  B         /dev/disk/by-partlabel/rootfs-b

        modules     default 1-0-0
                    app (version not known)
        last        2-0-0 failed: example.com: 404 Not Found, 2026-11-23 10:15:00
        refused     2-0-0 since 2026-11-23 10:15:00: example.com: 404 Not Found
                    `otad retry` lifts it
        outbox      2 reports wait for the platform

        next: send 1 report to the platform, then wait for a notice
        """)


def test_on_trial() -> None:
    status = downloading()
    status["booted"] = "b"
    status["slots"]["a"] |= {"primary": False}
    status["slots"]["b"] |= {"good": True, "primary": True, "confirmed": False, "attempts_left": 2, "version": "2-0-0"}
    status["deployment"] |= {"phase": "rolling_back", "attempt": 2, "reason": "health check 20-app: exit status 1"}
    status["session"] = {"state": "offline", "since": "2026-11-23T10:15:00Z", "detail": "no route to host"}
    status["next"] = "make slot a primary and reboot into it"

    assert status_text(status, TERMINAL) == text("""
        device      gateway-0001, product a1B2c3D4e5F, otad {otad}
        session     offline since 2026-11-23 10:15:00: no route to host

          SLOT  VERSION  STATE                                 ATTEMPTS  BOOTNAME  DEVICE
        ○ a     1-0-0    good                                         3  A         /dev/disk/by-partlabel/rootfs-a
        ● b     2-0-0    booted, primary, good, not confirmed         2  B         /dev/disk/by-partlabel/rootfs-b

        deployment  2-0-0 to slot b: rolling back, attempt 2
                    because of health check 20-app: exit status 1

        modules     default 1-0-0

        next: make slot a primary and reboot into it
        """)


def test_a_status_of_the_contract_alone_is_enough() -> None:
    """An older daemon gives no more than this."""
    status = {
        "schema": 1,
        "otad_version": "0.0.9",
        "device": {"product_key": "pk", "device_name": "gw"},
        "session": {"state": "connecting", "since": "2026-11-23T10:15:00Z", "detail": ""},
        "booted": None,
        "slots": {},
        "modules": {},
        "deployment": {
            "id": "1",
            "module": "app",
            "version": "3",
            "phase": "downloading",
            "bytes": 0,
            "total": 0,
            "rate": 0,
            "resumed": 1,
            "attempt": 1,
            "held": {"reason": "window", "until": None, "detail": "window 02:00-04:00"},
        },
        "outbox": 0,
        "next": "wait",
    }

    assert status_text(status, PLAIN) == text("""
        device      gw, product pk, otad 0.0.9
        session     connecting since 2026-11-23 10:15:00

        SLOT  VERSION  STATE  ATTEMPTS  BOOTNAME  DEVICE

        deployment  app 3: downloading
                    0 B, 0 B/s
                    resumed once
                    held: window 02:00-04:00

        next: wait
        """)


def test_slots_alone() -> None:
    assert slots_text(idle(), PLAIN) == text("""
        SLOT  VERSION  STATE                  ATTEMPTS  BOOTNAME  DEVICE
        a     1-0-0    booted, primary, good         3  A         /dev/disk/by-partlabel/rootfs-a
        b     -        bad                           0  B         /dev/disk/by-partlabel/rootfs-b
        """)


def test_history() -> None:
    first = failed()["last"]
    second = first | {"version": "2-0-1", "outcome": "succeeded", "reason": None, "bytes": 512 * MIB, "resumed": 12}
    of_a_newer_otad = {"module": "app", "version": "", "outcome": "postponed", "ended": "some day"}

    assert history_text([first, second, of_a_newer_otad], PLAIN) == text("""
        ENDED                MODULE   VERSION  OUTCOME      BYTES  RESUMED  REASON
        2026-11-23 10:15:00  default  2-0-0    failed         0 B        0  example.com: 404 Not Found
        2026-11-23 10:15:00  default  2-0-1    succeeded  512 MiB       12
        some day             app      -        postponed      0 B        0
        """)


def test_no_history_says_so() -> None:
    assert history_text([]) == "no deployment has ended yet"


def test_a_line_per_change() -> None:
    after_rollback = failed()
    after_rollback["last"] |= {"outcome": "rolled_back", "reason": "health check 20-app: exit status 1"}

    assert [change_text(status) for status in (idle(), downloading(), after_rollback)] == [
        "next: nothing to do: waits for a notice, asks again at 14:05",
        "2-0-0 downloading 13 %; next: download 442 MiB more, about 3 min 41 s",
        (
            "2-0-0 rolled back: health check 20-app: exit status 1; "
            "next: send 1 report to the platform, then wait for a notice"
        ),
    ]


@pytest.mark.parametrize(
    ("change", "is_worth_a_line"),
    [
        ({}, False),
        ({"bytes": 72 * MIB, "rate": 7}, False),
        ({"bytes": 90 * MIB}, True),
        ({"phase": "installing"}, True),
        ({"attempt": 2}, True),
        ({"waits_for": "the network"}, True),
    ],
)
def test_which_changes_are_worth_a_line(change: dict[str, Any], is_worth_a_line: bool) -> None:
    changed = downloading()
    changed["deployment"] |= change

    assert (change_key(changed) != change_key(downloading())) is is_worth_a_line


def test_colours_change_no_word() -> None:
    import re

    coloured = Style(colours=True, glyphs=True, bars=True, zone=UTC)
    for status in (idle(), downloading(), failed()):
        shown = status_text(status, coloured)

        assert "\x1b[32monline\x1b[0m" in shown
        assert re.sub(r"\x1b\[\d+m", "", shown) == status_text(status, TERMINAL)


def test_times_are_those_of_the_machine() -> None:
    shanghai = Style(zone=timezone(timedelta(hours=8)))

    assert "online since 2026-11-23 18:15:00" in status_text(idle(), shanghai)


HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202e\u2028x\ud800"


def test_nothing_that_moves_a_cursor_gets_through() -> None:
    """A version, a reason or a health check's last line may be anything."""

    def poisoned(value: Any) -> Any:
        match value:
            case str() if not value[:3].isdigit():
                return value + HOSTILE
            case list():
                return [poisoned(item) for item in value]
            case dict():
                return {key: poisoned(item) for key, item in value.items()}
            case _:
                return value

    status = poisoned(failed() | {"problems": ["x"], "deployment": downloading()["deployment"]})
    status["slots"] = {HOSTILE: status["slots"]["a"]}
    status["session"]["state"] = "online" + HOSTILE

    for shown in (
        status_text(status, TERMINAL),
        slots_text(status, TERMINAL),
        history_text([status["last"]]),
        change_text(status),
        printable(HOSTILE),
    ):
        assert all(c.isprintable() or c == "\n" for c in shown)
        assert "\N{REPLACEMENT CHARACTER}[2J" in shown


@pytest.mark.parametrize(
    ("part", "whole", "plain", "glyphs"),
    [
        (0, 10, "[----------]", "──────────"),
        (1, 20, "[----------]", "╸─────────"),
        (5, 10, "[#####-----]", "━━━━━─────"),
        (99, 100, "[#########-]", "━━━━━━━━━╸"),
        (10, 10, "[##########]", "━━━━━━━━━━"),
        (20, 10, "[##########]", "━━━━━━━━━━"),
        (5, 0, "[----------]", "──────────"),
    ],
)
def test_bars(part: int, whole: int, plain: str, glyphs: str) -> None:
    assert bar(part, whole, PLAIN, cells=10) == plain
    assert bar(part, whole, TERMINAL, cells=10) == glyphs


def test_documents_are_left_as_they_were() -> None:
    status = downloading()
    before = json.dumps(status)
    status_text(status)

    assert json.dumps(status) == before
