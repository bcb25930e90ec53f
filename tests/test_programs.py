# SPDX-License-Identifier: Apache-2.0
"""The owner's programs cannot hold, flood or outlive us."""

import asyncio
import os
import signal
import time
import tracemalloc
from pathlib import Path

import pytest

from otad import programs
from otad.programs import LINE_CHARACTERS, OUTPUT_BYTES_MAX, Result, run


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # a child of init that nobody has collected yet


async def must_die(pid: int) -> None:
    async with asyncio.timeout(10):
        while is_alive(pid):
            await asyncio.sleep(0.01)


async def written(file: Path) -> int:
    async with asyncio.timeout(10):
        while not file.exists() or not file.read_text().endswith("\n"):
            await asyncio.sleep(0.01)
    return int(file.read_text())


async def test_status_and_output_of_both_streams_are_given() -> None:
    assert await run(shell("echo one; echo two >&2; exit 3"), 10) == Result(3, "one\ntwo\n")


async def test_a_signal_is_a_negative_status() -> None:
    assert (await run(shell("kill -TERM $$"), 10)).status == -signal.SIGTERM


async def test_the_environment_is_ours_and_what_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")

    assert (await run(shell("echo $OURS $ADDED; pwd"), 10, {"ADDED": "2"})).output == "1 2\n/\n"


async def test_nothing_can_be_read_from_standard_input() -> None:
    assert await run(["cat"], 10) == Result(0, "")


async def test_a_program_that_cannot_be_started_is_an_os_error(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    no_format = tmp_path / "no-format"
    no_format.write_bytes(b"\x00not a program")
    no_format.chmod(0o755)

    with pytest.raises(FileNotFoundError):
        await run(["/nothing/of/the/kind"], 10)
    with pytest.raises(OSError, match="Exec format error"):
        await run([str(no_format)], 10)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_the_time_limit_ends_it_and_what_it_said_is_kept() -> None:
    began = time.monotonic()

    assert await run(shell("echo waiting; sleep 60"), 0.3) == Result(None, "waiting\n")
    assert time.monotonic() - began < 10


async def test_a_program_that_ignores_signals_is_ended_too() -> None:
    assert (await run(shell("trap '' TERM INT HUP; echo stubborn; while :; do sleep 1; done"), 0.3)).status is None


@pytest.mark.parametrize(
    "child",
    ["sleep 60 &", "timeout 50 sleep 60 &", "set -m; sleep 60 &"],
    ids=["a child", "timeout, in a group of its own", "job control"],
)
async def test_the_time_limit_kills_the_whole_session(tmp_path: Path, child: str) -> None:
    pid_file = tmp_path / "pid"

    assert (await run(shell(f"{child} echo $! > {pid_file}; wait"), 0.5)).status is None
    await must_die(await written(pid_file))


async def test_what_a_program_leaves_running_is_killed_when_it_has_ended(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    assert (await run(shell(f"sleep 60 & echo $! > {pid_file}; exit 5"), 10)).status == 5
    await must_die(await written(pid_file))


async def test_a_daemon_that_keeps_the_pipe_open_does_not_hold_us(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    started = f"while [ ! -s {pid_file} ]; do :; done"
    began = time.monotonic()
    try:
        result = await run(shell(f"setsid sh -c 'echo $$ > {pid_file}; exec sleep 60' & {started}; echo started"), 20)

        assert result == Result(0, "started\n")
        assert time.monotonic() - began < 10
    finally:
        os.kill(await written(pid_file), signal.SIGKILL)


async def test_a_daemon_that_floods_the_pipe_does_not_hold_us(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    started = f"while [ ! -s {pid_file} ]; do :; done"
    began = time.monotonic()
    try:
        result = await run(shell(f"setsid sh -c 'echo $$ > {pid_file}; exec yes' & {started}"), 20)

        assert result.status == 0
        assert time.monotonic() - began < 10
    finally:
        os.kill(await written(pid_file), signal.SIGKILL)


async def test_of_a_huge_output_the_end_is_kept() -> None:
    result = await run(shell("yes 0123456789 | head -c 20000000; echo; echo the end"), 60)

    assert result.status == 0
    assert len(result.output) == OUTPUT_BYTES_MAX
    assert result.last_line == "the end"


async def test_what_was_written_right_before_the_end_is_not_lost() -> None:
    results = await asyncio.gather(
        *(run(shell("head -c 60000 /dev/zero | tr '\\0' x; echo; echo last"), 60) for _ in range(20))
    )

    assert {result.last_line for result in results} == {"last"}


async def test_a_program_that_closes_its_output_is_waited_for() -> None:
    assert await run(shell("exec >&- 2>&-; sleep 0.3; exit 4"), 10) == Result(4, "")


async def test_when_canceled_no_process_and_no_descriptor_is_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    pid_file = tmp_path / "pid"
    running = asyncio.create_task(run(shell(f"sleep 60 & echo $! > {pid_file}; wait"), 60))
    pid = await written(pid_file)
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await must_die(pid)
    assert not Path(f"/proc/{parent}").exists()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_many_runs_leave_no_descriptors(tmp_path: Path) -> None:
    await run(["true"], 10)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        await run(shell("setsid sleep 1 & echo x"), 10)

    assert len(os.listdir("/proc/self/fd")) == before


async def test_each_line_is_handed_on_as_it_comes(tmp_path: Path) -> None:
    lines: list[str] = []
    go_on = tmp_path / "go-on"
    script = (
        f"echo one; echo two >&2; while [ ! -e {go_on} ]; do :; done; printf 'th'; sleep 0.1; printf 'ree\n\nno end'"
    )
    running = asyncio.create_task(run(shell(script), 10, says=lines.append))
    async with asyncio.timeout(10):
        while len(lines) < 2:
            await asyncio.sleep(0.01)
    assert lines == ["one", "two"]
    assert not running.done()

    go_on.touch()
    assert await running == Result(0, "one\ntwo\nthree\n\nno end")
    assert lines == ["one", "two", "three", ""]


async def test_of_a_flood_of_lines_the_newest_are_handed_on() -> None:
    lines: list[str] = []
    await run(shell("yes '' | head -c 2000000; yes 1234567 | head -c 4000000; echo end"), 60, says=lines.append)

    assert lines[-2:] == ["1234567", "end"]
    assert len(lines) < (2_000_000 + 500_000) / 4, "each line of it would cost the loop its time"


async def test_long_lines_are_handed_on_cut_and_take_no_memory() -> None:
    lines: list[str] = []
    script = "head -c 8000000 /dev/zero | tr '\\0' x; echo; head -c 3000 /dev/urandom; echo; echo end"
    tracemalloc.start()
    try:
        await run(shell(script), 60, says=lines.append)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert (lines[0], lines[-1]) == ("x" * LINE_CHARACTERS, "end")
    assert max(map(len, lines)) <= LINE_CHARACTERS
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("", "no output"),
        ("\n \n", "no output"),
        ("first\nlast\n", "last"),
        ("first\nlast\n\n  \n", "last"),
        ("50 %\r100 %\r", "100 %"),
        ("\x1b[31mred\x1b[0m\x07 \x00alert\n", "[31mred [0m alert"),
        ("\x1b]0;title\x07\n\x1b\x1b\n", "]0;title"),
        ("a\u202eb\u2028c", "c"),
        ("\ufffd\ufffd", "\ufffd\ufffd"),
        ("x" * 5000, "x" * (LINE_CHARACTERS - 1) + "…"),
    ],
)
def test_the_last_line_is_short_and_harmless(output: str, line: str) -> None:
    assert Result(1, output).last_line == line
    assert programs.LINE_CHARACTERS < 500


async def test_binary_output_is_no_obstacle() -> None:
    result = await run(shell("head -c 100000 /dev/urandom; exit 1"), 10)

    assert result.status == 1
    assert result.last_line.isprintable()
