# SPDX-License-Identifier: Apache-2.0
"""The OTA service: what the platform does about what a device says. Joins the wire, the jobs and the events.

It sends through whatever broker it is given, and keeps no time of its own.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

from otad.platform import blocks, wire
from otad.platform.broker import Admission, Certificate
from otad.platform.credentials import Identity
from otad.platform.events import (
    Asked,
    BlockServed,
    Connected,
    Disconnected,
    EventLog,
    Informed,
    JobChanged,
    Misunderstood,
    Notified,
    Progressed,
    Refused,
    TimeAsked,
)
from otad.platform.faults import BlockFault, Faults
from otad.platform.files import Content
from otad.platform.jobs import Changed, Effect, Job, Jobs, JobState, Package, PackageFile, Push
from otad.platform.jobs import Protocol as Way
from otad.platform.mqtt import Connect, Return
from otad.platform.registration import Registry

TAKEN_OVER: Final = 427  # "another login"; documented for the devices behind a gateway


class Surroundings(Protocol):
    """What the service needs around it."""

    def now(self) -> float: ...

    def send(self, device: Identity, topic: str, payload: bytes, qos: int) -> None: ...

    def url(self, package: Package, file: PackageFile | None = None) -> str:
        """A download URL, signed now, of the package or of one of its several files."""
        ...

    def sign(self, digest: str) -> str:
        """The signature over a digest in hex, in base64."""
        ...

    def zipped(self, package: Package) -> Package:
        """The package as one file, a ZIP archive of its several."""
        ...

    def certified(self, certificate: Certificate) -> Identity | None:
        """The device that a certificate was issued for."""
        ...

    def later(self, delay_s: float, call: Callable[[], None]) -> None: ...

    def keep(self) -> None:
        """What is to survive a restart has changed."""


class Service:
    """The `Cloud` that brokers report to."""

    def __init__(self, around: Surroundings, faults: Faults, events: EventLog, registry: Registry) -> None:
        self.jobs = Jobs()
        self.faults = faults
        self.registry = registry
        self.deleted: set[str] = set()
        """Packages that are given out no more, by id."""
        self._around = around
        self._events = events
        self._streams = blocks.Streams()
        self._held: dict[Identity, list[bytes]] = {}
        self._connects = _Rate(60)
        self._uplinks = _Rate(1)

    def admit(self, connect: Connect, *, tls: bool, certificate: Certificate | None) -> Admission:
        faults = self.faults
        if faults.connack is not None:
            return Admission(faults.connack, "told to refuse")
        if self._connects.is_over(faults.connects_per_minute, connect.username, self._around.now()):
            return Admission(Return.UNAVAILABLE, f"more than {faults.connects_per_minute} CONNECTs a minute")
        certified = None if certificate is None else self._around.certified(certificate)
        return self.registry.admit(connect, certified, registers=tls or faults.register_without_tls)

    def knows(self, identity: Identity) -> bool:
        return identity in self.jobs.devices

    def replaced(self, identity: Identity) -> tuple[str, bytes] | None:
        if not self.faults.error_on_takeover:
            return None
        return self.error(identity, TAKEN_OVER, "the device has connected again")

    def error(self, identity: Identity, code: int, message: str) -> tuple[str, bytes]:
        """Topic and payload of what a device is told of its session."""
        return wire.error_topic(identity), wire.to_json(wire.error(identity, code, message, self._around.now()))

    def connected(self, identity: Identity) -> None:
        self._events.append(Connected(self._around.now(), identity))
        self._held.pop(identity, None)
        self.registry.activate(identity)
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
        if self._uplinks.is_over(self.faults.uplinks_per_s, str(identity), now):
            self.refused(str(identity), 0, f"more than {self.faults.uplinks_per_s} messages a second")
            if isinstance(message, wire.Ask):
                reply = wire.to_json(wire.throttled(message))
                self._around.send(identity, wire.reply_topic(identity, message), reply, 0)
            return
        match message:
            case wire.Inform(module, version):
                self._events.append(Informed(now, identity, module, version))
                self.carry_out(self.jobs.informed(identity, module, version, now))
                if self.faults.push_on_inform:
                    self._push_again(identity, module)
                self._around.keep()
            case wire.Progress(module, step, desc):
                self._events.append(Progressed(now, identity, module, step, desc))
                self.carry_out(self.jobs.progressed(identity, module, step, desc, now))
            case wire.Ask():
                self._answer(identity, message, now)
            case wire.AskBlock():
                self._answer_block(identity, message, now)
            case wire.AskTime():
                self._events.append(TimeAsked(now, identity))
                if not self.faults.no_ntp:
                    reply = wire.to_json(wire.time_reply(message, now + self.faults.ntp_shift_s))
                    self._around.send(identity, wire.time_topic(identity), reply, 0)
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
        if self.faults.push_delay_s > 0:
            self._around.later(self.faults.push_delay_s, lambda: self._send_notice(job))
        else:
            self._send_notice(job)

    def _push_again(self, identity: Identity, module: str) -> None:
        for job in self.jobs.jobs.values():
            is_waiting = job.state is JobState.NOTIFIED and job.options.need_push
            if is_waiting and job.device == identity and job.package.module == module:
                self._push(job)

    def _send_notice(self, job: Job) -> None:
        now = self._around.now()
        message = wire.notice(self._offer(job), now)
        for _ in range(self.faults.pushes):  # the same message again, as a network repeats it
            self._send(job.device, wire.upgrade_topic(job.device), message, self.faults.notice_qos)
            package = job.package
            self._events.append(Notified(now, job.device, job.id, package.module, package.version))

    def _answer(self, identity: Identity, ask: wire.Ask, now: float) -> None:
        job, effects = self.jobs.asked(identity, ask.module, now)
        self._events.append(Asked(now, identity, ask.module, job.package.version if job else None))
        if not self.faults.no_reply:
            reply = wire.reply(ask, self._offer(job) if job else None)
            self._send(identity, wire.reply_topic(identity, ask), reply, qos=0)
        self.carry_out(effects)

    def _answer_block(self, identity: Identity, ask: wire.AskBlock, now: float) -> None:
        faults = self.faults
        fault = faults.next_blocks.pop(0) if faults.next_blocks else faults.every_block
        job = self.jobs.jobs.get(self._streams.job(ask.stream_id) or "")
        package = job.package if job is not None and job.device == identity and not job.state.is_final else None
        if package is not None and package.id in self.deleted:
            package = None
        span, code, size = blocks.Span(ask.offset or 0, 0), 200, 0
        try:
            if package is None:
                raise blocks.Unanswerable(400, f"streamId {ask.stream_id} does not exist")
            size = max(0, package.size + faults.size_delta)
            span = blocks.span_of(ask, size)
            if isinstance(fault, int):
                raise blocks.Unanswerable(fault, "told to refuse")
            answer, span = self._block(ask, span, package.path, size, fault)
        except blocks.Unanswerable as error:
            answer, code = blocks.refusal(ask, error.code, error.message), error.code
            span = replace(span, size=0)
        held = self._held.pop(identity, [])
        answers = [answer, *held]
        match fault:
            case BlockFault.LOST:
                answers, code, span = held, 0, replace(span, size=0)
            case BlockFault.LATE:
                answers, self._held[identity] = held, [answer]
            case BlockFault.TWICE:
                self._held[identity] = [answer]
            case _:
                pass
        self._events.append(
            BlockServed(
                now,
                identity,
                package.id if package else "",
                package.version if package else "",
                span.start,
                ask.size or 0,
                span.size,
                code,
            )
        )
        for one in answers:
            self._around.send(identity, wire.block_topic(identity), one, 0)

    def _block(
        self, ask: wire.AskBlock, span: blocks.Span, path: Path, size: int, fault: BlockFault | None
    ) -> tuple[bytes, blocks.Span]:
        """The answer to a request that has one, as the fault has it, and which bytes are in it."""
        if fault == BlockFault.OTHER:
            start = (span.start + span.size) % size
            span = blocks.Span(start, min(span.size, size - start))
        content = Content(path, self.faults)
        try:
            part = content.read(span.start, span.start + span.size)
        finally:
            content.close()
        answer = blocks.block(ask, span, part, size, crc_off=0x1234 if fault == BlockFault.CRC else 0)
        return (answer[:-1] if fault == BlockFault.CUT else answer), span

    def _offer(self, job: Job) -> dict[str, Any]:
        faults, around, package = self.faults, self._around, job.package
        if faults.zip_files and package.files:
            package = around.zipped(package)
        if faults.wrong_digest:
            files = tuple(replace(file, sign=_other(file.sign)) for file in package.files)
            package = replace(package, sign=_other(package.sign), files=files)
        sign = around.sign if package.signed and not faults.no_signature else None
        data = wire.offer(
            package,
            around.url(package) if not package.files and package.protocol is not Way.MQTT else "",
            [around.url(package, file) for file in package.files],
            self._streams.open(job.id) if package.protocol is not Way.HTTPS else None,
            (lambda digest: around.sign(_other(digest))) if sign and faults.wrong_signature else sign,
        )
        if faults.wrong_size is not None:
            sized, key = (data["files"][0], "fileSize") if "files" in data else (data, "size")
            sized[key] = faults.wrong_size
        if faults.sign_method_text is not None:
            data["signMethod"] = faults.sign_method_text
        return data

    def _send(self, device: Identity, topic: str, message: dict[str, Any], qos: int) -> None:
        faults = self.faults
        if message.get("code") == "1000":
            message["code"] = faults.notice_code
            if faults.notice_id_as_text:
                message["id"] = str(message["id"])
        if faults.edit_notice is not None:
            faults.edit_notice(message)
        payload = wire.to_json(message) + (b"\0" if faults.trailing_nul else b"")
        self._around.send(device, topic, payload, qos)


class _Rate:
    """Who has come how often within the last so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._times: dict[str, deque[float]] = {}

    def is_over(self, limit: int | None, who: str, now: float) -> bool:
        """Whether one more of `who` is more than `limit`; if not, count it. Without a limit nothing is counted."""
        if limit is None:
            return False
        times = self._times.setdefault(who, deque())
        while times and times[0] <= now - self._seconds:
            times.popleft()
        if len(times) >= limit:
            return True
        times.append(now)
        return False


def _other(digest: str) -> str:
    """Another digest of the same length."""
    return "".join(f"{15 - int(digit, 16):x}" for digit in digest)
