# SPDX-License-Identifier: Apache-2.0
"""Blocking calls from asyncio, without leaving a thread behind that still writes.

`asyncio.to_thread` abandons its thread when the caller is canceled. A canceled writer must instead wait until the
chunk in flight is written, or the next writer of the same slot would meet it there.
"""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `call` in a thread. When canceled, wait for the thread first, then be canceled."""
    future = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue  # canceled twice: still wait, the thread does not hear of it either
        if not future.cancelled():
            future.exception()  # heard, so that asyncio does not complain; the cancellation is what counts
        raise
