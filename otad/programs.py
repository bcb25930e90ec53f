# SPDX-License-Identifier: Apache-2.0
"""Run one of the owner's programs: bounded output, and nothing of it left behind when the caller is canceled."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from subprocess import DEVNULL, PIPE, STDOUT

OUTPUT_BYTES_MAX = 16 << 10
"""The end of the output is kept; what was said before it is dropped."""

PIPE_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Result:
    """How a program ended; a signal is a negative status. `output` has standard output and standard error."""

    status: int
    output: str

    @property
    def last_line(self) -> str:
        """The last line that says something."""
        return next((line.strip() for line in reversed(self.output.splitlines()) if line.strip()), "no output")


async def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Result:
    """Run `command` to its end, in a session of its own. OSError if it cannot be started.

    When it has ended, or the caller is canceled (give it a time limit!), whatever it left running in its session is
    killed: a daemonised child that keeps the pipe open must not hold us.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        cwd="/",
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )
    assert process.stdout is not None
    output = bytearray()
    reader = asyncio.create_task(_keep_last(process.stdout, output), name=f"output of {command[0]}")
    try:
        status = await process.wait()
    finally:
        _kill(process.pid)
        # Killed or ended: wait() collects it, so that no zombie is left; it takes no longer than the kernel does.
        await asyncio.shield(process.wait())
        # A child in a session of its own may keep the pipe open for ever: what it says is not awaited.
        await asyncio.wait([reader], timeout=PIPE_TIMEOUT_S)
        reader.cancel()
    return Result(status, output.decode(errors="replace"))


async def _keep_last(stream: asyncio.StreamReader, output: bytearray) -> None:
    while chunk := await stream.read(4096):
        output += chunk
        del output[:-OUTPUT_BYTES_MAX]


def _kill(session: int) -> None:
    try:
        os.killpg(session, signal.SIGKILL)
    except ProcessLookupError:
        pass
