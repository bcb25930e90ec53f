# SPDX-License-Identifier: Apache-2.0
"""Carries out each kind of work. What the works mean is in `core.work`; here is only how they are done.

Works that wait say for what, by telemetry. Works that must not fail (mark good, reboot) try again with back-off until
they succeed or the machine goes down; whatever else goes wrong is an UpdateError, and `core.step` decides.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import assert_never

from otad import health, ids, programs
from otad.boot.control import BootControl
from otad.cloud.cloud import Cloud
from otad.config import Config
from otad.core.model import Deployment, ModuleName, Origin, Slot
from otad.core.work import Activate, Confirm, Download, Install, MarkGood, Reboot, RollBack, Work
from otad.errors import Code, UpdateError
from otad.evidence import Evidence
from otad.installers.installer import InPlace
from otad.installers.slots import SlotInstaller
from otad.telemetry import Progress, Telemetry
from otad.threads import in_thread
from otad.units import format_duration

ONLINE_RECENTLY_S = 3600
REBOOT_PATIENCE_S = 600
"""The boot id should have changed within this time after the reboot command."""
REBOOTS_BEFORE_FORCE = 3
ORDER_TIMEOUT_S = 60.0
"""A reboot command that hangs must not be waited for: the next one may be the one that is heard."""
RESTORE_TRIES = 3
TRY_PAUSE_S = 5.0
FAREWELL_S = 3
"""How long a reboot waits for step 99 to be acknowledged."""

log = logging.getLogger(__name__)


class RebootByExit(Exception):  # noqa: N818 - not an error: the way out when nobody but us decides on the reboot
    """`reboot.command = []`: the daemon ends with status 0, and whoever runs it reboots."""


class Worker:
    """One `carry_out` for all works."""

    def __init__(
        self,
        config: Config,
        boot: BootControl,
        slots: SlotInstaller,
        modules: Mapping[ModuleName, InPlace],
        cloud: Cloud,
        telemetry: Telemetry,
        evidence: Callable[[Deployment], Awaitable[Evidence]],
        transfer: Callable[[Deployment], Awaitable[bool]],
        farewell: Callable[[], Awaitable[None]],
        *,
        holds: bool = False,
    ) -> None:
        """`modules` carry out what is not made of slots; `evidence` reads the running version of what is upgraded;
        `transfer` brings a package to its place and checks it there, True if that is the slot; `farewell` returns when
        the platform has been told what it should know before a reboot. `holds`: the configuration has errors, so that
        nothing new is brought in by halves of it; what is booted is still confirmed or rolled back."""
        self._config = config
        self._boot = boot
        self._slots = slots
        self._modules = modules
        self._cloud = cloud
        self._telemetry = telemetry
        self._evidence = evidence
        self._transfer = transfer
        self._farewell = farewell
        self._holds = holds

    async def carry_out(self, work: Work, deployment: Deployment | None) -> bool:
        """Do it. True if the platform was reached within the last hour."""
        if isinstance(work, MarkGood):
            await self._mark_good(work.slot)
            return self._online_recently()
        assert deployment is not None
        if self._holds and (isinstance(work, Download | Install | Activate) or _is_trial_in_place(work, deployment)):
            self._telemetry.publish(Progress(deployment.id, waits_for="the configuration to be put right"))
            await asyncio.Event().wait()
        match work:
            case Download():
                await self._pause(deployment)
                if await self._transfer(deployment):
                    self._slots.prove(deployment)
            case Install():
                await self._pause(deployment)
                if pause_s := _idle_pause_s(deployment):
                    await self._wait(deployment, f"a pause after {deployment.idle_starts} starts", pause_s)
                installer = self._in_place(deployment) if deployment.in_place else self._slots
                await installer.install(deployment, self._telemetry.publish)
            case Activate() if deployment.in_place:
                await self._in_place(deployment).activate(deployment, self._telemetry.publish)
            case Activate():
                await self._slots.activate(deployment)
            case Reboot():
                await self._reboot(deployment, deployment.target)
            case Confirm() if deployment.in_place:
                await self._confirm_in_place(deployment)
            case Confirm():
                await self._confirm(deployment)
            case RollBack() if deployment.in_place:
                if deployment.idle_starts > RESTORE_TRIES:  # it may be what ends us
                    await self._wait(deployment, "the next try to go back", 2.0**deployment.idle_starts)
                await self._in_place(deployment).restore(deployment, self._telemetry.publish)
            case RollBack():
                await self._roll_back(deployment)
            case _:
                assert_never(work)
        return self._online_recently()

    def _in_place(self, deployment: Deployment) -> InPlace:
        module = deployment.notice.identity.module
        if module not in self._modules:  # it was when this began
            raise UpdateError(Code.UNSUPPORTED, f"module {module}: not configured on this gateway any more")
        return self._modules[module]

    def _online_recently(self) -> bool:
        at = self._cloud.online_at
        return at is not None and time.monotonic() - at <= ONLINE_RECENTLY_S

    async def _pause(self, deployment: Deployment) -> None:
        """Before another try where the machine was at fault: a device may still be on its way."""
        reason = deployment.reason
        if deployment.tries and reason is not None and reason.code in (Code.MEDIUM, Code.BOOT):
            await self._wait(deployment, f"another try ({reason})", TRY_PAUSE_S * 2 ** (deployment.tries - 1))

    async def _wait(self, deployment: Deployment, what: str, seconds: float) -> None:
        self._waits(deployment, what, seconds)
        await asyncio.sleep(seconds)
        self._telemetry.publish(None)

    # -- idle work

    async def _mark_good(self, slot: Slot) -> None:
        """A few power cuts without it use up the boot attempts: it is tried for ever."""
        attempt = 0
        while True:
            try:
                await in_thread(self._boot.mark_good, slot)
            except UpdateError as error:
                attempt += 1
                pause = min(2.0**attempt, 300.0)
                log.warning("slot %s: not marked good: %s; again in %s", slot, error, format_duration(pause))
                self._waits(None, f"the boot loader's store ({error})", pause)
                await asyncio.sleep(pause)
            else:
                self._telemetry.publish(None)
                log.info("slot %s marked good", slot, extra={"OTAD_SLOT": slot, "MESSAGE_ID": ids.MARKED_GOOD})
                return

    # -- after the reboot

    async def _confirm(self, deployment: Deployment) -> None:
        if not deployment.by_hand:
            if deployment.notice.origin != Origin.RECOVERED:
                await self._compare_version(deployment)
            await self._pass_health(deployment)
            if self._config.health.require_session and deployment.online_before:
                await self._reach_platform(deployment)
        await in_thread(self._boot.mark_good, deployment.target)

    async def _confirm_in_place(self, deployment: Deployment) -> None:
        """What was switched may need a moment to come up and say its version; a system that has booted does not."""
        if deployment.by_hand:
            return
        deadline = time.monotonic() + self._config.health.timeout_s
        while True:
            try:
                await self._compare_version(deployment)
                break
            except UpdateError as error:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise
                self._waits(deployment, f"the new version to show ({error})", left_s)
                await asyncio.sleep(min(health.ASK_AGAIN_S, left_s))
        await self._pass_health(deployment)

    async def _compare_version(self, deployment: Deployment) -> None:
        identity = deployment.notice.identity
        evidence = await self._evidence(deployment)
        if evidence.version != identity.version:
            says = evidence.version or f"nothing ({evidence.problem})"
            what = f"module {identity.module}" if deployment.in_place else "image"
            raise UpdateError(Code.VERSION, f"version: the {what} says {says}, the notice says {identity.version}")

    async def _pass_health(self, deployment: Deployment) -> None:
        environment = {
            "OTAD_SLOT": deployment.target,
            "OTAD_MODULE": deployment.notice.identity.module,
            "OTAD_VERSION": deployment.notice.identity.version,
            "OTAD_DEPLOYMENT": deployment.id,
        }

        def says(what: str, left_s: float) -> None:
            self._waits(deployment, what, left_s)

        await health.check(self._config.health, environment, says)

    async def _reach_platform(self, deployment: Deployment) -> None:
        limit = self._config.health.session_timeout_s
        self._waits(deployment, "a session with the platform", limit)
        try:
            async with asyncio.timeout(limit):
                await self._cloud.connected(after=0)
        except TimeoutError as error:
            detail = self._cloud.view.detail or self._cloud.view.state
            raise UpdateError(
                Code.SESSION, f"session: the platform was not reached within {format_duration(limit)}: {detail}"
            ) from error

    async def _roll_back(self, deployment: Deployment) -> None:
        """Back to the old slot. On trial a store that takes nothing is no reason to stay: the attempts decide."""
        on_trial = await self._booted(deployment) == deployment.target
        for left in reversed(range(RESTORE_TRIES)):
            try:
                await self._slots.restore(deployment)
                break
            except UpdateError as error:
                log.error("rolling back to slot %s: %s", deployment.old, error)
                if not left and not on_trial:
                    raise
                await asyncio.sleep(1)
        if on_trial:
            # A boot loader that insists on the bad slot must not make the gateway reboot as fast as it can.
            pause = min(2.0**deployment.idle_starts, 3600.0) if deployment.idle_starts > RESTORE_TRIES else 0
            if pause:
                self._waits(deployment, f"the next reboot into slot {deployment.old}", pause)
                await asyncio.sleep(pause)
            await self._reboot(deployment, deployment.old)

    async def _booted(self, deployment: Deployment) -> Slot | None:
        """The booted slot; a store that cannot be read is tried for ever, as at a start."""
        attempt = 0
        while True:
            try:
                return (await in_thread(self._boot.view)).booted
            except UpdateError as error:
                attempt += 1
                pause = min(2.0**attempt, 300.0)
                log.error("rolling back to slot %s: %s", deployment.old, error)
                self._waits(deployment, f"the boot loader's store ({error})", pause)
                await asyncio.sleep(pause)

    # -- reboot

    async def _reboot(self, deployment: Deployment, into: Slot) -> None:
        """Reboot, and see to it that it happens. Ends only with the process."""
        try:
            async with asyncio.timeout(FAREWELL_S):
                await self._farewell()
        except TimeoutError:
            pass
        command = list(self._config.reboot.command)
        if not command:
            raise RebootByExit
        command += self._boot.reboot_arguments(into)
        patience: float = REBOOT_PATIENCE_S
        count = 0
        while True:
            count += 1
            if count > REBOOTS_BEFORE_FORCE:
                command = [*self._config.reboot.force_command, *self._boot.reboot_arguments(into)]
            log.info(
                "rebooting into slot %s: %s",
                into,
                " ".join(command),
                extra={"OTAD_SLOT": into, "MESSAGE_ID": ids.REBOOT},
            )
            await _order(command)
            self._waits(deployment, f"the reboot into slot {into}", patience)
            await asyncio.sleep(patience)
            log.error("the reboot did not happen within %s", format_duration(patience))
            patience = min(patience * 2, 3600)

    def _waits(self, deployment: Deployment | None, what: str, seconds: float) -> None:
        progress = self._telemetry.progress or Progress(deployment.id if deployment else None)
        self._telemetry.publish(replace(progress, waits_for=what, waits_until=time.time() + seconds, rate=0.0))


def _is_trial_in_place(work: Work, deployment: Deployment) -> bool:
    """A system that was booted must be decided on; a module that was switched can wait for its health checks."""
    return isinstance(work, Confirm) and deployment.in_place


async def _order(command: Sequence[str]) -> None:
    try:
        # Whatever the command has left to be done in the background is the reboot.
        result = await programs.run(command, ORDER_TIMEOUT_S, leaves_work=True)
    except OSError as error:
        log.error("%s: %s", command[0], error.strerror)
    else:
        if result.status is None:
            log.error("%s: not ended within %s: %s", command[0], format_duration(ORDER_TIMEOUT_S), result.last_line)
        elif result.status != 0:
            log.error("%s: exit status %s: %s", command[0], result.status, result.last_line)


def _idle_pause_s(deployment: Deployment) -> float:
    """An installation that something ends at every start must not wear out the slot."""
    from otad.transfer.download import idle_pause_s  # noqa: PLC0415 - an idle daemon does without

    return idle_pause_s(deployment.idle_starts)
