"""The phases of an engine pod and the moves between them. Called by policy.py; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from medley.core.errors import EngineError
from medley.wire.assignment import EnginePhase as Phase

NEXT: Final[Mapping[Phase, frozenset[Phase]]] = {
    Phase.UNASSIGNED: frozenset({Phase.STARTING, Phase.STOPPED}),
    Phase.STARTING: frozenset({Phase.SERVING, Phase.DRAINING, Phase.FAILED}),
    # vLLM died while serving: Starting again, or Failed when it died too often.
    Phase.SERVING: frozenset({Phase.STALLED, Phase.DRAINING, Phase.STARTING, Phase.FAILED}),
    Phase.STALLED: frozenset({Phase.SERVING, Phase.DRAINING, Phase.STARTING, Phase.FAILED}),
    Phase.DRAINING: frozenset({Phase.STOPPED}),  # there is no way back: routers have moved its streams
    Phase.STOPPED: frozenset({Phase.STARTING}),
    Phase.FAILED: frozenset({Phase.STARTING, Phase.STOPPED}),
}


class IllegalMoveError(EngineError):
    """A move that the table does not have: a bug in policy.py."""


def move(now: Phase, to: Phase) -> Phase:
    """Return `to`, or raise if the table has no such move."""
    if to not in NEXT[now]:
        raise IllegalMoveError(f"moving from {now} to {to}: the table has no such move")
    return to
