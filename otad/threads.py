# SPDX-License-Identifier: Apache-2.0
"""Blocking calls from asyncio, without leaving a thread behind that still writes.

`asyncio.to_thread` abandons its thread when the caller is canceled. A canceled writer must instead wait until the
chunk in flight is written, or the next writer of the same slot would meet it there.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a short `call` in a thread. When canceled, wait for the thread first, then be canceled."""
    return await _waiting(asyncio.to_thread(call, *args, **kwargs), lambda: None)


async def in_stoppable_thread(
    call: Callable[Concatenate[threading.Event, P], T], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run a long `call` in a thread. When canceled, set the event it was given, wait for it, then be canceled."""
    stop = threading.Event()
    return await _waiting(asyncio.to_thread(call, stop, *args, **kwargs), stop.set)


async def _waiting(thread: Coroutine[Any, Any, T], when_canceled: Callable[[], None]) -> T:
    future = asyncio.ensure_future(thread)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        when_canceled()
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue  # canceled twice: still wait, the thread does not hear of it either
        if not future.cancelled():
            future.exception()  # heard, so that asyncio does not complain; the cancellation is what counts
        raise
