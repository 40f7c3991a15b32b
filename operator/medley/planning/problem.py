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
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from medley.core.accelerators import Market, Offering, OfferingKey, Shape
from medley.core.errors import InvalidInputError
from medley.core.service import Limits, SpotPolicy
from medley.core.workload import Bucket, Demand
from medley.planning.ilp import Effort

# Part of a replica's measured throughput that a plan relies on. The rest pays for bursts and for queueing at the SLO's
# percentile. One constant for every shape and size is the thin spot of this milestone (docs/allocation.md).
DEFAULT_UTILISATION = 0.85
MICRODOLLARS = 6  # decimals of amounts of money: sums are rounded to what a price may have (core/units.py)
# Beyond these the solver's absolute tolerances (1e-6) stop meaning anything.
LARGEST_USD_PER_HOUR = 1e6
LARGEST_REPLICAS = 1e6


@dataclass(frozen=True, slots=True)
class ShapeThroughput:
    """What one replica of a shape sustains within the SLO: requests/s per bucket, had it no other traffic.

    Buckets that it cannot serve are absent: there is no rate of zero.
    """

    shape: Shape
    requests_per_second: tuple[tuple[Bucket, float], ...]

    def __post_init__(self) -> None:
        for bucket, rate in self.requests_per_second:
            if not math.isfinite(rate) or rate <= 0:
                raise InvalidInputError(
                    f"profile of {self.shape}", f"expected positive requests/s in bucket {bucket}, got {rate}"
                )


@dataclass(frozen=True, slots=True)
class Cap:
    """At most `at_most` of something that several offerings share, such as the nodes of a class in a market and zone.

    `uses` says how much of it one replica of an offering takes (a replica on half of a node's GPUs: 0.5).
    """

    name: str  # what a person calls it: "nodes of l4, spot, zone-a"
    at_most: float
    uses: tuple[tuple[OfferingKey, float], ...]

    def __post_init__(self) -> None:
        if not math.isfinite(self.at_most) or self.at_most < 0:
            raise InvalidInputError(self.name, f"expected a cap of 0 or more, got {self.at_most}")
        for key, use in self.uses:
            if not math.isfinite(use) or use <= 0:
                raise InvalidInputError(self.name, f"expected a positive use by {key}, got {use}")


@dataclass(frozen=True)
class AllocationProblem:
    """What must be served, what can be bought and within which bounds.

    `spot.use` was applied when the offerings were made (`offerings.py`); its two fractions are constraints here:
    at least ceil(on_demand_floor x replicas) are not spot, and survive_zone_loss of every bucket's demand is still
    served when all spot replicas of any one zone are gone.
    `fleet`: replicas that exist now; among plans of equal cost the one nearest to it is taken, then the first by name.
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

    def __post_init__(self) -> None:
        _check_bounds(self.limits, self.spot)
        _refuse_twice("offering", (offering.key for offering in self.offerings))
        _refuse_twice("profile", (row.shape for row in self.throughput))
        for offering in self.offerings:
            price, cap = offering.usd_per_hour, offering.max_replicas
            if not (math.isfinite(price) and 0 < price <= LARGEST_USD_PER_HOUR):
                raise InvalidInputError(
                    f"price of {offering.key}", f"expected US dollars per hour above 0, got {price}"
                )
            if cap is not None and cap < 0:
                raise InvalidInputError(f"cap of {offering.key}", f"expected 0 or more, got {cap}")
        for value in (self.utilisation, *(u for _, u in self.utilisation_of)):
            if not 0 < value <= 1:
                raise InvalidInputError("utilisation", f"expected above 0 and at most 1, got {value}")
        for bucket, demanded in self.demand.requests_per_second:
            rates = [rate for row in self.throughput for b, rate in row.requests_per_second if b == bucket]
            if rates and demanded / max(rates) > LARGEST_REPLICAS:
                raise InvalidInputError(
                    "spec.workload.requestsPerSecond",
                    f"{demanded:g} requests/s would need over a million replicas; check the rate and the profiles",
                )

    @cached_property
    def rates(self) -> Mapping[Shape, Mapping[Bucket, float]]:
        """Requests/s per bucket of one replica, of the shapes that are both profiled and on offer.

        A shape that would need over a million replicas for a bucket is as good as unable: no plan gains by it, and
        such coefficients make the solver's tolerances meaningless.
        """
        offered = {offering.key.shape for offering in self.offerings}
        demanded = dict(self.demand.requests_per_second)
        return {
            row.shape: {
                bucket: rate
                for bucket, rate in row.requests_per_second
                if demanded.get(bucket, 0.0) / rate <= LARGEST_REPLICAS
            }
            for row in sorted(self.throughput, key=lambda row: row.shape)
            if row.shape in offered
        }

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

    `gap`: how far above the cheapest possible the price may be, relative (0: proven cheapest).
    """

    replicas: tuple[tuple[OfferingKey, int], ...]  # sorted; none with 0
    shares: tuple[Share, ...]  # sorted; none with 0
    usd_per_hour: float
    gap: float

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
    REPLICAS = "spec.limits.maxReplicas"
    ON_DEMAND_FLOOR = "spec.spot.onDemandFloor"
    ZONE_LOSS = "spec.spot.surviveZoneLoss"
    MIN_REPLICAS = "spec.limits.minReplicas"  # of a service without traffic, where nothing is on offer
    # What leaves nothing on offer (`explain.nothing_on_offer`), besides SIZES and CAPS.
    PROFILES = "PerformanceProfile"
    CLASSES = "AcceleratorClass"
    MODEL_LENGTH = "spec.model.maxModelLen"
    GPUS_PER_NODE = "AcceleratorClass.spec.gpu.perNode"
    ZONES = "spec.accelerators.zones"
    SPOT_USE = "spec.spot.policy"


@dataclass(frozen=True, slots=True)
class Binding:
    """A bound that keeps demand from being met; the message says how much more it would have to allow."""

    bound: Bound
    message: str


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
        return "; ".join(f"{binding.bound}: {binding.message}" for binding in self.bindings)


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
    }
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise InvalidInputError(name, f"expected a percentage from 0% to 100%, got {value:.0%}")
