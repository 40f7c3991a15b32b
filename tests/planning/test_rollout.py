"""From any fleet to the wanted one: facts about single passes, and a world in which passes repeat until all is quiet."""

from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.core.accelerators import Market, OfferingKey, Shape
from medley.core.notices import Cause, Notice, NoticeSource
from medley.planning.actions import Action, Assign, DeleteEngine, DrainEngine, LaunchEngine
from medley.planning.fleet import Observed, Replica, ReplicaPhase, Standing, Unavailable
from medley.planning.rollout import changes, counted, pod_name, serves
from medley.testing.builders import NOW, observed, offering, replica, waiting

A, B = offering(Market.SPOT, "a"), offering(Market.ON_DEMAND, "b")
OLD = NOW - timedelta(hours=1)


def seen(*replicas: Replica, **more) -> Observed:
    return observed(replicas=replicas, **more)


@pytest.mark.parametrize(
    ("replicas", "wanted", "expected"),
    [
        pytest.param((), {A: 1}, (LaunchEngine("chat-l4-s-a-0", A),), id="missing"),
        pytest.param((replica(A, 0), replica(A, 2)), {A: 3}, (LaunchEngine("chat-l4-s-a-1", A),), id="smallest-number"),
        pytest.param(
            (replica(A, 0, phase=ReplicaPhase.STALLED),), {A: 1}, (LaunchEngine("chat-l4-s-a-1", A),), id="stalled"
        ),
        pytest.param(
            (replica(A, 0, assigned=False, phase=ReplicaPhase.STARTING),),
            {A: 1},
            (Assign("chat-l4-s-a-0"),),
            id="unassigned",
        ),
        pytest.param(
            (replica(A, 0), replica(A, 1, running=5)),
            {A: 1},
            (DrainEngine("chat-l4-s-a-0", "the plan has no place for it"),),
            id="surplus-least-loaded",
        ),
        pytest.param(
            (replica(A, 0, running=5), waiting(A, 1)),
            {A: 1},
            (DeleteEngine("chat-l4-s-a-1", "chat-l4-s-a-1-uid", "not wanted any more"),),
            id="surplus-that-serves-nobody",
        ),
        pytest.param((replica(B, 0), waiting(A, 0)), {A: 1}, (), id="make-before-break"),
        pytest.param(
            (replica(A, 0), replica(A, 1, phase=ReplicaPhase.DRAINING, running=1)),
            {A: 1},
            (DeleteEngine("chat-l4-s-a-1", "chat-l4-s-a-1-uid", "others took its place, and its streams end or move"),),
            id="draining-busy-on-spot",
        ),
        pytest.param(
            (replica(B, 0), replica(B, 1, phase=ReplicaPhase.DRAINING, running=1)),
            {B: 1},
            (
                DeleteEngine(
                    "chat-l4-d-b-1",
                    "chat-l4-d-b-1-uid",
                    "others took its place, and its streams end or move",
                    grace=timedelta(minutes=2),
                ),
            ),
            id="draining-busy-on-a-node-that-lasts",
        ),
        pytest.param(
            (waiting(A, 0), replica(A, 1, phase=ReplicaPhase.DRAINING, running=1)), {A: 1}, (), id="draining-unreplaced"
        ),
        pytest.param(
            (replica(A, 0), replica(A, 1, phase=ReplicaPhase.DRAINING)),
            {A: 1},
            (DeleteEngine("chat-l4-s-a-1", "chat-l4-s-a-1-uid", "it is drained"),),
            id="drained",
        ),
        pytest.param(
            (replica(A, 0), replica(A, 1, phase=ReplicaPhase.ENDED)),
            {A: 1},
            (DeleteEngine("chat-l4-s-a-1", "chat-l4-s-a-1-uid", "it ended"),),
            id="ended",
        ),
        pytest.param(
            (replica(A, 0, phase=ReplicaPhase.FAILED, created_at=NOW - timedelta(minutes=4)),), {A: 1}, (), id="failed"
        ),
        pytest.param(
            (replica(A, 0, phase=ReplicaPhase.FAILED, created_at=NOW - timedelta(minutes=5)),),
            {A: 1},
            (
                LaunchEngine("chat-l4-s-a-1", A),
                DeleteEngine("chat-l4-s-a-0", "chat-l4-s-a-0-uid", "it could not start and is tried again"),
            ),
            id="failed-long-ago",
        ),
        pytest.param(
            (replica(A, 0), replica(A, 1, phase=ReplicaPhase.FAILED, created_at=NOW)),
            {A: 2},
            (
                LaunchEngine("chat-l4-s-a-2", A),
                DeleteEngine("chat-l4-s-a-1", "chat-l4-s-a-1-uid", "it could not start and is tried again"),
            ),
            id="failed-while-its-like-serves",
        ),
        pytest.param(
            (replica(A, 0, outdated=True), replica(A, 1, outdated=True, created_at=NOW)),
            {A: 2},
            (LaunchEngine("chat-l4-s-a-2", A),),
            id="roll-out-one-at-a-time",
        ),
        pytest.param(
            (replica(A, 0, outdated=True), replica(A, 1, outdated=True), replica(A, 2, phase=ReplicaPhase.STARTING)),
            {A: 2},
            (),
            id="roll-out-waits-for-the-new-one",
        ),
        pytest.param(
            (replica(A, 0, outdated=True, running=9), replica(A, 1), replica(A, 2)),
            {A: 2},
            (DrainEngine("chat-l4-s-a-0", "its manifest changed"),),
            id="roll-out-drains-the-old-one",
        ),
        pytest.param(
            (waiting(A, 0, outdated=True),),
            {A: 1},
            (
                LaunchEngine("chat-l4-s-a-1", A),
                DeleteEngine("chat-l4-s-a-0", "chat-l4-s-a-0-uid", "its manifest changed before it served"),
            ),
            id="outdated-before-it-served",
        ),
    ],
)
def test_one_pass(replicas, wanted, expected):
    assert changes(seen(*replicas), wanted, NOW) == expected


def test_without_room_for_a_successor_the_old_one_goes_first():
    stuck = waiting(A, 2, since=OLD)
    short = Standing(unavailable=(Unavailable(A, NOW + timedelta(minutes=5), "no room"),))
    fleet = (replica(A, 0, outdated=True), replica(A, 1, outdated=True), stuck)
    assert changes(seen(*fleet, standing=short), {A: 2}, NOW) == (
        DrainEngine("chat-l4-s-a-0", "its manifest changed and there is no node for its successor beside it"),
    )


def test_the_last_one_that_serves_is_never_given_up_for_its_successor():
    short = Standing(unavailable=(Unavailable(A, NOW + timedelta(minutes=5), "no room"),))
    fleet = (replica(A, 0, outdated=True), waiting(A, 1, since=OLD))
    assert changes(seen(*fleet, standing=short), {A: 1}, NOW) == ()


@pytest.mark.parametrize(
    ("age", "forced"),
    [
        pytest.param(timedelta(seconds=29), False, id="may-come-back"),
        pytest.param(timedelta(seconds=30), True, id="lost"),
    ],
)
def test_a_silent_node_is_given_half_a_minute(age, forced):
    here = replica(A, 0)
    silent = Notice(here.node, NOW - age, NoticeSource.NODE_NOT_READY, Cause.FAILED)
    actions = changes(seen(here, notices=(silent,)), {A: 1}, NOW)
    burial = DeleteEngine(here.name, here.uid, "its node is gone", force=True)
    assert actions == (LaunchEngine("chat-l4-s-a-1", A), *((burial,) if forced else ()))


def test_a_scheduler_that_keeps_to_a_silent_node_makes_one_successor_and_no_more():
    """When all nodes are NotReady they are not tainted, and what replaces a replica lands where it was."""
    fleet = {each.name: each for each in (replica(A, 0, node="n", created_at=OLD),)}
    silent = Notice("n", NOW - timedelta(seconds=40), NoticeSource.NODE_NOT_READY, Cause.FAILED)
    made, now = [], NOW
    for _ in range(20):
        actions = changes(seen(*fleet.values(), notices=(silent,)), {A: 1}, now)
        made += [action.name for action in actions if isinstance(action, LaunchEngine)]
        now += STEP
        fleet = {name: replace(each, node="n") for name, each in stepped(fleet, actions, now).items()}
    assert made == ["chat-l4-s-a-1"]
    assert list(fleet) == made


def test_names_fit_a_dns_label_and_differ():
    long = OfferingKey(Shape("a" * 40, 8, 2), Market.ON_DEMAND, "europe-west1-b.local")
    names = {pod_name("s" * 63, long, n) for n in range(20)}
    assert len(names) == 20
    assert all(len(name) <= 63 and "." not in name for name in names)


# A world of perfect machines: what is launched comes, starts and serves; what is drained runs empty.
STEP = timedelta(seconds=10)
NEXT = {
    ReplicaPhase.WAITING: ReplicaPhase.STARTING,
    ReplicaPhase.STARTING: ReplicaPhase.SERVING,
    ReplicaPhase.STALLED: ReplicaPhase.STALLED,
    ReplicaPhase.SERVING: ReplicaPhase.SERVING,
    ReplicaPhase.DRAINING: ReplicaPhase.DRAINING,
    ReplicaPhase.FAILED: ReplicaPhase.FAILED,
    ReplicaPhase.ENDED: ReplicaPhase.ENDED,
}


def stepped(fleet: dict[str, Replica], actions: tuple[Action, ...], now) -> dict[str, Replica]:
    after = {
        name: replace(each, phase=NEXT[each.phase], node=each.node or f"node-{name}", running=max(each.running - 1, 0))
        for name, each in fleet.items()
        if not each.leaving
    }
    for action in actions:
        match action:
            case LaunchEngine(name, key):
                assert name not in fleet, "a name was given twice"
                after[name] = waiting(key, created_at=now, name=name, uid=f"{name}-{now}")
            case DeleteEngine(name, uid):
                assert fleet[name].uid == uid
                after.pop(name, None)
            case DrainEngine(name):
                after[name] = replace(after[name], phase=ReplicaPhase.DRAINING)
            case Assign(name):
                after[name] = replace(after[name], assigned=True)
    return after


phases = st.sampled_from(ReplicaPhase)
keys = st.sampled_from([A, B])


@st.composite
def fleets(draw):
    return tuple(
        replica(
            draw(keys),
            n,
            phase=(phase := draw(phases)),
            node="" if phase is ReplicaPhase.WAITING else f"node-{n}",
            outdated=draw(st.booleans()),
            leaving=draw(st.booleans()),
            assigned=draw(st.booleans()),
            running=draw(st.integers(0, 3)),
            created_at=NOW - timedelta(minutes=draw(st.integers(0, 10))),
        )
        for n in range(draw(st.integers(0, 6)))
    )


@given(fleets(), st.dictionaries(keys, st.integers(1, 3)))
def test_any_fleet_becomes_the_wanted_one_and_stays(fleet, wanted):
    world = {each.name: each for each in fleet}
    now = NOW
    for _ in range(80):
        actions = changes(seen(*(world[name] for name in sorted(world))), wanted, now)
        now += STEP
        world = stepped(world, actions, now)
    settled = seen(*(world[name] for name in sorted(world)))
    assert changes(settled, wanted, now) == ()
    assert Counter(each.offering for each in settled.replicas) == Counter(wanted)
    assert all(serves(each) and not each.outdated for each in settled.replicas)


@given(fleets(), st.dictionaries(keys, st.integers(1, 3)))
def test_no_pass_takes_away_what_serves_before_what_is_wanted_serves(fleet, wanted):
    world = {each.name: each for each in fleet}
    now = NOW
    for _ in range(40):
        here = seen(*(world[name] for name in sorted(world)))
        actions = changes(here, wanted, now)
        drained = {action.replica for action in actions if isinstance(action, DrainEngine)}
        if drained:
            left = Counter(each.offering for each in counted(here, now) if serves(each) and each.name not in drained)
            assert left >= Counter(wanted)
        now += STEP
        world = stepped(world, actions, now)


@given(fleets(), st.dictionaries(keys, st.integers(0, 3)))
def test_a_pass_is_repeatable(fleet, wanted):
    assert changes(seen(*fleet), wanted, NOW) == changes(seen(*fleet), wanted, NOW)
