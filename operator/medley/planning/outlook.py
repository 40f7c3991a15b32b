"""What a day still costs, and so which fleet to have now: the usual course, its noise, the changes left.

Called by `pace`, for the operator, and by `foresight.followed`. Backwards over the steps of a day (dynamic programming
over chance): before a step's demand is seen, each fleet and each number of changes left has a cost to expect; once it
is seen, a fleet that serves it is chosen that costs least from there on. Only what a change costs and how many there
may be is given. Pure.
Derivation: docs/allocation.md, "What a change costs".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from medley.planning.foresight import Ladder

# Today differs from other days if the difference is this many standard errors.
_SIGNIFICANT = 3.0
# Over how much of a day steps are averaged to tell its course from its noise, to either side of a step: half an hour.
_SMOOTHED = 1 / 48
# Over how much of today its level is compared with the usual: two hours.
COMPARED = 1 / 12
_FITS = 1 + 1e-9

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """How demand usually goes over a day, step by step, and what single steps were of that, sorted."""

    mean: Numbers
    noise: Numbers


def course(past: Sequence[Sequence[float]]) -> Course:
    """Return what whole days before, step by step, say of a day: their mean, smoothed, and their noise about it."""
    days = np.asarray(past, dtype=float)
    smooth = _smoothed(np.mean(days, axis=0), max(round(days.shape[1] * _SMOOTHED), 1))
    return Course(smooth, np.sort((days / smooth).ravel()))


def level(usual: Course, seen: Sequence[float]) -> float:
    """Return how today compares with the usual course in the last two hours; 1 where that may be noise."""
    steps, now = len(usual.mean), len(seen)
    window = np.arange(max(now - max(round(steps * COMPARED), 1), 0), now)
    if not len(window):
        return 1.0
    found = float(np.mean(np.asarray(seen[int(window[0]) :], dtype=float) / usual.mean[window % steps]))
    noise = float(np.std(usual.noise))
    return 1.0 if abs(found - 1) <= _SIGNIFICANT * noise / math.sqrt(len(window)) else found


class Outlook:
    """What the rest of a day costs, by step, changes left and standing rung.

    `change_usd`: what each change costs besides its launches, in USD by the rung that is left. One beyond `changes`
    costs more than a day could save by it, so that it is made only for demand that nothing else serves. `ends`: what
    each rung is expected to cost after the day; None: nothing.
    """

    def __init__(
        self,
        fleets: Ladder,
        usual: Course,
        hours_per_step: float,
        changes: int,
        change_usd: Numbers,
        *,
        ends: Numbers | None = None,
    ) -> None:
        self._fleets, self._changes = fleets, changes
        self._hours = np.asarray(fleets.prices * hours_per_step)
        self._moves = fleets.change_usd + change_usd[:, None]
        self._beyond = float(np.max(self._hours)) * len(usual.mean)
        rungs = len(self._hours)
        to_come = np.zeros((changes + 1, rungs)) if ends is None else np.tile(ends, (changes + 1, 1))
        self._to_come = [to_come]
        own = np.arange(rungs)
        for mean in usual.mean[::-1]:
            here = self._hours + to_come
            changed = np.concatenate([here[:1] + self._beyond, here[:-1]])
            choices = self._moves[None, :, :] + changed[:, None, :]
            choices[:, own, own] = here
            # By the lowest rung that serves: the best of it and all above.
            best = np.minimum.accumulate(choices[:, :, ::-1], axis=2)[:, :, ::-1]
            within = np.searchsorted(usual.noise, fleets.reach * _FITS / mean, side="right") / len(usual.noise)
            within[-1] = 1.0  # the last serves what it can
            to_come = best @ np.diff(within, prepend=0.0)
            self._to_come.append(to_come)
        self._to_come.reverse()

    @property
    def begins(self) -> Numbers:
        """What the day costs by the rung that it begins with, and no change made."""
        return np.asarray(self._to_come[0][self._changes])

    def first(self, demand: float) -> int:
        """Return the rung to begin the day with."""
        low = self._fleets.lowest(demand)
        return low + int(np.argmin((self._hours + self._to_come[1][self._changes])[low:]))

    def best(self, step: int, demand: float, standing: int, left: int) -> int:
        """Return the rung to have in a step whose demand is seen, coming from rung `standing` with changes `left`."""
        low = self._fleets.lowest(demand)
        after = self._to_come[step + 1]
        costs = self._moves[standing] + self._hours + (after[left - 1] if left > 0 else after[0] + self._beyond)
        costs[standing] = self._hours[standing] + after[max(left, 0)][standing]
        return low + int(np.argmin(costs[low:]))

    def expected(self, step: int, standing: int, left: int) -> float:
        """Return what the day costs from a step on, in USD, before its demand is seen."""
        return float(self._to_come[step][max(left, 0)][standing])


def _smoothed(day: Numbers, reach: int) -> Numbers:
    around = np.concatenate((day[-reach:], day, day[:reach]))
    return np.convolve(around, np.full(2 * reach + 1, 1 / (2 * reach + 1)), mode="valid")
