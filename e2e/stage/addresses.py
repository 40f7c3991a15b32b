"""Who has which address on the stage; used by everything that runs or configures something. Touches nothing.

10.77.0.1      the bridge, on the host: API server, registry
10.77.1.N      machine N (1..250)
10.88.N.0/24   pods of machine N
10.96.0.0/16   services (the API server at .0.1, DNS at .0.10)

Up to eight stages live side by side on one machine: MEDLEY_STAGE (0..7, default 0) says which one is meant. It is added
to the second number of each address (10.78, 10.89, 10.97 for stage 1) and is part of every name.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from e2e.stage.processes import StageError

STAGES = 8


def instance(given: str) -> int:
    """Return the stage that MEDLEY_STAGE names; raise StageError if it names none."""
    if given not in map(str, range(STAGES)):
        raise StageError(f"MEDLEY_STAGE: expected a number from 0 to {STAGES - 1}, found {given!r}")
    return int(given)


INSTANCE = instance(os.environ.get("MEDLEY_STAGE") or "0")
BRIDGE = f"mdl{INSTANCE}"
TAG = str(INSTANCE) if INSTANCE else ""  # in names: nothing for the usual stage
LINK_PREFIX = f"mdl{TAG}-v"
NODE_PREFIX = 16
_NODES = f"10.{77 + INSTANCE}"
_PODS = f"10.{88 + INSTANCE}"
_SERVICES = f"10.{96 + INSTANCE}"
HOST = f"{_NODES}.0.1"
POD_RANGE = f"{_PODS}.0.0/16"
SERVICE_RANGE = f"{_SERVICES}.0.0/16"
DNS = f"{_SERVICES}.0.10"
API_PORT = 6443
# On loopback, where all stages meet.
ETCD_PORT = 22379 + 10 * INSTANCE
ETCD_PEER_PORT = 22380 + 10 * INSTANCE
CONTROLLER_MANAGER_PORT = 22381 + 10 * INSTANCE
SCHEDULER_PORT = 22382 + 10 * INSTANCE
KARPENTER_METRICS_PORT = 22383 + 10 * INSTANCE
KARPENTER_HEALTH_PORT = 22384 + 10 * INSTANCE
REGISTRY = "registry.stage:5000"
REGISTRY_ADDRESS = f"{HOST}:5000"

_LAST = 250


@dataclass(frozen=True, slots=True)
class Slot:
    """The addresses of machine number `number`."""

    number: int

    @property
    def address(self) -> str:
        return f"{_NODES}.1.{self.number}"

    @property
    def pods(self) -> str:
        return f"{_PODS}.{self.number}.0/24"

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
