"""The status of an LLMService, both ways: what a pass remembers out of it, and what a pass writes into it.

Called by `kube/observe.py` and `handlers`. Money and shares are rounded on the way out, so that a solver's last
digits never make a write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from medley.api.base import ConditionEntry
from medley.api.llmservice import LLMService
from medley.api.llmservice_status import (
    Infeasible,
    LLMServiceStatus,
    NotUsed,
    PlannedOffering,
    PlanStatus,
    ReplicaCounts,
    Routing,
    RoutingShare,
)
from medley.api.llmservice_status import Unavailable as UnavailableEntry
from medley.core.accelerators import Market, OfferingKey, Shape
from medley.core.errors import InvalidInputError
from medley.core.names import Condition, Reason
from medley.kube.api import LLM_SERVICE, Api
from medley.kube.router_objects import url
from medley.planning.fleet import ConditionState, Standing, Truth, Unavailable
from medley.planning.proposal import Proposal
from medley.planning.reconcile import Status

Json = dict[str, Any]

_SHAPE = re.compile(r"(?P<class>.+?)(?:-tp(?P<tp>[0-9]+))?(?:-pp(?P<pp>[0-9]+))?")
_SHARE_DIGITS = 4
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
    )


def status_json(item: LLMService, status: Status, now: datetime) -> Json:
    """Return the status to be written, complete; equal to the live one if nothing changed."""
    old = item.status.plan
    plan = old if status.proposal is None else _plan(status.proposal, dict(status.ready_of), old, now)
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


def changed(live: Mapping[str, Any], desired: Json) -> bool:
    """Say whether the status must be written: it is medley's alone, so it is compared whole."""
    return dict(live) != desired


async def write(api: Api, item: LLMService, status: Json) -> None:
    """Write the status; `ConflictError` if the service is another one of this name by now."""
    meta = {"name": item.metadata.name, "namespace": item.metadata.namespace, "uid": item.metadata.uid}
    body = {"apiVersion": LLM_SERVICE.api_version, "kind": LLM_SERVICE.kind, "metadata": meta, "status": status}
    await api.server_side_apply(LLM_SERVICE, body, item.metadata.namespace, "status")


def _plan(proposal: Proposal, ready: Mapping[OfferingKey, int], old: PlanStatus | None, now: datetime) -> PlanStatus:
    allocation, grid = proposal.allocation, proposal.question.problem.demand.grid
    prices = proposal.usd_per_replica_hour
    reference = proposal.on_demand_usd_per_hour
    new = PlanStatus(
        offerings=tuple(
            PlannedOffering(
                shape=key.shape.key,
                market=key.market,
                zone=key.zone,
                replicas=count,
                ready=ready.get(key, 0),
                usd_per_hour=_money(prices[key] * count) if key in prices else "",
            )
            for key, count in sorted(proposal.wanted.items())
        ),
        routing=Routing(
            input_edges=grid.input_edges,
            output_edges=grid.output_edges,
            shares=tuple(
                RoutingShare(
                    input=each.bucket.input,
                    output=each.bucket.output,
                    shape=each.shape.key,
                    share=round(each.share, _SHARE_DIGITS),
                )
                for each in allocation.shares
                if round(each.share, _SHARE_DIGITS) > 0
            ),
        ),
        usd_per_hour=_money(allocation.usd_per_hour),
        on_demand_usd_per_hour="" if reference is None else _money(reference),
        saved_percent=_saved(allocation.usd_per_hour, reference),
        gap=f"{allocation.gap:.2%}",
        not_used=tuple(
            NotUsed(accelerator_class=each.accelerator_class, market=each.market, reason=each.message)
            for each in proposal.not_used
            if each.zone is None
        ),
        infeasible=_infeasible(proposal),
    )
    return new.model_copy(update={"computed_at": _since(new, old, now)})


def _since(new: PlanStatus, old: PlanStatus | None, now: datetime) -> datetime:
    """Return when this plan began: it is the same while it wants the same replicas and routes alike."""
    if old is None or old.computed_at is None or _essence(old) != _essence(new):
        return _whole(now)
    return old.computed_at


def _essence(plan: PlanStatus) -> tuple[Any, ...]:
    return tuple((each.shape, each.market, each.zone, each.replicas) for each in plan.offerings), plan.routing


def _saved(cost: float, reference: float | None) -> str:
    return "" if not reference else f"{round(100 * (1 - cost / reference))}%"


def _infeasible(proposal: Proposal) -> Infeasible | None:
    found = proposal.infeasible
    if found is None:
        return None
    return Infeasible(
        unmet_requests_per_second=f"{found.unmet_requests_per_second:.3g}",
        binding=found.bindings[0].bound.value if found.bindings else "",
        remedy="; ".join(each.message for each in found.bindings),
    )


def _condition(state: ConditionState) -> ConditionEntry:
    return ConditionEntry(
        type=state.type.value,
        status=state.status.value,
        reason=state.reason.value,
        message=state.message[:_LONGEST_MESSAGE],
        last_transition_time=_whole(state.since),
        observed_generation=state.generation,
    )


def _money(usd: float) -> str:
    return f"{usd:.2f}"


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
