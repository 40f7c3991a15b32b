"""When to change the fleet over a day whose demand rises and falls: a ladder of fleets, a forecast, a schedule.

    rungs = ladder(problem, least, most)                       # the cheapest fleet for every rate in between
    found = followed(rungs, past, day, look=5)                 # a day decided as it comes, by its outlook

The ladder is the operator's (`pace`); days decided step by step are those of tests and `bench/changes.py`. `hindsight`
is the best schedule for a day that is known, the judge of all others. Demand is a multiple of the problem's own, sizes
staying as they are. Pure. Derivations: docs/allocation.md, "What a change costs".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medley.core.accelerators import OfferingKey
from medley.core.errors import InvalidInputError
from medley.core.workload import Demand
from medley.planning.allocator import cheapest
from medley.planning.changes import CHANGES_PER_DAY, DISTURBANCE, HORIZON, launch_usd, launches_usd
from medley.planning.outlook import COMPARED, Outlook, course, level
from medley.planning.problem import Allocation, AllocationProblem
from medley.planning.programme import scenarios
from medley.planning.separation import Separation

# The next rung is asked for at a demand this little above what the one before serves.
_NEXT = 1 + 1e-6
_FITS = 1 + 1e-9
_HOUR = timedelta(hours=1)
# Without a day before: as much more than the recent peak as one of five equal steps up a 3:1 day is.
UNKNOWN_DAY_MARGIN = 3 ** (1 / (CHANGES_PER_DAY // 2 - 1))

Costs = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rung:
    """The cheapest fleet for some demand, and the demand up to which it serves."""

    replicas: tuple[tuple[OfferingKey, int], ...]
    usd_per_hour: float
    serves: float


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """Fleets by rising demand and price; `change_usd[i, j]`: launches from rung i to rung j, in USD."""

    rungs: tuple[Rung, ...]
    change_usd: Costs

    @property
    def prices(self) -> Costs:
        """USD per hour by rung."""
        return np.array([each.usd_per_hour for each in self.rungs])

    @property
    def reach(self) -> Costs:
        """Demand that each rung serves."""
        return np.array([each.serves for each in self.rungs])

    def lowest(self, demand: float) -> int:
        """Return the cheapest rung that serves a demand; the last if none does."""
        return min(int(np.searchsorted(self.reach * _FITS, demand)), len(self.rungs) - 1)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A rung for each step of a day, and what the day costs."""

    rungs: tuple[int, ...]
    usd: float

    @property
    def changes(self) -> int:
        """How often the fleet changes."""
        return sum(a != b for a, b in zip(self.rungs, self.rungs[1:], strict=False))


def ladder(problem: AllocationProblem, least: float, most: float, *, apart: float = _NEXT) -> Ladder:
    """Return every fleet that is cheapest for some multiple of the demand between `least` and `most`.

    One solve per fleet: what a fleet serves is worked out exactly, and the next is asked for just beyond, or for a
    demand `apart` times that asked for before, if that is more. It ends early where the bounds allow no more.
    Raises InvalidInputError if not even the least can be served.
    """
    if not 0 < least <= most:
        raise InvalidInputError("demand", f"expected 0 < least <= most, got {least} and {most}")
    separation = Separation(problem)
    rungs: list[Rung] = []
    demand = least
    while demand <= most:
        found = cheapest(_scaled(problem, demand))
        if found is None:
            break
        serves = max(served(problem, found, separation), demand)
        while rungs and rungs[-1].usd_per_hour >= found.usd_per_hour:
            rungs.pop()  # the same price for less
        rungs.append(Rung(found.replicas, found.usd_per_hour, serves))
        demand = max(serves * _NEXT, demand * apart)
    if not rungs:
        raise InvalidInputError("demand", f"{least:g} times the demand cannot be served within the bounds")
    launch = {each.key: launch_usd(each) for each in problem.offerings}
    costs = [[launches_usd(dict(a.replicas), b.replicas, launch) for b in rungs] for a in rungs]
    return Ladder(tuple(rungs), np.array(costs))


def hindsight(fleets: Ladder, day: Sequence[float] | Costs, hours_per_step: float, *, most_changes: int) -> Schedule:
    """Return the cheapest schedule for a day that is known, with at most so many changes: fleets and launches, in USD.

    Exact over the ladder's fleets: dynamic programming over steps, rungs and changes made. The fleet of the first step
    is there at no cost.
    """
    spent, came_from = _spent(fleets, day, hours_per_step, most_changes)
    made, rung = (int(each) for each in np.unravel_index(int(np.argmin(spent)), spent.shape))
    usd, path = float(spent[made, rung]), [rung]
    for origin in reversed(came_from):
        before = int(origin[made, rung])
        made -= before != rung
        rung = before
        path.append(rung)
    return Schedule(tuple(reversed(path)), usd)


def reacting(fleets: Ladder, seen: Sequence[float], standing: int, steps_per_day: int) -> int:
    """Return the rung to have next where no day before is known.

    A fleet that serves is left only for one that serves the peak of the last two hours and UNKNOWN_DAY_MARGIN more, if
    that pays within HORIZON (`changes`); one that does not is left for that at once.
    """
    peak = max(seen[-max(round(steps_per_day * COMPARED), 1) :])
    calm = fleets.lowest(peak * UNKNOWN_DAY_MARGIN)
    if fleets.rungs[standing].serves < seen[-1]:
        return calm
    price = fleets.rungs[standing].usd_per_hour
    saved = (price - fleets.rungs[calm].usd_per_hour) * (HORIZON / _HOUR)
    return calm if saved > fleets.change_usd[standing, calm] + price * (DISTURBANCE / _HOUR) else standing


def followed(
    fleets: Ladder, past: Sequence[Sequence[float]], day: Sequence[float], *, look: int, changes: int = CHANGES_PER_DAY
) -> Schedule:
    """Return what a day comes to that is decided step by step, each step knowing no more than what was before it.

    Every step sees whether the standing fleet serves; every `look` steps, and when it does not, the outlook is asked.
    `past`: days before (empty: `reacting`). `changes`: as many as there may be.
    """
    hours = 24 / len(day)
    disturbance = np.asarray(fleets.prices * (DISTURBANCE / _HOUR))
    usual = course(past) if past else None
    outlooks: dict[float, Outlook] = {}

    def at(factor: float) -> Outlook:
        if usual is None:
            raise ValueError("no day before is known")
        if factor not in outlooks:
            scaled = replace(usual, mean=usual.mean * factor)
            outlooks[factor] = Outlook(fleets, scaled, hours, changes, disturbance)
        return outlooks[factor]

    rung = at(1.0).first(day[0]) if usual else fleets.lowest(day[0] * UNKNOWN_DAY_MARGIN)
    rungs, usd, left = [rung], fleets.rungs[rung].usd_per_hour * hours, changes
    for step in range(1, len(day)):
        chosen = rung
        if step % look == 0 or fleets.rungs[rung].serves < day[step]:
            seen = day[: step + 1]
            if usual is None:
                chosen = reacting(fleets, seen, rung, len(day))
            else:
                # To whole percents: a level is not known better, and an outlook serves as long as it stays.
                chosen = at(round(level(usual, seen), 2)).best(step, day[step], rung, left)
        left -= chosen != rung
        usd += float(fleets.change_usd[rung, chosen]) + fleets.rungs[chosen].usd_per_hour * hours
        rung = chosen
        rungs.append(rung)
    return Schedule(tuple(rungs), usd)


def _spent(
    fleets: Ladder, day: Sequence[float] | Costs, hours_per_step: float, most_changes: int
) -> tuple[Costs, list[NDArray[Any]]]:
    """Return the least that a day costs by changes made and last rung, and for each step where each came from."""
    hours = np.asarray(fleets.prices * hours_per_step)
    rungs = len(fleets.rungs)
    spent = np.full((most_changes + 1, rungs), math.inf)
    spent[0] = _priced(fleets, hours, day[0])
    stayed = np.tile(np.arange(rungs), (most_changes + 1, 1))
    came_from: list[NDArray[Any]] = []
    for demand in day[1:]:
        moved = spent[:-1, :, None] + fleets.change_usd[None, :, :]
        best = np.argmin(moved, axis=1)
        by_change = np.take_along_axis(moved, best[:, None, :], axis=1)[:, 0, :]
        changed = by_change < spent[1:]
        origin = stayed.copy()
        origin[1:] = np.where(changed, best, origin[1:])
        came_from.append(origin)
        after = spent.copy()
        after[1:] = np.where(changed, by_change, after[1:])
        spent = after + _priced(fleets, hours, demand)
    return spent, came_from


def _priced(fleets: Ladder, hours: Costs, demand: float) -> Costs:
    """Return the price of a step by rung; those that do not serve are out, unless none does."""
    able = fleets.reach * _FITS >= demand
    if not able.any():
        able[-1] = True
    return np.where(able, hours, math.inf)


def _scaled(problem: AllocationProblem, factor: float) -> AllocationProblem:
    rates = tuple((bucket, rate * factor) for bucket, rate in problem.demand.requests_per_second)
    return replace(problem, demand=Demand(problem.demand.grid, rates))


def served(problem: AllocationProblem, fleet: Allocation, separation: Separation) -> float:
    """Return the multiple of the demand that a fleet serves, in normal times and, as far as promised, after a loss."""
    least = math.inf
    for scenario in scenarios(problem):
        capacity = dict.fromkeys(separation.shapes, 0.0)
        for key, count in fleet.replicas:
            if scenario.survives(key):
                capacity[key.shape] += problem.utilisations[key] * count
        parts = np.full(len(separation.buckets), scenario.fraction)
        least = min(least, 1 / separation.levelled(np.array(list(capacity.values())), parts)[1])
    return least
