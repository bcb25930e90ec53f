# SPDX-License-Identifier: Apache-2.0
"""Aliyun's Python SDK as a process that tests give orders to; `sdk_client` is its other end."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

CLIENT = Path(__file__).with_name("sdk_client.py")
PATIENCE_S = 20

Seen = dict[str, Any]


class Sdk:
    """What the SDK is told, and what its user sees."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.seen: list[Seen] = []
        self._process = process
        self._more = asyncio.Event()
        self._reading = asyncio.create_task(self._read(), name="what the SDK's user sees")

    async def do(self, order: str, **more: Any) -> Any:
        """Give an order; what the SDK's function returned."""
        assert self._process.stdin is not None
        before = len(self.seen)
        self._process.stdin.write(json.dumps({"do": order, **more}).encode() + b"\n")
        await self._process.stdin.drain()
        return (await self.sees("returned", after=before))["value"]

    async def sees(self, what: str, after: int = 0, **fields: Any) -> Seen:
        """The first thing of this kind and with these fields, behind the first `after` things seen."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    for one in self.seen[after:]:
                        if one["saw"] == what and fields.items() <= one.items():
                            return one
                    assert not self._reading.done(), f"the SDK's process ended; seen {self.seen}"
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"{what} {fields}: not seen; seen {self.seen}") from None

    def all_of(self, what: str) -> list[Seen]:
        return [one for one in self.seen if one["saw"] == what]

    async def stop(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.seen.append(json.loads(line))
            self._more.set()
        self._more.set()


@asynccontextmanager
async def running(python: Path, options: dict[str, Any]) -> AsyncIterator[Sdk]:
    """The SDK with these options (see `sdk_client`), not yet told to connect."""
    process = await asyncio.create_subprocess_exec(
        *(str(python), str(CLIENT), json.dumps(options)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    sdk = Sdk(process)
    try:
        yield sdk
    finally:
        await sdk.stop()
