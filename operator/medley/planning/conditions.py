"""The conditions of a service: one function per concern, each with the remedy in its message.

Called by `reconcile` and, for what the cluster refused while acting, by `handlers/acting.py` through `with_refusals`.
A condition keeps its transition time while its status stays; messages never hold a number that ticks, so a pass that
changes nothing writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from medley.core.accelerators import Market
from medley.core.names import Condition, Reason
from medley.core.service import MigrationMode, OperatingMode, WorkloadSource
from medley.planning.fleet import ConditionState, Observed, Replica, ReplicaPhase, Truth
from medley.planning.offerings import Why
from medley.planning.problem import Bound, Infeasible
from medley.planning.proposal import Proposal
from medley.planning.rollout import counted, serves
from medley.planning.throughput import JointUnknown
from medley.planning.traffic import NotMeasured, Traffic

# Of `Replica.reason` (kube/replicas.py makes them).
PULL_FAILED = "ErrImagePull"
UNSCHEDULABLE = "Unschedulable"
_BOUND_REASONS: Mapping[Bound, Reason] = {
    Bound.SIZES: Reason.SLO_UNREACHABLE,
    Bound.CAPS: Reason.CAPACITY_CAPPED,
    Bound.BUDGET: Reason.LIMITS_TOO_TIGHT,
    Bound.SHARED_BUDGET: Reason.BUDGET_EXHAUSTED,
    Bound.REPLICAS: Reason.LIMITS_TOO_TIGHT,
    Bound.ON_DEMAND_FLOOR: Reason.SPOT_NOT_HEDGED,
    Bound.ZONE_LOSS: Reason.SPOT_NOT_HEDGED,
    Bound.SPREAD: Reason.LIMITS_TOO_TIGHT,
    Bound.MIN_REPLICAS: Reason.CAPACITY_CAPPED,
    Bound.PROFILES: Reason.PROFILE_MISSING,
    Bound.CLASSES: Reason.UNKNOWN_CLASS,
    Bound.MODEL_LENGTH: Reason.MODEL_TOO_LONG,
    Bound.GPUS_PER_NODE: Reason.CAPACITY_CAPPED,
    Bound.ZONES: Reason.LIMITS_TOO_TIGHT,
    Bound.SPOT_USE: Reason.LIMITS_TOO_TIGHT,
}
_NAMED_AT_MOST = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """A condition before it has a time."""

    type: Condition
    status: Truth
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """No plan can be made: a person must change something, or the solver failed. What exists stays as it is."""

    type: Condition
    reason: Reason
    message: str


def of_proposal(observed: Observed, proposal: Proposal, now: datetime) -> tuple[ConditionState, ...]:
    """Return all conditions of a service that has a plan."""
    first = (
        _workload(observed, proposal.traffic),
        _profiles(observed, proposal),
        _feasible(proposal),
        _capacity(observed, proposal, now),
        _hedged(proposal),
        _migration(observed),
    )
    return merged(observed, (*first, _ready(observed, first)), now)


def of_refusal(observed: Observed, refusal: Refusal, now: datetime) -> tuple[ConditionState, ...]:
    """Return the conditions of a service that can have no plan; those that cannot be judged keep what they said."""
    said = Verdict(refusal.type, Truth.FALSE, refusal.reason, refusal.message)
    traffic = observed.standing.traffic or NotMeasured("there is no plan")
    first = (_workload(observed, traffic), said) if refusal.type is not Condition.WORKLOAD_OBSERVED else (said,)
    return merged(observed, (*first, _ready(observed, first)), now)


def with_refusals(
    observed: Observed, conditions: tuple[ConditionState, ...], refusals: Iterable[tuple[Reason, str]], now: datetime
) -> tuple[ConditionState, ...]:
    """Return the conditions once the cluster refused actions of this pass, for these reasons."""
    refused = tuple(refusals)
    if not refused:
        return conditions
    reason, message = refused[0]
    verdicts = [Verdict(each.type, each.status, each.reason, each.message) for each in conditions]
    said = Verdict(Condition.CAPACITY_READY, Truth.FALSE, reason, message)
    kept = [each for each in verdicts if each.type not in (Condition.CAPACITY_READY, Condition.READY)]
    return merged(observed, (*kept, said, replace(said, type=Condition.READY)), now)


def merged(observed: Observed, verdicts: Iterable[Verdict], now: datetime) -> tuple[ConditionState, ...]:
    """Return the verdicts as conditions, in the order of `Condition`; the time is kept while the status stays."""
    states = {each.type: each for each in observed.standing.conditions}
    for new in verdicts:
        old = states.get(new.type)
        since = old.since if old is not None and old.status == new.status else now
        states[new.type] = ConditionState(
            new.type, new.status, new.reason, new.message, since, observed.service.generation
        )
    return tuple(states[each] for each in Condition if each in states)


def _workload(observed: Observed, traffic: Traffic | NotMeasured) -> Verdict:
    if observed.service.workload_source is WorkloadSource.FORECAST:
        return Verdict(
            Condition.WORKLOAD_OBSERVED,
            Truth.TRUE,
            Reason.FORECAST,
            "Planned for the forecast of spec.workload, as asked",
        )
    if isinstance(traffic, NotMeasured):
        message = f"Planned for the forecast of spec.workload; traffic is not measured yet: {traffic.why}"
        return Verdict(Condition.WORKLOAD_OBSERVED, Truth.UNKNOWN, Reason.FORECAST, message)
    bursts = ", ".join(f"{value:g} within {length} s" for length, value in traffic.bursts[-1:])
    message = (
        f"Planned for up to {traffic.requests_per_second:.3g} requests/s, of sizes that routers measured up to "
        f"{traffic.measured_at:%Y-%m-%d %H:%M} UTC: {traffic.requests} requests"
        + (f", dispersion {bursts} (1: as by chance)" if bursts else "")
    )
    return Verdict(Condition.WORKLOAD_OBSERVED, Truth.TRUE, Reason.MEASURED, message)


def _profiles(observed: Observed, proposal: Proposal) -> Verdict:
    service, missing = observed.service, _unprofiled(proposal)
    remedy = f"add a PerformanceProfile of {service.model}"
    unreadable = "; ".join(observed.unreadable)
    if not proposal.question.profiles and proposal.infeasible is not None:
        # Nothing is on offer: the same words as PlanFeasible's, which tell missing profiles from those that do not fit.
        message = _joined(proposal.infeasible.message, unreadable)
        return Verdict(Condition.PROFILES_READY, Truth.FALSE, infeasible_reason(proposal.infeasible), message)
    if not proposal.question.profiles:
        message = f"no accelerator class has a profile that fits: {remedy} for one of {', '.join(missing) or 'them'}"
        return Verdict(Condition.PROFILES_READY, Truth.FALSE, Reason.PROFILE_MISSING, _joined(message, unreadable))
    asked = [name for name in missing if name in service.classes]
    if asked:
        message = f"spec.accelerators.classes names {', '.join(asked)} without a profile: {remedy}, or remove the name"
        return Verdict(Condition.PROFILES_READY, Truth.FALSE, Reason.PROFILE_MISSING, _joined(message, unreadable))
    used = ", ".join(profile.name for profile in proposal.question.profiles)
    without = f"classes without a profile of {service.model} are left out: {', '.join(missing)}" if missing else ""
    message = _joined(
        f"Planned with {used}", without, _extrapolations(proposal), _joint(proposal), _constant(proposal), unreadable
    )
    return Verdict(Condition.PROFILES_READY, Truth.TRUE, Reason.PROFILED, message)


def _extrapolations(proposal: Proposal) -> str:
    """Say of which shapes sizes with traffic rest on more than was measured, by the largest of them."""
    demanded = {bucket for bucket, _ in proposal.question.problem.demand.requests_per_second}
    said = []
    for each in proposal.question.sustained:
        doubts = [doubt for bucket, doubt in each.extrapolated if bucket in demanded]
        if doubts:
            trust = f", confidence {each.confidence}" if each.confidence is not None else ""
            said.append(f"{each.throughput.shape}: {doubts[-1]}{trust}")
    return f"beyond what was measured: {'; '.join(said)}; measure these sizes" if said else ""


def _joint(proposal: Proposal) -> str:
    """Say of which shapes it is not known whether TTFT and TPOT hold together as often as promised."""
    said = []
    for each in proposal.question.sustained:
        doubts = [doubt for _, doubt in each.doubts if isinstance(doubt, JointUnknown)]
        if doubts:
            said.append(f"{each.throughput.shape}: {min(doubts, key=lambda doubt: doubt.percentile)}")
    return f"{'; '.join(said)}; measure a higher percentile" if said else ""


def _constant(proposal: Proposal) -> str:
    """Say which shapes are planned to a constant part of their throughput, whatever the bursts and the mix."""
    question = proposal.question
    without = [str(each.shape) for each in question.profiles if each.latency is None]
    if not without:
        return ""
    bursts = f" of dispersion {question.dispersion:g}" if question.dispersion > 1 else ""
    return (
        f"planned at {question.problem.utilisation:.0%} of what was measured, whatever the bursts{bursts} and the mix "
        f"of sizes: {', '.join(without)}; add a latencyModel (medley profile fit)"
    )


def _unprofiled(proposal: Proposal) -> list[str]:
    return sorted({out.accelerator_class for out in proposal.question.out_of_question if out.why is Why.NO_PROFILE})


def _feasible(proposal: Proposal) -> Verdict:
    found = proposal.infeasible
    if found is None:
        plan = f"{proposal.allocation.total_replicas} replicas for {proposal.allocation.usd_per_hour:.2f} USD per hour"
        doubts = "; ".join(proposal.doubts)
        remedy = f"in doubt: {doubts}; loosen spec.slo or leave the class out" if doubts else ""
        return Verdict(Condition.PLAN_FEASIBLE, Truth.TRUE, Reason.PLANNED, _joined(plan, remedy))
    return Verdict(Condition.PLAN_FEASIBLE, Truth.FALSE, infeasible_reason(found), found.message)


def infeasible_reason(found: Infeasible) -> Reason:
    """Return the reason of the first bound that binds."""
    return _BOUND_REASONS[found.bindings[0].bound] if found.bindings else Reason.LIMITS_TOO_TIGHT


def _capacity(observed: Observed, proposal: Proposal, now: datetime) -> Verdict:
    kind = Condition.CAPACITY_READY
    if observed.service.mode is OperatingMode.PLAN:
        return Verdict(kind, Truth.UNKNOWN, Reason.PLAN_ONLY, _plan_only(proposal.spanning))
    places = counted(observed, now)
    ready = sum(map(serves, places))
    total = sum(proposal.wanted.values())
    troubled = [each for each in observed.replicas if each.reason not in ("", UNSCHEDULABLE) and not each.leaving]
    for reason, found in (
        (Reason.IMAGE_NOT_PULLED, [each for each in troubled if each.reason == PULL_FAILED]),
        (Reason.ENGINE_FAILED, [each for each in troubled if each.phase is ReplicaPhase.FAILED]),
        (Reason.CONTAINER_FAILED, troubled),
    ):
        if found:
            return Verdict(kind, Truth.FALSE, reason, f"{_names(found)}: {found[0].message}{_REMEDIES[reason]}")
    short = [each for each in places if each.unschedulable_since is not None]
    if short:
        message = f"{_names(short)} {'wait' if len(short) > 1 else 'waits'} for a node: {short[0].message}"
        return Verdict(kind, Truth.FALSE, Reason.CAPACITY_UNAVAILABLE, message)
    if total == 0:
        return Verdict(kind, Truth.FALSE, Reason.CAPACITY_UNAVAILABLE, "no replica is planned: see PlanFeasible")
    if ready < total:
        waiting = f"{ready} of {total} replicas serve"
        return Verdict(kind, Truth.FALSE, Reason.STARTING, waiting)
    return Verdict(kind, Truth.TRUE, Reason.CAPACITY_THERE, f"{total} of {total} replicas serve")


def _plan_only(spanning: tuple[str, ...]) -> str:
    if spanning:
        return f"spec.mode is Plan, for a plan that cannot be carried out: {'; '.join(spanning)}; Auto makes another"
    return "spec.mode is Plan: set it to Auto to carry the plan out"


_REMEDIES: Mapping[Reason, str] = {
    Reason.IMAGE_NOT_PULLED: "; correct spec.engine.image, or the AcceleratorClass's, "
    "or give spec.engine.imagePullSecrets",
    Reason.CONTAINER_FAILED: "; see its pod's events and logs",
    Reason.ENGINE_FAILED: "; it is tried again every five minutes, and at once when the service changes",
}


def _hedged(proposal: Proposal) -> Verdict:
    spot = sum(count for key, count in proposal.wanted.items() if key.market is Market.SPOT)
    binding = {each.bound for each in proposal.infeasible.bindings} if proposal.infeasible else set()
    if binding & {Bound.ON_DEMAND_FLOOR, Bound.ZONE_LOSS}:
        message = proposal.infeasible.message if proposal.infeasible else ""
        return Verdict(Condition.SPOT_HEDGED, Truth.FALSE, Reason.SPOT_NOT_HEDGED, message)
    if not spot:
        return Verdict(Condition.SPOT_HEDGED, Truth.TRUE, Reason.NO_SPOT, "No replica is on spot")
    policy = proposal.question.problem.spot
    losses = (
        ("a class's spot", policy.survive_class_loss),
        ("a class's spot in one zone", policy.survive_class_zone_loss),
    )
    also = "".join(f", {part:.0%} of {what}" for what, part in losses if part > 0)
    message = (
        f"{spot} replicas are on spot; on-demand floor {policy.on_demand_floor:.0%}, "
        f"{policy.survive_zone_loss:.0%} of the demand survives the loss of a zone's spot{also}"
    )
    return Verdict(Condition.SPOT_HEDGED, Truth.TRUE, Reason.HEDGED, message)


def _migration(observed: Observed) -> Verdict:
    """Say whether streams leave with their KV cache. It gates nothing: without it they leave all the same."""
    kind = Condition.MIGRATION_READY
    wanted = observed.service.migration is not MigrationMode.RESUME
    said = [each for each in observed.replicas if each.carries is not None and not each.leaving]
    without = [each for each in said if not each.carries]
    if wanted and without:
        message = (
            f"Streams of {_names(without)} are resumed from the routers' token logs: their engines do not carry KV "
            "caches, and say why in GET /medley/v1/kv and in their logs"
        )
        return Verdict(kind, Truth.FALSE, Reason.LIVE_MIGRATION_UNAVAILABLE, message)
    if wanted and said:
        return Verdict(kind, Truth.TRUE, Reason.KV_CARRIED, "Streams leave with their KV cache")
    return Verdict(kind, Truth.TRUE, Reason.TOKEN_LOG, "Streams are resumed from the routers' token logs")


def _ready(observed: Observed, first: Iterable[Verdict]) -> Verdict:
    gates = (
        Condition.PROFILES_READY,
        Condition.PLAN_FEASIBLE,
        Condition.CAPACITY_READY,
    )
    by_type = {each.type: each for each in first}
    for gate in gates:
        verdict = by_type.get(gate)
        if verdict is not None and verdict.status is not Truth.TRUE:
            return Verdict(Condition.READY, Truth.FALSE, verdict.reason, verdict.message)
    if not observed.router.ready:
        return Verdict(Condition.READY, Truth.FALSE, Reason.ROUTER_NOT_READY, "no router is ready: see its Deployment")
    return Verdict(Condition.READY, Truth.TRUE, Reason.SERVING, "The promise is kept by what the plan wants")


def _names(replicas: list[Replica]) -> str:
    names = sorted(each.name for each in replicas)
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(names[:_NAMED_AT_MOST]) + more


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
