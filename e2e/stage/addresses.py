"""Who has which address on the stage. Pure.

10.77.0.1      the bridge, on the host: API server, registry
10.77.1.N      machine N (1..250)
10.88.N.0/24   pods of machine N
10.96.0.0/16   services (the API server at .0.1, DNS at .0.10)
"""

from collections.abc import Iterable
from dataclasses import dataclass

from e2e.stage.processes import StageError

BRIDGE = "mdl0"
LINK_PREFIX = "mdl-v"
HOST = "10.77.0.1"
NODE_PREFIX = 16
POD_RANGE = "10.88.0.0/16"
SERVICE_RANGE = "10.96.0.0/16"
DNS = "10.96.0.10"
API_PORT = 6443
ETCD_PORT = 22379
ETCD_PEER_PORT = 22380
REGISTRY = "registry.stage:5000"
REGISTRY_ADDRESS = f"{HOST}:5000"
KARPENTER_METRICS_PORT = 22800
KARPENTER_HEALTH_PORT = 22801
METADATA = "169.254.169.254"

_LAST = 250


@dataclass(frozen=True, slots=True)
class Slot:
    """The addresses of machine number `number`."""

    number: int

    @property
    def address(self) -> str:
        return f"10.77.1.{self.number}"

    @property
    def pods(self) -> str:
        return f"10.88.{self.number}.0/24"

    @property
    def link(self) -> str:
        """The host's end of the machine's cable."""
        return f"{LINK_PREFIX}{self.number}"


def free_slot(taken: Iterable[int]) -> Slot:
    """Return the lowest slot that no machine has."""
    used = set(taken)
    for number in range(1, _LAST + 1):
        if number not in used:
            return Slot(number)
    raise StageError(f"the stage is full: {_LAST} machines; remove one with `python -m e2e.stage node rm NAME`")
