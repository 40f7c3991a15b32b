"""Several services that share quotas or a budget, planned together by the prices of what they share.

    found = together(services, shared)      # found.of["ns/chat"] is an Allocation, or Infeasible naming what binds
    found.gap, found.prices, found.rivals("ns/chat")

Called by `sharing` for the operator and by `bench/joint.py`. As one programme it does not close. Instead each quota has
a price; every service is solved alone with its replicas dearer by what they take of it (`surcharge_usd`); the prices
are first those of all services' relaxations together (`opening`), then the multipliers of a small programme that mixes
the plans found so far (Dantzig and Wolfe's decomposition). The priced services bound the cost from below (the
Lagrangian), whole plans that fit together bound it from above, and the gap between the two is reported. Where not all
can be met, the higher priority is served first. Pure. Formulas: docs/allocation.md, "Several services".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medley.core.accelerators import OfferingKey
from medley.core.errors import InvalidInputError
from medley.planning.allocator import Counts, attempted, reallocate
from medley.planning.combining import FITS, Answer, Known, Plan, cost, taken
from medley.planning.commons import binds, within
from medley.planning.cover import Learnt
from medley.planning.opening import opening_prices
from medley.planning.problem import EXACT, Allocation, AllocationProblem, Cap, Infeasible

WANTED_GAP = 0.01
ROUNDS = 12
# How far prices go from those of the best bound so far, at first, in parts of what a unit of the quota costs; further
# while the bound moves, less far when it does not.
_REACH, _FURTHER, _NEARER = 0.02, 2.0, 0.5
# Rounds without any plan that was not known end the search.
_IDLE = 2
# Prices at which a tie between having and doing without is decided for having, in parts of the price.
_BELOW = 0.98
# Services that are priced side by side: the solver lets other threads run, and takes up to 100 MB for each.
_AT_ONCE = 2

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sharer:
    """A service among others: its own problem, in whose caps shared ones may appear by the same name."""

    name: str
    problem: AllocationProblem
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Holding:
    """A quota that is used up, and how much of it each service takes."""

    cap: str
    at_most: float
    takes: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Joint:
    """Plans that fit together.

    `usd_per_hour`: their objectives together, with interruptions and changes; no plans that meet all services cost less
    than `bound`. `prices` of quotas, in USD per hour and unit, at which the bound was found; those of 0 are left out.
    """

    answers: tuple[tuple[str, Answer], ...]
    usd_per_hour: float
    bound: float
    prices: tuple[tuple[str, float], ...]
    exhausted: tuple[Holding, ...]

    @property
    def of(self) -> Mapping[str, Answer]:
        """The answer for each service."""
        return dict(self.answers)

    @property
    def gap(self) -> float:
        """How far the cost may be above the least possible, relative; infinite where a service is not met."""
        if any(isinstance(answer, Infeasible) for _, answer in self.answers):
            return math.inf
        return max(self.usd_per_hour - self.bound, 0.0) / self.usd_per_hour if self.usd_per_hour else 0.0

    def rivals(self, name: str) -> tuple[Holding, ...]:
        """Return the quotas that are used up, with what services other than `name` take of each, largest first."""
        return tuple(
            replace(each, takes=takes)
            for each in self.exhausted
            if (takes := tuple(sorted((t for t in each.takes if t[0] != name), key=lambda t: (-t[1], t[0]))))
        )


def together(
    sharers: Iterable[Sharer], shared: Iterable[Cap], *, wanted_gap: float = WANTED_GAP, rounds: int = ROUNDS
) -> Joint:
    """Return plans for all services within what they share; raises SolverError.

    `sharers`: in the order in which equal priorities are served where not all can be. `shared`: a Budget is a cap whose
    uses are prices, taken by those alone who draw on it. What is returned depends on nothing but the arguments.
    """
    search = _Search(tuple(sharers), tuple(shared), wanted_gap)
    opening = opening_prices([each.problem for each in search.sharers], search.shared)
    best_prices = np.zeros(len(search.shared))
    if not opening.any():
        plans = search.priced(best_prices)
        if search.fit(plans):
            return search.joint(plans, best_prices)
    best_prices = search.searched(opening, rounds)
    found = [] if search.best is None else [search.best]
    if not found or search.some_never_met:
        # Not all can be met: the prices keep those that come first from what those that follow need more.
        found += [search.short(each) for each in (best_prices, np.zeros_like(opening))]
    return search.joint(min(found, key=search.shortfall), best_prices)


class _Search:
    """The plans found so far, the best that fit together, and the bound."""

    def __init__(self, sharers: tuple[Sharer, ...], shared: tuple[Cap, ...], wanted_gap: float) -> None:
        if len({each.name for each in sharers}) < len(sharers):
            raise InvalidInputError("services", "one is named twice")
        self.sharers = sharers
        self._wanted_gap = wanted_gap
        self.shared = shared
        self.limits = np.array([cap.at_most for cap in shared], dtype=float)
        # What one replica of an offering takes of each quota: nothing of a Budget that its service does not draw on.
        self.uses = [[dict(cap.uses) if binds(cap, each.problem) else {} for cap in shared] for each in sharers]
        self.best: list[Plan] | None = None
        self.bound = -math.inf
        self._learnt: list[Learnt | None] = [None] * len(sharers)
        self._never: dict[int, Plan] = {}  # services that could not be met if they were alone
        # By priority, then as given.
        self._order = sorted(range(len(sharers)), key=lambda place: -sharers[place].priority)
        self.known = Known(len(sharers), self.limits)
        usd = {o.key: o.usd_per_hour for each in sharers for o in each.problem.offerings}
        each_usd = [[usd[key] / use for key, use in cap.uses if key in usd and use > 0] for cap in shared]
        self.unit_usd = np.array([math.fsum(each) / len(each) if each else 0.0 for each in each_usd])

    @property
    def near(self) -> bool:
        """Whether the best plans are as near to the bound as is wanted."""
        if self.best is None:
            return False
        usd = cost(self.best)
        return usd - self.bound <= self._wanted_gap * usd

    @property
    def some_never_met(self) -> bool:
        """Whether a service that could not be met if it were alone would take some of what is shared all the same."""
        return any(plan.takes.any() for plan in self._never.values())

    def searched(self, opening: Numbers, rounds: int) -> Numbers:
        """Look for plans and prices until they are near; return the prices of the best bound."""
        best_prices, prices = np.zeros_like(opening), opening
        wished: list[Plan] = []
        reach = _REACH * self.unit_usd
        idle = 0
        for number in range(rounds):
            if self.near or idle == _IDLE:
                break
            known, before, last = len(self.known), self.bound, number == rounds - 1
            if number:
                prices = self.known.prices(best_prices, reach)
            plans = self.priced(prices, rough=not number)
            self.offer(plans)
            if self.bound > before or not number:
                best_prices, wished = prices, plans
            if number:
                reach = reach * (_FURTHER if self.bound > before or idle else _NEARER)
            self.offer(self.known.together())
            if not self.near and (idle or last or (number and self.best is None)):
                # The first prices are too far off for that. Who comes later fills what is left: everybody does once.
                for first in range(len(self.sharers)) if idle else (number,):
                    self.offer(self.in_turn(best_prices, wished, first, rough=not idle))
                self.offer(self.known.together())
            if not self.near and (idle or last):
                self.polish()
            idle = idle + 1 if len(self.known) == known else 0
        if not self.near and self.best is not None:
            self.break_ties(best_prices)
        return best_prices

    def priced(self, prices: Numbers, *, rough: bool = False) -> list[Plan]:
        """Return the cheapest plan of each service at these prices of quotas; all are kept, and the bound is moved.

        `rough`: only as near to the cheapest as is wanted of all together.
        """

        def cheapest(place: int) -> Plan:
            known = self._never.get(place)
            return known if known is not None else self._solved(place, prices, self.limits, rough=rough)

        with ThreadPoolExecutor(_AT_ONCE) as threads:  # each looks at what is known of its own service alone
            plans = list(threads.map(cheapest, range(len(self.sharers))))
        low = math.fsum(
            plan.answer.bound if isinstance(plan.answer, Allocation) else plan.usd_per_hour + float(prices @ plan.takes)
            for plan in plans
        )
        self.bound = max(self.bound, low - float(prices @ self.limits))
        for place, plan in enumerate(plans):
            self.known.keep(place, plan)
        return plans

    def fit(self, plans: Sequence[Plan]) -> bool:
        """Say whether plans stay within what is shared."""
        return bool((taken(plans, len(self.limits)) <= self.limits + FITS).all())

    def offer(self, plans: list[Plan] | None) -> None:
        """Take plans for the best if they fit together and leave less unserved, or as little and cost less."""
        if (
            plans is not None
            and self.fit(plans)
            and (self.best is None or self.shortfall(plans) < self.shortfall(self.best))
        ):
            self.best = plans

    def in_turn(self, prices: Numbers, wished: Sequence[Plan], first: int, *, rough: bool = False) -> list[Plan] | None:
        """Return plans made one after the other, each within what those before it leave: by priority, from `first` on.

        `wished`: the cheapest at these prices. None if one is not met that could be met alone.
        """
        left = self.limits.copy()
        plans: dict[int, Plan] = {}
        start = first % len(self._order)
        for place in (*self._order[start:], *self._order[:start]):
            wish = wished[place]
            plan = wish if (wish.takes <= left + FITS).all() else self._tried(place, prices, left, rough=rough)
            if plan is None:
                return None
            plans[place] = plan
            self.known.keep(place, plan)
            left = np.maximum(left - plan.takes, 0.0)
        return [plans[place] for place in range(len(self.sharers))]

    def short(self, prices: Numbers) -> list[Plan]:
        """Return what `in_turn` returns, with as much as can be of those that are not met."""
        left = self.limits.copy()
        plans: dict[int, Plan] = {}
        for place in self._order:
            plans[place] = self._solved(place, prices, left)
            left = np.maximum(left - plans[place].takes, 0.0)
        return [plans[place] for place in range(len(self.sharers))]

    def polish(self) -> None:
        """Let each service of the best plans plan again within what the others leave, without prices."""
        if self.best is None:
            return
        free = np.zeros(len(self.limits))
        for place in self._order:
            others = taken([plan for number, plan in enumerate(self.best) if number != place], len(self.limits))
            again = self._tried(place, free, np.maximum(self.limits - others, 0.0))
            if again is not None:
                self.known.keep(place, again)
                self.offer([*self.best[:place], again, *self.best[place + 1 :]])

    def break_ties(self, prices: Numbers) -> None:
        """Offer what comes of prices a little lower: at the best ones a plan often costs what doing without does."""
        below = prices * _BELOW
        wished = self.priced(below, rough=True)
        for first in range(len(self.sharers)):
            if not self.near:
                self.offer(self.in_turn(below, wished, first, rough=True))
        self.offer(self.known.together())

    def shortfall(self, plans: Sequence[Plan]) -> tuple[Any, ...]:
        """Return what compares plans that do not meet all: unserved parts by priority, then cost."""
        unmet = [
            plan.answer.unmet_requests_per_second / (self.sharers[place].problem.demand.total or 1.0)
            if isinstance(plan.answer, Infeasible)
            else -1.0
            for place, plan in enumerate(plans)
        ]
        return (*(round(unmet[place], 4) for place in self._order), cost(plans))

    def joint(self, plans: Sequence[Plan], prices: Numbers) -> Joint:
        """Return plans as the answer."""
        used = taken(plans, len(self.limits))
        names = [each.name for each in self.sharers]
        return Joint(
            answers=tuple((name, plan.answer) for name, plan in zip(names, plans, strict=True)),
            usd_per_hour=cost(plans),
            bound=self.bound,
            prices=tuple(
                (cap.name, float(price)) for cap, price in zip(self.shared, prices, strict=True) if price > FITS
            ),
            exhausted=tuple(
                Holding(
                    cap.name,
                    cap.at_most,
                    tuple((n, float(p.takes[q])) for n, p in zip(names, plans, strict=True) if p.takes[q] > FITS),
                )
                for q, cap in enumerate(self.shared)
                if used[q] + min((use for _, use in cap.uses), default=math.inf) > self.limits[q] + FITS
            ),
        )

    def _solved(self, place: int, prices: Numbers, left: Numbers, *, rough: bool = False) -> Plan:
        asked = self._asked(place, prices, left, rough=rough)
        answer, self._learnt[place] = reallocate(asked, self._learnt[place], self._start(place, prices, left))
        plan = self._plan(place, answer, prices)
        if not plan.met and (left == self.limits).all():
            self._never[place] = plan
        return plan

    def _tried(self, place: int, prices: Numbers, left: Numbers, *, rough: bool = False) -> Plan | None:
        if place in self._never:
            return self._solved(place, prices, left)
        asked = self._asked(place, prices, left, rough=rough)
        answer, self._learnt[place] = attempted(asked, self._learnt[place], self._start(place, prices, left))
        return None if answer is None else self._plan(place, answer, prices)

    def _start(self, place: int, prices: Numbers, left: Numbers) -> Counts | None:
        plan = self.known.cheapest(place, prices, left)
        return None if plan is None else plan.allocation.replicas

    def _asked(self, place: int, prices: Numbers, left: Numbers, *, rough: bool = False) -> AllocationProblem:
        problem = within(self.sharers[place].problem, self.shared, left)
        surcharge = ((each.key, self._surcharge(place, each.key, prices)) for each in problem.offerings)
        gap = problem.solver_effort.relative_gap or 0.0
        if rough and gap > EXACT:
            problem = replace(problem, effort=replace(problem.effort, relative_gap=max(gap, self._wanted_gap)))
        return replace(problem, surcharge_usd=tuple((key, usd) for key, usd in surcharge if usd > 0))

    def _surcharge(self, place: int, key: OfferingKey, prices: Numbers) -> float:
        return math.fsum(price * uses.get(key, 0.0) for price, uses in zip(prices, self.uses[place], strict=True))

    def _plan(self, place: int, answer: Answer, prices: Numbers) -> Plan:
        allocation = answer if isinstance(answer, Allocation) else answer.best
        replicas = allocation.replicas
        takes = [math.fsum(uses.get(key, 0.0) * count for key, count in replicas) for uses in self.uses[place]]
        more = math.fsum(self._surcharge(place, key, prices) * count for key, count in replicas)
        return Plan(answer, allocation.objective - more, np.array(takes))
