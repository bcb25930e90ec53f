# SPDX-License-Identifier: Apache-2.0
"""What a platform's directory keeps, and what it takes in."""

import hashlib
import json
import time
from pathlib import Path

import pytest

from otad.platform.credentials import Identity
from otad.platform.jobs import BatchState, JobState, PackageFile, Protocol, Retry, SignMethod
from otad.platform.platform import Platform
from otad.platform.store import Store

# As the first version wrote it.
OLD = """
{"schema": 1, "key": "k",
 "devices": [{"product_key": "pk", "device_name": "gw-1", "secret": "s", "versions": {"default": "1"}}],
 "packages": [{"id": "1", "module": "default", "version": "2", "file": "1.bin", "size": 5, "sign_method": "SHA256",
               "sign": "00", "etag": "FF"}],
 "jobs": [{"id": "1", "device": {"product_key": "pk", "device_name": "gw-1"}, "package": "1",
           "options": {"verify": false, "need_push": true, "need_confirm": false, "timeout_s": 300.0,
                       "overwrite": false, "multi_module": false, "source_versions": ["1"],
                       "retry": {"count": 3, "interval_s": 240.0}},
           "state": "IN_PROGRESS", "created_at": 1.0, "source": "1", "notified_at": 2.0, "first_progress_at": 3.0,
           "ended_at": null, "retries": 0, "retry_at": null, "reason": null,
           "log": [{"at": 3.0, "step": 1, "desc": ""}]}]}
"""


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files of different content and name."""
    paths = [tmp_path / "app.bin", tmp_path / "data.bin"]
    for path in paths:
        path.write_bytes(path.name.encode() * 100)
    return paths


def test_a_directory_of_the_first_version_opens(tmp_path: Path) -> None:
    (tmp_path / "platform.json").write_text(OLD)
    platform = Platform(tmp_path)

    (package,) = platform.packages.values()
    assert (package.files, package.tags, package.protocol) == ((), {}, Protocol.HTTPS)
    job = platform.job("1")
    assert (job.state, job.batch, job.options.retry) == (JobState.IN_PROGRESS, "", Retry(2, 0.0))
    platform.cancel(job)
    again = Platform(tmp_path)
    assert again.job("1").state is JobState.CANCELED
    assert again.push(package, again.devices[0]).batch == "1"


@pytest.mark.parametrize(
    ("found", "retry"),
    [
        (None, None),
        ({"count": 0, "interval_s": 0.0}, None),
        ({"count": 9, "interval_s": 250.0}, Retry(5, 0.0)),
    ],
)
def test_retries_that_the_platform_does_not_offer_become_the_next_smaller_ones(
    tmp_path: Path, found: object, retry: Retry | None
) -> None:
    document = json.loads(OLD)
    document["jobs"][0]["options"]["retry"] = found
    (tmp_path / "platform.json").write_text(json.dumps(document))

    assert Platform(tmp_path).job("1").options.retry == retry


def test_another_schema_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "platform.json").write_text('{"schema": 2}')

    with pytest.raises(ValueError, match="schema 2, not 1"):
        Store(tmp_path).open()


async def test_all_that_a_package_is_outlives_a_restart(tmp_path: Path, files: list[Path]) -> None:
    async with Platform(tmp_path / "platform") as platform:
        several = platform.add_package(
            files, "2", "app", "Md5", tags={"a": "1"}, udi="text", diff=True, protocol=Protocol.HTTPS
        )
        blocks = platform.add_package(files[0], "3", signed=True, protocol=Protocol.MQTT)

    again = Platform(tmp_path / "platform")
    assert dict(again.packages) == {"1": several, "2": blocks}
    assert again.packages["1"].path.read_bytes() == files[0].read_bytes()


def test_a_package_of_several_files(tmp_path: Path, files: list[Path]) -> None:
    package = Platform(tmp_path / "platform").add_package(files, "2", "app", SignMethod.SHA256)

    packages = tmp_path / "platform" / "packages"
    assert package.files == tuple(
        PackageFile(
            path.name,
            packages / copy,
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest(),
            hashlib.md5(path.read_bytes()).hexdigest().upper(),
        )
        for path, copy in zip(files, ("1.0.bin", "1.1.bin"), strict=True)
    )
    assert [file.path.read_bytes() for file in package.files] == [path.read_bytes() for path in files]
    assert (package.size, package.sign) == (700 + 800, package.files[0].sign)


def test_a_list_of_one_file_is_that_file(tmp_path: Path, files: list[Path]) -> None:
    package = Platform(tmp_path / "platform").add_package(files[:1], "2")

    assert (package.files, package.size) == ((), 700)


def test_what_is_refused_leaves_no_copy(tmp_path: Path, files: list[Path]) -> None:
    platform = Platform(tmp_path / "platform")
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate((16 << 20) + 1)

    for paths, protocol, error in [
        (big, Protocol.MQTT, ValueError),
        (files, Protocol.BOTH, ValueError),
        ([], Protocol.HTTPS, ValueError),
        (tmp_path / "none", Protocol.HTTPS, FileNotFoundError),
        ([files[0], tmp_path], Protocol.HTTPS, IsADirectoryError),
    ]:
        with pytest.raises(error):
            platform.add_package(paths, "2", protocol=protocol)  # type: ignore[arg-type]
    assert list((tmp_path / "platform" / "packages").iterdir()) == []
    assert not platform.packages


async def test_batches_outlive_a_restart(tmp_path: Path, files: list[Path]) -> None:
    async with Platform(tmp_path / "platform") as platform:
        for name in ("gw-1", "gw-2"):
            platform.add_device("pk", name)
        package = platform.add_package(files[0], "2")
        batches = [
            platform.batch(package, [Identity("pk", "gw-1")], starts_at=4e9, push_rate=10, need_confirm=True),
            platform.batch(package, product="pk", dynamic=2, source_versions=["1"], retry=Retry(1), timeout_s=60),
            platform.batch(package, product="pk", overwrite=True),
        ]
        platform.cancel_batch(batches[1])
        states = [platform.batch_state(batch) for batch in batches]
        batches = list(platform.batches.values())

    again = Platform(tmp_path / "platform")
    assert list(again.batches.values()) == batches
    assert [again.batch_state(batch) for batch in batches] == states
    assert states == [BatchState.PLANNED, BatchState.CANCELED, BatchState.IN_PROGRESS]
    assert [job.device.device_name for job in again.jobs_of(batches[2])] == ["gw-1", "gw-2"]


async def test_a_fleet_is_started_within_seconds(tmp_path: Path, files: list[Path]) -> None:
    begun = time.monotonic()
    async with Platform(tmp_path / "platform") as platform:
        for number in range(2000):
            platform.add_device("pk", f"gw-{number}")
        platform.batch(platform.add_package(files[0], "2"), product="pk")

    assert time.monotonic() - begun < 10  # ten minutes, were all of it written after each change
    assert len(Platform(tmp_path / "platform").jobs) == 2000
