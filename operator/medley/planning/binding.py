"""How far a plan goes to each bound. Called by `medley explain`; what a bound costs is `whatif`'s to say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from medley.planning.problem import Allocation, AllocationProblem

_NOISE = 1e-6


@dataclass(frozen=True, slots=True)
class BoundState:
    """A bound, what it allows and what the plan uses of it, for people; `binds`: one replica more would break it."""

    bound: str
    allowed: str
    used: str
    binds: bool


def bounds(problem: AllocationProblem, plan: Allocation) -> tuple[BoundState, ...]:
    """Return every bound that there is, binding ones first."""
    found = [*_limits(problem, plan), *_floor(problem, plan), *_caps(problem, plan)]
    return tuple(sorted(found, key=lambda each: not each.binds))


def least_on_demand(floor: float, replicas: int) -> int:
    """Return how many of so many replicas must not be spot."""
    return math.ceil(floor * replicas - _NOISE)


def _limits(problem: AllocationProblem, plan: Allocation) -> Iterator[BoundState]:
    limits, total = problem.limits, plan.total_replicas
    cheapest = min((each.usd_per_hour for each in problem.offerings), default=math.inf)
    if limits.max_usd_per_hour is not None:
        budget = float(limits.max_usd_per_hour)
        binds = plan.usd_per_hour + cheapest > budget + _NOISE
        yield BoundState("spec.limits.maxUSDPerHour", f"{budget:.2f}", f"{plan.usd_per_hour:.2f}", binds)
    yield BoundState("spec.limits.maxReplicas", str(limits.max_replicas), str(total), total >= limits.max_replicas)
    if limits.min_replicas:
        yield BoundState(
            "spec.limits.minReplicas", f"at least {limits.min_replicas}", str(total), total <= limits.min_replicas
        )


def _floor(problem: AllocationProblem, plan: Allocation) -> Iterator[BoundState]:
    floor, total = problem.spot.on_demand_floor, plan.total_replicas
    if floor > 0:
        held = total - plan.spot_replicas
        needed = least_on_demand(floor, total)
        yield BoundState(
            "spec.spot.onDemandFloor",
            f"at least {needed} of {total} ({floor:.0%})",
            str(held),
            held < least_on_demand(floor, total + 1),
        )


def _caps(problem: AllocationProblem, plan: Allocation) -> Iterator[BoundState]:
    counts = dict(plan.replicas)
    for cap in problem.all_caps:
        used = math.fsum(use * counts.get(key, 0) for key, use in cap.uses)
        smallest = min((use for _, use in cap.uses), default=0.0)
        form = ".2f" if cap.drawn else "g"
        yield BoundState(cap.name, f"{cap.at_most:{form}}", f"{used:{form}}", used + smallest > cap.at_most + _NOISE)
    for each in problem.offerings:
        if each.max_replicas is not None:
            count = counts.get(each.key, 0)
            yield BoundState(str(each.key), str(each.max_replicas), str(count), count >= each.max_replicas)
