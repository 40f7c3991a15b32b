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


def holding(name, tokens, shape="l4", **fields):
    return Candidate(name, shape, fields.pop("running", 0), 8, prefix_tokens=tokens, **fields)


@pytest.mark.parametrize(
    ("candidates", "replica"),
    [
        pytest.param([holding("a", 0), holding("b", 64)], "b", id="the one that holds the prompt"),
        pytest.param([holding("a", 0), holding("b", 16)], "a", id="too little to matter"),
        pytest.param([holding("a", 0), holding("b", 64, running=2)], "b", id="a little more to do"),
        pytest.param([holding("a", 0), holding("b", 64, running=3)], "a", id="much more to do"),
        pytest.param([holding("a", 0), holding("b", 64, work=600.0)], "a", id="much more, by size"),
        pytest.param([holding("a", 0, running=1), holding("b", 64, running=8)], "a", id="full"),
        pytest.param([holding("a", 64), holding("b", 96), holding("c", 96, running=1)], "b", id="the longest, then the least loaded"),
    ],
)  # fmt: skip
def test_a_prefix_is_worth_a_little_more_to_do(candidates, replica):
    size = 200.0 if any(each.work for each in candidates) else 1.0
    assert place(table(l4=1.0), BUCKET, candidates, {}, size=size).replica == replica


def test_a_prefix_changes_the_shape_only_within_the_slack():
    there = [holding("x", 0, "a100"), holding("y", 512, "l4")]
    credit, taken = {}, []
    for _ in range(12):
        placement = place(table(a100=0.5, l4=0.5), BUCKET, there, credit, slack=2.0)
        credit = placement.credit
        taken.append(placement.replica)
    # Two are given ahead beyond the turns, then half of all.
    assert taken == ["y"] * 4 + ["x", "y"] * 4


@given(
    st.lists(st.tuples(st.sampled_from(["l4", "a100", "h100"]), st.integers(0, 600)), min_size=60, max_size=120),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 9),
    st.floats(0, 5),
)
def test_shares_hold_to_within_the_slack_whatever_prefixes_are_where(wishes, a, b, c, slack):
    shares = {"l4": a, "a100": b, "h100": c}
    credit, counts = {}, Counter()
    for number, (wish, tokens) in enumerate(wishes, 1):
        there = [holding(shape, tokens if shape == wish else 0, shape) for shape in shares]
        placement = place(table(**shares), BUCKET, there, credit, slack=slack)
        credit = placement.credit
        counts[placement.replica] += 1
        for shape, share in shares.items():
            ahead = counts[shape] - number * share / (a + b + c)
            assert ahead <= slack + 1 + 1e-9
            assert ahead >= -2 * (slack + 1) - 1e-9
