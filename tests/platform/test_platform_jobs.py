# SPDX-License-Identifier: Apache-2.0
"""The rules about jobs, as a table: what happens, and how the job stands then."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from otad.platform.credentials import Identity
from otad.platform.jobs import (
    Changed,
    Effect,
    Job,
    Jobs,
    JobState,
    Options,
    Package,
    PackageFile,
    Protocol,
    Push,
    Refused,
    Retry,
    Selection,
    SignMethod,
    Step,
)

GATEWAY = Identity("pk", "gateway")
OTHER = Identity("pk", "other")


def package(version: str = "2", module: str = "default") -> Package:
    return Package(version, module, version, Path("x"), 1, SignMethod.SHA256, "00", "00")


class World:
    """Jobs with one device and a clock that a test turns."""

    def __init__(self) -> None:
        self.jobs = Jobs()
        self.jobs.add_device(GATEWAY)
        self.jobs.add_device(OTHER)
        self.now = 0.0
        self.effects: list[Effect] = []

    def push(self, version: str = "2", module: str = "default", **options: object) -> None:
        selection = Selection((GATEWAY,))
        options_ = Options(**options)  # type: ignore[arg-type]
        self.effects += self.jobs.start(package(version, module), selection, options_, self.now)[1]

    def online(self) -> None:
        self.effects += self.jobs.online(GATEWAY, self.now)

    def offline(self) -> None:
        self.jobs.offline(GATEWAY)

    def inform(self, version: str, module: str = "default") -> None:
        self.effects += self.jobs.informed(GATEWAY, module, version, self.now)

    def step(self, step: int, desc: str = "", module: str = "default") -> None:
        self.effects += self.jobs.progressed(GATEWAY, module, step, desc, self.now)

    def ask(self, module: str = "default") -> Job | None:
        job, effects = self.jobs.asked(GATEWAY, module, self.now)
        self.effects += effects
        return job

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.effects += self.jobs.due(self.now)

    @property
    def pushes(self) -> int:
        return sum(isinstance(effect, Push) for effect in self.effects)

    def job(self, job_id: str = "1") -> Job:
        return self.jobs.jobs[job_id]


RETRY = {"source_versions": ("1",), "retry": Retry(1, 600)}

# Each line of the table: what happens, then state, reason and number of pushes of job 1.
Story = Callable[[World], object]
Table = list[tuple[str, list[Story], JobState, str | None, int]]
ONLINE: list[Story] = [lambda w: w.inform("1"), lambda w: w.online()]
TABLE: Table = [
    ("offline: queued", [lambda w: w.push()], JobState.QUEUED, None, 0),
    ("online: pushed at once", [*ONLINE, lambda w: w.push()], JobState.NOTIFIED, None, 1),
    (
        "queued, then online: pushed",
        [lambda w: w.push(), lambda w: w.online()],
        JobState.NOTIFIED,
        None,
        1,
    ),
    (
        "each time online: pushed again",
        [*ONLINE, lambda w: w.push(), lambda w: w.online(), lambda w: w.online()],
        JobState.NOTIFIED,
        None,
        3,
    ),
    (
        "online again in progress: pushed again, state kept",
        [*ONLINE, lambda w: w.push(), lambda w: w.step(1), lambda w: w.online()],
        JobState.IN_PROGRESS,
        None,
        2,
    ),
    (
        "ended: never pushed again",
        [*ONLINE, lambda w: w.push(), lambda w: w.inform("2"), lambda w: w.online()],
        JobState.SUCCEEDED,
        None,
        1,
    ),
    (
        "need_push=False: not pushed",
        [*ONLINE, lambda w: w.push(need_push=False), lambda w: w.online()],
        JobState.QUEUED,
        None,
        0,
    ),
    (
        "need_push=False: obtained by asking",
        [*ONLINE, lambda w: w.push(need_push=False), lambda w: w.ask()],
        JobState.NOTIFIED,
        None,
        0,
    ),
    (
        "need_confirm: cannot be obtained",
        [*ONLINE, lambda w: w.push(need_confirm=True), lambda w: w.ask(), lambda w: w.online()],
        JobState.CONFIRM,
        None,
        0,
    ),
    (
        "confirmed: pushed",
        [*ONLINE, lambda w: w.push(need_confirm=True), lambda w: w.effects.extend(w.jobs.confirm("1", 0))],
        JobState.NOTIFIED,
        None,
        1,
    ),
    (
        "target version while only queued: succeeded",
        [lambda w: w.push(), lambda w: w.inform("2")],
        JobState.SUCCEEDED,
        None,
        0,
    ),
    (
        "target version while waiting for confirmation: counts for nothing",
        [lambda w: w.push(need_confirm=True), lambda w: w.inform("2")],
        JobState.CONFIRM,
        None,
        0,
    ),
    (
        "progress 100 is not success",
        [*ONLINE, lambda w: w.push(), lambda w: w.step(100)],
        JobState.IN_PROGRESS,
        None,
        1,
    ),
    (
        "progress without having been told: forgotten",
        [lambda w: w.push(), lambda w: w.step(10), lambda w: w.step(-1)],
        JobState.QUEUED,
        None,
        0,
    ),
    (
        "the source version does not end the job",
        [*ONLINE, lambda w: w.push(), lambda w: w.step(50), lambda w: w.inform("1")],
        JobState.IN_PROGRESS,
        None,
        1,
    ),
    (
        "a third version in progress: failed",
        [*ONLINE, lambda w: w.push(), lambda w: w.step(50), lambda w: w.inform("3")],
        JobState.FAILED,
        "version 3 informed, neither 1 nor 2",
        1,
    ),
    (
        "a third version before progress: the new source",
        [*ONLINE, lambda w: w.push(), lambda w: w.inform("3"), lambda w: w.step(1), lambda w: w.inform("3")],
        JobState.IN_PROGRESS,
        None,
        1,
    ),
    (
        "the first version ever informed, in progress: the source",
        [lambda w: w.online(), lambda w: w.push(), lambda w: w.step(1), lambda w: w.inform("1")],
        JobState.IN_PROGRESS,
        None,
        1,
    ),
    (
        "another module's version: no matter",
        [*ONLINE, lambda w: w.push(), lambda w: w.step(1), lambda w: w.inform("2", "MCU")],
        JobState.IN_PROGRESS,
        None,
        1,
    ),
    (
        "another module's step: no matter",
        [*ONLINE, lambda w: w.push(), lambda w: w.step(-1, "", "MCU")],
        JobState.NOTIFIED,
        None,
        1,
    ),
    (
        "a negative step: failed, with its reason",
        [*ONLINE, lambda w: w.push(), lambda w: w.step(1), lambda w: w.step(-3, "digest differs")],
        JobState.FAILED,
        "step -3, verification failed: digest differs",
        1,
    ),
    (
        "a negative step first of all: failed",
        [*ONLINE, lambda w: w.push(), lambda w: w.step(-1)],
        JobState.FAILED,
        "step -1, upgrade failed",
        1,
    ),
    (
        "no progress: no timeout",
        [*ONLINE, lambda w: w.push(timeout_s=60), lambda w: w.wait(1000)],
        JobState.NOTIFIED,
        None,
        1,
    ),
    (
        "timeout counts from the first progress, whatever comes later",
        [
            *ONLINE,
            lambda w: w.push(timeout_s=60),
            lambda w: w.step(1),
            lambda w: w.wait(59),
            lambda w: w.online(),
            lambda w: w.step(90),
            lambda w: w.wait(1),
        ],
        JobState.FAILED,
        "timeout after 60 s",
        2,
    ),
    (
        "the target version after the failure: too late",
        [*ONLINE, lambda w: w.push(), lambda w: w.step(-1), lambda w: w.inform("2")],
        JobState.FAILED,
        "step -1, upgrade failed",
        1,
    ),
    (
        "retry: the state shown does not change",
        [*ONLINE, lambda w: w.push(**RETRY), lambda w: w.step(1), lambda w: w.step(-2)],
        JobState.IN_PROGRESS,
        "step -2, download failed",
        1,
    ),
    (
        "retry: pushed again after the interval, not before",
        [
            *ONLINE,
            lambda w: w.push(**RETRY),
            lambda w: w.step(-2),
            lambda w: w.wait(599),
            lambda w: w.online(),
            lambda w: w.wait(1),
        ],
        JobState.IN_PROGRESS,
        "step -2, download failed",
        2,
    ),
    (
        "retry: a failure told twice counts once",
        [
            *ONLINE,
            lambda w: w.push(**RETRY),
            lambda w: w.step(-2),
            lambda w: w.step(-2),
            lambda w: w.inform("3"),
        ],
        JobState.IN_PROGRESS,
        "step -2, download failed",
        1,
    ),
    (
        "retry: used up",
        [*ONLINE, lambda w: w.push(**RETRY), lambda w: w.step(-2), lambda w: w.wait(600), lambda w: w.step(-4)],
        JobState.FAILED,
        "step -4, flashing failed",
        2,
    ),
    (
        "retry: of a third version too",
        [*ONLINE, lambda w: w.push(**RETRY), lambda w: w.step(1), lambda w: w.inform("3"), lambda w: w.wait(600)],
        JobState.IN_PROGRESS,
        "version 3 informed, neither 1 nor 2",
        2,
    ),
    (
        "retry: not of a timeout",
        [*ONLINE, lambda w: w.push(timeout_s=900, **RETRY), lambda w: w.step(1), lambda w: w.wait(900)],
        JobState.FAILED,
        "timeout after 900 s",
        1,
    ),
    (
        "cancelled by the operator",
        [*ONLINE, lambda w: w.push(), lambda w: w.step(1), lambda w: w.jobs.cancel("1", 0), lambda w: w.inform("2")],
        JobState.CANCELED,
        "cancelled by the operator",
        1,
    ),
    (
        "a newer job that overwrites: cancelled",
        [*ONLINE, lambda w: w.push(), lambda w: w.push("3", overwrite=True)],
        JobState.CANCELED,
        "overwritten by job 2",
        2,
    ),
    (
        "a newer job that does not overwrite: goes on",
        [*ONLINE, lambda w: w.push(), lambda w: w.push("3")],
        JobState.NOTIFIED,
        None,
        1,
    ),
    (
        "in progress: not to be overwritten",
        [*ONLINE, lambda w: w.push(), lambda w: w.step(1), lambda w: w.push("3", overwrite=True)],
        JobState.IN_PROGRESS,
        None,
        1,
    ),
]


@pytest.mark.parametrize(
    ("story", "state", "reason", "pushes"),
    [line[1:] for line in TABLE],
    ids=[line[0] for line in TABLE],
)
def test_a_job(story: list[Story], state: JobState, reason: str | None, pushes: int) -> None:
    world = World()
    for happens in story:
        happens(world)

    job = world.job()
    assert (job.state, job.reason, world.pushes) == (state, reason, pushes)


@pytest.mark.parametrize(
    ("before", "options", "reason"),
    [
        ([lambda w: w.push()], {}, "job 1 is unfinished: 2 NOTIFIED"),
        (
            [lambda w: w.push(), lambda w: w.step(1)],
            {"overwrite": True},
            "job 1 is unfinished: 2 IN_PROGRESS",
        ),
    ],
    ids=["without overwrite", "in progress"],
)
def test_the_newer_job_fails_at_once(before: list[Story], options: dict[str, object], reason: str) -> None:
    world = World()
    for happens in [*ONLINE, *before]:
        happens(world)

    world.push("3", **options)

    assert (world.job("2").state, world.job("2").reason) == (JobState.FAILED, reason)


def test_with_multi_module_each_module_has_its_job() -> None:
    world = World()
    world.online()
    world.push("2", multi_module=True)
    world.push("5", "MCU", multi_module=True)
    world.push("6", "MCU", multi_module=True)

    assert [job.state for job in world.jobs.jobs.values()] == ["NOTIFIED", "CANCELED", "NOTIFIED"]


def test_a_batch_gives_each_device_its_job() -> None:
    world = World()
    world.online()

    _, effects = world.jobs.start(package(), Selection((GATEWAY, OTHER, GATEWAY)), Options(), 0)

    assert [job.state for job in world.jobs.jobs.values()] == ["NOTIFIED", "QUEUED"]
    assert effects[-1] == Changed(world.job("2"), None)


def test_asking_obtains_the_same_job_as_often_as_one_likes() -> None:
    world = World()
    world.online()
    world.push()
    world.step(1)

    assert world.ask() == world.ask() == world.job()
    assert world.ask("MCU") is None


def test_the_log_keeps_every_step() -> None:
    world = World()
    world.online()
    world.push()
    world.step(1, "begin")
    world.wait(5)
    world.step(-1, "health check net: no route")

    assert world.job().log == (Step(0, 1, "begin"), Step(5, -1, "health check net: no route"))
    assert (world.job().first_progress_at, world.job().ended_at) == (0, 5)


def test_the_next_due_time_is_the_nearest() -> None:
    world = World()
    world.online()
    assert world.jobs.next_due() is None

    world.push(timeout_s=900, **RETRY)
    world.step(1)
    assert world.jobs.next_due() == 900

    world.step(-1)
    assert world.jobs.next_due() == 600


@pytest.mark.parametrize(
    "options",
    [
        {"timeout_s": 0},
        {"retry": Retry(1)},
        {"timeout_s": 600, "source_versions": ("1",), "retry": Retry(1, 600)},
        {"push_rate": 9},
        {"push_rate": 10, "need_push": False},
    ],
    ids=["no time at all", "retry without source versions", "retry after the timeout", "too slow", "a rate of nothing"],
)
def test_options_that_contradict_themselves(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"^(timeout_s|retry|push_rate)"):
        Options(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "interval_s"), [(3, 0), (0, 0), (1, 60), (1, -600)])
def test_retries_as_the_platform_offers_them(count: int, interval_s: float) -> None:
    with pytest.raises(ValueError, match=r"^retry: .*, not (1, 2 or 5|0, 10, 30, 60 or 1440)$"):
        Retry(count, interval_s)


FILE = PackageFile("a", Path("a"), 1, "00")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"files": (FILE,)}, "files: 1, not 2 to 20"),
        ({"files": (FILE, FILE)}, "files: two have the same name"),
        ({"files": (FILE, replace(FILE, name="b")), "protocol": Protocol.MQTT}, "several files go by https"),
        ({"protocol": Protocol.BOTH, "size": (16 << 20) + 1}, "16777217 bytes, more than 16777216"),
        ({"tags": {str(n): "x" for n in range(11)}}, "tags: 11, more than 10"),
        ({"tags": {"a-b": "x"}}, "tag 'a-b': not 1 to 30"),
        ({"tags": {"a": ""}}, "tag a: 0 characters"),
        ({"tags": {str(n): "x" * 1024 for n in range(4)}}, "tags: 4100 characters in all"),
        ({"udi": "x" * 4097}, "udi: 4097 characters"),
    ],
)
def test_packages_that_the_platform_does_not_take(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        replace(package(), **fields)


def test_what_has_ended_cannot_be_cancelled_or_confirmed() -> None:
    world = World()
    world.push()
    world.inform("2")

    with pytest.raises(Refused, match="is SUCCEEDED already"):
        world.jobs.cancel("1", 0)
    with pytest.raises(Refused, match="waits for no confirmation"):
        world.jobs.confirm("1", 0)
