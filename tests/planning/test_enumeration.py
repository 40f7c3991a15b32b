"""All whole points at once, held against branch and bound: the same cheapest point, or none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.planning.branching import branched
from medley.planning.enumeration import enumerated
from medley.planning.ilp import Effort, Model, Point, Programme, Row, Unsolvable, Variable

EFFORT = Effort()


def covering(rows, most):
    """Return a model in three integers that must reach 1 in each row, and together at most `most`."""
    keys = "abc"
    return Model(
        Programme(
            tuple(Variable(key, upper=9.0, integer=True) for key in keys),
            (
                *(Row({k: v for k, v in zip(keys, row, strict=True) if v}, at_least=1.0) for row in rows),
                Row(dict.fromkeys(keys, 1.0), at_most=float(most)),
            ),
        )
    )


def nothing_refuted(_values):
    return False


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.15, 0.3, 0.4, 1.0]), min_size=3, max_size=3), min_size=1, max_size=4),
    st.lists(st.sampled_from([0.7, 1.01, 2.0, 3.67]), min_size=3, max_size=3),
    st.integers(1, 20),
)
def test_the_same_point_as_by_branching(rows, prices, most):
    rows = [row for row in rows if any(row)]
    objectives = [np.array(prices), np.array([0.3, 0.2, 0.1])]
    found = enumerated(covering(rows, most), objectives, EFFORT, nothing_refuted)
    expected = branched(covering(rows, most), objectives, EFFORT, nothing_refuted)
    if found is None:
        return
    if isinstance(expected, Unsolvable):
        assert found == Unsolvable()
        return
    assert isinstance(found, Point)
    assert found.objective == pytest.approx(expected.objective)
    assert found.values.tolist() == expected.values.tolist()


def test_points_that_are_refuted_are_left_for_the_next():
    model = covering([[0.5, 0.5, 0.5]], 20)
    asked = []

    def refuted(values):
        asked.append(values.tolist())
        if values[0] < 1:
            model.add([Row({"a": 1.0}, at_least=1.0)])
            return True
        return False

    found = enumerated(model, [np.array([3.0, 1.0, 2.0])], EFFORT, refuted)
    assert isinstance(found, Point)
    assert found.values.tolist() == [1.0, 1.0, 0.0]
    assert asked[0] == [0.0, 2.0, 0.0]


def test_a_column_that_costs_nothing_is_not_counted_through():
    assert enumerated(covering([[1.0, 1.0, 1.0]], 20), [np.array([0.0, 1.0, 1.0])], EFFORT, nothing_refuted) is None


def test_what_no_point_serves_is_said():
    assert enumerated(covering([[0.1, 0.1, 0.1]], 3), [np.ones(3)], EFFORT, nothing_refuted) == Unsolvable()


def test_what_costs_more_than_was_thought_to_do_is_counted_too():
    """Two of b at 1 seem to do; what is refuted is all of b, so that one a at 3 is the best, not six of b."""
    model = covering([[1.0, 0.5, 0.0]], 20)

    def refuted(values):
        if values[0] < 1 and values[1] < 6:  # as the row that is added
            model.add([Row({"a": 1.0, "b": 1 / 6}, at_least=1.0)])
            return True
        return False

    found = enumerated(model, [np.array([3.0, 1.0, 9.0])], EFFORT, refuted)
    assert isinstance(found, Point)
    assert found.values.tolist() == [1.0, 0.0, 0.0]
