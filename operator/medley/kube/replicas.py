"""From an engine pod and its supervisor's report to a `Replica`; called by `handlers/observing.py`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from medley.core import names
from medley.core.accelerators import OfferingKey
from medley.kube.engine_pod import GENERATION
from medley.kube.readiness import probed_ready
from medley.kube.status import read_market, shape_of
from medley.planning.conditions import PULL_FAILED, UNSCHEDULABLE
from medley.planning.fleet import Replica, ReplicaPhase
from medley.wire.assignment import Capability, EnginePhase, EngineReport

Json = Mapping[str, Any]

_PULL_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_BLOCKED_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
# What the supervisor says, where the pod is ready to serve and where it is not.
_PHASES: Mapping[EnginePhase, ReplicaPhase] = {
    EnginePhase.UNASSIGNED: ReplicaPhase.STARTING,
    EnginePhase.STARTING: ReplicaPhase.STARTING,
    EnginePhase.SERVING: ReplicaPhase.SERVING,
    EnginePhase.STALLED: ReplicaPhase.STALLED,
    EnginePhase.DRAINING: ReplicaPhase.DRAINING,
    EnginePhase.STOPPED: ReplicaPhase.DRAINING,
    EnginePhase.FAILED: ReplicaPhase.FAILED,
}


def offering_of(pod: Json) -> OfferingKey:
    """Return the offering that a pod's labels name."""
    labels = pod["metadata"]["labels"]
    return OfferingKey(
        shape_of(labels[names.LABEL_SHAPE]), read_market(labels[names.LABEL_MARKET]), labels[names.LABEL_ZONE]
    )


def address(pod: Json) -> str | None:
    """Return where the pod's supervisor is reached; None while it cannot be."""
    status = pod.get("status") or {}
    running = status.get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")
    return status.get("podIP") if running else None


def replica(
    pod: Json, report: EngineReport | None, *, template: str | None, node_is_coming: bool, told: str = ""
) -> Replica:
    """Return the replica that a pod is.

    `template`: the hash that a new pod of its offering would have (None: cannot be said, so it is not outdated).
    `node_is_coming`: a machine for it is being booted, so that it only waits and is not short of capacity.
    `told`: what the cluster's Events say about why it waits.
    """
    meta, status = pod["metadata"], pod.get("status") or {}
    node = (pod.get("spec") or {}).get("nodeName", "")
    phase = _phase(pod, report, node)
    reason, message = _trouble(pod, report, phase)
    since, scheduler_says = _unschedulable(status)
    waits = phase is ReplicaPhase.WAITING and since is not None and not node_is_coming
    if waits and not reason:
        reason, message = UNSCHEDULABLE, told or scheduler_says
    return Replica(
        name=meta["name"],
        uid=meta["uid"],
        offering=offering_of(pod),
        phase=phase,
        created_at=_time(meta["creationTimestamp"]),
        node=node,
        outdated=template is not None and meta["labels"].get(names.LABEL_TEMPLATE_HASH) != template,
        leaving="deletionTimestamp" in meta,
        assigned=report is None or report.generation >= GENERATION,
        carries=Capability.CARRY_KV in report.capabilities if report and phase is ReplicaPhase.SERVING else None,
        running=report.running + report.waiting if report else 0,
        unschedulable_since=since if waits else None,
        reason=reason,
        message=message,
    )


def _phase(pod: Json, report: EngineReport | None, node: str) -> ReplicaPhase:
    status = pod.get("status") or {}
    if status.get("phase") in ("Succeeded", "Failed"):
        return ReplicaPhase.ENDED
    if not node:
        return ReplicaPhase.WAITING
    ready = probed_ready(pod)
    if report is None:
        # Its supervisor does not answer us; routers go by the pod's readiness, and so do we.
        return ReplicaPhase.SERVING if ready else ReplicaPhase.STARTING
    phase = _PHASES[report.phase]
    return ReplicaPhase.STARTING if phase is ReplicaPhase.SERVING and not ready else phase


def _trouble(pod: Json, report: EngineReport | None, phase: ReplicaPhase) -> tuple[str, str]:
    """Return a reason and a message for what keeps a replica from serving; both empty if nothing does."""
    if phase is ReplicaPhase.FAILED and report is not None:
        return "EngineFailed", report.message or "the engine cannot start"
    for container in _containers(pod):
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason in _PULL_REASONS:
            # The kubelet alternates between two reasons and several messages: one of each, so that status stands still.
            return PULL_FAILED, f"image {container.get('image')} cannot be pulled"
        if reason in _BLOCKED_REASONS:
            return reason, str(waiting.get("message", ""))
        if reason == "CrashLoopBackOff":
            ended = (container.get("lastState") or {}).get("terminated") or {}
            return reason, f"container {container.get('name')} ends with {ended.get('exitCode', 'an error')}"
    return "", ""


def _containers(pod: Json) -> Iterable[Json]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _unschedulable(status: Json) -> tuple[datetime | None, str]:
    for each in status.get("conditions") or ():
        if each["type"] == "PodScheduled" and each["status"] == "False" and each.get("reason") == "Unschedulable":
            return _time(each["lastTransitionTime"]), str(each.get("message", ""))
    return None, ""


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
