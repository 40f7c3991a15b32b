"""From manifests to core values: the border at which dicts end. The operator and `medley plan` call it.

`read_*` check a manifest and return its model; `service`, `accelerator_class`, `profile` and `budget` return what
planning uses. Errors are `InvalidInputError` with the path of the field and the remedy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import date
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from medley.api.acceleratorclass import AcceleratorClass, Zone
from medley.api.acceleratorclass import GpuQuota as GpuQuotaOfClass
from medley.api.budget import Budget
from medley.api.llmservice import LLMService, LLMServiceSpec
from medley.api.migration import Migration
from medley.api.performanceprofile import LatencyModelSpec, PerformanceProfile, Point
from medley.api.workload import Distribution
from medley.core import accelerators, units
from medley.core import service as services
from medley.core.accelerators import Market, NodeOffer, Shape
from medley.core.errors import InvalidInputError
from medley.core.latency import LatencyModel
from medley.core.profiles import FittedLatency, Latency, LatencyPoint, Profile
from medley.core.service import Forecast, GpuQuota, Histogram, Limits, Service, SpotPolicy, Spread
from medley.core.workload import SizeGrid, Slo

_Object = TypeVar("_Object", bound=BaseModel)


def read_llm_service(manifest: Mapping[str, Any]) -> LLMService:
    """Check an LLMService manifest and return its model, defaults filled in."""
    return _read(LLMService, manifest)


def read_accelerator_class(manifest: Mapping[str, Any]) -> AcceleratorClass:
    """Check an AcceleratorClass manifest and return its model, defaults filled in."""
    return _read(AcceleratorClass, manifest)


def read_performance_profile(manifest: Mapping[str, Any]) -> PerformanceProfile:
    """Check a PerformanceProfile manifest and return its model, defaults filled in."""
    return _read(PerformanceProfile, manifest)


def read_budget(manifest: Mapping[str, Any]) -> Budget:
    """Check a Budget manifest and return its model."""
    return _read(Budget, manifest)


def read_migration(manifest: Mapping[str, Any]) -> Migration:
    """Check a Migration manifest and return its model, defaults filled in."""
    return _read(Migration, manifest)


def service(item: LLMService) -> Service:
    """Return what planning works with."""
    spec = item.spec
    return Service(
        namespace=item.metadata.namespace,
        name=item.metadata.name,
        uid=item.metadata.uid,
        generation=item.metadata.generation,
        model=spec.model.name,
        max_model_len=spec.model.max_model_len,
        slo=slo(spec),
        forecast=forecast(spec),
        workload_source=spec.workload.source,
        classes=spec.accelerators.classes,
        zones=spec.accelerators.zones,
        spot=spot_policy(spec),
        limits=limits(spec),
        migration=spec.migration.mode,
        mode=spec.mode,
        routing=spec.workload.routing,
        priority=spec.priority,
        spread=spread(spec),
        allocation=spec.allocation,
    )


def slo(spec: LLMServiceSpec) -> Slo:
    """Return the promise."""
    return Slo(
        percentile=spec.slo.percentile,
        ttft=None if spec.slo.ttft is None else units.duration(spec.slo.ttft, field="spec.slo.ttft"),
        tpot=None if spec.slo.tpot is None else units.duration(spec.slo.tpot, field="spec.slo.tpot"),
    )


def forecast(spec: LLMServiceSpec) -> Forecast:
    """Return the expected traffic; a preset stays a name, which planning knows."""
    return Forecast(spec.workload.requests_per_second, _distribution(spec.workload.distribution))


def spot_policy(spec: LLMServiceSpec) -> SpotPolicy:
    """Return how much may depend on spot."""
    spot = spec.spot

    def part(written: str | None, field: str) -> float:
        return 0.0 if written is None else units.percent(written, field=f"spec.spot.{field}")

    return SpotPolicy(
        use=spot.policy,
        on_demand_floor=part(spot.on_demand_floor, "onDemandFloor"),
        survive_zone_loss=part(spot.survive_zone_loss, "surviveZoneLoss"),
        survive_class_loss=part(spot.survive_class_loss, "surviveClassLoss"),
        survive_class_zone_loss=part(spot.survive_class_zone_loss, "surviveClassZoneLoss"),
    )


def limits(spec: LLMServiceSpec) -> Limits:
    """Return the bounds that no plan crosses."""
    most = spec.limits.max_usd_per_hour
    return Limits(
        max_usd_per_hour=None if most is None else units.usd(most, field="spec.limits.maxUSDPerHour"),
        max_replicas=spec.limits.max_replicas,
        min_replicas=spec.limits.min_replicas,
        gpu_quotas=tuple(
            GpuQuota(each.gpus, each.accelerator_class, each.market, each.zone) for each in spec.limits.gpu_quotas
        ),
        budget=spec.limits.budget,
    )


def budget(item: Budget) -> services.Budget:
    """Return what the services that name it may spend together."""
    return services.Budget(item.metadata.name, units.usd(item.spec.max_usd_per_hour, field="spec.maxUSDPerHour"))


def spread(spec: LLMServiceSpec) -> Spread:
    """Return how replicas are spread over zones."""
    share = spec.spread.max_zone_share
    return Spread(spec.spread.min_zones, units.percent(share, field="spec.spread.maxZoneShare"))


def accelerator_class(item: AcceleratorClass) -> accelerators.AcceleratorClass:
    """Return the class with one offer per zone and market that has a price; prices in USD per node-hour."""
    spec = item.spec
    existing, karpenter = spec.nodes.existing, spec.nodes.karpenter
    nodes: accelerators.KarpenterNodes | accelerators.ExistingNodes
    if karpenter is not None:
        reference = karpenter.node_class_ref
        nodes = accelerators.KarpenterNodes(reference.group, reference.kind, reference.name, karpenter.instance_types)
    elif existing is not None:
        nodes = accelerators.ExistingNodes(tuple(sorted(existing.node_selector.items())))
    else:
        raise InvalidInputError("spec.nodes", "set exactly one of karpenter, existing")
    offers = (offer for zone in spec.zones for offer in _offers(zone))
    return accelerators.AcceleratorClass(
        name=item.metadata.name,
        uid=item.metadata.uid,
        gpu_memory_bytes=units.memory_bytes(spec.gpu.memory, field="spec.gpu.memory"),
        gpus_per_node=spec.gpu.per_node,
        resource_name=spec.gpu.resource_name,
        nodes=nodes,
        offers=tuple(offer for offer in offers if existing is None or offer.market is existing.market),
        engine_image=spec.engine.image,
        gpu_quotas=() if spec.gpu_quota is None else _gpu_quotas(spec.gpu_quota),
    )


def _gpu_quotas(written: GpuQuotaOfClass) -> tuple[tuple[Market, int], ...]:
    quotas = ((Market.ON_DEMAND, written.on_demand), (Market.SPOT, written.spot))
    return tuple((market, gpus) for market, gpus in quotas if gpus is not None)


def profile(item: PerformanceProfile) -> Profile:
    """Return the measured points, ordered by size and rate, and the latency model in seconds."""
    spec = item.spec
    points = sorted(spec.points, key=lambda point: (point.input_tokens, point.output_tokens, point.requests_per_second))
    return Profile(
        name=item.metadata.name,
        model=spec.model,
        shape=Shape(spec.accelerator_class, spec.tensor_parallel, spec.pipeline_parallel),
        source=spec.source,
        measured_at=spec.measured_at,
        max_model_len=spec.max_model_len,
        max_running=spec.max_running,
        points=tuple(_point(point) for point in points),
        latency=None if spec.latency_model is None else _latency(spec.latency_model, spec.max_running),
        confidence=spec.confidence,
    )


def _distribution(written: Distribution) -> str | Histogram:
    if written.histogram is None:
        return written.preset or "chat"
    grid = SizeGrid(written.histogram.input_edges, written.histogram.output_edges)
    return Histogram(grid, written.histogram.weights)


def _offers(zone: Zone) -> tuple[NodeOffer, ...]:
    sold = (
        (Market.ON_DEMAND, "perHour", zone.per_hour, zone.max_nodes, 0.0),
        (Market.SPOT, "spotPerHour", zone.spot_per_hour, zone.max_spot_nodes, zone.spot_interruptions_per_hour),
        (Market.RESERVED, "reservedPerHour", zone.reserved_per_hour, zone.max_reserved_nodes, 0.0),
    )
    return tuple(
        NodeOffer(market, zone.name, float(units.usd(price, field=f"spec.zones[{zone.name}].{field}")), cap, rate)
        for market, field, price, cap, rate in sold
        if price is not None
    )


def _point(point: Point) -> LatencyPoint:
    field = "spec.points.latencies"
    return LatencyPoint(
        input_tokens=point.input_tokens,
        output_tokens=point.output_tokens,
        requests_per_second=point.requests_per_second,
        latencies=tuple(
            Latency(
                percentile=latency.percentile,
                ttft=units.duration(latency.ttft, field=f"{field}.ttft"),
                tpot=units.duration(latency.tpot, field=f"{field}.tpot"),
            )
            for latency in point.latencies
        ),
    )


def _latency(written: LatencyModelSpec, max_running: int) -> FittedLatency:
    return FittedLatency(
        model=LatencyModel(
            step_s=written.step_microseconds / _MICROSECONDS,
            per_prefill_token_s=written.prefill_token_microseconds / _MICROSECONDS,
            per_sequence_s=written.sequence_microseconds / _MICROSECONDS,
            per_context_token_s=written.context_token_microseconds / _MICROSECONDS,
            kv_tokens=written.kv_tokens,
            max_running=max_running,
            max_batched_tokens=written.max_batched_tokens,
        ),
        error=written.error_percent / 100,
        largest_prefill_tokens=written.range.prefill_tokens,
        largest_sequences=written.range.sequences,
        largest_context_tokens=written.range.context_tokens,
    )


_MICROSECONDS = 1e6  # of a second
_REMEDIES = {
    units.DURATION_PATTERN: "expected a duration such as 40ms, 2s, 10m or 1h",
    units.PERCENT_PATTERN: "expected a whole percentage from 0% to 100%",
    units.MONEY_PATTERN: 'expected US dollars as a string such as "0.36"',
    units.MEMORY_PATTERN: "expected a memory size such as 24Gi",
}


def _read(kind: type[_Object], manifest: Mapping[str, Any]) -> _Object:
    try:
        # As JSON, strictly: the API server takes no "3" for 3 either.
        text = json.dumps(manifest, default=_as_json)
        return kind.model_validate_json(text, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        first, *others = _own_faults(error.errors(include_url=False))
        first = first | {"ctx": {"pattern": _pattern(kind, first["loc"])} | first.get("ctx", {})}
        path = ".".join(str(step) for step in first["loc"]) + first.get("ctx", {}).get("path", "")
        more = f" (and {len(others)} more)" if others else ""
        raise InvalidInputError(path or kind.__name__, f"{_explained(first)}{more}") from error


def _as_json(value: object) -> str:
    """Return what YAML made a date of as the text that JSON has for it."""
    if isinstance(value, date):
        return value.isoformat()
    raise InvalidInputError(str(value), f"a manifest cannot hold a {type(value).__name__}: quote it")


def _own_faults(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Leave out what pydantic concludes from other faults: a list whose only entry is wrong counts as too short."""
    places = [error["loc"] for error in errors]
    return [
        error
        for error in errors
        if error["type"] != "too_short"
        or not any(place[: len(error["loc"])] == error["loc"] and place != error["loc"] for place in places)
    ]


def _pattern(kind: type[BaseModel], place: tuple[int | str, ...]) -> str | None:
    """Return the pattern of the text at a place of a model, None where there is none."""
    schema = kind.model_json_schema(by_alias=True)

    def alternatives(part: dict[str, Any]) -> list[dict[str, Any]]:
        if "$ref" in part:
            return alternatives(schema["$defs"][part["$ref"].rsplit("/", 1)[-1]])
        return [found for each in part["anyOf"] for found in alternatives(each)] if "anyOf" in part else [part]

    here = alternatives(schema)
    for step in place:
        below = (each.get("items") if isinstance(step, int) else each.get("properties", {}).get(step) for each in here)
        here = [found for each in below if each for found in alternatives(each)]
    return next((each["pattern"] for each in here if "pattern" in each), None)


_LATENCIES = frozenset({"ttft", "tpot"})  # in milliseconds, mostly
_UNITS = {units.DURATION_PATTERN: "s", units.PERCENT_PATTERN: "%", units.MONEY_PATTERN: "", units.MEMORY_PATTERN: "Gi"}


def _in_quotes(written: object, pattern: str, *, short: bool) -> str | None:
    """Return what a number was probably meant to be as text, in the form that the pattern wants; None: no guess."""
    if isinstance(written, bool) or not isinstance(written, int | float):
        return None
    if pattern == units.PERCENT_PATTERN and 0 < written < 1:
        written = round(written * 100)
    unit = "ms" if short and pattern == units.DURATION_PATTERN else _UNITS.get(pattern, "")
    example = f"{written}{unit}"
    return example if pattern not in _UNITS or re.fullmatch(pattern, example) else None


def _not_text(error: ErrorDetails) -> str:
    pattern = str(error.get("ctx", {}).get("pattern"))
    example = _in_quotes(error["input"], pattern, short=error["loc"][-1] in _LATENCIES)
    said = f"{_REMEDIES.get(pattern, 'expected text')}, got {error['input']!r}"
    return f'{said}: write "{example}"' if example else said


def _explained(error: ErrorDetails) -> str:
    """Say what is wrong and what to write instead."""
    match error["type"]:
        case "extra_forbidden":
            return "there is no such field: check its spelling and its indentation"
        case "missing":
            return "this field is required"
        case "string_pattern_mismatch":
            pattern = str(error.get("ctx", {}).get("pattern"))
            return f"{_REMEDIES.get(pattern, f'expected a match of {pattern}')}, got {error['input']!r}"
        case "string_type":
            return _not_text(error)
        case "int_type" | "float_type" | "int_from_float" if isinstance(error["input"], str):
            return f"expected a number, got the text {error['input']!r}: write it without quotes"
        case "rule":
            said = error["msg"]
        case _:
            said = f"{error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"
    return said
