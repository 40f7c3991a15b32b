"""Migration: one node's departure, as it concerns one service. Written by the operator, its memory across a crash."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from medley.api.base import Metadata, Observed, Part, Text
from medley.core.notices import Cause, NoticeSource


class MigrationPhase(StrEnum):
    """How far a migration is."""

    PLANNED = "Planned"  # a replacement is asked for, streams are about to move
    MOVING = "Moving"  # streams move
    COMPLETED = "Completed"  # the replicas hold no request any more
    FAILED = "Failed"  # requests were lost, or the record could not be kept to the end


class MigrationMethod(StrEnum):
    """How requests left a replica."""

    FINISH = "Finish"  # they ended in time
    CARRY = "Carry"  # their KV blocks were pulled by another replica
    REPREFILL = "Reprefill"  # their tokens were replayed on another replica


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
    """When it goes."""
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
    """Number of streams."""


class MigrationStatus(Observed):
    """How far it is."""

    phase: MigrationPhase | None = None
    """Planned, Moving, Completed or Failed."""
    replacements: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    """Replicas that were asked for in place of those that leave."""
    moves: Annotated[tuple[Move, ...], Field(max_length=256)] = ()
    """What moved, and how."""
    completed_at: datetime | None = None
    """When the last request had left; the record is deleted seven days later."""
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
