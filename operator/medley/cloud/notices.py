"""Notices: what Nodes, NodeClaims, Events and Pods say about capacity that goes away; one parser per signal.

Operator (`handlers/observing.py`) and router (its fleet) call this on the raw JSON objects that they see. Nothing here
reads a clock: `now` is an argument, used only where an object does not say when its own notice began.

Deadlines. No object carries the cloud's deadline, so it is the begin of the notice + the cloud's own notice time, by
the prefix of the node's `spec.providerID` (`NOTICE_TIME`). Where the begin is not written down either (Karpenter's
taint has no `timeAdded`), it is the Node's `deletionTimestamp`, else now: a deadline that slides with each pass, so
callers keep the first one they computed for a node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from medley.core import names
from medley.core.notices import Cause, Notice, NoticeSource

Json = Mapping[str, Any]  # an object as the API server writes it

# A kubelet that says NotReady this soon after its Node was made has not been ready before.
BOOT_TIME = timedelta(minutes=2)

# From the begin of a notice to the machine's end. AWS: two minutes; Azure: at least 30 s; Google: 30 s, of which the
# kubelet leaves 15 s to ordinary pods. Others are taken to give what the shortest of the big three give.
NOTICE_TIME: Mapping[str, timedelta] = {
    "aws": timedelta(seconds=120),
    "azure": timedelta(seconds=30),
    "gce": timedelta(seconds=15),
}
DEFAULT_NOTICE_TIME = timedelta(seconds=30)
# A voluntary disruption (drift, consolidation, a person) waits for the pods' own grace period.
VOLUNTARY_NOTICE_TIME = timedelta(seconds=600)

ANNOTATION_TERMINATION = "karpenter.sh/nodeclaim-termination-timestamp"
LABEL_NTH_ACTION_TIME = f"{names.TAINT_NTH_PREFIX}action-time"
REASON_SPOT_INTERRUPTED = "SpotInterrupted"
# The Node Termination Handler's taints, by the part after its prefix, and why the node goes.
NTH_CAUSES: Mapping[str, Cause] = {
    "spot-itn": Cause.RECLAIMED,
    "rebalance-recommendation": Cause.VOLUNTARY,
    "scheduled-maintenance": Cause.VOLUNTARY,
    "asg-lifecycle-termination": Cause.VOLUNTARY,
}
# Reasons of the NodeClaim condition DisruptionReason and of DisruptionTarget on Pods.
VOLUNTARY_DISRUPTIONS = frozenset({"Drifted", "Empty", "Underutilized", "Expired"})
POD_CAUSES: Mapping[str, Cause] = {
    "EvictionByEvictionAPI": Cause.UNKNOWN,  # a person's drain and Karpenter's look alike
    "PreemptionByScheduler": Cause.VOLUNTARY,
    "DeletionByTaintManager": Cause.FAILED,
    "DeletionByPodGC": Cause.FAILED,
    "TerminationByKubelet": Cause.FAILED,
}


def notices_of_node(node: Json, now: datetime, *, heard: bool = False) -> Notice | None:
    """Return the most urgent notice that a Node shows, or None if it stays.

    NotReady says only that the API server did not hear the kubelet, and after an outage of its own it says so of every
    node. `heard`: something on the node answers, so its kubelet's silence means nothing.
    """
    parsers = _NODE_PARSERS if heard else (*_NODE_PARSERS, _by_readiness)
    found = [notice for parse in parsers if (notice := parse(node, now)) is not None]
    return min(found, key=lambda notice: notice.deadline, default=None)


def is_silent(node: Json, now: datetime) -> bool:
    """Say whether the API server has not heard the node's kubelet lately."""
    return _by_readiness(node, now) is not None


def notice_of_absent_node(name: str, now: datetime) -> Notice:
    """Return the notice for a node that a pod is bound to and that is no longer there."""
    return Notice(name, now, NoticeSource.NODE_GONE, Cause.UNKNOWN)


def notice_of_pod(pod: Json, now: datetime) -> Notice | None:  # noqa: ARG001  # one signature for all parsers
    """Return the notice that a Pod being deleted gives about itself, or None.

    Kubernetes writes the end of the grace period, not its begin, into `deletionTimestamp`.
    """
    deadline = _time(_meta(pod).get("deletionTimestamp"))
    if deadline is None:
        return None
    reason = _condition(pod, "DisruptionTarget").get("reason", "")
    return Notice(
        node=pod.get("spec", {}).get("nodeName", ""),
        deadline=deadline,
        source=NoticeSource.POD_DELETION,
        cause=POD_CAUSES.get(reason, Cause.VOLUNTARY),
        pod=_meta(pod).get("name", ""),
    )


def notice_of_node_claim(claim: Json, now: datetime) -> Notice | None:  # noqa: ARG001
    """Return the notice of a Karpenter NodeClaim that is being deleted, or None; it may not have a node yet."""
    deleted = _time(_meta(claim).get("deletionTimestamp"))
    node = claim.get("status", {}).get("nodeName", "")
    if deleted is None or not node:
        return None
    cause = _claim_cause(claim)
    market = _meta(claim).get("labels", {}).get(names.LABEL_CAPACITY_TYPE)
    deadline = _time(_meta(claim).get("annotations", {}).get(ANNOTATION_TERMINATION)) or deleted + _notice_time(
        claim.get("status", {}).get("providerID", ""), market
    )
    return Notice(node, deadline, NoticeSource.KARPENTER_NODECLAIM, cause)


def notice_of_event(event: Json, claims: Iterable[Json], now: datetime) -> Notice | None:
    """Return the notice of an Event `SpotInterrupted` (core/v1 or events.k8s.io/v1), or None.

    Karpenter posts the Event on the Node and on its NodeClaim; `claims` are the NodeClaims that exist, which say which
    node and which cloud it is about.
    """
    if event.get("reason") != REASON_SPOT_INTERRUPTED:
        return None
    about = event.get("involvedObject") or event.get("regarding") or {}
    kind, name = about.get("kind"), about.get("name", "")
    statuses = {_name(claim): claim.get("status") or {} for claim in claims}
    if kind == "NodeClaim":
        status = statuses.get(name, {})
        node = status.get("nodeName", "")
    else:
        status = next((each for each in statuses.values() if each.get("nodeName") == name), {})
        node = name
    if not node:
        return None
    begin = next(
        (at for key in ("lastTimestamp", "deprecatedLastTimestamp", "eventTime") if (at := _time(event.get(key)))),
        _time(_meta(event).get("creationTimestamp")) or now,
    )
    deadline = begin + _reclaim_time(status.get("providerID", ""))
    return Notice(node, deadline, NoticeSource.KARPENTER_EVENT, Cause.RECLAIMED)


def most_urgent(notices: Iterable[Notice]) -> dict[str, Notice]:
    """Return one notice per node: the earliest deadline, and the cause of whichever knows it was the market.

    Notices about single pods are not about the node and are left out.
    """
    chosen: dict[str, Notice] = {}
    for notice in notices:
        if notice.pod is not None:
            continue
        other = chosen.get(notice.node)
        if other is None:
            chosen[notice.node] = notice
            continue
        first = min(other, notice, key=lambda each: each.deadline)
        cause = Cause.RECLAIMED if Cause.RECLAIMED in (other.cause, notice.cause) else first.cause
        chosen[notice.node] = Notice(first.node, first.deadline, first.source, cause)
    return chosen


def _by_karpenter_taint(node: Json, now: datetime) -> Notice | None:
    taint = _taint(node, lambda key: key == names.TAINT_KARPENTER_DISRUPTED)
    if taint is None:
        return None
    meta = _meta(node)
    begin = _time(taint.get("timeAdded")) or _time(meta.get("deletionTimestamp")) or now
    stated = _time(meta.get("annotations", {}).get(ANNOTATION_TERMINATION))
    deadline = stated or begin + _notice_time(_provider(node), meta.get("labels", {}).get(names.LABEL_CAPACITY_TYPE))
    return Notice(_name(node), deadline, NoticeSource.KARPENTER_TAINT, Cause.UNKNOWN)


def _by_termination_handler(node: Json, now: datetime) -> Notice | None:
    taint = _taint(node, lambda key: key.startswith(names.TAINT_NTH_PREFIX))
    if taint is None:
        return None
    cause = NTH_CAUSES.get(taint["key"].removeprefix(names.TAINT_NTH_PREFIX), Cause.UNKNOWN)
    begin = _time(taint.get("timeAdded")) or _epoch(_meta(node).get("labels", {}).get(LABEL_NTH_ACTION_TIME)) or now
    left = VOLUNTARY_NOTICE_TIME if cause is Cause.VOLUNTARY else _reclaim_time(_provider(node))
    return Notice(_name(node), begin + left, NoticeSource.NODE_TERMINATION_HANDLER, cause)


def _by_out_of_service(node: Json, now: datetime) -> Notice | None:
    taint = _taint(node, lambda key: key == names.TAINT_OUT_OF_SERVICE)
    if taint is None:
        return None
    return Notice(_name(node), _time(taint.get("timeAdded")) or now, NoticeSource.OUT_OF_SERVICE, Cause.FAILED)


def _by_readiness(node: Json, now: datetime) -> Notice | None:
    ready = _condition(node, "Ready")
    # A node that is still booting was never ready: nothing runs there that could be lost.
    if not ready or ready.get("status") == "True" or ready.get("reason") == "NodeStatusNeverUpdated":
        return None
    since = _time(ready.get("lastTransitionTime")) or now
    created = _time(_meta(node).get("creationTimestamp"))
    if ready.get("status") == "False" and created is not None and since - created <= BOOT_TIME:
        return None  # its kubelet speaks, and says that network or runtime are not up yet
    return Notice(_name(node), since, NoticeSource.NODE_NOT_READY, Cause.FAILED)


def _by_deletion(node: Json, now: datetime) -> Notice | None:  # noqa: ARG001
    deleted = _time(_meta(node).get("deletionTimestamp"))
    if deleted is None:
        return None
    left = _notice_time(_provider(node), _meta(node).get("labels", {}).get(names.LABEL_CAPACITY_TYPE))
    return Notice(_name(node), deleted + left, NoticeSource.NODE_GONE, Cause.UNKNOWN)


_NODE_PARSERS: tuple[Callable[[Json, datetime], Notice | None], ...] = (
    _by_karpenter_taint,  # before deletion: of two equal deadlines the one that says more is kept
    _by_termination_handler,
    _by_out_of_service,
    _by_deletion,
)


def _claim_cause(claim: Json) -> Cause:
    reason = _condition(claim, "DisruptionReason").get("reason", "")
    return Cause.VOLUNTARY if reason in VOLUNTARY_DISRUPTIONS else Cause.UNKNOWN


def _notice_time(provider_id: str, market: str | None) -> timedelta:
    # Only spot nodes are reclaimed; anything else that goes, goes because somebody decided so.
    return VOLUNTARY_NOTICE_TIME if market in ("on-demand", "reserved") else _reclaim_time(provider_id)


def _reclaim_time(provider_id: str) -> timedelta:
    return NOTICE_TIME.get(provider_id.split(":", 1)[0], DEFAULT_NOTICE_TIME)


def _meta(thing: Json) -> Json:
    return thing.get("metadata") or {}


def _name(thing: Json) -> str:
    return str(_meta(thing).get("name", ""))


def _provider(node: Json) -> str:
    return str((node.get("spec") or {}).get("providerID", ""))


def _taint(node: Json, matches: Callable[[str], bool]) -> Json | None:
    taints = (node.get("spec") or {}).get("taints") or ()
    return next((taint for taint in taints if matches(taint.get("key", ""))), None)


def _condition(thing: Json, kind: str) -> Json:
    conditions = (thing.get("status") or {}).get("conditions") or ()
    return next((each for each in conditions if each.get("type") == kind), {})


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def _epoch(text: str | None) -> datetime | None:
    return datetime.fromtimestamp(int(text), UTC) if text and text.isdecimal() else None
