# SPDX-License-Identifier: Apache-2.0
"""The OTA service: what the platform does about what a device says. Joins the wire, the jobs and the events.

It sends through whatever broker it is given, and keeps no time of its own.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from otad.platform import wire
from otad.platform.credentials import Identity
from otad.platform.events import (
    Asked,
    Connected,
    Disconnected,
    EventLog,
    Informed,
    JobChanged,
    Misunderstood,
    Notified,
    Progressed,
    Refused,
)
from otad.platform.faults import Faults
from otad.platform.jobs import Changed, Effect, Job, Jobs, JobState, Package, Push
from otad.platform.mqtt import Return


class Surroundings(Protocol):
    """What the service needs around it."""

    def now(self) -> float: ...

    def send(self, device: Identity, topic: str, payload: bytes, qos: int) -> None: ...

    def url(self, package: Package) -> str:
        """A download URL, signed now."""
        ...

    def later(self, delay_s: float, call: Callable[[], None]) -> None: ...

    def keep(self) -> None:
        """What is to survive a restart has changed."""


class Service:
    """The `Cloud` that brokers report to."""

    def __init__(self, around: Surroundings, faults: Faults, events: EventLog) -> None:
        self.jobs = Jobs()
        self.secrets: dict[Identity, str] = {}
        self._around = around
        self._faults = faults
        self._events = events

    def refusal(self) -> Return | None:
        return self._faults.connack

    def secret_of(self, identity: Identity) -> str | None:
        return self.secrets.get(identity)

    def connected(self, identity: Identity) -> None:
        self._events.append(Connected(self._around.now(), identity))
        self.carry_out(self.jobs.online(identity, self._around.now()))

    def disconnected(self, identity: Identity, why: str) -> None:
        self.jobs.offline(identity)
        self._events.append(Disconnected(self._around.now(), identity, why))

    def refused(self, who: str, code: int, why: str) -> None:
        self._events.append(Refused(self._around.now(), who, code, why))

    def received(self, identity: Identity, topic: str, payload: bytes) -> None:
        now = self._around.now()
        try:
            message = wire.parse(topic, payload)
        except wire.Unreadable as error:
            self._events.append(Misunderstood(now, identity, topic, str(error)))
            return
        match message:
            case wire.Inform(module, version):
                self._events.append(Informed(now, identity, module, version))
                self.carry_out(self.jobs.informed(identity, module, version, now))
                self._around.keep()
            case wire.Progress(module, step, desc):
                self._events.append(Progressed(now, identity, module, step, desc))
                self.carry_out(self.jobs.progressed(identity, module, step, desc, now))
            case wire.Ask():
                self._answer(identity, message, now)
            case None:
                self._events.append(Misunderstood(now, identity, topic, "not a topic of the OTA service"))

    def carry_out(self, effects: Iterable[Effect]) -> None:
        """Do what follows from a change of the jobs."""
        for effect in effects:
            match effect:
                case Changed(job, was):
                    self._tell(job, was)
                case Push(job):
                    self._push(job)

    def _tell(self, job: Job, was: JobState | None) -> None:
        self._around.keep()
        if job.state is was:
            self._events.stir()
            return
        package = job.package
        self._events.append(
            JobChanged(
                self._around.now(),
                job.device,
                job.id,
                package.module,
                package.version,
                was,
                job.state,
                job.reason,
            )
        )

    def _push(self, job: Job) -> None:
        if self._faults.push_delay_s > 0:
            self._around.later(self._faults.push_delay_s, lambda: self._send_notice(job))
        else:
            self._send_notice(job)

    def _send_notice(self, job: Job) -> None:
        now = self._around.now()
        message = wire.notice(self._offer(job.package), now)
        for _ in range(self._faults.pushes):  # the same message again, as a network repeats it
            self._send(job.device, wire.upgrade_topic(job.device), message, self._faults.notice_qos)
            package = job.package
            self._events.append(Notified(now, job.device, job.id, package.module, package.version))

    def _answer(self, identity: Identity, ask: wire.Ask, now: float) -> None:
        job, effects = self.jobs.asked(identity, ask.module, now)
        self._events.append(Asked(now, identity, ask.module, job.package.version if job else None))
        if not self._faults.no_reply:
            reply = wire.reply(ask, self._offer(job.package) if job else None)
            self._send(identity, wire.reply_topic(identity, ask), reply, qos=0)
        self.carry_out(effects)

    def _offer(self, package: Package) -> dict[str, Any]:
        data = wire.offer(package, self._around.url(package))
        faults = self._faults
        if faults.wrong_digest:
            data["sign"] = "".join(f"{15 - int(digit, 16):x}" for digit in package.sign)
            if "md5" in data:
                data["md5"] = data["sign"]
        if faults.wrong_size is not None:
            data["size"] = faults.wrong_size
        if faults.sign_method_text is not None:
            data["signMethod"] = faults.sign_method_text
        return data

    def _send(self, device: Identity, topic: str, message: dict[str, Any], qos: int) -> None:
        faults = self._faults
        if message.get("code") == "1000":
            message["code"] = faults.notice_code
            if faults.notice_id_as_text:
                message["id"] = str(message["id"])
        if faults.edit_notice is not None:
            faults.edit_notice(message)
        payload = wire.to_json(message) + (b"\0" if faults.trailing_nul else b"")
        self._around.send(device, topic, payload, qos)
