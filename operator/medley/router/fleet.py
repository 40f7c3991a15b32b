"""The replicas as this router sees them: who is there, who is leaving, what runs where, who just failed.

Sources (`cluster`, `static`) replace the immutable `FleetView`; `admission` places requests; `carrier` opens and closes
`Attempt`s. Level-triggered: `settle` looks at what is, on every change and every tick, and breaks off what should move.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from medley.core.workload import Bucket
from medley.planning.routing import Candidate, Credit, Placement, RoutingTable, place
from medley.router.attempt import Attempt, Replica
from medley.router.leaving import Knowledge, Leaving
from medley.router.prefixes import Keys, PrefixIndex
from medley.router.session import Cause
from medley.router.sizes import Sizes

# A replica that broke gets no request for this long; twice as long each time, until it makes a token again.
FIRST_SUSPENSION_SECONDS = 0.25
LONGEST_SUSPENSION_SECONDS = 15.0
# For the sake of prefixes a shape may run ahead of its share by so many requests of a class, or this part of what came
# within a minute; so over a minute shares hold to within twice that.
LEAST_SLACK_REQUESTS = 2.0
SLACK_OF_A_MINUTE = 0.025


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


class Wanted(NamedTuple):
    """A place for one attempt."""

    bucket: Bucket | None
    remaining_tokens: int  # at most
    patience: float = 1.0
    avoid: str | None = None  # a replica that is taken only if no other is there
    keys: Keys = ()  # of its prompt, in the prefix index
    per_minute: float = 0.0  # requests of its class
    adapter: str | None = None  # LoRA adapter that it needs


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
        self._work: dict[str, float] = {}  # tokens expected yet, by replica
        self.prefixes = PrefixIndex()
        self.sizes = Sizes(clock=clock)
        self._opened = 0
        self.knowledge = Knowledge()
        self.leaving = Leaving(lambda: self.knowledge, clock=clock, wall_clock=wall_clock)
        self.changed: Callable[[], None] = lambda: None  # admission: there may be room now
        self.begun: Callable[[str], None] = lambda _: None  # a replica came; the carrier counts who leaves it

    # What sources do

    def replace(self, view: FleetView) -> None:
        """Take in what a source sees now."""
        for gone in self.view.replicas.keys() - view.replicas.keys():
            self.prefixes.forget(gone)
        for new in view.replicas.keys() - self.view.replicas.keys():
            self.begun(new)
        self.view = view
        self.knowledge.forget(view.replicas)
        self.settle()

    # What admission and the carrier do

    def place(self, wanted: Wanted) -> Replica | None:
        """Return the replica for one more request, or None: no room now."""
        serves = self.knowledge.serves
        candidates = [each for each in self.candidates(wanted.keys) if serves(each.name, wanted.adapter)]
        others = [each for each in candidates if each.name != wanted.avoid]
        placement = self._placement(wanted, others or candidates)
        if placement is None and len(others) < len(candidates):
            placement = self._placement(wanted, candidates)
        if placement is None:
            return None
        self._credit = placement.credit
        return self.view.replicas[placement.replica]

    def _placement(self, wanted: Wanted, candidates: Sequence[Candidate]) -> Placement | None:
        size = self.sizes.expected(wanted.bucket, wanted.remaining_tokens)
        slack = max(LEAST_SLACK_REQUESTS, wanted.per_minute * SLACK_OF_A_MINUTE)
        return place(self.view.table, wanted.bucket, candidates, self._credit, slack=slack, size=size)

    def candidates(self, keys: Keys = ()) -> list[Candidate]:
        """Return the replicas that new requests may go to, and what they hold of the prompt with these keys.

        One that broke is tried with one request at a time.
        One whose node is silent is taken only where there is no other: after an outage of the API server all are.
        """
        now = self._clock()
        held = self.prefixes.held(keys)
        found: list[Candidate] = []
        silent: list[Candidate] = []
        for replica in self.view.replicas.values():
            suspect = self._suspects.get(replica.name)
            if not replica.ready or replica.leaves_at is not None or (suspect and now < suspect.until):
                continue
            running = len(self._attempts.get(replica.name, ()))
            most = 1 if suspect else replica.max_running
            work = self._work.get(replica.name, 0.0)
            candidate = Candidate(replica.name, replica.shape, running, most, work, held.get(replica.name, 0))
            (silent if replica.silent else found).append(candidate)
        return found or silent

    def open(self, replica: Replica, wanted: Wanted) -> Attempt:
        """Count an attempt on a replica."""
        now = self._clock()
        self._opened += 1
        work = self.sizes.expected(wanted.bucket, wanted.remaining_tokens)
        attempt = Attempt(replica, now, now, wanted.remaining_tokens, wanted.patience, serial=self._opened, work=work)
        self._attempts.setdefault(replica.name, set()).add(attempt)
        self._work[replica.name] = self._work.get(replica.name, 0.0) + work
        if wanted.keys:
            attempt.computes = not self.prefixes.held(wanted.keys).get(replica.name)
            self.prefixes.add(replica.name, wanted.keys)
        return attempt

    def open_at(self, name: str, wanted: Wanted) -> Attempt | None:
        """Count an attempt on the replica named, if it may take one now."""
        if any(each.name == name and each.has_room for each in self.candidates()):
            return self.open(self.view.replicas[name], wanted)
        return None

    def received(self, attempt: Attempt, tokens: int) -> None:
        """Note that tokens came."""
        attempt.received(tokens, self._clock())
        # Who makes more than was expected is not done yet.
        done = min(float(tokens), attempt.work - 1.0)
        attempt.work -= done
        self._work[attempt.replica.name] -= done

    def close(self, attempt: Attempt, cause: Cause | None) -> None:
        """Count it no longer. `cause` says how it broke; None: it did not, or the client left."""
        name = attempt.replica.name
        attempt.ended = True
        if attempt.move is not None:
            attempt.move.ended.set()
        attempts = self._attempts.get(name)
        if attempts is not None:
            if attempt in attempts:
                attempts.remove(attempt)
                self._work[name] -= attempt.work
            if not attempts:
                del self._attempts[name]
                del self._work[name]
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
