# SPDX-License-Identifier: Apache-2.0
"""The floor: what moves it, what does not, and what is left of it after a restart."""

import json
import logging
import time
from pathlib import Path

import pytest

from otad.clock import BUILD, BYTES_MAX, DAY_S, FLOOR_MAX, Clock
from otad.durable import RealDisk

YEAR_S = 365 * DAY_S
LATER = BUILD + YEAR_S
FOR_EVER = FLOOR_MAX + YEAR_S


class Time:
    """A system clock that somebody sets, and a monotonic one that nobody does."""

    def __init__(self, system: float = LATER, monotonic: float = 10) -> None:
        self.now, self.monotonic = system, monotonic


def loaded(directory: Path, at: Time | None = None) -> Clock:
    at = at or Time()
    clock = Clock(RealDisk(), directory, system=lambda: at.now, monotonic=lambda: at.monotonic)
    clock.load()
    return clock


def saved(directory: Path) -> int | None:
    file = directory / "clock.json"
    return json.loads(file.read_text())["floor"] if file.exists() else None


def test_the_build_is_in_the_past() -> None:
    assert time.time() >= BUILD


def test_the_floor_is_the_build_until_something_is_learned(tmp_path: Path) -> None:
    clock = loaded(tmp_path)

    assert (clock.floor, saved(tmp_path)) == (BUILD, None)


@pytest.mark.parametrize(("system", "behind"), [(0, True), (BUILD - 1, True), (BUILD, False), (LATER, False)])
def test_a_system_clock_before_the_floor_is_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, system: int, behind: bool
) -> None:
    loaded(tmp_path, Time(system))

    assert ["is wrong" in message for message in caplog.messages] == [True] * behind


def test_a_learned_time_is_the_floor_now_and_after_a_restart(tmp_path: Path) -> None:
    clock = loaded(tmp_path)

    clock.learned(LATER + 0.7, FOR_EVER)

    assert (clock.floor, loaded(tmp_path).floor) == (LATER, LATER)


@pytest.mark.parametrize(
    ("now_s", "valid_until_s"),
    [
        (BUILD - 1, FOR_EVER),
        (BUILD, FOR_EVER),
        (0, FOR_EVER),
        (-1, FOR_EVER),
        (LATER, LATER - 1),
        (LATER, BUILD - 1),
        (LATER, None),
        (FLOOR_MAX + 1, FOR_EVER),
        (float("inf"), FOR_EVER),
        (float("nan"), FOR_EVER),
    ],
    ids=[
        "earlier",
        "the same",
        "1970",
        "before 1970",
        "after the certificate",
        "the certificate is over",
        "not authenticated",
        "far too late",
        "never",
        "no number",
    ],
)
def test_the_floor_stays(tmp_path: Path, now_s: float, valid_until_s: int | None) -> None:
    clock = loaded(tmp_path)

    clock.learned(now_s, valid_until_s)

    assert (clock.floor, saved(tmp_path)) == (BUILD, None)


def test_a_time_up_to_the_end_of_the_certificate_and_no_later_than_the_bound_is_believed(tmp_path: Path) -> None:
    clock = loaded(tmp_path)

    clock.learned(LATER, LATER)
    assert clock.floor == LATER
    clock.learned(FLOOR_MAX, FOR_EVER)
    assert loaded(tmp_path).floor == FLOOR_MAX


def test_it_is_saved_once_a_day(tmp_path: Path) -> None:
    clock = loaded(tmp_path)
    clock.learned(LATER, FOR_EVER)

    clock.learned(LATER + DAY_S - 1, FOR_EVER)
    assert (clock.floor, saved(tmp_path)) == (LATER + DAY_S - 1, LATER)
    clock.learned(LATER + DAY_S, FOR_EVER)
    assert saved(tmp_path) == LATER + DAY_S


def test_a_floor_that_cannot_be_saved_counts_while_the_process_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "state"
    clock = loaded(directory)

    clock.learned(LATER, FOR_EVER)

    assert clock.floor == LATER
    assert f"{directory}/clock.json: No such file or directory: the time that was learned is not kept" in caplog.text
    directory.mkdir()
    clock.learned(LATER + 1, FOR_EVER)
    assert saved(directory) == LATER + 1


def test_a_newer_otad_knows_better_than_an_old_file(tmp_path: Path) -> None:
    (tmp_path / "clock.json").write_text('{"schema": 1, "floor": 0, "utc": "1970-01-01T00:00:00Z"}')

    assert loaded(tmp_path).floor == BUILD


def test_what_a_newer_otad_adds_is_passed_over(tmp_path: Path) -> None:
    loaded(tmp_path).learned(LATER, FOR_EVER)
    file = tmp_path / "clock.json"
    file.write_text(file.read_text().replace("}", ', "from": "somebody"}'))

    assert loaded(tmp_path).floor == LATER


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not JSON"),
        (b'{"schema": 1, "flo', "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
        (b"[" * 4000, "not JSON"),
        (b"[]", "not of schema 1"),
        (b'{"schema": 2, "floor": 1895651200, "utc": "2030-01-26T10:26:40Z"}', "not of schema 1"),
        (b'{"schema": 1}', "damaged"),
        (b'{"schema": 1, "floor": 1895651200, "utc": "2031-01-26T10:26:40Z"}', "damaged"),
        (b'{"schema": 1, "floor": true, "utc": "1970-01-01T00:00:01Z"}', "damaged"),
        (b'{"schema": 1, "floor": 95617584000, "utc": "5000-01-01T00:00:00Z"}', "damaged"),
        (b'{"schema": 1, "floor": 1e400, "utc": ""}', "damaged"),
        (b" " * (BYTES_MAX + 1), f"more than {BYTES_MAX} bytes"),
    ],
)
def test_a_damaged_file_is_said_once_and_written_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, says: str
) -> None:
    (tmp_path / "clock.json").write_bytes(content)

    clock = loaded(tmp_path)

    assert clock.floor == BUILD
    said = f"{tmp_path}/clock.json: {says}: going on from the date of this otad, "
    assert [record.message.startswith(said) for record in caplog.records] == [True]
    clock.learned(LATER, FOR_EVER)
    assert loaded(tmp_path).floor == LATER


def test_a_file_that_cannot_be_read_is_no_reason_not_to_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "clock.json").mkdir()

    assert loaded(tmp_path).floor == BUILD
    assert "clock.json: Is a directory: going on from" in caplog.text


def test_a_clock_that_is_behind_is_said_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    loaded(tmp_path, Time(LATER)).learned(LATER, FOR_EVER)
    assert caplog.messages == []

    loaded(tmp_path, Time(3))

    said = "the system clock says 1970-01-01T00:00:03Z and is wrong: it is 2027-11-26T00:00:00Z or later"
    assert caplog.messages == [f"{said}; certificates are held against that"]


def test_the_time_is_asked_for_once_a_day(tmp_path: Path) -> None:
    at = Time()
    clock = loaded(tmp_path, at)
    assert clock.wants_time
    clock.learned(LATER, FOR_EVER)

    assert not clock.wants_time
    at.now += 2 * DAY_S  # somebody sets it
    at.monotonic += DAY_S - 1
    assert not clock.wants_time
    at.monotonic += 1
    assert clock.wants_time


def test_an_answer_that_is_not_believed_is_not_asked_for_again_at_once(tmp_path: Path) -> None:
    clock = loaded(tmp_path)
    clock.learned(0, FOR_EVER)

    assert not clock.wants_time
