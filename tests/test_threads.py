# SPDX-License-Identifier: Apache-2.0
"""A canceled caller does not let go before its thread does."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from otad.threads import in_stoppable_thread, in_thread

PATIENCE_S = 5


class Writer:
    """A thread that says when it has begun, and ends when it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.ended = False

    def write(self) -> str:
        self.begun.set()
        assert self.may_end.wait(PATIENCE_S)
        self.ended = True
        return "written"

    def write_badly(self) -> None:
        self.write()
        raise OSError("input/output error")

    def write_until_stopped(self, stop: threading.Event, chunk: str) -> str:
        self.begun.set()
        assert stop.wait(PATIENCE_S)
        self.ended = True
        return chunk


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def turns(count: int = 5) -> None:
    """Give everything that could go on the opportunity to."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_gives_what_the_call_returns() -> None:
    assert await in_thread(divmod, 7, 2) == (3, 1)


async def test_passes_names_on() -> None:
    assert await in_thread(int, "ff", base=16) == 255


async def test_raises_what_the_call_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 1, 0)


async def test_runs_in_another_thread() -> None:
    assert await in_thread(threading.get_ident) != threading.get_ident()


async def test_a_canceled_caller_waits_for_its_thread() -> None:
    writer = Writer()
    caller = asyncio.create_task(in_thread(writer.write))
    await until(writer.begun.is_set)

    caller.cancel()
    await turns()
    assert not caller.done()

    writer.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert writer.ended


@pytest.mark.parametrize("times", [2, 3])
async def test_a_caller_canceled_again_still_waits_for_its_thread(times: int) -> None:
    writer = Writer()
    caller = asyncio.create_task(in_thread(writer.write))
    await until(writer.begun.is_set)

    for _ in range(times):
        caller.cancel()
        await turns()
        assert not caller.done()

    writer.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert writer.ended


async def test_canceled_is_what_a_caller_hears_although_its_thread_fails() -> None:
    """And asyncio has nothing to complain of: an exception nobody heard would fail this test as a warning."""
    writer = Writer()
    caller = asyncio.create_task(in_thread(writer.write_badly))
    await until(writer.begun.is_set)

    caller.cancel()
    writer.may_end.set()

    with pytest.raises(asyncio.CancelledError):
        await caller
    assert writer.ended


async def test_a_time_limit_waits_for_the_thread_too_and_is_a_time_out() -> None:
    writer = Writer()
    asyncio.get_running_loop().call_later(0.02, writer.may_end.set)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await in_thread(writer.write)
    assert writer.ended


async def test_a_long_call_is_told_to_stop_when_its_caller_is_canceled() -> None:
    writer = Writer()
    caller = asyncio.create_task(in_stoppable_thread(writer.write_until_stopped, "chunk"))
    await until(writer.begun.is_set)
    assert not caller.done()

    caller.cancel()

    with pytest.raises(asyncio.CancelledError):
        await caller
    assert writer.ended


async def test_a_long_call_that_nobody_stops_gives_what_it_returns() -> None:
    def call(stop: threading.Event, chunk: str) -> tuple[bool, str]:
        return stop.is_set(), chunk

    assert await in_stoppable_thread(call, "chunk") == (False, "chunk")
