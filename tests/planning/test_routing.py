"""Requests go to shapes by the plan's shares, then to the replica with the least to do."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.core.workload import Bucket, SizeGrid
from medley.planning.routing import Candidate, Placement, RoutingTable, place

GRID = SizeGrid((100,), (100,))
BUCKET = Bucket(0, 0)


def table(**shares):
    return RoutingTable(GRID, {BUCKET: tuple(shares.items())})


def candidate(name, shape="l4", running=0, max_running=8):
    return Candidate(name, shape, running, max_running)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_shares_are_kept_to_within_one_request(a, b, rounds):
    credit, counts = {}, Counter()
    for _ in range((a + b) * rounds):
        placement = place(table(a100=a, l4=b), BUCKET, [candidate("x", "a100"), candidate("y", "l4")], credit)
        credit = placement.credit
        counts[placement.replica] += 1
    assert counts == {"x": a * rounds, "y": b * rounds}


def test_within_a_shape_the_least_loaded_replica_is_taken_and_ties_go_to_the_name():
    candidates = [candidate("c", running=1), candidate("b"), candidate("a")]
    assert place(table(l4=1.0), BUCKET, candidates, {}) == Placement("a", {(BUCKET, "l4"): 0.0})


@pytest.mark.parametrize(
    ("routing", "candidates", "replica"),
    [
        pytest.param(None, [candidate("a", running=2), candidate("b", running=1)], "b", id="no table: anywhere"),
        pytest.param(table(l4=0.9, h100=0.1), [candidate("a", running=8), candidate("b", "h100")], "b", id="the other shape has room"),
        pytest.param(table(l4=1.0), [candidate("a", running=8), candidate("b", "h100")], None, id="wait for the shape that can hold it"),
        pytest.param(table(l4=1.0), [candidate("b", "h100")], "b", id="no replica of any shape in the plan"),
        pytest.param(table(l4=1.0), [], None, id="nobody"),
        pytest.param(None, [candidate("a", running=8)], None, id="full"),
    ],
)  # fmt: skip
def test_where_there_is_no_room_one_waits(routing, candidates, replica):
    placement = place(routing, BUCKET, candidates, {})
    assert (placement and placement.replica) == replica


def test_a_class_that_the_plan_does_not_know_spreads():
    assert place(table(l4=1.0), Bucket(3, 3), [candidate("b", "h100")], {}) == Placement("b", {})
