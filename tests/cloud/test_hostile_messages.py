# SPDX-License-Identifier: Apache-2.0
"""Whatever a platform, or somebody in its place, may send: each with the verdict it gets, and what that verdict says.

A table for each kind of message; its keys name the cases. A package is either `Unusable`, and then the platform is
told, by the step that stands for the code; or `Unattributable`, as all the rest, and then it is dropped with a line in
the journal. Neither ever says a secret: here each secret, and each query part of a URL, contains the word s3cr3t.
Signatures: test_trust.
"""

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from otad.cloud import wire
from otad.cloud.cloud import Offered, Unusable
from otad.cloud.wire import RegistrationRefused, Unattributable, parse_block, parse_get_reply, parse_upgrade
from otad.core.model import DEFAULT_MODULE, Digest, ModuleName
from otad.core.step import step_for
from otad.errors import Code, Failure, UpdateError

MD5 = "2e78aabbccddeeff00112233445538aa"
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
SECRET = "s3cr3t"
URL = f"https://ota-cn-shanghai.iot-thing.aliyuncs.com/ota/0123/ck.bin?auth_key=1700000000-0-0-{SECRET}"
MISSING: Any = object()
STEPS = {Code.UNSUPPORTED: -1, Code.MALFORMED: -1, Code.SIGNATURE: -3}

GOOD: dict[str, Any] = {"size": 4252, "version": "1.1", "url": URL, "sign": SHA256, "signMethod": "SHA256"}
CLASSIC = {"sign": MD5, "md5": MD5, "signMethod": "Md5"}
STREAM = {"streamId": 12332, "streamFileId": 1}
OVER_MQTT = {**STREAM, "dProtocol": "mqtt"}


def changed(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in {**GOOD, **fields}.items() if value is not MISSING}


def push(content: Any, **envelope: Any) -> bytes:
    return json.dumps({"code": "1000", "data": content, "id": 7, "message": "success", **envelope}).encode()


def refuses(digest: Digest, signature: str | None) -> None:
    """Stands where a key does, and believes nothing."""
    raise UpdateError(Code.SIGNATURE, "digestsign: wrong")


def check(payload: bytes, code: Code, says: str, **parameters: Any) -> Unusable:
    """That the package in `payload` is refused with these words, and with nothing in them that must not be."""
    answer = parse_upgrade(payload, **parameters)

    assert isinstance(answer, Unusable)
    assert (answer.failure.code, step_for(answer.failure)) == (code, STEPS[code])
    assert (answer.module, answer.offer) == (DEFAULT_MODULE, "push:7")
    assert answer.failure.detail.startswith(says)
    assert answer.failure.detail.isprintable()
    assert len(answer.failure.detail) < 200
    assert SECRET not in repr(answer)
    return answer


# A package with a field that is wrong.

ZEROS = "0" * 64
MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "size missing": ({"size": MISSING}, "size: missing: must be a whole number of bytes, 1 to 1125899906842624"),
    "size null": ({"size": None}, "size: missing"),
    "size 0": ({"size": 0}, "size: 0: must be"),
    "size negative": ({"size": -1}, "size: -1: must be"),
    "size true": ({"size": True}, "size: true: must be"),
    "size a fraction": ({"size": 1.5}, "size: 1.5: must be"),
    "size a whole fraction": ({"size": 4252.0}, "size: 4252.0: must be"),
    "size too large": ({"size": 2**50 + 1}, "size: 1125899906842625: must be"),
    "size absurd": ({"size": 10**19}, "size: 10000000000000000000: must be"),
    "size empty": ({"size": ""}, 'size: "": must be'),
    "size a word": ({"size": "big"}, 'size: "big": must be'),
    "size negative as a string": ({"size": "-1"}, 'size: "-1": must be'),
    "size 0 as a string": ({"size": "0"}, 'size: "0": must be'),
    "size hexadecimal": ({"size": "0x10"}, 'size: "0x10": must be'),
    "size with white space": ({"size": " 1"}, 'size: " 1": must be'),
    "size with underscores": ({"size": "1_000"}, 'size: "1_000": must be'),
    "size in Arabic digits": ({"size": "١٢"}, 'size: "١٢": must be'),
    "size of many digits": ({"size": "9" * 5000}, f'size: "{"9" * 37}...": must be'),
    "size a list": ({"size": [1]}, "size: a list: must be"),
    "version missing": ({"version": MISSING}, "version: missing: must be 1 to 64 of A-Z a-z 0-9 . _ -"),
    "version empty": ({"version": ""}, 'version: "": must be'),
    "version a number": ({"version": 2}, "version: 2: must be"),
    "version an object": ({"version": {}}, "version: an object: must be"),
    "version too long": ({"version": "1" * 65}, f'version: "{"1" * 37}...": must be'),
    "version of 64 KiB": ({"version": "1" * 65536}, f'version: "{"1" * 37}...": must be'),
    "version with a newline": ({"version": "1.0\nERROR"}, 'version: "1.0\\nERROR": must be'),
    "version with a newline behind": ({"version": "1.0\n"}, 'version: "1.0\\n": must be'),
    "version with a space": ({"version": "1 0"}, 'version: "1 0": must be'),
    "version with a slash": ({"version": "../../etc"}, 'version: "../../etc": must be'),
    "version with a NUL": ({"version": "1\0"}, 'version: "1\\x00": must be'),
    "version with an escape": ({"version": "\x1b[2J"}, 'version: "\\x1b[2J": must be'),
    "version right to left": ({"version": "1\u202e0"}, 'version: "1\\u202e0": must be'),
    "version half a character": ({"version": "1\ud800"}, 'version: "1\\ud800": must be'),
    "size a number of 5000 digits": ({"size": int("9" * 30)}, f"size: {'9' * 21}: must be"),
    "version in wide digits": ({"version": "１.０"}, 'version: "１.０": must be'),
    "method missing": ({"signMethod": MISSING}, "signMethod: missing: must be MD5 or SHA256"),
    "method unknown": ({"signMethod": "SHA1"}, 'signMethod: "SHA1": must be MD5 or SHA256'),
    "method CRC": ({"signMethod": "CRC64", "sign": "1"}, 'signMethod: "CRC64": must be'),
    "method a number": ({"signMethod": 256}, "signMethod: 256: must be"),
    "method a list": ({"signMethod": ["MD5"]}, "signMethod: a list: must be"),
    "sign missing": ({"sign": MISSING}, "sign: missing: must be 64 hexadecimal digits"),
    "sign empty": ({"sign": ""}, 'sign: "": must be 64 hexadecimal digits'),
    "sign too short": ({"sign": ZEROS[1:]}, "sign: "),
    "sign too long": ({"sign": ZEROS + "0"}, "sign: "),
    "sign not hexadecimal": ({"sign": "g" * 64}, "sign: "),
    "sign with 0x": ({"sign": "0x" + ZEROS[2:]}, "sign: "),
    "sign a number": ({"sign": 0}, "sign: 0: must be 64 hexadecimal digits"),
    "sign base64": ({"sign": "n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg="}, "sign: "),
    "sign of the other method": ({"sign": MD5}, "sign: "),
    "MD5 with a SHA256's sign": ({**CLASSIC, "sign": SHA256}, "sign: "),
    "md5 disagrees with sign": ({**CLASSIC, "md5": MD5[::-1]}, f'md5: "{MD5[::-1]}": must be the same as sign'),
    "md5 not hexadecimal": ({**CLASSIC, "md5": "x"}, 'md5: "x": must be 32 hexadecimal digits'),
    "md5 alone and wrong": ({"sign": MISSING, "signMethod": MISSING, "md5": 5}, "md5: 5: must be"),
    "url missing": ({"url": MISSING}, "url: missing: must be a string"),
    "url a number": ({"url": 5}, "url: 5: must be a string"),
    "url empty": ({"url": ""}, "url: 0 characters: must be 1 to 8192"),
    "url too long": ({"url": "https://a/" + "x" * 8192}, "url: 8202 characters: must be 1 to 8192"),
    "url of a file": ({"url": "file:///etc/passwd"}, 'url: "file": must be https or http'),
    "url of ftp": ({"url": "ftp://example.com/a"}, 'url: "ftp": must be https or http'),
    "url of data": ({"url": "data:text/plain,x"}, 'url: "data": must be https or http'),
    "url without scheme": ({"url": "//example.com/a"}, 'url: "": must be https or http'),
    "url relative": ({"url": "/a"}, 'url: "": must be https or http'),
    "url with a user": ({"url": "https://user@example.com/a"}, "url: must not carry a user name"),
    "url with a password": ({"url": "https://u:p@example.com/a"}, "url: must not carry a user name"),
    "url with an empty user": ({"url": "https://@example.com/a"}, "url: must not carry a user name"),
    "url with a newline": ({"url": "https://a/b\r\nHost: c"}, "url: must be printable ASCII"),
    "url with a tab in its scheme": ({"url": "ht\ttps://a/b"}, "url: must be printable ASCII"),
    "url with a space": ({"url": "https://a/ b"}, "url: must be printable ASCII"),
    "url with a NUL": ({"url": "https://a/\0"}, "url: must be printable ASCII"),
    "url with a backslash": ({"url": "https://a\\@b/"}, "url: must be printable ASCII"),
    "url not ASCII": ({"url": "https://exämple.com/"}, "url: must be printable ASCII"),
    "url with half a character": ({"url": "https://a/\udfff"}, "url: must be printable ASCII"),
    "url without host": ({"url": "https:///a"}, "url: must have a host"),
    "url with a port only": ({"url": "https://:443/a"}, "url: must have a host"),
    "url with a port too high": ({"url": "https://a:65536/"}, "url: must have a host"),
    "url with port 0": ({"url": "https://a:0/"}, "url: must have a host"),
    "url with a word for a port": ({"url": "https://a:b/"}, "url: must have a host"),
    "url with half an address": ({"url": "https://[::1/a"}, "url: must have a host"),
    "url with a coded host": ({"url": "https://%61.com/"}, "url: must have a host"),
    "url of a signed query only": ({"url": "?auth_key=s3cr3t"}, 'url: "": must be https or http'),
    "url with white space and a signature": ({"url": "https://a b/?auth_key=s3cr3t"}, "url: must be printable ASCII"),
    "url a list": ({"url": ["https://a/?auth_key=s3cr3t"]}, "url: a list: must be a string"),
    "version a signed url": ({"version": "http://a/?k=s3cr3t"}, 'version: "http://a/?...": must be'),
    "version a url in JSON": ({"version": '{"u":"http:\\/\\/a?s3cr3t"}'}, 'version: "{"u":"http:\\/\\/a?...": must be'),
    "sign a signed url": ({"sign": "http://a/?k=s3cr3t"}, 'sign: "http://a/?...": must be'),
    "over MQTT without streamId": (
        {**OVER_MQTT, "streamId": MISSING},
        "streamId: missing: must be a whole number, 0 to 9223372036854775807",
    ),
    "over MQTT without streamFileId": ({**OVER_MQTT, "streamFileId": None}, "streamFileId: missing: must be"),
    "over MQTT with neither": ({"dProtocol": "mqtt"}, "streamId: missing: must be"),
    "streamId alone": ({"streamId": 1}, "streamFileId: missing: must be"),
    "streamFileId alone": ({"streamFileId": 1}, "streamId: missing: must be"),
    "streamId negative": ({**OVER_MQTT, "streamId": -1}, "streamId: -1: must be"),
    "streamId true": ({**OVER_MQTT, "streamId": True}, "streamId: true: must be"),
    "streamId a fraction": ({**OVER_MQTT, "streamId": 1.0}, "streamId: 1.0: must be"),
    "streamId too large": ({**OVER_MQTT, "streamId": 1 << 63}, "streamId: 9223372036854775808: must be"),
    "streamId of many digits": ({**OVER_MQTT, "streamId": "1" * 20}, f'streamId: "{"1" * 20}": must be'),
    "streamId empty": ({**OVER_MQTT, "streamId": ""}, 'streamId: "": must be'),
    "streamId hexadecimal": ({**OVER_MQTT, "streamId": "0x1"}, 'streamId: "0x1": must be'),
    "streamFileId a list": ({**OVER_MQTT, "streamFileId": [1]}, "streamFileId: a list: must be"),
    "streamFileId JSON": ({**OVER_MQTT, "streamFileId": '1},"x":{'}, "streamFileId: "),
    "over MQTT with a wrong url": ({**OVER_MQTT, "url": "file:///a"}, 'url: "file": must be https or http'),
    "over MQTT without digest": ({**OVER_MQTT, "sign": MISSING}, "sign: missing: must be"),
    "over MQTT without size": ({**OVER_MQTT, "url": "", "size": MISSING}, "size: missing: must be"),
    "over HTTPS without url": ({"dProtocol": "https", **STREAM, "url": ""}, "url: 0 characters: must be 1 to 8192"),
    "blocks without dProtocol and url": ({**STREAM, "url": MISSING}, "url: missing: must be a string"),
    "files an object": ({"files": {"0": {}}}, "files: an object: must be a list of 2 to 20 files"),
    "files a string": ({"files": "x"}, 'files: "x": must be a list'),
    "files a signed url": ({"files": '[{"fileUrl":"http://a?s3cr3t"}]'}, 'files: "[{"fileUrl":"http://a?...": must be'),
    "files false": ({"files": False}, "files: false: must be a list"),
    "files an empty object": ({"files": {}}, "files: an object: must be a list"),
}
UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "isDiff 1": (
        {"isDiff": 1},
        "isDiff: a differential package: otad has no patcher, push the full package",
    ),
    "isDiff true": ({"isDiff": True}, "isDiff: "),
    "isDiff as a string": ({"isDiff": "1"}, "isDiff: "),
    "isDiff true as a string": ({"isDiff": "true"}, "isDiff: "),
    "isDiff a list": ({"isDiff": [0]}, "isDiff: "),
    "isDiff 2": ({"isDiff": 2}, "isDiff: "),
    "isDiff over MQTT": ({"isDiff": 1, **OVER_MQTT}, "isDiff: "),
    "dProtocol unknown": ({"dProtocol": "coap"}, 'dProtocol: "coap": must be https or mqtt'),
    "dProtocol a number": ({"dProtocol": 1}, "dProtocol: 1: must be https or mqtt"),
    "dProtocol false": ({"dProtocol": False}, "dProtocol: false: must be"),
    "dProtocol a list": ({"dProtocol": ["mqtt"]}, "dProtocol: a list: must be"),
    "dProtocol with a newline": ({"dProtocol": "mqtt\n"}, 'dProtocol: "mqtt\\n": must be'),
    "dProtocol very long": ({"dProtocol": "m" * 10_000}, f'dProtocol: "{"m" * 37}...": must be'),
    "too large for blocks, and no url": (
        {**OVER_MQTT, "url": MISSING, "size": (16 << 20) + 1},
        "size: 16777217: over MQTT at most 16777216 bytes: use HTTPS",
    ),
    "far too large for blocks": ({**OVER_MQTT, "url": "", "size": 1 << 50}, "size: 1125899906842624: over MQTT"),
    "several files over MQTT": (
        {**OVER_MQTT, "files": [{}, {}]},
        "files: over MQTT comes one file only: use HTTPS",
    ),
}


@pytest.mark.parametrize(("fields", "says"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_wrong_field_is_named(fields: dict[str, Any], says: str) -> None:
    answer = check(push(changed(**fields)), Code.MALFORMED, says)

    assert answer.version == ("" if "version" in fields else "1.1")


@pytest.mark.parametrize(("fields", "says"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_what_cannot_be_carried_out_is_said(fields: dict[str, Any], says: str) -> None:
    answer = check(push(changed(**fields)), Code.UNSUPPORTED, says)

    assert answer.version == "1.1"


@pytest.mark.parametrize("fields", [CLASSIC, {"sign": MISSING, "signMethod": MISSING, "md5": MD5}])
def test_md5_can_be_forbidden(fields: dict[str, Any]) -> None:
    says = "signMethod: MD5: not accepted here: sign with SHA256, or set trust.allow_md5 = true on the gateway"

    answer = check(push(changed(**fields)), Code.UNSUPPORTED, says, allow_md5=False)
    assert answer.failure == Failure(Code.UNSUPPORTED, says)


UNSIGNED: dict[str, tuple[dict[str, Any], str]] = {
    "without": ({}, "digestsign: wrong"),
    "null": ({"digestsign": None}, "digestsign: wrong"),
    "a number": ({"digestsign": 1}, "digestsign: 1: must be base64"),
    "true": ({"digestsign": True}, "digestsign: true: must be base64"),
    "a list": ({"digestsign": ["good"]}, "digestsign: a list: must be base64"),
    "an object": ({"digestsign": {}}, "digestsign: an object: must be base64"),
    "twice, in two cases": ({"digestsign": "good", "digestSign": "good"}, "digestsign: stands twice"),
    "once good and once null": ({"digestsign": "good", "DigestSign": None}, "digestsign: stands twice"),
    "under another name": ({"digest_sign": "good", "signature": "good"}, "digestsign: wrong"),
    "in extData": ({"extData": {"digestsign": "good"}}, "digestsign: wrong"),
    "over MQTT": (OVER_MQTT, "digestsign: wrong"),
    "with a word that it needs none": ({"require_signature": False, "verify": False}, "digestsign: wrong"),
}


@pytest.mark.parametrize(("fields", "says"), UNSIGNED.values(), ids=UNSIGNED.keys())
def test_a_package_without_a_good_signature_is_refused(fields: dict[str, Any], says: str) -> None:
    check(push(changed(**fields)), Code.SIGNATURE, says, verify=refuses)


@pytest.mark.parametrize("fields", [*MALFORMED.values(), *UNSUPPORTED.values()], ids=[*MALFORMED, *UNSUPPORTED])
def test_no_wrong_package_becomes_right_by_a_key(fields: tuple[dict[str, Any], str]) -> None:
    answer = parse_upgrade(push(changed(**fields[0])), verify=lambda digest, signature: None)

    assert isinstance(answer, Unusable)


# A package of several files.


def several(*changes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A package of as many files as `changes`, each good but for these."""
    files = [
        {"fileName": f"{n}.bin", "fileSize": 1, "fileSign": SHA256, "fileUrl": URL, **change}
        for n, change in enumerate(changes)
    ]
    kept = [{key: value for key, value in file.items() if value is not MISSING} for file in files]
    return {"version": "1.1", "signMethod": "SHA256", "files": kept, **fields}


def second(**change: Any) -> dict[str, Any]:
    return several({}, change)


IN_MD5 = {"fileSign": MD5, "fileMd5": MD5}
PLAIN = "must be a printable name of 1 to 255 bytes, without slashes and without a dot in front"
FILES: dict[str, tuple[dict[str, Any], str]] = {
    "one only": (several({}), "files: 1: must be 2 to 20 files"),
    "twenty-one": (several(*[{}] * 21), "files: 21: must be 2 to 20 files"),
    "very many": (several({}, files=[0] * 20_000), "files: 20000: must be 2 to 20 files"),
    "no objects": (several({}, files=["a", "b"]), 'files[0]: "a": must be an object'),
    "a list within": (several({}, files=[several({})["files"][0], []]), "files[1]: a list: must be an object"),
    "null within": (several({}, files=[None, None]), "files[0]: missing: must be an object"),
    "empty objects": (several({}, files=[{}, {}]), "files[0]: fileSize: missing: must be"),
    "the fields of a single file": (several({}, files=[GOOD, GOOD]), "files[0]: fileSize: missing: must be"),
    "beside url": (several({}, {}, url=URL), "url: beside files: must be absent"),
    "beside sign": (several({}, {}, sign=SHA256), "sign: beside files: must be absent"),
    "beside md5": (several({}, {}, md5=MD5), "md5: beside files: must be absent"),
    "beside streamId": (several({}, {}, streamId=0), "streamId: beside files: must be absent"),
    "beside streamFileId": (several({}, {}, streamFileId=0), "streamFileId: beside files: must be absent"),
    "beside a whole package": ({**GOOD, **several({}, {})}, "url: beside files: must be absent"),
    "another size in all": (several({}, {}, size=3), "size: 3: must be 2, as the files say"),
    "a size that is none": (several({}, {}, size="x"), 'size: "x": must be a whole number of bytes'),
    "too large in all": (
        several(*[{"fileSize": 1 << 50}] * 2),
        "files: 2251799813685248: must be 1125899906842624 bytes",
    ),
    "no method": (several({}, {}, signMethod=None), "signMethod: missing: must be MD5 or SHA256"),
    "no method, and MD5s": (several(IN_MD5, IN_MD5, signMethod=""), 'signMethod: "": must be'),
    "method unknown": (several({}, {}, signMethod="CRC"), 'signMethod: "CRC": must be'),
    "name missing": (second(fileName=MISSING), f"files[1]: fileName: missing: {PLAIN}"),
    "name null": (second(fileName=None), "files[1]: fileName: missing"),
    "name a number": (second(fileName=1), "files[1]: fileName: 1: must be"),
    "name empty": (second(fileName=""), f'files[1]: fileName: "": {PLAIN}'),
    "name that leads out": (second(fileName="../../etc/passwd"), 'files[1]: fileName: "../../etc/passwd": must'),
    "name absolute": (second(fileName="/etc/passwd"), 'files[1]: fileName: "/etc/passwd": must'),
    "name with a slash": (second(fileName="a/b"), 'files[1]: fileName: "a/b": must'),
    "name with a backslash": (second(fileName="a\\b"), 'files[1]: fileName: "a\\b": must'),
    "name of the directory": (second(fileName="."), 'files[1]: fileName: ".": must'),
    "name of the one above": (second(fileName=".."), 'files[1]: fileName: "..": must'),
    "name hidden": (second(fileName=".profile"), 'files[1]: fileName: ".profile": must'),
    "name with a NUL": (second(fileName="a\0.bin"), 'files[1]: fileName: "a\\x00.bin": must'),
    "name with a newline": (second(fileName="a\nb"), 'files[1]: fileName: "a\\nb": must'),
    "name with an escape": (second(fileName="\x1b[2J"), 'files[1]: fileName: "\\x1b[2J": must'),
    "name right to left": (second(fileName="a\u202egnp.exe"), 'files[1]: fileName: "a\\u202egnp.exe": must'),
    "name half a character": (second(fileName="a\udc80"), 'files[1]: fileName: "a\\udc80": must'),
    "name of 256 bytes": (second(fileName="ä" * 128), f'files[1]: fileName: "{"ä" * 37}...": must'),
    "name of 64 KiB": (second(fileName="x" * 65536), f'files[1]: fileName: "{"x" * 37}...": must'),
    "name twice": (second(fileName="0.bin"), 'files: "0.bin": stands twice, in whatever case'),
    "name twice in two cases": (second(fileName="0.BIN"), 'files: "0.BIN": stands twice, in whatever case'),
    "name twice in two sharp cases": (
        several({"fileName": "maße"}, {"fileName": "MASSE"}),
        'files: "MASSE": stands twice, in whatever case',
    ),
    "size missing": (second(fileSize=MISSING), "files[1]: fileSize: missing: must be a whole number of bytes"),
    "size 0": (second(fileSize=0), "files[1]: fileSize: 0: must be"),
    "size negative": (second(fileSize=-1), "files[1]: fileSize: -1: must be"),
    "size true": (second(fileSize=True), "files[1]: fileSize: true: must be"),
    "size a fraction": (second(fileSize=1.0), "files[1]: fileSize: 1.0: must be"),
    "size too large": (second(fileSize=(1 << 50) + 1), "files[1]: fileSize: 1125899906842625: must be"),
    "sign missing": (second(fileSign=MISSING), "files[1]: fileSign: missing: must be 64 hexadecimal digits"),
    "sign of the other method": (second(fileSign=MD5), f'files[1]: fileSign: "{MD5}": must be 64'),
    "md5 in the place of sign": (second(fileSign=MISSING, fileMd5=MD5), "files[1]: fileSign: missing: must be 64"),
    "sign and md5 disagree": (
        several(IN_MD5, {**IN_MD5, "fileMd5": MD5[::-1]}, signMethod="Md5"),
        f'files[1]: fileMd5: "{MD5[::-1]}": must be the same as fileSign',
    ),
    "md5 wrong": (
        several(IN_MD5, {"fileSign": None, "fileMd5": "x"}, signMethod="Md5"),
        'files[1]: fileMd5: "x": must be 32 hexadecimal digits',
    ),
    "url missing": (second(fileUrl=MISSING), "files[1]: fileUrl: missing: must be a string"),
    "url empty": (second(fileUrl=""), "files[1]: fileUrl: 0 characters: must be 1 to 8192"),
    "url of a file": (second(fileUrl="file:///etc/passwd"), 'files[1]: fileUrl: "file": must be https or http'),
    "url with a user": (second(fileUrl=f"https://u:{SECRET}@a/"), "files[1]: fileUrl: must not carry a user name"),
    "url with a newline": (second(fileUrl=f"{URL}\nHost: b"), "files[1]: fileUrl: must be printable ASCII"),
    "name a signed url": (second(fileName=URL), 'files[1]: fileName: "https://ota-cn-shanghai.iot-thing.ali...": must'),
}
UNSIGNED_FILES: dict[str, tuple[dict[str, Any], str]] = {
    "none": (several({}, {}), "files[0]: digestsign: wrong"),
    "the last not": (several({"digestsign": "good"}, {"digestsign": "good"}, {}), "files[2]: digestsign: wrong"),
    "the package only": (several({}, {}, digestsign="good"), "files[0]: digestsign: wrong"),
    "one number": (several({"digestsign": "good"}, {"digestSign": 1}), "files[1]: digestsign: 1: must be base64"),
}


@pytest.mark.parametrize(("content", "says"), FILES.values(), ids=FILES.keys())
def test_a_wrong_file_is_named(content: dict[str, Any], says: str) -> None:
    check(push(content), Code.MALFORMED, says)


@pytest.mark.parametrize(("content", "says"), UNSIGNED_FILES.values(), ids=UNSIGNED_FILES.keys())
def test_a_file_without_a_good_signature_is_named(content: dict[str, Any], says: str) -> None:
    def verify(digest: Digest, signature: str | None) -> None:
        if signature != "good":
            refuses(digest, signature)

    check(push(content), Code.SIGNATURE, says, verify=verify)


def test_several_files_in_md5_can_be_forbidden() -> None:
    check(push(several(IN_MD5, IN_MD5, signMethod="MD5")), Code.UNSUPPORTED, "signMethod: MD5: ", allow_md5=False)


def test_several_files_that_are_a_difference_are_unsupported() -> None:
    check(push(several({}, {}, isDiff=1)), Code.UNSUPPORTED, "isDiff: ")


# What is refused is known again.


def key(content: dict[str, Any], **parameters: Any) -> str:
    answer = parse_upgrade(push(content), **parameters)
    assert isinstance(answer, Unusable)
    return answer.key


def test_a_refused_package_is_the_same_with_a_fresh_way_to_it() -> None:
    passing = [{"url": f"https://a/?{n}", "extData": {"n": str(n)}, "streamId": n, "streamFileId": n} for n in range(2)]
    first, again = (key(changed(size=0, **fields)) for fields in passing)

    assert first == again
    assert first.startswith("malformed:")
    assert key(changed(size=0, version="1.2", **passing[0])) != first


def test_several_refused_files_are_the_same_with_fresh_urls() -> None:
    first, again, other = (
        key(several({}, {"fileSize": 0, "fileUrl": f"https://a/?{n}", "fileName": name}))
        for n, name in enumerate(("a", "a", "b"))
    )

    assert first == again != other


def test_a_refused_signature_is_another_one_when_it_differs() -> None:
    keys = [
        key(changed(digestsign=signature, url=f"https://a/?{n}"), verify=refuses)
        for n, signature in enumerate(("a", "a", "b"))
    ]

    assert keys[0] == keys[1] != keys[2]


# Nothing that could be answered.

DEEP = b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
UNATTRIBUTABLE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON: "),
    "NUL": (b"\0", "not JSON: "),
    "a word": (b"hello", "not JSON: "),
    "cut short": (push(GOOD)[:-1], "not JSON: "),
    "two documents": (push(GOOD) * 2, "not JSON: Extra data"),
    "NUL within": (push(GOOD).replace(b"1.1", b"1\0."), "not JSON: "),
    "a string": (b'"data"', "not a JSON object"),
    "a list": (b"[{}]", "not a JSON object"),
    "null": (b"null", "not a JSON object"),
    "a number": (b"1", "not a JSON object"),
    "an empty object": (b"{}", "data: missing"),
    "data empty": (push({}), "data: missing"),
    "data null": (push(None), "data: missing"),
    "data a list": (push([GOOD]), "data: a list: must be an object"),
    "data a string": (push(json.dumps(GOOD)), 'data: "'),
    "data 0": (push(0), "data: 0: must be an object"),
    "a trailing comma": (b'{"data":{},}', "not JSON: "),
    "a comment": (b'{"data":{}/**/}', "not JSON: "),
    "a key twice": (push(GOOD).replace(b'"size"', b'"size": 1, "size"'), "not JSON: a key stands twice in one object"),
    "data twice": (b'{"data":{"a":1},"data":{"a":1}}', "not JSON: a key stands twice"),
    "NaN": (b'{"data":{"size":NaN}}', "not JSON: NaN is not a JSON value"),
    "Infinity": (b'{"data":{"size":Infinity}}', "not JSON: Infinity is not"),
    "minus Infinity": (b'{"data":{"size":-Infinity}}', "not JSON: -Infinity is not"),
    "1e999": (b'{"data":{"size":1e999}}', "not JSON: a number that is too large"),
    "too deep": (DEEP, "not JSON: nested"),
    "a little too deep": (push(changed(x=json.loads("[" * 40 + "]" * 40))), "not JSON: nested more than 32 deep"),
    "invalid UTF-8": (push(GOOD).replace(b"1.1", b"1\xff1"), "not JSON: "),
    "a surrogate in UTF-8": (push(GOOD).replace(b"1.1", b"\xed\xa0\x80"), "not JSON: "),
    "UTF-16": (push(GOOD).decode().encode("utf-16"), "not JSON: "),
    "UTF-16 without mark": (push(GOOD).decode().encode("utf-16-le"), "not JSON: "),
    "UTF-32": (push(GOOD).decode().encode("utf-32-be"), "not JSON: "),
    "too large": (push(changed(x="x" * (256 << 10))), "262"),
    "module empty": (push(changed(module="")), 'module: "": must be 1 to 64 of A-Z a-z 0-9 . _ -'),
    "module a number": (push(changed(module=1)), "module: 1: must be"),
    "module a list": (push(changed(module=["MCU"])), "module: a list: must be"),
    "module too long": (push(changed(module="m" * 65)), f'module: "{"m" * 37}...": must be'),
    "module with a newline": (push(changed(module="M\nx")), 'module: "M\\nx": must be'),
    "module with a slash": (push(changed(module="a/b")), 'module: "a/b": must be'),
    "code of an error": (push(GOOD, code=500, message="no\nway"), 'code 500: "no\\nway"'),
    "code unrelated": (push(GOOD, code={"a": 1}), "code an object: "),
}


@pytest.mark.parametrize(("payload", "says"), UNATTRIBUTABLE.values(), ids=UNATTRIBUTABLE.keys())
def test_what_cannot_be_attributed_is_said_and_dropped(payload: bytes, says: str) -> None:
    drops(parse_upgrade, payload, says)


def drops(parse: Callable[[bytes], Any], payload: bytes, says: str) -> None:
    with pytest.raises(Unattributable) as caught:
        parse(payload)

    assert str(caught.value).startswith(says)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "payload",
    [b"{", b"[]", push([GOOD]), push(changed(module="a/b")), push(GOOD) * 2, b'{"data":' + b"[" * 50_000],
    ids=["cut short", "a list", "data a list", "module wrong", "two documents", "deep"],
)
def test_an_answer_that_is_none_is_dropped_as_well(payload: bytes) -> None:
    with pytest.raises(Unattributable):
        parse_get_reply(payload, "1", lambda _: ModuleName("MCU"))


def test_a_problem_that_is_told_with_a_signed_url_is_told_without_its_query() -> None:
    payload = json.dumps({"id": "1", "code": 500, "message": f"{URL} gone"}).encode()

    assert parse_get_reply(payload, "1", lambda _: DEFAULT_MODULE).problem == (
        'code 500: "https://ota-cn-shanghai.iot-thing.ali..."'
    )


# Blocks.

CONTENT = b"123456789"
CRC = b"\x3d\xbb"


def block(content: bytes = CONTENT, crc: bytes = CRC, **fields: Any) -> bytes:
    """A block that is good but for what is given."""
    numbers = {"fileToken": "t", "fileLength": 100, "bSize": len(CONTENT), "bOffset": 0, **fields}
    kept = {name: value for name, value in numbers.items() if value is not MISSING}
    return framed(json.dumps({"id": "1", "code": 200, "data": kept}).encode(), content + crc)


def framed(header: bytes, rest: bytes = b"") -> bytes:
    return len(header).to_bytes(2, "big") + header + rest


LENGTH = len(block())
BLOCKS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes: must be 2 at least"),
    "one byte": (b"\0", "1 bytes: must be 2 at least"),
    "only a length": (b"\0\x10", "2 bytes: must be 18 at least"),
    "no text": (b"\0\0", "not JSON: "),
    "no text, and bytes": (b"\0\0" + CONTENT + CRC, "not JSON: "),
    "text cut short": (block()[:30], "30 bytes: must be "),
    "text without frame": (b'{"id":"1","code":200}', "21 bytes: must be 31524 at least"),
    "length little endian": (block()[1::-1] + block()[2:], f"{LENGTH} bytes: must be "),
    "length one too short": ((LENGTH - 14).to_bytes(2, "big") + block()[2:], "not JSON: "),
    "length one too long": ((LENGTH - 12).to_bytes(2, "big") + block()[2:], "not JSON: "),
    "length of all there is": (b"\xff\xff" + block()[2:], f"{LENGTH} bytes: must be 65537 at least"),
    "too large": (bytes(256 << 10) + b"x", "262145 bytes: more than 262144"),
    "text no object": (framed(b"[200]"), "not a JSON object"),
    "text no UTF-8": (framed(b'{"id":"\xff"}'), "not JSON: "),
    "text deep": (framed(b'{"a":' + b"[" * 30_000), "not JSON: nested"),
    "text with a key twice": (framed(b'{"code":400,"code":200}'), "not JSON: a key stands twice in one object"),
    "text with NaN": (framed(b'{"code":NaN}'), "not JSON: NaN"),
    "no data": (framed(b'{"code":200}', CONTENT + CRC), "data: null: must be an object"),
    "data a list": (framed(b'{"code":200,"data":[]}', CONTENT + CRC), "data: a list: must be an object"),
    "data a string": (framed(b'{"code":200,"data":"http://a?s3cr3t"}'), 'data: "http://a?...": must be an object'),
    "size missing": (block(bSize=MISSING), "bSize: null: must be 1 to 131072"),
    "size 0": (block(b"", b"\0\0", bSize=0), "bSize: 0: must be"),
    "size negative": (block(bSize=-9), "bSize: -9: must be"),
    "size true": (block(b"x", bSize=True), "bSize: true: must be"),
    "size a fraction": (block(bSize=9.0), "bSize: 9.0: must be"),
    "size too large": (block(b"x" * 131073, bSize=131073), "bSize: 131073: must be"),
    "size absurd": (block(bSize=10**30), "bSize: 100000000000000000000: must be"),
    "size smaller": (block(bSize=8), f"{LENGTH} bytes: must be {LENGTH - 1}"),
    "size larger": (block(bSize=8 + 2), f"{LENGTH + 1} bytes: must be {LENGTH + 2}"),
    "offset missing": (block(bOffset=MISSING), "bOffset: null: must be 0 to"),
    "offset negative": (block(bOffset=-1), "bOffset: -1: must be"),
    "offset a list": (block(bOffset=[0]), "bOffset: a list: must be"),
    "offset absurd": (block(bOffset=1 << 64), "bOffset: 18446744073709551616: must be"),
    "length of the whole 0": (block(fileLength=0), "fileLength: 0: must be 9 at least"),
    "beyond the whole": (block(bOffset=92), "fileLength: 100: must be 101 at least"),
    "length of the whole a word": (block(fileLength="all"), 'fileLength: "all": must be 9 at least'),
    "nothing behind the text": (block(b"", b""), f"{LENGTH - 11} bytes: must be {LENGTH}"),
    "no CRC": (block(crc=b""), f"{LENGTH - 2} bytes: must be {LENGTH}"),
    "half a CRC": (block(crc=b"\x3d"), f"{LENGTH - 1} bytes: must be {LENGTH}"),
    "a byte behind": (block() + b"\0", f"{LENGTH + 1} bytes: must be {LENGTH}"),
    "twice": (block() * 2, f"{2 * LENGTH} bytes: must be {LENGTH}"),
    "CRC big endian": (block(crc=CRC[::-1]), "CRC: 3dbb: that of the bytes is bb3d"),
    "CRC 0": (block(crc=b"\0\0"), "CRC: 0000: that of the bytes is bb3d"),
    "CRC of another kind": (block(crc=b"\xb1\x29"), "CRC: 29b1: that of the bytes is bb3d"),
    "a bit turned": (block(b"023456789"), "CRC: bb3d: that of the bytes is "),
    "bytes exchanged": (block(b"213456789"), "CRC: bb3d: that of the bytes is "),
}


@pytest.mark.parametrize(("payload", "says"), BLOCKS.values(), ids=BLOCKS.keys())
def test_a_damaged_block_is_dropped(payload: bytes, says: str) -> None:
    drops(parse_block, payload, says)


@pytest.mark.parametrize("code", [0, 199, 201, 400, "9112", "ok", True, None, [200], 200.0, -200, 1000])
def test_a_block_with_another_code_has_no_content(code: Any) -> None:
    header = json.dumps({"id": "1", "code": code, "msg": f"see {URL}", "data": {"bSize": 9, "bOffset": 0}}).encode()

    reply = parse_block(framed(header, CONTENT + CRC))

    assert (reply.code != 200, reply.content, reply.total) == (True, b"", None)
    assert SECRET not in reply.message


# Registration.

DEVICE = {"productKey": "a1simpk0001", "deviceName": "gw001"}


def registration(**fields: Any) -> bytes:
    values = {**DEVICE, "deviceSecret": SECRET, **fields}
    return json.dumps({key: value for key, value in values.items() if value is not MISSING}).encode()


def answer(content: Any, code: Any = 200, **fields: Any) -> bytes:
    return json.dumps({"code": code, "data": content, "message": "success", **fields}).encode()


NO_SECRET = "must be 1 to 2048 printable ASCII characters"
REGISTRATIONS: dict[str, tuple[Callable[[bytes], Any], bytes, str]] = {
    "empty": (wire.parse_registered, b"", "not JSON: "),
    "the bare secret": (wire.parse_registered, SECRET.encode(), "not JSON: "),
    "the secret as JSON": (wire.parse_registered, json.dumps(SECRET).encode(), "not a JSON object"),
    "cut short": (wire.parse_registered, registration()[:-1], "not JSON: "),
    "the secret twice": (
        wire.parse_registered,
        b'{"deviceSecret":"s3cr3t","deviceSecret":"s3cr3t"}',
        "not JSON: a key stands twice in one object",
    ),
    "secret missing": (
        wire.parse_registered,
        registration(deviceSecret=MISSING),
        f"deviceSecret: missing: {NO_SECRET}",
    ),
    "secret null": (wire.parse_registered, registration(deviceSecret=None), "deviceSecret: missing"),
    "secret empty": (wire.parse_registered, registration(deviceSecret=""), f"deviceSecret: wrong: {NO_SECRET}"),
    "secret a number": (wire.parse_registered, registration(deviceSecret=5), "deviceSecret: wrong"),
    "secret a list": (wire.parse_registered, registration(deviceSecret=[SECRET]), "deviceSecret: wrong"),
    "secret with a newline": (wire.parse_registered, registration(deviceSecret=f"{SECRET}\n"), "deviceSecret: wrong"),
    "secret with a space": (wire.parse_registered, registration(deviceSecret=f"{SECRET} x"), "deviceSecret: wrong"),
    "secret with a NUL": (wire.parse_registered, registration(deviceSecret=f"{SECRET}\0"), "deviceSecret: wrong"),
    "secret not ASCII": (wire.parse_registered, registration(deviceSecret=f"{SECRET}ä"), "deviceSecret: wrong"),
    "secret half a character": (wire.parse_registered, registration(deviceSecret="\ud800"), "deviceSecret: wrong"),
    "secret too long": (wire.parse_registered, registration(deviceSecret=SECRET * 400), "deviceSecret: wrong"),
    "secret under data": (wire.parse_registered, answer(json.loads(registration())), "deviceSecret: missing"),
    "product with a slash": (
        wire.parse_registered,
        registration(productKey="a/b"),
        "productKey: wrong: must be 1 to 64",
    ),
    "product a number": (wire.parse_registered, registration(productKey=1), "productKey: wrong"),
    "product empty": (wire.parse_registered, registration(productKey=""), "productKey: wrong"),
    "device a wildcard": (
        wire.parse_registered,
        registration(deviceName="gw+/#"),
        "deviceName: wrong: must be 4 to 32",
    ),
    "device with an ampersand": (wire.parse_registered, registration(deviceName="gw&a1x"), "deviceName: wrong"),
    "device the secret": (wire.parse_registered, registration(deviceName=f"{SECRET}!"), "deviceName: wrong"),
    "too large": (wire.parse_registered, registration(x="x" * (256 << 10)), "2622"),
    "answer not JSON": (wire.parse_registration_answer, b"<html>502 Bad Gateway</html>", "not JSON: "),
    "answer a list": (wire.parse_registration_answer, b"[200]", "not a JSON object"),
    "answer empty": (wire.parse_registration_answer, b"{}", "code: must be a number"),
    "answer without code": (wire.parse_registration_answer, registration(), "code: must be a number"),
    "answer with a word for code": (wire.parse_registration_answer, answer({}, "ok"), "code: must be a number"),
    "answer without data": (wire.parse_registration_answer, answer(None), "data: must be an object"),
    "answer with JSON in JSON": (
        wire.parse_registration_answer,
        answer(registration().decode()),
        "data: must be an object",
    ),
    "answer without secret": (wire.parse_registration_answer, answer(DEVICE), "deviceSecret: missing"),
    "answer with a wrong secret": (
        wire.parse_registration_answer,
        answer({**DEVICE, "deviceSecret": f"{SECRET}\r\nX: y"}),
        "deviceSecret: wrong",
    ),
    "token missing": (wire.parse_token, registration(clientId="c"), "deviceToken: missing"),
    "token empty": (wire.parse_token, registration(clientId="c", deviceToken=""), "deviceToken: wrong"),
    "token with a newline": (
        wire.parse_token,
        registration(clientId="c", deviceToken=f"{SECRET}\n"),
        "deviceToken: wrong",
    ),
    "client missing": (wire.parse_token, registration(deviceToken=SECRET), "clientId: missing"),
    "client with parameters": (
        wire.parse_token,
        registration(clientId=f"c|securemode=3,{SECRET}|", deviceToken=SECRET),
        "clientId: wrong: must be 1 to 256 printable ASCII characters other than |",
    ),
    "client too long": (wire.parse_token, registration(clientId="c" * 257, deviceToken=SECRET), "clientId: wrong"),
    "identity empty": (wire.parse_identity, b"{}", "productKey: missing"),
    "identity without device": (wire.parse_identity, registration(deviceName=None), "deviceName: missing"),
    "identity without product": (wire.parse_identity, registration(productKey=MISSING), "productKey: missing"),
    "identity with a slash": (wire.parse_identity, registration(deviceName="gw/../gw"), "deviceName: wrong"),
    "identity with a wildcard": (wire.parse_identity, registration(productKey="+"), "productKey: wrong"),
    "identity a list": (wire.parse_identity, registration(productKey=["a1"]), "productKey: wrong"),
}


@pytest.mark.parametrize(("parse", "payload", "says"), REGISTRATIONS.values(), ids=REGISTRATIONS.keys())
def test_a_registration_that_is_none_is_dropped(parse: Callable[[bytes], Any], payload: bytes, says: str) -> None:
    drops(parse, payload, says)


REFUSED: dict[str, tuple[bytes, int, str]] = {
    "switched off": (answer(None, 6288, message="off"), 6288, "off"),
    "as a string": (answer(None, "6289", message="active"), 6289, "active"),
    "with data all the same": (answer(json.loads(registration()), 400, message="no"), 400, "no"),
    "without a word": (answer({}, 500, message=None), 500, ""),
    "with an object for a word": (answer({}, 500, message={"a": SECRET}), 500, ""),
    "in many lines": (answer({}, 500, message="a\nERROR b\x1b[2J"), 500, "a\\nERROR b\\x1b[2J"),
    "at length": (answer({}, 500, message="x" * 100_000), 500, "x" * 128),
    "with a signed url": (answer({}, 500, message=f"https://a/b?s={SECRET} no"), 500, "https://a/b?... no"),
}


@pytest.mark.parametrize(("payload", "code", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refused_registration_says_why_and_nothing_else(payload: bytes, code: int, message: str) -> None:
    with pytest.raises(RegistrationRefused) as caught:
        wire.parse_registration_answer(payload)

    assert (caught.value.code, caught.value.message) == (code, message)
    assert SECRET not in str(caught.value)


# The time, and errors.


def times(**fields: Any) -> bytes:
    values = {"deviceSendTime": "1", "serverRecvTime": "2", "serverSendTime": "3", **fields}
    return json.dumps({key: value for key, value in values.items() if value is not MISSING}).encode()


TIMES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON: "),
    "a list": (b"[1,2,3]", "not a JSON object"),
    "none": (b"{}", "deviceSendTime: null: must be ms since 1970"),
    "ours missing": (times(deviceSendTime=MISSING), "deviceSendTime: null: must be"),
    "received missing": (times(serverRecvTime=MISSING), "serverRecvTime: null: must be"),
    "sent null": (times(serverSendTime=None), "serverSendTime: null: must be"),
    "negative": (times(serverSendTime=-1), "serverSendTime: -1: must be"),
    "negative as a string": (times(serverSendTime="-1"), 'serverSendTime: "-1": must be'),
    "a fraction": (times(serverSendTime=1.5), "serverSendTime: 1.5: must be"),
    "true": (times(serverSendTime=True), "serverSendTime: true: must be"),
    "the year 10000": (times(serverRecvTime=253402300800000), "serverRecvTime: 253402300800000: must be"),
    "absurd": (times(serverRecvTime="9" * 500), f'serverRecvTime: "{"9" * 37}...": must be'),
    "infinite": (b'{"deviceSendTime":1e999}', "not JSON: a number that is too large"),
    "in words": (times(serverSendTime="2020-01-01T00:00:00Z"), 'serverSendTime: "2020-01-01T00:00:00Z": must be'),
    "with a newline": (times(serverSendTime="1\n"), 'serverSendTime: "1\\n": must be'),
    "twice": (b'{"deviceSendTime":1,"deviceSendTime":2}', "not JSON: a key stands twice"),
}
ERRORS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON: "),
    "a number": (b"520", "not a JSON object"),
    "a list": (b'[{"code":520}]', "not a JSON object"),
    "deep": (b'{"data":' + b"[" * 40 + b"]" * 40 + b"}", "not JSON: nested more than 32 deep"),
    "too large": (json.dumps({"message": "x" * (256 << 10)}).encode(), "262"),
}


@pytest.mark.parametrize(("payload", "says"), TIMES.values(), ids=TIMES.keys())
def test_a_time_that_is_none_is_dropped(payload: bytes, says: str) -> None:
    drops(wire.parse_ntp, payload, says)


@pytest.mark.parametrize(("payload", "says"), ERRORS.values(), ids=ERRORS.keys())
def test_an_error_that_is_none_is_dropped(payload: bytes, says: str) -> None:
    drops(wire.parse_error, payload, says)


def test_what_an_error_says_is_one_short_line_without_secrets() -> None:
    said = [
        wire.parse_error(json.dumps({"code": 520, "message": message}).encode())[1]
        for message in ("a\nb\x1b[2J", "x" * 10_000, URL, "\U000e0001" * 128, f"see {URL[:-4] * 10}")
    ]

    assert all(text.isprintable() and len(text) <= 128 and SECRET not in text for text in said)


# As large as may be: what it costs to say no.


def filled(head: bytes, piece: bytes, tail: bytes) -> bytes:
    """A payload of just the size that is still read."""
    return head + piece * ((wire.PAYLOAD_MAX - len(head) - len(tail)) // len(piece)) + tail


LARGEST: dict[str, bytes] = {
    "empty lists": filled(b'{"data":{"x":[', b"[],", b"0]}}"),
    "empty objects": filled(b'{"data":{"x":[', b"{},", b"0]}}"),
    "small objects": filled(b'{"data":{"files":[', b'{"a":{}},', b"0]}}"),
    "numbers": filled(b'{"data":{"x":[', b"1.5,", b"0]}}"),
    "one number": filled(b'{"data":{"module":"a","size":', b"9", b"}}"),
    "keys": b'{"data":{"version":"1","size":0,' + b",".join(b'"%x":0' % n for n in range(28_000)) + b"}}",
    "tags": b'{"data":{"version":"1","size":0,"extData":{%s}}}' % b",".join(b'"%x":""' % n for n in range(24_000)),
    "one text": filled(b'{"data":{"version":"', b"x", b'"}}'),
    "escapes": filled(b'{"data":{"version":"', b"\\ud83d", b'"}}'),
    "wide letters": filled(b'{"data":{"version":"', "\U0001f600".encode(), b'"}}'),
    "URLs": filled(b'{"code":500,"message":"', b"://", b'"}'),
    "opened and not closed": filled(b"", b'{"":', b""),
    "lists not closed": filled(b"", b"[", b""),
    "NULs": bytes(wire.PAYLOAD_MAX),
    "a block's text": framed(b'{"a":[' + b"{}," * 21_000 + b"0]}", bytes(131_074)),
    "a block": block(b"x" * 131_072, bSize=131_072, fileLength=1 << 20),
}
PARSERS: list[Callable[[bytes], Any]] = [
    parse_upgrade,
    lambda payload: parse_get_reply(payload, "1", lambda _: DEFAULT_MODULE),
    parse_block,
    wire.parse_ntp,
    wire.parse_error,
    wire.parse_registered,
    wire.parse_registration_answer,
    wire.parse_token,
    wire.parse_identity,
]


@pytest.mark.parametrize("payload", LARGEST.values(), ids=LARGEST.keys())
def test_saying_no_takes_no_more_than_24_mib(payload: bytes) -> None:
    peaks = []
    for parse in PARSERS:
        tracemalloc.start()
        try:
            answer = parse(payload)
        except (Unattributable, RegistrationRefused):
            answer = None
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert not isinstance(answer, Offered)

    assert len(payload) <= wire.PAYLOAD_MAX
    assert max(peaks) < 24 << 20


def test_as_many_hostile_messages_as_promised_were_tried() -> None:
    notices = len(MALFORMED) + len(UNSUPPORTED) + len(UNSIGNED) + len(UNATTRIBUTABLE)

    assert notices >= 150
    assert len(FILES) + len(UNSIGNED_FILES) >= 60
    assert len(BLOCKS) >= 45
    assert len(REGISTRATIONS) + len(REFUSED) >= 50
    assert len(TIMES) + len(ERRORS) >= 20
