"""From the replicas that exist to those that are wanted: which to launch, assign, drain and delete in this pass.

Called by `reconcile.plan`. The order of the rules is the policy:

* Replicas that leave, stall, drain or ended do not count: what they served is launched again at once.
* What serves nobody yet (no node, or still loading) is deleted at once where it is not wanted; what serves is drained
  only while everything wanted serves without it: make before break. It is deleted when it is empty, or while everything
  wanted serves: routers then see its deadline, and move the streams that would not end before it.
* A replica made from an old manifest is replaced one at a time, the new one first. Where no second node is to be had,
  the old one goes first, unless it is the last that serves.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from medley.core.accelerators import Market, OfferingKey
from medley.core.names import shortened
from medley.core.notices import NoticeSource
from medley.planning.actions import Action, Assign, DeleteEngine, DrainEngine, LaunchEngine
from medley.planning.fleet import Observed, Replica, ReplicaPhase

# A kubelet that was silent for a minute may come back; the grace on top keeps a short network fault from costing a pod.
LOST_NODE_GRACE = timedelta(seconds=30)
# An engine that cannot start is tried again after this, in case what it lacked (a model, a Secret) is there now.
FAILED_RETRY = timedelta(minutes=5)
# Of an engine whose place others took, and whose node would last: a stream that ends in this time need not move, and a
# roll-out of many engines does not wait for the longest stream of each. Nodes on spot give less.
MOVING_GRACE = timedelta(minutes=2)

_MARKET_LETTER: Mapping[Market, str] = {Market.SPOT: "s", Market.ON_DEMAND: "d", Market.RESERVED: "r"}
_COUNTED = frozenset({ReplicaPhase.WAITING, ReplicaPhase.STARTING, ReplicaPhase.SERVING, ReplicaPhase.FAILED})
# Of replicas that may go: those whose going costs least first.
_READINESS = {ReplicaPhase.WAITING: 0, ReplicaPhase.FAILED: 1, ReplicaPhase.STARTING: 2, ReplicaPhase.SERVING: 3}


def pod_name(service: str, offering: OfferingKey, number: int) -> str:
    """Return the name of an engine pod: <service>-<shape>-<s|d|r>-<zone>-<n>."""
    zone = offering.zone.replace(".", "-")
    return shortened(f"{service}-{offering.shape.key}-{_MARKET_LETTER[offering.market]}-{zone}-{number}")


def counted(observed: Observed, now: datetime) -> tuple[Replica, ...]:
    """Return the replicas that fill a place of the plan, or will: placed or on their way, and not leaving."""
    return tuple(
        replica
        for replica in observed.replicas
        if replica.phase in _COUNTED
        and not replica.leaving
        and not observed.loses(replica)
        and not (replica.outdated and replica.phase is not ReplicaPhase.SERVING)
        and not _to_be_retried(replica, observed, now)
    )


def fleet_of(replicas: Iterable[Replica]) -> tuple[tuple[OfferingKey, int], ...]:
    """Return how many replicas there are of each offering."""
    return tuple(sorted(Counter(replica.offering for replica in replicas).items()))


def changes(observed: Observed, wanted: Mapping[OfferingKey, int], now: datetime) -> tuple[Action, ...]:
    """Return the actions of this pass, in the order in which they are to be done."""
    places = counted(observed, now)
    victims = _victims(places, wanted)
    launches = _launches(observed, places, wanted)
    return (
        *launches,
        *_assignments(observed),
        *_partings(observed, places, victims, wanted),
        *_burials(observed, places, wanted, now),
    )


def serves(replica: Replica) -> bool:
    """Say whether the replica takes requests now (that it does not leave is `counted`'s to say)."""
    return replica.phase is ReplicaPhase.SERVING


def _launches(
    observed: Observed, places: tuple[Replica, ...], wanted: Mapping[OfferingKey, int]
) -> tuple[LaunchEngine, ...]:
    there = Counter(replica.offering for replica in places)
    missing = {key: count - there[key] for key, count in sorted(wanted.items()) if count > there[key]}
    if not missing and there == Counter(wanted) and all(map(serves, places)):
        # Everything wanted serves: one outdated replica may get its successor.
        oldest = min(
            (replica for replica in places if replica.outdated),
            key=lambda each: (each.created_at, each.name),
            default=None,
        )
        if oldest is not None:
            missing = {oldest.offering: 1}
    taken = {replica.name for replica in observed.replicas}
    launches = []
    for key, count in missing.items():
        for _ in range(count):
            name = _free_name(observed.service.name, key, taken)
            taken.add(name)
            launches.append(LaunchEngine(name, key))
    return tuple(launches)


def _free_name(service: str, offering: OfferingKey, taken: set[str]) -> str:
    number = 0
    while (name := pod_name(service, offering, number)) in taken:
        number += 1
    return name


def _assignments(observed: Observed) -> tuple[Assign, ...]:
    return tuple(
        Assign(replica.name)
        for replica in observed.replicas
        if not replica.assigned
        and not replica.leaving
        and replica.phase in (ReplicaPhase.STARTING, ReplicaPhase.SERVING, ReplicaPhase.STALLED)
    )


def _victims(places: tuple[Replica, ...], wanted: Mapping[OfferingKey, int]) -> tuple[Replica, ...]:
    """Return the replicas that are more than wanted: outdated ones first, then those that serve least."""
    by_offering: defaultdict[OfferingKey, list[Replica]] = defaultdict(list)
    for replica in places:
        by_offering[replica.offering].append(replica)
    victims: list[Replica] = []
    for key, replicas in sorted(by_offering.items()):
        ranked = sorted(replicas, key=lambda each: (not each.outdated, _READINESS[each.phase], each.running, each.name))
        victims += ranked[: max(len(replicas) - wanted.get(key, 0), 0)]
    return tuple(victims)


def _partings(
    observed: Observed, places: tuple[Replica, ...], victims: tuple[Replica, ...], wanted: Mapping[OfferingKey, int]
) -> tuple[Action, ...]:
    remaining = Counter(replica.offering for replica in places if serves(replica) and replica not in victims)
    enough = all(remaining[key] >= count for key, count in wanted.items())
    actions: list[Action] = []
    for replica in victims:
        if not serves(replica):
            actions.append(DeleteEngine(replica.name, replica.uid, "not wanted any more"))
        elif enough:
            why = "its manifest changed" if replica.outdated else "the plan has no place for it"
            actions.append(DrainEngine(replica.name, why))
    if not any(isinstance(action, DrainEngine) for action in actions):
        actions += _yielding(observed, places, victims)
    return tuple(actions)


def _yielding(observed: Observed, places: tuple[Replica, ...], victims: tuple[Replica, ...]) -> tuple[DrainEngine, ...]:
    """Let one outdated replica go before its successor serves, where no node is to be had for both."""
    draining = any(replica.phase is ReplicaPhase.DRAINING and not replica.leaving for replica in observed.replicas)
    if draining or sum(map(serves, places)) < 2:  # noqa: PLR2004  # the last one keeps serving
        return ()
    stuck = {replica.offering for replica in places if replica.unschedulable_since is not None}
    unavailable = {each.offering for each in observed.standing.unavailable} & stuck
    return tuple(
        DrainEngine(replica.name, "its manifest changed and there is no node for its successor beside it")
        for replica in victims
        if replica.outdated and serves(replica) and replica.offering in unavailable
    )[:1]


def _burials(
    observed: Observed, places: tuple[Replica, ...], wanted: Mapping[OfferingKey, int], now: datetime
) -> tuple[DeleteEngine, ...]:
    """Delete what is over, what is empty and what no kubelet will ever confirm."""
    lost = _lost_nodes(observed, now)
    serving = Counter(replica.offering for replica in places if serves(replica))
    replaced = all(serving[key] >= count for key, count in wanted.items())
    burials = []
    for replica in observed.replicas:
        why = _why_buried(replica, observed, now, replaced=replaced)
        if replica.node in lost and observed.loses(replica):
            burials.append(DeleteEngine(replica.name, replica.uid, "its node is gone", force=True))
        elif why and not replica.leaving:
            burials.append(DeleteEngine(replica.name, replica.uid, why, grace=_grace(replica)))
    return tuple(burials)


def _grace(replica: Replica) -> timedelta | None:
    moves = replica.phase is ReplicaPhase.DRAINING and replica.running > 0
    return MOVING_GRACE if moves and replica.offering.market is not Market.SPOT else None


def _why_buried(replica: Replica, observed: Observed, now: datetime, *, replaced: bool) -> str:
    match replica.phase:
        case ReplicaPhase.ENDED:
            return "it ended"
        case ReplicaPhase.DRAINING if replica.running == 0 or replaced:
            return "others took its place, and its streams end or move" if replica.running else "it is drained"
        case ReplicaPhase.STALLED if replaced:
            return "it makes no tokens and others took its place"
        case ReplicaPhase.FAILED if replica.outdated or _to_be_retried(replica, observed, now):
            return "it could not start and is tried again"
        case ReplicaPhase.WAITING | ReplicaPhase.STARTING if replica.outdated:
            return "its manifest changed before it served"
        case _:
            return ""


def _to_be_retried(replica: Replica, observed: Observed, now: datetime) -> bool:
    """Say whether a failed replica is tried again: at once where its like serves elsewhere, else after a while."""
    if replica.phase is not ReplicaPhase.FAILED:
        return False
    works = any(
        serves(other) and not other.outdated and other.offering.shape == replica.offering.shape
        for other in observed.replicas
    )
    return works or now - replica.created_at >= FAILED_RETRY


def _lost_nodes(observed: Observed, now: datetime) -> frozenset[str]:
    return frozenset(
        notice.node
        for notice in observed.going.values()
        if (notice.source in (NoticeSource.NODE_GONE, NoticeSource.OUT_OF_SERVICE) and notice.deadline <= now)
        or (notice.source is NoticeSource.NODE_NOT_READY and notice.deadline + LOST_NODE_GRACE <= now)
    )
