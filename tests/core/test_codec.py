# SPDX-License-Identifier: Apache-2.0
"""The state file: what is written is read back, and anything else is refused by name of the place."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from otad.core.codec import BYTES_MAX, SCHEMA, StateError, decode, encode
from otad.core.model import (
    DEFAULT_MODULE,
    Board,
    BootId,
    Deployment,
    DeploymentId,
    Digest,
    DigestMethod,
    Ended,
    Identity,
    Inform,
    Notice,
    Origin,
    Outcome,
    Phase,
    PlaceKind,
    Refusal,
    Slot,
    SlotView,
    State,
    Step,
)
from otad.core.step import DETAIL_CHARACTERS, HONOURED_MAX, OUTBOX_MAX, REFUSALS_MAX, UNFILED_MAX
from otad.errors import Code, Failure

A, B = Slot("a"), Slot("b")
IDENTITY = Identity(DEFAULT_MODULE, "2.0-ü", 1 << 40, Digest(DigestMethod.MD5, "00ff"))
FAILURE = Failure(Code.HEALTH, 'health check "10-app": exit\nstatus 1')
ENDED = Ended(
    DeploymentId("64-1"), DEFAULT_MODULE, "2.0", Origin.LOCAL, Outcome.ROLLED_BACK, FAILURE, 100, 200, 9, 1, 2
)
FULL = State(
    known=True,
    serial=7,
    boot_id=BootId("boot-1"),
    board=Board(A, None, (SlotView(A, True, 3, True), SlotView(B, False, 0, None))),
    settled=BootId("boot-0"),
    deployment=Deployment(
        DeploymentId("c8-7"),
        Notice(IDENTITY, "https://x/2?Signature=1", Origin.PLATFORM),
        Phase.DOWNLOADING,
        A,
        B,
        200,
        3,
        run=4,
        place=PlaceKind.STAGING,
        checkpoint=1 << 33,
        etag='"abc"',
        joined=True,
        reason=FAILURE,
    ),
    outbox=(
        Step(5, DEFAULT_MODULE, -1, "why", IDENTITY),
        Inform(6, DEFAULT_MODULE),
        Step(7, DEFAULT_MODULE, -1, "", None),
    ),
    refusals=(Refusal("key", DEFAULT_MODULE, "1", -1, "why", FAILURE, 1, "offer", 2, 86400),),
    tainted=(B,),
    honoured=("push:1 default|2.0|9|-",),
    unfiled=(ENDED, replace(ENDED, failure=None)),
    last=ENDED,
)


def sealed(plain: Any, **members: Any) -> bytes:
    """A document around this state, with the right checksum."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps(
        {"schema": SCHEMA, "checksum": hashlib.sha256(text).hexdigest(), "state": plain, **members}
    ).encode()


def plain_of(state: State) -> Any:
    return json.loads(encode(state))["state"]


def altered(alter: Callable[[Any], None]) -> bytes:
    plain = plain_of(FULL)
    alter(plain)
    return sealed(plain)


@pytest.mark.parametrize("state", [State(), FULL], ids=["fresh", "full"])
def test_what_is_written_is_read_back(state: State) -> None:
    assert decode(encode(state)) == state


def test_a_document_is_json_with_schema_and_checksum_and_ends_with_a_newline() -> None:
    content = encode(FULL)

    assert list(json.loads(content)) == ["schema", "checksum", "state"]
    assert content.endswith(b"}\n")
    assert content.isascii()


def test_an_equal_state_is_an_equal_document() -> None:
    assert encode(decode(encode(FULL))) == encode(FULL)


def test_a_report_says_its_kind() -> None:
    assert [report["kind"] for report in plain_of(FULL)["outbox"]] == ["step", "inform", "step"]


def test_a_file_of_an_older_otad_lacks_keys_that_have_defaults() -> None:
    def older(plain: Any) -> None:
        for name in ("idle_starts", "by_hand", "online_before", "etag_url", "switched", "untried"):
            del plain["deployment"][name]
        del plain["tainted"], plain["honoured"]

    assert decode(altered(older)) == replace(FULL, tainted=(), honoured=())


def test_a_file_of_a_newer_otad_has_keys_that_are_passed_over() -> None:
    def newer(plain: Any) -> None:
        plain["holds"] = [{"kind": "window"}]
        plain["deployment"]["speed"] = 1.5
        plain["outbox"][0]["urgent"] = None

    assert decode(altered(newer)) == FULL


def test_a_code_of_a_newer_otad_is_unknown() -> None:
    def newer(plain: Any) -> None:
        plain["last"]["failure"]["code"] = "solar_flare"

    unknown = replace(FAILURE, code=Code.UNKNOWN)
    assert decode(altered(newer)) == replace(FULL, last=replace(ENDED, failure=unknown))


def test_the_largest_state_can_be_read_back() -> None:
    text = "\U0001f4a5"  # twelve characters of JSON each
    failure = Failure(Code.UNSUPPORTED, text * DETAIL_CHARACTERS)
    identity = replace(IDENTITY, version="v" * 64)
    ended = replace(ENDED, failure=failure, version="v" * 64)
    assert FULL.deployment is not None
    largest = replace(
        FULL,
        deployment=replace(FULL.deployment, reason=failure, notice=Notice(identity, "https://x/" + "y" * 8192)),
        outbox=tuple(Step(n, DEFAULT_MODULE, -1, text * 128, identity) for n in range(OUTBOX_MAX)),
        refusals=tuple(
            Refusal(f"{n}", DEFAULT_MODULE, "v" * 64, -1, text * 128, failure, 0, "o" * 256)
            for n in range(REFUSALS_MAX)
        ),
        honoured=(text * 64 + identity.key,) * HONOURED_MAX,
        unfiled=(ended,) * UNFILED_MAX,
        last=ended,
    )

    assert decode(encode(largest)) == largest


def at(*path: str | int) -> Callable[[Any, Any], None]:
    def put(plain: Any, value: Any) -> None:
        for key in path[:-1]:
            plain = plain[key]
        plain[path[-1]] = value

    return put


WRONG_TYPES: list[tuple[str, Any, str]] = [
    ("known", 1, "state.known: 1: not of type bool"),
    ("serial", True, "state.serial: True: not of type int"),
    ("serial", 7.0, "state.serial: 7.0: not of type int"),
    ("serial", None, "state.serial: None: not of type int"),
    ("serial", "7", "state.serial: '7': not of type int"),
    ("boot_id", 1, "state.boot_id: 1: not of type str"),
    ("board", [], "state.board: not an object"),
    ("board.slots", {}, "state.board.slots: not an array"),
    ("board.slots", None, "state.board.slots: not an array"),
    ("board.slots.1", "b", "state.board.slots[1]: not an object"),
    ("board.slots.1.good", "yes", "state.board.slots[1].good: 'yes': not of type bool"),
    ("board.slots.1.confirmed", 0, "state.board.slots[1].confirmed: 0: not of type bool"),
    ("deployment", "c8-7", "state.deployment: not an object"),
    ("deployment.phase", "dreaming", "state.deployment.phase: 'dreaming': none of the words of Phase"),
    ("deployment.phase", ["x"], "state.deployment.phase: ['x']: not of type Phase"),
    ("deployment.phase", None, "state.deployment.phase: None: not of type Phase"),
    ("deployment.place", "moon", "state.deployment.place: 'moon': none of the words of PlaceKind"),
    ("deployment.notice.origin", "hell", "state.deployment.notice.origin: 'hell': none of the words of Origin"),
    ("deployment.notice.identity", None, "state.deployment.notice.identity: not an object"),
    ("deployment.notice.identity.digest", [], "state.deployment.notice.identity.digest: not an object"),
    ("deployment.notice.identity.digest.method", "crc", "method: 'crc': none of the words of DigestMethod"),
    ("deployment.reason.code", 5, "state.deployment.reason.code: 5: not of type Code"),
    ("deployment.reason.detail", {}, "state.deployment.reason.detail: {}: not of type str"),
    ("outbox", None, "state.outbox: not an array"),
    ("outbox.0", None, "state.outbox[0]: kind None is none of step, inform"),
    ("outbox.0", [], "state.outbox[0]: kind None is none of step, inform"),
    ("outbox.0.kind", "love letter", "state.outbox[0]: kind 'love letter' is none of step, inform"),
    ("outbox.0.kind", [], "state.outbox[0]: kind [] is none of step, inform"),
    ("outbox.0.step", "-1", "state.outbox[0].step: '-1': not of type int"),
    ("refusals.0.lapses", "never", "state.refusals[0].lapses: 'never': not of type int"),
    ("tainted.0", 1, "state.tainted[0]: 1: not of type str"),
    ("honoured.0", None, "state.honoured[0]: None: not of type str"),
    ("unfiled.1.outcome", "meh", "state.unfiled[1].outcome: 'meh': none of the words of Outcome"),
    ("last.began", 1.5, "state.last.began: 1.5: not of type int"),
]


@pytest.mark.parametrize(("where", "value", "words"), WRONG_TYPES, ids=[f"{w} = {v!r}" for w, v, _ in WRONG_TYPES])
def test_a_wrong_type_is_named_with_its_place(where: str, value: Any, words: str) -> None:
    path = [int(key) if key.isdigit() else key for key in where.split(".")]

    with pytest.raises(StateError) as caught:
        decode(altered(lambda plain: at(*path)(plain, value)))

    assert str(caught.value).endswith(words)


REQUIRED = [
    ("board", "booted"),
    ("board", "slots"),
    ("deployment", "id"),
    ("deployment", "phase"),
    ("deployment", "notice"),
    ("last", "outcome"),
]


@pytest.mark.parametrize(("of", "name"), REQUIRED)
def test_a_missing_key_is_named_with_its_place(of: str, name: str) -> None:
    with pytest.raises(StateError, match=rf"state\.{of}: .*'{name}'"):
        decode(altered(lambda plain: plain[of].pop(name)))


def test_every_key_of_the_state_has_a_default() -> None:
    assert decode(sealed({})) == State()
    assert len(fields(State)) == len(plain_of(State()))


DAMAGED = [
    ("empty", b"", "state: "),
    ("not UTF-8", b"\xff\xfe{}", "state: "),
    ("UTF-16", encode(FULL).decode().encode("utf-16"), "state: "),
    ("a byte order mark", b"\xef\xbb\xbf" + encode(FULL), "state: "),
    ("not JSON", b"IMAGE_VERSION=1\n", "state: "),
    ("cut off", encode(FULL)[:-20], "state: "),
    ("two documents", encode(FULL) * 2, "state: "),
    ("zeros, as a torn page leaves them", bytes(4096), "state: "),
    ("an array", b"[]", "state: not a JSON object"),
    ("a word", b"null", "state: not a JSON object"),
    ("too long", b" " * (BYTES_MAX + 1), f"state: {BYTES_MAX + 1} bytes: more than {BYTES_MAX}"),
    ("deep arrays", b'{"schema": 1, "state": ' + b"[" * 100_000, "state: "),
    ("deep objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "state: "),
    ("deep, but whole", b'{"schema": 1, "state": ' + b"[" * 400 + b"]" * 400 + b"}", "checksum: "),
    ("a number of 5000 digits", b'{"schema": 1, "state": ' + b"9" * 5000 + b"}", "state: "),
    ("NaN", encode(FULL).replace(b'"serial": 7', b'"serial": NaN'), "state: "),
    ("Infinity", encode(FULL).replace(b'"serial": 7', b'"serial": -Infinity'), "state: "),
    ("a number too large for a float", encode(FULL).replace(b'"serial": 7', b'"serial": 1e999'), "state: "),
    ("no schema", sealed(plain_of(FULL), schema=None), "schema: None: this otad reads 1"),
    ("another schema", sealed(plain_of(FULL), schema=2), "schema: 2: this otad reads 1"),
    ("true for a schema", sealed(plain_of(FULL), schema=True), "schema: True: this otad reads 1"),
    ("a text for a schema", sealed(plain_of(FULL), schema="1" * 500), f"schema: '{'1' * 39}: this otad reads 1"),
    ("no checksum", sealed(plain_of(FULL), checksum=None), "checksum: does not match"),
    ("another checksum", sealed(plain_of(FULL), checksum="00"), "checksum: does not match"),
    ("a changed value", encode(FULL).replace(b'"serial": 7', b'"serial": 8'), "checksum: does not match"),
    ("a key twice", encode(FULL).replace(b'"serial": 7', b'"serial": 7, "serial": 8'), "checksum: does not match"),
    ("no state", b'{"schema": 1, "checksum": "x"}', "checksum: does not match"),
    ("null for a state", sealed(None), "state: not an object"),
    ("an array for a state", sealed([]), "state: not an object"),
]


@pytest.mark.parametrize(("content", "words"), [row[1:] for row in DAMAGED], ids=[row[0] for row in DAMAGED])
def test_a_damaged_document_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(StateError) as caught:
        decode(content)

    assert str(caught.value).startswith(words)
    assert len(str(caught.value)) < 250


def test_any_single_damaged_byte_is_noticed() -> None:
    content = encode(FULL)
    for position, byte in enumerate(content):
        damaged = content[:position] + bytes([byte ^ 0x01]) + content[position + 1 :]
        try:
            state = decode(damaged)
        except StateError:
            continue
        # White space and the case of an escape may differ: it is the same document.
        assert state == FULL
