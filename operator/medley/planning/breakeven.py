"""At what price something that is not bought would be bought.

Called by `explain`. The answer is the highest factor t on the prices of some offerings for which a plan with at least
one of them costs no more than the plan without:

    t* = max over plans with the offerings of (cost of the plan without - cost of the rest) / cost of the offerings

a ratio, so found by Dinkelbach's method: minimise rest + t x offerings, take the ratio of that plan as the next t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from medley.core.accelerators import OfferingKey
from medley.planning import cover, programme
from medley.planning.cover import Learnt
from medley.planning.ilp import Row, Solved, Undecided
from medley.planning.problem import AllocationProblem, Bound
from medley.planning.programme import Replicas

_STEPS = 12
_SAME = 1e-6


@dataclass(frozen=True, slots=True)
class Never:
    """Not even for nothing: no plan with one of them costs less than the plan without."""


@dataclass(frozen=True, slots=True)
class NoRoom:
    """No plan within the bounds has one of them."""


@dataclass(frozen=True, slots=True)
class Below:
    """Up to this factor on their prices; `exact` unless a solver's limit was met (then at least this)."""

    factor: float
    exact: bool


Breakeven = Never | NoRoom | Below


def breakeven(problem: AllocationProblem, usd_per_hour: float, offerings: frozenset[OfferingKey]) -> Breakeven:
    """Return up to which factor on their prices some of `offerings` would be in the cheapest plan.

    `usd_per_hour`: the price of the cheapest plan with what interruptions are expected to cost; it has none of them.
    The budget does not count: it is not what speaks against an offering that is cheap enough.
    """
    return _breakeven(replace(problem, fleet=(), change_usd=(), surcharge_usd=()), usd_per_hour, offerings)


@lru_cache(maxsize=512)  # a pure function; passes over an unchanged world ask the same again
def _breakeven(problem: AllocationProblem, usd_per_hour: float, offerings: frozenset[OfferingKey]) -> Breakeven:
    one = Row({Replicas(key): 1.0 for key in offerings}, at_least=1.0)
    without = frozenset({Bound.BUDGET, Bound.SHARED_BUDGET})
    prices: dict[Any, float] = programme.objective(problem)
    own = {key: prices[key] for key in map(Replicas, offerings)}
    rest = {key: price for key, price in prices.items() if key not in own}
    factor, learnt = 1.0, Learnt()
    for _ in range(_STEPS):
        objective: dict[Any, float] = {**rest, **{key: factor * price for key, price in own.items()}}
        answer = cover.solved(problem, [objective], without=without, rows=[one], learnt=learnt)
        found, learnt = answer.found, answer.learnt
        if isinstance(found, Undecided):
            return Below(factor, exact=False) if factor < 1 else NoRoom()
        if not isinstance(found, Solved):
            return NoRoom()
        saved = usd_per_hour - math.fsum(price * found.count(key) for key, price in rest.items())
        spent = math.fsum(price * found.count(key) for key, price in own.items())
        if saved <= _SAME * max(1.0, usd_per_hour):
            if factor == 0:
                return Never()
            factor = 0.0  # this plan saves nothing; perhaps one with more of them does
            continue
        if abs(saved / spent - factor) <= _SAME * max(1.0, factor):
            return Below(factor, exact=True)
        factor = saved / spent
    return Below(factor, exact=False)
