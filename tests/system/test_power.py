# SPDX-License-Identifier: Apache-2.0
"""The real daemon killed in each phase and at random moments: the next start finishes what was begun.

Each kill is a power cut: SIGKILL, then the board is switched off and on.
"""

import asyncio
import random
from pathlib import Path

import pytest

from tests.system.world import MIB, JobState, World, gzipped, new_world

CHECKPOINT_BYTES = 8 * MIB
IN_FLIGHT_BYTES = 4 * MIB


async def _cut_in(world: World, phase: str) -> None:
    """Cut the power as soon as the daemon says that it is in this phase."""
    kills = len(world.gateway.exits)
    await world.phase(phase)
    world.gateway.kill()
    while len(world.gateway.exits) == kills:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("phase", ["downloading", "installing", "confirming", "rolling_back"])
async def test_a_power_cut_in_each_phase_is_survived(tmp_path: Path, phase: str) -> None:
    async with new_world(tmp_path, slot_bytes=24 * MIB) as world:
        # The health check waits in `confirming`, so that there is time to cut; the second system fails it.
        gate = tmp_path / "gate"
        world.gateway.add_health_check("10-gate", f'[ "$OTAD_VERSION" != 3-0-0 ] || exit 1\n[ -e {gate} ] || exit 75\n')
        world.power_on()
        await world.informed("1-0-0")
        version = "3-0-0" if phase == "rolling_back" else "2-0-0"
        package = world.package(version, 24 * MIB, gzipped if phase == "installing" else None)
        job = world.push(package)
        await _cut_in(world, phase)
        gate.touch()
        job = await world.ended(job)
        status = await world.idle("a" if phase == "rolling_back" else "b")

        if phase == "rolling_back":
            assert job.state == JobState.FAILED
            assert status["slots"]["b"]["good"] is False
            assert status["modules"]["default"]["version"] == "1-0-0"
        else:
            assert job.state == JobState.SUCCEEDED
            assert world.slot("b") == world.images["2-0-0"]
            assert world.platform.bytes_twice(package) <= CHECKPOINT_BYTES + IN_FLIGHT_BYTES
        assert world.steps[:-1] == sorted(world.steps[:-1])
        assert sum(step in (100, -1) for step in world.steps) == 1


@pytest.mark.parametrize("seed", range(4))
async def test_cuts_at_random_moments_are_survived(tmp_path: Path, seed: int) -> None:
    moments = random.Random(seed)
    async with new_world(tmp_path, slot_bytes=24 * MIB) as world:
        world.platform.faults.rate = 16 * MIB
        world.power_on()
        await world.informed("1-0-0")
        package = world.package("2-0-0", 24 * MIB, gzipped if seed % 2 else None)
        job = world.push(package)
        cuts = moments.randint(2, 4)
        for _ in range(cuts):
            # Not a wait for a condition: the moment of the cut is what is random here.
            await asyncio.sleep(moments.uniform(0.05, 1.2))
            world.gateway.kill()
        job = await world.ended(job)
        status = await world.idle("b")

        assert job.state == JobState.SUCCEEDED
        assert world.slot("b") == world.images["2-0-0"]
        assert status["slots"]["b"]["attempts_left"] == 3
        assert world.platform.bytes_twice(package) <= cuts * (CHECKPOINT_BYTES + IN_FLIGHT_BYTES)
        assert world.told[-2:] == ["step 100", "version 2-0-0"]
