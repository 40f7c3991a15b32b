"""The status of an LLMService, both ways: what a pass remembers out of it, and what a pass writes into it.

Called by `handlers`. The plan in it is made by `plan_status.py`, which rounds money and shares, so that a solver's last
digits never make a write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from medley.api.base import ConditionEntry
from medley.api.llmservice import LLMService
from medley.api.llmservice_status import LLMServiceStatus, PlanStatus, ReplicaCounts, WorkloadStatus
from medley.api.llmservice_status import Unavailable as UnavailableEntry
from medley.core.accelerators import Market, OfferingKey, Shape
from medley.core.errors import InvalidInputError
from medley.core.names import Condition, Reason
from medley.kube.api import LLM_SERVICE, Api
from medley.kube.plan_status import plan_status
from medley.kube.router_objects import url
from medley.kube.workload_status import days_in, traffic_in, workload_status
from medley.planning.fleet import ConditionState, Standing, Truth, Unavailable
from medley.planning.reconcile import Status

Json = dict[str, Any]

_SHAPE = re.compile(r"(?P<class>.+?)(?:-tp(?P<tp>[0-9]+))?(?:-pp(?P<pp>[0-9]+))?")
_LONGEST_MESSAGE = 32_768


def shape_of(key: str) -> Shape:
    """Return the shape that a key such as l4-tp2-pp2 names; class names never end like that themselves."""
    found = _SHAPE.fullmatch(key)
    if found is None:
        raise InvalidInputError(f"shape {key!r}", "expected <class>[-tpN][-ppN]")
    return Shape(found["class"], int(found["tp"] or 1), int(found["pp"] or 1))


def standing(item: LLMService) -> Standing:
    """Return what the status remembers; entries of another version of medley are passed over."""
    status = item.status
    offerings = status.plan.offerings if status.plan else ()
    known = {each.value for each in Condition}, {each.value for each in Reason}
    return Standing(
        replicas=tuple(
            sorted((OfferingKey(shape_of(each.shape), each.market, each.zone), each.replicas) for each in offerings)
        ),
        unavailable=tuple(
            Unavailable(OfferingKey(shape_of(each.shape), each.market, each.zone), each.until, each.reason)
            for each in status.unavailable
        ),
        conditions=tuple(
            ConditionState(
                Condition(each.type),
                Truth(each.status),
                Reason(each.reason),
                each.message,
                each.last_transition_time,
                each.observed_generation,
            )
            for each in status.conditions
            if each.type in known[0] and each.reason in known[1]
        ),
        traffic=traffic_in(status.workload),
        days=days_in(status.workload),
    )


def status_json(item: LLMService, status: Status, now: datetime) -> Json:
    """Return the status to be written, complete; equal to the live one if nothing changed."""
    old = item.status.plan
    plan = old if status.proposal is None else _dated(plan_status(status.proposal, dict(status.ready_of)), old, now)
    written = LLMServiceStatus(
        observed_generation=item.metadata.generation,
        conditions=tuple(_condition(each) for each in status.conditions),
        replicas=ReplicaCounts(
            desired=status.desired,
            ready=status.ready,
            spot=status.spot,
            summary=f"{status.ready}/{status.desired}",
        ),
        plan=plan,
        workload=_workload(item, status),
        unavailable=tuple(
            UnavailableEntry(
                shape=each.offering.shape.key,
                market=each.offering.market,
                zone=each.offering.zone,
                until=_whole(each.until),
                reason=each.reason,
            )
            for each in status.unavailable
        ),
        url=url(item),
    )
    return _json(written)


def _workload(item: LLMService, status: Status) -> WorkloadStatus | None:
    if status.proposal is None:
        return item.status.workload
    return workload_status(status.proposal.traffic, status.proposal.days)


def changed(live: Mapping[str, Any], desired: Json) -> bool:
    """Say whether the status must be written: it is medley's alone, so it is compared whole."""
    return dict(live) != desired


async def write(api: Api, item: LLMService, status: Json) -> None:
    """Write the status; `ConflictError` if the service is another one of this name by now."""
    meta = {"name": item.metadata.name, "namespace": item.metadata.namespace, "uid": item.metadata.uid}
    body = {"apiVersion": LLM_SERVICE.api_version, "kind": LLM_SERVICE.kind, "metadata": meta, "status": status}
    await api.server_side_apply(LLM_SERVICE, body, item.metadata.namespace, "status")


def _dated(new: PlanStatus, old: PlanStatus | None, now: datetime) -> PlanStatus:
    return new.model_copy(update={"computed_at": _since(new, old, now)})


def _since(new: PlanStatus, old: PlanStatus | None, now: datetime) -> datetime:
    """Return when this plan began: it is the same while it wants the same replicas and routes alike."""
    if old is None or old.computed_at is None or _essence(old) != _essence(new):
        return _whole(now)
    return old.computed_at


def _essence(plan: PlanStatus) -> tuple[Any, ...]:
    return tuple((each.shape, each.market, each.zone, each.replicas) for each in plan.offerings), plan.routing


def _condition(state: ConditionState) -> ConditionEntry:
    return ConditionEntry(
        type=state.type.value,
        status=state.status.value,
        reason=state.reason.value,
        message=state.message[:_LONGEST_MESSAGE],
        last_transition_time=_whole(state.since),
        observed_generation=state.generation,
    )


def _whole(moment: datetime) -> datetime:
    # Kubernetes keeps whole seconds.
    return moment.astimezone(UTC).replace(microsecond=0)


def _json(written: LLMServiceStatus) -> Json:
    status: Json = written.model_dump(by_alias=True, exclude_none=True, mode="json")
    return status


def read_market(text: str) -> Market:
    """Return the market that a label names; `InvalidInputError` for another word."""
    try:
        return Market(text)
    except ValueError as error:
        raise InvalidInputError("market", f"expected one of {', '.join(Market)}, got {text!r}") from error
