"""When to change the fleet over a day whose demand rises and falls: a ladder of fleets, a forecast, a schedule.

    rungs = ladder(problem, least, most)                       # the cheapest fleet for every rate in between
    ahead = forecast(course(past), seen)                       # the most that is to be expected, step by step
    rung = best_now(rungs, ahead, standing, hours, price)      # what to have in the next step

Called by tests, `bench/changes.py` and the simulator; the operator plans for one rate (`changes`) until it measures
demand. `hindsight` is the best schedule for a day that is known, the judge of all others. Demand is a multiple of the
problem's own, sizes staying as they are. Pure. Derivations: docs/allocation.md, "What a change costs".
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
from medley.planning.problem import Allocation, AllocationProblem
from medley.planning.programme import scenarios
from medley.planning.separation import Separation

# The next rung is asked for at a demand this little above what the one before serves.
_NEXT = 1 + 1e-6
_FITS = 1 + 1e-9
# A step in so many exceeds what is expected; each costs at most one change that was not foreseen.
EXCEEDED = 0.998
# Today differs from other days if the difference is this many standard errors.
_SIGNIFICANT = 3.0
# Over how much of a day steps are averaged to tell its course from its noise, to either side of a step: half an hour.
_SMOOTHED = 1 / 48
_HOUR = timedelta(hours=1)
# Over how much of today its level is compared with the usual: two hours.
_COMPARED = 1 / 12
# One change is kept for what the forecast did not foresee.
PLANNED_CHANGES = CHANGES_PER_DAY - 1
# Without a day before: as much more than the recent peak as one of five equal steps up a 3:1 day is.
UNKNOWN_DAY_MARGIN = 3 ** (1 / (PLANNED_CHANGES // 2))

Costs = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rung:
    """The cheapest fleet for some demand, and the demand up to which it serves."""

    replicas: tuple[tuple[OfferingKey, int], ...]
    usd_per_hour: float
    serves: float


@dataclass(frozen=True, slots=True)
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
class Course:
    """How demand usually goes over a day, what a step at most exceeds that by (a factor), and how much steps differ.

    `noise`: standard deviation of a step's demand, relative to the mean.
    """

    mean: Costs
    excess: float
    noise: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """A rung for each step of a day, and what the day costs."""

    rungs: tuple[int, ...]
    usd: float

    @property
    def changes(self) -> int:
        """How often the fleet changes."""
        return sum(a != b for a, b in zip(self.rungs, self.rungs[1:], strict=False))


def ladder(problem: AllocationProblem, least: float, most: float) -> Ladder:
    """Return every fleet that is cheapest for some multiple of the demand between `least` and `most`.

    One solve per fleet: what a fleet serves is worked out exactly, and the next is asked for just beyond. It ends early
    where the bounds allow no more. Raises InvalidInputError if not even the least can be served.
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
        serves = max(_served(problem, found, separation), demand)
        while rungs and rungs[-1].usd_per_hour >= found.usd_per_hour:
            rungs.pop()  # the same price for less
        rungs.append(Rung(found.replicas, found.usd_per_hour, serves))
        demand = serves * _NEXT
    if not rungs:
        raise InvalidInputError("demand", f"{least:g} times the demand cannot be served within the bounds")
    launch = {each.key: launch_usd(each) for each in problem.offerings}
    costs = [[launches_usd(dict(a.replicas), b.replicas, launch) for b in rungs] for a in rungs]
    return Ladder(tuple(rungs), np.array(costs))


def course(past: Sequence[Sequence[float]]) -> Course:
    """Return what whole days before, step by step, say of a day: their mean, smoothed, and their noise about it."""
    days = np.asarray(past, dtype=float)
    smooth = _smoothed(np.mean(days, axis=0), max(round(days.shape[1] * _SMOOTHED), 1))
    noise = days / smooth
    return Course(smooth, float(np.quantile(noise, EXCEEDED)), float(np.std(noise)))


def forecast(usual: Course, seen: Sequence[float]) -> Costs:
    """Return the most that is to be expected in each step of the coming day, the first being the step after `seen`.

    `seen`: demand of today so far. The usual course, times what a step at most exceeds it by, times how today compares
    with it in the last two hours, where that is more than noise.
    """
    steps, now = len(usual.mean), len(seen)
    window = np.arange(max(now - max(round(steps * _COMPARED), 1), 0), now)
    level = 1.0
    if len(window):
        level = float(np.mean(np.asarray(seen[int(window[0]) :], dtype=float) / usual.mean[window % steps]))
        if abs(level - 1) <= _SIGNIFICANT * usual.noise / math.sqrt(len(window)):
            level = 1.0
    coming = np.arange(now, now + steps) % steps
    return np.asarray(usual.mean[coming] * usual.excess * level, dtype=float)


def price_of_change(fleets: Ladder, ahead: Sequence[float] | Costs, hours_per_step: float, left: int) -> float:
    """Return the price in USD at which so many changes are worth their while until the end of `ahead`.

    Between what the last of them saves and what one more would: the multiplier of the bound on their number. With none
    left it is more than can be saved, so that only a fleet that does not serve is left.
    """
    if left <= 0:
        return float(np.max(fleets.prices)) * hours_per_step * len(ahead)
    spent = _spent(fleets, ahead, hours_per_step, left + 1)[0]
    best = np.minimum.accumulate(np.min(spent, axis=1))
    return float(best[left - 1] - best[left + 1]) / 2


def best_now(
    fleets: Ladder, ahead: Sequence[float] | Costs, standing: int, hours_per_step: float, change_usd: float
) -> int:
    """Return the rung to have in the first step of `ahead`, coming from rung `standing`.

    The first step of the cheapest schedule for all of `ahead`: fleets by the hour, launches, and `change_usd` for every
    change. That is the rule "change only if the saving pays for it" with the horizon that the forecast gives.
    """
    hours = np.asarray(fleets.prices * hours_per_step)
    moves = fleets.change_usd + change_usd
    np.fill_diagonal(moves, 0.0)
    to_come = np.zeros(len(fleets.rungs))
    for demand in np.asarray(ahead, dtype=float)[:0:-1]:
        here = _priced(fleets, hours, demand) + to_come
        to_come = np.min(moves + here[None, :], axis=1)
    return int(np.argmin(moves[standing] + _priced(fleets, hours, ahead[0]) + to_come))


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
    peak = max(seen[-max(round(steps_per_day * _COMPARED), 1) :])
    calm = fleets.lowest(peak * UNKNOWN_DAY_MARGIN)
    if fleets.rungs[standing].serves < seen[-1]:
        return calm
    price = fleets.rungs[standing].usd_per_hour
    saved = (price - fleets.rungs[calm].usd_per_hour) * (HORIZON / _HOUR)
    return calm if saved > fleets.change_usd[standing, calm] + price * (DISTURBANCE / _HOUR) else standing


def followed(
    fleets: Ladder, past: Sequence[Sequence[float]], day: Sequence[float], *, look: int, changes: int = PLANNED_CHANGES
) -> Schedule:
    """Return what a day comes to that is decided step by step, each step knowing no more than what was before it.

    Every step sees whether the standing fleet serves; every `look` steps, and when it does not, the forecast is asked.
    `past`: days before (empty: `reacting`). `changes`: as many as are planned.
    """
    steps, hours = len(day), 24 / len(day)
    usual = course(past) if past else None
    change_usd: float | None = None  # until the next change
    spare = CHANGES_PER_DAY - PLANNED_CHANGES
    first = float(forecast(usual, ())[0]) if usual else day[0] * UNKNOWN_DAY_MARGIN
    rung = fleets.lowest(max(day[0], first))
    rungs, usd = [rung], fleets.rungs[rung].usd_per_hour * hours
    for step in range(1, steps):
        chosen, foreseen = rung, fleets.rungs[rung].serves >= day[step]
        if not foreseen or step % look == 0:
            if usual is None:
                chosen = reacting(fleets, day[: step + 1], rung, steps)
            else:
                ahead = forecast(usual, day[: step + 1])[look - 1 :: look]
                ahead = np.concatenate(([max(day[step], ahead[0])], ahead))
                today = ahead[: -(-(steps - step) // look)]
                if change_usd is None:
                    # Once demand only falls nothing unforeseen is to come, and what was kept for that may be spent.
                    left = changes + (spare if float(np.max(today)) <= fleets.rungs[rung].serves else 0)
                    change_usd = price_of_change(fleets, today, hours * look, left)
                chosen = best_now(fleets, ahead, rung, hours * look, change_usd)
        if chosen != rung:
            change_usd = None
            if foreseen or not spare:
                changes -= 1
            else:
                spare -= 1
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


def _smoothed(day: Costs, reach: int) -> Costs:
    around = np.concatenate((day[-reach:], day, day[:reach]))
    return np.convolve(around, np.full(2 * reach + 1, 1 / (2 * reach + 1)), mode="valid")


def _scaled(problem: AllocationProblem, factor: float) -> AllocationProblem:
    rates = tuple((bucket, rate * factor) for bucket, rate in problem.demand.requests_per_second)
    return replace(problem, demand=Demand(problem.demand.grid, rates))


def _served(problem: AllocationProblem, fleet: Allocation, separation: Separation) -> float:
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
