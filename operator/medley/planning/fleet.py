"""What exists of one service, as `reconcile.plan` sees it; made by `kube/observe.py`, by tests and by the simulator.

The words follow Kubernetes only where a decision needs them: a pod is a replica, its conditions and its supervisor's
report are one phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from medley.core.accelerators import AcceleratorClass, Market, OfferingKey
from medley.core.names import Condition, Reason
from medley.core.notices import Notice, NoticeSource
from medley.core.profiles import Profile
from medley.core.service import Budget, Service
from medley.planning.days import Days
from medley.planning.ledger import Ledger
from medley.planning.traffic import Traffic


class ReplicaPhase(StrEnum):
    """What one replica is doing."""

    WAITING = "Waiting"  # no node yet: nothing is paid for it
    STARTING = "Starting"  # on a node; image, model or engine are being loaded
    SERVING = "Serving"
    STALLED = "Stalled"  # makes no tokens; its supervisor restarts the engine
    DRAINING = "Draining"  # takes nothing new, at our request or its own
    FAILED = "Failed"  # the engine cannot start; the message says why
    ENDED = "Ended"  # the pod is over and only its object is left


@dataclass(frozen=True, slots=True)
class Replica:
    """One engine pod."""

    name: str
    uid: str
    offering: OfferingKey
    phase: ReplicaPhase
    created_at: datetime
    node: str = ""  # empty: not placed
    outdated: bool = False  # made from another manifest than the service asks for now
    leaving: bool = False  # being deleted
    assigned: bool = False  # its supervisor has the assignment that the pod carries
    carries: bool | None = None  # whether its engine carries KV caches to others; None: it has not said
    running: int = 0  # requests in it, running or queued; meaningful while its supervisor answers
    unschedulable_since: datetime | None = None
    reason: str = ""  # of what it waits for or failed with: ErrImagePull, Unschedulable
    message: str = ""  # the same in the words of the cluster or the engine


@dataclass(frozen=True, slots=True, order=True)
class PoolKey:
    """Identity of the node pool that services share: one per accelerator class and market."""

    accelerator_class: str
    market: Market


@dataclass(frozen=True, slots=True)
class Unavailable:
    """An offering that could not be had; until then no more of it is planned than is there."""

    offering: OfferingKey
    until: datetime
    reason: str


class Truth(StrEnum):
    """Status of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class ConditionState:
    """One condition of the service."""

    type: Condition
    status: Truth
    reason: Reason
    message: str
    since: datetime  # when `status` last changed
    generation: int  # of the service that it is about


@dataclass(frozen=True, slots=True)
class Standing:
    """What the status says of the pass before: all that a pass remembers."""

    replicas: tuple[tuple[OfferingKey, int], ...] = ()  # of the plan in force
    unavailable: tuple[Unavailable, ...] = ()
    conditions: tuple[ConditionState, ...] = ()
    traffic: Traffic | None = None  # that the plan in force is made for; None: the forecast
    days: Days | None = None  # how traffic usually goes


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another service of the cluster, as far as it matters here: what it asks for, holds and pays from."""

    name: str  # namespace/name
    service: Service | None  # None: it is being deleted, or is not understood, so it asks for nothing
    held: tuple[tuple[OfferingKey, int], ...] = ()  # replicas on nodes, sorted
    unavailable: tuple[Unavailable, ...] = ()
    traffic: Traffic | None = None  # as of its own status
    budget: str | None = None  # that its manifest names, whether it asks for anything or not
    carried_out: bool = False  # its plan takes its share, whatever its mode: nothing is there yet, as in `medley plan`


@dataclass(frozen=True, slots=True)
class RouterState:
    """The service's routers."""

    exists: bool = False
    wanted: int = 2
    pods: int = 0  # there at all, also on their way out
    ready: int = 0


@dataclass(frozen=True, slots=True)
class Observed:
    """All that one pass over one service knows."""

    service: Service
    classes: tuple[AcceleratorClass, ...] = ()
    profiles: tuple[Profile, ...] = ()
    replicas: tuple[Replica, ...] = ()
    notices: tuple[Notice, ...] = ()  # about nodes; at most one each
    router: RouterState = field(default_factory=RouterState)
    standing: Standing = field(default_factory=Standing)
    deleting: bool = False
    finalizer: bool = False  # ours is on the service
    pools: frozenset[PoolKey] = frozenset()  # node pools of medley that exist
    pools_of_others: frozenset[PoolKey] = frozenset()  # those that other services' plans or pods use
    neighbours: tuple[Neighbour, ...] = ()  # all other services, by name
    unreadable: tuple[str, ...] = ()  # classes, profiles and Budgets that are not understood, each with its remedy
    budgets: tuple[Budget, ...] = ()
    ledger: Ledger = field(default_factory=Ledger)  # what routers counted, as far as this operator listened

    @property
    def going(self) -> Mapping[str, Notice]:
        """Nodes that go away or are gone, with their notices."""
        return {notice.node: notice for notice in self.notices}

    def loses(self, replica: Replica) -> bool:
        """Say whether a replica goes with its node.

        One that came after its node fell silent was put there by the scheduler, which puts every successor there too:
        replacing it would never end. It happens when all nodes are NotReady at once, since they are not tainted then.
        """
        notice = self.going.get(replica.node)
        return notice is not None and (
            notice.source is not NoticeSource.NODE_NOT_READY or replica.created_at < notice.deadline
        )
