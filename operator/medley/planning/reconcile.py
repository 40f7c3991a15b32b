"""One pass over one service: from what is observed to what is done, said and written. The page to read first.

    observe (kube/observe.py)  ->  plan (here, pure)  ->  act (handlers/acting.py)

`plan` computes from what is, never from what changed, and remembers only what the service's status says; so a pass that
died at any line is healed by the next. In order:

1. A service that is being deleted is taken apart: routers, engines, the rest, and then the finalizer.
2. What no plan can be made from (an unknown class or Budget) is refused: a condition, and nothing is changed.
3. `proposal.propose` says what should exist; `rollout.changes` gets there from the replicas that exist.
4. `conditions` say what a person should know; `Event`s are sent for conditions whose reason changed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta

from medley.core.accelerators import AcceleratorClass, KarpenterNodes, OfferingKey
from medley.core.errors import InvalidInputError, SolverError, UnknownBudgetError, UnknownClassError
from medley.core.names import Condition, Reason
from medley.core.service import OperatingMode
from medley.planning import conditions, rollout
from medley.planning.actions import (
    Action,
    Assign,
    DeleteBudgets,
    DeleteEngine,
    DeleteNodePool,
    DeleteRouter,
    DeleteSecrets,
    EnsureBudgets,
    EnsureFinalizer,
    EnsureNodePool,
    EnsureRouter,
    EnsureSecrets,
    LaunchEngine,
    ReleaseFinalizer,
)
from medley.planning.conditions import Refusal
from medley.planning.fleet import ConditionState, Observed, PoolKey, Truth, Unavailable
from medley.planning.proposal import UNSCHEDULABLE_LIMIT, Proposal, propose
from medley.planning.rollout import counted, serves

RESYNC_UNREADY = timedelta(seconds=10)
RESYNC_READY = timedelta(seconds=60)
# Between the steps of taking a service apart, where no watch says that one is over.
RESYNC_FAREWELL = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Event:
    """Something to tell a person; `warning`: there is something to do."""

    reason: Reason
    message: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """What the status of the service says after this pass; `kube/status.py` writes it down.

    `proposal` None: no plan can be made, and the plan in the status stays.
    """

    conditions: tuple[ConditionState, ...]
    desired: int
    ready: int
    spot: int
    ready_of: tuple[tuple[OfferingKey, int], ...]
    unavailable: tuple[Unavailable, ...]
    proposal: Proposal | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What one pass does, says and writes, and when to look again; `status` None: leave it as it is."""

    actions: tuple[Action, ...]
    status: Status | None
    events: tuple[Event, ...]
    requeue_after: timedelta | None  # None: something else will call


def plan(observed: Observed, now: datetime) -> Plan:
    """Decide one pass over one service."""
    if observed.deleting:
        return _farewell(observed)
    match _decided(observed, now):
        case Refusal() as refusal:
            return _refused(observed, refusal, now)
        case proposal:
            return _carried_out(observed, proposal, now)


def _decided(observed: Observed, now: datetime) -> Proposal | Refusal:
    try:
        return propose(observed, now)
    except UnknownClassError as error:
        return Refusal(Condition.PLAN_FEASIBLE, Reason.UNKNOWN_CLASS, str(error))
    except UnknownBudgetError as error:
        return Refusal(Condition.PLAN_FEASIBLE, Reason.UNKNOWN_BUDGET, str(error))
    except InvalidInputError as error:
        return Refusal(Condition.PLAN_FEASIBLE, Reason.INVALID_SPEC, str(error))
    except SolverError as error:
        return Refusal(Condition.PLAN_FEASIBLE, Reason.SOLVER_FAILED, str(error))


def _refused(observed: Observed, refusal: Refusal, now: datetime) -> Plan:
    said = conditions.of_refusal(observed, refusal, now)
    status = _status(observed, said, sum(count for _, count in observed.standing.replicas), None, now)
    return Plan(_kept_going(observed, now), status, _events(observed, said, ()), RESYNC_READY)


def _kept_going(observed: Observed, now: datetime) -> tuple[Action, ...]:
    """Return what keeps serving what serves: certificates that do not end, assignments for supervisors that restarted.

    It changes nothing that a person would see.
    """
    assignments = tuple(action for action in rollout.changes(observed, {}, now) if isinstance(action, Assign))
    serving = bool(observed.replicas) or observed.router.exists
    return (EnsureSecrets(), *assignments) if serving else assignments


def _carried_out(observed: Observed, proposal: Proposal, now: datetime) -> Plan:
    said = conditions.of_proposal(observed, proposal, now)
    desired = sum(proposal.wanted.values())
    status = _status(observed, said, desired, proposal, now)
    if observed.service.mode is OperatingMode.PLAN:
        return Plan(_kept_going(observed, now), status, _events(observed, said, ()), RESYNC_READY)
    actions: tuple[Action, ...] = ()
    if not observed.finalizer:
        actions += (EnsureFinalizer(),)
    replicas = rollout.changes(observed, proposal.wanted, now)
    if desired or observed.replicas or observed.router.exists:
        pools = sorted({_pool(key) for key, count in proposal.wanted.items() if count})
        made = {each.name for each in observed.classes if _made_by_karpenter(each)}
        actions += (
            EnsureSecrets(),
            *(EnsureNodePool(pool) for pool in pools if pool.accelerator_class in made),
            EnsureRouter(),
            # One engine may be evicted at a time, and the last one only once another serves.
            EnsureBudgets(max(desired - 1, min(desired, 1))),
        )
    actions += replicas
    return Plan(actions, status, _events(observed, said, replicas), _next_pass(observed, said, now))


def _status(
    observed: Observed, said: tuple[ConditionState, ...], desired: int, proposal: Proposal | None, now: datetime
) -> Status:
    serving = [replica for replica in counted(observed, now) if serves(replica)]
    return Status(
        conditions=said,
        desired=desired,
        ready=len(serving),
        spot=sum(replica.offering.market == "spot" for replica in serving),
        ready_of=tuple(sorted(Counter(replica.offering for replica in serving).items())),
        unavailable=observed.standing.unavailable if proposal is None else proposal.unavailable,
        proposal=proposal,
    )


def _farewell(observed: Observed) -> Plan:
    """Take apart what was made, in the order that hurts least: clients first lose the door, then the engines."""
    if not observed.finalizer:
        return Plan((), None, (), None)
    if observed.router.exists or observed.router.pods:
        return Plan((DeleteRouter(),), None, (), RESYNC_FAREWELL)
    if observed.replicas:
        gone = observed.going
        deletions = tuple(
            DeleteEngine(replica.name, replica.uid, "the service is deleted", force=replica.node in gone)
            for replica in observed.replicas
            if not replica.leaving or replica.node in gone
        )
        return Plan(deletions, None, (), RESYNC_FAREWELL)
    unused = sorted(observed.pools - observed.pools_of_others)
    return Plan(
        # Again, since the routers' objects besides the Deployment may be left from a pass that died.
        (DeleteRouter(), DeleteBudgets(), DeleteSecrets(), *map(DeleteNodePool, unused), ReleaseFinalizer()),
        None,
        (),
        RESYNC_FAREWELL,
    )


def _events(observed: Observed, said: tuple[ConditionState, ...], actions: tuple[Action, ...]) -> tuple[Event, ...]:
    """Return one Event per condition whose status or reason changed, and one per launch or departure."""
    old = {each.type: (each.status, each.reason) for each in observed.standing.conditions}
    changed = [each for each in said if old.get(each.type) != (each.status, each.reason)]
    # Ready repeats what another condition says.
    told = {each.reason for each in changed if each.type is not Condition.READY}
    events = [
        Event(
            each.reason,
            f"{each.type}: {each.message}",
            warning=each.status is Truth.FALSE and each.reason is not Reason.STARTING,
        )
        for each in changed
        if each.type is not Condition.READY or each.reason not in told
    ]
    events += [Event(Reason.NOTICE, _about(observed, node), warning=True) for node in sorted(_hit(observed))]
    for action in actions:
        match action:
            case LaunchEngine(name, offering):
                events.append(Event(Reason.LAUNCHING, f"Launching {name} on {offering}"))
            case DeleteEngine(name, _, why):
                events.append(Event(Reason.REPLACING, f"Deleting {name}: {why}"))
            case _:
                pass  # drains show as deletions; assignments are no news
    return tuple(events)


def _hit(observed: Observed) -> frozenset[str]:
    return frozenset(each.node for each in observed.replicas if not each.leaving and observed.loses(each))


def _about(observed: Observed, node: str) -> str:
    notice = observed.going[node]
    names = ", ".join(sorted(replica.name for replica in observed.replicas if replica.node == node))
    return f"Node {node} goes away ({notice.cause}, by {notice.source}): {names} is replaced"


def _next_pass(observed: Observed, said: tuple[ConditionState, ...], now: datetime) -> timedelta:
    ready = next((each.status for each in said if each.type is Condition.READY), None)
    settled = ready is Truth.TRUE and not any(replica.leaving or not serves(replica) for replica in observed.replicas)
    limits = [each.until - now for each in observed.standing.unavailable] + [
        replica.unschedulable_since + UNSCHEDULABLE_LIMIT - now
        for replica in observed.replicas
        if replica.unschedulable_since is not None
    ]
    soonest = min((limit for limit in limits if limit > timedelta(0)), default=RESYNC_READY)
    return min(soonest, RESYNC_READY if settled else RESYNC_UNREADY)


def _pool(key: OfferingKey) -> PoolKey:
    return PoolKey(key.shape.accelerator_class, key.market)


def _made_by_karpenter(accelerator_class: AcceleratorClass) -> bool:
    return isinstance(accelerator_class.nodes, KarpenterNodes)
