# SPDX-License-Identifier: Apache-2.0
"""The platform's upgrade jobs and batches: every rule about them, and nothing else. No I/O, no clock: `now` is given.

A batch makes jobs of one package, for devices that are named or for those of a product:

- static: the set is fixed when the batch is made. Restricted to source versions it has only devices that have informed
  one of them.
- dynamic, mode 1: those that fit now, and each that fits later, when it comes online or informs; mode 2: only those
  that inform a version from now on. A package has one running dynamic batch, and where several fit, the newest wins.

A job brings the package to one device:

    CONFIRM --confirm--> QUEUED --push, or firmware/get--> NOTIFIED --progress--> IN_PROGRESS --> SUCCEEDED
                                                                                            `--> FAILED
- SUCCEEDED has one criterion: the device informs the target version for the package's module.
- FAILED: (1) another unfinished job was there and was not to be overwritten, or was in progress; (2) a negative step;
  (3) too long since the first progress ever; (4) while in progress, a version that is neither source nor target.
- (2) and (4) are retried if the job names source versions and a retry; the state shown does not change meanwhile.
- The notice is pushed at once to a device that is online, and again each time it comes online until the job ends. Only
  the first time may have to wait, for the batch's start or its rate.
- CANCELED, by the operator or by a newer job: the device is told nothing.

Where the platform's documents are silent: a device gets a second job of a dynamic
batch only if it has succeeded in the first, or was never told of it, for otherwise each rollback would start the
upgrade anew; devices that run the target version already are in no batch of a whole product; a job that has not
started cannot be obtained by asking, one that waits for the rate can.

`Jobs` answers each call with what there is to do: `Changed` (tell who watches) and `Push` (send the notice).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final

from otad.platform.credentials import Identity

DEFAULT_MODULE: Final = "default"

RETRY_COUNTS: Final = (1, 2, 5)
RETRY_INTERVALS_S: Final = (0.0, 600.0, 1800.0, 3600.0, 86400.0)
PUSH_RATES: Final = range(10, 10_001)
"""Devices per minute."""

MQTT_MAX_BYTES: Final = 16 << 20
MAX_FILES: Final = 20
MAX_TAGS: Final = 10
TAG_KEY: Final = re.compile(r"[A-Za-z0-9.]{1,30}")
MAX_TAG_CHARS, MAX_TAGS_CHARS, MAX_UDI_CHARS = 1024, 4096, 4096

STEP_MEANS: Final = {-1: "upgrade failed", -2: "download failed", -3: "verification failed", -4: "flashing failed"}


class Refused(ValueError):  # noqa: N818 - said to people: the platform has refused
    """Not as things stand: it has ended, or something is in its way."""


class SignMethod(StrEnum):
    """How a package's digest is made, in the spelling of real traffic."""

    MD5 = "Md5"
    SHA256 = "SHA256"


class Protocol(StrEnum):
    """By which way a device is told to fetch a package."""

    HTTPS = "https"
    MQTT = "mqtt"  # in blocks, one file of at most 16 MiB
    BOTH = "both"  # the notice names both ways, and the device chooses


class JobState(StrEnum):
    CONFIRM = "CONFIRM"  # waits for someone's confirmation; the device cannot obtain it
    QUEUED = "QUEUED"  # not pushed yet
    NOTIFIED = "NOTIFIED"  # pushed or obtained, no progress yet
    IN_PROGRESS = "IN_PROGRESS"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"

    @property
    def is_final(self) -> bool:
        return self in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED}


@dataclass(frozen=True, slots=True)
class PackageFile:
    """One of several files of a package."""

    name: str
    """As the notice says it; unique within the package."""
    path: Path
    size: int
    sign: str
    """The digest by the package's `sign_method`, lower-case hex."""
    etag: str = ""
    """The file server's entity tag: upper-case MD5, unquoted."""


@dataclass(frozen=True, slots=True)
class Package:
    """What was uploaded, and what it is. With several `files`, `path`, `sign` and `etag` are those of the first one."""

    id: str
    module: str
    version: str
    path: Path
    size: int
    """Of all files together."""
    sign_method: SignMethod
    sign: str
    """The digest by `sign_method`, lower-case hex."""
    etag: str
    """The file server's entity tag: upper-case MD5, unquoted."""
    files: tuple[PackageFile, ...] = ()
    """Two or more, in the notice's order; empty where there is one file only."""
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What a notice carries as `extData`, besides `udi`."""
    udi: str = ""
    """Text of the operator's own, `_package_udi` in `extData`; at most 4096 characters."""
    diff: bool = False
    """Made from another version: fits only devices which have that."""
    signed: bool = False
    """Secure upgrade: the notice carries `digestsign`."""
    protocol: Protocol = Protocol.HTTPS

    def __post_init__(self) -> None:
        several = bool(self.files)
        if several and not 2 <= len(self.files) <= MAX_FILES:
            raise ValueError(f"files: {len(self.files)}, not 2 to {MAX_FILES}")
        if several and len({file.name for file in self.files}) < len(self.files):
            raise ValueError("files: two have the same name")
        if several and self.protocol is not Protocol.HTTPS:
            raise ValueError(f"protocol {self.protocol}: several files go by https only")
        if self.protocol is not Protocol.HTTPS and self.size > MQTT_MAX_BYTES:
            raise ValueError(f"protocol {self.protocol}: {self.size} bytes, more than {MQTT_MAX_BYTES}")
        if len(self.tags) > MAX_TAGS:
            raise ValueError(f"tags: {len(self.tags)}, more than {MAX_TAGS}")
        for key, value in self.tags.items():
            if not TAG_KEY.fullmatch(key):
                raise ValueError(f"tag {key!r}: not 1 to 30 letters, digits, dots")
            if not 1 <= len(value) <= MAX_TAG_CHARS:
                raise ValueError(f"tag {key}: {len(value)} characters, not 1 to {MAX_TAG_CHARS}")
        if (length := sum(len(key) + len(value) for key, value in self.tags.items())) > MAX_TAGS_CHARS:
            raise ValueError(f"tags: {length} characters in all, more than {MAX_TAGS_CHARS}")
        if len(self.udi) > MAX_UDI_CHARS:
            raise ValueError(f"udi: {len(self.udi)} characters, more than {MAX_UDI_CHARS}")


@dataclass(frozen=True, slots=True)
class Retry:
    count: int
    interval_s: float = 0.0

    def __post_init__(self) -> None:
        if self.count not in RETRY_COUNTS:
            raise ValueError(f"retry: {self.count} times, not {_or(RETRY_COUNTS)}")
        if self.interval_s not in RETRY_INTERVALS_S:
            minutes = _or(interval / 60 for interval in RETRY_INTERVALS_S)
            raise ValueError(f"retry: after {self.interval_s / 60:g} minutes, not {minutes}")


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator chooses for a batch, and each of its jobs goes by."""

    verify: bool = False
    """A trial of the package before it goes to many. Devices see no difference."""
    need_push: bool = True
    """False: the device has to ask."""
    need_confirm: bool = False
    timeout_s: float | None = None
    """From the first progress. The real platform takes 1 to 1440 minutes."""
    overwrite: bool = False
    """The platform's overwrite mode 2: replace the device's unfinished job, unless it is in progress. False: mode 1."""
    multi_module: bool = False
    """One unfinished job for each module, rather than one in all; those of the same module are replaced."""
    source_versions: tuple[str, ...] = ()
    """For which versions the package is meant; needed for a retry, and for a differential package."""
    retry: Retry | None = None
    push_rate: int | None = None
    """How many devices are told per minute, 10 to 10000; None: all at once."""
    starts_at: float | None = None
    """Unix time; nobody is told before."""

    def __post_init__(self) -> None:
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise ValueError(f"timeout_s {self.timeout_s}: must be positive")
        if self.push_rate is not None and self.push_rate not in PUSH_RATES:
            raise ValueError(f"push_rate {self.push_rate}: not {PUSH_RATES[0]} to {PUSH_RATES[-1]} devices per minute")
        if self.push_rate is not None and not self.need_push:
            raise ValueError("push_rate: nothing is pushed, devices have to ask")
        if self.retry is not None:
            if not self.source_versions:
                raise ValueError("retry: needs source_versions")
            if self.timeout_s is not None and self.retry.interval_s >= self.timeout_s:
                raise ValueError("retry: its interval must be shorter than timeout_s")


class Dynamic(IntEnum):
    """Which devices a dynamic batch takes, in the platform's numbers."""

    CURRENT_AND_LATER = 1
    LATER = 2


@dataclass(frozen=True, slots=True)
class Selection:
    """The devices of a batch: those named, or those of a product."""

    devices: tuple[Identity, ...] = ()
    product: str | None = None
    source_versions: tuple[str, ...] = ()
    """Only devices which have informed one of these."""
    dynamic: Dynamic | None = None

    def __post_init__(self) -> None:
        if self.devices and self.product is not None:
            raise ValueError("devices, product: give one of the two")
        if not self.devices and self.product is None:
            raise ValueError("devices, product: give one of the two; no device is named")
        if self.dynamic and self.product is None:
            raise ValueError("dynamic: takes a product; the devices of a batch by name are fixed")


class BatchState(StrEnum):
    PLANNED = "PLANNED"  # not started yet
    IN_PROGRESS = "IN_PROGRESS"  # has unfinished jobs, or may get more
    COMPLETED = "COMPLETED"
    CANCELED = "CANCELED"


@dataclass(frozen=True, slots=True)
class Batch:
    id: str
    package: Package
    selection: Selection
    options: Options
    created_at: float
    planned: bool = False
    """Waits for `options.starts_at`."""
    canceled_at: float | None = None

    def __post_init__(self) -> None:
        package, selection, options = self.package, self.selection, self.options
        if options.verify and selection.product is not None:
            raise ValueError("verify: a trial is for devices by name")
        if selection.dynamic and options.starts_at is not None:
            raise ValueError("starts_at: a dynamic batch starts at once")
        if package.version in selection.source_versions:
            raise ValueError(f"source_versions: {package.version} is what the package brings")
        if package.diff and not options.source_versions:
            raise ValueError("a differential package: needs source_versions, those it was made from")


@dataclass(frozen=True, slots=True)
class Step:
    """A line of a job's progress log."""

    at: float
    step: int
    desc: str


@dataclass(frozen=True, slots=True)
class Job:
    id: str
    device: Identity
    package: Package
    options: Options
    state: JobState
    created_at: float
    source: str | None = None
    """The module's version before the upgrade began, as informed."""
    notified_at: float | None = None
    first_progress_at: float | None = None
    ended_at: float | None = None
    retries: int = 0
    retry_at: float | None = None
    """Set between a failure and its retry."""
    reason: str | None = None
    """Why it failed or was cancelled; while a retry is due, why it is retried."""
    log: tuple[Step, ...] = ()
    batch: str = ""
    """Empty for jobs that are older than batches."""
    push_at: float | None = None
    """Its turn, where a rate is set; None before that is known."""

    @property
    def is_untold_failure(self) -> bool:
        """Whether it failed before the device could know of it."""
        return self.state is JobState.FAILED and self.notified_at is None

    @property
    def deadline(self) -> float | None:
        if self.first_progress_at is None or self.options.timeout_s is None:
            return None
        return self.first_progress_at + self.options.timeout_s


@dataclass(frozen=True, slots=True)
class Changed:
    """The job is new (`was` is None), or has changed its state, reason or log."""

    job: Job
    was: JobState | None


@dataclass(frozen=True, slots=True)
class Push:
    """Send the notice of this job."""

    job: Job


Effect = Changed | Push


@dataclass(slots=True)
class Known:
    """What the platform knows of a device."""

    versions: dict[str, str] = field(default_factory=dict)
    online: bool = False


class Jobs:
    """The devices and jobs of one platform. Each method that changes something says what follows from it."""

    def __init__(self) -> None:
        self.devices: dict[Identity, Known] = {}
        self._jobs: dict[str, Job] = {}
        self._batches: dict[str, Batch] = {}
        self._of_device: dict[Identity, list[str]] = {}
        self._free_at: dict[str, float] = {}
        """When a batch with a rate may tell its next device."""

    @property
    def jobs(self) -> Mapping[str, Job]:
        """All jobs by id, oldest first, as they are now."""
        return MappingProxyType(self._jobs)

    @property
    def batches(self) -> Mapping[str, Batch]:
        """All batches by id, oldest first, as they are now."""
        return MappingProxyType(self._batches)

    def restore(
        self, devices: Mapping[Identity, Mapping[str, str]], jobs: Iterable[Job], batches: Iterable[Batch] = ()
    ) -> None:
        """Take up what an earlier run has kept; every device is offline."""
        self.devices = {identity: Known(dict(versions)) for identity, versions in devices.items()}
        self._jobs = {job.id: job for job in jobs}
        self._of_device = {}
        for job in self._jobs.values():
            self._of_device.setdefault(job.device, []).append(job.id)
        self._batches = {batch.id: batch for batch in batches}

    def add_device(self, identity: Identity) -> None:
        self.devices.setdefault(identity, Known())

    def start(self, package: Package, selection: Selection, options: Options, now: float) -> tuple[Batch, list[Effect]]:
        """Make a batch, and its jobs as far as they are known by now.

        Raises ValueError where things do not go together or a static batch would have no device; `Refused` if the
        package has a running dynamic batch and this were another.
        """
        planned = options.starts_at is not None and options.starts_at > now
        batch = Batch(str(len(self._batches) + 1), package, selection, options, now, planned)
        for other in self._running_dynamic() if selection.dynamic else ():
            if other.package.id == package.id:
                raise Refused(f"batch {other.id}: runs, and a package has one dynamic batch at a time")
        devices = [] if selection.dynamic is Dynamic.LATER else self._devices_of(batch)
        self._batches[batch.id] = batch
        return batch, [effect for device in devices for effect in self._create(batch, device, now)]

    def batch_state(self, batch_id: str) -> BatchState:
        batch = self._batches[batch_id]
        if batch.canceled_at is not None:
            return BatchState.CANCELED
        if batch.planned:
            return BatchState.PLANNED
        has_more = batch.selection.dynamic or any(not job.state.is_final for job in self._jobs_of(batch))
        return BatchState.IN_PROGRESS if has_more else BatchState.COMPLETED

    def cancel_batch(self, batch_id: str, now: float) -> list[Effect]:
        """The batch makes no more jobs, and those that are unfinished are cancelled; `Refused` if it has ended."""
        state = self.batch_state(batch_id)
        if state in {BatchState.COMPLETED, BatchState.CANCELED}:
            raise Refused(f"batch {batch_id}: is {state} already")
        batch = self._batches[batch_id] = replace(self._batches[batch_id], canceled_at=now)
        unfinished = [job for job in self._jobs_of(batch) if not job.state.is_final]
        reason = "its batch was cancelled by the operator"
        return [effect for job in unfinished for effect in self._end(job, JobState.CANCELED, reason, now)]

    def confirm(self, job_id: str, now: float) -> list[Effect]:
        """Someone agrees; `Refused` unless the job waits for that."""
        job = self._jobs[job_id]
        if job.state is not JobState.CONFIRM:
            raise Refused(f"job {job_id}: is {job.state}, waits for no confirmation")
        return self._put(replace(job, state=JobState.QUEUED)) + self._push_if_due(job_id, now)

    def cancel(self, job_id: str, now: float) -> list[Effect]:
        """The operator cancels; `Refused` if the job has ended."""
        job = self._jobs[job_id]
        if job.state.is_final:
            raise Refused(f"job {job_id}: is {job.state} already")
        return self._end(job, JobState.CANCELED, "cancelled by the operator", now)

    def online(self, device: Identity, now: float) -> list[Effect]:
        """The device has connected: what is unfinished is pushed again, however often that was done before."""
        self.devices[device].online = True
        effects = [effect for job in self._unfinished(device) for effect in self._push_if_due(job.id, now)]
        for module in dict.fromkeys(batch.package.module for batch in self._running_dynamic()):
            effects += self._join(device, module, now, has_informed=False)
        return effects

    def offline(self, device: Identity) -> None:
        self.devices[device].online = False

    def informed(self, device: Identity, module: str, version: str, now: float) -> list[Effect]:
        self.devices[device].versions[module] = version
        effects = [effect for job in self._unfinished(device, module) for effect in self._informed(job, version, now)]
        return effects + self._join(device, module, now, has_informed=True)

    def progressed(self, device: Identity, module: str, step: int, desc: str, now: float) -> list[Effect]:
        """A step counts for the module's job once the device can know of it; without one it is forgotten."""
        effects: list[Effect] = []
        for job in self._unfinished(device, module):
            if job.state not in {JobState.NOTIFIED, JobState.IN_PROGRESS}:
                continue
            told = replace(
                job,
                state=JobState.IN_PROGRESS,
                first_progress_at=now if job.first_progress_at is None else job.first_progress_at,
                log=(*job.log, Step(now, step, desc)),
            )
            if step >= 0:
                effects += self._put(told)
            else:
                reason = f"step {step}, {STEP_MEANS.get(step, 'failed')}" + (f": {desc}" if desc else "")
                effects += self._fail(told, reason, now)
        return effects

    def asked(self, device: Identity, module: str, now: float) -> tuple[Job | None, list[Effect]]:
        """What `firmware/get` obtains: the module's unfinished job, unless that waits for confirmation or its start."""
        for job in self._unfinished(device, module):
            if job.state is not JobState.CONFIRM and not self._is_planned(job):
                effects = self._put(self._notified(job, now))
                return self._jobs[job.id], effects
        return None, []

    def due(self, now: float) -> list[Effect]:
        """What time brings: starts, turns, time-outs and retries."""
        effects: list[Effect] = []
        for batch in tuple(self._batches.values()):
            if (start := _start_of(batch)) is not None and start <= now:
                self._batches[batch.id] = replace(batch, planned=False)
                for job in self._jobs_of(batch):
                    effects += self._push_if_due(job.id, now)
        for job in tuple(self._jobs.values()):
            if job.state.is_final:
                continue
            if job.deadline is not None and job.deadline <= now:
                effects += self._end(job, JobState.FAILED, f"timeout after {job.options.timeout_s:g} s", now)
            elif job.retry_at is not None and job.retry_at <= now:
                effects += self._put(replace(job, retry_at=None, retries=job.retries + 1))
                effects += self._push_if_due(job.id, now)
            elif job.push_at is not None and job.push_at <= now:
                effects += self._push_if_due(job.id, now)
        return effects

    def next_due(self) -> float | None:
        """When `due` has something to do, or None."""
        times = [
            at
            for job in self._jobs.values()
            if not job.state.is_final
            for at in (job.deadline, job.retry_at, job.push_at if self.devices[job.device].online else None)
            if at is not None
        ]
        times += [at for at in map(_start_of, self._batches.values()) if at is not None]
        return min(times, default=None)

    def waits_for(self, job: Job) -> str | None:
        """What an unfinished job waits for, in words for people; None if it is the device's turn, or nobody's."""
        if job.state is JobState.CONFIRM:
            return "confirmation"
        if job.retry_at is not None:
            return "its retry"
        if job.state is not JobState.QUEUED:
            return None
        if self._is_planned(job):
            return "the start of its batch"
        if not job.options.need_push:
            return "the device to ask"
        return "its turn" if self.devices[job.device].online else "the device, which is offline"

    def _devices_of(self, batch: Batch) -> list[Identity]:
        """Those that are to have a job from the beginning."""
        selection = batch.selection
        if selection.product is None:
            found = list(dict.fromkeys(selection.devices))
            for device in found:
                if device not in self.devices:
                    raise ValueError(f"device {device}: not known")
        else:
            found = [device for device in self.devices if device.product_key == selection.product]
        fitting = [device for device in found if self._fits(batch, device)]
        if not fitting and not selection.dynamic:
            raise ValueError(f"no device to upgrade: {self._why_none(batch, found)}")
        if batch.package.diff and len(fitting) < len(found) and not (selection.source_versions or selection.product):
            raise ValueError(f"a differential package: {self._why_none(batch, found)}")
        return fitting

    def _fits(self, batch: Batch, device: Identity) -> bool:
        package, selection = batch.package, batch.selection
        if selection.product is not None and device.product_key != selection.product:
            return False
        version = self.devices[device].versions.get(package.module)
        if wanted := _wanted(batch):
            return version in wanted
        return selection.product is None or version != package.version

    def _why_none(self, batch: Batch, devices: list[Identity]) -> str:
        """Why these devices are not in the batch, for the first of them."""
        if not devices:
            return f"product {batch.selection.product} has no device"
        device = next(device for device in devices if not self._fits(batch, device))
        version = self.devices[device].versions.get(batch.package.module) or "no version"
        but = f", not {_or(wanted)}" if (wanted := _wanted(batch)) else " already"
        more = f", and {len(devices) - 1} more do not fit" if len(devices) > 1 else ""
        return f"{device} has informed {version}{but}{more}"

    def _join(self, device: Identity, module: str, now: float, *, has_informed: bool) -> list[Effect]:
        """The device may fit into a dynamic batch: the newest one that it fits."""
        has_arrived = False  # in a newer batch: one for all versions must not take the device back
        for batch in reversed(self._running_dynamic()):
            if batch.package.module != module or batch.selection.product != device.product_key:
                continue
            has_arrived |= self.devices[device].versions.get(module) == batch.package.version
            if has_arrived and not _wanted(batch):
                return []
            if not self._fits(batch, device):
                continue
            if not has_informed and batch.selection.dynamic is Dynamic.LATER:
                continue
            had = [job for job in self._jobs_of_device(device) if job.batch == batch.id]
            if had and not (had[-1].state is JobState.SUCCEEDED or had[-1].is_untold_failure):
                return []
            blocker, _ = self._others(batch, device)
            return [] if blocker else self._create(batch, device, now)
        return []

    def _create(self, batch: Batch, device: Identity, now: float) -> list[Effect]:
        package, options = batch.package, batch.options
        job = Job(
            id=str(len(self._jobs) + 1),
            device=device,
            package=package,
            options=options,
            state=JobState.CONFIRM if options.need_confirm else JobState.QUEUED,
            created_at=now,
            source=self.devices[device].versions.get(package.module),
            batch=batch.id,
        )
        blocker, replaced = self._others(batch, device)
        if blocker is not None:
            reason = f"job {blocker.id} is unfinished: {blocker.package.version} {blocker.state}"
            return self._end(job, JobState.FAILED, reason, now)
        effects: list[Effect] = []
        for other in replaced:
            effects += self._end(other, JobState.CANCELED, f"overwritten by job {job.id}", now)
        return effects + self._put(job) + self._push_if_due(job.id, now)

    def _others(self, batch: Batch, device: Identity) -> tuple[Job | None, list[Job]]:
        """The unfinished job that is in the way of a new one, if there is one; those that the new one replaces."""
        options = batch.options
        others = self._unfinished(device, batch.package.module if options.multi_module else None)
        replaces = options.overwrite or options.multi_module
        for other in others:
            if other.state is JobState.IN_PROGRESS or not replaces:
                return other, []
        return None, others

    def _informed(self, job: Job, version: str, now: float) -> list[Effect]:
        if job.state is JobState.CONFIRM:
            return self._put(replace(job, source=version))
        if version == job.package.version:
            return self._end(job, JobState.SUCCEEDED, None, now)
        if job.state is not JobState.IN_PROGRESS or job.source is None:
            return self._put(replace(job, source=version))
        if version == job.source:
            return []
        reason = f"version {version} informed, neither {job.source} nor {job.package.version}"
        return self._fail(job, reason, now)

    def _fail(self, job: Job, reason: str, now: float) -> list[Effect]:
        """A failure that may be retried."""
        retry = job.options.retry
        if job.retry_at is not None:
            return self._put(job)  # this try has failed already
        if retry is None or job.retries >= retry.count:
            return self._end(job, JobState.FAILED, reason, now)
        return self._put(replace(job, retry_at=now + retry.interval_s, reason=reason))

    def _end(self, job: Job, state: JobState, reason: str | None, now: float) -> list[Effect]:
        return self._put(replace(job, state=state, reason=reason, ended_at=now, retry_at=None))

    def _push_if_due(self, job_id: str, now: float) -> list[Effect]:
        job = self._jobs[job_id]
        if (
            not self.devices[job.device].online
            or not job.options.need_push
            or job.retry_at is not None
            or job.state is JobState.CONFIRM
            or job.state.is_final
            or self._is_planned(job)
        ):
            return []
        if job.state is JobState.QUEUED and job.options.push_rate is not None and job.push_at is None:
            turn = max(now, self._free_at.get(job.batch, now))
            self._free_at[job.batch] = turn + 60 / job.options.push_rate
            effects = self._put(replace(job, push_at=turn))
        else:
            effects = []
        job = self._jobs[job_id]
        if job.push_at is not None and job.push_at > now:
            return effects
        effects += self._put(self._notified(job, now))
        return [*effects, Push(self._jobs[job_id])]

    @staticmethod
    def _notified(job: Job, now: float) -> Job:
        if job.state is JobState.IN_PROGRESS:
            return job
        return replace(job, state=JobState.NOTIFIED, notified_at=job.notified_at or now, push_at=None)

    def _put(self, job: Job) -> list[Effect]:
        was = self._jobs.get(job.id)
        if was == job:
            return []
        self._jobs[job.id] = job
        if was is None:
            self._of_device.setdefault(job.device, []).append(job.id)
        return [Changed(job, was.state if was else None)]

    def _unfinished(self, device: Identity, module: str | None = None) -> list[Job]:
        return [
            job
            for job in self._jobs_of_device(device)
            if not job.state.is_final and (module is None or job.package.module == module)
        ]

    def _jobs_of_device(self, device: Identity) -> list[Job]:
        return [self._jobs[job_id] for job_id in self._of_device.get(device, ())]

    def _jobs_of(self, batch: Batch) -> list[Job]:
        return [job for job in self._jobs.values() if job.batch == batch.id]

    def _running_dynamic(self) -> list[Batch]:
        """Oldest first."""
        return [batch for batch in self._batches.values() if batch.selection.dynamic and batch.canceled_at is None]

    def _is_planned(self, job: Job) -> bool:
        return job.batch in self._batches and self._batches[job.batch].planned


def _start_of(batch: Batch) -> float | None:
    """When a batch starts that has not."""
    return batch.options.starts_at if batch.planned and batch.canceled_at is None else None


def _wanted(batch: Batch) -> tuple[str, ...]:
    """The versions of which a device must have informed one."""
    return batch.selection.source_versions or (batch.options.source_versions if batch.package.diff else ())


def _or(values: Iterable[object]) -> str:
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return " or ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
