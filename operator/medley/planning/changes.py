"""What it costs to change a fleet, and when a new plan is worth that.

Called by `proposal.propose`, which knows the fleet and one demand, and by `foresight`, which knows a forecast. Pure.

A launched replica is paid for while it loads and serves nobody, and what it replaces is paid for meanwhile, since new
capacity is ready before old capacity goes: one cold start at its price. Besides, every change moves running streams,
fills caches anew and may meet a sold-out market, which no bill shows. Its price is set by how many changes a day are
wanted (docs/allocation.md, "What a change costs"): let the cost of the cheapest fleet rise by R USD/h over T hours; n
steps up pay for R T / 2n USD of capacity before it is needed, so n steps that cost k each are best at
n = sqrt(R T / 2k). For a day that rises 3:1 in 12 hours and falls again, R is the day's mean cost c per hour, and
6 steps each way mean k = c x 12 h / (2 x 6 x 6) = c x 10 minutes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import timedelta

from medley.core.accelerators import Offering, OfferingKey
from medley.planning.problem import Allocation

CHANGES_PER_DAY = 12
# A plan is expected to stand this long where nothing is known of what comes: a saving counts for so long.
HORIZON = timedelta(days=1) / CHANGES_PER_DAY
# What a change costs besides its launches, as time of the whole fleet.
DISTURBANCE = timedelta(minutes=10)
# Of an offering whose cold start is not known: a GPU machine boots, the image and the weights are loaded.
USUAL_COLD_START = timedelta(minutes=5)

_HOUR = timedelta(hours=1)


def launch_usd(offering: Offering) -> float:
    """Return what one launch costs, in USD: the price of the time until it serves."""
    return offering.usd_per_hour * ((offering.cold_start or USUAL_COLD_START) / _HOUR)


def launches_usd(
    there: Mapping[OfferingKey, int], wanted: Iterable[tuple[OfferingKey, int]], launch: Mapping[OfferingKey, float]
) -> float:
    """Return what it costs to come from the replicas that are there to those that are wanted, in USD.

    `launch`: what one launch of each offering costs. To let a replica go costs nothing.
    """
    return math.fsum(max(count - there.get(key, 0), 0) * launch[key] for key, count in wanted)


def in_the_objective(offerings: Iterable[Offering]) -> tuple[tuple[OfferingKey, float], ...]:
    """Return what a launch adds to the objective of the allocator: its cost over the horizon, in USD per hour."""
    return tuple((each.key, launch_usd(each) / (HORIZON / _HOUR)) for each in offerings)


def pays(standing: Allocation, new: Allocation, launches: float, saved_usd_per_hour: float) -> bool:
    """Say whether a new plan is worth the change from one that still serves.

    `launches`: USD of the launches that the new plan needs beyond those that the standing plan needs too.
    `saved_usd_per_hour`: of the standing plan's cost, as the objective counts it. A plan of the same replicas is no
    change: its shares are taken over at no cost.
    """
    if new.replicas == standing.replicas:
        return True
    disturbance = standing.usd_per_hour * (DISTURBANCE / _HOUR)
    return saved_usd_per_hour * (HORIZON / _HOUR) > launches + disturbance
