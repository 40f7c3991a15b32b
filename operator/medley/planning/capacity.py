"""What replicas that are given can serve.

Called by `reconcile.plan`, which keeps the fleet that exists while it serves and a new one saves too little.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from medley.core.accelerators import OfferingKey, Shape
from medley.planning.allocator import allocate
from medley.planning.problem import Allocation, AllocationProblem, Infeasible


def held(problem: AllocationProblem, replicas: Iterable[tuple[OfferingKey, int]]) -> Allocation | None:
    """Return the allocation with exactly these replicas if they meet the demand and all bounds, or None.

    Bounds on buying more (caps of offerings) do not speak against what is there; an offering that is no longer on
    offer does, since its price is unknown.
    """
    counts = {key: count for key, count in replicas if count}
    offered = {offering.key for offering in problem.offerings}
    if counts.keys() - offered:
        return None
    fixed = tuple(
        replace(offering, max_replicas=counts[offering.key]) for offering in problem.offerings if offering.key in counts
    )
    whole = sum(counts.values())
    if not problem.limits.min_replicas <= whole <= problem.limits.max_replicas:
        return None
    given = replace(
        problem,
        offerings=fixed,
        caps=(),
        fleet=(),
        limits=replace(problem.limits, min_replicas=whole),
        utilisation_of=tuple((key, value) for key, value in problem.utilisation_of if key in counts),
    )
    match allocate(given):
        case Allocation() as found:
            return found
        case Infeasible():
            return None


def utilisation(problem: AllocationProblem, allocation: Allocation) -> Mapping[Shape, float]:
    """Return how much of its measured throughput each shape is planned to use: load / replicas."""
    demanded = dict(problem.demand.requests_per_second)
    counts: dict[Shape, int] = {}
    for key, count in allocation.replicas:
        counts[key.shape] = counts.get(key.shape, 0) + count
    return {
        shape: math.fsum(
            demanded[share.bucket] * share.share / problem.rates[shape][share.bucket]
            for share in allocation.shares
            if share.shape == shape
        )
        / count
        for shape, count in sorted(counts.items())
    }
