# SPDX-License-Identifier: Apache-2.0
"""What the daemon remembers, on real files."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from otad.core.model import (
    DEFAULT_MODULE,
    BootId,
    Deployment,
    DeploymentId,
    Ended,
    Identity,
    Notice,
    Origin,
    Outcome,
    Phase,
    Slot,
    State,
)
from otad.durable import RealDisk
from otad.errors import Code, Failure
from otad.store import HISTORY_BYTES_MAX, InUseError, Lock, Store, utc

ENDED = Ended(
    id=DeploymentId("1"),
    module=DEFAULT_MODULE,
    version="2-0-0",
    origin=Origin.PLATFORM,
    outcome=Outcome.ROLLED_BACK,
    failure=Failure(Code.HEALTH, "health check 10-app: exit status 1: no"),
    began=1_700_000_000,
    ended=1_700_000_060,
    bytes=1024,
    resumed=2,
    tries=1,
)
STATE = State(
    known=True,
    serial=7,
    boot_id=BootId("x"),
    deployment=Deployment(
        id=DeploymentId("1"),
        notice=Notice(Identity(DEFAULT_MODULE, "2-0-0", 0, None), ""),
        phase=Phase.DOWNLOADING,
        old=Slot("a"),
        target=Slot("b"),
        began=0,
        tries_allowed=3,
    ),
)


class Broken(RealDisk):
    """Reads of the state fail, `times` times."""

    def __init__(self, times: int) -> None:
        self.times = times

    def read(self, path: Path, bytes_max: int) -> bytes:
        if path.name == "state.json" and self.times:
            self.times -= 1
            raise OSError(5, "Input/output error", str(path))
        return super().read(path, bytes_max)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(RealDisk(), tmp_path / "state")
    made.load()
    return made


def lines(store: Store) -> bytes:
    return (store.staging.parent / "history.jsonl").read_bytes()


def numbered(number: int) -> Ended:
    return replace(ENDED, id=DeploymentId(str(number)))


# -- state


def test_without_a_state_file_there_is_no_memory(tmp_path: Path) -> None:
    assert Store(RealDisk(), tmp_path / "state").load() == State()


def test_loading_makes_the_directories_for_the_owner_alone(tmp_path: Path) -> None:
    store = Store(RealDisk(), tmp_path / "new" / "state")
    store.load()

    assert [path.stat().st_mode & 0o777 for path in (store.staging.parent, store.staging)] == [0o700, 0o700]


def test_what_was_saved_is_loaded(store: Store) -> None:
    store.save(STATE)

    assert store.load() == STATE
    assert (store.staging.parent / "state.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"schema": 99}', b"x" * (2 << 20)])
def test_a_state_that_cannot_be_read_is_set_aside_and_said(
    store: Store, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = store.staging.parent / "state.json"
    file.write_bytes(content)

    assert store.load() == State()
    assert not file.exists()
    assert file.with_name("state.json.broken").read_bytes() == content
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "set aside as state.json.broken" in caplog.text


def test_a_second_broken_state_takes_the_place_of_the_first(store: Store) -> None:
    file = store.staging.parent / "state.json"
    for content in (b"one", b"two"):
        file.write_bytes(content)
        store.load()

    assert file.with_name("state.json.broken").read_bytes() == b"two"


def test_a_damaged_byte_is_noticed(store: Store) -> None:
    store.save(STATE)
    file = store.staging.parent / "state.json"
    file.write_bytes(file.read_bytes().replace(b'"serial": 7', b'"serial": 8'))

    assert store.load() == State()


def test_a_medium_that_hiccups_costs_no_memory(store: Store) -> None:
    store.save(STATE)

    assert Store(Broken(times=2), store.staging.parent).load() == STATE


def test_a_medium_that_never_gives_the_state_back_does_not_stop_the_daemon(store: Store) -> None:
    store.save(STATE)

    assert Store(Broken(times=1000), store.staging.parent).load() == State()
    assert (store.staging.parent / "state.json.broken").exists()


def test_a_leftover_of_a_cut_save_is_no_obstacle(store: Store) -> None:
    (store.staging.parent / "state.json.tmp").write_text("half")
    store.save(STATE)

    assert store.load() == STATE


# -- history


def test_an_ended_deployment_is_one_line(store: Store) -> None:
    store.file(ENDED)

    assert lines(store).count(b"\n") == 1
    assert store.history() == [
        {
            "id": "1",
            "module": "default",
            "version": "2-0-0",
            "origin": "platform",
            "outcome": "rolled_back",
            "code": "health",
            "reason": "health check 10-app: exit status 1: no",
            "began": "2023-11-14T22:13:20Z",
            "ended": "2023-11-14T22:14:20Z",
            "bytes": 1024,
            "resumed": 2,
            "tries": 1,
        }
    ]


def test_without_a_file_there_is_no_history(store: Store) -> None:
    assert store.history() == []


def test_a_deployment_filed_twice_is_shown_once_as_it_was_first(store: Store) -> None:
    store.file(ENDED)
    store.file(replace(ENDED, outcome=Outcome.SUCCEEDED))
    store.file(numbered(2))

    assert [(line["id"], line["outcome"]) for line in store.history()] == [("1", "rolled_back"), ("2", "rolled_back")]


def test_a_torn_last_line_is_passed_over_and_does_not_spoil_the_next(store: Store) -> None:
    store.file(ENDED)
    file = store.staging.parent / "history.jsonl"
    file.write_bytes(lines(store) + lines(store)[:40])
    store.file(numbered(2))

    assert [line["id"] for line in store.history()] == ["1", "2"]


@pytest.mark.parametrize("junk", [b"null\n", b"[]\n", b'{"id": 5}\n', b"\xff\xfe\n", b"[" * 100_000 + b"\n"])
def test_lines_that_are_none_are_passed_over(store: Store, junk: bytes) -> None:
    (store.staging.parent / "history.jsonl").write_bytes(junk)
    store.file(ENDED)

    assert [line["id"] for line in store.history()] == ["1"]


def test_the_history_is_bounded_and_never_loses_the_newest(store: Store) -> None:
    long = replace(ENDED, failure=Failure(Code.HEALTH, "x" * 3000))
    for number in range(400):
        store.file(replace(long, id=DeploymentId(str(number))))

        assert store.history()[-1]["id"] == str(number)

    assert len(lines(store)) <= HISTORY_BYTES_MAX + 4096
    kept = [int(line["id"]) for line in store.history()]
    assert kept == list(range(kept[0], 400))
    assert len(lines(store)) > HISTORY_BYTES_MAX // 4


def test_a_torn_line_at_the_bound_does_not_spoil_the_next(store: Store) -> None:
    file = store.staging.parent / "history.jsonl"
    store.file(ENDED)
    line = lines(store)
    file.write_bytes(line * (HISTORY_BYTES_MAX // len(line) + 1) + line[:40])
    store.file(numbered(2))

    assert [line["id"] for line in store.history()] == ["1", "2"]
    assert all(json.loads(text)["id"] in "12" for text in lines(store).splitlines() if text != line[:40])


@pytest.mark.parametrize(
    ("at", "text"), [(0, "1970-01-01T00:00:00Z"), (-5, "1970-01-01T00:00:00Z"), (1e18, "9999-12-31T23:59:59Z")]
)
def test_a_wrong_clock_still_gives_a_date(at: float, text: str) -> None:
    assert utc(at) == text


# -- lock


def test_one_directory_has_one_daemon(tmp_path: Path) -> None:
    lock = Lock(tmp_path)

    with pytest.raises(InUseError, match="in use by a running otad"):
        Lock(tmp_path)
    lock.release()
    Lock(tmp_path).release()


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = f"import os, pathlib; from otad.store import Lock; Lock(pathlib.Path({str(tmp_path)!r})); os._exit(0)"
    subprocess.run([sys.executable, "-c", code], check=True)

    Lock(tmp_path).release()


def test_a_program_that_the_daemon_starts_does_not_hold_the_lock(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    with subprocess.Popen(["sleep", "60"]) as child:
        lock.release()
        Lock(tmp_path).release()
        child.kill()
