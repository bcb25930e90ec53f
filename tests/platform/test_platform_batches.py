# SPDX-License-Identifier: Apache-2.0
"""The rules about batches: which devices get a job, when they are told, and what ends it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otad.platform.credentials import Identity
from otad.platform.jobs import (
    Batch,
    BatchState,
    Dynamic,
    Effect,
    Jobs,
    JobState,
    Options,
    Package,
    Push,
    Refused,
    Retry,
    Selection,
    SignMethod,
)

ONE, TWO, THREE = (Identity("pk", name) for name in ("one", "two", "three"))
ELSEWHERE = Identity("other", "one")

BOTH = Dynamic.CURRENT_AND_LATER
LATER = Dynamic.LATER


def package(version: str = "2", module: str = "default", *, diff: bool = False) -> Package:
    return Package(f"{module} {version}", module, version, Path("x"), 1, SignMethod.SHA256, "00", "00", diff=diff)


class World:
    """Three devices of a product and one of another, all online, and a clock that a test turns."""

    def __init__(self) -> None:
        self.jobs = Jobs()
        self.now = 0.0
        self.effects: list[Effect] = []
        for device in (ONE, TWO, THREE, ELSEWHERE):
            self.appear(device)

    def appear(self, device: Identity) -> None:
        self.jobs.add_device(device)
        self.effects += self.jobs.online(device, self.now)

    def inform(self, device: Identity, version: str, module: str = "default") -> None:
        self.effects += self.jobs.informed(device, module, version, self.now)

    def start(
        self,
        what: Package,
        *devices: Identity,
        product: str | None = None,
        sources: tuple[str, ...] = (),
        dynamic: Dynamic | None = None,
        **options: Any,
    ) -> Batch:
        selection = Selection(devices, product, sources, dynamic)
        batch, effects = self.jobs.start(what, selection, Options(source_versions=sources, **options), self.now)
        self.effects += effects
        return batch

    def step(self, device: Identity, step: int) -> None:
        self.effects += self.jobs.progressed(device, "default", step, "", self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.effects += self.jobs.due(self.now)

    def cancel(self, batch: Batch) -> None:
        self.effects += self.jobs.cancel_batch(batch.id, self.now)

    @property
    def table(self) -> list[tuple[str, str, str]]:
        """The jobs: who, to which version, and how they stand."""
        return [(job.device.device_name, job.package.version, job.state.value) for job in self.jobs.jobs.values()]

    @property
    def pushed(self) -> list[str]:
        """Who was sent a notice, in order."""
        return [effect.job.device.device_name for effect in self.effects if isinstance(effect, Push)]

    def state(self, batch: Batch) -> BatchState:
        return self.jobs.batch_state(batch.id)


@pytest.fixture
def world() -> World:
    """`one` runs 1, `two` runs 2, `three` has not informed yet."""
    world = World()
    world.inform(ONE, "1")
    world.inform(TWO, "2")
    world.inform(ELSEWHERE, "1")
    return world


# Which devices a static batch has: how it is made, and who gets a job.
SETS: list[tuple[str, Callable[[World], object], list[str]]] = [
    ("by name: whatever they run", lambda w: w.start(package(), ONE, TWO, THREE), ["one", "two", "three"]),
    ("named twice: once", lambda w: w.start(package(), ONE, ONE), ["one"]),
    ("a product: those that do not run it yet", lambda w: w.start(package(), product="pk"), ["one", "three"]),
    ("a product's source version", lambda w: w.start(package("3"), product="pk", sources=("1",)), ["one"]),
    ("two source versions", lambda w: w.start(package("3"), product="pk", sources=("1", "2")), ["one", "two"]),
    ("by name and source version", lambda w: w.start(package("3"), ONE, TWO, THREE, sources=("2",)), ["two"]),
    (
        "another module's version is no matter",
        lambda w: (w.inform(THREE, "1", "MCU"), w.start(package("3"), product="pk", sources=("1",))),
        ["one"],
    ),
    (
        "a differential package: only where its source runs",
        lambda w: w.start(package("3", diff=True), product="pk", sources=("1",)),
        ["one"],
    ),
    (
        "a device that comes later is not in it",
        lambda w: (w.start(package(), product="pk"), w.appear(Identity("pk", "four"))),
        ["one", "three"],
    ),
    (
        "a device that informs a matching version later is not in it",
        lambda w: (w.start(package("3"), product="pk", sources=("1",)), w.inform(THREE, "1")),
        ["one"],
    ),
]


@pytest.mark.parametrize(("make", "devices"), [line[1:] for line in SETS], ids=[line[0] for line in SETS])
def test_the_set_of_a_static_batch(world: World, make: Callable[[World], object], devices: list[str]) -> None:
    make(world)

    assert [device for device, _, _ in world.table] == devices


# What a dynamic batch does: what happens, and the jobs there are then.
STORIES: list[tuple[str, list[Callable[[World], object]], list[tuple[str, str, str]]]] = [
    (
        "mode 1: those that fit now",
        [lambda w: w.start(package("3"), product="pk", dynamic=BOTH, sources=("1", "2"))],
        [("one", "3", "NOTIFIED"), ("two", "3", "NOTIFIED")],
    ),
    (
        "mode 1: and those that fit later, by a first inform",
        [
            lambda w: w.start(package("3"), product="pk", dynamic=BOTH, sources=("1",)),
            lambda w: w.inform(THREE, "1"),
        ],
        [("one", "3", "NOTIFIED"), ("three", "3", "NOTIFIED")],
    ),
    (
        "mode 1: and a new device, when it comes online",
        [lambda w: w.start(package("3"), product="pk", dynamic=BOTH), lambda w: w.appear(Identity("pk", "four"))],
        [(name, "3", "NOTIFIED") for name in ("one", "two", "three", "four")],
    ),
    (
        "mode 2: nobody now",
        [lambda w: w.start(package("3"), product="pk", dynamic=LATER), lambda w: w.appear(ONE)],
        [],
    ),
    (
        "mode 2: those that inform from now on",
        [
            lambda w: w.start(package("3"), product="pk", dynamic=LATER, sources=("1",)),
            lambda w: w.inform(TWO, "2"),
            lambda w: w.inform(ONE, "1"),
        ],
        [("one", "3", "NOTIFIED")],
    ),
    (
        "another product: none of its devices",
        [
            lambda w: w.start(package("3"), product="pk", dynamic=LATER, sources=("1",)),
            lambda w: w.inform(ELSEWHERE, "1"),
        ],
        [],
    ),
    (
        "another module: not by the system's version",
        [
            lambda w: w.start(package("3", "MCU"), product="pk", dynamic=LATER, sources=("1",)),
            lambda w: w.inform(ONE, "1"),
            lambda w: w.inform(TWO, "1", "MCU"),
        ],
        [("two", "3", "NOTIFIED")],
    ),
    (
        "mode 2: informing of another module is not informing",
        [
            lambda w: w.inform(ONE, "1", "MCU"),
            lambda w: w.start(package("3", "MCU"), product="pk", dynamic=LATER, sources=("1",)),
            lambda w: w.inform(ONE, "1"),
        ],
        [],
    ),
    (
        "informing the same again makes no second job",
        [
            lambda w: w.start(package("3"), product="pk", dynamic=BOTH, sources=("1",)),
            lambda w: w.inform(ONE, "1"),
            lambda w: w.appear(ONE),
        ],
        [("one", "3", "NOTIFIED")],
    ),
    (
        "a device that failed and went back is not sent round in circles",
        [
            lambda w: w.start(package("3"), product="pk", dynamic=BOTH, sources=("1",)),
            lambda w: w.step(ONE, -1),
            lambda w: w.inform(ONE, "1"),
        ],
        [("one", "3", "FAILED")],
    ),
    (
        "a job that the operator cancelled does not come again",
        [
            lambda w: w.start(package("3"), product="pk", dynamic=BOTH, sources=("1",)),
            lambda w: w.jobs.cancel("1", 0),
            lambda w: w.inform(ONE, "1"),
        ],
        [("one", "3", "CANCELED")],
    ),
    (
        "a device that succeeded and came back fits once more",
        [
            lambda w: w.start(package("3"), product="pk", dynamic=BOTH, sources=("1",)),
            lambda w: w.inform(ONE, "3"),
            lambda w: w.inform(ONE, "1"),
        ],
        [("one", "3", "SUCCEEDED"), ("one", "3", "NOTIFIED")],
    ),
    (
        "one batch leads to the next: 1 to 2, 2 to 3",
        [
            lambda w: w.start(package("3"), product="pk", dynamic=LATER, sources=("2",)),
            lambda w: w.start(package("2"), product="pk", dynamic=LATER, sources=("1",)),
            lambda w: w.inform(ONE, "1"),
            lambda w: w.inform(ONE, "2"),
        ],
        [("one", "2", "SUCCEEDED"), ("one", "3", "NOTIFIED")],
    ),
    (
        "where two fit, the newest wins",
        [
            lambda w: w.start(package("3"), product="pk", dynamic=LATER, sources=("1",)),
            lambda w: w.start(package("4"), product="pk", dynamic=LATER, sources=("1",)),
            lambda w: w.inform(ONE, "1"),
        ],
        [("one", "4", "NOTIFIED")],
    ),
    (
        "an older one for all versions does not take a device back",
        [
            lambda w: w.start(package("3"), product="pk", dynamic=LATER),
            lambda w: w.start(package("4"), product="pk", dynamic=LATER),
            lambda w: w.inform(ONE, "4"),
        ],
        [],
    ),
    (
        "cancelled: nobody joins any more, and the older one is the newest again",
        [
            lambda w: w.start(package("3"), product="pk", dynamic=LATER, sources=("1",)),
            lambda w: w.cancel(w.start(package("4"), product="pk", dynamic=LATER, sources=("1",))),
            lambda w: w.inform(ONE, "1"),
        ],
        [("one", "3", "NOTIFIED")],
    ),
    (
        "busy with another job: not now",
        [
            lambda w: w.start(package("3"), product="pk", dynamic=LATER, sources=("1",)),
            lambda w: w.start(package("9"), ONE),
            lambda w: w.inform(ONE, "1"),
        ],
        [("one", "9", "NOTIFIED")],
    ),
    (
        "busy, and the batch overwrites",
        [
            lambda w: w.start(package("3"), product="pk", dynamic=LATER, sources=("1",), overwrite=True),
            lambda w: w.start(package("9"), ONE),
            lambda w: w.inform(ONE, "1"),
        ],
        [("one", "9", "CANCELED"), ("one", "3", "NOTIFIED")],
    ),
    (
        "busy at the beginning: the job fails at once, and the device fits once it is free",
        [
            lambda w: w.start(package("9"), ONE),
            lambda w: w.start(package("3"), product="pk", dynamic=BOTH, sources=("1",)),
            lambda w: w.jobs.cancel("1", 0),
            lambda w: w.inform(ONE, "1"),
        ],
        [("one", "9", "CANCELED"), ("one", "3", "FAILED"), ("one", "3", "NOTIFIED")],
    ),
]


@pytest.mark.parametrize(("story", "table"), [line[1:] for line in STORIES], ids=[line[0] for line in STORIES])
def test_a_dynamic_batch(
    world: World, story: list[Callable[[World], object]], table: list[tuple[str, str, str]]
) -> None:
    for happens in story:
        happens(world)

    assert world.table == table


# What is refused, and in which words.
REFUSALS: list[tuple[Callable[[World], object], str]] = [
    (lambda w: w.start(package()), "devices, product: give one of the two; no device is named"),
    (lambda w: w.start(package(), ONE, product="pk"), "devices, product: give one of the two"),
    (lambda w: w.start(package(), ONE, dynamic=BOTH), "dynamic: takes a product"),
    (lambda w: w.start(package(), Identity("pk", "nine")), "device pk/nine: not known"),
    (lambda w: w.start(package(), product="none"), "no device to upgrade: product none has no device"),
    (lambda w: w.start(package(), ONE, sources=("2",)), "source_versions: 2 is what the package brings"),
    (lambda w: w.start(package("3"), ONE, sources=("5", "6")), "pk/one has informed 1, not 5 or 6"),
    (lambda w: w.start(package("3"), THREE, sources=("5",)), "pk/three has informed no version, not 5"),
    (
        lambda w: w.start(package("3"), product="pk", sources=("5",)),
        "no device to upgrade: pk/one has informed 1, not 5, and 2 more do not fit",
    ),
    (lambda w: w.start(package("1"), product="other"), "other/one has informed 1 already"),
    (lambda w: w.start(package(), product="pk", verify=True), "verify: a trial is for devices by name"),
    (lambda w: w.start(package(), product="pk", dynamic=BOTH, starts_at=9), "starts_at: a dynamic batch starts at"),
    (lambda w: w.start(package(diff=True), ONE), "a differential package: needs source_versions"),
    (
        lambda w: w.jobs.start(package("3", diff=True), Selection((ONE, TWO)), Options(source_versions=("1",)), 0),
        "a differential package: pk/two has informed 2, not 1",
    ),
    (lambda w: w.start(package(), ONE, sources=("1",), retry=Retry(1, 600), timeout_s=60), "retry: its interval"),
]


@pytest.mark.parametrize(("make", "why"), REFUSALS, ids=[line[1] for line in REFUSALS])
def test_what_does_not_go_together(world: World, make: Callable[[World], object], why: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the text is looked at below
        make(world)

    assert str(refused.value).startswith(why) or why in str(refused.value)
    assert (dict(world.jobs.batches), world.table) == ({}, [])


def test_a_package_has_one_running_dynamic_batch(world: World) -> None:
    first = world.start(package("3"), product="pk", dynamic=LATER)
    with pytest.raises(Refused, match=r"batch 1: runs, and a package has one dynamic batch at a time"):
        world.start(package("3"), product="pk", dynamic=BOTH)
    world.cancel(first)

    assert world.start(package("3"), product="pk", dynamic=BOTH).id == "2"


def test_a_batch_goes_from_planned_to_completed(world: World) -> None:
    batch = world.start(package(), ONE, starts_at=100)
    states = [world.state(batch)]
    world.wait(100)
    states.append(world.state(batch))
    world.inform(ONE, "2")

    assert [*states, world.state(batch)] == ["PLANNED", "IN_PROGRESS", "COMPLETED"]
    with pytest.raises(Refused, match="batch 1: is COMPLETED already"):
        world.cancel(batch)


def test_a_dynamic_batch_is_never_completed(world: World) -> None:
    batch = world.start(package(), product="pk", dynamic=LATER)

    assert world.state(batch) == "IN_PROGRESS"


def test_cancelling_a_batch_ends_its_jobs(world: World) -> None:
    batch = world.start(package("3"), ONE, TWO, THREE)
    world.inform(ONE, "3")
    world.step(TWO, 50)
    world.cancel(batch)

    assert world.state(batch) == "CANCELED"
    assert [state for _, _, state in world.table] == ["SUCCEEDED", "CANCELED", "CANCELED"]
    assert world.jobs.jobs["2"].reason == "its batch was cancelled by the operator"


def test_nobody_is_told_before_the_start(world: World) -> None:
    world.start(package(), ONE, starts_at=100)
    world.appear(ONE)
    obtained = world.jobs.asked(ONE, "default", world.now)
    world.wait(99)

    assert (obtained, world.pushed, world.jobs.next_due()) == ((None, []), [], 100)
    world.wait(1)
    assert (world.pushed, world.jobs.next_due()) == (["one"], None)


def test_a_planned_batch_that_is_cancelled_is_due_no_more(world: World) -> None:
    world.cancel(world.start(package(), ONE, starts_at=100))

    assert world.jobs.next_due() is None
    world.wait(100)
    assert world.pushed == []


def test_devices_are_told_one_after_the_other(world: World) -> None:
    world.jobs.offline(TWO)
    world.start(package("3"), ONE, TWO, THREE, push_rate=10)

    assert (world.pushed, world.jobs.next_due()) == (["one"], 6)
    world.wait(6)
    assert world.pushed == ["one", "three"]
    world.appear(TWO)
    assert (world.pushed, world.jobs.next_due()) == (["one", "three"], 12)
    world.wait(6)
    assert world.pushed == ["one", "three", "two"]


def test_whose_turn_has_passed_is_told_when_it_comes_online(world: World) -> None:
    world.start(package("3"), ONE, THREE, push_rate=10)
    world.jobs.offline(THREE)
    world.wait(60)

    assert world.jobs.next_due() is None
    world.appear(THREE)
    assert world.pushed == ["one", "three"]


def test_turns_that_nobody_took_are_not_saved_up(world: World) -> None:
    for device in (TWO, THREE):
        world.jobs.offline(device)
    world.start(package("3"), ONE, TWO, THREE, push_rate=10)
    world.wait(100)
    world.appear(TWO)
    world.appear(THREE)

    assert (world.pushed, world.jobs.next_due()) == (["one", "two"], 106)


def test_a_device_that_waits_for_its_turn_may_ask(world: World) -> None:
    world.start(package("3"), ONE, THREE, push_rate=10)
    job, _ = world.jobs.asked(THREE, "default", world.now)

    assert job is not None
    assert (job.state, job.push_at) == (JobState.NOTIFIED, None)
    assert world.jobs.next_due() is None


def test_what_a_job_waits_for(world: World) -> None:
    world.jobs.offline(TWO)
    world.start(package("3"), TWO)
    world.start(package("3"), ONE, starts_at=100)
    world.start(package("3"), THREE, need_push=False)
    world.start(package("3"), ELSEWHERE, need_confirm=True)

    assert [world.jobs.waits_for(job) for job in world.jobs.jobs.values()] == [
        "the device, which is offline",
        "the start of its batch",
        "the device to ask",
        "confirmation",
    ]


def test_a_batch_goes_on_after_a_restart(world: World) -> None:
    planned = world.start(package("3"), ONE, starts_at=100)
    dynamic = world.start(package("4"), product="pk", dynamic=LATER)
    again = World()
    versions = {device: known.versions for device, known in world.jobs.devices.items()}
    again.jobs.restore(versions, world.jobs.jobs.values(), world.jobs.batches.values())

    again.inform(TWO, "2")
    again.appear(ONE)
    again.wait(100)

    assert again.pushed == ["one"]
    assert (again.state(planned), again.state(dynamic)) == ("IN_PROGRESS", "IN_PROGRESS")
    assert again.table == [("one", "3", "NOTIFIED"), ("two", "4", "QUEUED")]


def test_a_job_names_its_batch(world: World) -> None:
    batch = world.start(package("3"), ONE)

    assert world.jobs.jobs["1"].batch == batch.id
    assert world.jobs.batches == {"1": batch}
