# SPDX-License-Identifier: Apache-2.0
"""What a person at the gateway can order, and what the platform hears of it."""

import hashlib
from pathlib import Path

from otad.platform.events import Informed
from otad.simulation import write_image
from tests.system.world import MIB, JobState, new_world


async def test_a_canceled_package_is_reported_and_refused_until_retry(tmp_path: Path) -> None:
    async with new_world(tmp_path) as world:
        world.platform.faults.rate = 4 * MIB
        world.power_on()
        await world.informed("1-0-0")
        package = world.package("2-0-0")
        job = world.push(package)
        await world.status(lambda s: s["deployment"] and s["deployment"]["bytes"] > 0)
        canceled = await world.otad("cancel")
        job = await world.ended(job)
        again = await world.ended(world.push(package))
        world.platform.faults.rate = None
        await world.idle("a")
        retried = await world.otad("retry")
        third = await world.ended(world.push(package))

        assert canceled == (0, "2-0-0 canceled; it is refused until `otad retry`\n")
        assert retried[0] == 0
        assert [job.state, again.state, third.state] == [JobState.FAILED, JobState.FAILED, JobState.SUCCEEDED]
        assert world.steps.count(-1) == 2


async def test_cancel_is_too_late_once_the_target_is_primary(tmp_path: Path) -> None:
    async with new_world(tmp_path) as world:
        gate = tmp_path / "gate"
        world.gateway.add_health_check("05-gate", f"[ -e {gate} ] || exit 75\n")
        world.power_on()
        await world.informed("1-0-0")
        job = world.push(world.package("2-0-0"))
        await world.phase("confirming")
        status, said = await world.otad("cancel")
        gate.touch()
        job = await world.ended(job)

        assert status == 4
        assert "too late" in said
        assert job.state == JobState.SUCCEEDED


async def test_a_newer_package_supersedes_one_that_is_downloading(tmp_path: Path) -> None:
    async with new_world(tmp_path) as world:
        world.platform.faults.rate = 4 * MIB
        world.power_on()
        await world.informed("1-0-0")
        job = world.push(world.package("2-0-0"))
        await world.status(lambda s: s["deployment"] and s["deployment"]["bytes"] > 0)
        world.platform.faults.rate = None
        world.platform.cancel(job)
        newer = await world.ended(world.push(world.package("3-0-0")))
        await world.idle("b")
        _, history = await world.otad("history")

        assert newer.state == JobState.SUCCEEDED
        assert all(step > 0 for step in world.steps)
        assert "superseded" in history


async def test_mark_good_by_hand_stands_for_the_health_checks(tmp_path: Path) -> None:
    async with new_world(tmp_path) as world:
        world.gateway.add_health_check("05-gate", "exit 75\n")
        world.power_on()
        await world.informed("1-0-0")
        job = world.push(world.package("2-0-0"))
        await world.phase("confirming")
        status, _ = await world.otad("mark-good")
        job = await world.ended(job)

        assert status == 0
        assert job.state == JobState.SUCCEEDED


async def test_rollback_by_hand_on_trial_is_reported_with_its_reason(tmp_path: Path) -> None:
    async with new_world(tmp_path) as world:
        world.gateway.add_health_check("05-gate", "exit 75\n")
        world.power_on()
        await world.informed("1-0-0")
        job = world.push(world.package("2-0-0"))
        await world.phase("confirming")
        status, _ = await world.otad("rollback")
        job = await world.ended(job)
        await world.idle("a")

        assert status == 0
        assert job.state == JobState.FAILED
        assert "step -1: rolled back on the gateway by hand" in world.told


async def test_rollback_by_hand_of_a_confirmed_system_returns_to_the_other_slot(tmp_path: Path) -> None:
    async with new_world(tmp_path) as world:
        world.power_on()
        await world.informed("1-0-0")
        await world.ended(world.push(world.package("2-0-0")))
        await world.idle("b")
        status, _ = await world.otad("rollback")
        await world.informed("1-0-0", times=2)
        after = await world.idle("a")

        assert status == 0
        assert after["slots"]["b"]["good"] is False
        assert -1 not in world.steps


async def test_a_local_file_is_installed_and_only_the_version_is_told(tmp_path: Path) -> None:
    async with new_world(tmp_path) as world:
        world.power_on()
        await world.informed("1-0-0")
        image = write_image(tmp_path / "usb.img", "2-0-0", 16 * MIB)
        status, _ = await world.otad("install", str(image), "--version", "2-0-0")
        await world.informed("2-0-0")
        await world.idle("b")

        assert status == 0
        assert world.slot("b") == image.read_bytes()
        assert world.told == ["version 1-0-0", "version 2-0-0"]


async def test_a_url_is_installed_without_the_platforms_rules_for_urls(tmp_path: Path) -> None:
    async with new_world(tmp_path) as world:
        text = world.gateway.config.read_text().replace("allow_http = true", "allow_http = false")
        world.gateway.config.write_text(text.replace("allow_private_hosts = true", "allow_private_hosts = false"))
        world.power_on()
        await world.informed("1-0-0")
        package = world.package("2-0-0")
        digest = hashlib.sha256(world.images["2-0-0"]).hexdigest()
        url = world.platform.url(package)
        status, _ = await world.otad("install", url, "--version", "2-0-0", "--sha256", digest)
        await world.informed("2-0-0")

        assert status == 0
        assert [event.version for event in world.platform.events.of(Informed)] == ["1-0-0", "2-0-0"]


async def test_a_second_daemon_on_the_same_state_directory_ends_with_4(tmp_path: Path) -> None:
    async with new_world(tmp_path) as world:
        world.power_on()
        await world.informed("1-0-0")
        second = await world.otad("run")
        cycled = await world.otad("board", "power-cycle")

        assert second[0] == 4
        assert cycled[0] == 4
        assert (await world.status())["booted"] == "a"


async def test_commands_say_that_the_daemon_is_not_running(tmp_path: Path) -> None:
    async with new_world(tmp_path) as world:
        status, said = await world.otad("status")

        assert status == 3
        assert "not running" in said


async def test_rollback_by_hand_to_a_slot_that_does_not_come_up_stays_where_it_is(tmp_path: Path) -> None:
    async with new_world(tmp_path) as world:
        world.power_on()
        await world.informed("1-0-0")
        await world.ended(world.push(world.package("2-0-0")))
        await world.idle("b")
        world.gateway.slots["a"].write_bytes(bytes(16 * MIB))
        status, _ = await world.otad("rollback")
        after = await world.status(lambda s: s["last"]["outcome"] == "failed" and s["deployment"] is None)

        assert status == 0
        assert after["booted"] == "b"
        assert after["last"]["reason"] == "slot a did not come up; staying on b"
        assert after["slots"]["b"] == {**after["slots"]["b"], "good": True, "primary": True, "confirmed": True}
        assert after["slots"]["a"]["good"] is False
        assert -1 not in world.steps


async def test_with_an_error_in_the_configuration_nothing_new_is_begun_and_a_trial_is_still_confirmed(
    tmp_path: Path,
) -> None:
    async with new_world(tmp_path, slot_bytes=MIB) as world:
        gate = tmp_path / "gate"
        world.gateway.add_health_check("05-gate", f"[ -e {gate} ] || exit 75\n")
        world.power_on()
        await world.informed("1-0-0")
        job = world.push(world.package("2-0-0", MIB))
        await world.phase("confirming")
        with world.gateway.config.open("a") as config:
            config.write('[update]\ntries = "many"\n')
        gate.touch()
        world.gateway.kill()
        job = await world.ended(job)
        later = world.push(world.package("3-0-0", MIB))
        status, said = await world.otad("install", str(tmp_path / "3-0-0.img"), "--version", "3-0-0")
        shown = await world.idle("b")

        assert job.state == JobState.SUCCEEDED
        assert world.platform.job(later).state == JobState.NOTIFIED
        assert (status, "configuration has errors" in said) == (4, True)
        assert any("update.tries" in problem for problem in shown["problems"])


async def test_a_boot_loader_store_that_cannot_be_read_is_said_and_waited_for(tmp_path: Path) -> None:
    async with new_world(tmp_path, slot_bytes=MIB) as world:
        world.power_on()
        await world.informed("1-0-0")
        await world.power_off()
        variables = world.gateway.directory / "boot" / "variables.json"
        kept = variables.read_text()
        variables.write_text("{")
        await world.gateway.start()
        shown = await world.status()
        variables.write_text(kept)
        after = await world.status(lambda s: s["session"]["state"] == "online")
        await world.gateway.stop()

        assert shown["next"].startswith("wait for the boot loader's store (")
        assert after["next"].startswith("nothing to do")
