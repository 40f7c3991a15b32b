"""The replicas as this router sees them: who is there, who is leaving, what runs where, who just failed.

Sources (`cluster`, `static`) replace the immutable `FleetView`; `admission` places requests; `carrier` opens and closes
`Attempt`s. Level-triggered: `settle` looks at what is, on every change and every tick, and breaks off what should move.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from medley.core.workload import Bucket
from medley.planning.routing import Candidate, Credit, RoutingTable, place
from medley.router.attempt import Attempt, Replica
from medley.router.leaving import Knowledge, Leaving
from medley.router.session import Cause

# A replica that broke gets no request for this long; twice as long each time, until it makes a token again.
FIRST_SUSPENSION_SECONDS = 0.25
LONGEST_SUSPENSION_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class FleetView:
    """All replicas at one moment, and the routing table; a source makes a new one for each change."""

    replicas: Mapping[str, Replica] = field(default_factory=dict)
    table: RoutingTable | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an engine may be silent."""

    silence: timedelta = timedelta(seconds=5)  # between tokens
    first_token: timedelta = timedelta(seconds=60)  # from the call to its first token


@dataclass(slots=True)
class _Suspect:
    failures: int
    until: float


class Fleet:
    """What runs where."""

    def __init__(
        self,
        limits: Limits = Limits(),
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.view = FleetView()
        self.limits = limits
        self._clock = clock
        self._attempts: dict[str, set[Attempt]] = {}
        self._suspects: dict[str, _Suspect] = {}
        self._credit: Credit = {}
        self._opened = 0
        self.knowledge = Knowledge()
        self.leaving = Leaving(self.knowledge, clock=clock, wall_clock=wall_clock)
        self.changed: Callable[[], None] = lambda: None  # admission: there may be room now

    # What sources do

    def replace(self, view: FleetView) -> None:
        """Take in what a source sees now."""
        self.view = view
        self.knowledge.forget(view.replicas)
        self.settle()

    # What admission and the carrier do

    def place(self, bucket: Bucket | None, *, avoid: str | None = None) -> Replica | None:
        """Return the replica for one more request, or None: no room now. `avoid` is taken only if no other is there."""
        candidates = self.candidates()
        others = [each for each in candidates if each.name != avoid]
        placement = place(self.view.table, bucket, others or candidates, self._credit)
        if placement is None and others:
            placement = place(self.view.table, bucket, candidates, self._credit)
        if placement is None:
            return None
        self._credit = placement.credit
        return self.view.replicas[placement.replica]

    def candidates(self) -> list[Candidate]:
        """Return the replicas that new requests may go to. One that broke is tried with one request at a time.

        One whose node is silent is taken only where there is no other: after an outage of the API server all are.
        """
        now = self._clock()
        found: list[Candidate] = []
        silent: list[Candidate] = []
        for replica in self.view.replicas.values():
            suspect = self._suspects.get(replica.name)
            if not replica.ready or replica.leaves_at is not None or (suspect and now < suspect.until):
                continue
            running = len(self._attempts.get(replica.name, ()))
            candidate = Candidate(replica.name, replica.shape, running, 1 if suspect else replica.max_running)
            (silent if replica.silent else found).append(candidate)
        return found or silent

    def open(self, replica: Replica, remaining_tokens: int, patience: float) -> Attempt:
        """Count an attempt on a replica."""
        now = self._clock()
        self._opened += 1
        attempt = Attempt(replica, now, now, remaining_tokens, patience, serial=self._opened)
        self._attempts.setdefault(replica.name, set()).add(attempt)
        return attempt

    def open_at(self, name: str, remaining_tokens: int, patience: float) -> Attempt | None:
        """Count an attempt on the replica named, if it may take one now."""
        if any(each.name == name and each.has_room for each in self.candidates()):
            return self.open(self.view.replicas[name], remaining_tokens, patience)
        return None

    def close(self, attempt: Attempt, cause: Cause | None) -> None:
        """Count it no longer. `cause` says how it broke; None: it did not, or the client left."""
        name = attempt.replica.name
        attempt.ended = True
        if attempt.move is not None:
            attempt.move.ended.set()
        attempts = self._attempts.get(name)
        if attempts is not None:
            attempts.discard(attempt)
            if not attempts:
                del self._attempts[name]
        if cause is not None and cause not in {Cause.NOTICE, Cause.DIVERGED}:
            self._suspend(name)
        self.changed()

    def made_token(self, replica: Replica) -> None:
        """Trust a replica again: it works."""
        self._suspects.pop(replica.name, None)

    @property
    def running(self) -> dict[str, int]:
        """Open attempts by replica."""
        return {name: len(attempts) for name, attempts in self._attempts.items()}

    @property
    def notices(self) -> dict[str, datetime]:
        """When this router saw that a replica leaves."""
        return self.leaving.seen

    def _suspend(self, name: str) -> None:
        now = self._clock()
        suspect = self._suspects.get(name)
        if suspect is not None and now < suspect.until:
            return  # all the streams of a replica break at once: that is one failure
        failures = 1 if suspect is None else min(suspect.failures + 1, 16)
        pause = min(FIRST_SUSPENSION_SECONDS * 2 ** (failures - 1), LONGEST_SUSPENSION_SECONDS)
        self._suspects[name] = _Suspect(failures, now + pause)

    # What every change and every tick does

    def settle(self, lag: float = 0.0) -> None:
        """Break off attempts that should move, since their replica leaves or says nothing; let in who waits.

        `lag`: seconds by which this process itself was late; engines are not blamed for them.
        """
        self.leaving.take_notice(self.view.replicas, tuple(self._attempts))
        self.leaving.settle(self._attempts, self.candidates(), self.view.replicas)
        for attempts in list(self._attempts.values()):
            self._watch(attempts, lag)
        self.changed()  # a suspension may be over

    def _watch(self, attempts: set[Attempt], lag: float) -> None:
        now = self._clock()
        silence = self.limits.silence.total_seconds()
        for attempt in attempts:
            attempt.last_progress += lag
        newest = max((each.last_progress for each in attempts if each.tokens), default=None)
        # If one stream is silent and none has progressed, the engine hangs; those still waiting for a first token would
        # wait in vain.
        hangs = newest is not None and now - newest > silence
        for attempt in list(attempts):
            waited = now - attempt.last_progress
            limit = silence if attempt.tokens or hangs else self.limits.first_token.total_seconds()
            if waited > limit * attempt.patience:
                attempt.break_off(Cause.SILENCE)
