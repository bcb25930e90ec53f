# SPDX-License-Identifier: Apache-2.0
"""Signatures: what openssl signs is believed, and nothing else is."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from otad.cloud.cloud import Offered, Unusable
from otad.cloud.trust import SignatureKey
from otad.cloud.wire import parse_get_reply, parse_upgrade
from otad.core.model import DEFAULT_MODULE, Digest, DigestMethod
from otad.core.step import step_for
from otad.errors import Code, Failure, UpdateError

SHA256 = Digest(DigestMethod.SHA256, "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")
OTHER = Digest(DigestMethod.SHA256, SHA256.hex[::-1])
MD5 = Digest(DigestMethod.MD5, "098f6bcd4621d373cade4e832627b4f6")
KEY = "trust.digestsign_key_file"


@dataclass(frozen=True)
class Owner:
    """A key pair, and signatures made with it by a program that has no code in common with ours."""

    private: Path
    public: Path

    def signature(self, message: bytes, *options: str) -> bytes:
        command = ["openssl", "dgst", *(options or ("-sha256",)), "-sign", str(self.private)]
        return subprocess.run(command, input=message, capture_output=True, check=True).stdout

    def signs(self, digest: Digest, *options: str) -> str:
        return base64.b64encode(self.signature(bytes.fromhex(digest.hex), *options)).decode()


def made(directory: Path, name: str, algorithm: str, option: str) -> Owner:
    private, public = directory / f"{name}.pem", directory / f"{name}.pub.pem"
    make = ["openssl", "genpkey", "-algorithm", algorithm, "-pkeyopt", option, "-out", str(private)]
    subprocess.run(make, capture_output=True, check=True)
    show = ["openssl", "pkey", "-in", str(private), "-pubout", "-out", str(public)]
    subprocess.run(show, capture_output=True, check=True)
    return Owner(private, public)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def owner(keys: Path) -> Owner:
    return made(keys, "owner", "RSA", "rsa_keygen_bits:2048")


@pytest.fixture(scope="module")
def stranger(keys: Path) -> Owner:
    return made(keys, "stranger", "RSA", "rsa_keygen_bits:2048")


# Believed.


@pytest.mark.parametrize("digest", [SHA256, MD5], ids=["SHA256", "MD5"])
def test_the_owners_signature_over_the_raw_digest_is_believed(owner: Owner, digest: Digest) -> None:
    SignatureKey(owner.public).verify(digest, owner.signs(digest))


@pytest.mark.parametrize("bits", [2050, 3072, 4096])
def test_a_longer_key_is_believed(tmp_path: Path, bits: int) -> None:
    longer = made(tmp_path, "longer", "RSA", f"rsa_keygen_bits:{bits}")

    SignatureKey(longer.public).verify(SHA256, longer.signs(SHA256))


def test_a_key_put_right_is_believed_at_once(owner: Owner, tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    key, signature = SignatureKey(file), owner.signs(SHA256)
    with pytest.raises(UpdateError):
        key.verify(SHA256, signature)

    file.write_bytes(owner.public.read_bytes())

    key.verify(SHA256, signature)


# Refused: signatures. Each is made from the good one, its base64, by somebody without the owner's key.


def turned(signature: str, place: int) -> str:
    content = bytearray(base64.b64decode(signature))
    content[place] ^= 1
    return base64.b64encode(content).decode()


def cut(signature: str, start: int, end: int) -> str:
    return base64.b64encode(base64.b64decode(signature)[start:end]).decode()


NOT_BY = f"digestsign: not by the key of {KEY} for this digest"
MISSING = f"digestsign: missing: {KEY} asks for one"
LENGTH = f"bytes: must be 256, as the key of {KEY}"
REFUSED: dict[str, tuple[Callable[[str, Owner, Owner], str | None], str]] = {
    "missing": (lambda good, *_: None, MISSING),
    "empty": (lambda good, *_: "", MISSING),
    "white space": (lambda good, *_: " ", "digestsign: not base64"),
    "a word": (lambda good, *_: "good", f"digestsign: 3 {LENGTH}"),
    "not base64": (lambda good, *_: "?" * 344, "digestsign: not base64"),
    "not ASCII": (lambda good, *_: "ä" * 344, "digestsign: not base64"),
    "half a character": (lambda good, *_: "\ud800", "digestsign: not base64"),
    "wide letters": (lambda good, *_: "Ａ" * 344, "digestsign: not base64"),
    "URL-safe base64": (
        lambda good, *_: base64.urlsafe_b64encode(b"\xff" * 256).decode(),
        "digestsign: not base64",
    ),
    "hexadecimal": (lambda good, *_: base64.b64decode(good).hex(), f"digestsign: 384 {LENGTH}"),
    "without padding": (lambda good, *_: good.rstrip("="), "digestsign: not base64"),
    "more padding": (lambda good, *_: good + "=", "digestsign: not base64"),
    "a newline behind": (lambda good, *_: good + "\n", "digestsign: not base64"),
    "newlines within": (lambda good, *_: good[:64] + "\n" + good[64:], "digestsign: not base64"),
    "a NUL behind": (lambda good, *_: good + "\0", "digestsign: not base64"),
    "letters behind": (lambda good, *_: good + "AAAA", "digestsign: not base64"),
    "unused bits": (
        lambda good, *_: base64.b64encode(bytes(256))[:-3].decode() + "B==",
        "digestsign: not base64",
    ),
    "one byte short": (lambda good, *_: cut(good, 0, 255), f"digestsign: 255 {LENGTH}"),
    "one byte long": (
        lambda good, *_: base64.b64encode(b"\0" + base64.b64decode(good)).decode(),
        f"digestsign: 257 {LENGTH}",
    ),
    "one byte": (lambda good, *_: "AA==", f"digestsign: 1 {LENGTH}"),
    "twice": (lambda good, *_: base64.b64encode(base64.b64decode(good) * 2).decode(), "digestsign: 512"),
    "zeros": (lambda good, *_: base64.b64encode(bytes(256)).decode(), NOT_BY),
    "one": (lambda good, *_: base64.b64encode(bytes(255) + b"\1").decode(), NOT_BY),
    "all bits": (lambda good, *_: base64.b64encode(b"\xff" * 256).decode(), NOT_BY),
    "first bit turned": (lambda good, *_: turned(good, 0), NOT_BY),
    "last bit turned": (lambda good, *_: turned(good, -1), NOT_BY),
    "backwards": (lambda good, *_: base64.b64encode(base64.b64decode(good)[::-1]).decode(), NOT_BY),
    "by another key": (lambda good, owner, stranger: stranger.signs(SHA256), NOT_BY),
    "for another package": (lambda good, owner, stranger: owner.signs(OTHER), NOT_BY),
    "for its MD5": (lambda good, owner, stranger: owner.signs(MD5), NOT_BY),
    "over the digest's text": (
        lambda good, owner, stranger: base64.b64encode(owner.signature(SHA256.hex.encode())).decode(),
        NOT_BY,
    ),
    "over the package itself": (
        lambda good, owner, stranger: base64.b64encode(owner.signature(b"test")).decode(),
        NOT_BY,
    ),
    "with SHA-1": (lambda good, owner, stranger: owner.signs(SHA256, "-sha1"), NOT_BY),
    "with SHA-512": (lambda good, owner, stranger: owner.signs(SHA256, "-sha512"), NOT_BY),
    "with PSS": (
        lambda good, owner, stranger: owner.signs(SHA256, "-sha256", "-sigopt", "rsa_padding_mode:pss"),
        NOT_BY,
    ),
    "very long": (lambda good, *_: "A" * 200_000, "digestsign: 150000 bytes"),
}


@pytest.mark.parametrize(("forged", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_nothing_else_is_believed(
    owner: Owner, stranger: Owner, forged: Callable[[str, Owner, Owner], str | None], says: str
) -> None:
    signature = forged(owner.signs(SHA256), owner, stranger)

    with pytest.raises(UpdateError) as caught:
        SignatureKey(owner.public).verify(SHA256, signature)

    failure = caught.value.failure
    assert (failure.code, step_for(failure)) == (Code.SIGNATURE, -3)
    assert failure.detail.startswith(says)


# Refused: keys. The signature is good; what it would have to be compared with is not.


def is_gone(file: Path, owner: Owner) -> None:
    assert not file.exists()


def is_empty(file: Path, owner: Owner) -> None:
    file.write_bytes(b"")


def is_a_directory(file: Path, owner: Owner) -> None:
    file.mkdir()


def is_a_pipe(file: Path, owner: Owner) -> None:
    os.mkfifo(file)


def is_a_link_to_nothing(file: Path, owner: Owner) -> None:
    file.symlink_to("nothing")


def is_cut_short(file: Path, owner: Owner) -> None:
    file.write_bytes(owner.public.read_bytes()[:300])


def is_text(file: Path, owner: Owner) -> None:
    file.write_text("-----BEGIN PUBLIC KEY-----\nhello\n-----END PUBLIC KEY-----\n")


def is_binary(file: Path, owner: Owner) -> None:
    file.write_bytes(bytes(range(256)))


def is_the_private_key(file: Path, owner: Owner) -> None:
    file.write_bytes(owner.private.read_bytes())


def is_too_short(file: Path, owner: Owner) -> None:
    file.write_bytes(made(file.parent, "short", "RSA", "rsa_keygen_bits:2046").public.read_bytes())


def is_far_too_short(file: Path, owner: Owner) -> None:
    file.write_bytes(made(file.parent, "short", "RSA", "rsa_keygen_bits:1024").public.read_bytes())


def is_of_a_curve(file: Path, owner: Owner) -> None:
    file.write_bytes(made(file.parent, "curve", "EC", "ec_paramgen_curve:P-256").public.read_bytes())


def is_of_an_unknown_curve(file: Path, owner: Owner) -> None:
    file.write_bytes(made(file.parent, "curve", "EC", "ec_paramgen_curve:prime239v1").public.read_bytes())


KEYS: dict[str, tuple[Callable[[Path, Owner], None], str]] = {
    "gone": (is_gone, "No such file or directory"),
    "empty": (is_empty, "not a public key in PEM"),
    "a directory": (is_a_directory, "not a regular file"),
    "a pipe": (is_a_pipe, "not a regular file"),
    "a link to nothing": (is_a_link_to_nothing, "No such file or directory"),
    "cut short": (is_cut_short, "not a public key in PEM"),
    "text": (is_text, "not a public key in PEM"),
    "binary": (is_binary, "not a public key in PEM"),
    "the private key": (is_the_private_key, "not a public key in PEM"),
    "too short": (is_too_short, "2046 bits: must have 2048 at least"),
    "far too short": (is_far_too_short, "1024 bits: must have 2048 at least"),
    "of a curve": (is_of_a_curve, "not an RSA key"),
    "of an unknown curve": (is_of_an_unknown_curve, "not a public key in PEM"),
}


@pytest.mark.parametrize(("spoilt", "says"), KEYS.values(), ids=KEYS.keys())
def test_a_key_that_cannot_be_used_refuses_and_is_blamed_itself(
    owner: Owner, tmp_path: Path, spoilt: Callable[[Path, Owner], None], says: str
) -> None:
    file = tmp_path / "key.pem"
    spoilt(file, owner)

    with pytest.raises(UpdateError) as caught:
        SignatureKey(file).verify(SHA256, owner.signs(SHA256))

    assert caught.value.failure == Failure(Code.SIGNATURE, f"trust.digestsign_key_file: {file}: {says}")


# In a notice.

URL = "https://ota.example.com/a?auth_key=s3cr3t"
CONTENT = {"size": 4, "version": "1.1", "url": URL, "sign": SHA256.hex, "signMethod": "SHA256"}


def push(content: dict[str, Any]) -> bytes:
    return json.dumps({"code": "1000", "data": content, "id": 7}).encode()


def test_a_signed_notice_is_an_offer_pushed_or_asked_for(owner: Owner) -> None:
    verify, payload = SignatureKey(owner.public).verify, push({**CONTENT, "digestsign": owner.signs(SHA256)})
    pushed = parse_upgrade(payload, verify=verify)
    asked = parse_get_reply(payload, "1", lambda _: DEFAULT_MODULE, verify=verify)

    assert isinstance(pushed, Offered)
    assert isinstance(asked.answer, Offered)


def test_a_notice_of_several_files_needs_a_signature_for_each(owner: Owner) -> None:
    files = [
        {"fileName": digest.hex[:4], "fileSize": 1, "fileSign": digest.hex, "fileUrl": URL, "digestSign": signature}
        for digest, signature in ((SHA256, owner.signs(SHA256)), (OTHER, owner.signs(OTHER)))
    ]
    verify = SignatureKey(owner.public).verify

    def answer(*entries: dict[str, Any], **fields: Any) -> Offered | Unusable:
        content = {"version": "1.1", "signMethod": "SHA256", "files": list(entries), **fields}
        return parse_upgrade(push(content), verify=verify)

    def refusal(answer: Offered | Unusable) -> Failure:
        assert isinstance(answer, Unusable)
        return answer.failure

    unsigned = {key: value for key, value in files[1].items() if key != "digestSign"}
    swapped = {**files[1], "digestSign": files[0]["digestSign"]}
    of_the_whole = {"digestsign": files[0]["digestSign"]}
    assert isinstance(answer(*files), Offered)
    assert refusal(answer(files[0], unsigned)) == Failure(Code.SIGNATURE, f"files[1]: {MISSING}")
    assert refusal(answer(files[0], unsigned, **of_the_whole)) == Failure(Code.SIGNATURE, f"files[1]: {MISSING}")
    assert refusal(answer(files[0], swapped)) == Failure(Code.SIGNATURE, f"files[1]: {NOT_BY}")


def test_a_refusal_is_known_again_by_what_it_refused(owner: Owner, stranger: Owner, tmp_path: Path) -> None:
    """The same with a fresh URL; another one with another signature, and where our own key is at fault."""
    file = tmp_path / "key.pem"

    def key(signature: str, url: str = URL) -> str:
        content = {**CONTENT, "digestsign": signature, "url": url}
        answer = parse_upgrade(push(content), verify=SignatureKey(file).verify)
        assert isinstance(answer, Unusable)
        return answer.key

    signature = stranger.signs(SHA256)
    without_key = key(signature)
    file.write_bytes(owner.public.read_bytes())

    assert key(signature) == key(signature, URL + "0")
    assert len({without_key, key(signature), key(owner.signs(OTHER))}) == 3


def test_the_library_is_loaded_only_for_a_signature() -> None:
    code = (
        "import sys; from pathlib import Path; from otad.cloud.trust import SignatureKey\n"
        "import otad.cloud.wire; SignatureKey(Path('/x'))\n"
        "sys.exit('cryptography' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
