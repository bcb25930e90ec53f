# SPDX-License-Identifier: Apache-2.0
"""Broker and web server that come, go and misbehave."""

from pathlib import Path

from otad.platform.events import Asked
from tests.system.world import MIB, JobState, Way, in_every_way, new_world


@in_every_way
async def test_what_is_owed_survives_a_broker_that_is_away(tmp_path: Path, way: Way) -> None:
    async with new_world(tmp_path, way=way) as world:
        world.gateway.add_health_check("10-app", "exit 1\n")
        gate = tmp_path / "gate"
        world.gateway.add_health_check("05-gate", f"[ -e {gate} ] || exit 75\n")
        world.power_on()
        await world.informed("1-0-0")
        job = world.push(world.package("2-0-0"))
        await world.phase("confirming")
        await world.platform.take_broker_away()
        gate.touch()
        await world.status(lambda s: s["deployment"] is None and s["booted"] == "a" and s["outbox"] == 2)
        world.gateway.kill()
        before = len(world.told)
        await world.platform.bring_broker_back()
        job = await world.ended(job)
        await world.idle("a")

        assert job.state == JobState.FAILED
        assert world.told[before:] == ["step -1: health check 10-app: exit status 1: no output", "version 1-0-0"]


async def test_a_step_of_an_earlier_session_does_not_hit_another_job(tmp_path: Path) -> None:
    async with new_world(tmp_path) as world:
        gate = tmp_path / "gate"
        world.gateway.add_health_check(
            "10-gate", f'[ "$OTAD_VERSION" = 3-0-0 ] || {{ [ -e {gate} ] && exit 1; exit 75; }}\n'
        )
        world.power_on()
        await world.informed("1-0-0")
        job = world.push(world.package("2-0-0"))
        await world.phase("confirming")
        await world.platform.take_broker_away()
        gate.touch()
        await world.status(lambda s: s["deployment"] is None and s["outbox"] == 2)
        world.platform.cancel(job)
        other = world.push(world.package("3-0-0"))
        await world.platform.bring_broker_back()
        other = await world.ended(other)

        assert other.state == JobState.SUCCEEDED
        assert not [line for line in world.told if line.startswith("step -1")]


@in_every_way
async def test_an_expired_url_is_replaced_by_asking_and_the_bytes_are_kept(tmp_path: Path, way: Way) -> None:
    async with new_world(tmp_path, way=way) as world:
        world.platform.faults.rate = 8 * MIB
        world.power_on()
        await world.informed("1-0-0")
        package = world.package("2-0-0")
        job = world.push(package)
        await world.status(lambda s: s["deployment"] and s["deployment"]["bytes"] > 9 * MIB)
        asked = len(world.platform.events.of(Asked))
        world.platform.faults.next_statuses = [403, 403]
        world.platform.cut_downloads()
        job = await world.ended(job)

        assert job.state == JobState.SUCCEEDED
        assert len(world.platform.events.of(Asked)) > asked
        assert world.platform.bytes_twice(package) <= 4 * MIB


@in_every_way
async def test_a_notice_that_was_lost_is_asked_for(tmp_path: Path, way: Way) -> None:
    async with new_world(tmp_path, way=way) as world:
        world.platform.faults.pushes = 0
        world.power_on()
        await world.informed("1-0-0")
        job = world.push(world.package("2-0-0"))
        status, said = await world.otad("check")
        job = await world.ended(job)

        assert (status, said) == (0, "2-0-0 is offered: the upgrade begins\n")
        assert job.state == JobState.SUCCEEDED


@in_every_way
async def test_a_notice_heard_many_times_is_carried_out_once(tmp_path: Path, way: Way) -> None:
    async with new_world(tmp_path, way=way) as world:
        world.platform.faults.pushes = 5
        world.platform.faults.trailing_nul = True
        world.platform.faults.notice_id_as_text = True
        world.power_on()
        await world.informed("1-0-0")
        package = world.package("2-0-0")
        job = await world.ended(world.push(package))
        await world.idle("b")

        assert job.state == JobState.SUCCEEDED
        assert world.platform.bytes_sent(package) == package.size
        assert world.told[-2:] == ["step 100", "version 2-0-0"]


async def test_a_wrong_digest_is_reported_after_the_last_try(tmp_path: Path) -> None:
    async with new_world(tmp_path, slot_bytes=4 * MIB) as world:
        world.platform.faults.wrong_digest = True
        world.power_on()
        await world.informed("1-0-0")
        package = world.package("2-0-0", 4 * MIB)
        job = await world.ended(world.push(package))
        status = await world.idle("a")

        assert job.state == JobState.FAILED
        assert [step for step in world.steps if step < 0] == [-3]
        assert len(world.platform.served(package)) == 3
        assert status["slots"]["b"]["good"] is False


async def test_a_broker_that_refuses_the_secret_is_said_in_clear_words(tmp_path: Path) -> None:
    async with new_world(tmp_path) as world:
        text = world.gateway.config.read_text().replace(world.device.secret, "not-the-secret")
        world.gateway.config.write_text(text)
        world.power_on()
        status = await world.status(lambda s: s["session"]["state"] == "refused")

        assert "check device.product_key, device.device_name and the device secret" in status["session"]["detail"]
        assert "credentials" in status["next"]
        assert "not-the-secret" not in world.gateway.log.read_text()
