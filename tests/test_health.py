# SPDX-License-Identifier: Apache-2.0
"""The health gate: what passes, what fails, and what a check may do to us."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from otad.config import HealthSettings
from otad.errors import Code, Failure, UpdateError
from otad.health import check


class World:
    """A directory of checks, a `systemctl` of our own, and what was said meanwhile."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "health.d"
        self.directory.mkdir()
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.order = directory / "order"
        self.said: list[tuple[str, float]] = []
        self.environment: dict[str, str] = {}

    def add(self, name: str, script: str, mode: int = 0o755) -> Path:
        return self._program(self.directory / name, f"echo {name} >> {self.order}\n{script}", mode)

    def add_systemctl(self, script: str) -> None:
        self._program(self.bin / "systemctl", f'echo "$*" >> {self.order}\n{script}', 0o755)

    def ran(self) -> list[str]:
        return self.order.read_text().splitlines() if self.order.exists() else []

    async def run(self, timeout_s: float = 30, units: tuple[str, ...] = (), directory: Path | None = None) -> None:
        settings = HealthSettings(directory=directory or self.directory, units=units, timeout_s=timeout_s)
        await check(settings, self.environment, lambda what, left_s: self.said.append((what, left_s)))

    async def failure(self, timeout_s: float = 30, units: tuple[str, ...] = ()) -> Failure:
        with pytest.raises(UpdateError) as caught:
            await self.run(timeout_s, units)
        assert caught.value.failure.code == Code.HEALTH
        return caught.value.failure

    def _program(self, path: Path, script: str, mode: int) -> Path:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(mode)
        return path


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}:{os.environ['PATH']}")
    return made


# -- which ones, in which order


async def test_all_checks_are_run_in_the_order_of_their_names(world: World) -> None:
    for name in ("20-net", "10-app", "B", "a", "100-last"):
        world.add(name, "")

    await world.run()
    assert world.ran() == ["10-app", "100-last", "20-net", "B", "a"]


async def test_an_empty_or_missing_directory_is_healthy(world: World) -> None:
    await world.run()
    await world.run(directory=world.directory / "missing")


async def test_a_directory_that_cannot_be_read_is_not(world: World) -> None:
    file = world.directory / "file"
    file.write_text("")

    with pytest.raises(UpdateError) as caught:
        await world.run(directory=file)
    assert caught.value.failure == Failure(Code.HEALTH, f"{file}: Not a directory")


async def test_what_is_no_check_is_passed_over(world: World, caplog: pytest.LogCaptureFixture) -> None:
    for name in (".hidden", "10-app~", "10-app.dpkg-old", "10-app.dpkg-new"):
        world.add(name, "exit 1")
    world.add("README", "exit 1", mode=0o644)
    world.add("10-app", "")
    (world.directory / "subdirectory").mkdir()
    (world.directory / "dangling").symlink_to("nothing")
    os.mkfifo(world.directory / "pipe")

    await world.run()
    assert world.ran() == ["10-app"]
    assert [record.message for record in caplog.records] == [
        f"{world.directory / 'README'}: not executable, so not a health check"
    ]


async def test_a_link_to_a_program_is_a_check(world: World) -> None:
    (world.directory / "10-true").symlink_to("/bin/true")
    (world.directory / "20-false").symlink_to("/bin/false")

    assert (await world.failure()).detail == "health check 20-false: exit status 1: no output"


# -- how they end


async def test_the_first_that_fails_ends_it_with_its_name_and_its_last_line(world: World) -> None:
    world.add("10-good", "echo fine")
    world.add("20-bad", "echo looking; echo 'no answer from 10.0.0.1' >&2; exit 3")
    world.add("30-never", "")

    assert (await world.failure()).detail == "health check 20-bad: exit status 3: no answer from 10.0.0.1"
    assert world.ran() == ["10-good", "20-bad"]


async def test_a_check_that_is_killed_has_failed(world: World) -> None:
    world.add("10-crash", "kill -SEGV $$")

    assert (await world.failure()).detail == "health check 10-crash: killed by signal 11: no output"


async def test_a_check_that_cannot_be_run_has_failed(world: World) -> None:
    (world.directory / "10-none").write_bytes(b"\x00\x01\x02")
    (world.directory / "10-none").chmod(0o755)

    assert (await world.failure()).detail == "health check 10-none: Exec format error"


async def test_75_means_ask_again(world: World) -> None:
    world.add("10-slow", f"echo 'database starts'; [ $(wc -l < {world.order}) -ge 2 ] || exit 75")

    await world.run()
    assert world.ran() == ["10-slow", "10-slow"]
    assert [what for what, _ in world.said] == ["health check 10-slow", "health check 10-slow: database starts"]


async def test_a_check_that_asks_for_patience_may_still_fail(world: World) -> None:
    world.add("10-slow", f"[ $(wc -l < {world.order}) -ge 2 ] && exit 1; exit 75")

    assert (await world.failure()).detail == "health check 10-slow: exit status 1: no output"


async def test_patience_ends_with_the_time_limit(world: World) -> None:
    world.add("10-slow", "echo not yet; exit 75")

    detail = (await world.failure(timeout_s=0.5)).detail
    assert detail == "health check 10-slow: not passed within 500 ms: not yet"


async def test_a_check_that_hangs_ends_with_the_time_limit_and_its_last_words(world: World) -> None:
    world.add("10-hang", "echo waiting for the modem; sleep 60")
    began = time.monotonic()

    detail = (await world.failure(timeout_s=0.5)).detail
    assert detail == "health check 10-hang: not passed within 500 ms: waiting for the modem"
    assert time.monotonic() - began < 10


async def test_all_checks_share_one_time_limit(world: World) -> None:
    for name in ("10", "20", "30", "40"):
        world.add(name, "sleep 0.4")

    assert "not passed within 1 s" in (await world.failure(timeout_s=1)).detail
    assert len(world.ran()) < 4
    left = [left_s for _, left_s in world.said]
    assert left == sorted(left, reverse=True)
    assert 0 < left[-1] < left[0] <= 1


async def test_a_check_is_told_what_it_checks(world: World) -> None:
    world.environment = {"OTAD_SLOT": "b", "OTAD_VERSION": "2-0-0", "OTAD_DEPLOYMENT": "1"}
    world.add("10-env", 'echo "$OTAD_SLOT $OTAD_VERSION $OTAD_DEPLOYMENT"; exit 1')

    assert (await world.failure()).detail.endswith(": b 2-0-0 1")


# -- hostile ones


@pytest.mark.parametrize(
    "script",
    [
        "head -c 3000000 /dev/urandom",
        "printf '\\033]0;owned\\007\\033[2J\\033[31mred'",
        "yes 'a long line that says little' | head -c 5000000",
        "head -c 1000000 /dev/zero | tr '\\0' x",
        "exec >&- 2>&-",
        "printf '\\342\\200\\256'",
        "printf 'a\\rb\\nc\\000d'",
    ],
)
async def test_whatever_it_says_the_reason_is_one_short_line_that_is_safe_to_show(world: World, script: str) -> None:
    world.add("10-bad", f"{script}; exit 1")

    detail = (await world.failure()).detail
    assert detail.startswith("health check 10-bad: exit status 1: ")
    assert detail.isprintable()
    assert len(detail) < 300


async def test_a_check_that_daemonises_does_not_hold_us(world: World) -> None:
    pid = world.directory.parent / "pid"
    world.add("10-daemon", f"setsid sh -c 'echo $$ > {pid}; exec sleep 60' & while [ ! -s {pid} ]; do :; done")
    began = time.monotonic()
    try:
        await world.run()
        assert time.monotonic() - began < 10
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


async def test_a_canceled_gate_leaves_no_check_behind(world: World) -> None:
    pid = world.directory.parent / "pid"
    world.add("10-hang", f"echo $$ > {pid}; sleep 60")
    gate = asyncio.create_task(world.run())
    async with asyncio.timeout(10):
        while not pid.exists() or not pid.read_text().strip():
            await asyncio.sleep(0.01)

    gate.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gate
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


# -- units


async def test_units_are_asked_after_the_checks(world: World) -> None:
    world.add("10-app", "")
    world.add_systemctl("echo active")

    await world.run(units=("app.service", "db.service"))
    assert world.ran() == ["10-app", "is-active app.service", "is-active db.service"]


async def test_a_unit_that_is_not_active_yet_is_asked_again(world: World) -> None:
    world.add_systemctl(f"[ $(wc -l < {world.order}) -ge 2 ] && echo active && exit 0; echo activating; exit 3")

    await world.run(units=("app.service",))
    assert world.ran() == ["is-active app.service"] * 2


async def test_a_unit_that_has_failed_is_not_waited_for(world: World) -> None:
    world.add_systemctl("echo failed; exit 3")

    detail = (await world.failure(units=("app.service",))).detail
    assert detail == "unit app.service: exit status 3: failed"
    assert world.ran() == ["is-active app.service"]


async def test_a_unit_that_never_becomes_active_has_failed(world: World) -> None:
    world.add_systemctl("echo inactive; exit 3")

    detail = (await world.failure(timeout_s=0.5, units=("app.service",))).detail
    assert detail == "unit app.service: not passed within 500 ms: inactive"


async def test_without_systemctl_no_unit_is_active(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(world.bin))

    assert (await world.failure(units=("app.service",))).detail == "unit app.service: No such file or directory"
