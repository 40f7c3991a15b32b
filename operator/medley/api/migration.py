"""Migration: one node's departure, as it concerns one service. Written by the operator, its memory across a crash."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from medley.api.base import Metadata, Observed, Part, Text
from medley.core.migrations import MigrationMethod, MigrationPhase
from medley.core.notices import Cause, NoticeSource


class MigrationSpec(Part):
    """The notice."""

    transitions: ClassVar = (
        {
            "rule": "self == oldSelf",
            "message": "a Migration records one notice and does not change: delete it if it is of no use any more",
        },
    )

    service: Text
    """LLMService of the same namespace."""
    node: Text
    """Node that goes away."""
    deadline: datetime
    """When it goes, as first seen; of a node that went without notice: when that was seen."""
    source: NoticeSource
    """Which signal spoke."""
    cause: Cause
    """Why it goes; only Reclaimed feeds interruption rates."""
    replicas: Annotated[tuple[Text, ...], Field(min_length=1, max_length=64)]
    """Replicas of the service on that node."""


class Move(Observed):
    """What became of one replica's requests."""

    replica: str
    """The replica that left."""
    method: MigrationMethod
    """How requests left."""
    streams: int = 0
    """Number of streams, since the replica came."""


class Streams(Observed):
    """The streams that left, over all replicas: one column of `kubectl get migrations` each."""

    finished: int = 0
    """Number of streams that ended in time."""
    carried: int = 0
    """Number of streams whose KV blocks another replica pulled."""
    refilled: int = 0
    """Number of streams whose tokens were replayed on another replica."""
    lost: int = 0
    """Number of streams that did not go on."""


class MigrationStatus(Observed):
    """How far it is."""

    phase: MigrationPhase | None = None
    """Planned, Moving, Completed, Failed (streams were lost) or Withdrawn (the replicas stay)."""
    replacements: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    """Replicas that were asked for, or on their way, in place of those that leave."""
    moves: Annotated[tuple[Move, ...], Field(max_length=256)] = ()
    """What moved, and how, as far as routers told."""
    streams: Streams | None = None
    """The same in sums; absent while no router could be read: nothing is known then."""
    completed_at: datetime | None = None
    """When the last request had left, or the notice was found withdrawn; the record is deleted seven days later."""
    message: str = ""
    """The result, for people."""


class Migration(Part):
    """The departure of a node, as it concerns one service: the notice, what moved and how, the result."""

    api_version: Literal["medley.dev/v1alpha1"] = "medley.dev/v1alpha1"
    kind: Literal["Migration"] = "Migration"
    metadata: Metadata
    spec: MigrationSpec
    """The notice."""
    status: MigrationStatus = MigrationStatus()
    """How far it is."""
