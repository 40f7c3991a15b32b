"""The allocation programme of docs/allocation.md as rows and variables, in the replicas alone.

Called by `cover`, which adds to it what serving the demand asks of the replicas, and by `allocator`, `shortage` and
`breakeven`, which differ in what they leave out (`without`), let slip (`soft`) and minimise.

    y_k   Replicas(offering)           integer      replicas of an offering
    w     Unmet(zone or None, bucket)  continuous   share of a bucket that nobody serves (soft programmes only)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from medley.core.accelerators import Market, Offering, OfferingKey
from medley.core.workload import Bucket
from medley.planning.ilp import Programme, Row, Variable
from medley.planning.problem import AllocationProblem, Bound


@dataclass(frozen=True, slots=True)
class Replicas:
    """Names the variable: replicas of an offering."""

    key: OfferingKey


@dataclass(frozen=True, slots=True)
class Scenario:
    """A state in which `fraction` of every bucket must be served: normal times (None), or a zone's spot is lost."""

    lost_zone: str | None
    fraction: float


@dataclass(frozen=True, slots=True)
class Unmet:
    """Names the variable: share of a bucket that stays unserved."""

    lost_zone: str | None
    bucket: Bucket


@dataclass(frozen=True, slots=True)
class MissingReplicas:
    """Names the variable: replicas short of limits.minReplicas."""


@dataclass(frozen=True, slots=True)
class Launches:
    """Names the variable: replicas of an offering beyond those that exist."""

    key: OfferingKey


def built(problem: AllocationProblem, *, soft: bool = False, without: frozenset[Bound] = frozenset()) -> Programme:
    """Return the programme of a problem.

    `soft`: demand (and minReplicas) may stay unmet; what stays is `Unmet` and `MissingReplicas`.
    `without`: bounds left out.
    """
    offerings = sorted(problem.offerings, key=lambda offering: offering.key)
    variables = [Variable(Replicas(o.key), upper=_upper(o, without), integer=True) for o in offerings]
    rows: list[Row] = []
    if soft:
        variables += [
            Variable(Unmet(scenario.lost_zone, bucket), upper=scenario.fraction)
            for scenario in scenarios(problem, without)
            for bucket, _ in sorted(problem.demand.requests_per_second)
        ]
    if soft:
        variables.append(Variable(MissingReplicas()))
    rows += _bounds(problem, offerings, soft=soft, without=without)
    if problem.fleet:
        variables += [Variable(Launches(o.key)) for o in offerings]
        existing = dict(problem.fleet)
        rows += [
            Row({Launches(o.key): 1.0, Replicas(o.key): -1.0}, at_least=-float(existing.get(o.key, 0)))
            for o in offerings
        ]
    return Programme(tuple(variables), tuple(rows))


def scenarios(problem: AllocationProblem, without: frozenset[Bound] = frozenset()) -> tuple[Scenario, ...]:
    """Return the states in which demand must be served: normal times first, then the loss of each zone's spot."""
    normal = Scenario(None, 1.0)
    if problem.spot.survive_zone_loss == 0 or Bound.ZONE_LOSS in without:
        return (normal,)
    zones = sorted({o.key.zone for o in problem.offerings if o.key.market is Market.SPOT})
    return (normal, *(Scenario(zone, problem.spot.survive_zone_loss) for zone in zones))


def survives(key: OfferingKey, lost_zone: str | None) -> bool:
    """Say whether an offering's replicas are still there once a zone's spot is lost."""
    return not (key.market is Market.SPOT and key.zone == lost_zone)


def cost(problem: AllocationProblem) -> dict[object, float]:
    """Return the objective: US dollars per hour."""
    return {Replicas(offering.key): offering.usd_per_hour for offering in problem.offerings}


def replicas(problem: AllocationProblem) -> dict[object, float]:
    """Return the objective: number of replicas."""
    return {Replicas(offering.key): 1.0 for offering in problem.offerings}


def preference(problem: AllocationProblem) -> dict[object, float]:
    """Return the objective that decides between plans of equal cost: few launches, then the first by name.

    A launch weighs more than any place in the order of names.
    """
    keys = sorted(offering.key for offering in problem.offerings)
    terms: dict[object, float] = {Replicas(key): (place + 1) / len(keys) for place, key in enumerate(keys)}
    if problem.fleet:
        terms |= {Launches(key): 10.0 for key in keys}
    return terms


def unserved(problem: AllocationProblem, *, after_loss: bool, without: frozenset[Bound]) -> dict[object, float]:
    """Return the objective: the part of the demand that stays unserved, in normal times or over the losses of zones."""
    total = problem.demand.total
    if not after_loss:
        return {Unmet(None, bucket): rate / total for bucket, rate in problem.demand.requests_per_second}
    terms: dict[object, float] = {MissingReplicas(): 1.0}
    terms |= {
        Unmet(scenario.lost_zone, bucket): rate / total
        for scenario in scenarios(problem, without)
        if scenario.lost_zone is not None
        for bucket, rate in problem.demand.requests_per_second
    }
    return terms


def _bounds(
    problem: AllocationProblem, offerings: Iterable[Offering], *, soft: bool, without: frozenset[Bound]
) -> Iterator[Row]:
    every = replicas(problem)
    limits, floor = problem.limits, problem.spot.on_demand_floor
    if Bound.REPLICAS not in without:
        yield Row(every, at_most=float(limits.max_replicas))
    if limits.min_replicas:
        short: Mapping[object, float] = {MissingReplicas(): 1.0} if soft else {}
        yield Row({**every, **short}, at_least=float(limits.min_replicas))
    if limits.max_usd_per_hour is not None and Bound.BUDGET not in without:
        yield Row(cost(problem), at_most=float(limits.max_usd_per_hour))
    if floor > 0 and Bound.ON_DEMAND_FLOOR not in without:
        markets: dict[object, float] = {
            Replicas(o.key): -floor if o.key.market is Market.SPOT else 1 - floor for o in offerings
        }
        yield Row(markets, at_least=0.0)
    if Bound.CAPS not in without:
        offered = {offering.key for offering in offerings}
        for cap in problem.caps:
            uses: dict[object, float] = {Replicas(key): use for key, use in cap.uses if key in offered}
            if uses:
                yield Row(uses, at_most=cap.at_most)


def _upper(offering: Offering, without: frozenset[Bound]) -> float | None:
    if offering.max_replicas is None or Bound.CAPS in without:
        return None
    return float(offering.max_replicas)
