"""The door to the solver: it repeats itself, says what it could not do, and never returns noise as numbers."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest

from medley.core.errors import SolverError
from medley.planning.ilp import (
    Effort,
    Model,
    Point,
    Programme,
    Row,
    Solved,
    Undecided,
    Unsolvable,
    Variable,
    minimise,
)

EFFORT = Effort()


def knapsack(size: int) -> tuple[Programme, dict[int, float]]:
    """Return a covering problem that takes the solver some nodes."""
    chance = Random(1)  # a fixed example
    rows = tuple(
        Row({i: chance.uniform(0, 10) for i in range(size)}, at_least=chance.uniform(0, 100)) for _ in range(size)
    )
    variables = tuple(Variable(i, integer=True) for i in range(size))
    return Programme(variables, rows), {i: chance.uniform(1, 2) for i in range(size)}


def test_a_programme_that_can_be_solved_by_hand():
    programme = Programme(
        (Variable("x", upper=2.5), Variable("y", integer=True)),
        (Row({"x": 1.0, "y": 2.0}, at_least=5.0), Row({"y": 1.0}, at_most=2.0)),
    )
    found = minimise(programme, {"x": 1.0, "y": 1.5}, EFFORT)
    assert found == Solved({"x": 1.0, "y": 2.0}, 4.0, 0.0)
    assert found.count("y") == 2


def test_no_solution():
    programme = Programme((Variable("x", upper=1.0),), (Row({"x": 1.0}, at_least=2.0),))
    assert minimise(programme, {"x": 1.0}, EFFORT) == Unsolvable()


def test_no_variables():
    assert minimise(Programme((), ()), {}, EFFORT) == Solved({}, 0.0, 0.0)
    assert minimise(Programme((), (Row({}, at_least=1.0),)), {}, EFFORT) == Unsolvable()


def test_a_variable_that_nothing_mentions_is_zero():
    found = minimise(Programme((Variable("x"), Variable("y")), (Row({"x": 1.0}, at_least=1.0),)), {"x": 1.0}, EFFORT)
    assert found == Solved({"x": 1.0, "y": 0.0}, 1.0, 0.0)


def test_the_node_limit_gives_the_best_found_and_its_gap():
    programme, costs = knapsack(40)
    exact = minimise(programme, costs, Effort(max_nodes=100_000))
    stopped = minimise(programme, costs, Effort(max_nodes=1))
    assert isinstance(exact, Solved)
    assert isinstance(stopped, Solved)
    assert exact.gap == 0.0
    assert stopped.gap > 0
    assert exact.objective <= stopped.objective <= exact.objective * (1 + stopped.gap) / (1 - stopped.gap) + 1e-6
    assert all(abs(value - round(value)) < 1e-6 for value in stopped.values.values())


def test_no_time_at_all_is_undecided_and_not_infeasible():
    programme, costs = knapsack(60)
    assert minimise(programme, costs, Effort(max_seconds=0.0)) == Undecided()


def test_the_same_question_has_the_same_answer():
    programme, costs = knapsack(24)
    assert minimise(programme, costs, EFFORT) == minimise(programme, costs, EFFORT)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_never_reach_the_solver(number):
    programme = Programme((Variable("x"),), (Row({"x": 1.0}, at_least=1.0),))
    with pytest.raises(SolverError, match="not finite"):
        minimise(programme, {"x": number}, EFFORT)


def test_a_count_is_rounded_and_never_cut():
    almost = Solved({"x": 2.9999999, "y": 2.5}, 0.0, 0.0)
    assert almost.count("x") == 3
    with pytest.raises(SolverError, match=r"2\.5"):
        almost.count("y")


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(lambda best: best, id="the best"),
        pytest.param(lambda best: best + 1, id="dearer"),
        pytest.param(np.zeros_like, id="not a solution"),
        pytest.param(lambda best: best + 0.5, id="not whole"),
    ],
)
def test_a_start_changes_no_answer(start):
    programme, objective = knapsack(12)
    model = Model(programme)
    costs = model.costs(objective)
    best = model.minimise(costs, EFFORT)
    assert isinstance(best, Point)
    for again in (model, Model(programme)):
        found = again.minimise(costs, EFFORT, start=start(best.values))
        assert isinstance(found, Point)
        assert found.objective == pytest.approx(best.objective, rel=1e-6)
        assert found.bound == pytest.approx(best.bound, rel=1e-5)
