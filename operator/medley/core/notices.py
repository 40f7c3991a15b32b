"""A notice: this node (or pod) goes away."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Cause(StrEnum):
    """Why a node goes; only RECLAIMED feeds interruption rates."""

    RECLAIMED = "Reclaimed"  # the market took it
    VOLUNTARY = "Voluntary"  # drift, consolidation, roll-out, a person
    FAILED = "Failed"
    UNKNOWN = "Unknown"


class NoticeSource(StrEnum):
    """Which signal spoke."""

    KARPENTER_TAINT = "KarpenterTaint"
    KARPENTER_NODECLAIM = "KarpenterNodeClaim"
    KARPENTER_EVENT = "KarpenterEvent"
    NODE_TERMINATION_HANDLER = "NodeTerminationHandler"
    OUT_OF_SERVICE = "OutOfService"
    NODE_NOT_READY = "NodeNotReady"
    NODE_GONE = "NodeGone"
    POD_DELETION = "PodDeletion"


@dataclass(frozen=True, slots=True)
class Notice:
    """A node, or one pod, goes away at `deadline`; a deadline that is not after now means it already went."""

    node: str
    deadline: datetime
    source: NoticeSource
    cause: Cause
    pod: str | None = None  # set if the notice is about this pod alone
