"""What a person asks for in an LLMService, as values: the model's name, the promise, the forecast, the bounds.

Made by `api/convert.py`; read by planning, the operator and `medley plan`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from medley.core.accelerators import Market
from medley.core.errors import InvalidInputError
from medley.core.workload import Demand, SizeGrid, Slo


class WorkloadSource(StrEnum):
    """Which demand a plan is made for."""

    FORECAST = "Forecast"  # always the forecast of the manifest
    OBSERVED = "Observed"  # what the routers measured, once they have; the forecast until then


class RoutingKnowledge(StrEnum):
    """What a plan takes routers to know of a request when it arrives."""

    BLIND = "Blind"  # input tokens and max_tokens: what they can know
    ORACLE = "Oracle"  # the output too, as the Mélange paper assumes: for comparison


class SpotUse(StrEnum):
    """Whether spot capacity may be bought."""

    PREFER = "Prefer"
    NEVER = "Never"


class MigrationMode(StrEnum):
    """How running requests leave a node that goes away."""

    AUTO = "Auto"  # KV cache moves where it can be, otherwise the token log is replayed
    LIVE = "Live"  # engines that cannot move their KV cache are refused
    RESUME = "Resume"  # the token log is always replayed


class OperatingMode(StrEnum):
    """Whether plans are carried out."""

    AUTO = "Auto"
    PLAN = "Plan"  # computed and shown, nothing is changed


class AllocationMode(StrEnum):
    """Which programme a plan comes from."""

    SHARES = "Shares"  # any part of a class of requests may go to any shape; every bound holds
    MELANGE = "Melange"  # as the Mélange paper has it, without bounds: for comparison


@dataclass(frozen=True, slots=True)
class Histogram:
    """Relative weights of request sizes; `weights[i][o]` belongs to input range i and output range o of the grid."""

    grid: SizeGrid
    weights: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        shape = (len(self.grid.input_edges), len(self.grid.output_edges))
        if len(self.weights) != shape[0] or any(len(row) != shape[1] for row in self.weights):
            raise InvalidInputError(
                "weights",
                f"expected {shape[0]} rows (one per input range) of {shape[1]} weights (one per output range)",
            )
        values = [weight for row in self.weights for weight in row]
        if any(not math.isfinite(weight) or weight < 0 for weight in values) or not any(values):
            raise InvalidInputError("weights", "expected weights that are not negative, and at least one above 0")

    def demand(self, requests_per_second: float) -> Demand:
        """Spread a rate over the buckets by weight; buckets of weight 0 are absent."""
        total = math.fsum(weight for row in self.weights for weight in row)
        rates = (
            (bucket, requests_per_second * self.weights[bucket.input][bucket.output] / total)
            for bucket in self.grid.buckets()
        )
        return Demand(self.grid, tuple((bucket, rate) for bucket, rate in rates if rate > 0))


@dataclass(frozen=True, slots=True)
class Forecast:
    """The traffic that a person expects: a rate and the distribution of sizes, by preset name or spelt out."""

    requests_per_second: float
    distribution: str | Histogram


@dataclass(frozen=True, slots=True)
class SpotPolicy:
    """How much may depend on spot; both fractions are of the replicas that the plan wants."""

    use: SpotUse = SpotUse.PREFER
    on_demand_floor: float = 0.0  # 0..1: at least this part of the replicas is not spot
    survive_zone_loss: float = 0.0  # 0..1: this part of the demand is still served when one zone's spot is lost
    survive_class_loss: float = 0.0  # 0..1: likewise when one class's spot is lost, in all zones
    survive_class_zone_loss: float = 0.0  # 0..1: likewise when one class's spot is lost in one zone


@dataclass(frozen=True, slots=True)
class GpuQuota:
    """At most so many GPUs of a class, a market and a zone together, of one service; None: any."""

    gpus: int
    accelerator_class: str | None = None
    market: Market | None = None
    zone: str | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """What the services that name it may spend together (Budget object)."""

    name: str
    usd_per_hour: Decimal


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that no plan crosses."""

    max_usd_per_hour: Decimal | None = None  # None: no bound
    max_replicas: int = 20
    min_replicas: int = 1
    gpu_quotas: tuple[GpuQuota, ...] = ()
    budget: str | None = None  # name of the Budget that it draws on, with others; None: none


@dataclass(frozen=True, slots=True)
class Spread:
    """Anti-affinity over zones: replicas in at least so many of them, at most this part of the replicas in any one."""

    min_zones: int = 1
    max_zone_share: float = 1.0

    def __post_init__(self) -> None:
        if self.min_zones < 1:
            raise InvalidInputError("spec.spread.minZones", f"expected 1 or more, got {self.min_zones}")
        if not 0 < self.max_zone_share <= 1:
            raise InvalidInputError(
                "spec.spread.maxZoneShare", f"expected above 0% and at most 100%, got {self.max_zone_share}"
            )


@dataclass(frozen=True, slots=True)
class Service:
    """An LLMService without what only the manifests of its pods need."""

    namespace: str
    name: str
    uid: str
    generation: int
    model: str  # its name, as PerformanceProfiles give it
    max_model_len: int | None  # tokens, input + output; None: the model's own
    slo: Slo
    forecast: Forecast
    workload_source: WorkloadSource
    classes: tuple[str, ...]  # AcceleratorClasses that may be used; empty: all
    zones: tuple[str, ...]  # zones that may be used; empty: all
    spot: SpotPolicy
    limits: Limits
    migration: MigrationMode
    mode: OperatingMode
    routing: RoutingKnowledge = RoutingKnowledge.BLIND
    priority: int = 0  # among services that share capacity: higher is served first
    spread: Spread = Spread()
    allocation: AllocationMode = AllocationMode.SHARES
