# SPDX-License-Identifier: Apache-2.0
"""The wire format: every documented shape byte for byte, and every dialect. What is refused: test_hostile_messages."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from otad.cloud import wire
from otad.cloud.cloud import Nothing, Offered, Unusable
from otad.cloud.wire import (
    BlockReply,
    Registered,
    RegistrationRefused,
    Reply,
    Token,
    Topics,
    Unattributable,
    parse_block,
    parse_get_reply,
    parse_upgrade,
)
from otad.core.model import DEFAULT_MODULE, Artifact, Digest, DigestMethod, Identity, ModuleName, Notice, Stream, Tag
from otad.errors import Code, UpdateError

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
        download="/sys/a1/gw001/thing/file/download",
        download_reply="/sys/a1/gw001/thing/file/download_reply",
        error="/ext/error/a1/gw001",
        ntp_request="/ext/ntp/a1/gw001/request",
        ntp_response="/ext/ntp/a1/gw001/response",
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
        (
            wire.file_request(1, Stream(1397345, 1), 0, 5120),
            (
                '{"id":"1","version":"1.0","params":{"fileToken":"default","fileInfo":{"streamId":1397345,"fileId":1},'
                '"fileBlock":{"size":5120,"offset":0}}}'
            ),
        ),
        (wire.ntp_request(1695281536874), '{"deviceSendTime":"1695281536874"}'),
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


def test_the_captured_notice_for_blocks_over_mqtt_is_an_offer() -> None:
    payload = (
        f'{{"code":"1000","data":{{"size":4252,"streamId":12332,"sign":"{MD5}","dProtocol":"mqtt","version":"1.1",'
        f'"signMethod":"Md5","streamFileId":1,"md5":"{MD5}"}},"id":1695281536874,"message":"success"}}'
    ).encode()

    notice = replace(NOTICE_MD5, url="", stream=Stream(12332, 1))
    assert parse_upgrade(payload) == Offered(notice, "push:1695281536874")


def test_the_captured_notice_over_https_is_an_offer() -> None:
    payload = (
        f'{{"code":"1000","data":{{"size":4252,"sign":"{MD5}","version":"1.1","url":"{URL}",'
        f'"signMethod":"Md5","md5":"{MD5}","extData":{{"_package_udi":"{{\\"a\\":1}}"}}}},'
        f'"id":1695281536874,"message":"success"}}'
    ).encode()

    notice = replace(NOTICE_MD5, tags=(Tag("_package_udi", '{"a":1}'),))
    assert parse_upgrade(payload) == Offered(notice, "push:1695281536874")


def test_the_documented_notice_with_a_module_is_an_offer() -> None:
    payload = (
        f'{{"id":"123","code":200,"data":{{"size":93796291,"sign":"{SHA256}","version":"10.0.0.1.20171112.1432",'
        f'"url":"{URL}","signMethod":"SHA256","module":"MCU","digestsign":"A4WOP9S==","extData":{{"key1":"value1"}}}}}}'
    ).encode()

    identity = Identity(MCU, "10.0.0.1.20171112.1432", 93796291, Digest(DigestMethod.SHA256, SHA256))
    assert parse_upgrade(payload) == Offered(Notice(identity, URL, tags=(Tag("key1", "value1"),)), "push:123")


def test_the_documented_notice_of_several_files_is_an_offer() -> None:
    payload = (
        '{"id":"123","code":200,"data":{"version":"2.0","signMethod":"Md5","files":['
        f'{{"fileSize":432944,"fileName":"a.bin","fileUrl":"{URL}","fileMd5":"{MD5}","fileSign":"{MD5}"}},'
        f'{{"fileSize":1,"fileName":"固件 2","fileUrl":"{URL}2","fileMd5":"{MD5[::-1]}","fileSign":"{MD5[::-1]}"}}]}}}}'
    ).encode()

    first = Artifact("a.bin", 432944, Digest(DigestMethod.MD5, MD5), URL)
    second = Artifact("固件 2", 1, Digest(DigestMethod.MD5, MD5[::-1]), f"{URL}2")
    lines = f"a.bin\x00432944\x00{MD5}\n固件 2\x001\x00{MD5[::-1]}\n".encode()
    whole = Digest(DigestMethod.MD5, hashlib.md5(lines).hexdigest())
    assert parse_upgrade(payload) == Offered(
        Notice(Identity(DEFAULT_MODULE, "2.0", 432945, whole), "", files=(first, second)), "push:123"
    )


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


# The same package, and another one: several files.


def several(*files: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"version": "2.0", "signMethod": "SHA256", "files": list(files), **fields}


def entry(name: str, size: Any = 1, sign: str = SHA256, url: str = URL, **fields: Any) -> dict[str, Any]:
    return {"fileName": name, "fileSize": size, "fileSign": sign, "fileUrl": url, **fields}


def offered(content: dict[str, Any], **parameters: Any) -> Notice:
    answer = parse_upgrade(push(content), **parameters)
    assert isinstance(answer, Offered), answer
    return answer.notice


def test_the_digest_of_several_files_is_that_of_their_lines() -> None:
    identity = offered(several(entry("a", 1), entry("b", 2))).identity

    lines = f"a\x001\x00{SHA256}\nb\x002\x00{SHA256}\n".encode()
    assert identity.digest == Digest(DigestMethod.SHA256, hashlib.sha256(lines).hexdigest())


def test_several_files_are_the_same_package_with_fresh_urls() -> None:
    first = offered(several(entry("a"), entry("b"), module="MCU"))
    again = offered(several(entry("a", "1", SHA256.upper(), f"{URL}0"), entry("b", fileMd5="x"), module="MCU", size=2))

    assert first.identity == again.identity
    assert first.url == again.url == ""
    assert [file.url for file in again.artifacts] == [f"{URL}0", URL]


def test_several_files_are_the_same_package_in_any_order() -> None:
    files = [entry(name, size, url=f"{URL}{size}") for size, name in enumerate(("B", "a", "a1", "ä", "\U0001f4be"), 1)]

    assert offered(several(*reversed(files))) == offered(several(*files[2:], *files[:2])) == offered(several(*files))
    assert [file.url for file in offered(several(*reversed(files))).files] == [file["fileUrl"] for file in files]


@pytest.mark.parametrize(
    "files",
    [
        (entry("a"), entry("B")),
        (entry("a", 2), entry("b")),
        (entry("a", sign=SHA256[::-1]), entry("b")),
        (entry("a"), entry("b"), entry("c")),
    ],
    ids=["name", "size", "digest", "one more"],
)
def test_several_files_that_differ_are_another_package(files: tuple[dict[str, Any], ...]) -> None:
    first, other = offered(several(entry("a"), entry("b"))), offered(several(*files))

    assert first.identity.key != other.identity.key


@pytest.mark.parametrize(
    "name", ["a", "a.b", "a..b", "a b", "~a", "-a", "CON", "a:b", "ä" * 127, "x" * 255, "\N{SNOWMAN}", "a\u0301"]
)
def test_a_plain_file_name_is_kept_as_it_is(name: str) -> None:
    assert name in {file.name for file in offered(several(entry(name), entry("other"))).files}


def test_twenty_files_are_taken() -> None:
    assert len(offered(several(*(entry(str(n)) for n in range(20)))).files) == 20


def test_an_empty_url_and_a_size_that_agrees_may_stand_beside_files() -> None:
    files = (entry("a"), entry("b"))

    assert offered(several(*files, url="", sign=None, size="2")) == offered(several(*files))


# Blocks over MQTT.

STREAM = {"streamId": 12332, "streamFileId": 1}
OVER_MQTT = {**STREAM, "dProtocol": "mqtt"}
LARGE = 16 << 20

STREAMS: dict[str, tuple[dict[str, Any], Notice]] = {
    "without url": ({**OVER_MQTT, "url": MISSING}, replace(NOTICE, url="", stream=Stream(12332, 1))),
    "url null": ({**OVER_MQTT, "url": None}, replace(NOTICE, url="", stream=Stream(12332, 1))),
    "url empty": ({**OVER_MQTT, "url": ""}, replace(NOTICE, url="", stream=Stream(12332, 1))),
    "with url": (OVER_MQTT, replace(NOTICE, stream=Stream(12332, 1))),
    "with url and without dProtocol": (STREAM, replace(NOTICE, stream=Stream(12332, 1))),
    "dProtocol in capitals": ({**OVER_MQTT, "dProtocol": "MQTT"}, replace(NOTICE, stream=Stream(12332, 1))),
    "numbers as strings": ({**STREAM, "streamId": "0", "streamFileId": "7"}, replace(NOTICE, stream=Stream(0, 7))),
    "null numbers": ({"streamId": None, "streamFileId": None}, NOTICE),
    "as large as blocks go": (
        {**OVER_MQTT, "url": "", "size": LARGE},
        Notice(replace(NOTICE.identity, size=LARGE), "", stream=Stream(12332, 1)),
    ),
    "larger, and so by its url": (
        {**OVER_MQTT, "size": LARGE + 1},
        Notice(replace(NOTICE.identity, size=LARGE + 1), URL),
    ),
}


@pytest.mark.parametrize(("fields", "notice"), STREAMS.values(), ids=STREAMS.keys())
def test_a_package_may_come_in_blocks(fields: dict[str, Any], notice: Notice) -> None:
    assert offered(changed(**fields)) == notice


# What the operator says of a package.

TAGS: dict[str, tuple[Any, tuple[Tag, ...]]] = {
    "in the order of their keys": ({"b": "2", "a": "1"}, (Tag("a", "1"), Tag("b", "2"))),
    "empty": ({}, ()),
    "an empty value": ({"a": ""}, (Tag("a", ""),)),
    "any text": ({"_package_udi": '{"x":"升级"}\n'}, (Tag("_package_udi", '{"x":"升级"}\n'),)),
    "a value as long as may be": ({"a": "x" * 4096}, (Tag("a", "x" * 4096),)),
    "a value too long": ({"a": "x" * 4097, "b": "2"}, (Tag("b", "2"),)),
    "a value that is a number": ({"a": 1, "b": "2"}, (Tag("b", "2"),)),
    "a value that is an object": ({"a": {"b": "c"}}, ()),
    "a value with NUL": ({"a": "x\0y"}, ()),
    "a value with half a character": ({"a": "\ud83d"}, ()),
    "a key empty": ({"": "1"}, ()),
    "a key too long": ({"k" * 65: "1", "k" * 64: "2"}, (Tag("k" * 64, "2"),)),
    "a key with a newline": ({"a\n": "1"}, ()),
    "more than is kept": (
        {"a": "x" * 4000, "b": "x" * 4000, "c": "x" * 4000, "d": "4"},
        (Tag("a", "x" * 4000), Tag("b", "x" * 4000), Tag("d", "4")),
    ),
    "a list": (["a"], ()),
    "a string": ('{"a":"1"}', ()),
    "null": (None, ()),
}


@pytest.mark.parametrize(("said", "tags"), TAGS.values(), ids=TAGS.keys())
def test_the_words_of_the_operator_are_kept(said: Any, tags: tuple[Tag, ...]) -> None:
    assert offered(changed(extData=said)) == replace(NOTICE, tags=tags)


def test_the_words_of_the_operator_are_at_most_8_kib_in_all() -> None:
    tags = offered(changed(extData={f"{n:04}": "ä" * 100 for n in range(200)})).tags

    assert 7900 < sum(len(tag.key) + len(tag.value.encode()) for tag in tags) <= 8 << 10


# Signatures: what `verify` is asked, and what it decides. The signatures themselves: test_trust.


class Asked:
    """Stands where a key does: believes one signature, and remembers what it was asked."""

    def __init__(self, good: str | None) -> None:
        self._good = good
        self.digests: list[Digest] = []

    def __call__(self, digest: Digest, signature: str | None) -> None:
        self.digests.append(digest)
        if signature != self._good:
            raise UpdateError(Code.SIGNATURE, "digestsign: wrong")


@pytest.mark.parametrize("key", ["digestsign", "digestSign", "DIGESTSIGN"])
def test_a_signature_is_shown_to_the_key_however_it_is_spelt(key: str) -> None:
    verify = Asked("good")

    assert offered(changed(**{key: "good"}), verify=verify) == NOTICE
    assert verify.digests == [NOTICE.identity.digest]


def test_the_answer_to_a_request_needs_its_signature_as_well() -> None:
    payload = json.dumps({"id": "1", "code": 200, "data": GOOD}).encode()

    answer = parse_get_reply(payload, "1", default_asked, verify=Asked("good")).answer
    assert isinstance(answer, Unusable)
    assert answer.failure.code is Code.SIGNATURE


def test_each_of_several_files_has_its_own_signature() -> None:
    verify = Asked("good")
    files = (entry("a", digestsign="good"), entry("b", sign=SHA256[::-1], digestSign="good"))

    offered(several(*files), verify=verify)

    assert [digest.hex for digest in verify.digests] == [SHA256, SHA256[::-1]]


def test_a_signature_is_not_looked_at_without_a_key() -> None:
    assert offered(changed(digestsign=5)) == NOTICE


# Policy is the configuration's.

POLICIES = {
    "force": True,
    "reboot": "now",
    "allow_md5": True,
    "allowMd5": 1,
    "require_signature": False,
    "verify": False,
    "digestsign_key_file": "/tmp/key",
    "slot": "A",
    "target": "/dev/sda",
    "tries": 1000,
    "installer": "command",
    "command": ["/bin/sh"],
    "mandatory": 1,
    "rollback": False,
}


def test_no_message_says_how_it_is_to_be_treated() -> None:
    message = push({**GOOD, **POLICIES, "extData": {"force": "1"}}, force=True, allow_md5=True)

    assert parse_upgrade(message) == Offered(replace(NOTICE, tags=(Tag("force", "1"),)), "push:7")


def test_no_message_allows_what_the_configuration_does_not() -> None:
    answers = [
        parse_upgrade(push(changed(**CLASSIC, **POLICIES)), allow_md5=False),
        parse_upgrade(push(changed(**POLICIES)), verify=Asked("good")),
    ]

    assert [answer.failure.code for answer in answers if isinstance(answer, Unusable)] == [
        Code.UNSUPPORTED,
        Code.SIGNATURE,
    ]


# Blocks: half in text and half in bytes.

CHECK = b"123456789"  # the standard check value of CRC-16/ARC is 0xBB3D
HEADER = b'{"id":"1","code":200,"msg":"","data":{"fileToken":"default","fileLength":1238848,"bSize":9,"bOffset":2}}'


def crc16_bit_by_bit(content: bytes) -> int:
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return crc


def block_reply(content: bytes, **fields: Any) -> bytes:
    block = {"fileToken": "t", "fileLength": 1 << 20, "bSize": len(content), "bOffset": 0, **fields}
    header = json.dumps({"id": "1", "code": 200, "msg": "", "data": block}, separators=(",", ":")).encode()
    return framed(header, content + crc16_bit_by_bit(content).to_bytes(2, "little"))


def framed(header: bytes, rest: bytes = b"") -> bytes:
    return len(header).to_bytes(2, "big") + header + rest


def test_the_documented_block_is_read_byte_for_byte() -> None:
    payload = b"\x00\x68" + HEADER + CHECK + b"\x3d\xbb"

    assert parse_block(payload) == BlockReply("1", 200, "", 2, 1238848, CHECK)


def test_the_crc_is_the_documented_one() -> None:
    assert wire.crc16(CHECK) == 0xBB3D
    assert wire.crc16(b"") == 0


@given(st.binary(max_size=400))
def test_the_crc_is_that_of_the_definition(content: bytes) -> None:
    assert wire.crc16(content) == crc16_bit_by_bit(content)


def test_the_largest_block_is_read() -> None:
    content = bytes(range(256)) * 512

    assert parse_block(block_reply(content)).content == content


BLOCK_DIALECTS: dict[str, tuple[bytes, BlockReply]] = {
    "numbers as strings": (
        block_reply(CHECK, bSize="9", bOffset="5", fileLength="14"),
        BlockReply("1", 200, "", 5, 14, CHECK),
    ),
    "without the length of the whole": (block_reply(CHECK, fileLength=None), BlockReply("1", 200, "", 0, None, CHECK)),
    "without token": (block_reply(CHECK, fileToken=None), BlockReply("1", 200, "", 0, 1 << 20, CHECK)),
    "of one byte": (block_reply(b"\0"), BlockReply("1", 200, "", 0, 1 << 20, b"\0")),
    "bytes that look like text": (block_reply(b'{"id":'), BlockReply("1", 200, "", 0, 1 << 20, b'{"id":')),
    "refused, and nothing behind it": (
        framed(b'{"id":7,"code":400,"msg":"exceeded the limit 16 MB \\n"}'),
        BlockReply("7", 400, "exceeded the limit 16 MB \\n", 0, None, b""),
    ),
    "refused, and something behind it": (framed(b'{"code":"404"}', b"abc"), BlockReply("", 404, "", 0, None, b"")),
    "without code": (framed(b'{"id":"1","msg":5}'), BlockReply("1", None, "", 0, None, b"")),
}


@pytest.mark.parametrize(("payload", "reply"), BLOCK_DIALECTS.values(), ids=BLOCK_DIALECTS.keys())
def test_every_dialect_of_a_block_is_understood(payload: bytes, reply: BlockReply) -> None:
    assert parse_block(payload) == reply


# The time, and what goes wrong.


@pytest.mark.parametrize(
    "payload",
    [
        b'{"deviceSendTime":"1571724098000","serverRecvTime":"1571724098110","serverSendTime":"1571724098115"}',
        b'{"deviceSendTime":1571724098000,"serverRecvTime":1571724098110,"serverSendTime":1571724098115}',
    ],
)
def test_the_time_is_three_times(payload: bytes) -> None:
    assert wire.parse_ntp(payload) == (1571724098000, 1571724098110, 1571724098115)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"id":"1","code":520,"message":"no session","data":{"productKey":"a"}}', (520, "no session")),
        (b'{"code":"427"}', (427, "")),
        (b'{"code":null,"message":"a\\nb"}', (None, "a\\nb")),
        (b'{"code":true,"message":["x"]}', (None, "")),
        (b'{"code":1,"message":"https://a/b?k=s3cr3t is gone"}', (1, "https://a/b?... is gone")),
    ],
)
def test_an_error_is_a_code_and_a_text(payload: bytes, expected: tuple[int | None, str]) -> None:
    assert wire.parse_error(payload) == expected


# Registration.

SECRET = "c9c55aca4f8a0c6f1c1f5d0b8a3e7d21"
NAMES = b'"productKey":"a1simpk0001","deviceName":"gw001"'


def test_the_documented_registrations_are_understood() -> None:
    registered = Registered("a1simpk0001", "gw001", SECRET)
    body = b'"deviceSecret":"%s"' % SECRET.encode()
    assert wire.parse_registered(b"{%s,%s}" % (NAMES, body)) == registered
    assert wire.parse_registered(b"{%s}" % body) == Registered("", "", SECRET)
    answer = b'{"code":200,"data":{%s,%s},"message":"success"}' % (NAMES, body)
    assert wire.parse_registration_answer(answer) == registered


def test_the_documented_token_is_understood() -> None:
    payload = b'{%s,"clientId":"8r1jE2","deviceToken":"%s"}' % (NAMES, SECRET.encode())
    assert wire.parse_token(payload) == Token("a1simpk0001", "gw001", "8r1jE2", SECRET)


def test_a_certificate_tells_who_we_are() -> None:
    assert wire.parse_identity(b"{%s}" % NAMES) == ("a1simpk0001", "gw001")


def test_a_refused_registration_says_why() -> None:
    with pytest.raises(RegistrationRefused) as caught:
        wire.parse_registration_answer(b'{"code":6288,"message":"dynamic register is off","data":null}')

    assert (caught.value.code, caught.value.message) == (6288, "dynamic register is off")
    assert str(caught.value) == "code 6288: dynamic register is off"


def test_no_representation_shows_a_secret() -> None:
    values = [Registered("a", "b", SECRET), Token("a", "b", "c", SECRET), BlockReply("1", 200, "", 0, 9, CHECK)]

    assert SECRET not in repr(values)
    assert repr(CHECK) not in repr(values)


# What is the same offer.


def test_a_push_without_id_is_the_same_only_as_itself() -> None:
    first, other = (json.dumps({"data": changed(size=size)}).encode() for size in (1, 2))
    answers = [parse_upgrade(payload) for payload in (first, first, other)]

    assert answers[0].offer == answers[1].offer != answers[2].offer


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
FIELDS = [*GOOD, *OVER_MQTT, "md5", "module", "isDiff", "files", "extData", "digestsign"]
FILE_FIELDS = ["fileName", "fileSize", "fileSign", "fileUrl", "fileMd5", "digestsign"]


def parses(payload: bytes) -> None:
    """Every way ends in a value or in Unattributable, and whatever is said fits on one line."""
    said = []
    for parse in (
        parse_upgrade,
        lambda payload: parse_upgrade(payload, verify=Asked(None)),
        lambda payload: parse_get_reply(payload, "1", default_asked).answer,
        parse_block,
        lambda payload: parse_block(framed(payload[:65535], b"\0\0\0")),
        wire.parse_ntp,
        wire.parse_error,
        wire.parse_registered,
        wire.parse_registration_answer,
        wire.parse_token,
        wire.parse_identity,
    ):
        try:
            answer: Any = parse(payload)
        except (Unattributable, RegistrationRefused) as error:
            said.append(str(error))
        else:
            said.append(answer.failure.detail if isinstance(answer, Unusable) else "")
    assert "".join(said).isprintable()


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


@given(
    st.lists(st.dictionaries(st.sampled_from(FILE_FIELDS), json_values), max_size=3),
    st.dictionaries(st.sampled_from(FIELDS), json_values),
)
@settings(max_examples=300)
def test_any_package_of_several_files_is_survived(entries: list[dict[str, Any]], fields: dict[str, Any]) -> None:
    files = [{**entry(str(number)), **changes} for number, changes in enumerate(entries)]

    parses(push({**several(*files), **fields}))


@given(st.dictionaries(st.sampled_from(["id", "code", "msg", "data"]), json_values), st.binary(max_size=20))
@example({"code": 200, "data": {"bSize": 0, "bOffset": 0}}, b"\0\0")
def test_any_block_is_survived(header: dict[str, Any], rest: bytes) -> None:
    text = json.dumps({"code": 200, **header}).encode()

    parses(framed(text, rest))


@given(st.binary(max_size=60), st.data())
def test_a_block_with_any_bit_turned_is_no_block(content: bytes, data: st.DataObject) -> None:
    """The CRC sees each single bit; what is damaged in the text is seen, or says something else."""
    payload = bytearray(block_reply(content or b"x", fileLength=None))
    place = data.draw(st.integers(8 * (2 + int.from_bytes(payload[:2], "big")), 8 * len(payload) - 1))
    payload[place // 8] ^= 1 << place % 8

    with pytest.raises(Unattributable, match="CRC: "):
        parse_block(bytes(payload))
