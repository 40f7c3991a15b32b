"""Which rate to plan for: what is needed now, what a day usually brings, and how often the fleet may change for it.

    fleets = fleets_of(problem, days)                        # cheapest fleets, by the rate that they serve
    least = needed(windows, days, now)                       # requests/s that the promise needs
    rate = chosen(fleets, days, windows, planned, least=least, now=now)   # `planned` itself: nothing is to change

Called by `demanded`. More is planned for as soon as `planned` is less than is `needed`; less only where `outlook`
expects that to pay over what is left of the day and the day after. `cautious` is the same where no whole day was seen
yet. Pure. Derivations: docs/allocation.md, "What a change costs".
"""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from medley.planning.changes import CHANGES_PER_DAY, DISTURBANCE
from medley.planning.days import Days, midnight
from medley.planning.foresight import UNKNOWN_DAY_MARGIN, Ladder, ladder
from medley.planning.outlook import Course, Outlook
from medley.planning.problem import AllocationProblem
from medley.planning.traffic import MARGIN, STABLE, WINDOW, Windows

# Where the growth to come is foreseen, so much is left for what a window does not show of its minutes.
_WITHIN = 0.02
# From traffic that comes to a replica that serves it: a window to see it, the usual cold start.
LEAD = 2 * WINDOW
# A usual day is believed to grow by no more than this within the minutes that windows reach back and LEAD ahead.
_STEEPEST = 1.5
_STEP = timedelta(minutes=10)
_STEPS = timedelta(days=1) // _STEP
_HOUR = timedelta(hours=1)
_A_DAY = datetime(2000, 1, 1, tzinfo=UTC)
# Fleets that a day is thought of in, at most: by equal factors of the rate, from its quietest half hour's to above its
# busiest's.
_RUNGS = 48
# Fewer where each takes a second or more to find: so many for so many offerings.
_FEWEST, _WORK = 8, 1_000
_FINEST, _ABOVE, _RANGE = 1.1, 1.2, 20.0
# A plan is made for so much of what its rung serves, so that rounding asks for no other fleet.
_BELOW = 0.995
_QUANTILES = 40
# A level differs from the usual one if it is so many standard errors off.
_SIGNIFICANT = 3.0


def needed(windows: Windows, days: Days, now: datetime, last: float = 0.0) -> float:
    """Return the rate that the promise needs now and until what is launched now serves, in requests/s.

    A little above the busiest of STABLE as it would be now and LEAD later if the day goes on as days usually do; where
    no day is known, MARGIN above it as it was. Never less than `last`, of the minutes up to now. `windows`: not empty,
    latest first.
    """
    late = windows[: STABLE // WINDOW]
    ahead = max(rate * _usual_growth(days, at, now) for at, rate in late)
    return max((1 + (_WITHIN if days.complete else MARGIN)) * ahead, last)


def fleets_of(problem: AllocationProblem, days: Days) -> Ladder:
    """Return the fleets that a day is thought of in, by requests/s.

    `problem`: at the rate of `reference`. Raises InvalidInputError where not even the quietest hour can be served.
    """
    least, most = _ends(days)
    return _ladder(problem, least, most)


def reference(days: Days) -> float | None:
    """Return a rate, in requests/s, near that of the busiest half hour; None until a whole day is known, with traffic.

    It stays the same while the course of days moves little.
    """
    return _ends(days)[1] / _ABOVE if days.complete and any(days.rates) else None


def chosen(fleets: Ladder, days: Days, windows: Windows, planned: float, *, least: float, now: datetime) -> float:
    """Return the rate to plan for, in requests/s; `planned` where nothing is to change. `least`: what is `needed`."""
    top = fleets.rungs[-1].serves
    if least > top:
        least_known, most = _ends(days)
        if top * (most / least_known) ** (1 / _FEWEST) < most:
            # The bounds of the service ended the ladder: no room is to be had.
            return planned if planned / _FINEST <= least <= planned * (1 + MARGIN) else least
        return planned if planned >= least else least * UNKNOWN_DAY_MARGIN
    step = min((now - midnight(now)) // _STEP, _STEPS - 1)
    standing = fleets.lowest(planned)
    outlook = _outlook(fleets, days.rates, days.spread, _level(days, windows))
    rung = outlook.best(step, least, standing, CHANGES_PER_DAY - days.changes_on(now))
    if rung == standing or (rung < standing and len(windows) < STABLE // WINDOW):
        return planned
    return fleets.rungs[rung].serves * _BELOW


def cautious(windows: Windows, planned: float, least: float, unevenness: float) -> float:
    """Return the rate to plan for where no whole day is known; `planned`: as it is. `least`: what is `needed`.

    What does not suffice, by more than MARGIN and chance, is left for as much more than is needed as one of five steps
    up a 3:1 day is. Less is planned for, with the same room, only once it has been less for STABLE, by more than that
    room. `unevenness`: variance of the number of requests in a window, over their mean.
    """
    roomy = least * UNKNOWN_DAY_MARGIN
    chance = _SIGNIFICANT * math.sqrt(unevenness * max(least, planned) / WINDOW.total_seconds())
    if least > planned * (1 + MARGIN) and least > planned + chance:
        return roomy
    # By powers of _FINEST, so that the question stays the same from pass to pass.
    lower = _FINEST ** math.ceil(math.log(roomy, _FINEST))
    less = lower * UNKNOWN_DAY_MARGIN < planned and planned > lower + chance and len(windows) >= STABLE // WINDOW
    return lower if less else planned


def _usual_growth(days: Days, since: datetime, now: datetime) -> float:
    before, here, later = (days.usual(at) for at in (since, now, now + LEAD))
    if not before or here is None or later is None:
        return 1.0
    return min(max(here, later) / before, _STEEPEST)


def _ends(days: Days) -> tuple[float, float]:
    """Return the least and the most rate that a day is thought of in, by powers of _FINEST."""
    known = [rate for rate in days.rates if rate]
    most = _FINEST ** math.ceil(math.log(max(known), _FINEST))
    least = _FINEST ** math.floor(math.log(max(min(known), most / _RANGE), _FINEST))
    return least, most * _ABOVE


@lru_cache(maxsize=64)
def _ladder(problem: AllocationProblem, least: float, most: float) -> Ladder:
    own = problem.demand.total
    found = ladder(problem, least / own, most / own, apart=_apart(problem, least, most))
    return Ladder(tuple(replace(rung, serves=rung.serves * own) for rung in found.rungs), found.change_usd)


def _apart(problem: AllocationProblem, least: float, most: float) -> float:
    rungs = max(_FEWEST, min(_RUNGS, _WORK // max(len(problem.offerings), 1)))
    return float((most / least) ** (1 / rungs))


def _level(days: Days, windows: Windows) -> float:
    """Return how today compares with the usual in the last hour, to whole percents; 1 where that may be chance."""
    pairs = [(rate, days.usual(at) or 0.0) for at, rate in windows]
    usual = math.fsum(each for _, each in pairs)
    if not usual:
        return 1.0
    found = math.fsum(rate for rate, _ in pairs) / usual
    return 1.0 if abs(found - 1) <= _SIGNIFICANT * days.spread / math.sqrt(len(pairs)) else round(found, 2)


@lru_cache(maxsize=64)
def _outlook(fleets: Ladder, rates: tuple[float | None, ...], spread: float, level: float) -> Outlook:
    """Return the outlook over a usual day, at this level, whose end is the begin of another."""
    days = Days(rates)
    moments = [_A_DAY + number * _STEP for number in range(_STEPS)]
    mean = np.array([max(days.usual(at) or 0.0, days.usual(at + LEAD) or 0.0) for at in moments])
    # What is needed is the busiest of so many windows.
    chance = [((number + 0.5) / _QUANTILES) ** (WINDOW / STABLE) for number in range(_QUANTILES)]
    noise = np.array([max(1 + spread * NormalDist().inv_cdf(each), 0.0) for each in chance])
    least = fleets.rungs[0].serves * _BELOW
    usual = Course(np.maximum(mean * level * (1 + _WITHIN), least), noise)
    disturbance = np.asarray(fleets.prices * (DISTURBANCE / _HOUR))
    hours = _STEP / _HOUR
    day_after = Outlook(fleets, usual, hours, CHANGES_PER_DAY, disturbance)
    return Outlook(fleets, usual, hours, CHANGES_PER_DAY, disturbance, ends=day_after.begins)
