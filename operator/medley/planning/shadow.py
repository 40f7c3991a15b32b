"""What the bounds and the demand cost at the margin: shadow prices and reduced costs of an allocation problem.

Called by `explain` and by whoever prices a quota that services share. They are those of the programme in which replicas
may be fractions: exact there; of whole replicas they say a direction and a size, and promise nothing. A bound that
costs nothing here may still cost something because replicas are whole, and the other way round; `whatif` re-solves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medley.core.accelerators import OfferingKey
from medley.core.workload import Bucket
from medley.planning import cover, programme
from medley.planning.cover import Learnt
from medley.planning.problem import AllocationProblem
from medley.planning.programme import Replicas, Scenario

_NOISE = 1e-7


@dataclass(frozen=True, slots=True)
class ShadowPrices:
    """US dollars per hour at the margin, in the programme whose replicas may be fractions.

    `bounds`: what one unit more of a bound saves (one GPU of a quota, one replica, one dollar of budget; of a minimum,
    one unit less; of the on-demand floor and the spread, one replica's worth); only those that bind.
    `requests`: what one more request/s of a size costs. `losses`: what surviving each costs, per part of the demand
    (1: all of it). `offerings`: reduced cost: by how much one replica's cost would have to fall before a plan uses it;
    0: used, or as good as one that is.
    """

    usd_per_hour: float
    bounds: tuple[tuple[str, float], ...]
    requests: tuple[tuple[Bucket, float], ...]
    losses: tuple[tuple[Scenario, float], ...]
    offerings: tuple[tuple[OfferingKey, float], ...]


def shadow_prices(problem: AllocationProblem, learnt: Learnt | None = None) -> ShadowPrices | None:
    """Return the shadow prices of a problem, or None if it has no solution.

    `learnt`: of `allocator.reallocate`, to be quicker. Raises SolverError.
    """
    found = cover.relaxation(problem, programme.objective(problem), learnt or Learnt())
    if found is None:
        return None
    offerings = tuple(sorted(problem.offerings, key=lambda offering: offering.key))
    names = [name for name, _ in programme.bounds(problem, offerings, soft=False, without=frozenset())]
    bounds: dict[str, float] = {}
    for name, price in zip(names, found.rows, strict=False):
        bounds[name] = bounds.get(name, 0.0) + abs(float(price))
    caps = {o.key: o.max_replicas for o in offerings}
    reduced = {key: float(found.columns[found.place[Replicas(key)]]) for key in caps}
    # A column at its upper bound has a negative reduced cost: it is what one replica more of it would save.
    for key, value in reduced.items():
        if value < -_NOISE:
            bounds[f"{key}"] = -value
    demand = dict(problem.demand.requests_per_second)
    requests = np.zeros(len(found.buckets))
    losses: list[tuple[Scenario, float]] = []
    for scenario, marginal in found.demand:
        requests += marginal * scenario.fraction
        if scenario.loss is not None:
            losses.append((scenario, float(marginal.sum())))
    return ShadowPrices(
        usd_per_hour=found.objective,
        bounds=tuple(sorted((name, price) for name, price in bounds.items() if price > _NOISE)),
        requests=tuple(
            (bucket, float(price) / demand[bucket]) for bucket, price in zip(found.buckets, requests, strict=True)
        ),
        losses=tuple(losses),
        offerings=tuple((key, max(value, 0.0)) for key, value in reduced.items()),
    )
