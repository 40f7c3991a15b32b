"""The closed set of things that a pass may do; `handlers/acting.py` carries them out with `match` and `assert_never`.

Each may be done twice without harm: a pass that died half-way is repeated whole by the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from medley.core.accelerators import OfferingKey
from medley.planning.fleet import PoolKey


@dataclass(frozen=True, slots=True)
class EnsureFinalizer:
    """Hold the service until what was made for it is gone."""


@dataclass(frozen=True, slots=True)
class EnsureSecrets:
    """Have the Secrets by which the service's processes know each other: the engine key, authorities, certificates."""


@dataclass(frozen=True, slots=True)
class EnsureNodePool:
    """Have the node pool that a class and a market share."""

    pool: PoolKey


@dataclass(frozen=True, slots=True)
class EnsureRouter:
    """Have the routers: Deployment, Service, ServiceAccount and their rights."""


@dataclass(frozen=True, slots=True)
class EnsureBudgets:
    """Have the disruption budgets; `engines_available`: fewest engines that an eviction may leave."""

    engines_available: int


@dataclass(frozen=True, slots=True)
class LaunchEngine:
    """Make one engine pod."""

    name: str
    offering: OfferingKey


@dataclass(frozen=True, slots=True)
class Assign:
    """Send a replica the assignment that its pod carries."""

    replica: str


@dataclass(frozen=True, slots=True)
class DrainEngine:
    """Have a replica take nothing new and finish what it has."""

    replica: str
    why: str


@dataclass(frozen=True, slots=True)
class DeleteEngine:
    """Delete an engine pod; `force`: its node cannot confirm the end any more.

    `grace`: what its streams get to end or move, None: the pod's own.
    """

    replica: str
    uid: str
    why: str
    force: bool = False
    grace: timedelta | None = None


@dataclass(frozen=True, slots=True)
class DeleteRouter:
    """Remove the routers and their rights."""


@dataclass(frozen=True, slots=True)
class DeleteBudgets:
    """Remove the disruption budgets."""


@dataclass(frozen=True, slots=True)
class DeleteSecrets:
    """Remove the engine key, the authorities and the certificates."""


@dataclass(frozen=True, slots=True)
class DeleteNodePool:
    """Remove a node pool that nobody uses any more; its nodes are drained by Karpenter."""

    pool: PoolKey


@dataclass(frozen=True, slots=True)
class ReleaseFinalizer:
    """Let the service go."""


Action = (
    EnsureFinalizer
    | EnsureSecrets
    | EnsureNodePool
    | EnsureRouter
    | EnsureBudgets
    | LaunchEngine
    | Assign
    | DrainEngine
    | DeleteEngine
    | DeleteRouter
    | DeleteBudgets
    | DeleteSecrets
    | DeleteNodePool
    | ReleaseFinalizer
)
