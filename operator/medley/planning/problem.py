"""The values that go into and come out of the allocator; made and read by `reconcile.plan` and `medley plan`.

    problem = AllocationProblem(demand, offerings, throughput, limits=..., spot=..., caps=..., fleet=...)
    match allocator.allocate(problem):
        case Allocation() as found: ...
        case Infeasible() as refused: ...        # refused.best is what can be had within the bounds

Pure: knows core values only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

from medley.core.accelerators import Market, Offering, OfferingKey, Shape
from medley.core.errors import InvalidInputError
from medley.core.service import Limits, SpotPolicy
from medley.core.units import figure
from medley.core.workload import Bucket, Demand
from medley.planning.ilp import Effort
from medley.planning.terms import Cap, Load, LossScenario, Quota, ShapeThroughput, Spread

__all__ = [
    "Allocation",
    "AllocationProblem",
    "Binding",
    "Bound",
    "Cap",
    "Infeasible",
    "Load",
    "LossScenario",
    "Quota",
    "ShapeThroughput",
    "Share",
    "Spread",
]

# Part of a replica's measured throughput that a plan relies on. The rest pays for bursts and for queueing at the SLO's
# percentile. One constant for every shape and size is the thin spot of this milestone (docs/allocation.md).
DEFAULT_UTILISATION = 0.85
MICRODOLLARS = 6  # decimals of amounts of money: sums are rounded to what a price may have (core/units.py)
# Beyond these the solver's absolute tolerances (1e-6) stop meaning anything.
LARGEST_USD_PER_HOUR = 1e6
LARGEST_REPLICAS = 1e6
# The problem is exact up to so many offerings; beyond them a plan this near to the cheapest is good enough.
EXACT_OFFERINGS = 60
EXACT, NEAR = 1e-6, 1e-3


@dataclass(frozen=True)
class AllocationProblem:
    """What must be served, what can be bought and within which bounds.

    `spot.use` was applied when the offerings were made (`offerings.py`); its fractions are constraints here:
    at least ceil(on_demand_floor x replicas) are not spot, and survive_zone_loss of every bucket's demand is still
    served when all spot replicas of any one zone are gone (survive_class_loss: of a class; survive_class_zone_loss: of
    a class in a zone).
    `scenarios`: the losses that are survived; empty: those of which `spot` says that a part above 0 is.
    `fleet`: replicas that exist now; among plans of equal cost the one nearest to it is taken, then the first by name.
    `change_usd`: added to the objective for every replica launched beyond the fleet, in US dollars per hour (what a
    launch costs once / the hours that it must pay for itself in). `surcharge_usd`: added to the objective per replica,
    not to the bill, in US dollars per hour (the price of a quota that services share).
    """

    demand: Demand
    offerings: tuple[Offering, ...]
    throughput: tuple[ShapeThroughput, ...]
    limits: Limits = field(default_factory=Limits)
    spot: SpotPolicy = field(default_factory=SpotPolicy)
    caps: tuple[Cap, ...] = ()
    fleet: tuple[tuple[OfferingKey, int], ...] = ()
    utilisation: float = DEFAULT_UTILISATION
    utilisation_of: tuple[tuple[OfferingKey, float], ...] = ()  # offerings that differ from `utilisation`
    effort: Effort = field(default_factory=Effort)
    scenarios: tuple[LossScenario, ...] = ()
    quotas: tuple[Quota, ...] = ()
    spread: Spread = field(default_factory=Spread)
    change_usd: tuple[tuple[OfferingKey, float], ...] = ()
    surcharge_usd: tuple[tuple[OfferingKey, float], ...] = ()

    def __post_init__(self) -> None:
        _check_bounds(self.limits, self.spot)
        _check_objective(self)
        _refuse_twice("offering", (offering.key for offering in self.offerings))
        _refuse_twice("profile", (row.shape for row in self.throughput))
        for offering in self.offerings:
            _check_offering(offering)
        for value in (self.utilisation, *(u for _, u in self.utilisation_of)):
            if not 0 < value <= 1:
                raise InvalidInputError("utilisation", f"expected above 0 and at most 1, got {value}")
        best: dict[Bucket, float] = {}
        for row in self.throughput:
            for bucket, rate in row.requests_per_second:
                best[bucket] = max(rate, best.get(bucket, 0.0))
        for bucket, demanded in self.demand.requests_per_second:
            if bucket in best and demanded / best[bucket] > LARGEST_REPLICAS:
                raise InvalidInputError(
                    "spec.workload.requestsPerSecond",
                    f"{figure(demanded)} requests/s would need over a million replicas; check rate and profiles",
                )

    @cached_property
    def rates(self) -> Mapping[Shape, Mapping[Bucket, float]]:
        """Requests/s per bucket of one replica, of the shapes that are both profiled and on offer.

        A shape that would need over a million replicas for a bucket is as good as unable: no plan gains by it, and
        such coefficients make the solver's tolerances meaningless.
        """
        usable: dict[Shape, float] = {}
        for key, value in self.utilisations.items():
            usable[key.shape] = max(value, usable.get(key.shape, 0.0))
        demanded = dict(self.demand.requests_per_second)
        found: dict[Shape, Mapping[Bucket, float]] = {}
        for row in sorted(self.throughput, key=lambda row: row.shape):
            if row.shape not in usable:
                continue
            most = LARGEST_REPLICAS * usable[row.shape]
            beyond = {
                bucket
                for load in row.loads
                for bucket, each in load.per_request
                if demanded.get(bucket, 0.0) * each > most
            }
            found[row.shape] = {
                bucket: rate
                for bucket, rate in row.requests_per_second
                if demanded.get(bucket, 0.0) / rate <= most and bucket not in beyond
            }
        return found

    @cached_property
    def rows(self) -> Mapping[Shape, tuple[tuple[str, Mapping[Bucket, float]], ...]]:
        """Name and load per request/s and bucket of what bounds one replica, of the shapes and buckets of `rates`.

        Of every replica of the shape, no more than its utilisation may be taken of any of these.
        """
        found: dict[Shape, tuple[tuple[str, Mapping[Bucket, float]], ...]] = {}
        for row in self.throughput:
            if row.shape not in self.rates:
                continue
            served = self.rates[row.shape]
            rows: list[tuple[str, Mapping[Bucket, float]]] = []
            if row.throughput_row:
                rows.append(("throughput", {bucket: 1 / rate for bucket, rate in served.items()}))
            rows += [(load.name, {b: value for b, value in load.per_request if b in served}) for load in row.loads]
            found[row.shape] = tuple(rows)
        return found

    @cached_property
    def all_caps(self) -> tuple[Cap, ...]:
        """Caps and quotas as caps."""
        return (*self.caps, *(quota.on(self.offerings) for quota in self.quotas))

    @cached_property
    def losses(self) -> tuple[tuple[LossScenario, float], ...]:
        """Losses to survive and the part of the demand that is still served; none of part 0."""
        default = self.spot.survive_zone_loss
        parts = (
            (each, default if each.survive is None else each.survive)
            for each in self.scenarios or self._losses_of_spot()
        )
        return tuple((each, part) for each, part in parts if part > 0)

    def _losses_of_spot(self) -> Iterator[LossScenario]:
        """Yield what the spot policy speaks of: a zone's spot, a class's, a class's in a zone."""
        spot = self.spot
        places = sorted({(o.key.shape.accelerator_class, o.key.zone) for o in self.offerings if _is_spot(o.key)})
        for zone in sorted({zone for _, zone in places}):
            yield LossScenario(zone=zone)
        for each in sorted({name for name, _ in places}):
            yield LossScenario(accelerator_class=each, survive=spot.survive_class_loss)
        for each, zone in places:
            yield LossScenario(zone, each, survive=spot.survive_class_zone_loss)

    @cached_property
    def solver_effort(self) -> Effort:
        """The effort, with the gap that suits the number of offerings where none is asked for."""
        if self.effort.relative_gap is not None:
            return self.effort
        return replace(self.effort, relative_gap=EXACT if len(self.offerings) <= EXACT_OFFERINGS else NEAR)

    @cached_property
    def utilisations(self) -> Mapping[OfferingKey, float]:
        """Part of its throughput that each offering is planned to use."""
        differing = dict(self.utilisation_of)
        return {offering.key: differing.get(offering.key, self.utilisation) for offering in self.offerings}


@dataclass(frozen=True, slots=True, order=True)
class Share:
    """The part of a bucket's requests that goes to a shape; a bucket's shares add up to 1."""

    bucket: Bucket
    shape: Shape
    share: float


@dataclass(frozen=True, slots=True)
class Allocation:
    """How many replicas of what, and who serves which sizes.

    `gap`: how far above the least possible what was minimised may be, relative (0: proven). That is `objective`: the
    bill, the expected cost of interruptions, changes and surcharges, in US dollars per hour; `bound`: no plan has less.
    """

    replicas: tuple[tuple[OfferingKey, int], ...]  # sorted; none with 0
    shares: tuple[Share, ...]  # sorted; none with 0
    usd_per_hour: float  # the bill
    gap: float
    interruptions_usd_per_hour: float = 0.0
    objective: float = field(default=0.0, compare=False)
    bound: float = field(default=0.0, compare=False)

    @property
    def total_replicas(self) -> int:
        """Replicas over all offerings."""
        return sum(count for _, count in self.replicas)

    @property
    def spot_replicas(self) -> int:
        """Replicas on the spot market."""
        return sum(count for key, count in self.replicas if key.market is Market.SPOT)

    def of(self, key: OfferingKey) -> int:
        """Return the replicas of one offering."""
        return dict(self.replicas).get(key, 0)


class Bound(StrEnum):
    """What can stand in the way; values are the fields to change, or the objects to add."""

    SIZES = "spec.slo"  # no shape serves requests of these sizes within the SLO
    CAPS = "AcceleratorClass.spec.zones"
    BUDGET = "spec.limits.maxUSDPerHour"
    SHARED_BUDGET = "spec.limits.budget"  # what is left of the Budget that the service draws on
    REPLICAS = "spec.limits.maxReplicas"
    ON_DEMAND_FLOOR = "spec.spot.onDemandFloor"
    ZONE_LOSS = "spec.spot.surviveZoneLoss"
    SPREAD = "spec.spread"
    MIN_REPLICAS = "spec.limits.minReplicas"  # of a service without traffic, where nothing is on offer
    # What leaves nothing on offer (`explain.nothing_on_offer`), besides SIZES and CAPS.
    PROFILES = "PerformanceProfile"
    CLASSES = "AcceleratorClass"
    MODEL_LENGTH = "spec.model.maxModelLen"
    GPUS_PER_NODE = "AcceleratorClass.spec.gpu.perNode"
    ZONES = "spec.accelerators.zones"
    SPOT_USE = "spec.spot.policy"


def bound_of(cap: Cap) -> Bound:
    """Return what a cap is, to who must change something."""
    return Bound.SHARED_BUDGET if cap.drawn else Bound.CAPS


@dataclass(frozen=True, slots=True)
class Binding:
    """A bound that keeps demand from being met; the message says how much more it would have to allow.

    `fields`: what to change, where the bound stands for several fields.
    """

    bound: Bound
    message: str
    fields: str = ""

    @property
    def where(self) -> str:
        """The fields to change, or the objects to add."""
        return self.fields or self.bound.value


@dataclass(frozen=True, slots=True)
class Infeasible:
    """The demand cannot be met within the bounds.

    `unmet` is empty if all demand is served but not after the loss of a zone (bound ZONE_LOSS), or not with the
    on-demand floor.
    """

    unmet: tuple[tuple[Bucket, float], ...]  # requests/s, sorted
    bindings: tuple[Binding, ...]
    best: Allocation  # serves all that the bounds allow; may have no replicas

    @property
    def unmet_requests_per_second(self) -> float:
        """Requests/s over all buckets that nobody would serve."""
        return math.fsum(rate for _, rate in self.unmet)

    @property
    def message(self) -> str:
        """One sentence per binding bound, field first, for a condition."""
        return "; ".join(f"{binding.where}: {binding.message}" for binding in self.bindings)


def _check_offering(offering: Offering) -> None:
    price, cap = offering.usd_per_hour, offering.max_replicas
    if not (math.isfinite(price) and 0 < price <= LARGEST_USD_PER_HOUR):
        raise InvalidInputError(f"price of {offering.key}", f"expected US dollars per hour above 0, got {price}")
    if cap is not None and cap < 0:
        raise InvalidInputError(f"cap of {offering.key}", f"expected 0 or more, got {cap}")
    risk = offering.interruptions_usd_per_hour
    if not (math.isfinite(risk) and 0 <= risk <= LARGEST_USD_PER_HOUR):
        raise InvalidInputError(
            f"interruptions of {offering.key}",
            f"expected a rate and times of 0 or more, got {offering.interruptions_per_hour} an hour, "
            f"{offering.cold_start} and {offering.moved_state}",
        )


def _check_objective(problem: AllocationProblem) -> None:
    for name, terms in (("changeUSD", problem.change_usd), ("surchargeUSD", problem.surcharge_usd)):
        _refuse_twice(f"{name} of", (key for key, _ in terms))
        for key, usd in terms:
            if not (math.isfinite(usd) and 0 <= usd <= LARGEST_USD_PER_HOUR):
                raise InvalidInputError(f"{name} of {key}", f"expected US dollars of 0 or more, got {usd}")
    _refuse_twice("fleet", (key for key, _ in problem.fleet))
    for key, count in problem.fleet:
        if count < 0:
            raise InvalidInputError(f"fleet {key}", f"expected 0 or more replicas, got {count}")


def _is_spot(key: OfferingKey) -> bool:
    return key.market is Market.SPOT


def _refuse_twice(what: str, keys: Iterator[OfferingKey] | Iterator[Shape]) -> None:
    for key, count in Counter(keys).items():
        if count > 1:
            raise InvalidInputError(f"{what} {key}", f"named {count} times; keep one")


def _check_bounds(limits: Limits, spot: SpotPolicy) -> None:
    budget = limits.max_usd_per_hour
    if budget is not None and not (budget.is_finite() and budget >= 0):
        raise InvalidInputError("spec.limits.maxUSDPerHour", f"expected US dollars of 0 or more, got {budget}")
    if not 0 <= limits.min_replicas <= limits.max_replicas:
        raise InvalidInputError(
            "spec.limits.minReplicas",
            f"expected 0 to maxReplicas ({limits.max_replicas}), got {limits.min_replicas}; lower it or raise that",
        )
    fractions = {
        "spec.spot.onDemandFloor": spot.on_demand_floor,
        "spec.spot.surviveZoneLoss": spot.survive_zone_loss,
        "spec.spot.surviveClassLoss": spot.survive_class_loss,
        "spec.spot.surviveClassZoneLoss": spot.survive_class_zone_loss,
    }
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise InvalidInputError(name, f"expected a percentage from 0% to 100%, got {value:.0%}")
