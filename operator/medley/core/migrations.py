"""Words of a migration: the departure of a node, as it concerns one service, and of the streams that leave with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class MigrationPhase(StrEnum):
    """How far a migration is."""

    PLANNED = "Planned"  # there was a notice, and no stream has left yet as far as is known
    MOVING = "Moving"  # streams have begun to leave
    COMPLETED = "Completed"  # the replicas are gone or hold no request any more
    FAILED = "Failed"  # the same, and streams were lost
    WITHDRAWN = "Withdrawn"  # the notice was taken back: the replicas stay


class MigrationMethod(StrEnum):
    """How requests left a replica."""

    FINISH = "Finish"  # they ended in time
    CARRY = "Carry"  # their KV blocks were pulled by another replica
    REPREFILL = "Reprefill"  # their tokens were replayed on another replica


class How(StrEnum):
    """How streams left a replica: values of the label `how` of `medley_router_left`."""

    FINISHED = "finished"  # they ended there, after the notice
    CARRIED = "carried"  # after the notice, with their KV cache
    REFILLED = "refilled"  # after the notice; computed again elsewhere
    RESUMED = "resumed"  # it broke; computed again elsewhere
    UNDERWAY = "underway"  # they have left, and made no token elsewhere yet
    LOST = "lost"  # they did not go on


@dataclass(frozen=True, slots=True)
class Left:
    """What one router says of replicas: the streams that left each since it came, and the calls that run on it."""

    streams: Mapping[tuple[str, How], int] = field(default_factory=dict)
    running: Mapping[str, int] = field(default_factory=dict)
