"""What cannot be met, and which bounds are in the way, when an allocation is infeasible.

Called by `allocator.allocate`. It solves a soft programme, in which demand may stay unserved, and asks for each bound
whether leaving it out would leave less unserved: a bound that does is named, with how far it would have to move.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from medley.core.accelerators import Market, OfferingKey
from medley.core.errors import SolverError
from medley.core.units import figure
from medley.core.workload import Bucket
from medley.planning import cover, programme
from medley.planning.binding import least_on_demand
from medley.planning.ilp import Solved, Terms
from medley.planning.problem import AllocationProblem, Binding, Bound, Spread
from medley.planning.programme import MissingReplicas, Replicas, Unmet
from medley.planning.reach import within_sight
from medley.planning.separation import Separation

# Shares below this are the solver's noise, and so are differences between two shortages.
_NOISE = 1e-5
_DIGITS = 4  # of unserved requests/s: the rest is noise too
_ALL_DIGITS = 12  # where what is served is a small part of the demand: those would round it away
_REMOVABLE = (
    Bound.BUDGET,
    Bound.SHARED_BUDGET,
    Bound.REPLICAS,
    Bound.CAPS,
    Bound.ON_DEMAND_FLOOR,
    Bound.ZONE_LOSS,
    Bound.SPREAD,
)


@dataclass(frozen=True, slots=True)
class Shortage:
    """The best within all bounds, the requests/s that it serves and leaves unserved, and the bounds that bind.

    `best` is of `problem`, whose demand is cut where it is out of all reach.
    """

    problem: AllocationProblem
    best: Solved
    served: Mapping[Bucket, float]
    unmet: tuple[tuple[Bucket, float], ...]
    bindings: tuple[Binding, ...]


@dataclass(frozen=True, slots=True)
class _Tried:
    """A solution, in shares of the demand of `problem`: that which was asked about, cut where it is out of reach."""

    problem: AllocationProblem
    solved: Solved

    @property
    def missing_replicas(self) -> float:
        return self.solved.values[MissingReplicas()]

    @property
    def whole(self) -> bool:
        """Whether nothing is missing."""
        unmet = math.fsum(value for key, value in self.solved.values.items() if isinstance(key, Unmet))
        return unmet + self.missing_replicas < _NOISE

    def short_of(self, problem: AllocationProblem, without: frozenset[Bound]) -> float:
        """Return the requests/s that are not served of a problem's demand, over all states; rare sizes weigh more."""
        weights, total = programme.importance(problem), problem.demand.total
        tried = dict(self.problem.demand.requests_per_second)
        return math.fsum(
            weights[bucket] * total * (scenario.fraction * (rate - tried[bucket]) + tried[bucket] * unmet) / rate
            for scenario in programme.scenarios(problem, without)
            for bucket, rate in problem.demand.requests_per_second
            if (unmet := self.solved.values[Unmet(scenario.loss, bucket)]) is not None
        )


def shortage(problem: AllocationProblem) -> Shortage:
    """Work out what a problem without a solution lacks."""
    tried = _least_unserved(problem, then=(programme.cost(problem), programme.preference(problem)))
    best, rates = tried.solved, dict(tried.problem.demand.requests_per_second)
    served = {
        bucket: rates[bucket] * (1 - share)
        for bucket, _ in problem.demand.requests_per_second
        if (share := best.values[Unmet(None, bucket)]) < 1 - _NOISE
    }
    busy = _busy(tried, served)
    if busy > 1:  # numbers so far apart that the solver lets an overload pass
        served = {bucket: rate / busy for bucket, rate in served.items()}
    unmet = tuple(
        (bucket, float(f"{left:.{_DIGITS if rates[bucket] == rate else _ALL_DIGITS}g}"))
        for bucket, rate in sorted(problem.demand.requests_per_second)
        if (left := rate - served.get(bucket, 0.0)) > _NOISE * rate
    )
    bindings = (*_unservable(problem), *_binding(problem, tried))
    if not bindings:
        raise SolverError("the programme has no solution, yet no bound stands in the way")
    return Shortage(tried.problem, best, served, unmet, bindings)


def _busy(tried: _Tried, served: Mapping[Bucket, float]) -> float:
    """Return how busy the busiest shape is with what is said to be served; 1: full."""
    problem, separation = tried.problem, Separation(tried.problem)
    capacity = dict.fromkeys(separation.shapes, 0.0)
    for key, count in _counts(problem, tried.solved).items():
        if key.shape in capacity:
            capacity[key.shape] += problem.utilisations[key] * count
    demand = dict(problem.demand.requests_per_second)
    parts = np.array([served.get(bucket, 0.0) / demand[bucket] for bucket in separation.buckets])
    return separation.levelled(np.array(list(capacity.values())), parts)[1] if separation.buckets else 0.0


def _least_unserved(
    asked: AllocationProblem, without: frozenset[Bound] = frozenset(), then: tuple[Terms, ...] = ()
) -> _Tried:
    """Serve as much as can be, then survive as much as can be; among those plans minimise `then` in turn."""
    problem = within_sight(asked, without)
    objectives = [
        programme.unserved(problem, after_loss=False, without=without),
        programme.unserved(problem, after_loss=True, without=without),
        *then,
    ]
    found = cover.solved(problem, [terms for terms in objectives if terms], soft=True, without=without).found
    if not isinstance(found, Solved):
        raise SolverError("how much of the demand can be served was not found within the solver's limits")
    return _Tried(problem, found)


def _helps(problem: AllocationProblem, base: _Tried, freed: _Tried, without: frozenset[Bound]) -> bool:
    """Say whether less is missing once bounds are left out, by more than the solver's noise."""
    gained = base.short_of(problem, frozenset()) - freed.short_of(problem, without)
    return gained > _NOISE * freed.problem.demand.total or base.missing_replicas - freed.missing_replicas > _NOISE


def _unservable(problem: AllocationProblem) -> Iterator[Binding]:
    grid = problem.demand.grid
    nowhere = [
        (bucket, rate)
        for bucket, rate in sorted(problem.demand.requests_per_second)
        if not any(bucket in rates for rates in problem.rates.values())
    ]
    if not problem.offerings and problem.limits.min_replicas and not nowhere:
        message = f"nothing is on offer for {problem.limits.min_replicas} replicas; set it to 0, or allow more classes"
        yield Binding(Bound.MIN_REPLICAS, message)
    if not nowhere:
        return
    sizes = ", ".join("{} + {}".format(*grid.sizes(bucket)) for bucket, _ in nowhere[:3])
    more = f" and {len(nowhere) - 3} more sizes" if len(nowhere) > 3 else ""  # noqa: PLR2004  # as many as are shown
    yield Binding(
        Bound.SIZES,
        f"no offering serves requests of up to {sizes} tokens{more} within the SLO "
        f"({figure(math.fsum(rate for _, rate in nowhere))} requests/s); allow a class whose profile does, "
        "relax the SLO, or lower spec.model.maxModelLen",
    )


def _binding(problem: AllocationProblem, base: _Tried) -> Iterator[Binding]:
    best = base.solved
    applicable = [bound for bound in _REMOVABLE if _applies(problem, bound) and not _slack(problem, bound, best)]
    every = frozenset(applicable)
    if not _helps(problem, base, _least_unserved(problem, every), every):
        return  # sizes that nothing serves: no bound is to blame
    for size in range(1, len(applicable) + 1):
        found = False
        for together in map(frozenset, combinations(applicable, size)):
            freed = _least_unserved(problem, together)
            if not _helps(problem, base, freed, together):
                continue
            found = True
            named = [bound for bound in applicable if bound in together]
            for bound in named:
                message = _message(problem, bound, best, together, whole=freed.whole)
                also = ", ".join(str(other) for other in named if other != bound)
                yield Binding(bound, f"{message} (together with {also})" if also else message, _fields(problem, bound))
        if found:
            return


def _applies(problem: AllocationProblem, bound: Bound) -> bool:
    applies = {
        Bound.BUDGET: problem.limits.max_usd_per_hour is not None,
        Bound.REPLICAS: True,
        Bound.SHARED_BUDGET: any(cap.drawn for cap in problem.caps),
        Bound.CAPS: any(not cap.drawn for cap in problem.all_caps)
        or any(offering.max_replicas is not None for offering in problem.offerings),
        Bound.ON_DEMAND_FLOOR: problem.spot.on_demand_floor > 0,
        Bound.ZONE_LOSS: bool(problem.losses),
        Bound.SPREAD: problem.spread != Spread(),
    }
    return applies[bound]


def _slack(problem: AllocationProblem, bound: Bound, best: Solved) -> bool:
    """Say whether a floor is kept although one more replica were spot: then it is not what stands in the way."""
    if bound is not Bound.ON_DEMAND_FLOOR:
        return False
    counts = _counts(problem, best)
    held = sum(count for key, count in counts.items() if key.market is not Market.SPOT)
    return held >= least_on_demand(problem.spot.on_demand_floor, sum(counts.values()) + 1)


def _counts(problem: AllocationProblem, best: Solved) -> dict[OfferingKey, int]:
    return {each.key: best.count(Replicas(each.key)) for each in problem.offerings}


def _message(problem: AllocationProblem, bound: Bound, best: Solved, without: frozenset[Bound], *, whole: bool) -> str:
    """Return what to change, and how far; `whole`: without these bounds all of the demand is served."""
    limits, spot = problem.limits, problem.spot
    needs = "the demand needs {}" if whole else "all that the other bounds allow needs {}"
    match bound:
        case Bound.BUDGET | Bound.SHARED_BUDGET:
            cents = math.ceil(_least(problem, programme.cost(problem), without) * 100 - _NOISE)
            said = needs.format(f"{cents / 100:.2f} USD/h")
            what, remedy = _budget(problem, bound)
            return f"{what} is too little: {said}; {remedy}"
        case Bound.REPLICAS:
            said = needs.format(round(_least(problem, programme.replicas(problem), without)))
            return f"{limits.max_replicas} replicas are too few: {said}; raise maxReplicas"
        case Bound.CAPS:
            names = ", ".join(_exhausted(problem, best)) or "capacity"
            return f"exhausted: {names}; raise the quota, or allow more classes or zones"
        case Bound.ON_DEMAND_FLOOR:
            some = any(key.market is not Market.SPOT and count for key, count in _counts(problem, best).items())
            why = "leave too little for others" if some else "are not to be had"
            return f"{spot.on_demand_floor:.0%} of the replicas outside spot {why}; lower the floor"
        case Bound.ZONE_LOSS:
            return _lost(problem)
        case Bound.SPREAD:
            spread = problem.spread
            return (
                f"at least {spread.min_zones} zones with at most {spread.max_zone_share:.0%} of the replicas in one "
                "are not to be had; lower the number, raise the share, or allow more zones"
            )
        case _:
            raise AssertionError(f"{bound} cannot be left out")


def _budget(problem: AllocationProblem, bound: Bound) -> tuple[str, str]:
    """Return what may be spent, and how it becomes more."""
    if bound is Bound.BUDGET:
        return f"{problem.limits.max_usd_per_hour} USD/h", "raise the budget"
    (cap,) = (each for each in problem.caps if each.drawn)
    return f"{cap.at_most:.2f} USD/h left of {cap.name}", "raise its maxUSDPerHour, or spend less of it"


def _declared(problem: AllocationProblem) -> dict[str, tuple[str, float]]:
    """Return the losses that the spot policy asks to survive: what is lost and how much survives, by field."""
    spot = problem.spot
    asked = {
        "spec.spot.surviveZoneLoss": ("a zone's spot", spot.survive_zone_loss),
        "spec.spot.surviveClassLoss": ("a class's spot", spot.survive_class_loss),
        "spec.spot.surviveClassZoneLoss": ("a class's spot in one zone", spot.survive_class_zone_loss),
    }
    return {} if problem.scenarios else {field: each for field, each in asked.items() if each[1] > 0}


def _fields(problem: AllocationProblem, bound: Bound) -> str:
    """Return the fields that a bound stands for here, where they are others than its own."""
    declared = ", ".join(_declared(problem)) if bound is Bound.ZONE_LOSS else ""
    return "" if declared == Bound.ZONE_LOSS else declared


def _lost(problem: AllocationProblem) -> str:
    part = max(part for _, part in problem.losses)
    if problem.scenarios:
        what = " or ".join(f"({loss.name})" for loss, _ in problem.losses)
    else:
        what = " or ".join(what for what, _ in _declared(problem).values())
    return (
        f"{part:.0%} of the demand would not survive the loss of {what}; "
        "lower it, or allow more zones or on-demand capacity"
    )


def _least(problem: AllocationProblem, objective: Terms, without: frozenset[Bound]) -> float:
    """Return the least money, or replicas, with which as little is unserved as can be once `without` is left out."""
    found = _least_unserved(problem, without, (objective,)).solved
    return math.fsum(coefficient * found.values[key] for key, coefficient in objective.items())


def _exhausted(problem: AllocationProblem, best: Solved) -> Iterator[str]:
    counts = _counts(problem, best)
    for cap in (each for each in problem.all_caps if not each.drawn):
        smallest = min((use for key, use in cap.uses if key in counts), default=None)
        used = math.fsum(use * counts.get(key, 0) for key, use in cap.uses)
        if smallest is not None and used + smallest > cap.at_most + _NOISE:
            yield f"{cap.name} ({cap.at_most:g})"
    for offering in sorted(problem.offerings, key=lambda offering: offering.key):
        if offering.max_replicas is not None and counts[offering.key] >= offering.max_replicas:
            yield f"{offering.key} ({offering.max_replicas})"
