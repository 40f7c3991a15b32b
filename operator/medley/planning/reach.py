"""How much of a demand could be served at the very most: beyond some hundred times that, a programme sees no replica.

Called by `shortage`. A demand of a million requests/s of which four replicas serve a millionth is, in shares of the
demand, below every tolerance of a solver: which replicas serve most is decided by noise. So the demand is cut to what
is still far out of reach. Pure.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

from medley.core.accelerators import OfferingKey, Shape
from medley.core.workload import Bucket, Demand
from medley.planning.problem import AllocationProblem, Bound, bound_of

FAR = 100.0  # times what could be served: 1 % of it after a loss (the least that can be asked) is still out of reach


def within_sight(problem: AllocationProblem, without: frozenset[Bound]) -> AllocationProblem:
    """Return the problem with no more of any size than `FAR` times what could be served of it alone.

    `without`: bounds that are left out. Where every size is within that, the problem itself.
    """
    capacity: defaultdict[Shape, float] = defaultdict(float)
    for key, count in _most(problem, without).items():
        capacity[key.shape] += problem.utilisations[key] * count
    cut = tuple(
        (bucket, min(rate, FAR * most) if (most := _reach(problem, capacity, bucket)) > 0 else rate)
        for bucket, rate in problem.demand.requests_per_second
    )
    if cut == problem.demand.requests_per_second:
        return problem
    return replace(problem, demand=Demand(problem.demand.grid, cut))


def _reach(problem: AllocationProblem, capacity: defaultdict[Shape, float], bucket: Bucket) -> float:
    """Return the requests/s of a size that all replicas together would serve of it alone, each row being full."""
    found = 0.0
    for shape, rates in problem.rates.items():
        if bucket in rates and capacity[shape]:
            load = max((row.get(bucket, 0.0) for _, row in problem.rows[shape]), default=0.0)
            found += capacity[shape] / load if load else math.inf
    return found


def _most(problem: AllocationProblem, without: frozenset[Bound]) -> dict[OfferingKey, float]:
    """Return how many replicas of each offering there may be at most, each bound on its own."""
    limits = problem.limits
    most: dict[OfferingKey, float] = {}
    for each in problem.offerings:
        bounds = [math.inf]
        if Bound.REPLICAS not in without:
            bounds.append(limits.max_replicas)
        if limits.max_usd_per_hour is not None and Bound.BUDGET not in without:
            bounds.append(float(limits.max_usd_per_hour) / each.usd_per_hour)
        if each.max_replicas is not None and Bound.CAPS not in without:
            bounds.append(each.max_replicas)
        most[each.key] = min(bounds)
    for cap in problem.all_caps:
        for key, use in cap.uses if bound_of(cap) not in without else ():
            if key in most and use > 0:
                most[key] = min(most[key], cap.at_most / use)
    return most
