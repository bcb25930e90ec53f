# SPDX-License-Identifier: Apache-2.0
"""One transfer in a process of its own, for transfer.py: imports what a gateway would, and nothing of the bench."""

import asyncio
import os
import sys
import time
from pathlib import Path


async def by_otad(url: str, slot: str, size: str, sha256: str, *overrides: str) -> None:
    """`overrides`: NAME=VALUE of a Pace or a constant of otad.transfer.http."""
    import aiomqtt  # noqa: F401  # what the daemon holds all the time

    from otad.cloud.off import Off
    from otad.config import DownloadSettings
    from otad.core import model
    from otad.durable import Place, RealDisk
    from otad.transfer import http
    from otad.transfer.download import Pace, download
    from otad.transfer.sources import Sources

    class Places:
        async def open_slot(self, deployment: model.Deployment) -> Place:
            return RealDisk().open_place(Path(slot))

        async def open_staging(self, deployment: model.Deployment) -> Place:
            raise NotImplementedError

    pace = {}
    for override in overrides:
        name, _, value = override.partition("=")
        if hasattr(http, name):
            setattr(http, name, int(value))
        else:
            pace[name] = int(value)
    digest = model.Digest(model.DigestMethod.SHA256, sha256)
    notice = model.Notice(model.Identity(model.DEFAULT_MODULE, "2-0-0", int(size), digest), url)
    deployment = model.Deployment(
        model.DeploymentId("1"), notice, model.Phase.DOWNLOADING, model.Slot("a"), model.Slot("b"), 0, 3
    )
    began, cpu_before = time.perf_counter(), time.process_time()
    limits = DownloadSettings(allow_http=True, allow_private_hosts=True)

    async def forget(checkpoint: object) -> None:
        pass

    source = Sources(limits, Off("", 0), lambda _: notice).of(deployment)
    await download(deployment, source, Places(), True, forget, lambda _: None, is_raw=lambda _: True, pace=Pace(**pace))
    print_measured(began, cpu_before)


async def by_aiofiles(url: str, slot: str, sha256: str) -> None:
    """What one writes first: 8 KiB at a time, and no look back."""
    import hashlib

    import aiofiles
    import aiohttp

    began, cpu_before = time.perf_counter(), time.process_time()
    digest = hashlib.sha256()
    async with aiohttp.ClientSession() as session, session.get(url) as response, aiofiles.open(slot, "r+b") as file:
        async for content in response.content.iter_chunked(8192):
            digest.update(content)
            await file.write(content)
        await file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != sha256:
        raise SystemExit("digest")
    print_measured(began, cpu_before)


def print_measured(began: float, cpu_before: float) -> None:
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu_before
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            print("measured", wall, cpu, int(line.split()[1]) * 1024)


if __name__ == "__main__":
    asyncio.run({"otad": by_otad, "aiofiles": by_aiofiles}[sys.argv[1]](*sys.argv[2:]))
