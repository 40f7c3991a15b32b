"""Solve the allocation programme without ever writing down its shares.

Called by `allocator`, `shortage` and `breakeven` in place of `ilp.minimise`. Market and zone do not change what a
replica can do, so all that the shares x of docs/allocation.md ask of the replicas is that the capacities C_s of the few
shapes lie in a polyhedron. By linear duality it is the set of all C with

    sum_s p_s C_s + sum_b q_b w_b >= f sum_b q_b     for every p >= 0, with q_b = min_s p_s l_b / m_sb

(f: the fraction that must be served; w: what may stay unmet). The programme without shares is solved, a violated
inequality is looked for in each scenario by a small linear programme, added for all scenarios, and so on until none is
violated: some rounds of a programme in a few dozen integers, where the shares of all scenarios would be thousands of
columns.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medley.core.accelerators import OfferingKey, Shape
from medley.core.workload import Bucket
from medley.planning import programme
from medley.planning.ilp import Programme, Row, Solved, Terms, Undecided, Unsolvable, Variable, minimise
from medley.planning.problem import AllocationProblem, Bound
from medley.planning.programme import Replicas, Scenario, Unmet

_ROUNDS = 200
# A violation must exceed what the solver lets pass (1e-6), or the same inequality would be found for ever. Loads below
# the absolute bound are looked after by `_Cover.basic`.
_RELATIVE = 1e-5
_ABSOLUTE = 1e-7
_SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class Cut:
    """Weights of shapes and buckets of one inequality; it holds in every scenario."""

    shapes: tuple[tuple[Shape, float], ...]
    buckets: tuple[tuple[Bucket, float], ...]


def solved(
    problem: AllocationProblem,
    objectives: Sequence[Terms],
    *,
    soft: bool = False,
    without: frozenset[Bound] = frozenset(),
    rows: Iterable[Row] = (),
) -> Solved | Unsolvable | Undecided:
    """Minimise the first objective, then the second among its optima, and so on, within the bounds and `rows`.

    An earlier objective may worsen by 1e-6 (relative, and at least absolute). Gap and objective are those of the first;
    a later one that cannot be decided within the effort is left out. `soft` and `without`: see `programme.built`.
    """
    cover = _Cover(problem, programme.scenarios(problem, without), soft=soft)
    if not soft and cover.unservable:
        return Unsolvable()
    current = programme.built(problem, soft=soft, without=without).with_rows(*rows, *cover.basic())
    best: Solved | None = None
    for number, objective in enumerate(objectives):
        found, current = cover.minimised(current, objective)
        if not isinstance(found, Solved):
            return found if best is None else best
        best = found if best is None else Solved(found.values, best.objective, best.gap)
        if number + 1 < len(objectives):
            reached = math.fsum(coefficient * found.values[key] for key, coefficient in objective.items())
            current = current.with_rows(Row(objective, at_most=reached + _SLACK * max(1.0, abs(reached))))
    if best is None:
        raise ValueError("nothing to minimise")
    return best


class _Cover:
    """What one problem's demand asks of replicas."""

    def __init__(self, problem: AllocationProblem, scenarios: tuple[Scenario, ...], *, soft: bool) -> None:
        self._problem = problem
        self._scenarios = scenarios
        self._soft = soft
        self._known: set[tuple[float, ...]] = set()  # weights of shapes of the inequalities found
        self._loads: dict[Bucket, dict[Shape, float]] = {
            bucket: {shape: demanded / rates[bucket] for shape, rates in problem.rates.items() if bucket in rates}
            for bucket, demanded in sorted(problem.demand.requests_per_second)
        }
        self.unservable = [bucket for bucket, loads in self._loads.items() if not loads]

    def basic(self) -> Iterator[Row]:
        """Yield what holds for any demand: a replica of some able shape for every bucket, and one inequality by price.

        The first is what small loads need: the solver would not miss a replica for a load below its tolerance.
        """
        able = {bucket: frozenset(loads) for bucket, loads in self._loads.items()}
        for scenario in self._scenarios:
            seen: set[frozenset[Shape]] = set()
            for bucket, shapes in able.items():
                unmet: dict[Hashable, float] = {}
                if self._soft:
                    unmet = {Unmet(scenario.lost_zone, bucket): 1 / scenario.fraction}
                elif shapes in seen:
                    continue
                seen.add(shapes)
                there = [Replicas(key) for key in self._survivors(scenario) if key.shape in shapes]
                yield Row({**dict.fromkeys(there, 1.0), **unmet}, at_least=1.0)
        prices: dict[Shape, float] = {}
        for each in self._problem.offerings:
            usd = each.usd_per_hour / self._problem.utilisations[each.key]
            prices[each.key.shape] = min(usd, prices.get(each.key.shape, math.inf))
        if any(self._loads.values()):
            yield from self._rows(self._cut({shape: prices[shape] for shape in self._problem.rates}))

    def minimised(self, current: Programme, objective: Terms) -> tuple[Solved | Unsolvable | Undecided, Programme]:
        """Minimise one objective; return the answer, and the programme with what was learnt on the way.

        First without whole numbers, since that is quick and finds most inequalities.
        """
        for whole in (False, True):
            for _ in range(_ROUNDS):
                found = minimise(current if whole else _relaxed(current), objective, self._problem.effort)
                if not isinstance(found, Solved):
                    return found, current
                violated = list(self._violated(found, whole=whole))
                if not violated:
                    break
                current = current.with_rows(*(row for cut in violated for row in self._rows(cut)))
            else:
                return Undecided(), current
        return found, current

    def _violated(self, found: Solved, *, whole: bool) -> Iterator[Cut]:
        asked: set[tuple[float, ...]] = set()
        for scenario in self._scenarios:
            capacity = dict.fromkeys(self._problem.rates, 0.0)
            for key in self._survivors(scenario):
                count = found.count(Replicas(key)) if whole else found.values[Replicas(key)]
                capacity[key.shape] = capacity.get(key.shape, 0.0) + self._problem.utilisations[key] * count
            served = {
                bucket: scenario.fraction - (found.values[Unmet(scenario.lost_zone, bucket)] if self._soft else 0.0)
                for bucket, loads in self._loads.items()
                if loads
            }
            question = (*capacity.values(), *served.values())
            if question in asked:
                continue  # zones that lose the same
            asked.add(question)
            cut = self._separated(capacity, served)
            if cut is not None:
                yield cut

    def _separated(self, capacity: Mapping[Shape, float], served: Mapping[Bucket, float]) -> Cut | None:
        """Return the inequality that these capacities violate most, or None."""
        variables = [Variable(shape) for shape in capacity] + [Variable(bucket) for bucket in served]
        rows = [Row({shape: 1.0 + each for shape, each in capacity.items()}, at_least=1.0, at_most=1.0)]
        rows += [
            Row({bucket: 1.0, shape: -load}, at_most=0.0)
            for bucket in served
            for shape, load in self._loads[bucket].items()
        ]
        objective: dict[Any, float] = {**capacity, **{bucket: -share for bucket, share in served.items()}}
        if not served:
            return None
        found = minimise(Programme(tuple(variables), tuple(rows)), objective, self._problem.effort)
        if not isinstance(found, Solved):
            return None
        cut = self._cut({shape: max(found.values[shape], 0.0) for shape in capacity})
        have = math.fsum(weight * capacity[shape] for shape, weight in cut.shapes)
        need = math.fsum(weight * served[bucket] for bucket, weight in cut.buckets)
        if need <= have + _RELATIVE * need + _ABSOLUTE:
            return None
        # What is known and still violated is within the solver's tolerance: asking again would change nothing.
        weights = tuple(float(f"{weight:.6g}") for _, weight in cut.shapes)
        if weights in self._known:
            return None
        self._known.add(weights)
        return cut

    def _cut(self, weights: Mapping[Shape, float]) -> Cut:
        """Return the inequality of these weights of shapes, with the largest weights of buckets that they allow."""
        return Cut(
            tuple(weights.items()),
            tuple(
                (bucket, min(weights[shape] * load for shape, load in loads.items()))
                for bucket, loads in self._loads.items()
                if loads
            ),
        )

    def _rows(self, cut: Cut) -> Iterator[Row]:
        """Yield the inequality of every scenario, scaled to 1 on the right.

        A coefficient above 1 says that one replica is enough, which 1 says too: tighter, and free of large numbers.
        """
        weights = dict(cut.shapes)
        for scenario in self._scenarios:
            right = scenario.fraction * math.fsum(weight for _, weight in cut.buckets)
            if right <= 0:
                continue
            left: dict[Hashable, float] = {
                Replicas(key): min(weights[key.shape] * self._problem.utilisations[key] / right, 1.0)
                for key in self._survivors(scenario)
                if weights.get(key.shape, 0.0) > 0
            }
            if self._soft:
                left |= {Unmet(scenario.lost_zone, b): weight / right for b, weight in cut.buckets if weight > 0}
            yield Row(left, at_least=1.0)

    def _survivors(self, scenario: Scenario) -> list[OfferingKey]:
        return [
            each.key
            for each in self._problem.offerings
            if each.key.shape in self._problem.rates and programme.survives(each.key, scenario.lost_zone)
        ]


def _relaxed(current: Programme) -> Programme:
    return Programme(tuple(replace(variable, integer=False) for variable in current.variables), current.rows)
