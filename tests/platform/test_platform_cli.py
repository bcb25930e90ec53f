# SPDX-License-Identifier: Apache-2.0
"""`otad platform` as a user types it: real processes, and what they print and exit with."""

import asyncio
import json
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiomqtt
import pytest
from conftest import Gateway, login

from otad.platform.credentials import Identity
from otad.platform.platform import Device

PROGRAM = """
import argparse, sys
from otad.platform.cli import add_arguments, run
parser = argparse.ArgumentParser("otad platform")
add_arguments(parser)
sys.exit(run(parser.parse_args()))
"""


async def otad_platform(*words: str | Path) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of one command."""
    process = await start(*words)
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def start(*words: str | Path) -> asyncio.subprocess.Process:
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    return await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[asyncio.StreamReader]:
    """A running `serve`; its further output."""
    process = await start("serve", "--directory", directory, "--mqtt-port", "0", "--http-port", "0")
    assert process.stdout is not None
    try:
        async with asyncio.timeout(10):
            assert b"MQTT" in await process.stdout.readline()
        yield process.stdout
    finally:
        process.terminate()
        _, err = await process.communicate()
        assert (process.returncode, err) == (0, b"")


async def line_with(output: asyncio.StreamReader | None, text: str) -> str:
    """The next line that holds `text`."""
    assert output is not None
    async with asyncio.timeout(5):
        while text not in (line := (await output.readline()).decode()):
            assert line, f"ended without {text!r}"
    return line.rstrip()


async def test_an_upgrade_by_hand(tmp_path: Path) -> None:
    directory, image = tmp_path / "cloud", tmp_path / "image"
    image.write_bytes(b"image")
    where = ("--directory", directory)
    async with serving(directory) as log:
        status, configuration, _ = await otad_platform("add-device", *where, "pk", "dn", "--secret", "s3cr3t")
        assert status == 0
        settings = tomllib.loads(configuration)
        status, text, _ = await otad_platform("add-package", *where, image, "2-0-0")
        assert (status, text.split(",")[0]) == (0, "package 2-0-0 (default): 5 bytes")
        pushing = await start("push", *where, "dn", "2-0-0", "--wait")
        assert await line_with(pushing.stdout, "job 1") == "job 1: pk/dn to 2-0-0: QUEUED"
        device = Device(Identity("pk", "dn"), "s3cr3t")
        async with aiomqtt.Client("127.0.0.1", settings["mqtt"]["port"], **login(device)) as client:
            gateway = Gateway(client, device)
            assert json.loads((await gateway.hear())[1])["data"]["size"] == 5
            await gateway.progress(50, "half")
            assert await line_with(pushing.stdout, "half") == "job 1: pk/dn to 2-0-0: IN_PROGRESS step 50: half"
            await gateway.inform("2-0-0")
            out, err = await pushing.communicate()
        assert (pushing.returncode, err) == (0, b"")
        assert out.decode().splitlines()[-1] == "job 1: pk/dn to 2-0-0: SUCCEEDED: half"
        assert await line_with(log, "job 1 (2-0-0) is SUCCEEDED")

    async with serving(directory):
        status, text, _ = await otad_platform("jobs", *where, "--json")
        (job,) = json.loads(text)["jobs"]
        assert (job["state"], job["step"], job["desc"]) == ("SUCCEEDED", 50, "half")
        assert (await otad_platform("jobs", *where))[1].splitlines()[1].split() == [
            "1", "pk/dn", "default", "2-0-0", "SUCCEEDED", "50",
        ]  # fmt: skip


async def test_what_cannot_be_done_is_said_in_two_lines(tmp_path: Path) -> None:
    directory, image = tmp_path / "cloud", tmp_path / "image"
    image.write_bytes(b"image")
    where = ("--directory", directory)
    async with serving(directory):
        await otad_platform("add-device", *where, "pk", "dn")
        await otad_platform("add-package", *where, image, "2-0-0")
        commands: list[tuple[tuple[str | Path, ...], int, str]] = [
            (("serve",), 1, f"{directory}: another platform is served from here"),
            (("add-device", "pk", "dn"), 1, "device pk/dn: exists already"),
            (("add-package", image, "2 0"), 1, "version '2 0': not 1 to 64"),
            (("add-package", tmp_path / "none", "2"), 2, f"{tmp_path / 'none'}: no such file"),
            (("push", "other", "2-0-0"), 1, "device 'other': not known; there is pk/dn"),
            (("push", "dn", "3"), 1, "package '3' of module 'default': not known; there is 2-0-0 (default)"),
            (("push", "dn", "2-0-0", "--retries", "1"), 1, "retry: needs source_versions"),
            (("cancel", "9"), 1, "job '9': not known; there is none yet"),
            (("misbehave", "rain=1"), 1, "fault 'rain': not known"),
            (("misbehave", "rain"), 2, "'rain': not NAME=VALUE"),
        ]
        for words, status, what in commands:
            found = await otad_platform(words[0], *where, *words[1:])
            assert found[:2] == (status, ""), words
            lines = found[2].splitlines()
            assert len(lines) == 2, found
            assert lines[0].startswith(f"otad platform: {what}"), lines


async def test_cancel_and_misbehave(tmp_path: Path) -> None:
    directory, image = tmp_path / "cloud", tmp_path / "image"
    image.write_bytes(b"image")
    where = ("--directory", directory)
    async with serving(directory):
        await otad_platform("add-device", *where, "pk", "dn")
        await otad_platform("add-package", *where, image, "2-0-0", "--sign-method", "Md5")
        await otad_platform("push", *where, "dn", "2-0-0", "--confirm")

        assert (await otad_platform("confirm", *where, "1"))[:2] == (0, "job 1: pk/dn to 2-0-0: QUEUED\n")
        assert (await otad_platform("cancel", *where, "1"))[:2] == (
            0,
            "job 1: pk/dn to 2-0-0: CANCELED: cancelled by the operator\n",
        )
        status, text, _ = await otad_platform("misbehave", *where, "rate=1000", "next_statuses=[403]", "connack=3")
        assert status == 0
        assert {"rate=1000", "next_statuses=[403]", "connack=3"} <= set(text.splitlines())


@pytest.mark.parametrize("words", [("jobs",), ("add-device", "pk", "dn"), ("push", "dn", "2", "--wait")])
async def test_without_serve_it_says_how_to_start_it(tmp_path: Path, words: tuple[str, ...]) -> None:
    status, out, err = await otad_platform(words[0], "--directory", tmp_path, *words[1:])

    assert (status, out, err.splitlines()) == (
        3,
        "",
        [
            f"otad platform: {tmp_path}: no platform is served from here",
            f"start one: otad platform serve --directory {tmp_path}",
        ],
    )


async def test_a_wildcard_needs_an_address(tmp_path: Path) -> None:
    status, _, err = await otad_platform("serve", "--directory", tmp_path, "--host", "0.0.0.0")

    assert (status, err.splitlines()[-1]) == (2, "add --address ADDRESS")


async def test_the_arguments_load_no_http_server() -> None:
    program = "import sys, otad.platform.cli; sys.exit('aiohttp' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)

    assert await process.wait() == 0
