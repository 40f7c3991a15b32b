"""Plans known of services that share quotas: which of them go together, and what a unit of each quota is worth to them.

Called by `joint`, which finds the plans. The programmes are small: a column per plan, a row per quota and per service
(the restricted master of Dantzig and Wolfe's decomposition). Formulas: docs/allocation.md, "Several services".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medley.planning.ilp import Effort, Model, Numbers, Point, Programme, Row, Variable
from medley.planning.problem import Allocation, Infeasible

FITS = 1e-6
Answer = Allocation | Infeasible


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """One way to serve one service: its cost without surcharges, and what it takes of each quota."""

    answer: Answer
    usd_per_hour: float
    takes: Numbers

    @property
    def met(self) -> bool:
        """Whether it serves all that the service asks."""
        return isinstance(self.answer, Allocation)

    @property
    def allocation(self) -> Allocation:
        """What is to be had, if only the best within the bounds."""
        return self.answer if isinstance(self.answer, Allocation) else self.answer.best


class Known:
    """The plans known of each service."""

    def __init__(self, services: int, limits: Numbers) -> None:
        self._limits = limits
        self._plans: list[list[Plan]] = [[] for _ in range(services)]

    def __len__(self) -> int:
        return sum(map(len, self._plans))

    def keep(self, place: int, plan: Plan) -> None:
        """Keep a plan of a service, unless its replicas are known."""
        known = self._plans[place]
        if all(each.allocation.replicas != plan.allocation.replicas for each in known):
            known.append(plan)

    def cheapest(self, place: int, prices: Numbers, left: Numbers) -> Plan | None:
        """Return the plan that meets a service within what is left at the least cost at these prices of quotas."""
        fitting = [plan for plan in self._plans[place] if plan.met and (plan.takes <= left + FITS).all()]
        return min(fitting, key=lambda plan: plan.usd_per_hour + float(prices @ plan.takes), default=None)

    def prices(self, about: Numbers, reach: Numbers) -> Numbers:
        """Return the prices of quotas at which the plans, mixed in fractions, cost most, no further from `about`.

        Known plans say little of prices far from those at which they were made. So quotas can be had beyond what there
        is at the highest price within `reach`, and be given back at the lowest.
        """
        model, costs = self._mix([*(about + reach), *-np.maximum(about - reach, 0.0)])
        found = model.minimise(costs, Effort(), whole=False)
        if not isinstance(found, Point):
            return about
        return np.maximum(-model.duals().rows[: len(self._limits)], 0.0)

    def together(self) -> list[Plan] | None:
        """Return the cheapest whole plans that fit together, one of each service, if any do."""
        model, costs = self._mix()
        found = model.minimise(costs, Effort())
        if not isinstance(found, Point):
            return None
        chosen = iter(found.values)
        return [max(((next(chosen), plan) for plan in plans), key=lambda each: each[0])[1] for plans in self._plans]

    def _mix(self, trade_usd: Sequence[float] = ()) -> tuple[Model, Numbers]:
        """Return the programme that takes one plan of each service, quotas first among its rows.

        `trade_usd`: what a unit more of each quota costs, then a unit less; plans may then be taken in fractions.
        """
        keys = [(place, number) for place, plans in enumerate(self._plans) for number in range(len(plans))]
        quotas = range(len(self._limits))
        trades = [(sign, q) for sign in (-1.0, 1.0) for q in quotas] if len(trade_usd) else []
        variables = [Variable(key, upper=1.0, integer=not trades) for key in keys]
        variables += [Variable(("trade", *each)) for each in trades]
        terms: dict[Any, float] = {key: self._plans[key[0]][key[1]].usd_per_hour for key in keys}
        terms |= {("trade", *each): float(usd) for each, usd in zip(trades, trade_usd, strict=True)}
        rows = [
            Row(
                {
                    **{key: float(self._plans[key[0]][key[1]].takes[q]) for key in keys},
                    **{("trade", *each): each[0] for each in trades if each[1] == q},
                },
                at_most=float(limit),
            )
            for q, limit in enumerate(self._limits)
        ]
        rows += [
            Row({key: 1.0 for key in keys if key[0] == place}, at_least=1.0, at_most=1.0)
            for place in range(len(self._plans))
        ]
        model = Model(Programme(tuple(variables), tuple(rows)))
        return model, model.costs(terms)


def taken(plans: Sequence[Plan], quotas: int) -> Numbers:
    """Return what plans take of each quota together."""
    return np.sum([plan.takes for plan in plans], axis=0) if plans else np.zeros(quotas)


def cost(plans: Sequence[Plan]) -> float:
    """Return what plans cost together, without surcharges, in USD per hour."""
    return math.fsum(plan.usd_per_hour for plan in plans)
