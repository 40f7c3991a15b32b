"""The allocation programme of docs/allocation.md as rows and variables, in the replicas alone.

Called by `cover`, which adds to it what serving the demand asks of the replicas, and by `allocator`, `shortage` and
`breakeven`, which differ in what they leave out (`without`), let slip (`soft`) and minimise.

    y_k   Replicas(offering)           integer      replicas of an offering
    v_z   Used(zone)                   0 or 1       whether replicas are in a zone (with spread.min_zones alone)
    n_k   Launches(offering)           continuous   replicas beyond those that exist
    w     Unmet(loss or None, bucket)  continuous   share of a bucket that nobody serves (soft programmes only)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from medley.core.accelerators import Market, Offering, OfferingKey
from medley.core.workload import Bucket
from medley.planning.ilp import Programme, Row, Variable
from medley.planning.problem import AllocationProblem, Bound, LossScenario, bound_of

# Least that a size weighs when not all can be served, as a part of the demand. A size much rarer would be left out
# within the solver's tolerance, and nobody could say which bound stands in its way.
LEAST_IMPORTANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Replicas:
    """Names the variable: replicas of an offering."""

    key: OfferingKey


@dataclass(frozen=True, slots=True)
class Scenario:
    """A state in which `fraction` of every bucket must be served: normal times (None), or after a loss."""

    loss: LossScenario | None
    fraction: float

    def survives(self, key: OfferingKey) -> bool:
        """Say whether an offering's replicas are still there."""
        return self.loss is None or not self.loss.loses(key)


@dataclass(frozen=True, slots=True)
class Unmet:
    """Names the variable: share of a bucket that stays unserved."""

    loss: LossScenario | None
    bucket: Bucket


@dataclass(frozen=True, slots=True)
class MissingReplicas:
    """Names the variable: replicas short of limits.minReplicas."""


@dataclass(frozen=True, slots=True)
class Used:
    """Names the variable: whether a zone has replicas."""

    zone: str


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
            Variable(Unmet(scenario.loss, bucket), upper=scenario.fraction)
            for scenario in scenarios(problem, without)
            for bucket, _ in sorted(problem.demand.requests_per_second)
        ]
        variables.append(Variable(MissingReplicas()))
    rows += (row for _, row in bounds(problem, offerings, soft=soft, without=without))
    if _needs_zones(problem) and Bound.SPREAD not in without:
        variables += [Variable(Used(zone), upper=1.0, integer=True) for zone in _zones(offerings)]
    if problem.fleet or problem.change_usd:
        variables += [Variable(Launches(o.key)) for o in offerings]
        existing = dict(problem.fleet)
        rows += [
            Row({Launches(o.key): 1.0, Replicas(o.key): -1.0}, at_least=-float(existing.get(o.key, 0)))
            for o in offerings
        ]
    return Programme(tuple(variables), tuple(rows))


def values(problem: AllocationProblem, counts: Mapping[OfferingKey, int]) -> dict[object, float]:
    """Return the values of all variables of `built` (not `soft`) with these replicas."""
    had = {o.key: float(counts.get(o.key, 0)) for o in problem.offerings}
    found: dict[object, float] = {Replicas(key): count for key, count in had.items()}
    if _needs_zones(problem):
        found |= {Used(zone): 0.0 for zone in _zones(problem.offerings)}
        found |= {Used(key.zone): 1.0 for key, count in had.items() if count}
    if problem.fleet or problem.change_usd:
        existing = dict(problem.fleet)
        found |= {Launches(key): max(0.0, count - existing.get(key, 0)) for key, count in had.items()}
    return found


def scenarios(problem: AllocationProblem, without: frozenset[Bound] = frozenset()) -> tuple[Scenario, ...]:
    """Return the states in which demand must be served: normal times first, then after each loss."""
    normal = Scenario(None, 1.0)
    if Bound.ZONE_LOSS in without:
        return (normal,)
    return (normal, *(Scenario(loss, part) for loss, part in problem.losses))


def cost(problem: AllocationProblem) -> dict[object, float]:
    """Return the bill: US dollars per hour."""
    return {Replicas(offering.key): offering.usd_per_hour for offering in problem.offerings}


def objective(problem: AllocationProblem) -> dict[object, float]:
    """Return what is minimised: the bill, the expected cost of interruptions, surcharges, and launches."""
    surcharges = dict(problem.surcharge_usd)
    terms: dict[object, float] = {
        Replicas(o.key): o.usd_per_hour + o.interruptions_usd_per_hour + surcharges.get(o.key, 0.0)
        for o in problem.offerings
    }
    offered = {offering.key for offering in problem.offerings}
    return terms | {Launches(key): usd for key, usd in problem.change_usd if key in offered}


def replicas(problem: AllocationProblem) -> dict[object, float]:
    """Return the objective: number of replicas."""
    return {Replicas(offering.key): 1.0 for offering in problem.offerings}


def preference(problem: AllocationProblem) -> dict[object, float]:
    """Return the objective that decides between plans of equal cost: few launches, then the first by name.

    A launch weighs more than any place in the order of names.
    """
    keys = sorted(offering.key for offering in problem.offerings)
    terms: dict[object, float] = {Replicas(key): (place + 1) / len(keys) for place, key in enumerate(keys)}
    if problem.fleet or problem.change_usd:
        terms |= {Launches(key): 10.0 for key in keys}
    return terms


def unserved(problem: AllocationProblem, *, after_loss: bool, without: frozenset[Bound]) -> dict[object, float]:
    """Return the objective: the part of the demand that stays unserved, in normal times or after losses."""
    weights = importance(problem)
    if not after_loss:
        return {Unmet(None, bucket): weights[bucket] for bucket, _ in problem.demand.requests_per_second}
    terms: dict[object, float] = {MissingReplicas(): 1.0}
    terms |= {
        Unmet(scenario.loss, bucket): weights[bucket]
        for scenario in scenarios(problem, without)
        if scenario.loss is not None
        for bucket, _ in problem.demand.requests_per_second
    }
    return terms


def importance(problem: AllocationProblem) -> dict[Bucket, float]:
    """Return what leaving all of a size unserved weighs: its part of the demand, or LEAST_IMPORTANCE."""
    total = problem.demand.total
    return {bucket: max(rate / total, LEAST_IMPORTANCE) for bucket, rate in problem.demand.requests_per_second}


def bounds(
    problem: AllocationProblem, offerings: Iterable[Offering], *, soft: bool, without: frozenset[Bound]
) -> Iterator[tuple[str, Row]]:
    """Yield what bounds the replicas beside the demand: the name of each bound, and its row."""
    offerings = tuple(offerings)
    every = replicas(problem)
    limits, floor = problem.limits, problem.spot.on_demand_floor
    if Bound.REPLICAS not in without:
        yield Bound.REPLICAS, Row(every, at_most=float(limits.max_replicas))
    if limits.min_replicas:
        short: Mapping[object, float] = {MissingReplicas(): 1.0} if soft else {}
        yield "spec.limits.minReplicas", Row({**every, **short}, at_least=float(limits.min_replicas))
    if limits.max_usd_per_hour is not None and Bound.BUDGET not in without:
        yield Bound.BUDGET, Row(cost(problem), at_most=float(limits.max_usd_per_hour))
    if floor > 0 and Bound.ON_DEMAND_FLOOR not in without:
        markets: dict[object, float] = {
            Replicas(o.key): -floor if o.key.market is Market.SPOT else 1 - floor for o in offerings
        }
        yield Bound.ON_DEMAND_FLOOR, Row(markets, at_least=0.0)
    offered = {offering.key for offering in offerings}
    for cap in problem.all_caps:
        uses: dict[object, float] = {Replicas(key): use for key, use in cap.uses if key in offered}
        if uses and bound_of(cap) not in without:
            yield cap.name, Row(uses, at_most=cap.at_most)
    if Bound.SPREAD not in without:
        yield from ((Bound.SPREAD, row) for row in _spread(problem, offerings, soft=soft))


def _needs_zones(problem: AllocationProblem) -> bool:
    wanted = bool(problem.demand.requests_per_second) or problem.limits.min_replicas > 0
    return problem.spread.min_zones > 1 and wanted


def _spread(problem: AllocationProblem, offerings: tuple[Offering, ...], *, soft: bool) -> Iterator[Row]:
    """Yield at most max_zone_share of the replicas in any zone, and at least min_zones zones with one."""
    zones, most = _zones(offerings), problem.spread.max_zone_share
    if most < 1:
        for zone in zones:
            yield Row({Replicas(o.key): (1.0 if o.key.zone == zone else 0.0) - most for o in offerings}, at_most=0.0)
    if _needs_zones(problem):
        for zone in zones:
            here: dict[object, float] = {Replicas(o.key): 1.0 for o in offerings if o.key.zone == zone}
            yield Row({**here, Used(zone): -1.0}, at_least=0.0)
        short: dict[object, float] = {MissingReplicas(): 1.0} if soft else {}
        used: dict[object, float] = {Used(zone): 1.0 for zone in zones}
        yield Row({**used, **short}, at_least=float(problem.spread.min_zones))


def _zones(offerings: Iterable[Offering]) -> tuple[str, ...]:
    return tuple(sorted({offering.key.zone for offering in offerings}))


def _upper(offering: Offering, without: frozenset[Bound]) -> float | None:
    if offering.max_replicas is None or Bound.CAPS in without:
        return None
    return float(offering.max_replicas)
