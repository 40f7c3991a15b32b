"""The traffic that a service is to be planned for, and what is remembered of its days. Called by `proposal`; pure.

    found = demanded(observed, now, problem_at)
    for traffic in found.traffic: ...                        # the first that can be met within the bounds

Sizes and bursts are those that were measured (`traffic`). The rate is the one in force until that does not suffice, or
less is expected to do for long enough to pay (`pace`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from medley.core.errors import InvalidInputError
from medley.core.service import WorkloadSource
from medley.planning import pace
from medley.planning.days import Days, midnight, remembered
from medley.planning.fleet import Observed
from medley.planning.foresight import Ladder
from medley.planning.problem import AllocationProblem
from medley.planning.question import expected, grid_of
from medley.planning.traffic import LEAST, WINDOW, NotMeasured, Traffic, at_rate, in_force, measured, windows

_DIGITS = 3
FORECAST = NotMeasured("spec.workload.source is Forecast")


@dataclass(frozen=True, slots=True)
class Demanded:
    """What to plan for: `traffic`, the preferred first; or why the forecast has to do.

    `standing`: the traffic of the plan in force, where all of `traffic` is less or more than that. `foreseen`: a day is
    known, and the rate was chosen by what is expected of it. `enough`: what the plan in force has to serve to be kept.
    """

    traffic: tuple[Traffic, ...] | NotMeasured
    days: Days | None = None
    standing: Traffic | None = None
    foreseen: bool = False
    enough: Traffic | None = None


def traffic_of(observed: Observed, now: datetime) -> Traffic | NotMeasured:
    """Return the sizes and bursts to plan for, at the rate in force; or why there is none but the forecast.

    Raises InvalidInputError.
    """
    service = observed.service
    if service.workload_source is WorkloadSource.FORECAST:
        return FORECAST
    grid, had = grid_of(service), observed.standing.traffic
    prior, longest = expected(service, observed.classes, observed.profiles)
    found = measured(observed.ledger, now, grid, prior, had, longest=longest)
    force = in_force(had, found, grid)
    # Where nothing was in force, what was found is, unless it is the reason why there is nothing.
    return found if force is None else force


def demanded(observed: Observed, now: datetime, problem_at: Callable[[Traffic], AllocationProblem]) -> Demanded:
    """Return what to plan for. `problem_at`: what the allocator is asked for some traffic, whatever fleet exists.

    Raises InvalidInputError, SolverError.
    """
    standing = observed.standing
    force = traffic_of(observed, now)
    if force == FORECAST:
        return Demanded(FORECAST)
    days = remembered(standing.days, observed.ledger, now)
    if isinstance(force, NotMeasured):
        return Demanded(force, days)
    # By the clock, so that passes which come more often do not see more of chance; a new leader's first ends now.
    lately = windows(observed.ledger, now)
    late = windows(observed.ledger, now - (now - midnight(now)) % WINDOW) or lately
    rate = force.requests_per_second
    first = standing.traffic is None or standing.traffic.grid != force.grid
    if first or not lately:
        return Demanded((force,), days)
    fleets = _fleets(force, days, problem_at)
    least = max(pace.needed(late, days if fleets is not None else Days(), now, lately[0][1]), LEAST)
    if fleets is not None:
        chosen = pace.chosen(fleets, days, late, rate, least=least, now=now)
    else:
        chosen = pace.cautious(late, rate, least, force.unevenness)
    if chosen == rate:
        return Demanded((force,), days)
    more = chosen > rate
    options = tuple(at_rate(force, each) for each in ((chosen, least) if more and chosen > least else (chosen,)))
    enough = at_rate(force, least) if more else None
    return Demanded(options, days, standing=force, foreseen=fleets is not None, enough=enough)


def _fleets(force: Traffic, days: Days, problem_at: Callable[[Traffic], AllocationProblem]) -> Ladder | None:
    """Return the fleets by which a known day is thought of; None: no day is known, or the bounds allow no fleet."""
    rate = pace.reference(days)
    if rate is None:
        return None
    try:
        # To few digits, so that scaling back and forth asks for the same fleets.
        return pace.fleets_of(problem_at(at_rate(force, rate, digits=_DIGITS)), days)
    except InvalidInputError:
        return None  # the plan itself says what stands in the way
