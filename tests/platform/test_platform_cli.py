# SPDX-License-Identifier: Apache-2.0
"""`otad platform` as a user types it, and what it prints and exits with. What waits is a real process."""

import argparse
import asyncio
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import tomllib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from conftest import Gateway, login

from otad.platform.admin import serve_admin
from otad.platform.cli import add_arguments, run
from otad.platform.credentials import Identity
from otad.platform.platform import Platform

PROGRAM = """
import argparse, sys
from otad.platform.cli import add_arguments, run
parser = argparse.ArgumentParser("otad platform")
add_arguments(parser)
sys.exit(run(parser.parse_args()))
"""


async def otad_platform(*words: str | Path) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of one command that ends by itself; in a thread, as processes start slowly."""
    parser = argparse.ArgumentParser("otad platform")
    add_arguments(parser)
    args = parser.parse_args([str(word) for word in words])
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = await asyncio.to_thread(run, args)
    return status, out.getvalue(), err.getvalue()


async def start(*words: str | Path, **pipes: Any) -> asyncio.subprocess.Process:
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
    return await asyncio.create_subprocess_exec(*command, limit=1 << 20, **pipes)


@asynccontextmanager
async def serving(directory: Path, *more: str) -> AsyncIterator[asyncio.StreamReader]:
    """A running `serve`; its further output."""
    process = await start("serve", directory, "--port", "0", "--http-port", "0", *more)
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
    async with asyncio.timeout(10):
        while text not in (line := (await output.readline()).decode()):
            assert line, f"ended without {text!r}"
    return line.rstrip()


class Bench:
    """A served platform with a package 2-0-0 and the devices gw-1 and gw-2 of product pk."""

    def __init__(self, platform: Platform, directory: Path, stack: AsyncExitStack) -> None:
        self.platform = platform
        self.directory = directory
        self.image = directory.parent / "image"
        self._stack = stack

    async def prepare(self) -> None:
        self.image.write_bytes(b"image")
        for name in ("gw-1", "gw-2"):
            await self.done("add-device", "pk", name, "--secret", "s3cr3t")
        await self.done("add-package", self.image, "--version", "2-0-0")

    async def run(self, command: str, *words: str | Path) -> tuple[int, str, str]:
        return await otad_platform(command, "-d", self.directory, *words)

    async def done(self, command: str, *words: str | Path) -> str:
        """What a command prints that does not fail."""
        status, out, err = await self.run(command, *words)
        assert (status, err) == (0, ""), (command, words)
        return out

    async def start(self, command: str, *words: str | Path, **pipes: Any) -> asyncio.subprocess.Process:
        return await start(command, "-d", self.directory, *words, **pipes)

    async def connect(self, name: str = "gw-1", version: str | None = None) -> Gateway:
        """The device, online; the platform knows its version if one is given."""
        device = self.platform.device(Identity("pk", name))
        client = aiomqtt.Client("127.0.0.1", self.platform.mqtt_port, **login(device))
        gateway = Gateway(await self._stack.enter_async_context(client), device)
        if version is not None:
            await gateway.inform(version)
            await self.platform.wait(lambda: self.platform.versions(device))
        return gateway

    async def jobs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(await self.done("jobs", "--json"))["jobs"]
        return found


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        directory = tmp_path / "cloud"
        platform = await stack.enter_async_context(Platform(directory))
        await stack.enter_async_context(serve_admin(platform, directory))
        bench = Bench(platform, directory, stack)
        await bench.prepare()
        yield bench


async def test_an_upgrade_by_hand(bench: Bench) -> None:
    pushing = await bench.start("push", "gw-1", "2-0-0")
    queued = "job 1: pk/gw-1 to 2-0-0: QUEUED: waits for the device, which is offline"
    assert await line_with(pushing.stdout, "job 1") == queued
    gateway = await bench.connect()
    assert json.loads((await gateway.hear())[1])["data"]["size"] == 5
    for _ in range(2):
        await gateway.progress(50, "half")
    assert await line_with(pushing.stdout, "half") == "job 1: pk/gw-1 to 2-0-0: IN_PROGRESS step 50: half"
    await gateway.inform("2-0-0")
    out, err = await pushing.communicate()

    assert (pushing.returncode, err) == (0, b"")
    assert out.decode().splitlines() == ["job 1: pk/gw-1 to 2-0-0: SUCCEEDED: half"]
    (job,) = await bench.jobs()
    assert (job["state"], job["step"], job["desc"]) == ("SUCCEEDED", 50, "half")
    head, row = (await bench.done("jobs")).splitlines()
    assert re.sub(r"  +", "|", head) == "JOB|BATCH|SINCE|DEVICE|FROM|TO|STATE|STEP"
    assert re.fullmatch(r"1 +1 +[\d:]{8}  pk/gw-1  -     2-0-0  SUCCEEDED  50    half", row)


async def test_a_failed_upgrade_is_a_failed_command(bench: Bench) -> None:
    gateway = await bench.connect()
    pushing = await bench.start("push", "gw-1", "2-0-0")
    await gateway.hear()
    await gateway.progress(-2, "no \x1b[31mroute")
    out, _ = await pushing.communicate()

    assert pushing.returncode == 1
    assert out.decode().splitlines()[-1] == (
        "job 1: pk/gw-1 to 2-0-0: FAILED: step -2, download failed: no \N{REPLACEMENT CHARACTER}[31mroute"
    )


async def test_the_options_reach_the_batch(bench: Bench) -> None:
    await bench.connect(version="1-0-0")
    out = await bench.done(
        *("push", "pk", "2-0-0", "--all", "--source-version", "1-0-0", "--source-version", "0-9-0", "--no-push"),
        *("--overwrite", "--multi-module", "--timeout", "60", "--retry", "2", "--retry-interval", "10", "--no-wait"),
    )

    assert out == "job 1: pk/gw-1 to 2-0-0: QUEUED: waits for the device to ask\n"
    kept = json.loads((bench.directory / "platform.json").read_text())["batches"][0]
    assert kept["selection"] == {
        "devices": [],
        "product": "pk",
        "source_versions": ["1-0-0", "0-9-0"],
        "dynamic": None,
    }
    assert kept["options"] == {
        "verify": False,
        "need_push": False,
        "need_confirm": False,
        "timeout_s": 3600,
        "overwrite": True,
        "multi_module": True,
        "source_versions": ["1-0-0", "0-9-0"],
        "retry": {"count": 2, "interval_s": 600},
        "push_rate": None,
        "starts_at": None,
    }


async def test_a_dynamic_batch_by_hand(bench: Bench) -> None:
    out = await bench.done("push", "pk", "2-0-0", "--dynamic", "2", "--source-version", "1-0-0")
    assert out.splitlines()[-2] == "batch 1 takes product pk at 1-0-0, later, until"
    gateway = await bench.connect("gw-2", version="1-0-0")
    await gateway.hear()

    assert [(job["device"], job["batch"], job["state"]) for job in await bench.jobs()] == [("pk/gw-2", "1", "NOTIFIED")]
    row = (await bench.done("batches")).splitlines()[1]
    assert row.endswith("2-0-0  IN_PROGRESS  product pk at 1-0-0, later  1 NOTIFIED")
    assert await bench.done("cancel", "--batch", "1") == "batch 1: product pk at 1-0-0, later to 2-0-0: CANCELED\n"
    assert (await bench.jobs())[0]["reason"] == "its batch was cancelled by the operator"


async def test_several_devices_are_waited_for_together(bench: Bench) -> None:
    gateways = [await bench.connect("gw-1"), await bench.connect("gw-2")]
    pushing = await bench.start("push", "gw-1,pk/gw-2", "2-0-0", "--json")
    first = json.loads(await line_with(pushing.stdout, "batch"))
    for gateway in gateways:
        await gateway.hear()
        await gateway.inform("2-0-0")
    out, _ = await pushing.communicate()

    last = json.loads(out.splitlines()[-1])
    assert pushing.returncode == 0
    assert (first["batch"]["state"], len(first["jobs"])) == ("IN_PROGRESS", 2)
    assert (last["batch"]["state"], last["batch"]["jobs"]) == ("COMPLETED", {"SUCCEEDED": 2})


@asynccontextmanager
async def on_a_terminal(
    bench: Bench, *words: str, columns: int = 120
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A command whose stdout is a terminal of 12 lines; the process and our end of it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    environment |= {"TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    process = await bench.start(*words, stdout=theirs, env=environment)
    os.close(theirs)
    try:
        yield process, ours
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
        os.close(ours)


async def screen_with(ours: int, text: str) -> str:
    """What has come to the terminal, once that holds `text`."""
    seen = ""
    os.set_blocking(ours, False)
    async with asyncio.timeout(10):
        while text not in seen:
            with_more = asyncio.Event()
            asyncio.get_running_loop().add_reader(ours, with_more.set)
            await with_more.wait()
            asyncio.get_running_loop().remove_reader(ours)
            seen += os.read(ours, 65536).decode()
    return seen


async def test_on_a_terminal_the_table_is_redrawn_with_a_bar(bench: Bench) -> None:
    async with on_a_terminal(bench, "push", "gw-1", "2-0-0") as (pushing, ours):
        await screen_with(ours, "which is offline")
        gateway = await bench.connect()
        await gateway.hear()
        await gateway.progress(50)
        seen = await screen_with(ours, " 50 %")
        assert "\x1b[2A\r\x1b[J" in seen
        assert "━━━━━━━━━━──────────  50 %" in seen
        assert "\x1b[33mIN_PROGRESS\x1b[0m" in seen
        pushing.send_signal(signal.SIGINT)
        seen = await screen_with(ours, "--batch 1")
        assert f"batch 1 goes on; to end it: otad platform cancel -d {bench.directory} --batch 1" in seen
        assert await pushing.wait() == 130


async def test_jobs_are_watched_until_interrupted(bench: Bench) -> None:
    watching = await bench.start("jobs", "--watch")
    await bench.done("push", "gw-1", "2-0-0", "--no-wait")
    assert "QUEUED" in await line_with(watching.stdout, "job 1")
    await bench.done("cancel", "1")
    assert "CANCELED: cancelled by the operator" in await line_with(watching.stdout, "job 1")
    watching.send_signal(signal.SIGINT)

    assert (await watching.communicate())[1] == b""
    assert watching.returncode == 0


async def test_a_table_that_is_watched_fits_on_the_terminal(bench: Bench) -> None:
    for _ in range(15):
        await bench.done("push", "gw-1", "2-0-0", "--no-wait", "--overwrite")

    async with on_a_terminal(bench, "jobs", "--watch", columns=60) as (watching, ours):
        lines = re.sub(r"\x1b\[[\d;]*\w", "", await screen_with(ours, "QUEUED")).strip().splitlines()
        watching.send_signal(signal.SIGINT)
        await watching.wait()

    assert (len(lines), lines[1]) == (11, "... 6 more")
    assert max(map(len, lines)) == 60
    assert [line.split()[0] for line in lines[2:]] == [str(number) for number in range(7, 16)]


async def test_serve_tells_what_happens(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"image")
    cloud = tmp_path / "cloud"
    async with serving(cloud) as log:
        await otad_platform("add-device", "-d", cloud, "pk", "gw-1")
        await otad_platform("add-package", "-d", cloud, image, "--version", "2-0-0")
        await otad_platform("push", "-d", cloud, "gw-1", "2-0-0", "--no-wait")

        assert re.fullmatch(r"[\d:]{8} pk/gw-1: job 1 \(2-0-0\) is QUEUED", await line_with(log, "job 1"))
    async with serving(cloud) as log:
        assert f"push -d {cloud} gw-1 2-0-0" in await line_with(log, "push")
        assert json.loads((await otad_platform("jobs", "-d", cloud, "--json"))[1])["jobs"][0]["state"] == "QUEUED"


async def test_the_end_of_the_platform_ends_a_watch(tmp_path: Path) -> None:
    async with serving(tmp_path):
        watching = await start("jobs", "-d", tmp_path, "--watch", "--json")
        assert await line_with(watching.stdout, "jobs") == '{"jobs": []}'
    _, err = await watching.communicate()

    assert watching.returncode == 3
    assert err.decode().startswith(f"otad platform: {tmp_path}: the platform has gone\n")


async def test_devices_and_their_configurations(bench: Bench) -> None:
    await bench.connect("gw-2", version="1-0-0")

    assert [line.split() for line in (await bench.done("devices")).splitlines()] == [
        ["DEVICE", "LOGIN", "SESSION", "VERSIONS"],
        ["pk/gw-1", "secret", "offline", "none", "informed", "yet"],
        ["pk/gw-2", "secret", "online", "1-0-0"],
    ]
    settings = tomllib.loads(await bench.done("devices", "gw-2"))
    assert settings["device"] == {"product_key": "pk", "device_name": "gw-2", "device_secret": "s3cr3t"}
    assert "s3cr3t" not in await bench.done("devices", "--json")


async def test_a_package_of_several_files_with_tags(bench: Bench) -> None:
    other = bench.directory.parent / "other"
    other.write_bytes(b"other")
    out = await bench.done(
        *("add-package", bench.image, other, "--version", "5", "--module", "app", "--md5", "--tag", "a=1"),
        *("--tag", "b=x=y", "--udi", "text"),
    )

    assert out.splitlines() == [
        "package 5 (app): 10 bytes, 2 files",
        "  image: 5 bytes, MD5 78805a221a988e79ef3f42d7c5bfd418",
        "  other: 5 bytes, MD5 795f3202b17cb6bc3d4b771d8c6c9eaf",
    ]
    kept = json.loads((bench.directory / "platform.json").read_text())["packages"][1]
    assert (kept["tags"], kept["udi"], kept["sign_method"]) == ({"a": "1", "b": "x=y"}, "text", "Md5")


async def test_a_signed_package_comes_with_the_key_to_check_it_by(bench: Bench) -> None:
    out = await bench.done("add-package", bench.image, "--version", "6", "--signed")
    settings = tomllib.loads(out[out.index("[trust]") :])

    key = Path(settings["trust"]["digestsign_key_file"]).read_text()
    assert key == bench.platform.signing_key
    assert key.startswith("-----BEGIN PUBLIC KEY-----")


async def test_a_product_whose_devices_register(bench: Bench) -> None:
    assert tomllib.loads(await bench.done("add-product", "pk", "--secret", "pS"))["device"] == {
        "product_key": "pk",
        "product_secret": "pS",
    }
    assert "may not register" in await bench.done("add-product", "pk", "--no-registration")


async def test_a_platform_is_found_by_the_environment(bench: Bench) -> None:
    process = await start("devices", env={**os.environ, "OTAD_PLATFORM": str(bench.directory)})

    assert b"pk/gw-1" in (await process.communicate())[0]


async def test_serve_prints_what_devices_need(tmp_path: Path) -> None:
    async with serving(tmp_path, "--tls"):
        made = tomllib.loads((await otad_platform("add-device", "-d", tmp_path, "pk", "gw-1", "--x509"))[1])
    async with serving(tmp_path, "--tls") as log:
        trust = (await log.readline()).decode()
        text = await _until(log, "in another terminal:")
        commands = [(await log.readline()).decode().strip() for _ in range(3)]

    ca_file = str(tmp_path / "ca.pem")
    assert trust == f"devices have to trust {ca_file}: copy it to those on other machines\n"
    settings = tomllib.loads(text)
    assert settings["device"] == made["device"] == {
        "product_key": "pk",
        "device_name": "gw-1",
        "certificate_file": str(tmp_path / "devices" / "pk.gw-1.pem"),
        "key_file": str(tmp_path / "devices" / "pk.gw-1.key"),
    }  # fmt: skip
    assert settings["mqtt"]["tls"] is True
    assert settings["mqtt"]["ca_file"] == settings["download"]["ca_file"] == ca_file
    assert commands == [
        f"otad platform add-package -d {tmp_path} FILE --version 2-0-0",
        f"otad platform push -d {tmp_path} gw-1 2-0-0",
        f"otad platform jobs -d {tmp_path} --watch",
    ]


async def _until(output: asyncio.StreamReader, end: str) -> str:
    lines: list[str] = []
    async with asyncio.timeout(5):
        while (line := (await output.readline()).decode()).strip() != end:
            lines.append(line)
    return "".join(lines)


# What is typed, the exit status, what is wrong, and what is advised.
REFUSALS: list[tuple[list[str], int, str, str]] = [
    (["add-device", "pk", "gw-1"], 2, "device pk/gw-1: exists already", "see what there is"),
    (["add-device", "pk", "gw"], 2, "device name 'gw': not 4 to 32", "see what there is"),
    (["add-device", "p/k", "gw-9"], 2, "product key 'p/k': not 1 to 64", "see what there is"),
    (["add-device", "pk", "gw-9", "--x509"], 2, "x509: needs a platform with TLS", "see what there is"),
    (["add-package", "IMAGE", "--version", "2 0"], 2, "version '2 0': not 1 to 64", "`otad platform add-package"),
    (["add-package", "none", "--version", "2"], 2, "none: no such file", "give the path"),
    (["add-package", "IMAGE", "--version", "2", "--tag", "a-b=1"], 2, "tag 'a-b': not 1 to 30", "`otad platform"),
    (["push", "other", "2-0-0"], 2, "device 'other': not known", "there is pk/gw-1, pk/gw-2"),
    (["push", "other", "2-0-0", "--all"], 2, "product 'other': not known", "there is pk"),
    (["push", "gw-1", "3"], 2, "package '3' of module 'default': not known", "there is 2-0-0 (default)"),
    (["push", "gw-1", "2-0-0", "--retry", "1"], 2, "retry: needs --source-version", "`otad platform push"),
    (["push", "gw-1", "2-0-0", "--rate", "5"], 2, "--rate 5: not 10 to 10000", "`otad platform push --help`"),
    (
        ["push", "gw-1", "2-0-0", "--source-version", "1"],
        2,
        "no device to upgrade: pk/gw-1 has informed no version, not 1",
        "`otad platform push --help`",
    ),
    (["cancel", "9"], 2, "job '9': not known", "there is 1"),
    (["cancel", "1"], 4, "job 1: is CANCELED already", "see how things stand"),
    (["confirm", "1"], 4, "job 1: is CANCELED, waits for no confirmation", "see how things stand"),
    (["cancel", "--batch", "1"], 4, "batch 1: is COMPLETED already", "see how things stand"),
    (["misbehave", "rain=1"], 2, "fault 'rain': not known", "there is "),
    (
        ["misbehave", "every_block=lots"],
        2,
        'fault every_block: "lots": not one of its values',
        "it takes lost, crc, cut, other, twice, late,",
    ),
    (
        ["misbehave", 'next_blocks=["crc","lots"]'],
        2,
        'fault next_blocks: ["crc", "lots"]: not one of its values',
        "it takes a list of lost,",
    ),
    (
        ["misbehave", "next_blocks=crc"],
        2,
        'fault next_blocks: "crc": not one of its values',
        "it takes a list of lost,",
    ),
    (["misbehave", "connack=99"], 2, "fault connack: 99: not one of its values", "it takes 0, 1, 2, 3, 4, 5, null"),
    (["misbehave", "connack=true"], 2, "fault connack: true: not one of its values", "it takes 0, 1,"),
    (["misbehave", "cut_after=1.5"], 2, "fault cut_after: 1.5: not one of its values", "it takes a whole number, null"),
    (["misbehave", "rate=fast"], 2, 'fault rate: "fast": not one of its values', "it takes a number, null"),
    (["misbehave", "gzip=1"], 2, "fault gzip: 1: not one of its values", "it takes true or false"),
    (["misbehave", "rain"], 2, "'rain': not NAME=VALUE", "for example"),
]


async def test_what_cannot_be_done_is_said_in_two_lines(bench: Bench) -> None:
    await bench.done("push", "gw-1", "2-0-0", "--no-wait")
    await bench.done("cancel", "1")
    for (command, *words), status, what, advice in REFUSALS:
        found = await bench.run(command, *(bench.image if word == "IMAGE" else word for word in words))
        assert found[:2] == (status, ""), (command, words, found)
        lines = found[2].splitlines()
        assert len(lines) == 2, found
        assert lines[0].startswith(f"otad platform: {what}"), lines
        assert lines[1].startswith(f"  {advice}"), lines


async def test_a_directory_is_served_once(bench: Bench) -> None:
    status, out, err = await otad_platform("serve", bench.directory, "--port", "0", "--http-port", "0")

    assert (status, out) == (4, "")
    assert err.splitlines() == [
        f"otad platform: {bench.directory}: another platform is served from here",
        "  choose another directory, or use the one that runs",
    ]


async def test_a_second_dynamic_batch_is_refused(bench: Bench) -> None:
    await bench.done("push", "pk", "2-0-0", "--dynamic", "1")
    status, _, err = await bench.run("push", "pk", "2-0-0", "--dynamic", "2")

    assert (status, err.splitlines()[0]) == (
        4,
        "otad platform: batch 1: runs, and a package has one dynamic batch at a time",
    )


async def test_an_authority_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    (tmp_path / "ca.key").write_text("nothing")

    status, _, err = await otad_platform("serve", tmp_path, "--tls", "--port", "0", "--http-port", "0")
    assert (status, err.splitlines()) == (
        1,
        [
            f"otad platform: {tmp_path}: ca.pem or ca.key cannot be read",
            "  remove ca.pem and ca.key to get new ones",
        ],
    )


async def test_cancel_confirm_and_misbehave(bench: Bench) -> None:
    await bench.done("push", "gw-1,gw-2", "2-0-0", "--confirm", "--no-wait")

    assert (await bench.done("confirm", "1", "2")).splitlines() == [
        "job 1: pk/gw-1 to 2-0-0: QUEUED: waits for the device, which is offline",
        "job 2: pk/gw-2 to 2-0-0: QUEUED: waits for the device, which is offline",
    ]
    assert await bench.done("cancel", "1") == "job 1: pk/gw-1 to 2-0-0: CANCELED: cancelled by the operator\n"
    text = await bench.done("misbehave", "rate=1000", "next_statuses=[403]", "connack=3")
    assert set(text.splitlines()) == {"rate=1000", "next_statuses=[403]", "connack=3"}
    every = (await bench.done("misbehave")).splitlines()
    assert {"rate=1000  (set)", "gzip=false"} <= set(every)
    assert await bench.done("misbehave", "--reset", "gzip=true") == "gzip=true\n"
    assert await bench.done("misbehave", "--reset") == "nothing goes wrong on purpose\n"


@pytest.mark.parametrize("words", [("jobs",), ("add-device", "pk", "gw-1"), ("push", "gw-1", "2")])
async def test_without_serve_it_says_how_to_start_it(tmp_path: Path, words: tuple[str, ...]) -> None:
    status, out, err = await otad_platform(words[0], "--directory", tmp_path, *words[1:])

    assert (status, out, err.splitlines()) == (
        3,
        "",
        [
            f"otad platform: {tmp_path}: no platform is served from here",
            f"  start one with otad platform serve -d {tmp_path}, or name another with -d",
        ],
    )


async def test_a_wildcard_needs_an_address(tmp_path: Path) -> None:
    status, _, err = await otad_platform("serve", "--directory", tmp_path, "--host", "0.0.0.0")

    assert (status, err.splitlines()[-1]) == (2, "  add --address ADDRESS")


async def test_the_arguments_load_no_http_server() -> None:
    program = "import sys, otad.platform.cli; sys.exit('aiohttp' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)

    assert await process.wait() == 0
