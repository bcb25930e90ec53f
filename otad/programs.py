# SPDX-License-Identifier: Apache-2.0
"""Run one of the owner's programs: within a time limit, with bounded output, and nothing of it left behind.

The output comes by a pipe of our own, not by asyncio's: its `wait` returns only when the pipe is closed, and a child
in a session of its own may keep that open for ever.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from subprocess import DEVNULL

OUTPUT_BYTES_MAX = 16 << 10
"""The end of the output is kept; what was said before it is dropped."""
REAP_S = 5.0
LINE_CHARACTERS = 200
"""So much of a line is repeated to a person."""

LINES_PER_READ = 64
"""So many lines are handed on at a time; a program that floods us has its older ones dropped."""

_READ_BYTES = 64 << 10
_READS_AT_THE_END = 16  # 1 MiB: the largest pipe there is without privileges


@dataclass(frozen=True, slots=True)
class Result:
    """How a program ended. `output` has standard output and, unless it was not wanted, standard error.

    `status`: a signal is a negative one; None where the program had not ended within the limit and was killed.
    """

    status: int | None
    output: str

    @property
    def last_line(self) -> str:
        """The last line that says something, fit for a log and a terminal: short, and nothing in it to obey."""
        for line in reversed(self.output.splitlines()):
            said = " ".join("".join(c if c.isprintable() else " " for c in line).split())
            if said:
                return said if len(said) <= LINE_CHARACTERS else said[: LINE_CHARACTERS - 1] + "…"
        return "no output"


async def run(
    command: Sequence[str],
    limit_s: float,
    environment: Mapping[str, str] | None = None,
    *,
    errors: bool = True,
    leaves_work: bool = False,
    says: Callable[[str], None] | None = None,
) -> Result:
    """Run `command` to its end, in a session of its own, at most for `limit_s`. OSError if it cannot be started.

    Whatever is left of its session then, or when the caller is canceled, is killed; of one that `leaves_work` behind
    only at the limit. Without `errors` its standard error is ours, and not in the output. `says` hears each line of the
    output as it comes, its first LINE_CHARACTERS; of more than LINES_PER_READ at once the newest.
    """
    loop = asyncio.get_running_loop()
    output = _Output(says)
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        os.set_blocking(write_end, True)  # the program's end is an ordinary one
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=DEVNULL,
            stdout=write_end,
            stderr=write_end if errors else None,
            cwd="/",
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)

    def read() -> None:
        if not output.take(read_end):
            loop.remove_reader(read_end)

    status: int | None = None
    try:
        loop.add_reader(read_end, read)
        async with asyncio.timeout(limit_s):
            status = await process.wait()
    except TimeoutError:
        pass
    finally:
        if status is None or not leaves_work:
            _kill_session(process.pid)
        # Killed or ended: wait() collects it, so that no zombie is left. One that hangs in the kernel (a dead driver, a
        # lost disk) is left to it: the gateway must be able to go on, and to reboot.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REAP_S):
                await asyncio.shield(process.wait())
        loop.remove_reader(read_end)
        with contextlib.suppress(BlockingIOError):
            # What is in the pipe; not what a child elsewhere may go on saying.
            for _ in range(_READS_AT_THE_END):
                if not output.take(read_end):
                    break
        os.close(read_end)
    return Result(status, output.end.decode(errors="replace"))


class _Output:
    """What a program has said: the end of it is kept, and its lines handed on."""

    def __init__(self, says: Callable[[str], None] | None) -> None:
        self.end = bytearray()
        self._says = says
        self._line = bytearray()

    def take(self, fd: int) -> bool:
        """Take what the pipe holds; False at its end."""
        chunk = os.read(fd, _READ_BYTES)
        self.end += chunk
        del self.end[:-OUTPUT_BYTES_MAX]
        if self._says is not None:
            # A split into all lines, and a call for each, would hold the loop: 64 KiB may be 65536 of them.
            first, *others = chunk.rsplit(b"\n", LINES_PER_READ)
            self._line[:] = (self._line + first).rpartition(b"\n")[2]
            for part in others:
                self._says(self._line[:LINE_CHARACTERS].decode(errors="replace"))
                self._line[:] = part
            del self._line[LINE_CHARACTERS:]
        return bool(chunk)


def _kill_session(session: int) -> None:
    """Every process of it, also those in a process group of their own, as timeout(1) and job control make them."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(int(name)) == session:
                    os.kill(int(name), signal.SIGKILL)
