"""Solve the allocation programme without ever writing down its shares.

Called by `allocator`, `shortage`, `breakeven` and `shadow` in place of `ilp.minimise`. The programme in the replicas
alone is solved, an inequality of `separation.py` that its answer violates is looked for in each scenario and added, and
so on until none is violated: first without whole numbers, which is quick and finds most inequalities, then with them.
Some rounds of a programme in a few dozen to a few hundred integers, where the shares of all scenarios would be tens of
thousands of columns.

An inequality holds in every scenario, and says nothing of prices, caps or which offerings exist: `Learnt` carries them
from one problem to the next.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import overload

import numpy as np
import numpy.typing as npt

from medley.core.workload import Bucket
from medley.planning import programme
from medley.planning.branching import MOST_COLUMNS, branched
from medley.planning.enumeration import enumerated
from medley.planning.ilp import Model, Numbers, Point, Row, Solved, Terms, Undecided, Unsolvable, relative_gap
from medley.planning.problem import EXACT, AllocationProblem, Bound
from medley.planning.programme import Replicas, Scenario, Unmet
from medley.planning.separation import Cut, Separation, Weights

_ROUNDS = 200
_LITTLE = 0.1  # of the gap that is good enough: less than that is not worth another round without whole numbers
_SLACK = 1e-6
# Where what is missing is missing now, only so many offerings are looked at in whole replicas.
_NEAREST = 60
_WHOLE = 1e-4


@dataclass(frozen=True, slots=True)
class Learnt:
    """Inequalities that solving a problem found; they hold for any other and make it quicker if it is similar."""

    inequalities: tuple[Weights, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A solution, or why there is none; what was learnt on the way, and the loads in numbers."""

    found: Solved | Unsolvable | Undecided
    learnt: Learnt
    separation: Separation


def solved(
    problem: AllocationProblem,
    objectives: Sequence[Terms],
    *,
    soft: bool = False,
    without: frozenset[Bound] = frozenset(),
    rows: Iterable[Row] = (),
    learnt: Learnt | None = None,
    start: Terms | None = None,
) -> Answer:
    """Minimise the first objective, then the second among its optima, and so on, within the bounds and `rows`.

    An earlier objective may worsen by 1e-6 (relative, and at least absolute). Gap and objective are those of the first;
    a later one that cannot be decided within the effort is left out. `soft` and `without`: see `programme.built`.
    `start`: values of all variables, to begin from.
    """
    if not objectives:
        raise ValueError("nothing to minimise")
    cover = Cover(problem, programme.scenarios(problem, without), soft=soft, learnt=learnt or Learnt())
    if not soft and cover.separation.unservable:
        return Answer(Unsolvable(), cover.learnt, cover.separation)
    rows = tuple(rows)
    model = Model(programme.built(problem, soft=soft, without=without).with_rows(*rows), solvable=soft and not rows)
    cover.begin(model)
    if not soft and 0 < len(model.keys) <= MOST_COLUMNS and model.integer.all():
        asked = [model.costs(each) for each in objectives], problem.solver_effort, partial(cover.refuted, model)
        whole = enumerated(model, *asked) or branched(model, *asked)
        if whole is not None:
            return Answer(_named(model, whole), cover.learnt, cover.separation)
    best: Solved | None = None
    if (problem.solver_effort.relative_gap or 0.0) > EXACT and not soft:
        objectives = objectives[:1]  # ties with a plan that is not proven to be the cheapest decide nothing
    for number, objective in enumerate(objectives):
        found = cover.minimised(model, model.costs(objective), None if start is None else model.costs(start))
        if not isinstance(found, Point):
            return Answer(found if best is None else best, cover.learnt, cover.separation)
        named = _named(model, found)
        best = named if best is None else replace(best, values=named.values)
        if number + 1 < len(objectives):
            most = found.objective + _SLACK * max(1.0, abs(found.objective))
            model.add([Row({key: value for key, value in objective.items() if value}, at_most=most)])
    assert best is not None
    return Answer(best, cover.learnt, cover.separation)


@dataclass(frozen=True, slots=True, eq=False)
class Relaxed:
    """The programme with fractions of replicas, solved: prices of its rows and columns, and of the demand.

    `place`: column of a variable. `demand`: of each scenario, what serving one more whole demand of each bucket costs.
    """

    objective: float
    rows: Numbers
    columns: Numbers
    place: Mapping[Hashable, int]
    buckets: tuple[Bucket, ...]
    demand: tuple[tuple[Scenario, Numbers], ...]


def relaxation(problem: AllocationProblem, objective: Terms, learnt: Learnt) -> Relaxed | None:
    """Return the solution in which replicas may be fractions, or None if there is none."""
    cover = Cover(problem, programme.scenarios(problem), soft=False, learnt=learnt, fractions=True)
    if cover.separation.unservable:
        return None
    model = Model(programme.built(problem))
    cover.begin(model)
    found = cover.relaxed(model, model.costs(objective), 0.0)
    if not isinstance(found, Point):
        return None
    duals = model.duals()
    return Relaxed(
        found.objective, duals.rows, duals.columns, model.place, cover.separation.buckets, cover.marginal(duals.rows)
    )


def completed(problem: AllocationProblem, objective: Terms, kept: Terms, learnt: Learnt) -> Answer:
    """Minimise with at least `kept`; the gap is that to what is least without it."""
    cover = Cover(problem, programme.scenarios(problem), soft=False, learnt=learnt)
    if cover.separation.unservable:
        return Answer(Unsolvable(), cover.learnt, cover.separation)
    model = Model(programme.built(problem))
    cover.begin(model)
    costs = model.costs(objective)
    least = model.minimise(costs, problem.solver_effort, whole=False)
    if not isinstance(least, Point):
        return Answer(least, cover.learnt, cover.separation)
    low = model.costs(kept)
    model.between(low, model.upper)
    found = cover.relaxed(model, costs, cover.little)
    if isinstance(found, Point):
        near = _near(model)
        model.between(low, np.where(near, model.upper, low))
        found = cover.whole(model, costs)
        if not isinstance(found, Point) and not near.all():
            model.between(low, model.upper)
            found = cover.whole(model, costs)
    if isinstance(found, Point):
        found = replace(found, bound=least.objective)
    return Answer(_named(model, found), cover.learnt, cover.separation)


def _near(model: Model) -> npt.NDArray[np.bool_]:
    """Say which columns are nearest to paying, by the reduced costs of the solution in fractions just found."""
    reduced = model.duals().columns
    integer = np.flatnonzero(model.integer)
    near = ~model.integer
    near[integer[np.argsort(reduced[integer], kind="stable")[:_NEAREST]]] = True
    return near


@overload
def _named(model: Model, found: Point) -> Solved: ...
@overload
def _named(model: Model, found: Point | Unsolvable | Undecided) -> Solved | Unsolvable | Undecided: ...
def _named(model: Model, found: Point | Unsolvable | Undecided) -> Solved | Unsolvable | Undecided:
    if not isinstance(found, Point):
        return found
    values = dict(zip(model.keys, found.values.tolist(), strict=True))
    return Solved(values, found.objective, relative_gap(found))


class Cover:
    """What one problem's demand asks of replicas, as rows of a model in the replicas."""

    def __init__(
        self,
        problem: AllocationProblem,
        scenarios: tuple[Scenario, ...],
        *,
        soft: bool,
        learnt: Learnt,
        fractions: bool = False,
    ) -> None:
        self.separation = Separation(problem)
        self._problem = problem
        self._soft = soft
        self._fractions = fractions  # replicas may be: nothing is tightened because they are whole
        self._keys = sorted(o.key for o in problem.offerings if o.key.shape in problem.rates)
        places = {shape: number for number, shape in enumerate(self.separation.shapes)}
        self._shape = np.array([places[key.shape] for key in self._keys], dtype=np.intp)
        utilisation = np.array([problem.utilisations[key] for key in self._keys])
        alive = [np.array([each.survives(key) for key in self._keys], dtype=bool) for each in scenarios]
        kept = [f for f in range(len(scenarios)) if soft or not _implied(f, scenarios, alive)]
        self.scenarios = tuple(scenarios[f] for f in kept)
        self._usable = [utilisation * alive[f] for f in kept]
        self._given = learnt
        self._cuts: list[Cut] = []
        self._known: set[Weights] = set()
        self._rows: dict[tuple[Weights, int], tuple[int, Cut]] = {}  # by inequality and scenario: rows of the model

    @property
    def learnt(self) -> Learnt:
        """The inequalities so far."""
        return Learnt(tuple(cut.weights for cut in self._cuts))

    def begin(self, model: Model) -> None:
        """Take up a model: note its columns, and give it the inequalities that are known before it is solved."""
        self._columns = np.array([model.place[Replicas(key)] for key in self._keys], dtype=np.intp)
        self._unmet = [
            np.array([model.place[Unmet(scenario.loss, b)] for b in self.separation.buckets], dtype=np.intp)
            for scenario in self.scenarios
            if self._soft
        ]
        if not self._fractions:
            self._begin_with_one_replica(model)
        if not self.separation.buckets:
            return
        first = (self.separation.by_price(), *(self.separation.known(each) for each in self._given.inequalities))
        for cut in first:
            if cut.weights.of and cut.weights not in self._known:
                self._learn(cut)
                for scenario in range(len(self.scenarios)):
                    self._add(model, cut, scenario)

    def _begin_with_one_replica(self, model: Model) -> None:
        """Ask for a replica of some able shape for every bucket, in every scenario.

        It is what small loads need: the solver would not miss a replica for a load below its tolerance.
        """
        alike: dict[bytes, list[int]] = {}
        columns = np.ascontiguousarray(self.separation.able.T)
        for number, column in enumerate(columns):
            alike.setdefault(column.tobytes(), []).append(number)
        for number, usable in enumerate(self._usable):
            for buckets in alike.values():
                there = self._columns[(usable > 0) & columns[buckets[0]][self._shape]]
                if not self._soft:
                    _at_least_one(model, there, np.ones(len(there)))
                    continue
                for place in self._unmet[number][buckets]:
                    unmet = 1 / self.scenarios[number].fraction
                    places = np.append(there, place)
                    _at_least_one(model, places, np.append(np.ones(len(there)), unmet))
        for scenario in self.scenarios if self._soft else ():
            for bucket in self.separation.unservable:
                places = np.array([model.place[Unmet(scenario.loss, bucket)]])
                _at_least_one(model, places, np.array([1 / scenario.fraction]))

    def minimised(self, model: Model, costs: Numbers, start: Numbers | None = None) -> Point | Unsolvable | Undecided:
        """Minimise one objective; the model learns on the way.

        First without whole numbers, since that is quick and finds most inequalities.
        """
        least = self.relaxed(model, costs, self.little)
        return self.whole(model, costs, start) if isinstance(least, Point) else least

    @property
    def little(self) -> float:
        """What a round without whole numbers must add, as a part of the objective, for another to be worth it."""
        gap = self._problem.solver_effort.relative_gap or 0.0
        return _LITTLE * gap if gap > EXACT else -math.inf

    def whole(self, model: Model, costs: Numbers, start: Numbers | None = None) -> Point | Unsolvable | Undecided:
        """Minimise with whole numbers until nothing is violated."""
        for _ in range(_ROUNDS):
            found = model.minimise(costs, self._problem.solver_effort, start=start)
            if not isinstance(found, Point):
                return found
            found = Point(_rounded(model, found.values), found.objective, found.bound)
            if not self.refuted(model, found.values):
                return found
        return Undecided()

    def relaxed(self, model: Model, costs: Numbers, little: float) -> Point | Unsolvable | Undecided:
        """Minimise without whole numbers until a round adds less than this part: whole plans refute what is left over.

        Scenarios that fractions satisfy are left alone meanwhile.
        """
        effort = self._problem.solver_effort
        among = set(range(len(self.scenarios)))
        before = -math.inf
        for _ in range(_ROUNDS):
            found = model.minimise(costs, effort, whole=False)
            if not isinstance(found, Point) or found.objective - before < little * abs(found.objective):
                return found
            before = found.objective
            violated = self._violated(model, found.values, among)
            if not violated:
                return found
            among &= violated
        return found

    def marginal(self, duals: Numbers) -> tuple[tuple[Scenario, Numbers], ...]:
        """Return what serving one more whole demand of each bucket costs in each scenario, by the prices of rows."""
        costs = [np.zeros(len(self.separation.buckets)) for _ in self.scenarios]
        for (_, number), (row, cut) in self._rows.items():
            right = self.scenarios[number].fraction * float(cut.buckets.sum())
            if right > 0:
                costs[number] += duals[row] / right * cut.buckets
        return tuple(zip(self.scenarios, costs, strict=True))

    def capacities(self, values: Numbers) -> Iterator[tuple[int, Numbers, Numbers]]:
        """Yield every scenario's number, capacities per shape, and part of every bucket that must be served."""
        counts = values[self._columns]
        for number, (scenario, usable) in enumerate(zip(self.scenarios, self._usable, strict=True)):
            capacity: Numbers = np.bincount(
                self._shape, weights=usable * counts, minlength=len(self.separation.shapes)
            ).astype(float)
            served = np.full(len(self.separation.buckets), scenario.fraction)
            if self._soft:
                served = np.maximum(served - values[self._unmet[number]], 0.0)
            yield number, capacity, served

    def refuted(self, model: Model, values: Numbers) -> bool:
        """Add inequalities that the values violate; say whether there are any."""
        return bool(self._violated(model, values, range(len(self.scenarios))))

    def _violated(self, model: Model, values: Numbers, among: Collection[int]) -> set[int]:
        """Add inequalities that the values violate in some of these scenarios; return those scenarios.

        What is known is tried first; only then new ones are looked for.
        """
        states = [state for state in self.capacities(values) if state[0] in among]
        added: set[int] = set()
        for number, capacity, served in states:
            for cut in self._cuts:
                if (cut.weights, number) not in self._rows and self.separation.violated(cut, capacity, served):
                    self._add(model, cut, number)
                    added.add(number)
        if added:
            return set(among)
        for number, capacity, served in states:
            found = self.separation.separated(capacity, served, whole=not self._fractions)
            # What is known and still violated is within the solver's tolerance: asking again would change nothing.
            if found is not None and (found.weights, number) not in self._rows:
                if found.weights not in self._known:
                    self._learn(found)
                for other in range(len(self.scenarios)):
                    if (found.weights, other) not in self._rows:
                        self._add(model, found, other)
                added.add(number)
        return added

    def _learn(self, cut: Cut) -> None:
        self._known.add(cut.weights)
        self._cuts.append(cut)

    def _add(self, model: Model, cut: Cut, number: int) -> None:
        """Add the inequality of one scenario, scaled to 1 on the right.

        A coefficient above 1 says that one replica is enough, which 1 says too: tighter, and free of large numbers.
        """
        self._rows[cut.weights, number] = (model.height, cut)
        right = self.scenarios[number].fraction * float(cut.buckets.sum())
        if right <= 0:
            return
        left = cut.shapes[self._shape] * self._usable[number] / right
        if not self._fractions:
            left = np.minimum(left, 1.0)
        places, values = self._columns[left > 0], left[left > 0]
        if self._soft:
            some = cut.buckets > 0
            places = np.concatenate([places, self._unmet[number][some]])
            values = np.concatenate([values, cut.buckets[some] / right])
        _at_least_one(model, places, values)


def _at_least_one(model: Model, places: npt.NDArray[np.intp], values: Numbers) -> None:
    model.add_arrays(np.ones(1), np.full(1, math.inf), np.zeros(1), places, values)


def _implied(number: int, scenarios: Sequence[Scenario], alive: Sequence[npt.NDArray[np.bool_]]) -> bool:
    """Say whether another scenario asks for as much of fewer replicas; of equal ones the first is kept."""
    return any(
        other != number
        and scenarios[other].fraction >= scenarios[number].fraction
        and not (alive[other] & ~alive[number]).any()
        and (
            other < number
            or scenarios[other].fraction > scenarios[number].fraction
            or bool((alive[number] & ~alive[other]).any())
        )
        for other in range(len(scenarios))
    )


def _rounded(model: Model, values: Numbers) -> Numbers:
    near = np.round(values)
    return np.where(model.integer & (np.abs(values - near) <= _WHOLE), near, values)
