# SPDX-License-Identifier: Apache-2.0
"""What depends on the broker most: a session that breaks off while packages come. `ways` says which ways there are."""

import asyncio
import ssl
from pathlib import Path

from otad.platform.events import BlockServed
from otad.platform.jobs import Protocol
from tests.system.world import MIB, JobState, Way, in_every_way, new_world


async def _speaks_tls(port: int) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    except OSError:
        return False
    writer.transport.abort()
    return True


@in_every_way
async def test_the_way_is_the_one_that_its_name_says(tmp_path: Path, way: Way) -> None:
    async with new_world(tmp_path, way=way, slot_bytes=MIB) as world:
        world.power_on()
        await world.informed("1-0-0")
        lines = world.mosquitto.log if world.mosquitto else []
        said = [line for line in lines if "New client connected" in line and "gateway-0001&a1test" in line]

        assert await _speaks_tls(world.platform.mqtt_port) == way.is_tls
        assert [line.partition("(p")[2][0] for line in said] == {"mosquitto-5": ["5"]}.get(
            way, ["2"] * way.is_mosquitto
        )


@in_every_way
async def test_an_upgrade_with_a_power_cut_in_its_download(tmp_path: Path, way: Way) -> None:
    async with new_world(tmp_path, way=way) as world:
        world.power_on()
        await world.informed("1-0-0")
        job = world.push(world.package("2-0-0"))
        await world.phase("downloading")
        world.gateway.kill()
        job = await world.ended(job)

        assert job.state == JobState.SUCCEEDED
        assert world.told[-2:] == ["step 100", "version 2-0-0"]
        assert world.slot("b") == world.images["2-0-0"]


@in_every_way
async def test_a_package_that_comes_in_blocks_over_a_session_that_breaks_off(tmp_path: Path, way: Way) -> None:
    async with new_world(tmp_path, way=way, slot_bytes=4 * MIB) as world:
        world.power_on()
        await world.informed("1-0-0")
        job = world.push(world.package("2-0-0", 4 * MIB, protocol=Protocol.MQTT))
        await world.until(lambda: len(world.platform.events.of(BlockServed)) > 4)
        world.platform.kick(world.device)
        job = await world.ended(job)
        blocks = world.platform.events.of(BlockServed)

        assert job.state == JobState.SUCCEEDED
        assert world.slot("b") == world.images["2-0-0"]
        assert world.told[-2:] == ["step 100", "version 2-0-0"]
        assert sum(block.sent for block in blocks) <= 5 * MIB
