"""The allocation programme of docs/allocation.md as rows and variables.

Called by `allocator`, `shortage` and `explain`, which differ in what they leave out (`Without`), let slip (`soft`) and
minimise. Knows core values and the door to the solver.

    y_k    Replicas(offering)          integer      replicas of an offering
    x_b,s  Flow(None, bucket, shape)   continuous   share of a bucket's requests that a shape serves
    x^z    Flow(zone, bucket, shape)   continuous   the same once all spot of that zone is gone
    w      Unmet(zone or None, bucket) continuous   share of a bucket that nobody serves (soft programmes only)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from medley.core.accelerators import Market, Offering, OfferingKey, Shape
from medley.core.workload import Bucket
from medley.planning.ilp import Programme, Row, Variable
from medley.planning.problem import AllocationProblem, Bound

# A bucket that loads a shape by less than this could hide within the solver's feasibility tolerance (1e-6 replicas):
# a shape without replicas would seem to serve it. Such shares are tied to the replicas explicitly.
_HIDDEN_LOAD = 1e-3


@dataclass(frozen=True, slots=True)
class Replicas:
    """Names the variable: replicas of an offering."""

    key: OfferingKey


@dataclass(frozen=True, slots=True)
class Flow:
    """Names the variable: share of a bucket served by a shape, in normal times (None) or once a zone's spot is lost."""

    lost_zone: str | None
    bucket: Bucket
    shape: Shape


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
    scenarios: list[tuple[str | None, float]] = [(None, 1.0)]
    if problem.spot.survive_zone_loss > 0 and Bound.ZONE_LOSS not in without:
        zones = sorted({o.key.zone for o in offerings if o.key.market is Market.SPOT})
        scenarios += [(zone, problem.spot.survive_zone_loss) for zone in zones]
    for lost_zone, fraction in scenarios:
        flow_variables, flow_rows = _flow(problem, lost_zone, fraction, soft=soft)
        variables += flow_variables
        rows += flow_rows
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
    if problem.spot.survive_zone_loss > 0 and Bound.ZONE_LOSS not in without:
        zones = sorted({o.key.zone for o in problem.offerings if o.key.market is Market.SPOT})
        terms |= {
            Unmet(zone, bucket): rate / total for zone in zones for bucket, rate in problem.demand.requests_per_second
        }
    return terms


def capacity(problem: AllocationProblem, shape: Shape, lost_zone: str | None = None) -> dict[object, float]:
    """Return the capacity of a shape in replicas' worth of work: usable part x replicas of what survives."""
    return {
        Replicas(o.key): problem.utilisations[o.key]
        for o in problem.offerings
        if o.key.shape == shape and not (o.key.market is Market.SPOT and o.key.zone == lost_zone)
    }


def _flow(
    problem: AllocationProblem, lost_zone: str | None, fraction: float, *, soft: bool
) -> tuple[list[Variable], list[Row]]:
    variables: list[Variable] = []
    rows: list[Row] = []
    loads: dict[Shape, dict[object, float]] = {shape: {} for shape in problem.rates}
    survivors = {shape: capacity(problem, shape, lost_zone) for shape in problem.rates}
    for bucket, demanded in sorted(problem.demand.requests_per_second):
        served: dict[object, float] = {}
        for shape, rates in problem.rates.items():
            if bucket not in rates:
                continue
            share = Flow(lost_zone, bucket, shape)
            variables.append(Variable(share, upper=fraction))
            served[share] = 1.0
            load = demanded / rates[bucket]
            loads[shape][share] = load
            if load < _HIDDEN_LOAD:
                rows.append(Row({share: 1.0, **dict.fromkeys(survivors[shape], -1.0)}, at_most=0.0))
        if soft:
            unmet = Unmet(lost_zone, bucket)
            variables.append(Variable(unmet, upper=fraction))
            served[unmet] = 1.0
        rows.append(Row(served, at_least=fraction, at_most=fraction))
    for shape, terms in loads.items():
        if terms:
            rows.append(Row({**terms, **{key: -usable for key, usable in survivors[shape].items()}}, at_most=0.0))
    return variables, rows


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
