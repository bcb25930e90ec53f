# SPDX-License-Identifier: Apache-2.0
"""Power cuts, deaths of the daemon, lost memory and requests, at every operation of a whole upgrade, also several.

The simulated world (`world.py`) objects by itself when a promise is broken on the way; here is what must be true in the
end. A failing case is replayed by its arguments: the numbers are operations.
"""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import A, B, CountingLoader, Incident, Loader, OneShotLoader, System, Temper, Told, World

from otad.core.model import Outcome

UNFIT = [temper for temper in Temper if temper != Temper.GOOD]
LOADERS: dict[str, type[CountingLoader] | type[OneShotLoader]] = {"counting": CountingLoader, "one-shot": OneShotLoader}

every_board = pytest.mark.parametrize("tells_confirmed", [True, False], ids=["tells", "cannot tell"])
every_loader = pytest.mark.parametrize("loader", LOADERS)
every_image = pytest.mark.parametrize("raw", [True, False], ids=["raw", "staged"])


def a_loader(name: str, tells_confirmed: bool = True) -> Loader:
    return LOADERS[name](tells_confirmed=tells_confirmed)


def assert_upgraded(world: World) -> None:
    """The new system runs, and the platform heard 100 before it heard the version. Nothing else, but perhaps twice."""
    told = [entry for entry in world.told if entry != Told(None, "1")]

    assert world.running == System("2")
    assert world.job == "succeeded"
    assert world.outcome("2") == Outcome.SUCCEEDED
    assert set(told) == {Told(100, None), Told(None, "2")}
    assert told == sorted(told, key=lambda entry: entry.step is None)


def assert_came_back(world: World) -> None:
    """The old system runs, and the platform heard why before it heard its version again; never of a success."""
    steps = {entry.step for entry in world.told if entry.step is not None}

    assert world.running == System("1")
    assert world.job == "failed"
    assert steps == {-1}
    assert world.told[-1] == Told(None, "1")
    assert Told(None, "2") not in world.told


@every_image
@every_loader
@every_board
@pytest.mark.parametrize("incident", [Incident.POWER_CUT, Incident.DEATH])
def test_a_good_package_survives_an_interruption_at_any_operation(
    incident: Incident, tells_confirmed: bool, loader: str, raw: bool
) -> None:
    undisturbed = World(System("2"), a_loader(loader, tells_confirmed), raw=raw).run()
    assert_upgraded(undisturbed)

    for at in range(1, undisturbed.operations + 1):
        world = World(System("2"), a_loader(loader, tells_confirmed), raw=raw, incidents={at: incident}).run()

        # A boot loader that gives one chance takes a cut on trial for a fall-back: it cannot know better.
        if loader == "one-shot" and world.outcome("2") == Outcome.ROLLED_BACK:
            assert incident == Incident.POWER_CUT
            assert_came_back(world)
        else:
            assert_upgraded(world)


@every_image
@every_loader
@every_board
@pytest.mark.parametrize("temper", UNFIT)
def test_an_unfit_package_is_rolled_back_through_an_interruption_at_any_operation(
    temper: Temper, tells_confirmed: bool, loader: str, raw: bool
) -> None:
    undisturbed = World(System("2", temper), a_loader(loader, tells_confirmed), raw=raw).run()
    assert_came_back(undisturbed)

    for at in range(1, undisturbed.operations + 1):
        for incident in (Incident.POWER_CUT, Incident.DEATH):
            incidents = {at: incident}
            world = World(System("2", temper), a_loader(loader, tells_confirmed), raw=raw, incidents=incidents).run()

            assert_came_back(world)


@every_image
def test_a_good_package_survives_any_two_interruptions(raw: bool) -> None:
    operations = World(System("2"), raw=raw).run().operations + 12
    for first, second in combinations(range(1, operations), 2):
        for kinds in ((Incident.POWER_CUT, Incident.POWER_CUT), (Incident.DEATH, Incident.POWER_CUT)):
            world = World(System("2"), raw=raw, incidents=dict(zip((first, second), kinds, strict=True))).run()

            assert_upgraded(world)


@pytest.mark.parametrize("temper", [Temper.UNHEALTHY, Temper.MUTE, Temper.DEAD])
def test_an_unfit_package_is_rolled_back_through_any_two_interruptions(temper: Temper) -> None:
    operations = World(System("2", temper)).run().operations + 12
    for first, second in combinations(range(1, operations), 2):
        for kinds in ((Incident.POWER_CUT, Incident.POWER_CUT), (Incident.DEATH, Incident.POWER_CUT)):
            incidents = dict(zip((first, second), kinds, strict=True))
            world = World(System("2", temper), incidents=incidents).run()

            assert_came_back(world)


@every_loader
@every_board
@pytest.mark.parametrize("temper", Temper)
def test_a_lost_state_file_costs_no_good_system_and_claims_no_success(
    temper: Temper, tells_confirmed: bool, loader: str
) -> None:
    operations = World(System("2", temper), a_loader(loader, tells_confirmed)).run().operations
    for at in range(1, operations + 1):
        incidents = {at: Incident.AMNESIA}
        world = World(System("2", temper), a_loader(loader, tells_confirmed), incidents=incidents).run()

        if temper != Temper.GOOD:
            assert Told(100, None) not in world.told


@every_image
def test_a_cancel_ends_before_the_switch_or_changes_nothing(raw: bool) -> None:
    operations = World(System("2"), raw=raw).run().operations
    outcomes = set()
    for at in range(1, operations + 1):
        world = World(System("2"), raw=raw, incidents={at: Incident.CANCEL}).run()

        outcomes.add(world.outcome("2"))
        if world.outcome("2") == Outcome.CANCELED:
            assert world.running == System("1")
            assert [entry.step for entry in world.told if entry.step is not None] == [-1]
        else:
            assert_upgraded(world)
    assert outcomes == {Outcome.CANCELED, Outcome.SUCCEEDED}


@pytest.mark.parametrize("temper", [Temper.GOOD, Temper.UNHEALTHY])
def test_a_package_that_replaces_another_one_runs_in_the_end(temper: Temper) -> None:
    operations = World(System("2", temper)).run().operations
    for at in range(5, operations + 1):
        world = World(System("2", temper), incidents={at: Incident.SUPERSEDE}).run()

        assert (world.running, world.job) == (System("3"), "succeeded")
        if world.outcome("2") == Outcome.SUPERSEDED:
            assert Told(-1, None) not in world.told


@pytest.mark.parametrize("replaced", [{}, {8: Incident.SUPERSEDE}], ids=["", "its package has been replaced"])
def test_a_late_duplicate_of_the_first_message_changes_nothing(replaced: dict[int, Incident]) -> None:
    undisturbed = World(System("2"), incidents=replaced).run()
    for at in range(min(9, 8 + len(replaced)), undisturbed.operations + 1):
        world = World(System("2"), incidents={**replaced, at: Incident.ECHO}).run()

        assert (world.told, world.ended) == (undisturbed.told, undisturbed.ended)


@every_loader
@every_board
@pytest.mark.parametrize("temper", [Temper.GOOD, Temper.DEAD])
def test_left_by_hand_a_confirmed_system_gives_way_only_to_one_that_comes_up(
    temper: Temper, tells_confirmed: bool, loader: str
) -> None:
    """Where the boot loader cannot tell, nobody knows what the other slot holds until it is tried."""

    def play(incidents: dict[int, Incident]) -> World:
        of_loader = a_loader(loader, tells_confirmed)
        of_loader.mark_good(B)
        of_loader.mark_good(A)
        return World(System("1"), of_loader, other=System("0", temper), incidents=incidents).run()

    left = {play({}).operations: Incident.ROLL_BACK}
    undisturbed = play(left)
    wanted = ("0", Outcome.ROLLED_BACK) if temper == Temper.GOOD else ("1", Outcome.FAILED)
    assert (undisturbed.running.version, undisturbed.outcome("1")) == wanted

    ordered = min(left) + 2  # an order that is not saved yet may be lost
    for at in range(ordered, undisturbed.operations + 1):
        for incident in (Incident.POWER_CUT, Incident.DEATH):
            world = play({**left, at: incident})

            # A boot loader that gives one chance takes a cut before the reboot for a slot that did not come up.
            stays = loader == "one-shot" and incident == Incident.POWER_CUT and world.outcome("1") == Outcome.FAILED
            assert (world.running.version, world.outcome("1")) == (("1", Outcome.FAILED) if stays else wanted)
            assert world.running.temper == Temper.GOOD
            assert world.loader.entries[world.booted].confirmed


def test_marked_good_by_hand_a_system_stays_although_its_health_check_says_no() -> None:
    operations = World(System("2", Temper.UNHEALTHY)).run().operations
    worlds = [World(System("2", Temper.UNHEALTHY), incidents={at: Incident.MARK_GOOD}) for at in range(1, operations)]
    kept = [world for world in worlds if world.run().running.version == "2"]

    assert kept
    for world in kept:
        assert (world.outcome("2"), world.job) == (Outcome.SUCCEEDED, "succeeded")


@settings(max_examples=1500, deadline=None)
@given(
    temper=st.sampled_from(Temper),
    loader=st.sampled_from(sorted(LOADERS)),
    tells_confirmed=st.booleans(),
    raw=st.booleans(),
    other=st.sampled_from([Temper.GOOD, Temper.DEAD]),
    incidents=st.dictionaries(st.integers(1, 70), st.sampled_from(Incident), max_size=7),
)
def test_whatever_happens_it_comes_to_rest_on_a_good_slot(
    temper: Temper, loader: str, tells_confirmed: bool, raw: bool, other: Temper, incidents: dict[int, Incident]
) -> None:
    owners_risk = set()
    if temper == Temper.CRASHES:
        owners_risk.add(Incident.MARK_GOOD)  # then it resets for ever
        if not tells_confirmed and Incident.AMNESIA in incidents.values():
            owners_risk.add(Incident.ROLL_BACK)  # nobody remembers that the other slot is refused: the same
    incidents = {at: incident for at, incident in incidents.items() if incident not in owners_risk}

    of_loader, old = a_loader(loader, tells_confirmed), System("0", other)
    world = World(System("2", temper), of_loader, raw=raw, other=old, incidents=incidents).run()

    if not world.forgot and not world.by_hand:
        assert world.running.temper == Temper.GOOD
        if temper != Temper.GOOD and world.offered.version == "2":
            assert Told(100, None) not in world.told
