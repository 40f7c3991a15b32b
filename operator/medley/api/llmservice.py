"""LLMService: what a user writes to have a model served. Only `spec.model` is required."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from medley.api.base import Duration, Metadata, Part, Percent, Rule, Text, credible, unique
from medley.api.bounds import LimitsSpec, SpreadSpec
from medley.api.llmservice_status import LLMServiceStatus
from medley.api.model import Model
from medley.api.pods import Engine, Resources
from medley.api.workload import Workload
from medley.core import units
from medley.core.service import (
    AllocationMode,
    MigrationMode,
    OperatingMode,
    SpotUse,
)


class SloSpec(Part):
    """The promise: at least `percentile` percent of requests meet every bound that is set."""

    rules: ClassVar = (
        Rule(
            "has(self.ttft) || has(self.tpot)",
            lambda part: part.ttft is not None or part.tpot is not None,
            "promise at least one of ttft and tpot, for example tpot: 40ms; or leave slo out for the default",
        ),
        credible("tpot", units.LONG_TPOT_PATTERN, "ten seconds or more per token"),
        credible("ttft", units.LONG_TTFT_PATTERN, "ten minutes or more until the first token"),
    )

    percentile: Annotated[float, Field(ge=50, lt=100)] = 99
    """Percent of requests that meet both bounds, from 50 to below 100: 99."""
    ttft: Duration | None = None
    """Time to first token, from arrival at the router, with its unit (us, ms, s, m, h): 500ms, 2s."""
    tpot: Duration | None = None
    """Time per output token of one request, (last - first) / (tokens - 1), with its unit (us, ms, s, m, h): 40ms."""


NameSet = Annotated[
    tuple[Text, ...],
    Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
]


def _has_no_twin(attribute: str) -> Callable[[Part], bool]:
    return lambda part: unique(getattr(part, attribute))


class Accelerators(Part):
    """Which GPUs may be used."""

    rules: ClassVar = tuple(
        Rule(
            None,
            _has_no_twin(attribute),
            f"an entry occurs twice: name each of the {attribute} once",
            f".{attribute}",
        )
        for attribute in ("classes", "zones")
    )

    classes: NameSet = ()
    """Names of AcceleratorClasses; empty: every class there is."""
    zones: NameSet = ()
    """Zones; empty: every zone of the classes."""


def _is_absent_without_spot(attribute: str) -> Callable[[Spot], bool]:
    return lambda part: part.policy is not SpotUse.NEVER or getattr(part, attribute) is None


class Spot(Part):
    """How much may depend on spot capacity."""

    rules: ClassVar = (
        Rule(
            "self.policy != 'Never' || !has(self.onDemandFloor)",
            lambda part: part.policy is not SpotUse.NEVER or part.on_demand_floor is None,
            "policy Never buys no spot, so a floor says nothing: remove onDemandFloor, or set policy: Prefer",
            ".onDemandFloor",
        ),
        *(
            Rule(
                f"self.policy != 'Never' || !has(self.{name})",
                _is_absent_without_spot(attribute),
                f"policy Never buys no spot, so no spot can be lost: remove {name}, or set policy: Prefer",
                f".{name}",
            )
            for name, attribute in (
                ("surviveZoneLoss", "survive_zone_loss"),
                ("surviveClassLoss", "survive_class_loss"),
                ("surviveClassZoneLoss", "survive_class_zone_loss"),
            )
        ),
    )

    policy: SpotUse = SpotUse.PREFER
    """Prefer: spot wherever it is cheapest. Never: no spot."""
    on_demand_floor: Percent | None = None
    """At least this part of the replicas is not spot, in whole percent: 20%. 0% if absent."""
    survive_zone_loss: Percent | None = None
    """This part of the demand, in whole percent, is still served within the SLO when one zone's spot nodes are lost:
    80%. 0% if absent."""
    survive_class_loss: Percent | None = None
    """This part of the demand, in whole percent, is still served within the SLO when the spot nodes of one
    AcceleratorClass are lost, in all zones: 50%. 0% if absent."""
    survive_class_zone_loss: Percent | None = None
    """This part of the demand, in whole percent, is still served within the SLO when the spot nodes of one
    AcceleratorClass in one zone are lost: 90%. 0% if absent."""


class Migration(Part):
    """How running requests leave a node that goes away."""

    mode: MigrationMode = MigrationMode.AUTO
    """Auto: the KV cache moves where engine and network allow it, else the token log is replayed. Live: engines that
    cannot move their KV cache are refused. Resume: the token log is always replayed."""


class Router(Part):
    """The service's front door."""

    replicas: Annotated[int, Field(ge=2, le=100)] = 2
    """Number of router pods; at least 2, so that one may go."""
    request_timeout: Duration = "10m"
    """Longest that one request may take, from arrival to last token, with its unit (us, ms, s, m, h): 10m."""
    queue_limit: Annotated[int, Field(ge=0, le=1_000_000)] = 1024
    """Number of requests that may wait in one router pod; more get 429 with Retry-After."""
    resources: Resources = Resources()
    """CPU and memory of a router pod."""


_ZONES = "self.?accelerators.?zones.orValue([])"
_WHOLE = 100  # percent


class LLMServiceSpec(Part):
    """One large language model, a promise about its latency, and the bounds within which medley chooses GPUs for it."""

    rules: ClassVar = (
        Rule(
            "self.spread.minZones <= self.limits.maxReplicas",
            lambda spec: spec.spread.min_zones <= spec.limits.max_replicas,
            "spread.minZones needs a replica in each of its zones: raise limits.maxReplicas, or lower minZones",
            ".spread.minZones",
        ),
        Rule(
            f"{_ZONES}.size() == 0 || self.spread.minZones <= {_ZONES}.size()",
            lambda spec: not spec.accelerators.zones or spec.spread.min_zones <= len(spec.accelerators.zones),
            "spread.minZones is above the number of accelerators.zones: allow more zones, or lower minZones",
            ".spread.minZones",
        ),
        Rule(
            f"{_ZONES}.size() == 0 || int(self.spread.maxZoneShare.replace('%', '')) * {_ZONES}.size() >= {_WHOLE}",
            lambda spec: (
                not spec.accelerators.zones
                or int(spec.spread.max_zone_share.removesuffix("%")) * len(spec.accelerators.zones) >= _WHOLE
            ),
            "spread.maxZoneShare times the accelerators.zones is below 100%: allow more zones, or raise maxZoneShare",
            ".spread.maxZoneShare",
        ),
        Rule(
            "self.allocation != 'Melange' || self.mode == 'Plan'",
            lambda spec: spec.allocation is not AllocationMode.MELANGE or spec.mode is OperatingMode.PLAN,
            "allocation Melange keeps no limits and survives no loss, so it is for comparison: "
            "set mode: Plan, or allocation: Shares",
            ".allocation",
        ),
    )

    model: Model
    """The model to serve."""
    engine: Engine = Engine()
    """The vLLM engine and its pods."""
    slo: SloSpec = SloSpec(percentile=99, ttft="2s", tpot="100ms")
    """The promise; if absent: 99 % of requests see their first token within 2s and then 10 tokens per second."""
    workload: Workload = Workload()
    """The traffic to plan for."""
    accelerators: Accelerators = Accelerators()
    """Which GPUs may be used."""
    spot: Spot = Spot()
    """How much may depend on spot capacity."""
    limits: LimitsSpec = LimitsSpec()
    """Bounds that no plan crosses."""
    spread: SpreadSpec = SpreadSpec()
    """Anti-affinity over zones."""
    allocation: AllocationMode = AllocationMode.SHARES
    """Shares: the cheapest mix, in which any part of a class of requests may go to any kind of GPU, within every bound.
    Melange: the integer programme of the Mélange paper (slices of 1/8 of a bucket, on-demand and spot alike at their
    lowest price, outputs known, replicas at 100 % of throughput, without limits, losses or spread); for comparison,
    with mode: Plan."""
    migration: Migration = Migration()
    """How running requests leave a node that goes away."""
    priority: Annotated[int, Field(ge=0, le=1000)] = 0
    """Among services that want more of an AcceleratorClass than its zones have nodes, or more than their Budget pays,
    the higher is served first; of equals the one that is served already, then by name. It takes nothing from services
    that fit beside it."""
    mode: OperatingMode = OperatingMode.AUTO
    """Auto: carry plans out. Plan: compute and show them in status.plan, change nothing."""
    router: Router = Router()
    """The service's front door."""


NAME_RULE = Rule(
    "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 63",
    lambda item: _is_label(item.metadata.name),
    "metadata.name names pods and Services: write at most 63 of a-z, 0-9 and -, starting with a letter",
)


def _is_label(name: str) -> bool:
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789-")
    return 1 <= len(name) <= 63 and set(name) <= allowed and name[0].isalpha() and name[-1] != "-"  # noqa: PLR2004


_OTHER_WEIGHTS = (
    "running streams would go on with other weights. "
    "Create another LLMService and move clients to it, or delete this one first"
)


def _same(*steps: str) -> str:
    """Return the CEL for: this field of the model's source is as it was, absent counting as a value."""
    ways = (f"{item}.spec.model.source" for item in ("self", "oldSelf"))
    sides = []
    for way in ways:
        paths = [".".join((way, *steps[: depth + 1])) for depth in range(len(steps))]
        sides.append(f"({' && '.join(f'has({path})' for path in paths)} ? {paths[-1]} : '')")
    return " == ".join(sides)


_SAME_SOURCE = " && ".join(
    _same(*steps)
    for steps in (("hub", "revision"), ("pvc", "claimName"), ("pvc", "path"), ("image", "reference"), ("image", "path"))
)
_NOT_SERVING = "!has(oldSelf.status) || oldSelf.status.?replicas.?ready.orValue(0) == 0"


class LLMService(Part):
    """Serves one large language model on the cheapest mix of GPUs that keeps its latency promise."""

    rules: ClassVar = (NAME_RULE,)
    transitions: ClassVar = (
        {
            "rule": f"self.spec.model.name == oldSelf.spec.model.name || {_NOT_SERVING}",
            "message": f"the model cannot change while replicas serve: {_OTHER_WEIGHTS}",
            "fieldPath": ".spec.model.name",
        },
        {
            "rule": f"({_SAME_SOURCE}) || {_NOT_SERVING}",
            "message": f"the source cannot change while replicas serve: {_OTHER_WEIGHTS}",
            "fieldPath": ".spec.model.source",
        },
    )

    api_version: Literal["medley.dev/v1alpha1"] = "medley.dev/v1alpha1"
    kind: Literal["LLMService"] = "LLMService"
    metadata: Metadata
    spec: LLMServiceSpec
    """What is wanted."""
    status: LLMServiceStatus = LLMServiceStatus()
    """What is."""
