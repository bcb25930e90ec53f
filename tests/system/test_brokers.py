# SPDX-License-Identifier: Apache-2.0
"""The same upgrade over a broker that is not ours: Debian's mosquitto."""

from pathlib import Path

from otad.platform.remote import RemoteBroker
from tests.broker import Mosquitto
from tests.system.world import JobState, new_world


async def test_an_upgrade_over_mosquitto(tmp_path: Path) -> None:
    async with (
        Mosquitto(tmp_path) as mosquitto,
        new_world(tmp_path, broker=RemoteBroker("127.0.0.1", mosquitto.port)) as world,
    ):
        world.power_on()
        await world.informed("1-0-0")
        job = world.push(world.package("2-0-0"))
        await world.phase("downloading")
        world.gateway.kill()
        job = await world.ended(job)

        assert job.state == JobState.SUCCEEDED
        assert world.told[-2:] == ["step 100", "version 2-0-0"]
        assert world.slot("b") == world.images["2-0-0"]
