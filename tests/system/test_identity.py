# SPDX-License-Identifier: Apache-2.0
"""How a gateway comes to know who it is, from the factory's configuration to an upgrade: over TLS, as it must be.

Secret, token or names are on the medium before they are used, so that a power cut costs nothing, and what is refused
is asked for again rarely, with the reason in status.
"""

import json
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from otad.platform.broker import Identity
from otad.platform.events import Connected, Refused, Registered
from otad.platform.platform import Platform
from otad.simulation import MIB, Gateway
from tests.system.world import JobState, World

NAME = Identity("a1fleet", "gateway-0007")


@asynccontextmanager
async def fresh_gateway(
    tmp_path: Path, credential: str, prepare: Callable[[Platform], None] = lambda platform: None
) -> AsyncIterator[World]:
    """A gateway at 1-0-0 whose [device] section has this credential, at a platform that has been prepared."""
    async with Platform(tmp_path / "platform", tls=True) as platform:
        platform.add_product(NAME.product_key, "pr0ducts3cret")
        prepare(platform)
        device = next((d for d in platform.devices if d.identity == NAME), None)
        template = platform.add_device("a1other", "template-1")
        text = platform.configuration(template)
        end_point = text[text.index("\n[mqtt]") :]
        names = "" if "certificate" in credential else 'product_key = "a1fleet"\ndevice_name = "gateway-0007"\n'
        credential = credential.replace("HTTPS", f"127.0.0.1:{platform.http_port}")
        gateway = Gateway(tmp_path / "gateway")
        gateway.provision(f"[device]\n{names}{credential}\n{end_point}", "1-0-0", MIB)
        world = World(platform, device or template, gateway, tmp_path)
        try:
            yield world
        finally:
            await world.power_off()


def known(platform: Platform) -> None:
    platform.add_device(NAME.product_key, NAME.device_name)


def identity_file(world: World) -> Path:
    return world.gateway.directory / "state" / "identity.json"


async def upgraded(world: World) -> None:
    """The gateway takes an upgrade from end to end, as the device NAME."""
    await world.until(lambda: any(event.version == "1-0-0" for event in world.platform.events if _is_inform(event)))
    world.device = world.platform.device(NAME)
    job = await world.ended(world.push(world.package("2-0-0", MIB)))
    assert job.state is JobState.SUCCEEDED
    assert (await world.idle("b"))["device"] == {"product_key": "a1fleet", "device_name": "gateway-0007"}


def _is_inform(event: object) -> bool:
    return type(event).__name__ == "Informed"


WAYS = {
    "over MQTT": ('product_secret = "pr0ducts3cret"', known),
    "over HTTPS": ('product_secret = "pr0ducts3cret"\nregistration = "https"\nregistration_host = "HTTPS"', known),
    "not known beforehand": ('product_secret = "pr0ducts3cret"\nregistration = "mqtt-token"', lambda platform: None),
}


@pytest.mark.parametrize(("credential", "prepare"), WAYS.values(), ids=WAYS.keys())
async def test_a_gateway_registers_once_and_is_then_upgraded(
    tmp_path: Path, credential: str, prepare: Callable[[Platform], None]
) -> None:
    async with fresh_gateway(tmp_path, credential, prepare) as world:
        world.power_on()
        await upgraded(world)

        file = identity_file(world)
        assert len(world.platform.events.of(Registered)) == 1  # also not after the reboot
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        said = world.gateway.log.read_text() + (await world.otad("status", "--json"))[1]
        kept = json.loads(file.read_text())
        secrets = [value for key, value in kept.items() if "secret" in key or "token" in key]
        assert secrets
        assert [secret for secret in [*secrets, "pr0ducts3cret"] if secret in said] == []


async def test_a_certificate_tells_the_gateway_its_names(tmp_path: Path) -> None:
    async with Platform(tmp_path / "platform", tls=True) as platform:
        text = platform.configuration(platform.add_device(NAME.product_key, NAME.device_name, x509=True))
    lines = [line for line in text.splitlines() if line.startswith(("certificate_file", "key_file"))]
    async with fresh_gateway(tmp_path, "\n".join(lines)) as world:
        world.power_on()
        await upgraded(world)

        assert json.loads(identity_file(world).read_text())["device_name"] == "gateway-0007"


REFUSALS = {
    "the wrong product secret": ('product_secret = "wr0ng"', known),
    "a device that nobody made known": ('product_secret = "pr0ducts3cret"', lambda platform: None),
    "the wrong product secret over HTTPS": (
        'product_secret = "wr0ng"\nregistration = "https"\nregistration_host = "HTTPS"',
        known,
    ),
    "registration switched off": (
        'product_secret = "pr0ducts3cret"\nregistration = "https"\nregistration_host = "HTTPS"',
        lambda platform: (known(platform), platform.add_product("a1fleet", registration=False)),
    ),
    "the wrong device secret": ('device_secret = "wr0ng"', known),
}


@pytest.mark.parametrize(("credential", "prepare"), REFUSALS.values(), ids=REFUSALS.keys())
async def test_who_is_refused_says_so_once_and_waits_long(
    tmp_path: Path, credential: str, prepare: Callable[[Platform], None]
) -> None:
    async with fresh_gateway(tmp_path, credential, prepare) as world:
        world.power_on()
        status = await world.status(lambda status: status["session"]["state"] == "refused")

        assert "next attempt in" in status["session"]["detail"]
        assert "nothing until this is put right" in status["next"]
        attempts = [*world.platform.events.of(Refused), *world.platform.events.of(Connected)]
        assert len(attempts) <= 1
        warnings = [line for line in world.gateway.log.read_text().splitlines() if "WARNING" in line]
        assert len(warnings) == 1, warnings
        assert not identity_file(world).exists()


async def test_an_obtained_secret_that_is_refused_is_kept_and_the_wait_is_long(tmp_path: Path) -> None:
    async with fresh_gateway(tmp_path, 'product_secret = "pr0ducts3cret"', known) as world:
        world.power_on()
        await world.until(lambda: any(map(_is_inform, world.platform.events)))
        await world.power_off()
        spoilt = identity_file(world).read_text().replace(world.platform.device(NAME).secret, "f" * 32)
        identity_file(world).write_text(spoilt)
        world.power_on()
        await world.status(lambda status: status["session"]["state"] == "refused")

        assert identity_file(world).read_text() == spoilt
        assert len(world.platform.events.of(Registered)) == 1
        assert "bad user name or password" in world.gateway.log.read_text()


async def test_whoever_has_put_it_right_need_not_wait_for_the_next_attempt(tmp_path: Path) -> None:
    async with fresh_gateway(tmp_path, 'device_secret_file = "device.secret"', known) as world:
        secret = world.gateway.directory / "device.secret"
        secret.write_text("wr0ng")
        world.power_on()
        await world.status(lambda status: status["session"]["state"] == "refused")

        status, said = await world.otad("check")
        assert (status, "bad user name or password" in said) == (4, True), said
        secret.write_text(world.platform.device(NAME).secret)
        status, said = await world.otad("check")

        assert (status, said) == (0, "nothing is offered\n")
        secret.write_text("wr0ng")
        world.platform.kick(NAME)
        for _ in range(6):  # a person's impatience does not make a storm either
            await world.otad("check")
        attempts = [event.at for event in world.platform.events if isinstance(event, Refused | Connected)]
        assert len(attempts) >= 4
        assert all(later - earlier >= 59 for earlier, later in zip(attempts, attempts[5:], strict=False))
