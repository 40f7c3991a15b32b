"""What can be bought: accelerator classes, the shapes of replicas made of them, and offerings with their prices."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from fractions import Fraction


class Market(StrEnum):
    """How a node is bought (values of the label `karpenter.sh/capacity-type`)."""

    SPOT = "spot"
    ON_DEMAND = "on-demand"
    RESERVED = "reserved"


@dataclass(frozen=True, slots=True)
class NodeOffer:
    """One market and zone in which a class's nodes are sold."""

    market: Market
    zone: str
    usd_per_node_hour: float
    max_nodes: int | None  # None: no cap known
    interruptions_per_node_hour: float = 0.0


@dataclass(frozen=True, slots=True)
class KarpenterNodes:
    """Nodes that Karpenter makes from these instance types."""

    node_class_group: str
    node_class_kind: str
    node_class_name: str
    instance_types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExistingNodes:
    """Nodes that are there already, by label."""

    node_selector: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class AcceleratorClass:
    """A kind of GPU as it is bought (AcceleratorClass object)."""

    name: str
    uid: str
    gpu_memory_bytes: int
    gpus_per_node: int
    resource_name: str  # nvidia.com/gpu, amd.com/gpu
    nodes: KarpenterNodes | ExistingNodes
    offers: tuple[NodeOffer, ...]
    engine_image: str | None = None  # None: the service's or the chart's default
    gpu_quotas: tuple[tuple[Market, int], ...] = ()  # GPUs over all zones and services, per market that has a quota

    def nodes_of(self, shape: Shape) -> Fraction | None:
        """Return the nodes that one replica of a shape takes; None: there is no node that a stage of it fits.

        A shape that fits a node takes its part of one: 1 / replicas that fit beside each other. A larger one takes
        whole nodes: the GPUs of a stage talk too much to be on two, so a node has as many stages as fit it whole.
        """
        if shape.gpus <= self.gpus_per_node:
            return Fraction(1, self.gpus_per_node // shape.gpus)
        stages = self.gpus_per_node // shape.tensor_parallel
        return Fraction(-(-shape.pipeline_parallel // stages)) if stages else None


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """What one replica is made of: accelerator class x tensor-parallel size x pipeline-parallel size."""

    accelerator_class: str
    tensor_parallel: int = 1
    pipeline_parallel: int = 1

    @property
    def gpus(self) -> int:
        """GPUs that one replica holds."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def key(self) -> str:
        """Return the name used in labels and in the routing table: l4, l4-tp2, l4-tp2-pp2, l4-pp2."""
        tensor = f"-tp{self.tensor_parallel}" if self.tensor_parallel > 1 else ""
        pipeline = f"-pp{self.pipeline_parallel}" if self.pipeline_parallel > 1 else ""
        return f"{self.accelerator_class}{tensor}{pipeline}"

    def __str__(self) -> str:
        return self.key


@dataclass(frozen=True, slots=True, order=True)
class OfferingKey:
    """Identity of an offering."""

    shape: Shape
    market: Market
    zone: str

    def __str__(self) -> str:
        return f"{self.shape.key}/{self.market}/{self.zone}"


@dataclass(frozen=True, slots=True)
class Offering:
    """A shape that can be had in a market and zone, as one replica.

    `cold_start`: from asking for a replica to its first token; it is billed and serves nothing. `moved_state`: time of
    other replicas that it takes to rebuild what one lost replica held (prompts and tokens so far, processed again).
    """

    key: OfferingKey
    usd_per_hour: float  # of one replica
    max_replicas: int | None  # None: no cap known
    interruptions_per_hour: float = 0.0  # of one replica
    cold_start: timedelta = timedelta(0)
    moved_state: timedelta = timedelta(0)

    @property
    def interruptions_usd_per_hour(self) -> float:
        """Expected cost of interruptions of one replica: rate x (cold start + moved state) x price."""
        hours = (self.cold_start + self.moved_state) / timedelta(hours=1)
        return self.interruptions_per_hour * hours * self.usd_per_hour
