# SPDX-License-Identifier: Apache-2.0
"""The platform's upgrade jobs: every rule about them, and nothing else. No I/O and no clock: `now` is given.

A job brings one package to one device:

    CONFIRM --confirm--> QUEUED --push, or firmware/get--> NOTIFIED --progress--> IN_PROGRESS --> SUCCEEDED
                                                                                            `--> FAILED
- SUCCEEDED has one criterion: the device informs the target version for the package's module.
- FAILED: (1) another unfinished job was there and was not to be overwritten, or was in progress; (2) a negative step;
  (3) too long since the first progress ever; (4) while in progress, a version that is neither source nor target.
- (2) and (4) are retried if the job names source versions and a retry; the state shown does not change meanwhile.
- The notice is pushed at once to a device that is online, and again each time it comes online until the job ends.
- CANCELED, by the operator or by a newer job: the device is told nothing.

`Jobs` answers each call with what there is to do: `Changed` (tell who watches) and `Push` (send the notice).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final

from otad.platform.credentials import Identity

DEFAULT_MODULE: Final = "default"

STEP_MEANS: Final = {-1: "upgrade failed", -2: "download failed", -3: "verification failed", -4: "flashing failed"}


class SignMethod(StrEnum):
    """How a package's digest is made, in the spelling of real traffic."""

    MD5 = "Md5"
    SHA256 = "SHA256"


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
class Package:
    """One uploaded file and what it is."""

    id: str
    module: str
    version: str
    path: Path
    size: int
    sign_method: SignMethod
    sign: str
    """The digest by `sign_method`, lower-case hex."""
    etag: str
    """The file server's entity tag: upper-case MD5, unquoted."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The platform offers 1, 2 or 5 retries, 0 to 1440 minutes apart."""

    count: int
    interval_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator chooses for a push."""

    verify: bool = False
    """A push to try a package out, before the batch. Devices see no difference."""
    need_push: bool = True
    """False: the device has to ask."""
    need_confirm: bool = False
    timeout_s: float | None = None
    """From the first progress. The real platform takes 1 to 1440 minutes."""
    overwrite: bool = False
    """Replace the device's unfinished job, unless it is in progress."""
    multi_module: bool = False
    """One unfinished job for each module, rather than one in all; those of the same module are replaced."""
    source_versions: tuple[str, ...] = ()
    """For which versions the package is meant; needed for a retry."""
    retry: Retry | None = None

    def __post_init__(self) -> None:
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise ValueError(f"timeout_s {self.timeout_s}: must be positive")
        if self.retry is not None:
            if not self.source_versions:
                raise ValueError("retry: needs source_versions")
            if self.timeout_s is not None and self.retry.interval_s >= self.timeout_s:
                raise ValueError("retry: its interval must be shorter than timeout_s")


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

    @property
    def jobs(self) -> Mapping[str, Job]:
        """All jobs by id, oldest first, as they are now."""
        return MappingProxyType(self._jobs)

    def restore(self, devices: Mapping[Identity, Mapping[str, str]], jobs: Iterable[Job]) -> None:
        """Take up what an earlier run has kept; every device is offline."""
        self.devices = {identity: Known(dict(versions)) for identity, versions in devices.items()}
        self._jobs = {job.id: job for job in jobs}

    def add_device(self, identity: Identity) -> None:
        self.devices.setdefault(identity, Known())

    def create(self, package: Package, devices: Iterable[Identity], options: Options, now: float) -> list[Effect]:
        """A static batch: one job for each of the devices given."""
        effects: list[Effect] = []
        for device in devices:
            effects += self._create(package, device, options, now)
        return effects

    def confirm(self, job_id: str, now: float) -> list[Effect]:
        """Someone agrees; raises ValueError unless the job waits for that."""
        job = self._jobs[job_id]
        if job.state is not JobState.CONFIRM:
            raise ValueError(f"job {job_id}: is {job.state}, waits for no confirmation")
        return self._put(replace(job, state=JobState.QUEUED)) + self._push_if_due(job_id, now)

    def cancel(self, job_id: str, now: float) -> list[Effect]:
        """The operator cancels; raises ValueError if the job has ended."""
        job = self._jobs[job_id]
        if job.state.is_final:
            raise ValueError(f"job {job_id}: is {job.state} already")
        return self._end(job, JobState.CANCELED, "cancelled by the operator", now)

    def online(self, device: Identity, now: float) -> list[Effect]:
        """The device has connected: what is unfinished is pushed again, however often that was done before."""
        self.devices[device].online = True
        return [effect for job in self._unfinished(device) for effect in self._push_if_due(job.id, now)]

    def offline(self, device: Identity) -> None:
        self.devices[device].online = False

    def informed(self, device: Identity, module: str, version: str, now: float) -> list[Effect]:
        self.devices[device].versions[module] = version
        return [effect for job in self._unfinished(device, module) for effect in self._informed(job, version, now)]

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
        """What `firmware/get` obtains: the module's unfinished job unless it waits for confirmation."""
        for job in self._unfinished(device, module):
            if job.state is not JobState.CONFIRM:
                effects = self._put(self._notified(job, now))
                return self._jobs[job.id], effects
        return None, []

    def due(self, now: float) -> list[Effect]:
        """What time brings: time-outs and retries."""
        effects: list[Effect] = []
        for job in tuple(self._jobs.values()):
            if job.state.is_final:
                continue
            if job.deadline is not None and job.deadline <= now:
                effects += self._end(job, JobState.FAILED, f"timeout after {job.options.timeout_s:g} s", now)
            elif job.retry_at is not None and job.retry_at <= now:
                effects += self._put(replace(job, retry_at=None, retries=job.retries + 1))
                effects += self._push_if_due(job.id, now)
        return effects

    def next_due(self) -> float | None:
        """When `due` has something to do, or None."""
        times = (
            at
            for job in self._jobs.values()
            if not job.state.is_final
            for at in (job.deadline, job.retry_at)
            if at is not None
        )
        return min(times, default=None)

    def _create(self, package: Package, device: Identity, options: Options, now: float) -> list[Effect]:
        job = Job(
            id=str(len(self._jobs) + 1),
            device=device,
            package=package,
            options=options,
            state=JobState.CONFIRM if options.need_confirm else JobState.QUEUED,
            created_at=now,
            source=self.devices[device].versions.get(package.module),
        )
        others = self._unfinished(device, package.module if options.multi_module else None)
        for other in others:
            if other.state is JobState.IN_PROGRESS or not (options.overwrite or options.multi_module):
                reason = f"job {other.id} is unfinished: {other.package.version} {other.state}"
                return self._end(job, JobState.FAILED, reason, now)
        effects: list[Effect] = []
        for other in others:
            effects += self._end(other, JobState.CANCELED, f"overwritten by job {job.id}", now)
        return effects + self._put(job) + self._push_if_due(job.id, now)

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
        ):
            return []
        effects = self._put(self._notified(job, now))
        return [*effects, Push(self._jobs[job_id])]

    @staticmethod
    def _notified(job: Job, now: float) -> Job:
        if job.state is JobState.IN_PROGRESS:
            return job
        return replace(job, state=JobState.NOTIFIED, notified_at=job.notified_at or now)

    def _put(self, job: Job) -> list[Effect]:
        was = self._jobs.get(job.id)
        if was == job:
            return []
        self._jobs[job.id] = job
        return [Changed(job, was.state if was else None)]

    def _unfinished(self, device: Identity, module: str | None = None) -> list[Job]:
        return [
            job
            for job in self._jobs.values()
            if job.device == device and not job.state.is_final and (module is None or job.package.module == module)
        ]
