"""The bounds of an LLMService that no plan crosses, `spec.limits` and `spec.spread`; a part of `llmservice`."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from medley.api.base import Money, Part, Percent, Rule, Text
from medley.core.accelerators import Market


class GpuQuotaSpec(Part):
    """At most so many GPUs of what is named; what is not named counts whatever it is."""

    accelerator_class: Annotated[Text | None, Field(alias="class")] = None
    """Name of an AcceleratorClass; every class if absent."""
    market: Market | None = None
    """spot, on-demand or reserved; every market if absent."""
    zone: Text | None = None
    """Zone; every zone if absent."""
    gpus: Annotated[int, Field(ge=0, le=1_000_000)]
    """Largest number of GPUs that replicas of this service hold there; 0: none."""


class LimitsSpec(Part):
    """Bounds that no plan crosses; a demand that needs more is reported, never silently cut."""

    rules: ClassVar = (
        Rule(
            "self.minReplicas <= self.maxReplicas",
            lambda part: part.min_replicas <= part.max_replicas,
            "minReplicas {minReplicas} is above maxReplicas {maxReplicas}: lower minReplicas or raise maxReplicas",
            ".minReplicas",
        ),
        Rule(
            "!has(self.maxUSDPerHour) || double(self.maxUSDPerHour) > 0.0",
            lambda part: part.max_usd_per_hour is None or float(part.max_usd_per_hour) > 0,
            "maxUSDPerHour 0 buys nothing: raise it, or remove it for no bound",
            ".maxUSDPerHour",
        ),
    )

    max_usd_per_hour: Annotated[Money | None, Field(alias="maxUSDPerHour")] = None
    """Most that the nodes of this service may cost, in USD per hour, as a string: "40". No bound if absent."""
    budget: Text | None = None
    """Name of the Budget that the nodes of this service are paid from, with those of others that name it; no such bound
    if absent. What is left of it after services of higher priority bounds this one, as maxUSDPerHour does."""
    max_replicas: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Largest number of replicas, on-demand and spot together."""
    min_replicas: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Smallest number of replicas, on-demand and spot together."""
    gpu_quotas: Annotated[tuple[GpuQuotaSpec, ...], Field(max_length=16)] = ()
    """Quotas of this service on GPUs per class, market and zone, all of which hold; those of the cloud account are in
    AcceleratorClasses."""


class SpreadSpec(Part):
    """Anti-affinity over zones: how far apart replicas are kept."""

    rules: ClassVar = (
        Rule(
            "self.maxZoneShare != '0%'",
            lambda part: part.max_zone_share != "0%",
            "maxZoneShare 0% leaves every zone empty: write at least 1%, or remove it",
            ".maxZoneShare",
        ),
    )

    min_zones: Annotated[int, Field(ge=1, le=32)] = 1
    """Smallest number of zones that replicas are in."""
    max_zone_share: Percent = "100%"
    """Largest part of the replicas that may be in one zone, in whole percent: 60%."""
