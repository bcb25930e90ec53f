# SPDX-License-Identifier: Apache-2.0
"""A package from a local file."""

import asyncio
import os
from pathlib import Path

import pytest
from transfer_world import BEHIND, IMAGE, Gateway

from otad.core.model import PlaceKind
from otad.errors import Code, UpdateError
from otad.transfer.file import FileSource
from otad.transfer.source import Begin


async def test_a_file_is_brought_to_the_slot(tmp_path: Path, gateway: Gateway) -> None:
    (tmp_path / "image").write_bytes(IMAGE)

    assert await gateway.download(FileSource(tmp_path / "image")) == PlaceKind.SLOT
    assert gateway.places.slot.read_bytes() == IMAGE + BEHIND
    assert gateway.deployment.fetched == 0  # nothing came over the network
    assert not gateway.deployment.joined


async def test_a_file_goes_on_at_an_offset(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "image").write_bytes(content)
    pieces = [p async for p in FileSource(tmp_path / "image").pieces(Begin(1_234_567, 3_000_000), lambda _: None)]

    assert b"".join(piece.content for piece in pieces) == content[1_234_567:]
    assert [piece.first for piece in pieces] == [True, False]


async def _missing(path: Path) -> None: ...


async def _directory(path: Path) -> None:
    path.mkdir()


async def _fifo(path: Path) -> None:
    os.mkfifo(path)


async def _short(path: Path) -> None:
    path.write_bytes(IMAGE[:-1])


async def _long(path: Path) -> None:
    path.write_bytes(IMAGE + b"!")


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (_missing, Code.MEDIUM, "No such file"),
        (_directory, Code.MEDIUM, "directory"),
        (_fifo, Code.CONTENT, "not a regular file"),
        (_short, Code.CONTENT, "has 300006 bytes, the notice says 300007"),
        (_long, Code.CONTENT, "has 300008 bytes, the notice says 300007"),
    ],
)
async def test_a_file_that_is_none(make: object, code: Code, words: str, tmp_path: Path, gateway: Gateway) -> None:
    await make(tmp_path / "image")  # type: ignore[operator]

    with pytest.raises(UpdateError, match=words) as caught:
        await asyncio.wait_for(gateway.download(FileSource(tmp_path / "image")), 5)

    assert caught.value.failure.code == code
    assert str(tmp_path / "image") in str(caught.value)
