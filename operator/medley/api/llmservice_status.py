"""Status of an LLMService: what the operator writes, what routers follow (`plan.routing`), what kubectl shows.

Nothing here ticks: a pass that changes nothing writes nothing. Money and percentages are strings, ready for people.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from medley.api.base import ConditionEntry, Observed
from medley.core.accelerators import Market

_CONDITIONS = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}


class ReplicaCounts(Observed):
    """Replicas of a service."""

    desired: int = 0
    """Replicas that the plan wants."""
    ready: int = 0
    """Replicas that serve and are not leaving."""
    spot: int = 0
    """Replicas that serve from spot nodes."""
    summary: str = ""
    """ready/desired, for kubectl."""


class PlannedOffering(Observed):
    """Replicas of one shape in one market and zone."""

    shape: str
    """Shape key: accelerator class, with -tpN and -ppN where above 1."""
    market: Market
    """How its nodes are bought."""
    zone: str
    """Where."""
    replicas: int
    """Replicas wanted."""
    ready: int = 0
    """Replicas that serve and are not leaving."""
    usd_per_hour: str
    """Price of all wanted replicas of this offering, in USD per hour."""


class RoutingShare(Observed):
    """Part of one arrival class that goes to one shape."""

    input: int
    """Index of the input range."""
    output: int
    """Index of the output range, by max_tokens."""
    shape: str
    """Shape key."""
    share: float
    """Fraction of the class's requests, above 0; the shares of a class add up to 1."""


class Routing(Observed):
    """What the routers follow."""

    input_edges: tuple[int, ...] = ()
    """Upper edges, inclusive, of the ranges of input tokens; a larger request belongs to the last."""
    output_edges: tuple[int, ...] = ()
    """Upper edges, inclusive, of the ranges of max_tokens."""
    shares: tuple[RoutingShare, ...] = ()
    """One entry per class and shape with a share above 0."""


class NotUsed(Observed):
    """An accelerator class, or one market of it, that the plan does not use."""

    accelerator_class: Annotated[str, Field(alias="class")]
    """The class."""
    market: Market | None = None
    """The market; all of them if absent."""
    reason: str
    """Why, with the number that decides."""


class Infeasible(Observed):
    """What the plan cannot do."""

    unmet_requests_per_second: str = ""
    """Demand that no permitted plan serves within the SLO."""
    binding: str = ""
    """What stands in the way: fields whose bounds bind, or kinds of objects that are missing."""
    remedy: str = ""
    """What to change."""


class PlanStatus(Observed):
    """The plan in force, or with mode Plan the plan proposed."""

    offerings: tuple[PlannedOffering, ...] = ()
    """What should exist."""
    routing: Routing | None = None
    """How requests are shared out."""
    usd_per_hour: str = ""
    """Price of all offerings above, in USD per hour."""
    on_demand_usd_per_hour: Annotated[str, Field(alias="onDemandUSDPerHour")] = ""
    """Price of the cheapest plan without spot, for the same demand and SLO, in USD per hour."""
    saved_percent: str = ""
    """Saving against that plan: 62%; empty if the demand cannot be met."""
    gap: str = ""
    """How far from the optimum the plan may be at most: 0%."""
    not_used: tuple[NotUsed, ...] = ()
    """For every class not used, why."""
    doubts: tuple[str, ...] = ()
    """What is not shown to hold: shapes that may be fuller than the promise allows."""
    infeasible: Infeasible | None = None
    """Set if the demand cannot be met."""
    computed_at: datetime | None = None
    """When this plan replaced the one before."""


class Unavailable(Observed):
    """An offering that could not be had, remembered for a while."""

    shape: str
    """Shape key."""
    market: Market
    """How its nodes are bought."""
    zone: str
    """Where."""
    until: datetime
    """When it is tried again."""
    reason: str = ""
    """What the cluster said."""


class WorkloadClass(Observed):
    """Requests of one range of input tokens and one range of max_tokens."""

    input: int
    """Index of the input range."""
    output: int
    """Index of the output range, by max_tokens."""
    requests_per_second: str
    """Rate, in requests per second."""
    made: tuple[int, ...] = ()
    """Number of these requests, out of 1000, whose output fell into each output range."""


class Burst(Observed):
    """How unevenly requests come within windows of one length."""

    window_seconds: int
    """Length of the windows, as a number of seconds."""
    dispersion: str
    """Mean squared difference of the numbers of requests in neighbouring windows, in units of twice their mean: 1 as by
    chance, more in bursts."""


class DaysStatus(Observed):
    """How traffic usually goes over a day, and how often the fleet changed for it today."""

    requests_per_second: tuple[str, ...] = ()
    """Rate by half hour from midnight UTC, a mean over a week, in requests per second; empty where none was heard in
    full yet. What a day brings is foreseen once none is empty."""
    spread: str = ""
    """Standard deviation of five-minute rates, as a part of their mean."""
    half_hours: int = 0
    """Number of half hours that this rests on."""
    until: datetime | None = None
    """End of the last of them."""
    changed_on: str = ""
    """Day (UTC) that the number of changes is of."""
    changes: int = 0
    """Number of times that another fleet was planned for another rate on that day."""


class WorkloadStatus(Observed):
    """The traffic that the plan is made for, as routers measured it."""

    requests_per_second: str = ""
    """Rate over all classes, in requests per second, that the plan is made for: at least 5 % more than came lately."""
    requests: int = 0
    """Number of requests that the sizes rest on."""
    input_edges: tuple[int, ...] = ()
    """Upper edges, inclusive, of the ranges of input tokens."""
    output_edges: tuple[int, ...] = ()
    """Upper edges, inclusive, of the ranges of output tokens and of max_tokens."""
    classes: tuple[WorkloadClass, ...] = ()
    """Sizes that came."""
    bursts: tuple[Burst, ...] = ()
    """How unevenly they came; windows of which too few were seen are absent."""
    measured_at: datetime | None = None
    """When this measurement took the place of the one before."""
    days: DaysStatus | None = None
    """What is remembered of days."""


class LLMServiceStatus(Observed):
    """What is."""

    observed_generation: int | None = None
    """The metadata.generation that this status is about."""
    conditions: Annotated[tuple[ConditionEntry, ...], Field(json_schema_extra=_CONDITIONS)] = ()
    """WorkloadObserved, ProfilesReady, PlanFeasible, CapacityReady, SpotHedged, MigrationReady, Ready."""
    replicas: ReplicaCounts | None = None
    """Replicas wanted and there."""
    plan: PlanStatus | None = None
    """The plan in force."""
    workload: WorkloadStatus | None = None
    """The traffic that was measured and is planned for; absent while the forecast is."""
    unavailable: tuple[Unavailable, ...] = ()
    """Offerings that could not be had lately."""
    url: str = ""
    """Where clients inside the cluster reach the OpenAI API."""
