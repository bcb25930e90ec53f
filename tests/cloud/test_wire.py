# SPDX-License-Identifier: Apache-2.0
"""The wire format: every documented shape byte for byte, every dialect, and what must be refused."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from otad.cloud import wire
from otad.cloud.cloud import Nothing, Offered, Unusable
from otad.cloud.wire import Reply, Topics, Unattributable, parse_get_reply, parse_upgrade
from otad.core.model import DEFAULT_MODULE, Digest, DigestMethod, Identity, ModuleName, Notice
from otad.errors import Code, Failure

MCU = ModuleName("MCU")
MD5 = "2e78aabbccddeeff00112233445538aa"
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
URL = "https://ota-cn-shanghai.iot-thing.aliyuncs.com/ota/0123/ck.bin?auth_key=1700000000-0-0-ab"
MISSING = object()

GOOD: dict[str, Any] = {"size": 4252, "version": "1.1", "url": URL, "sign": SHA256, "signMethod": "SHA256"}
NOTICE = Notice(Identity(DEFAULT_MODULE, "1.1", 4252, Digest(DigestMethod.SHA256, SHA256)), URL)
NOTICE_MD5 = Notice(Identity(DEFAULT_MODULE, "1.1", 4252, Digest(DigestMethod.MD5, MD5)), URL)
CLASSIC = {"sign": MD5, "md5": MD5, "signMethod": "Md5"}


def changed(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in {**GOOD, **fields}.items() if value is not MISSING}


def push(content: Any, **envelope: Any) -> bytes:
    return json.dumps({"code": "1000", "data": content, "id": 7, "message": "success", **envelope}).encode()


def default_asked(_: str) -> ModuleName:
    return DEFAULT_MODULE


# What we send.


def test_the_topics_are_the_platforms() -> None:
    assert Topics.of("a1", "gw001") == Topics(
        inform="/ota/device/inform/a1/gw001",
        progress="/ota/device/progress/a1/gw001",
        get="/sys/a1/gw001/thing/ota/firmware/get",
        get_reply="/sys/a1/gw001/thing/ota/firmware/get_reply",
        upgrade="/ota/device/upgrade/a1/gw001",
    )


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (wire.inform(123, MCU, "1.0.1"), '{"id":"123","params":{"version":"1.0.1","module":"MCU"}}'),
        (wire.inform(123, DEFAULT_MODULE, "1.0.1"), '{"id":"123","params":{"version":"1.0.1"}}'),
        (wire.progress(9, MCU, 42, "half"), '{"id":"9","params":{"step":"42","desc":"half","module":"MCU"}}'),
        (wire.progress(9, DEFAULT_MODULE, -1, ""), '{"id":"9","params":{"step":"-1","desc":""}}'),
        (wire.progress(9, DEFAULT_MODULE, 1, '升级 "x"'), '{"id":"9","params":{"step":"1","desc":"升级 \\"x\\""}}'),
        (
            wire.get(1, MCU),
            '{"id":"1","version":"1.0","params":{"module":"MCU"},"method":"thing.ota.firmware.get"}',
        ),
        (wire.get(1, DEFAULT_MODULE), '{"id":"1","version":"1.0","params":{},"method":"thing.ota.firmware.get"}'),
    ],
)
def test_what_is_sent_is_compact_and_as_documented(payload: bytes, expected: str) -> None:
    assert payload == expected.encode()


def test_a_description_is_cut_to_what_the_platform_takes() -> None:
    sent = json.loads(wire.progress(1, DEFAULT_MODULE, -1, "x" * 300))["params"]["desc"]

    assert sent == "x" * 127 + "…"


def test_a_description_that_is_not_unicode_is_sent_all_the_same() -> None:
    assert json.loads(wire.progress(1, DEFAULT_MODULE, -1, "a\udc80b"))["params"]["desc"] == "a?b"


# What we hear: the documented shapes.


def test_the_captured_notice_for_blocks_over_mqtt_is_understood_and_unsupported() -> None:
    payload = (
        f'{{"code":"1000","data":{{"size":4252,"streamId":12332,"sign":"{MD5}","dProtocol":"mqtt","version":"1.1",'
        f'"signMethod":"Md5","streamFileId":1,"md5":"{MD5}"}},"id":1695281536874,"message":"success"}}'
    ).encode()

    answer = parse_upgrade(payload)

    failure = Failure(Code.UNSUPPORTED, 'dProtocol: "mqtt": not available in this version, use HTTPS')
    assert isinstance(answer, Unusable)
    assert answer == Unusable(answer.key, DEFAULT_MODULE, "1.1", failure, "push:1695281536874")


def test_the_captured_notice_over_https_is_an_offer() -> None:
    payload = (
        f'{{"code":"1000","data":{{"size":4252,"sign":"{MD5}","version":"1.1","url":"{URL}",'
        f'"signMethod":"Md5","md5":"{MD5}","extData":{{"_package_udi":"{{\\"a\\":1}}"}}}},'
        f'"id":1695281536874,"message":"success"}}'
    ).encode()

    assert parse_upgrade(payload) == Offered(NOTICE_MD5, "push:1695281536874")


def test_the_documented_notice_with_a_module_is_an_offer() -> None:
    payload = (
        f'{{"id":"123","code":200,"data":{{"size":93796291,"sign":"{SHA256}","version":"10.0.0.1.20171112.1432",'
        f'"url":"{URL}","signMethod":"SHA256","module":"MCU","digestsign":"A4WOP9S==","extData":{{"key1":"value1"}}}}}}'
    ).encode()

    identity = Identity(MCU, "10.0.0.1.20171112.1432", 93796291, Digest(DigestMethod.SHA256, SHA256))
    assert parse_upgrade(payload) == Offered(Notice(identity, URL), "push:123")


def test_a_package_of_several_files_is_unsupported() -> None:
    file = {"fileSize": 1, "fileName": "a", "fileUrl": URL, "fileMd5": MD5, "fileSign": MD5}
    answer = parse_upgrade(push({"version": "2.0", "files": [file, file], "signMethod": "Md5"}))

    failure = Failure(Code.UNSUPPORTED, "files: a package of several files: not available in this version")
    assert isinstance(answer, Unusable)
    assert answer == Unusable(answer.key, DEFAULT_MODULE, "2.0", failure, "push:7")


def test_the_answer_to_a_request_is_an_offer_of_its_connection() -> None:
    payload = json.dumps({"id": "123", "code": 200, "data": GOOD}).encode()

    assert parse_get_reply(payload, "3", default_asked) == Reply("123", Offered(NOTICE, "get:3"))


@pytest.mark.parametrize(
    "payload",
    [
        '{"id":"123","code":200,"data":{}}',
        '{"id":123,"code":"200","data":{}}',
        '{"id":123,"code":1000}',
        '{"id":"123","code":200,"data":null,"message":"success"}',
        '{"id":"123","code":500,"message":"none upgrade operation of the device."}',
    ],
)
def test_nothing_is_offered_for_the_module_that_was_asked_for(payload: str) -> None:
    modules = {"123": MCU}

    assert parse_get_reply(payload.encode(), "1", modules.__getitem__) == Reply("123", Nothing(MCU))


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (429, 'code 429: "too many"'),
        ("9112", 'code "9112": "too many"'),
        (500, 'code 500: "too many"'),
        (True, 'code true: "too many"'),
        (200.5, 'code 200.5: "too many"'),
    ],
)
def test_an_error_is_no_answer_and_says_why(code: Any, problem: str) -> None:
    payload = json.dumps({"id": 5, "code": code, "message": "too many"}).encode()

    assert parse_get_reply(payload, "1", default_asked) == Reply("5", None, problem)


# Dialects: the same package, said otherwise.

DIALECTS: dict[str, tuple[bytes, Notice]] = {
    "code as a number": (push(GOOD, code=1000), NOTICE),
    "code 200 as a string": (push(GOOD, code="200"), NOTICE),
    "no code": (json.dumps({"id": 7, "data": GOOD}).encode(), NOTICE),
    "id as a string": (push(GOOD, id="7"), NOTICE),
    "method in small letters": (push(changed(signMethod="sha256")), NOTICE),
    "method in mixed letters": (push(changed(signMethod="Sha256")), NOTICE),
    "digest in capitals": (push(changed(sign=SHA256.upper())), NOTICE),
    "size as a string": (push(changed(size="4252")), NOTICE),
    "a NUL behind it": (push(GOOD) + b"\0", NOTICE),
    "many NULs behind it": (push(GOOD) + b"\0" * 64, NOTICE),
    "a byte order mark": (b"\xef\xbb\xbf" + push(GOOD), NOTICE),
    "white space around it": (b" \r\n" + push(GOOD) + b"\r\n", NOTICE),
    "module named default": (push(changed(module="default")), NOTICE),
    "module null": (push(changed(module=None)), NOTICE),
    "isDiff 0": (push(changed(isDiff=0)), NOTICE),
    "isDiff false": (push(changed(isDiff=False)), NOTICE),
    "isDiff as a string": (push(changed(isDiff="0")), NOTICE),
    "dProtocol https": (push(changed(dProtocol="HTTPS")), NOTICE),
    "dProtocol empty": (push(changed(dProtocol="")), NOTICE),
    "no files": (push(changed(files=[])), NOTICE),
    "unknown keys": (push(changed(nonce="x", more={"a": [1, None, True]})), NOTICE),
    "extData with half a character": (push(changed(extData={"_package_udi": "\ud83d"})), NOTICE),
    "an md5 beside a SHA256": (push(changed(md5="whatever")), NOTICE),
    "MD5": (push(changed(**{**CLASSIC, "signMethod": "MD5"})), NOTICE_MD5),
    "Md5": (push(changed(**CLASSIC)), NOTICE_MD5),
    "md5": (push(changed(**{**CLASSIC, "signMethod": "md5"})), NOTICE_MD5),
    "MD5 in capitals and small letters": (push(changed(**{**CLASSIC, "md5": MD5.upper()})), NOTICE_MD5),
    "MD5 without sign": (push(changed(**{**CLASSIC, "sign": MISSING})), NOTICE_MD5),
    "MD5 without md5": (push(changed(**{**CLASSIC, "md5": MISSING})), NOTICE_MD5),
    "md5 without method": (push(changed(sign=MISSING, md5=MD5, signMethod=MISSING)), NOTICE_MD5),
    "md5 with sign and an empty method": (push(changed(**{**CLASSIC, "signMethod": ""})), NOTICE_MD5),
}


@pytest.mark.parametrize(("payload", "notice"), DIALECTS.values(), ids=DIALECTS.keys())
def test_every_dialect_is_the_same_offer(payload: bytes, notice: Notice) -> None:
    assert parse_upgrade(payload) == Offered(notice, "push:7")


@pytest.mark.parametrize("url", ["http://example.com/a", "HTTPS://example.com:8443/a?b=c%20d&e", "https://[::1]/a"])
def test_a_url_is_kept_as_it_is(url: str) -> None:
    answer = parse_upgrade(push(changed(url=url)))

    assert isinstance(answer, Offered)
    assert answer.notice.url == url


def test_a_push_without_id_is_the_same_only_as_itself() -> None:
    first, other = (json.dumps({"data": changed(size=size)}).encode() for size in (1, 2))
    answers = [parse_upgrade(payload) for payload in (first, first, other)]

    assert answers[0].offer == answers[1].offer != answers[2].offer


# Hostile: attributable, and refused with the field named.

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
}
UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "isDiff 1": ({"isDiff": 1}, "isDiff: a differential package: not available in this version"),
    "isDiff true": ({"isDiff": True}, "isDiff: "),
    "isDiff as a string": ({"isDiff": "1"}, "isDiff: "),
    "isDiff a list": ({"isDiff": [0]}, "isDiff: "),
    "dProtocol unknown": ({"dProtocol": "coap"}, 'dProtocol: "coap": not available in this version'),
    "dProtocol a number": ({"dProtocol": 1}, "dProtocol: 1: not available in this version"),
    "one file in files": ({"files": [{}]}, "files: "),
    "files a string": ({"files": "x"}, "files: "),
}


@pytest.mark.parametrize(("fields", "says"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_wrong_field_is_named(fields: dict[str, Any], says: str) -> None:
    answer = parse_upgrade(push(changed(**fields)))

    assert isinstance(answer, Unusable)
    assert (answer.failure.code, answer.module, answer.offer) == (Code.MALFORMED, DEFAULT_MODULE, "push:7")
    assert answer.failure.detail.startswith(says)
    assert answer.failure.detail.isprintable()
    assert answer.version == ("" if "version" in fields else "1.1")


@pytest.mark.parametrize(("fields", "says"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_what_cannot_be_carried_out_yet_is_said(fields: dict[str, Any], says: str) -> None:
    answer = parse_upgrade(push(changed(**fields)))

    assert isinstance(answer, Unusable)
    assert (answer.failure.code, answer.version) == (Code.UNSUPPORTED, "1.1")
    assert answer.failure.detail.startswith(says)


@pytest.mark.parametrize("fields", [CLASSIC, {"sign": MISSING, "signMethod": MISSING, "md5": MD5}])
def test_md5_can_be_forbidden(fields: dict[str, Any]) -> None:
    answer = parse_upgrade(push(changed(**fields)), allow_md5=False)

    assert isinstance(answer, Unusable)
    assert answer.failure == Failure(
        Code.UNSUPPORTED,
        "signMethod: MD5: not accepted here: sign with SHA256, or set trust.allow_md5 = true on the gateway",
    )


def test_no_word_of_a_signed_url_is_repeated() -> None:
    answer = parse_upgrade(push(changed(url="https://a b/?auth_key=s3cr3t")))

    assert isinstance(answer, Unusable)
    assert "s3cr3t" not in answer.failure.detail


def test_a_refused_package_is_the_same_with_a_fresh_url() -> None:
    payloads = [
        push(changed(size=0, url=f"https://a/?{n}", extData={"n": str(n)}, files=[{"fileUrl": str(n)}]), id=n)
        for n in range(2)
    ]
    other = push(changed(size=0, version="1.2", files=[{"fileUrl": "0"}]))
    first, second, third = (parse_upgrade(payload) for payload in (*payloads, other))

    assert isinstance(first, Unusable)
    assert isinstance(second, Unusable)
    assert isinstance(third, Unusable)
    assert first.key == second.key != third.key
    assert first.key.startswith("malformed:")
    assert (first.offer, second.offer) == ("push:0", "push:1")


# Hostile: nothing that could be answered.

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
    with pytest.raises(Unattributable) as caught:
        parse_upgrade(payload)

    assert str(caught.value).startswith(says)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_at_least_eighty_hostile_notices_were_tried() -> None:
    assert len(MALFORMED) + len(UNSUPPORTED) + len(UNATTRIBUTABLE) >= 80


def test_an_id_that_is_none_is_passed_over() -> None:
    for id_ in (True, 1.5, [1], {"a": 1}, "x" * 65, "a\nb", None):
        answer = parse_upgrade(push(GOOD, id=id_))

        assert isinstance(answer, Offered)
        assert len(answer.offer) == len("push:") + 64


# Anything at all.

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [*GOOD, "md5", "module", "isDiff", "dProtocol", "files", "extData", "digestsign"]


def parses(payload: bytes) -> None:
    """Both ways end in a value or in Unattributable, and whatever is said fits on one line."""
    for parse in (parse_upgrade, lambda payload: parse_get_reply(payload, "1", default_asked)):
        said = ""
        try:
            answer = parse(payload)
        except Unattributable as error:
            said = str(error)
        else:
            if isinstance(answer, Unusable):
                said = answer.failure.detail
        assert said.isprintable()


@given(st.binary())
@example(b"\xff\xfe{")
@example(b'{"id":"\\ud800","code":"\\ud800"}')
def test_any_bytes_are_survived(payload: bytes) -> None:
    parses(payload)


@given(json_values)
def test_any_json_is_survived(value: Any) -> None:
    parses(json.dumps(value).encode())


@given(
    st.dictionaries(st.sampled_from(FIELDS), json_values), st.dictionaries(st.sampled_from(["id", "code"]), json_values)
)
@settings(max_examples=300)
def test_any_package_is_survived(fields: dict[str, Any], envelope: dict[str, Any]) -> None:
    parses(push({**GOOD, **fields}, **envelope))
