"""AcceleratorClass: a kind of GPU as it is bought. Written by the platform's administrators; cluster-scoped."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from medley.api.base import (
    ConditionEntry,
    Memory,
    Metadata,
    Money,
    Observed,
    Part,
    Rule,
    Text,
    exactly_one,
    unique,
)
from medley.api.pods import EnvVar, each_name_once
from medley.core.accelerators import Market

_MOST_OF_ON_DEMAND = 10
_PRICE = {Market.ON_DEMAND: "per_hour", Market.SPOT: "spot_per_hour", Market.RESERVED: "reserved_per_hour"}


class Gpu(Part):
    """The GPU."""

    product: Text
    """Name as GPU feature discovery gives it (label nvidia.com/gpu.product), or any name that people know it by."""
    memory: Memory
    """Memory of one GPU, in Mi, Gi or Ti (powers of two): 24Gi."""
    per_node: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of GPUs of one node."""
    resource_name: Annotated[str, Field(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$", max_length=253)] = "nvidia.com/gpu"
    """Extended resource that nodes offer and pods ask for: nvidia.com/gpu, amd.com/gpu."""


class Zone(Part):
    """A zone in which nodes of this class can be had, with prices of a whole node."""

    rules: ClassVar = (
        Rule(
            "has(self.perHour) || has(self.spotPerHour) || has(self.reservedPerHour)",
            lambda zone: any(getattr(zone, price) is not None for price in _PRICE.values()),
            "a zone needs a price: set at least one of perHour, spotPerHour and reservedPerHour",
        ),
        Rule(
            "[has(self.perHour) ? self.perHour : '1', has(self.spotPerHour) ? self.spotPerHour : '1', "
            "has(self.reservedPerHour) ? self.reservedPerHour : '1'].all(price, double(price) > 0.0)",
            lambda zone: all(float(getattr(zone, price) or 1) > 0 for price in _PRICE.values()),
            "a price of 0 would make medley buy without end: write what a node costs, or what it is worth to you",
        ),
        Rule(
            "has(self.reservedPerHour) == has(self.maxReservedNodes)",
            lambda zone: (zone.reserved_per_hour is None) == (zone.max_reserved_nodes is None),
            "reservedPerHour and maxReservedNodes go together: a reservation has a price and a size",
        ),
        Rule(
            "!has(self.maxSpotNodes) || has(self.spotPerHour)",
            lambda zone: zone.max_spot_nodes is None or zone.spot_per_hour is not None,
            "maxSpotNodes needs spotPerHour: set the price, or remove the cap",
        ),
        Rule(
            "!has(self.perHour) || !has(self.spotPerHour) || double(self.spotPerHour) <= 10.0 * double(self.perHour)",
            lambda zone: (
                zone.per_hour is None
                or zone.spot_per_hour is None
                or float(zone.spot_per_hour) <= _MOST_OF_ON_DEMAND * float(zone.per_hour)
            ),
            "spotPerHour is more than ten times perHour {perHour}: both are USD per hour of one node, not cents",
            ".spotPerHour",
        ),
    )

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
    """Value of the node label topology.kubernetes.io/zone."""
    per_hour: Money | None = None
    """On-demand price of one node, in USD per hour, as a string: "0.8048"."""
    spot_per_hour: Money | None = None
    """Spot price of one node, in USD per hour, as a string: "0.32"."""
    reserved_per_hour: Money | None = None
    """Price of one reserved node, in USD per hour, as a string: "0.50"."""
    max_nodes: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Largest number of on-demand nodes; no cap known if absent."""
    max_spot_nodes: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Largest number of spot nodes; no cap known if absent."""
    max_reserved_nodes: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Number of reserved nodes that there are."""
    spot_interruptions_per_hour: Annotated[float, Field(ge=0, le=60)] = 0
    """How often one spot node is taken away, in losses per node and hour; 0.02 is once in 50 hours."""


class GpuQuota(Part):
    """GPUs that may be held over all zones, as cloud quotas count them."""

    rules: ClassVar = (
        Rule(
            "has(self.onDemand) || has(self.spot)",
            lambda part: part.on_demand is not None or part.spot is not None,
            "gpuQuota bounds nothing: set onDemand, spot or both, or remove it",
        ),
    )

    on_demand: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Largest number of GPUs on on-demand nodes, of all services and zones together; no quota if absent."""
    spot: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Largest number of GPUs on spot nodes, of all services and zones together; no quota if absent."""


class NodeClassRef(Part):
    """Names a Karpenter node class of the provider in use."""

    group: Text
    """API group: karpenter.k8s.aws."""
    kind: Text
    """Kind: EC2NodeClass."""
    name: Text
    """Name of the object."""


class KarpenterSource(Part):
    """Nodes that Karpenter makes; medley owns one NodePool per class and market."""

    rules: ClassVar = (
        Rule(
            None,
            lambda source: unique(source.instance_types),
            "a type occurs twice: name each instance type once",
            ".instanceTypes",
        ),
    )

    node_class_ref: NodeClassRef
    """The node class to make nodes from."""
    instance_types: Annotated[
        tuple[Text, ...], Field(min_length=1, max_length=60, json_schema_extra={"x-kubernetes-list-type": "set"})
    ]
    """Instance types with this GPU; more of them make spot easier to have."""


class ExistingSource(Part):
    """Nodes that are there already; medley makes none."""

    node_selector: Annotated[dict[str, str], Field(min_length=1)]
    """Labels of these nodes."""
    market: Market = Market.ON_DEMAND
    """How these nodes are bought."""


class Nodes(Part):
    """How nodes come to be."""

    rules: ClassVar = (exactly_one("karpenter", "existing", remedy="nodes are made by Karpenter or are there already"),)

    karpenter: KarpenterSource | None = None
    """Karpenter makes them."""
    existing: ExistingSource | None = None
    """They are there already."""


class Toleration(Part):
    """A taint that engine pods of this class tolerate."""

    key: str | None = None
    """Taint key; every key if absent (operator Exists)."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Exists or Equal."""
    value: str | None = None
    """Taint value, for operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; every effect if absent."""


class ClassEngine(Part):
    """What engines need on these nodes."""

    rules: ClassVar = (each_name_once("env", ".env", "name each variable once"),)

    image: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """vLLM image for this GPU, where the chart's default does not run (ROCm, CPU)."""
    env: Annotated[
        tuple[EnvVar, ...],
        Field(
            max_length=64, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
        ),
    ] = ()
    """Environment variables; the service's own win."""
    runtime_class_name: Text | None = None
    """RuntimeClass of engine pods: nvidia."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = ()
    """Taints to tolerate besides the GPU's own."""


class AcceleratorClassSpec(Part):
    """A kind of GPU as it is bought."""

    rules: ClassVar = (
        Rule(
            "!has(self.nodes.existing) || self.zones.all(zone, "
            "self.nodes.existing.market == 'spot' ? has(zone.spotPerHour) : "
            "self.nodes.existing.market == 'reserved' ? has(zone.reservedPerHour) : has(zone.perHour))",
            lambda spec: (
                spec.nodes.existing is None
                or all(getattr(zone, _PRICE[spec.nodes.existing.market]) is not None for zone in spec.zones)
            ),
            "every zone needs the price of nodes.existing.market: perHour for on-demand, spotPerHour for spot, "
            "reservedPerHour for reserved",
            ".zones",
        ),
        Rule(
            None,
            lambda spec: unique(tuple(zone.name for zone in spec.zones)),
            "a zone occurs twice: name each zone once",
            ".zones",
        ),
    )

    gpu: Gpu
    """The GPU."""
    zones: Annotated[
        tuple[Zone, ...],
        Field(
            min_length=1,
            max_length=32,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ]
    """Where nodes can be had, and for how much."""
    gpu_quota: GpuQuota | None = None
    """Quota of the cloud account on this kind of GPU, in GPUs over all zones; no quota if absent."""
    nodes: Nodes
    """How nodes come to be."""
    engine: ClassEngine = ClassEngine()
    """What engines need on these nodes."""


class AcceleratorClassStatus(Observed):
    """What is."""

    observed_generation: int | None = None
    """The metadata.generation that this status is about."""
    conditions: Annotated[
        tuple[ConditionEntry, ...],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = ()
    """Conditions."""


_CLASS_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SHAPE_SUFFIX = re.compile(r"-(tp|pp)[0-9]+$")


class AcceleratorClass(Part):
    """A kind of GPU as it is bought: memory, prices by market and zone, and how a node of it comes to be."""

    rules: ClassVar = (
        Rule(
            "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 40",
            lambda item: bool(_CLASS_NAME.fullmatch(item.metadata.name)) and len(item.metadata.name) <= 40,  # noqa: PLR2004
            "metadata.name becomes part of labels and pod names: at most 40 of a-z, 0-9 and -",
        ),
        Rule(
            "!self.metadata.name.matches('-(tp|pp)[0-9]+$')",
            lambda item: not _SHAPE_SUFFIX.search(item.metadata.name),
            "metadata.name must not end in -tpN or -ppN: medley appends these to name shapes",
        ),
    )

    api_version: Literal["medley.dev/v1alpha1"] = "medley.dev/v1alpha1"
    kind: Literal["AcceleratorClass"] = "AcceleratorClass"
    metadata: Metadata
    spec: AcceleratorClassSpec
    """What can be bought."""
    status: AcceleratorClassStatus = AcceleratorClassStatus()
    """What is."""
