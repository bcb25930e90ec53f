# SPDX-License-Identifier: Apache-2.0
"""Batches on a running platform: what devices hear of them, and when."""

import json
import time
from collections.abc import Awaitable, Callable

import pytest
from conftest import Gateway, login

from otad.platform.jobs import BatchState, Package, Refused
from otad.platform.platform import Device, Platform

Connect = Callable[..., Awaitable[Gateway]]


async def offered(gateway: Gateway) -> str:
    """The version of the next notice."""
    _, payload = await gateway.hear()
    version: str = json.loads(payload)["data"]["version"]
    return version


async def test_a_dynamic_batch_takes_a_device_at_its_first_inform(
    platform: Platform, device: Device, package: Package, connect: Connect
) -> None:
    batch = platform.batch(package, product="a1B2c3", source_versions=["1-0-0"], dynamic=1)
    assert platform.jobs_of(batch) == []
    gateway = await connect()
    await gateway.inform("1-0-0")

    assert await offered(gateway) == "2-0-0"
    (job,) = platform.jobs_of(batch)
    assert (job.device, job.source, platform.batch_state(batch)) == (device.identity, "1-0-0", BatchState.IN_PROGRESS)


async def test_a_device_that_appears_later_joins_when_it_comes_online(
    platform: Platform, package: Package, connect: Connect
) -> None:
    platform.batch(package, product="other", dynamic=1)
    device = platform.add_device("other", "gateway-1", "s3cr3t")
    gateway = await connect(username="gateway-1&other", password=login(device)["password"])

    assert await offered(gateway) == "2-0-0"


async def test_a_batch_starts_at_its_time(
    platform: Platform, device: Device, package: Package, connect: Connect
) -> None:
    gateway = await connect()
    starts_at = time.time() + 0.3
    batch = platform.batch(package, [device], starts_at=starts_at)
    assert platform.batch_state(batch) is BatchState.PLANNED
    assert platform.waits_for(platform.jobs_of(batch)[0]) == "the start of its batch"

    await offered(gateway)
    assert time.time() >= starts_at
    assert platform.batch_state(batch) is BatchState.IN_PROGRESS


async def test_a_cancelled_batch_says_nothing_to_devices(
    platform: Platform, device: Device, package: Package, connect: Connect
) -> None:
    batch = platform.batch(package, [device], need_confirm=True)
    platform.cancel_batch(batch)
    gateway = await connect()
    await gateway.ask()

    assert json.loads((await gateway.hear())[1])["data"] == {}
    with pytest.raises(Refused, match="is CANCELED already"):
        platform.cancel_batch(batch.id)


async def test_a_differential_package_goes_only_where_its_source_runs(
    platform: Platform, device: Device, connect: Connect, tmp_path_factory: pytest.TempPathFactory
) -> None:
    image = tmp_path_factory.mktemp("diff") / "image"
    image.write_bytes(b"difference")
    package = platform.add_package(image, "2-0-0", diff=True)
    with pytest.raises(ValueError, match="has informed no version, not 1-0-0"):
        platform.push(package, device, source_versions=("1-0-0",))
    gateway = await connect()
    await gateway.inform("1-0-0")
    await platform.wait(lambda: platform.versions(device))
    platform.push(package, device, source_versions=("1-0-0",))

    _, payload = await gateway.hear()
    assert json.loads(payload)["data"]["isDiff"] == 1


async def test_what_a_batch_may_not_be(platform: Platform, device: Device, package: Package) -> None:
    for choice, why in [
        ({}, "no device is named"),
        ({"devices": [device], "product": "a1B2c3"}, "give one of the two"),
        ({"devices": [device], "dynamic": 1}, "takes a product"),
        ({"product": "a1B2c3", "dynamic": 3}, "3 is not a valid Dynamic"),
        ({"product": "nobody"}, "has no device"),
    ]:
        with pytest.raises(ValueError, match=why):
            platform.batch(package, **choice)  # type: ignore[arg-type]
    assert not platform.batches
