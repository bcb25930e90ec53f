# SPDX-License-Identifier: Apache-2.0
"""Packages of several files: one row of bytes, a URL and a digest for each, and what a fault of one means."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transfer_world import (
    BEHIND,
    IMAGE,
    QUICK,
    Gateway,
    Places,
    Platform,
    WebServer,
    deployment_of,
    offered,
    package_of,
    part,
    status,
)

from otad.core.model import NO_SLOT, Artifact, Deployment, DigestMethod, PlaceKind
from otad.errors import Code, UpdateError
from otad.transfer.download import RANGE_BYTES, _Proof
from otad.transfer.source import Begin, Source
from otad.transfer.sources import Sources

FILES = [random.Random(n).randbytes(size) for n, size in enumerate((100_001, 3, 200_000, 70_007))]
ALL = b"".join(FILES)
STARTS = [0, 100_001, 100_004, 300_004]


@pytest.fixture
def package(server: WebServer, gateway: Gateway) -> Gateway:
    """A gateway that is to bring FILES from the server."""
    serve(server, gateway, FILES)
    return gateway


def serve(
    server: WebServer, gateway: Gateway, contents: Sequence[bytes], method: DigestMethod = DigestMethod.SHA256
) -> None:
    server.files = {f"/{k}": content for k, content in enumerate(contents)}
    gateway.deployment = package_of(contents, method, server.url)
    gateway.is_raw = lambda head: pytest.fail("several files are for the staging file without a question")


def source_of(gateway: Gateway, platform: Platform | None = None) -> Source:
    return Sources(QUICK, platform or Platform(), lambda deployment: deployment.notice).of(gateway.deployment)


async def bring(gateway: Gateway, platform: Platform | None = None) -> PlaceKind:
    return await asyncio.wait_for(gateway.download(source_of(gateway, platform)), 20)


async def fails(gateway: Gateway, platform: Platform | None = None) -> UpdateError:
    with pytest.raises(UpdateError) as caught:
        await bring(gateway, platform)
    return caught.value


def requested(server: WebServer) -> list[tuple[str, int]]:
    return list(zip(server.paths, server.starts, strict=True))


def with_digest_of(deployment: Deployment, number: int, other: int) -> Deployment:
    """As if this file were to be another one."""
    files = list(deployment.notice.files)
    files[number] = replace(files[number], digest=files[other].digest)
    return replace(deployment, notice=replace(deployment.notice, files=tuple(files)))


# ---------------------------------------------------------------------------------------------- all goes well


@pytest.mark.parametrize("method", DigestMethod)
async def test_the_files_land_in_a_row_in_the_staging_file(
    method: DigestMethod, server: WebServer, gateway: Gateway
) -> None:
    serve(server, gateway, FILES, method)

    assert await bring(gateway) == PlaceKind.STAGING
    assert gateway.places.opened == [PlaceKind.STAGING]
    assert gateway.places.staging.read_bytes() == ALL
    assert requested(server) == [("/0", 0), ("/1", 0), ("/2", 0), ("/3", 0)]


async def test_where_a_file_begins_nothing_is_joined(package: Gateway) -> None:
    """Else a package with a wrong digest would be fetched twice, and status would count resumes that were none."""
    await bring(package)

    assert (package.deployment.joined, package.deployment.resumed) == (False, 0)
    assert package.deployment.fetched == len(ALL)


@pytest.mark.parametrize("unpack", [False, True])
@pytest.mark.parametrize("content", [FILES[:1], FILES])
async def test_what_is_installed_in_place_is_staged_also_where_nothing_is_unpacked(
    content: list[bytes], unpack: bool, server: WebServer, gateway: Gateway
) -> None:
    serve(server, gateway, content)
    gateway.deployment = replace(gateway.deployment, target=NO_SLOT, old=NO_SLOT)
    gateway.unpack = unpack

    assert await bring(gateway) == PlaceKind.STAGING
    assert gateway.places.staging.read_bytes() == b"".join(content)
    assert gateway.places.slot.read_bytes().endswith(BEHIND)
    assert gateway.places.slot.read_bytes()[:8] == b"\xee" * 8


async def test_one_file_for_the_slot_goes_to_the_slot(server: WebServer, gateway: Gateway) -> None:
    gateway.deployment = deployment_of(url=server.url())

    assert await bring(gateway) == PlaceKind.SLOT


@pytest.mark.parametrize(
    "sizes",
    [
        [RANGE_BYTES, RANGE_BYTES],
        [RANGE_BYTES - 1, 1, RANGE_BYTES + 1],
        [1, 2 * RANGE_BYTES, 1],
        [RANGE_BYTES + 4095, 3 * RANGE_BYTES - 7],
        [1] * 20,
        [32 << 10, 32 << 10, 1],
    ],
    ids=str,
)
async def test_files_end_anywhere(sizes: list[int], server: WebServer, gateway: Gateway) -> None:
    contents = [random.Random(size + at).randbytes(size) for at, size in enumerate(sizes)]
    serve(server, gateway, contents)
    await bring(gateway)
    assert gateway.places.staging.read_bytes() == b"".join(contents)

    for number in range(len(sizes)):
        gateway.deployment = package_of(contents, url=server.url)
        files = list(gateway.deployment.notice.files)
        files[number] = replace(files[number], digest=package_of([b"another"]).notice.files[0].digest)
        gateway.deployment = replace(gateway.deployment, notice=replace(gateway.deployment.notice, files=tuple(files)))
        error = await fails(gateway)
        assert error.failure.code == Code.DIGEST
        assert str(error).startswith(f"file {number} in the staging file: sha256 is ")


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=6), step=st.integers(1, 60), wrong=st.integers(0, 9))
def test_a_proof_splits_at_the_files_ends_however_it_is_fed(sizes: list[int], step: int, wrong: int) -> None:
    contents = [bytes([at]) * size for at, size in enumerate(sizes)]
    artifacts: list[Artifact] = list(package_of(contents).notice.files)
    if wrong < len(sizes):
        artifacts[wrong] = replace(artifacts[wrong], digest=package_of([b"no"]).notice.files[0].digest)
    row = memoryview(b"".join(contents))
    proof = _Proof(artifacts, "place")
    with (
        pytest.raises(UpdateError, match=f"file {wrong} in the place")
        if wrong < len(sizes)
        else contextlib.nullcontext()
    ):
        for at in range(0, len(row), step):
            proof.update(row[at : at + step])
        proof.update(row[:0])


# ---------------------------------------------------------------------------------------------- what goes wrong


async def test_a_wrong_file_is_named_before_the_others_have_come(server: WebServer, package: Gateway) -> None:
    big = random.Random(9).randbytes(3_000_000)
    serve(server, package, [big[:1_500_000], big, big])
    package.deployment = with_digest_of(package.deployment, 0, 1)
    server.answers = [part(), part(2_000_000), *[status("503 No")] * 9999]

    error = await fails(package)

    assert error.failure.code == Code.DIGEST
    assert str(error).startswith("file 0 in the staging file: sha256 is")
    assert "/2" not in server.paths


async def test_files_that_changed_places_are_noticed(server: WebServer, package: Gateway) -> None:
    contents = [FILES[0], FILES[0][::-1]]
    serve(server, package, contents)
    server.files = {"/0": contents[1], "/1": contents[0]}

    assert (await fails(package)).failure.code == Code.DIGEST


async def test_a_cut_within_a_file_resumes_that_file(server: WebServer, package: Gateway) -> None:
    server.answers = [part(), part(), part(50_000)]
    await bring(package)

    assert package.places.staging.read_bytes() == ALL
    assert requested(server) == [("/0", 0), ("/1", 0), ("/2", 0), ("/2", 50_000), ("/3", 0)]
    assert (package.deployment.joined, package.deployment.resumed) == (True, 1)


@pytest.mark.parametrize("at", [1, 100_000, *STARTS[1:], 100_003, 250_000, len(ALL) - 1])
async def test_after_a_power_cut_it_goes_on_at_the_checkpoint(at: int, server: WebServer, package: Gateway) -> None:
    package.places.staging.write_bytes(ALL[:at])
    package.deployment = replace(package.deployment, place=PlaceKind.STAGING, checkpoint=at)
    await bring(package)

    number = max(k for k, start in enumerate(STARTS) if start <= at)
    assert requested(server)[0] == (f"/{number}", at - STARTS[number])
    assert package.places.staging.read_bytes() == ALL
    assert package.deployment.fetched == len(ALL) - at


@pytest.mark.parametrize("seed", range(4))
async def test_cut_anywhere_it_goes_on(seed: int, server: WebServer, package: Gateway) -> None:
    chance, cuts = random.Random(seed), 0

    def stop_at(bytes_: int, task: "asyncio.Task[PlaceKind]") -> Callable[[object], None]:
        def look(_: object) -> None:
            if package.progress[-1].bytes >= bytes_:
                task.cancel()

        return look

    while package.deployment.checkpoint < len(ALL):
        downloading = asyncio.create_task(package.download(source_of(package)))
        package.on_progress = stop_at(package.deployment.checkpoint + chance.randrange(1, 150_000), downloading)
        with contextlib.suppress(asyncio.CancelledError):
            await downloading
        cuts += 1

    assert cuts >= 2
    assert package.places.staging.read_bytes() == ALL


async def test_a_file_that_changed_starts_the_package_over(server: WebServer, package: Gateway) -> None:
    server.answers = [part(), part(), part(50_000), part(ETag='"two"')]
    await bring(package)

    assert package.places.staging.read_bytes() == ALL
    assert requested(server)[3:5] == [("/2", 50_000), ("/0", 0)]
    assert "/2: the object has changed" in package.waited_for


async def test_a_file_of_another_size_fails_in_the_end_and_is_named(server: WebServer, package: Gateway) -> None:
    server.files["/1"] = b"a login page"

    error = await fails(package)

    assert error.failure.code == Code.CONTENT
    assert str(error).endswith("/1: has 12 bytes, the notice says 3")
    assert server.paths == ["/0", "/1"] * 3


async def test_etags_of_two_files_are_not_compared(server: WebServer, gateway: Gateway) -> None:
    """Their URLs differ in the query part alone: what the cut left behind is an ETag of the file before."""
    serve(server, gateway, FILES[:1] * 2)
    one = replace(gateway.deployment.notice.files[0], url=server.url("/same?file=1&"))
    two = replace(gateway.deployment.notice.files[1], url=server.url("/same?file=2&"))
    gateway.deployment = replace(gateway.deployment, notice=replace(gateway.deployment.notice, files=(one, two)))
    server.files = {"/same": FILES[0]}
    server.answers = [part(ETag='"one"'), part(50_000, ETag='"two"'), *[part(ETag='"two"')] * 9]
    await bring(gateway)
    assert len(server.requests) == 3

    for checkpoint in list(gateway.checkpoints):  # wherever the power was cut
        server.answers = [part(ETag='"two"')] * 9 if checkpoint.bytes >= len(FILES[0]) else [part(ETag='"one"')]
        gateway.places.staging.write_bytes((FILES[0] * 2)[: checkpoint.bytes])
        gateway.deployment = replace(
            gateway.deployment, checkpoint=checkpoint.bytes, etag=checkpoint.etag, etag_url=checkpoint.etag_url
        )
        gateway.progress.clear()
        await bring(gateway)
        assert "has changed" not in gateway.waited_for


async def test_a_file_without_an_etag_does_not_inherit_one(server: WebServer, package: Gateway) -> None:
    package.places.staging.write_bytes(ALL[:150_000])
    remembered = f"{server.url('/0').partition('?')[0]}#0"
    package.deployment = replace(
        package.deployment, place=PlaceKind.STAGING, checkpoint=150_000, etag='"one"', etag_url=remembered
    )
    server.answers = [part(ETag=None)] * 9
    await bring(package)

    assert package.deployment.etag_url == remembered


async def test_a_file_that_changed_over_a_power_cut_is_noticed(server: WebServer, package: Gateway) -> None:
    server.answers = [part(), part()]
    with contextlib.suppress(TimeoutError):
        package.on_progress = lambda progress: None
        await bring(package)
    cut = next(checkpoint for checkpoint in package.checkpoints if 150_000 < checkpoint.bytes < 300_000)
    package.deployment = replace(
        package_of(FILES, url=server.url),
        place=PlaceKind.STAGING,
        checkpoint=cut.bytes,
        etag=cut.etag,
        etag_url=f"{server.url('/2').partition('?')[0]}#2",
    )
    server.etag = '"two"'
    server.requests.clear()
    await bring(package)

    assert requested(server)[0] == ("/2", cut.bytes - STARTS[2])
    assert "/2: the object has changed" in package.waited_for
    assert package.places.staging.read_bytes() == ALL


async def test_each_file_gets_a_fresh_url_of_its_own(server: WebServer, package: Gateway) -> None:
    server.files |= {"/fresh/2": FILES[2], "/fresh/3": FILES[3]}
    server.answers = [part(), part(), part(50_000), status("403 Forbidden"), part(100), part(), status("404 Not Found")]
    fresh = tuple(
        replace(file, url=server.url(f"/fresh/{k}")) for k, file in enumerate(package.deployment.notice.files)
    )
    platform = Platform(offers=[offered(package.deployment, files=fresh)])
    await bring(package, platform)

    assert package.places.staging.read_bytes() == ALL
    assert requested(server) == [
        ("/0", 0), ("/1", 0), ("/2", 0), ("/2", 50_000), ("/fresh/2", 50_000), ("/fresh/2", 50_100),
        ("/fresh/3", 0), ("/fresh/3", 0),
    ]  # fmt: skip


async def test_a_source_begins_where_it_is_told(server: WebServer, package: Gateway) -> None:
    pieces = [piece async for piece in source_of(package).pieces(Begin(100_002, len(ALL)), lambda _: None)]

    assert b"".join(piece.content for piece in pieces) == ALL[100_002:]
    assert [piece.first for piece in pieces] == [True] + [False] * (len(pieces) - 1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 210_000), max_size=8))
def test_whatever_was_cut_the_row_is_whole(cuts: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    async def go() -> Gateway:
        gateway = Gateway(Places(tmp_path_factory.mktemp("place")), deployment_of())
        served = WebServer(answers=[part(cut) for cut in cuts])
        listening = await asyncio.start_server(served.run, "127.0.0.1", 0)
        served.port = listening.sockets[0].getsockname()[1]
        serve(served, gateway, FILES)
        await bring(gateway)
        listening.close()
        return gateway

    gateway = asyncio.run(go())

    assert gateway.places.staging.read_bytes() == ALL
    assert len(IMAGE) == len(gateway.places.slot.read_bytes()) - len(BEHIND)
