"""Replicas that leave: who of their streams ends there, who moves, where to, and when.

Part of `fleet`, which calls `settle` on every change and every tick. The choice is `planning.carrying`'s; here it meets
what was measured, and becomes times of this event loop. `mover` carries out what is to be carried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from medley.planning.carrying import ASSUMED_BYTES_PER_S, Link, Target, choose, remaining_room
from medley.planning.departure import Carry, Departure, Refill
from medley.planning.routing import Candidate
from medley.router.attempt import Attempt, Replica, Way
from medley.router.session import Cause
from medley.wire.ticket import KvState

# A choice holds for this long, unless the replica's streams or its targets change.
REPLAN_SECONDS = 0.5
# How long a choice may wait for targets that have not said yet whether they take KV: at most, and of the notice.
MOST_LEARNING = timedelta(seconds=2)
LEARNING_FRACTION = 0.1
_WEIGHT_OF_THE_NEWEST = 0.3
# Shorter prompts tell more of the queue than of the prefill.
_LEAST_TELLING_PROMPT = 256
_LEAST_TELLING_SECONDS = 0.25
_LEAST_TELLING_BYTES = 8e6


@dataclass(slots=True)
class Measured:
    """A running mean that forgets; None: nothing was measured yet."""

    value: float | None = None

    def add(self, sample: float) -> None:
        """Take in one more."""
        self.value = sample if self.value is None else self.value + _WEIGHT_OF_THE_NEWEST * (sample - self.value)


@dataclass(slots=True)
class Knowledge:
    """What this router measured or was told of the engines; by replica where it differs."""

    states: dict[str, KvState] = field(default_factory=dict)  # of engines that have the plugin
    prefill_tokens_per_s: dict[str, Measured] = field(default_factory=dict)
    bytes_per_s: dict[str, Measured] = field(default_factory=dict)  # out of a replica
    adapters: dict[str, frozenset[str]] = field(default_factory=dict)  # LoRA adapters that engines serve
    lengths: dict[str, int] = field(default_factory=dict)  # tokens of the longest sequence; 0: not known
    without: set[str] = field(default_factory=set)  # replicas whose engines have not the plugin, as they said

    @property
    def longest(self) -> int:
        """Return how many tokens of a sequence every engine takes; 0: not known."""
        return min(self.lengths.values(), default=0)

    def all_adapters(self) -> frozenset[str]:
        """Return the adapters that some engine serves."""
        return frozenset[str]().union(*self.adapters.values())

    def serves(self, replica: str, adapter: str | None) -> bool:
        """Say whether a replica serves an adapter; None is the model itself, which every replica serves."""
        return adapter is None or adapter in self.adapters.get(replica, ())

    def prefilled(self, attempt: Attempt) -> None:
        """Take in how long a first token took: of a prompt that was computed, and is long enough to tell."""
        assert attempt.first_token is not None
        tokens = 0 if attempt.history is None else attempt.history.length
        if (
            attempt.computes
            and attempt.ticket is None
            and tokens >= _LEAST_TELLING_PROMPT
            and attempt.first_token > attempt.started
        ):
            rate = tokens / (attempt.first_token - attempt.started)
            self.prefill_tokens_per_s.setdefault(attempt.replica.name, Measured()).add(rate)

    def carried(self, replica: str, size_bytes: int, seconds: float) -> None:
        """Take in how fast bytes came out of a replica. A small copy is mostly waiting: it can only prove speed."""
        if size_bytes <= 0 or seconds <= 0:
            return
        measured = self.bytes_per_s.setdefault(replica, Measured(ASSUMED_BYTES_PER_S))
        rate = size_bytes / seconds
        telling = seconds >= _LEAST_TELLING_SECONDS and size_bytes >= _LEAST_TELLING_BYTES
        if telling or rate > (measured.value or 0.0):
            measured.add(rate)

    def forget(self, known: Mapping[str, Replica]) -> None:
        """Drop replicas that are gone."""
        for table in (self.states, self.prefill_tokens_per_s, self.bytes_per_s, self.adapters, self.lengths):
            for name in [each for each in table if each not in known]:
                del table[name]
        self.without &= known.keys()

    def has_asked(self, name: str) -> bool:
        """Whether a replica has said whether it carries KV."""
        return name in self.states or name in self.without

    def link(self, source: str) -> Link | None:
        """Return the way out of a replica; None if it exports nothing."""
        state = self.states.get(source)
        if state is None or not state.capable or state.bytes_per_token <= 0:
            return None
        measured = self.bytes_per_s.get(source)
        return Link(
            bytes_per_token=state.bytes_per_token,
            bytes_per_s=(measured and measured.value) or ASSUMED_BYTES_PER_S,
        )

    def target(self, candidate: Candidate, replica: Replica, source: str) -> Target:
        """Return a replica as a place for the streams of another one."""
        state, origin = self.states.get(candidate.name), self.states.get(source)
        rate = self.prefill_tokens_per_s.get(candidate.name)
        known = state is not None and state.block_size > 0
        return Target(
            name=candidate.name,
            slots=max(candidate.max_running - candidate.running, 0),
            free_tokens=state.free_blocks * state.block_size if state is not None and known else None,
            block_tokens=state.block_size if state is not None and known else 1,
            prefill_tokens_per_s=None if rate is None else rate.value,
            carries=state is not None
            and origin is not None
            and state.capable
            and origin.capable
            and state.numerics == origin.numerics,
            takes_outputs=self.takes_outputs(replica),
            leaves=replica.leaves_at is not None,
            adapters=self.adapters.get(candidate.name, frozenset()),
        )

    def takes_outputs(self, replica: Replica) -> bool:
        """Whether committed tokens may come back as outputs: its supervisor says so, or its plugin does."""
        state = self.states.get(replica.name)
        return replica.resumes_output or (state is not None and state.takes_outputs)


@dataclass(slots=True)
class _Notice:
    seen: datetime
    deadline: datetime
    notice_time: timedelta
    planned_at: float = -1.0
    basis: tuple[object, ...] = ()  # what it was planned for
    given: dict[Attempt, Departure] = field(default_factory=dict)


class Leaving:
    """The notices, and what follows from them."""

    def __init__(
        self,
        knowledge: Callable[[], Knowledge],
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], datetime],
    ) -> None:
        self._knowledge, self._clock, self._wall_clock = knowledge, clock, wall_clock
        self._notices: dict[str, _Notice] = {}
        self.carry: Callable[[Attempt], None] = lambda _: None  # the mover's

    @property
    def seen(self) -> dict[str, datetime]:
        """When this router saw that a replica leaves."""
        return {name: notice.seen for name, notice in self._notices.items()}

    def __contains__(self, replica: object) -> bool:
        return replica in self._notices

    def take_notice(self, replicas: Mapping[str, Replica], attempted: Sequence[str]) -> None:
        """Keep the earliest deadline of each notice: some sources can only say "from now", and better ones follow."""
        wall = self._wall_clock()
        leaving = {name: each.leaves_at for name, each in replicas.items() if each.leaves_at is not None}
        # A replica that is no longer listed went without a word.
        leaving |= {name: wall for name in attempted if name not in replicas}
        self._notices = {name: self._notice(name, deadline, wall) for name, deadline in leaving.items()}

    def _notice(self, name: str, deadline: datetime, wall: datetime) -> _Notice:
        notice = self._notices.get(name)
        if notice is None:
            return _Notice(wall, deadline, max(deadline - wall, timedelta(0)))
        if deadline < notice.deadline:
            # A node's notice, then the grace of its pod: what is left now is what there is to plan with.
            notice.deadline, notice.notice_time = deadline, max(deadline - wall, timedelta(0))
            notice.basis = ()
        return notice

    def settle(
        self, attempts: Mapping[str, set[Attempt]], candidates: Sequence[Candidate], replicas: Mapping[str, Replica]
    ) -> None:
        """Choose for the streams of all leaving replicas, and end those whose time has come."""
        room = list(candidates)
        for name, notice in self._notices.items():
            here = attempts.get(name)
            if not here:
                continue
            self._plan(name, notice, here, room, replicas)
            now = self._clock()
            for attempt in here:
                way = attempt.way
                if way is None or not attempt.open:
                    continue
                if way.carried:
                    self.carry(attempt)
                elif way.cut_at <= now:
                    attempt.break_off(Cause.NOTICE)
        for here in (here for name, here in attempts.items() if name not in self._notices):
            for attempt in here:
                attempt.way = None  # a notice that was withdrawn

    def _plan(
        self,
        name: str,
        notice: _Notice,
        here: set[Attempt],
        room: Sequence[Candidate],
        replicas: Mapping[str, Replica],
    ) -> None:
        """Choose anew if the last choice is old, or was made for other streams or targets."""
        now = self._clock()
        if self._must_learn(name, notice, room):
            return
        targets = [self._knowledge().target(each, replicas[each.name], name) for each in room]
        basis = (frozenset(map(id, here)), tuple((each.name, each.carries, each.slots > 0) for each in targets))
        if basis == notice.basis and now < notice.planned_at + REPLAN_SECONDS:
            return
        for other in self._notices.values():
            if other is not notice:  # what is given to the streams of others, and not taken yet
                given = {stream: way for stream, way in other.given.items() if stream.open}
                targets = remaining_room(targets, [each.as_stream() for each in given], _by_id(given))
        moving = sorted((each for each in here if each.open), key=lambda each: each.serial)
        streams = [attempt.as_stream() for attempt in moving]
        chosen = choose(
            streams,
            targets,
            self._knowledge().link(name),
            left=notice.deadline - self._wall_clock(),
            notice_time=notice.notice_time,
        )
        notice.given = {attempt: chosen[stream.id] for attempt, stream in zip(moving, streams, strict=True)}
        for attempt, departure in notice.given.items():
            attempt.way = _way(departure, now)
        notice.planned_at, notice.basis = now, basis

    def _must_learn(self, name: str, notice: _Notice, room: Sequence[Candidate]) -> bool:
        """Whether to wait a moment for what targets say: those that are new may take what this replica has."""
        knowledge = self._knowledge()
        waited = self._wall_clock() - notice.seen
        if waited >= min(MOST_LEARNING, notice.notice_time * LEARNING_FRACTION) or knowledge.link(name) is None:
            return False
        return not all(knowledge.has_asked(each.name) for each in room)


def _by_id(given: Mapping[Attempt, Departure]) -> dict[str, Departure]:
    return {attempt.as_stream().id: departure for attempt, departure in given.items()}


def _way(departure: Departure, now: float) -> Way | None:
    match departure:
        case Carry(target, copy_after, cut_after):
            return Way(target, True, now + copy_after.total_seconds(), now + cut_after.total_seconds())  # noqa: FBT003
        case Refill(target, cut_after):
            return Way(target, False, now, now + cut_after.total_seconds())  # noqa: FBT003
        case _:
            return None
