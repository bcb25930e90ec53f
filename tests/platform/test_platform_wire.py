# SPDX-License-Identifier: Apache-2.0
"""What devices in the field write is understood; what the platform writes has the captured shape, byte for byte."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from otad.platform import wire
from otad.platform.credentials import Identity
from otad.platform.jobs import Package, PackageFile, SignMethod

INFORM = "/ota/device/inform/pk/dn"
PROGRESS = "/ota/device/progress/pk/dn"
GET = "/sys/pk/dn/thing/ota/firmware/get"
REQUEST = "/ota/device/request/pk/dn"
DOWNLOAD = "/sys/pk/dn/thing/file/download"
NTP = "/ext/ntp/pk/dn/request"

MD5 = Package("7", "default", "1.1", Path("x"), 4252, SignMethod.MD5, "2e78", "2E78")


@pytest.mark.parametrize(
    ("topic", "payload", "meant"),
    [
        (INFORM, b'{"id":1, "params":{"version":"1.0.0"}}', wire.Inform("default", "1.0.0")),
        (INFORM, b'{"id":"1","params":{"version":"1.0.0","module":"MCU"}}\0', wire.Inform("MCU", "1.0.0")),
        (INFORM, b'{"id":1,"params":{"version":"1,}",},}', wire.Inform("default", "1,}")),
        (INFORM, b'{"params":{"version":"1\\",}\\\\",\r\n}\t,}', wire.Inform("default", '1",}\\')),
        (PROGRESS, b'{"id":1,"params":{"step":"0","desc":""}}', wire.Progress("default", 0, "")),
        (PROGRESS, b'{"id":1,"params":{"step":-2,"desc":"no"}}\0\0', wire.Progress("default", -2, "no")),
        (GET, b'{"id":2, "params":{}}', wire.Ask("default", 2)),
        (
            GET,
            b'{"id":"3","version":"1.0","params":{"module":"MCU"},"method":"thing.ota.firmware.get"}',
            wire.Ask("MCU", "3"),
        ),
        (GET, b'{"id":4,"params":"{}"}', wire.Ask("default", 4)),
        (GET, b'{"id":5}', wire.Ask("default", 5)),
        (REQUEST, b'{"id":6,"params":{}}', wire.Ask("default", 6, is_legacy=True)),
        (REQUEST, b'{"id":6,"code":500,"message":"none upgrade operation of the device."}', None),
        (
            DOWNLOAD,
            (
                b'{"id":"4","params":{"fileToken":"default","fileInfo":{"streamId":7,"fileId":1,},'
                b'"fileBlock":{"size":5120,"offset":0}}}'
            ),
            wire.AskBlock("4", "default", 7, 1, 5120, 0),
        ),
        (
            DOWNLOAD,
            b'{"id":4,"params":{"fileInfo":{"streamId":"7","fileId":null},"fileBlock":[]}}',
            wire.AskBlock(4, None, 7, None, None, None),
        ),
        (NTP, b'{"deviceSendTime":"1571724098000"}', wire.AskTime("1571724098000")),
        (NTP, b'{"deviceSendTime":1571724098000}\0', wire.AskTime("1571724098000")),
        ("/ext/network/probe/1", b"?", None),
    ],
)
def test_what_devices_write_is_understood(topic: str, payload: bytes, meant: object) -> None:
    assert wire.parse(topic, payload) == meant


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        (INFORM, b""),
        (INFORM, b"\xff"),
        (INFORM, b"[]"),
        (INFORM, b'{"params":[]}'),
        (INFORM, b'{"params":{}}'),
        (INFORM, b'{"params":{"version":1}}'),
        (INFORM, b'{"params":{"version":"1","module":[1]}}'),
        (INFORM, b"[" * 100_000),
        (PROGRESS, b'{"params":{"step":"many"}}'),
        (PROGRESS, b'{"params":{"step":101}}'),
        (PROGRESS, b'{"params":{"step":null}}'),
        (PROGRESS, b'{"params":{"step":1e999}}'),
        (PROGRESS, b'{"params":{"step":NaN}}'),
        (INFORM, b'{"params":{"version":"\\ud800"}}'),
        (INFORM, b'{"params":"{\\"version\\":\\"\\\\ud800\\"}"}'),
        (INFORM, b'{"params":"\\ud800"}'),
        (INFORM, b'{"params":{"version":"1",},"\\ud800":1}'),
        (GET, b'{"id":"\\ud800"}'),
        (NTP, b'{"deviceSendTime":"\\ud800"}'),
        (DOWNLOAD, b'{"id":"%s","params":{}}' % (b"x" * (32 << 10))),
        (DOWNLOAD, b'{"params":{"fileToken":"%s"}}' % (b"\\u0001" * 6000)),
        (DOWNLOAD, b'{"params":7}'),
        (NTP, b"[]"),
        (NTP, b"?"),
    ],
)
def test_what_makes_no_sense_is_unreadable(topic: str, payload: bytes) -> None:
    with pytest.raises(wire.Unreadable):
        wire.parse(topic, payload)


@pytest.mark.parametrize(
    "payload",
    [b'\\"' * 30_000, b'"\\' * 30_000, b'"' + b"\\" * 60_001, b", " * 30_000, b"," + b" " * 60_000 + b"x"],
    ids=["quotes", "texts", "backslashes", "commas", "spaces"],
)
def test_what_is_long_and_no_json_is_seen_to_be_none_in_time(payload: bytes) -> None:
    began = time.thread_time()
    with pytest.raises(wire.Unreadable):
        wire.parse_json(payload)

    assert time.thread_time() - began < 1


def test_a_notice_with_md5() -> None:
    notice = wire.to_json(wire.notice(wire.offer(MD5, "https://x/y"), 1695281536.874))

    assert notice == (
        b'{"code":"1000","data":{"size":4252,"sign":"2e78","version":"1.1","url":"https://x/y",'
        b'"signMethod":"Md5","md5":"2e78"},"id":1695281536874,"message":"success"}'
    )


def test_an_offer_with_sha256_for_a_module() -> None:
    package = Package("7", "MCU", "1.1", Path("x"), 1, SignMethod.SHA256, "ab", "CD")

    assert wire.to_json(wire.offer(package, "u")) == (
        b'{"size":1,"sign":"ab","version":"1.1","url":"u","signMethod":"SHA256","module":"MCU"}'
    )


def test_a_notice_for_mqtt_is_the_captured_one() -> None:
    captured = (
        b'{"code":"1000","data":{"size":4252,"streamId":12332,"sign":"2e78","dProtocol":"mqtt","version":"1.1",'
        b'"signMethod":"Md5","streamFileId":1,"md5":"2e78"},"id":1695281536874,"message":"success"}'
    )

    assert wire.to_json(wire.notice(wire.offer(MD5, stream_id=12332), 1695281536.874)) == captured


def test_an_offer_of_several_files_with_all_that_there_is() -> None:
    files = tuple(PackageFile(name, Path(name), 1, digest) for name, digest in (("a", "aa"), ("b", "bb")))
    package = replace(MD5, module="MCU", files=files, size=2, diff=True, tags={"k": "v"}, udi="text")

    assert wire.to_json(wire.offer(package, "", ["u", "v"], sign=str.upper)) == (
        b'{"version":"1.1","isDiff":1,"signMethod":"Md5","files":['
        b'{"fileSize":1,"fileName":"a","fileUrl":"u","fileMd5":"aa","fileSign":"aa","digestsign":"AA"},'
        b'{"fileSize":1,"fileName":"b","fileUrl":"v","fileMd5":"bb","fileSign":"bb","digestsign":"BB"}],'
        b'"module":"MCU","extData":{"k":"v","_package_udi":"text"}}'
    )


def test_several_files_with_sha256_have_no_md5() -> None:
    files = tuple(PackageFile(name, Path(name), 1, digest) for name, digest in (("a", "aa"), ("b", "bb")))
    package = replace(MD5, sign_method=SignMethod.SHA256, files=files)

    assert [set(file) for file in wire.offer(package, "", ["u", "v"])["files"]] == [
        {"fileSize", "fileName", "fileUrl", "fileSign"}
    ] * 2


def test_replies_echo_the_id_as_it_came() -> None:
    assert wire.to_json(wire.reply(wire.Ask("default", 2), None)) == b'{"id":2,"code":200,"data":{}}'
    assert wire.to_json(wire.reply(wire.Ask("default", "2"), {"size": 1})) == (
        b'{"id":"2","code":200,"data":{"size":1}}'
    )


def test_the_legacy_request_is_answered_in_its_own_words() -> None:
    ask = wire.Ask("default", 2, is_legacy=True)

    assert wire.reply(ask, None) == {
        "id": 2,
        "code": 500,
        "message": "none upgrade operation of the device.",
    }
    assert wire.reply(ask, {"size": 1})["code"] == "1000"
    assert wire.reply_topic(Identity("pk", "dn"), ask) == REQUEST


@pytest.mark.parametrize("topic", [INFORM, PROGRESS, GET, REQUEST, DOWNLOAD, NTP])
def test_every_topic_says_which_device_it_is_about(topic: str) -> None:
    assert wire.identity_in(topic) == Identity("pk", "dn")


@pytest.mark.parametrize(
    ("topic", "own"),
    [
        (INFORM, True),
        (GET, True),
        ("/ext/ntp/pk/dn/request", True),
        ("/pk/dn/user/x", True),
        ("/ota/device/inform/pk/other", False),
        ("/ota/device/inform/+/+", False),
        ("/sys/dn/pk/thing", False),
        ("#", False),
    ],
)
def test_a_topic_belongs_to_the_device_it_names(topic: str, own: bool) -> None:
    assert wire.belongs_to(topic, Identity("pk", "dn")) is own
