"""What the stage's cloud sells: instance types, zones and prices, as Karpenter's kwok provider reads them. Pure.

Used by `cluster`, which writes the files. Prices are in US dollars per hour, near those of a large cloud in 2026.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

ZONES = ("stage-a", "stage-b", "stage-c")
CAPACITY_TYPE = "karpenter.sh/capacity-type"
ZONE = "topology.kubernetes.io/zone"
GPU = "nvidia.com/gpu"


@dataclass(frozen=True, slots=True)
class InstanceType:
    """A kind of machine; `spot` has one price per zone of `ZONES`."""

    name: str
    gpus: int
    on_demand: float
    spot: tuple[float, float, float]


INSTANCE_TYPES = (
    InstanceType("g6.xlarge", 1, 0.805, (0.36, 0.36, 0.38)),  # L4
    InstanceType("g6.12xlarge", 4, 4.602, (1.97, 2.05, 2.11)),  # 4 x L4
    InstanceType("g5.xlarge", 1, 1.006, (0.45, 0.45, 0.47)),  # A10G
    InstanceType("p4d.24xlarge", 8, 21.96, (8.77, 9.02, 9.61)),  # 8 x A100 40 GB
    InstanceType("p5.4xlarge", 1, 6.88, (2.90, 2.90, 3.10)),  # H100
)


def instance_types(
    cores: int, memory_bytes: int, sold: Iterable[InstanceType] = INSTANCE_TYPES
) -> list[dict[str, Any]]:
    """Return the instance types in the form of the kwok provider.

    Every type has this machine's cores and memory, since that is what the kubelet that boots will report: a larger
    promise would let Karpenter buy nodes on which the pod then does not fit.
    """
    return [
        {
            "name": each.name,
            "architecture": "amd64",
            "operatingSystems": ["linux"],
            "resources": {
                "cpu": str(cores),
                "memory": str(memory_bytes),
                "ephemeral-storage": "100Gi",
                "pods": "110",
                GPU: str(each.gpus),
            },
            "offerings": [
                _offering(price, capacity_type, zone)
                for zone, spot in zip(ZONES, each.spot, strict=True)
                for capacity_type, price in (("on-demand", each.on_demand), ("spot", spot))
            ],
        }
        for each in sold
    ]


def _offering(price: float, capacity_type: str, zone: str) -> dict[str, Any]:
    return {
        "Price": price,
        "Available": True,
        "Requirements": [
            {"key": CAPACITY_TYPE, "operator": "In", "values": [capacity_type]},
            {"key": ZONE, "operator": "In", "values": [zone]},
        ],
    }
