"""The first prices of quotas that services share: those of one programme for all of them, in fractions of replicas.

Called by `joint`. Each service's inequalities are found as for it alone (`cover`) and written side by side with what is
shared; the prices of the shared rows are what one unit more would save. Some seconds for ten services of hundreds of
offerings, a small part of what solving each in whole replicas takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medley.planning import programme
from medley.planning.commons import binds
from medley.planning.cover import Cover, Learnt
from medley.planning.ilp import Effort, Model, Numbers, Point
from medley.planning.problem import AllocationProblem, Cap
from medley.planning.programme import Replicas

_ROUNDS = 30
_LITTLE = 2e-4  # prices are only a beginning: a round that adds less than this part is the last


def opening_prices(problems: Sequence[AllocationProblem], shared: Sequence[Cap]) -> Numbers:
    """Return the price of each shared quota, in USD per hour and unit; all 0 where not all services can be met."""
    none = np.zeros(len(shared))
    services = [_Service(problem, shared) for problem in problems]
    if any(not service.met for service in services):
        return none
    starts = np.cumsum([0, *(len(service.costs) for service in services)])
    joint = Model.of_columns(np.concatenate([service.model.upper for service in services]))
    uses = np.concatenate([service.uses for service in services], axis=1)
    _add(joint, np.full(len(shared), -math.inf), np.array([cap.at_most for cap in shared]), uses, 0)
    costs = np.concatenate([service.costs for service in services])
    before = -math.inf
    for _ in range(_ROUNDS):
        for start, service in zip(starts, services, strict=False):
            _add(joint, *service.new_rows(), int(start))
        found = joint.minimise(costs, Effort(), whole=False)
        if not isinstance(found, Point):
            return none
        least = found.objective - before < _LITTLE * abs(found.objective)
        refuted = [s.refuted(found.values[a : a + len(s.costs)]) for a, s in zip(starts, services, strict=False)]
        if least or not any(refuted):
            break
        before = found.objective
    # A row without entries is none of the model's.
    there = uses.any(axis=1)
    none[there] = np.maximum(-joint.duals().rows[: np.count_nonzero(there)], 0.0)
    return none


class _Service:
    """One service's programme, its inequalities, and what its columns take of what is shared."""

    def __init__(self, problem: AllocationProblem, shared: Sequence[Cap]) -> None:
        self.model = Model(programme.built(problem))
        self._cover = Cover(problem, programme.scenarios(problem), soft=False, learnt=Learnt())
        self.costs = self.model.costs(programme.objective(problem))
        self.uses = np.zeros((len(shared), len(self.costs)))
        for row, cap in zip(self.uses, shared, strict=True):
            for key, use in cap.uses if binds(cap, problem) else ():
                if Replicas(key) in self.model.place:
                    row[self.model.place[Replicas(key)]] = use
        self._known = 0
        self.met = not self._cover.separation.unservable and bool(len(self.costs))
        if self.met:
            self._cover.begin(self.model)
            self.met = isinstance(self._cover.relaxed(self.model, self.costs, _LITTLE), Point)

    def refuted(self, values: Numbers) -> bool:
        """Add inequalities that values violate; say whether there are any."""
        return self._cover.refuted(self.model, values)

    def new_rows(self) -> tuple[Numbers, Numbers, Numbers]:
        """Return the rows that were not returned before."""
        at_least, at_most, coefficients = (each[self._known :] for each in self.model.table())
        self._known += len(at_least)
        return at_least, at_most, coefficients


def _add(joint: Model, at_least: Numbers, at_most: Numbers, coefficients: Numbers, start: int) -> None:
    some = coefficients.any(axis=1)
    rows, columns = np.nonzero(coefficients[some])
    if len(rows):
        starts = np.searchsorted(rows, np.arange(np.count_nonzero(some)))
        joint.add_arrays(at_least[some], at_most[some], starts, columns + start, coefficients[some][rows, columns])
