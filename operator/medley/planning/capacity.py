"""How busy a plan makes its replicas. Called by `medley plan`; the simulator compares it with what came about."""

from __future__ import annotations

import math
from collections.abc import Mapping

from medley.core.accelerators import Shape
from medley.planning.problem import Allocation, AllocationProblem


def utilisation(problem: AllocationProblem, allocation: Allocation) -> Mapping[Shape, float]:
    """Return how much of each shape's replicas is planned to be used, of what bounds them most: load / replicas."""
    demanded = dict(problem.demand.requests_per_second)
    counts: dict[Shape, int] = {}
    for key, count in allocation.replicas:
        counts[key.shape] = counts.get(key.shape, 0) + count
    return {
        shape: max(
            (
                math.fsum(
                    demanded[share.bucket] * share.share * loads.get(share.bucket, 0.0)
                    for share in allocation.shares
                    if share.shape == shape
                )
                for _, loads in problem.rows[shape]
            ),
            default=0.0,
        )
        / count
        for shape, count in sorted(counts.items())
    }
