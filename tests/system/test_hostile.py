# SPDX-License-Identifier: Apache-2.0
"""Offers that cannot be carried out: refused with the field named, nothing written, and the daemon goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from otad.platform.events import Progressed
from tests.system.world import MIB, JobState, Way, in_every_way, new_world


def _set(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda envelope: envelope["data"].update(fields)


def _without(field: str) -> Callable[[dict[str, Any]], None]:
    return lambda envelope: envelope["data"].pop(field)


def _files(*changes: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Instead of the one file, as many as there are changes."""

    def edit(envelope: dict[str, Any]) -> None:
        content = envelope["data"]
        url, sign = content.pop("url"), content.pop("sign")
        content["files"] = [
            {"fileName": f"{n}.bin", "fileSize": content["size"], "fileUrl": url, "fileSign": sign, **change}
            for n, change in enumerate(changes)
        ]
        content["size"] *= len(changes)

    return edit


ROWS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "size is negative": (_set(size=-1), "size"),
    "size is zero": (_set(size=0), "size"),
    "size is true": (_set(size=True), "size"),
    "size is a float": (_set(size=1.5), "size"),
    "size is huge": (_set(size=10**30), "size"),
    "size is missing": (_without("size"), "size"),
    "url is missing": (_without("url"), "url"),
    "url is a file": (_set(url="file:///etc/passwd"), "url"),
    "url is ftp": (_set(url="ftp://example.com/x"), "url"),
    "url has a password": (_set(url="http://user:secret@127.0.0.1/x"), "url"),
    "url is too long": (_set(url="http://127.0.0.1/" + "x" * 10000), "url"),
    "sign is missing": (_without("sign"), "sign"),
    "sign is no hex": (_set(sign="zz" * 32), "sign"),
    "sign is too short": (_set(sign="ab"), "sign"),
    "signMethod is unknown": (_set(signMethod="crc32"), "signMethod"),
    "md5 and sign disagree": (_set(signMethod="Md5", sign="ab" * 16, md5="cd" * 16), "md5"),
    "version is too long": (_set(version="9" * 65), "version"),
    "version has a newline": (_set(version="2-0-0\nWARNING all is well"), "version"),
    "version is a number": (_set(version=2), "version"),
    "a differential package": (_set(isDiff=1), "diff"),
    "several files for a slot": (_files({}, {}), "files: 2 of them"),
    "a single one of several files": (_files({}), "files"),
    "a file outside of its directory": (_files({}, {"fileName": "../../etc/passwd"}), "files[1]: fileName"),
    "a file without a digest": (_files({"fileSign": None}, {}), "files[0]: fileSign"),
    "files beside the one": (_set(files=[{}, {}]), "url: beside files"),
    "a way that otad does not know": (_set(dProtocol="gopher"), "dProtocol"),
    "blocks without their numbers": (_set(dProtocol="mqtt", url=None), "streamId"),
}


@in_every_way
async def test_an_offer_that_cannot_be_carried_out_is_refused_with_its_field(tmp_path: Path, way: Way) -> None:
    async with new_world(tmp_path, way=way, slot_bytes=MIB) as world:
        platform = world.platform
        world.power_on()
        await world.informed("1-0-0")
        package = world.package("2-0-0", MIB)
        wrong: dict[str, str] = {}
        for name, (edit, named) in ROWS.items():
            told = len(platform.events.of(Progressed))
            platform.faults.edit_notice = edit
            job = await world.ended(world.push(package))
            steps = platform.events.of(Progressed)[told:]
            if job.state != JobState.FAILED or [s.step for s in steps] != [-1] or named not in steps[0].desc:
                wrong[name] = f"{job.state}: {steps}"
        status = await world.idle("a")
        platform.faults.edit_notice = None
        good = await world.ended(world.push(package))

        assert wrong == {}
        assert platform.served(package)[:-1] == []
        assert status["slots"]["b"]["good"] is False
        assert good.state == JobState.SUCCEEDED


async def test_a_refused_offer_is_answered_once_however_often_it_is_heard(tmp_path: Path) -> None:
    async with new_world(tmp_path, slot_bytes=MIB) as world:
        world.power_on()
        await world.informed("1-0-0")
        world.platform.faults.edit_notice = _set(size=-1)
        world.platform.faults.pushes = 5
        await world.ended(world.push(world.package("2-0-0", MIB)))
        world.platform.faults.edit_notice = None
        await world.otad("check")  # whatever was pushed before has been heard by now

        assert world.steps == [-1]


@in_every_way
async def test_what_is_not_for_us_or_makes_no_sense_is_passed_over(tmp_path: Path, way: Way) -> None:
    async with new_world(tmp_path, way=way, slot_bytes=MIB) as world:
        world.power_on()
        await world.informed("1-0-0")
        identity = world.device.identity
        topic = f"/ota/device/upgrade/{identity.product_key}/{identity.device_name}"
        for payload in (b"", b"\0", b"not json", b"[]", b"null", b"{}", b'{"data":7}', b"[" * 100_000, b"\xff\xfe{}"):
            world.platform.send(identity, topic, payload, 0)
        world.platform.send(identity, "/ota/device/upgrade/a1test/another", b'{"data":{}}', 0)
        good = await world.ended(world.push(world.package("2-0-0", MIB)))

        assert good.state == JobState.SUCCEEDED
        assert [step for step in world.steps if step < 0] == []


@in_every_way
async def test_no_secret_and_no_signature_is_logged_or_shown(tmp_path: Path, way: Way) -> None:
    async with new_world(tmp_path, way=way) as world:
        world.platform.faults.next_statuses = [403, 503]
        world.power_on()
        await world.informed("1-0-0")
        await world.ended(world.push(world.package("2-0-0")))
        status = await world.otad("status", "--json")
        history = await world.otad("history", "--json")

        said = world.gateway.log.read_text() + status[1] + history[1]
        assert world.device.secret not in said
        assert "auth_key" not in said
