"""Migration records: which there should be of nodes that go away, and what they say. Pure.

Called by `handlers/recording.py`. Computed from what is: notices, replicas, the records that there are, and what
routers say of the streams that left. A pass that died between two writes is healed by the next, as nothing but the
records themselves is remembered:

* A replica that goes with its node, and that no record covers, gets one: per node, with all such replicas. It is made
  before a pod whose node is gone is deleted, and after all that serves was asked for. What medley deletes has none.
* A record is over when none of its replicas holds a request and no stream is under way from them. Routers say so; where
  they cannot be read it is over PATIENCE after its deadline, once the replicas are gone, and says what is not known.
* One whose notice is not seen any more while all its replicas serve on is withdrawn, PATIENCE after it began.
* What is over does not change any more and goes after KEPT.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from medley.core import names
from medley.core.accelerators import Market
from medley.core.migrations import How, Left, MigrationMethod, MigrationPhase
from medley.core.notices import Cause, Notice, NoticeSource
from medley.planning.fleet import Observed, Replica, ReplicaPhase

KEPT = timedelta(days=7)
PATIENCE = timedelta(minutes=2)
LOOK_AGAIN = timedelta(seconds=5)
_MOST_REPLICAS = 64  # that one record lists

_METHODS = {
    How.FINISHED: MigrationMethod.FINISH,
    How.CARRIED: MigrationMethod.CARRY,
    How.REFILLED: MigrationMethod.REPREFILL,
    How.RESUMED: MigrationMethod.REPREFILL,
}
_ON_THEIR_WAY = frozenset({ReplicaPhase.WAITING, ReplicaPhase.STARTING})


@dataclass(frozen=True, slots=True, order=True)
class Move:
    """Streams that left a replica in one way."""

    replica: str
    method: MigrationMethod
    streams: int


@dataclass(frozen=True, slots=True)
class Progress:
    """What a record says became of the departure."""

    phase: MigrationPhase | None = None  # None: nothing was written yet
    replacements: tuple[str, ...] = ()
    moves: tuple[Move, ...] = ()  # sorted
    lost: int | None = None  # streams; None: no router was heard, so the moves are not known either
    completed_at: datetime | None = None
    message: str = ""

    @property
    def by_method(self) -> Mapping[MigrationMethod, int]:
        """Streams that left, over all replicas; 0 for a method that none took."""
        found: Counter[MigrationMethod] = Counter()
        for each in self.moves:
            found[each.method] += each.streams
        return found


@dataclass(frozen=True, slots=True)
class Record:
    """One node's departure. `created_at` and `uid` are the API server's; the latter is empty until it is written."""

    name: str
    node: str
    deadline: datetime
    source: NoticeSource
    cause: Cause
    replicas: tuple[str, ...]
    created_at: datetime
    uid: str = ""
    progress: Progress = Progress()

    @property
    def is_open(self) -> bool:
        """Whether there is more to come."""
        return self.progress.completed_at is None


@dataclass(frozen=True, slots=True)
class Heard:
    """What all routers together say of the streams that left replicas, and how many of them said nothing."""

    left: Mapping[tuple[str, How], int] = field(default_factory=dict)  # by replica
    running: Mapping[str, int] = field(default_factory=dict)  # calls, by replica
    routers: int = 0
    silent: int = 0

    @property
    def all_of_them(self) -> bool:
        """Whether every router was heard; where there is none, nobody knows."""
        return self.routers > 0 and self.silent == 0

    @property
    def any_of_them(self) -> bool:
        """Whether a router was heard."""
        return self.silent < self.routers


@dataclass(frozen=True, slots=True)
class Records:
    """The records as they should be, by name, and those to be deleted."""

    wanted: tuple[Record, ...]
    expired: tuple[Record, ...]


def heard_of(said: Iterable[Left | None]) -> Heard:
    """Return what routers say together; None: one that did not answer."""
    left: Counter[tuple[str, How]] = Counter()
    running: Counter[str] = Counter()
    answers = list(said)
    for each in answers:
        if each is not None:
            left.update(each.streams)
            running.update(each.running)
    return Heard(dict(left), dict(running), len(answers), answers.count(None))


def begun(observed: Observed, known: Iterable[Record], now: datetime) -> tuple[Record, ...]:
    """Return the records that are missing: one per node with replicas that go with it and that no record covers."""
    known = tuple(known)
    missing = []
    for notice in observed.notices:
        going = [
            each
            for each in observed.replicas
            if each.node == notice.node
            and observed.loses(each)
            and not _left_first(each, notice)
            and not any(_covers(one, each) for one in known)
        ]
        if going:
            missing.append(_new(observed.service.name, notice, going, {one.name for one in known}, now))
    return tuple(missing)


def records(
    observed: Observed, known: Iterable[Record], heard: Heard | None, launched: Iterable[str], now: datetime
) -> Records:
    """Return what known records should say. `heard` None: routers were not asked now, so nothing comes to its end.

    `launched`: names of the replicas that this pass asked for.
    """
    expired = tuple(one for one in known if one.progress.completed_at and now - one.progress.completed_at >= KEPT)
    kept = [one for one in known if one not in expired]
    coming = [*launched, *_coming(observed, kept)]
    claimed = {name for one in kept if one.is_open for name in (*one.progress.replacements, *one.replicas)}
    wanted = []
    for one in sorted(kept, key=lambda each: (each.created_at, each.name)):
        if one.is_open:
            free = [name for name in dict.fromkeys(coming) if name not in claimed and name not in one.replicas]
            room = len(one.replicas) - len(one.progress.replacements)
            claimed.update(free[:room])
            replaced = replace(one.progress, replacements=(*one.progress.replacements, *free[:room]))
            wanted.append(replace(one, progress=_progress(one, replaced, observed, heard, now)))
        else:
            wanted.append(one)
    return Records(tuple(sorted(wanted, key=lambda each: each.name)), expired)


def _left_first(replica: Replica, notice: Notice) -> bool:
    """Whether a node goes because its replica did: Karpenter takes for empty what only pods on their way out are on.

    medley deleted those. On spot they leave sooner than Karpenter looks.
    """
    by_karpenter = notice.source in {NoticeSource.KARPENTER_TAINT, NoticeSource.KARPENTER_NODECLAIM}
    return replica.leaving and by_karpenter and replica.offering.market is not Market.SPOT


def _new(service: str, notice: Notice, going: Iterable[Replica], taken: set[str], now: datetime) -> Record:
    replicas = sorted(going, key=lambda each: each.name)[:_MOST_REPLICAS]
    number = 0
    while (name := names.migration(service, notice.node, replicas[0].uid, number)) in taken:
        number += 1
    listed = tuple(each.name for each in replicas)
    return Record(name, notice.node, _whole(notice.deadline), notice.source, notice.cause, listed, _whole(now))


def _covers(record: Record, replica: Replica) -> bool:
    """Whether a record is about this replica's departure; one that was withdrawn is about an earlier notice."""
    withdrawn = record.progress.phase is MigrationPhase.WITHDRAWN
    return replica.node == record.node and not withdrawn and _lists(record, replica)


def _lists(record: Record, replica: Replica) -> bool:
    """Whether a record means this replica, and not one that took its name later."""
    return replica.name in record.replicas and replica.created_at <= record.created_at


def _coming(observed: Observed, known: Iterable[Record]) -> list[str]:
    """Return the replicas on their way that replace none of another record's."""
    ended = [one.progress for one in known if not one.is_open]
    return [
        each.name
        for each in observed.replicas
        if each.phase in _ON_THEIR_WAY
        and not each.leaving
        and not observed.loses(each)
        and not any(
            each.name in one.replacements and one.completed_at and each.created_at <= one.completed_at for one in ended
        )
    ]


def _progress(record: Record, before: Progress, observed: Observed, heard: Heard | None, now: datetime) -> Progress:
    there = {each.name: each for each in observed.replicas if _lists(record, each)}
    staying = {
        name
        for name, each in there.items()
        if not (observed.loses(each) or each.leaving or each.phase is ReplicaPhase.ENDED)
    }
    counted = before if heard is None else _counted(record, before, heard)
    left = sum(each.streams for each in counted.moves) + (counted.lost or 0)
    if heard is not None and _is_over(record, there, staying, heard, now):
        if len(staying) == len(record.replicas):
            phase, said = MigrationPhase.WITHDRAWN, "the notice was taken back: the replicas stay"
        else:
            phase = MigrationPhase.FAILED if counted.lost else MigrationPhase.COMPLETED
            said = _result(counted, heard)
        return replace(counted, phase=phase, completed_at=_whole(now), message=said)
    underway = heard is not None and any(heard.left.get((name, How.UNDERWAY)) for name in record.replicas)
    gone = len(there) < len(record.replicas)
    moving = before.phase is MigrationPhase.MOVING or left > 0 or underway or gone
    phase = MigrationPhase.MOVING if moving else MigrationPhase.PLANNED
    said = before.message if heard is None else "" if heard.all_of_them else _unheard(heard)
    return replace(counted, phase=phase, message=said)


def _is_over(record: Record, there: Mapping[str, Replica], staying: set[str], heard: Heard, now: datetime) -> bool:
    """Whether the replicas are gone, empty or to stay, and their streams are elsewhere.

    A notice that is not seen for a moment (a node that is not heard, a supervisor that is) is not withdrawn yet.
    """
    if len(staying) == len(record.replicas):
        return now >= record.created_at + PATIENCE
    if not heard.all_of_them:
        return there.keys() == staying and now >= record.deadline + PATIENCE
    empty = {
        name
        for name, each in there.items()
        if (each.leaving or each.phase is ReplicaPhase.ENDED) and not heard.running.get(name)
    }
    underway = any(heard.left.get((name, How.UNDERWAY)) for name in record.replicas)
    return not underway and there.keys() == staying | empty


def _counted(record: Record, before: Progress, heard: Heard) -> Progress:
    """Return the counts with what routers say: never fewer than before, since one that restarts begins anew."""
    if not heard.any_of_them:
        return before
    counts = Counter({(each.replica, each.method): each.streams for each in before.moves})
    now: Counter[tuple[str, MigrationMethod]] = Counter()
    for (name, how), streams in heard.left.items():
        if name in record.replicas and how in _METHODS:
            now[name, _METHODS[how]] += streams
    moves = sorted(Move(*key, streams) for key, streams in (counts | now).items() if streams)
    lost = sum(heard.left.get((name, How.LOST), 0) for name in record.replicas)
    return replace(before, moves=tuple(moves), lost=max(before.lost or 0, lost))


def _result(counted: Progress, heard: Heard) -> str:
    if counted.lost is None:
        return f"the replicas are gone; {_unheard(heard)}: what became of their streams is not known"
    by_method = counted.by_method
    words = (
        (MigrationMethod.FINISH, "finished"),
        (MigrationMethod.CARRY, "carried with their KV cache"),
        (MigrationMethod.REPREFILL, "computed again"),
    )
    parts = [f"{by_method[method]} {word}" for method, word in words if by_method[method]]
    lost = [f"{counted.lost} lost"] if counted.lost else []
    said = f"streams: {', '.join([*parts, *lost])}" if parts or lost else "no stream was there"
    return said if heard.all_of_them else f"{said}, as far as is known; {_unheard(heard)}"


def _unheard(heard: Heard) -> str:
    if not heard.routers:
        return "there was no router to ask"
    return f"{heard.silent} of {heard.routers} routers could not be read"


def _whole(moment: datetime) -> datetime:
    # Kubernetes keeps whole seconds.
    return moment.astimezone(UTC).replace(microsecond=0)
