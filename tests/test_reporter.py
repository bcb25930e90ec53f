# SPDX-License-Identifier: Apache-2.0
"""What the platform is told, and in which order, by a reporter on a real coordinator."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from otad.cloud.cloud import Answer, Nothing, Offered, OfflineError, SessionState, SessionView
from otad.coordinator import Coordinator
from otad.core.events import Filed, Noticed
from otad.core.model import (
    DEFAULT_MODULE,
    NO_SLOT,
    Board,
    BootId,
    Deployment,
    DeploymentId,
    Digest,
    DigestMethod,
    Identity,
    Inform,
    ModuleName,
    Notice,
    Origin,
    Phase,
    PlaceKind,
    Slot,
    SlotView,
    State,
    Step,
)
from otad.core.work import Work
from otad.durable import RealDisk
from otad.evidence import Evidence
from otad.reporter import INFORM_S, Reporter, progress_step, silent_modules
from otad.store import Store
from otad.telemetry import Progress, Telemetry

A, B = Slot("a"), Slot("b")
BOOT = BootId("boot-1")
IDENTITY = Identity(DEFAULT_MODULE, "2-0-0", 1000, Digest(DigestMethod.SHA256, "ab" * 32))
OTHER = replace(IDENTITY, version="3-0-0")


class FakeCloud:
    """A platform that answers as it is told to, and goes away when it is told to."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.answers: list[Answer | None] = []
        self.connection = 0
        self.online_at: float | None = None
        self.fails_at: str | None = None
        self._up = asyncio.Event()
        self._more = asyncio.Event()

    @property
    def view(self) -> SessionView:
        return SessionView(SessionState.ONLINE, 0, "")

    def come(self) -> None:
        self.connection += 1
        self._up.set()
        self._up = asyncio.Event()

    async def run(self) -> None:
        await asyncio.Event().wait()

    def hurry(self) -> None:
        """It is always there."""

    async def connected(self, after: int) -> int:
        while self.connection <= after:
            await self._up.wait()
        return self.connection

    async def ask(self, module: ModuleName, timeout_s: float = 10) -> Answer | None:
        self._say("ask")
        return self.answers.pop(0) if self.answers else Nothing(module)

    async def inform(self, module: ModuleName, version: str) -> None:
        self._say(f"version {version}")

    async def step(self, module: ModuleName, step: int, desc: str) -> None:
        self._say(f"step {step}{': ' + desc if desc else ''}")

    def _say(self, what: str) -> None:
        if what == self.fails_at:
            self.fails_at = None
            raise OfflineError(what)
        self.said.append(what)
        self._more.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._more.clear()
                await self._more.wait()


def _state(**more: object) -> State:
    board = Board(A, A, (SlotView(A, True, 3, True), SlotView(B, False, 0, False)))
    return replace(State(known=True, boot_id=BOOT, settled=BOOT, board=board, serial=100), **more)  # type: ignore[arg-type]


def _deployment(**more: object) -> Deployment:
    made = Deployment(DeploymentId("d"), Notice(IDENTITY, "https://x/y"), Phase.DOWNLOADING, A, B, 0, 3)
    return replace(made, **more)  # type: ignore[arg-type]


@asynccontextmanager
async def reporting(
    tmp_path: Path, state: State, cloud: FakeCloud, *, begun: bool = True, runs: str = "1-0-0"
) -> AsyncIterator[tuple[Coordinator, Telemetry]]:
    async def never(work: Work, deployment: Deployment | None) -> bool:
        await asyncio.Event().wait()
        return False

    async def version() -> Evidence:
        return Evidence(runs)

    telemetry = Telemetry()
    store = Store(RealDisk(), tmp_path)
    store.load()
    coordinator = Coordinator(store, state, never, lambda deployment: None, telemetry)

    async def taken() -> None:
        """Offers are events already."""

    reporter = Reporter(cloud, coordinator, {DEFAULT_MODULE: version}, DEFAULT_MODULE, telemetry, taken, 3600)
    tasks = [asyncio.create_task(reporter.run())]
    if begun:
        tasks.append(asyncio.create_task(coordinator.run(Filed(DeploymentId("none")))))
    try:
        yield coordinator, telemetry
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_on_connect_it_asks_then_sends_what_is_owed_then_informs(tmp_path: Path) -> None:
    cloud = FakeCloud()
    owed = (Step(1, DEFAULT_MODULE, -1, "no", IDENTITY),)
    async with reporting(tmp_path, _state(outbox=owed), cloud) as (coordinator, _):
        cloud.come()
        await cloud.until(lambda: len(cloud.said) == 3)

        assert cloud.said == ["ask", "step -1: no", "version 1-0-0"]
        assert coordinator.state.outbox == ()


async def test_an_owed_inform_is_not_repeated_on_connect(tmp_path: Path) -> None:
    cloud = FakeCloud()
    owed = (Step(1, DEFAULT_MODULE, -1, "no", IDENTITY), Inform(2, DEFAULT_MODULE))
    async with reporting(tmp_path, _state(outbox=owed), cloud) as (coordinator, telemetry):
        cloud.come()
        await cloud.until(lambda: len(cloud.said) == 3)
        await _settled(coordinator, telemetry)

        assert cloud.said == ["ask", "step -1: no", "version 1-0-0"]


async def test_a_platform_that_offers_what_runs_with_every_inform_gets_few_of_them(tmp_path: Path) -> None:
    cloud = FakeCloud()
    running = Notice(replace(IDENTITY, version="1-0-0"), "https://x/y")
    async with reporting(tmp_path, _state(), cloud) as (coordinator, telemetry):
        cloud.come()
        await cloud.until(lambda: cloud.said == ["ask", "version 1-0-0"])
        await coordinator.submit(Noticed(running, "push:1", "1-0-0", 3, 0))
        await cloud.until(lambda: len(cloud.said) == 3)
        answered = asyncio.get_running_loop().time()
        await coordinator.submit(Noticed(running, "push:2", "1-0-0", 3, 0))
        await _settled(coordinator, telemetry)
        assert cloud.said == ["ask", "version 1-0-0", "version 1-0-0"]

        await cloud.until(lambda: len(cloud.said) == 4)
        assert asyncio.get_running_loop().time() - answered >= 0.9 * INFORM_S


async def test_a_kept_step_is_dropped_when_another_package_is_offered(tmp_path: Path) -> None:
    cloud = FakeCloud()
    cloud.answers = [Offered(Notice(OTHER, "https://x/y"), "get:1")]
    owed = (Step(1, DEFAULT_MODULE, -1, "no", IDENTITY), Inform(2, DEFAULT_MODULE))
    async with reporting(tmp_path, _state(outbox=owed), cloud) as (coordinator, telemetry):
        cloud.come()
        await cloud.until(lambda: "version 1-0-0" in cloud.said)
        await _settled(coordinator, telemetry)

        assert cloud.said == ["ask", "version 1-0-0"]
        assert coordinator.state.outbox == ()


async def test_a_kept_step_is_sent_when_the_same_package_is_offered(tmp_path: Path) -> None:
    cloud = FakeCloud()
    cloud.answers = [Offered(Notice(IDENTITY, "https://x/y"), "get:1")]
    state = _state(outbox=(Step(1, DEFAULT_MODULE, 100, "", IDENTITY),))
    async with reporting(tmp_path, state, cloud, runs="2-0-0"):
        cloud.come()
        await cloud.until(lambda: "step 100" in cloud.said)

        assert cloud.said == ["ask", "step 100"]


async def test_success_is_not_told_from_another_system(tmp_path: Path) -> None:
    """Confirmed and still owed, and then the boot attempts of the new system were used up by power cuts."""
    cloud = FakeCloud()
    state = _state(outbox=(Step(1, DEFAULT_MODULE, 100, "", IDENTITY), Inform(2, DEFAULT_MODULE)))
    async with reporting(tmp_path, state, cloud, runs="1-0-0") as (coordinator, telemetry):
        cloud.come()
        await cloud.until(lambda: "version 1-0-0" in cloud.said)
        await _settled(coordinator, telemetry)

        assert cloud.said == ["ask", "version 1-0-0"]


async def test_a_kept_step_is_sent_to_a_platform_that_never_answers(tmp_path: Path) -> None:
    cloud = FakeCloud()
    cloud.answers = [None, None, None]
    async with reporting(tmp_path, _state(outbox=(Step(1, DEFAULT_MODULE, -2, "gone", IDENTITY),)), cloud):
        cloud.come()
        await cloud.until(lambda: len(cloud.said) >= 4)

        assert cloud.said[:4] == ["ask", "ask", "ask", "step -2: gone"]


async def test_a_report_that_was_not_acknowledged_is_sent_again_on_the_next_connection(tmp_path: Path) -> None:
    cloud = FakeCloud()
    cloud.fails_at = "step -1: no"
    async with reporting(tmp_path, _state(outbox=(Step(1, DEFAULT_MODULE, -1, "no", IDENTITY),)), cloud):
        cloud.come()
        await cloud.until(lambda: cloud.fails_at is None or cloud.said)
        cloud.come()
        await cloud.until(lambda: "version 1-0-0" in cloud.said)

        assert cloud.said == ["ask", "ask", "step -1: no", "version 1-0-0"]


@pytest.mark.parametrize("phase", [Phase.CONFIRMING, Phase.ROLLING_BACK])
async def test_on_trial_nothing_is_asked_and_the_module_is_not_informed(tmp_path: Path, phase: Phase) -> None:
    cloud = FakeCloud()
    board = Board(B, B, (SlotView(A, True, 3, True), SlotView(B, True, 2, False)))
    state = _state(board=board, deployment=_deployment(phase=phase, switched=True, activations=1, on_trial=True))
    async with reporting(tmp_path, state, cloud) as (coordinator, telemetry):
        cloud.come()
        await _settled(coordinator, telemetry)

        assert cloud.said == []


async def test_an_inform_owed_from_before_a_trial_waits_for_its_end(tmp_path: Path) -> None:
    """It would tell the version that runs now: the one on trial."""
    cloud = FakeCloud()
    board = Board(B, B, (SlotView(A, True, 3, True), SlotView(B, True, 2, False)))
    trial = _deployment(phase=Phase.CONFIRMING, switched=True, activations=1, on_trial=True)
    state = _state(board=board, deployment=trial, outbox=(Inform(1, DEFAULT_MODULE),))
    async with reporting(tmp_path, state, cloud) as (coordinator, telemetry):
        cloud.come()
        await _settled(coordinator, telemetry)

        assert cloud.said == []


async def test_nothing_is_told_from_memory_before_the_machine_has_been_looked_at(tmp_path: Path) -> None:
    """Memory says rebooting, evidence says the new version: telling it now would end the job as succeeded."""
    cloud = FakeCloud()
    state = _state(deployment=_deployment(phase=Phase.REBOOTING, switched=True, activations=1))
    async with reporting(tmp_path, state, cloud, begun=False) as (_, telemetry):
        cloud.come()
        telemetry.touch()
        for _ in range(50):
            await asyncio.sleep(0)

        assert cloud.said == []


async def test_progress_is_thinned_and_follows_the_checkpoint(tmp_path: Path) -> None:
    cloud = FakeCloud()
    async with reporting(tmp_path, _state(deployment=_deployment()), cloud) as (coordinator, telemetry):
        cloud.come()
        await cloud.until(lambda: "step 1" in cloud.said)
        for peak in (10, 20, 30, 500, 510):
            coordinator.state = replace(coordinator.state, deployment=_deployment(peak=peak, checkpoint=peak))
            telemetry.touch()
            await _settled(coordinator, telemetry)

        assert [line for line in cloud.said if line.startswith("step")] == ["step 1", "step 45"]


@pytest.mark.parametrize(
    ("deployment", "progress", "step"),
    [
        pytest.param(_deployment(), None, 1, id="begun"),
        pytest.param(_deployment(peak=1000), None, 90, id="fetched"),
        pytest.param(_deployment(checkpoint=0, peak=500), None, 45, id="never goes back when it begins anew"),
        pytest.param(_deployment(phase=Phase.INSTALLING, place=PlaceKind.STAGING), None, 91, id="installing"),
        pytest.param(
            _deployment(phase=Phase.INSTALLING),
            Progress(DeploymentId("d"), bytes=50, total=100),
            94,
            id="half installed",
        ),
        pytest.param(_deployment(phase=Phase.INSTALLING, idle_starts=1), None, 98, id="installing after a restart"),
        pytest.param(_deployment(phase=Phase.REBOOTING, switched=True, activations=1), None, 99, id="rebooting"),
        pytest.param(
            _deployment(phase=Phase.DOWNLOADING, switched=True, activations=1),
            None,
            99,
            id="checked again after the switch",
        ),
        pytest.param(_deployment(phase=Phase.ROLLING_BACK), None, None, id="rolling back"),
        pytest.param(
            _deployment(notice=Notice(IDENTITY, "file:///x", Origin.LOCAL)), None, None, id="not the platform's"
        ),
    ],
)
def test_progress_step(deployment: Deployment, progress: Progress | None, step: int | None) -> None:
    assert progress_step(deployment, progress) == step


APP = ModuleName("app")


async def test_a_module_that_must_not_be_informed_holds_up_no_other(tmp_path: Path) -> None:
    cloud = FakeCloud()
    outbox = (Inform(1, DEFAULT_MODULE), Step(2, APP, -1, "sick", replace(IDENTITY, module=APP)), Inform(3, APP))
    async with reporting(tmp_path, _state(tainted=(A,), outbox=outbox), cloud) as (coordinator, telemetry):
        cloud.come()
        await cloud.until(lambda: "step -1: sick" in cloud.said)
        await _settled(coordinator, telemetry)

        assert cloud.said == ["ask", "step -1: sick"]  # the version of a module that is not configured any more is not
        assert coordinator.state.outbox == (Inform(1, DEFAULT_MODULE),)


def test_what_is_being_switched_is_not_informed_wherever_it_happens() -> None:
    app = replace(IDENTITY, module=APP)
    deployment = _deployment(
        notice=Notice(app, "https://x/y"), old=NO_SLOT, target=NO_SLOT, phase=Phase.CONFIRMING, switched=True
    )

    assert silent_modules(_state(deployment=deployment), DEFAULT_MODULE) == {APP}
    assert silent_modules(_state(deployment=deployment, tainted=(A,)), DEFAULT_MODULE) == {APP, DEFAULT_MODULE}
    assert silent_modules(_state(deployment=deployment), None) == {APP}
    begun = replace(deployment, phase=Phase.INSTALLING, switched=False)
    assert silent_modules(_state(deployment=begun), DEFAULT_MODULE) == frozenset()


def test_a_system_on_trial_is_silent_whatever_its_configuration_calls_it() -> None:
    assert silent_modules(_state(deployment=_deployment(phase=Phase.CONFIRMING)), ModuleName("system")) == {
        DEFAULT_MODULE,
        ModuleName("system"),
    }


async def _settled(coordinator: Coordinator, telemetry: Telemetry) -> None:
    """Whatever was to be done is done: each event handled, each task asleep."""
    for _ in range(50):
        await asyncio.sleep(0)
        await coordinator.submit(Filed(DeploymentId("none")))
    telemetry.touch()
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(_state(tainted=(A,)), id="it failed its health gate"),
        pytest.param(_state(board=Board(None, A, (SlotView(A, True, 3, True),))), id="it is none of our slots"),
    ],
)
async def test_no_version_is_told_from_a_system_that_is_not_to_be_trusted(tmp_path: Path, state: State) -> None:
    cloud = FakeCloud()
    async with reporting(tmp_path, state, cloud) as (coordinator, telemetry):
        cloud.come()
        await cloud.until(lambda: cloud.said)
        await _settled(coordinator, telemetry)

        assert cloud.said == ["ask"]
