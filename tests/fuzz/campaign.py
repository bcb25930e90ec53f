#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A coverage-guided campaign against one parser, by atheris. Started by `tests/fuzz/run`, and by itself when it merges.

    OTAD_FUZZ_PARSER=NAME OTAD_FUZZ_FINDINGS=DIRECTORY campaign.py [what libFuzzer takes: directories, options]

The first input that raises something at some place is put into DIRECTORY, with its traceback on stdout, and the
campaign goes on. Only what takes too long ends it, by libFuzzer.

Half of the changes to an input that is JSON are made to the document rather than to its bytes, so that they come
through the reader of JSON; and after half of those to a tar, the checksums of its headers are made right.
"""

import json
import os
import random
import sys
import traceback
from pathlib import Path
from typing import Any

import atheris

# Of the standard library what reads bytes for us, in Python.
with atheris.instrument_imports(include=["otad", "email", "http.client", "tarfile", "tomllib", "zipfile"]):
    from tests.fuzz import harness

JSON_BYTES_MAX = 8192
WORDS: tuple[Any, ...] = (
    *("id", "code", "message", "msg", "data", "params", "version", "module", "default", "size", "url", "sign", "md5"),
    *("signMethod", "Md5", "SHA256", "isDiff", "dProtocol", "mqtt", "https", "streamId", "streamFileId", "extData"),
    *("files", "fileSize", "fileName", "fileUrl", "fileMd5", "fileSign", "digestsign", "bSize", "bOffset"),
    *("fileLength", "fileToken", "fileInfo", "fileBlock", "fileId", "offset", "step", "desc", "deviceSendTime"),
    *("serverRecvTime", "serverSendTime", "productKey", "deviceName", "deviceSecret", "clientId", "deviceToken"),
    *("method", "parameters", "oneway", "more", "upgrade", "io.otad.Update.Install", "org.varlink.service.GetInfo"),
    *("sha256", "schema", "checksum", "state", "kind", "inform", "obtained_for", "product_key", "device_name"),
    *("device_secret", "client_id", "device_token", "floor", "utc", "deployment", "notice", "outbox", "success"),
    *(
        harness.SECRET,
        "http://127.0.0.1/x?auth_key=1",
        "https://[::1]/",
        "file:///etc/passwd",
        "a" * 64,
        "ab" * 16,
        "ab" * 32,
    ),
    *("\ud800", "\0", "\n", "", "../x", "é" * 300, "9" * 400, "none upgrade operation of the device."),
    *(0, 1, -1, 200, 1000, 500, 2**31, 2**63, 2**64, 10**30, 1.5, 1e308, float("inf"), True, False, None, [], {}),
)


def changed(content: bytes, max_size: int, seed: int) -> bytes:
    """libFuzzer's change of the bytes, or one of the JSON document that they are."""
    chance = random.Random(seed)
    if chance.random() < 0.5 and len(content) <= JSON_BYTES_MAX:
        begin = max(content.find(b"{"), 0)  # a parser's input may begin with a byte or two of its own
        try:
            document = json.loads(content[begin:])
            for _ in range(chance.randint(1, 4)):
                document = change(document, chance)
            text = json.dumps(document, ensure_ascii=chance.random() < 0.5)
            return (content[:begin] + text.encode(errors="surrogatepass"))[:max_size]
        except (ValueError, RecursionError):
            pass
    return bytes(atheris.Mutate(content, max_size))


def changed_tar(content: bytes, max_size: int, seed: int) -> bytes:
    """libFuzzer's change of the bytes; where a tar's headers are, they are counted anew."""
    after = bytearray(atheris.Mutate(content, max_size))
    if seed % 2:
        for at in range(0, len(after) - 511, 512):
            if after[at + 257 : at + 262] == b"ustar":
                after[at + 148 : at + 156] = b" " * 8  # the checksum counts its own field as spaces
                after[at + 148 : at + 156] = b"%06o\0 " % sum(after[at : at + 512])
    return bytes(after)


def change(value: Any, chance: random.Random) -> Any:
    """The document with one thing changed, somewhere in it."""
    if isinstance(value, dict | list) and value and chance.random() < 0.8:
        return _change_within(value, chance)
    match chance.randrange(4):
        case 0:
            return {**value, str(chance.choice(WORDS)): chance.choice(WORDS)} if isinstance(value, dict) else [value]
        case 1 if isinstance(value, str):
            return value + str(chance.choice(WORDS))
        case 2 if type(value) is int:
            return value + chance.choice((-1, 1, 255, -value))
        case _:
            return chance.choice(WORDS)


def _change_within(value: dict[str, Any] | list[Any], chance: random.Random) -> Any:
    copy: Any = value.copy()
    key = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
    match chance.randrange(6):
        case 0:
            del copy[key]
        case 1 if isinstance(copy, dict):
            copy[str(chance.choice(WORDS))] = copy[key]
        case 1:
            copy.append(copy[key])
        case _:
            copy[key] = change(copy[key], chance)
    return copy


def main() -> None:
    parser = os.environ["OTAD_FUZZ_PARSER"]
    findings = Path(os.environ["OTAD_FUZZ_FINDINGS"])
    # When it merges, what raises is to end the process: then libFuzzer leaves it out.
    goes_on = not any(argument.startswith("-merge") for argument in sys.argv)
    known: set[str] = set()

    def once(content: bytes) -> None:
        try:
            harness.fed(parser, content)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            finding = f"{type(error).__name__}-{Path(place.filename).stem}-{place.lineno}"
            if not goes_on:
                raise
            if finding not in known:
                known.add(finding)
                (findings / finding).write_bytes(content)
                print(f"FOUND {findings / finding}: {content[:400]!r}")
                traceback.print_exception(error, file=sys.stdout)
                sys.stdout.flush()

    mutator = changed_tar if parser in harness.BINARY else changed
    atheris.Setup(sys.argv, once, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
