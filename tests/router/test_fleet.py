"""Who gets the next request, and which attempts should end; on a clock that the test moves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from medley.core.workload import Bucket, SizeGrid
from medley.planning.routing import RoutingTable
from medley.router.fleet import LONGEST_SUSPENSION_SECONDS, Fleet, FleetView, Limits, Replica, Wanted
from medley.router.session import Cause

START = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """A fleet and its clock."""

    def __init__(self, *replicas, limits=None, table=None):
        self.now = 0.0
        self.fleet = Fleet(
            limits or Limits(timedelta(seconds=5), timedelta(seconds=60)),
            clock=lambda: self.now,
            wall_clock=lambda: START + timedelta(seconds=self.now),
        )
        self.table = table
        self.show(*replicas)

    def show(self, *replicas):
        self.fleet.replace(FleetView({each.name: each for each in replicas}, self.table))

    def open(self, name, tokens=0, remaining=1000, at=None):
        attempt = self.fleet.open(self.fleet.view.replicas[name], Wanted(None, remaining))
        if tokens:
            attempt.received(1, self.now if at is None else at)
            attempt.received(tokens - 1, self.now)
        return attempt

    def place(self, avoid=None, keys=()):
        replica = self.fleet.place(Wanted(None, 100, avoid=avoid, keys=keys))
        return replica and replica.name

    def later(self, seconds, lag=0.0):
        self.now += seconds
        self.fleet.settle(lag)


def replica(name, **fields):
    return Replica(name, f"http://{name}", **fields)


def leaving(name, seconds, **fields):
    return replica(name, leaves_at=START + timedelta(seconds=seconds), **fields)


def test_the_replica_with_the_least_to_do_is_taken():
    world = World(replica("a"), replica("b"))
    world.open("a")
    assert world.place() == "b"


@pytest.mark.parametrize(
    "other",
    [replica("b", ready=False), leaving("b", 60), leaving("b", 60, silent=True), replica("b", max_running=0)],
    ids=["not ready", "leaving", "leaving and silent", "full"],
)
def test_nothing_new_goes_where_it_should_not(other):
    world = World(other)
    assert world.place() is None


def test_a_silent_node_is_used_only_where_there_is_no_other():
    """After an outage of the API server all nodes are NotReady; their engines serve all the while."""
    world = World(replica("a", silent=True), replica("b"))
    held = world.open("a", tokens=1)
    assert [world.place() for _ in range(3)] == ["b"] * 3
    world.show(replica("a", silent=True), replica("b", silent=True))
    assert {world.place(), world.place(avoid="a")} <= {"a", "b"}
    assert held.cause is None  # streams that flow stay


def test_the_replica_that_broke_last_is_avoided_if_there_is_another():
    world = World(replica("a"), replica("b"))
    assert (world.place(avoid="a"), World(replica("a")).place(avoid="a")) == ("b", "a")


def test_shares_decide_the_shape():
    grid = SizeGrid((10,), (10,))
    table = RoutingTable(grid, {Bucket(0, 0): (("l4", 0.25), ("h100", 0.75))})
    world = World(replica("a", shape="l4"), replica("b", shape="h100"), table=table)
    assert [world.fleet.place(Wanted(Bucket(0, 0), 10)).name for _ in range(8)].count("b") == 6


def test_a_replica_that_breaks_is_left_alone_for_longer_each_time_and_then_tried_with_one_request():
    world = World(replica("a"))
    pauses = []
    for _ in range(9):
        for attempt in [world.open("a"), world.open("a")]:  # two streams of one replica: one failure
            world.fleet.close(attempt, Cause.CONNECTION)
        pauses.append(0.0)
        while world.place() is None:
            world.later(0.25)
            pauses[-1] += 0.25
    assert pauses == [0.25, 0.5, 1, 2, 4, 8, LONGEST_SUSPENSION_SECONDS, LONGEST_SUSPENSION_SECONDS, 15]
    world.open("a")
    assert world.place() is None
    world.fleet.made_token(world.fleet.view.replicas["a"])
    assert world.place() == "a"


@pytest.mark.parametrize("cause", [Cause.NOTICE, Cause.DIVERGED, None])
def test_what_is_not_the_replicas_fault_is_not_held_against_it(cause):
    world = World(replica("a"))
    world.fleet.close(world.open("a"), cause)
    assert world.place() == "a"


def test_silence_between_tokens_ends_an_attempt_and_waiting_for_the_first_has_its_own_limit():
    world = World(replica("a"), replica("b"))
    speaking, waiting = world.open("a", tokens=3), world.open("b")
    world.later(5.1)
    assert (speaking.cause, waiting.cause) == (Cause.SILENCE, None)
    world.later(55)
    assert waiting.cause is Cause.SILENCE


def test_if_no_stream_of_a_replica_progresses_those_that_wait_for_a_first_token_go_too():
    world = World(replica("a"))
    speaking, waiting = world.open("a", tokens=3), world.open("a")
    world.later(5.1)
    assert (speaking.cause, waiting.cause) == (Cause.SILENCE, Cause.SILENCE)


def test_an_engine_is_not_blamed_for_the_routers_own_delay():
    world = World(replica("a"))
    attempt = world.open("a", tokens=3)
    world.later(8, lag=7.9)
    assert attempt.cause is None
    world.later(5.1)
    assert attempt.cause is Cause.SILENCE


def test_patience_lengthens_the_limits():
    world = World(replica("a"))
    attempt = world.open("a", tokens=3)
    attempt.patience = 2.0
    world.later(9.9)
    assert attempt.cause is None
    world.later(0.2)
    assert attempt.cause is Cause.SILENCE


def test_at_a_notice_long_streams_move_before_the_deadline_and_short_ones_end():
    world = World(replica("a"), replica("b"))
    world.now = 10.0
    long = world.open("a", tokens=101, remaining=10_000, at=0.0)
    short = world.open("a", tokens=101, remaining=200, at=0.0)
    fresh = world.open("a")
    world.show(leaving("a", 40), replica("b"))
    assert (long.cause, short.cause, fresh.cause) == (None, None, Cause.NOTICE)
    for _ in range(21):
        world.now += 1
        long.received(10, world.now)
        short.received(3, world.now)
        world.fleet.settle()
    assert (long.cause, short.cause) == (Cause.NOTICE, None)


def test_streams_move_only_as_far_as_there_is_room_elsewhere():
    world = World(replica("a"), replica("b", max_running=2))
    attempts = [world.open("a", tokens=2, remaining=remaining) for remaining in (10, 500, 90)]
    world.show(leaving("a", -1), replica("b", max_running=2))
    assert [each.cause for each in attempts] == [None, Cause.NOTICE, Cause.NOTICE]  # the longest first
    world.show(leaving("a", -1))
    assert attempts[0].cause is None


def test_a_deadline_that_slides_with_each_look_is_kept_at_its_first():
    world = World(replica("a"), replica("b"))
    attempt = world.open("a", tokens=5, remaining=100_000, at=-1.0)
    for second in range(22):
        world.now = float(second)
        attempt.received(1, world.now)
        world.show(leaving("a", second + 30), replica("b"))
    assert attempt.cause is Cause.NOTICE


def test_of_several_deadlines_the_earliest_counts_whenever_it_comes():
    """The notice of a node, then the grace of its pod."""
    world = World(replica("a"), replica("b"))
    attempt = world.open("a", tokens=5, remaining=100_000, at=-1.0)
    world.show(leaving("a", 120), replica("b"))
    causes = {}
    for second in range(2, 13):
        world.now = float(second)
        attempt.received(1, world.now)
        world.show(leaving("a", 17), replica("b"))
        causes[second] = attempt.cause
    assert causes == {second: Cause.NOTICE if second >= 11 else None for second in range(2, 13)}


def test_a_replica_that_is_no_longer_listed_is_left_at_once():
    world = World(replica("a"), replica("b"))
    attempt = world.open("a", tokens=5)
    world.show(replica("b"))
    assert attempt.cause is Cause.NOTICE


def test_a_notice_that_is_withdrawn_lets_requests_in_again():
    world = World(leaving("a", 30))
    assert (world.place(), world.fleet.notices) == (None, {"a": START})
    world.show(replica("a"))
    assert (world.place(), world.fleet.notices) == ("a", {})
