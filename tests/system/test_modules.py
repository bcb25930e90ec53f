# SPDX-License-Identifier: Apache-2.0
"""Modules that are no slots, on a gateway as it is: what the platform hears, what the link points to, what was run."""

import io
import json
import tarfile
from collections.abc import AsyncIterator, Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from otad.platform.events import Informed, Progressed
from otad.platform.jobs import JobState, Package
from tests.system.world import MIB, World, new_world

APP = """
[modules.app]
installer = "files"
directory = "apps"
version = "installed"

[modules.mcu]
installer = "command"
command = ["./flash"]
timeout = "20 s"
version = "file:mcu.version"
"""


def tar(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with new_world(tmp_path, more=APP) as world:
        gateway = world.gateway.directory
        (gateway / "apps").mkdir()
        (gateway / "mcu.version").write_text("1-0-0")
        flash(world, 'cp "$OTAD_FILE" mcu.image; echo "$OTAD_VERSION" > mcu.version')
        yield world


def flash(world: World, script: str) -> None:
    """The program that flashes the microcontroller; its calls are kept in flash.log."""
    path = world.gateway.directory / "flash"
    path.write_text(f'#!/bin/sh\ncd "{world.gateway.directory}"\necho "$1 $OTAD_VERSION" >> flash.log\n{script}\n')
    path.chmod(0o755)


def flashed(world: World) -> list[str]:
    log = world.gateway.directory / "flash.log"
    return log.read_text().splitlines() if log.exists() else []


def app(world: World, version: str, module: str = "app", **files: bytes) -> Package:
    path = tar(world.directory / f"{module}-{version}.tar.gz", files or {"run": version.encode()})
    return world.platform.add_package(path, version, module=module)


def current(world: World) -> Path:
    return world.gateway.directory / "apps" / "current"


def steps_of(world: World, module: str) -> list[int]:
    return [event.step for event in world.platform.events.of(Progressed) if event.module == module]


def versions_of(world: World, module: str) -> list[str]:
    return [event.version for event in world.platform.events.of(Informed) if event.module == module]


async def test_files_are_switched_by_a_link_and_the_slots_stay_as_they_are(world: World) -> None:
    before = world.slot("b")
    world.power_on()

    first = await world.ended(world.push(app(world, "1.0", run=b"one", data=b"x" * 5000)))
    second = await world.ended(world.push(app(world, "2.0", run=b"two")))

    assert (first.state, second.state) == (JobState.SUCCEEDED, JobState.SUCCEEDED)
    assert (current(world) / "run").read_bytes() == b"two"
    assert not (current(world) / "data").exists()
    assert world.slot("b") == before
    assert world.gateway.exits == []
    assert versions_of(world, "app")[-1] == "2.0"
    status = await world.idle("a")
    assert status["modules"]["app"] == {"version": "2.0"}


async def test_an_unhealthy_module_is_taken_back(world: World) -> None:
    world.gateway.add_health_check("10-app", '[ "$OTAD_MODULE $OTAD_VERSION" != "app 2.0" ] || { echo sick; exit 1; }')
    world.power_on()
    await world.ended(world.push(app(world, "1.0", run=b"one")))

    job = await world.ended(world.push(app(world, "2.0", run=b"two")))

    assert job.state is JobState.FAILED
    assert "health check 10-app: exit status 1: sick" in (job.reason or "")
    await world.idle("a")
    assert (current(world) / "run").read_bytes() == b"one"
    assert "2.0" not in versions_of(world, "app")
    assert versions_of(world, "app")[-1] == "1.0"
    await world.until(lambda: steps_of(world, "app")[-1] == -1)


async def test_a_command_gets_the_file_and_decides(world: World) -> None:
    image = world.directory / "mcu.bin"
    image.write_bytes(b"\x7fMCU" + bytes(100_000))
    world.power_on()
    await world.until(lambda: versions_of(world, "mcu") == ["1-0-0"])

    job = await world.ended(world.push(world.platform.add_package(image, "2-0-0", module="mcu")))

    assert job.state is JobState.SUCCEEDED
    assert (world.gateway.directory / "mcu.image").read_bytes() == image.read_bytes()
    assert flashed(world) == ["install 2-0-0"]
    assert versions_of(world, "mcu") == ["1-0-0", "2-0-0"]


async def test_a_command_that_says_no_has_its_tries_and_its_word_reaches_the_platform(world: World) -> None:
    flash(world, '[ "$1" = rollback ] || { echo "no answer from the bootloader"; exit 3; }')
    world.power_on()

    job = await world.ended(world.push(app(world, "2-0-0", "mcu")))

    assert job.state is JobState.FAILED
    assert "step -4" in (job.reason or "")
    assert "exit status 3: no answer from the bootloader" in (job.reason or "")
    await world.idle("a")
    assert flashed(world).count("install 2-0-0") == 3
    assert set(versions_of(world, "mcu")) == {"1-0-0"}


async def test_two_modules_and_the_system_go_one_after_the_other(world: World) -> None:
    world.gateway.add_health_check("10-wait", "[ ! -e /nonexistent ]")
    system = world.package("2-0-0")
    world.power_on()
    await world.informed("1-0-0")

    jobs = [
        world.push(system, multi_module=True),
        world.push(app(world, "2.0"), multi_module=True),
        world.push(app(world, "2-0-0", "mcu"), multi_module=True),
    ]
    ended = [await world.ended(job) for job in jobs]

    assert [job.state for job in ended] == [JobState.SUCCEEDED] * 3
    await world.idle("b")
    history = json.loads((await world.otad("history", "--json"))[1])["deployments"]
    assert {line["module"] for line in history} == {"default", "app", "mcu"}
    assert all(a["ended"] <= b["began"] for a, b in pairwise(history))


async def test_a_power_cut_while_the_command_runs_calls_it_again(world: World) -> None:
    flash(world, '[ -e flashed.once ] || { touch flashed.once; sleep 60; }\necho "$OTAD_VERSION" > mcu.version')
    job = world.push(app(world, "2-0-0", "mcu"))
    world.power_on()
    once = world.gateway.directory / "flashed.once"
    await world.status(lambda status: once.exists())

    world.gateway.kill()

    assert (await world.ended(job)).state is JobState.SUCCEEDED
    assert flashed(world) == ["install 2-0-0"] * 2


async def test_a_package_of_several_files(world: World) -> None:
    names = {"firmware.bin": b"f" * 3_000_001, "table.csv": b"a,b\n" * 1000, "logo.png": b"\x89PNG" + bytes(9)}
    paths = []
    for name, content in names.items():
        (world.directory / name).write_bytes(content)
        paths.append(world.directory / name)
    world.power_on()

    job = await world.ended(world.push(world.platform.add_package(paths, "2.0", module="app")))

    assert job.state is JobState.SUCCEEDED
    assert {path.name: path.read_bytes() for path in current(world).iterdir()} == names


async def test_a_package_of_several_files_is_refused_once_where_one_image_is_needed(world: World) -> None:
    paths = [world.directory / name for name in ("one", "two")]
    for path in paths:
        path.write_bytes(b"x" * 1000)
    world.power_on()
    await world.informed("1-0-0")

    job = await world.ended(world.push(world.platform.add_package(paths, "2-0-0")))

    assert job.state is JobState.FAILED
    assert "step -1" in (job.reason or "")
    assert "files: 2 of them" in (job.reason or "")


async def test_a_module_that_is_not_configured_is_refused_once(world: World) -> None:
    world.power_on()
    await world.informed("1-0-0")

    job = await world.ended(world.push(app(world, "9.9", "radio")))

    assert job.state is JobState.FAILED
    assert "module radio: not configured on this gateway" in (job.reason or "")
    assert steps_of(world, "radio") == [-1]


async def test_a_local_package_says_what_it_is(world: World) -> None:
    manifest = json.dumps({"version": "3.1", "module": "app"}).encode()
    package = tar(world.directory / "stick.tar.gz", {"manifest.json": manifest, "run": b"three"})
    world.power_on()
    await world.informed("1-0-0")

    status, said = await world.otad("install", str(package), "--version", "3.2")
    assert (status, "the archive's manifest.json says 3.1" in said) == (2, True), said
    status, said = await world.otad("install", str(package))

    assert (status, "installing 3.1" in said) == (0, True), said
    await world.until(lambda: "3.1" in versions_of(world, "app"))
    assert (current(world) / "run").read_bytes() == b"three"
    assert steps_of(world, "app") == []


async def test_a_gateway_without_slots(tmp_path: Path) -> None:
    async with new_world(tmp_path) as world:
        text = world.gateway.config.read_text()
        head, _, rest = text.partition("[modules.default]")
        kept = rest[rest.index("[reboot]") :]
        world.gateway.config.write_text(head + APP + kept)
        (world.gateway.directory / "apps").mkdir()
        (world.gateway.directory / "mcu.version").write_text("1-0-0")
        flash(world, 'echo "$OTAD_VERSION" > mcu.version')
        await world.gateway.start()

        job = await world.ended(world.push(app(world, "2.0", run=b"two" * MIB)))

        assert job.state is JobState.SUCCEEDED
        assert world.gateway.status()["booted"] == "system"
        await world.gateway.stop()


async def test_status_shows_what_an_upgrade_in_place_has_brought(world: World) -> None:
    world.power_on()
    await world.ended(world.push(app(world, "1.0")))
    assert (await world.idle("a"))["modules"]["app"] == {"version": "1.0"}

    await world.ended(world.push(app(world, "2.0")))  # nobody looks meanwhile

    assert (await world.idle("a"))["modules"]["app"] == {"version": "2.0"}


async def test_a_refusal_for_want_of_configuration_ends_with_it(world: World) -> None:
    text = world.gateway.config.read_text()
    head, _, rest = text.partition("[modules.app]")
    world.gateway.config.write_text(head + rest[rest.index("[modules.mcu]") :])
    world.power_on()
    package = app(world, "1.0")
    refused = await world.ended(world.push(package))
    await world.idle("a")
    await world.power_off()
    world.gateway.config.write_text(text)
    world.power_on()
    await world.status(lambda status: "app" in status["modules"] and status["session"]["state"] == "online")

    accepted = await world.ended(world.push(package))

    assert (refused.state, accepted.state) == (JobState.FAILED, JobState.SUCCEEDED)
    assert (await world.idle("a"))["refused"] == []


@pytest.mark.parametrize("edit", ["removed", "mistyped"])
async def test_a_module_whose_configuration_goes_in_mid_switch(world: World, edit: str) -> None:
    """Removed, it is the end of its deployment, with a word; mistyped, all waits for the configuration."""
    flash(world, "touch begun; sleep 60")
    job = world.push(app(world, "2-0-0", "mcu"))
    world.power_on()
    await world.status(lambda status: (world.gateway.directory / "begun").exists())
    await world.power_off()
    text = world.gateway.config.read_text()
    head = text.partition("[modules.mcu]")[0]
    flash(world, 'echo "$OTAD_VERSION" > mcu.version')
    if edit == "removed":
        world.gateway.config.write_text(head)
        world.power_on()
        assert (await world.ended(job)).state is JobState.FAILED
        status = await world.status(lambda status: status["deployment"] is None and not status["outbox"])
        assert "not configured" in status["last"]["reason"]
        assert world.gateway.exits == []
        assert (await world.ended(world.push(app(world, "1.0")))).state is JobState.SUCCEEDED
        return
    world.gateway.config.write_text(text.replace('timeout = "20 s"', 'timeout = "20 parsecs"'))
    world.power_on()
    await world.status(lambda status: "the configuration to be put right" in status["next"])
    await world.power_off()
    world.gateway.config.write_text(text)
    world.power_on()
    assert (await world.ended(job)).state is JobState.SUCCEEDED


async def test_an_answer_about_a_module_that_nobody_has_is_said_and_survived(world: World) -> None:
    world.power_on()
    await world.informed("1-0-0")
    world.platform.faults.edit_notice = lambda message: message["data"] and message["data"].update(module="radio")
    world.push(world.package("2-0-0", MIB), need_push=False)

    status, said = await world.otad("check")

    assert (status, "module radio: not configured on this gateway" in said) == (0, True), said
    assert world.gateway.exits == []
