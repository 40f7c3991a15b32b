"""The plan of one service before anybody acts: what should exist, what it costs, and what stands in the way.

Called by `reconcile.plan`. It asks the allocator up to four times: for the cheapest plan, for the plan that stands, for
the counterfactual without spot, and, where capacity is short, for the plan had it not been.

Damping: the plan that stands stays while it is feasible and the new one would not pay for the change (`changes.pays`).
Offerings that could not be had are withheld for UNAVAILABLE_FOR: the plan falls back to other zones, then to on-demand.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache

from medley.core.accelerators import AcceleratorClass, OfferingKey
from medley.core.errors import MedleyError, UnknownPriceError
from medley.core.profiles import Profile
from medley.core.service import AllocationMode, Budget, OperatingMode, Service, WorkloadSource
from medley.planning.allocator import allocate, cheapest, on_demand_only
from medley.planning.changes import launch_usd, launches_usd, pays
from medley.planning.commons import priced, spending
from medley.planning.days import Days
from medley.planning.demanded import FORECAST, Demanded, demanded
from medley.planning.explain import NotUsed, explain, nothing_on_offer
from medley.planning.fleet import Neighbour, Observed, ReplicaPhase, Unavailable
from medley.planning.problem import MICRODOLLARS, Allocation, AllocationProblem, Cap, Infeasible
from medley.planning.published import not_used, published
from medley.planning.question import Question, ask, grid_of
from medley.planning.rollout import counted, fleet_of
from medley.planning.sharing import Claim, left_for
from medley.planning.traffic import NotMeasured, Traffic, in_force

UNSCHEDULABLE_LIMIT = timedelta(seconds=60)
UNAVAILABLE_FOR = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Proposal:
    """What should exist, and why."""

    question: Question
    allocation: Allocation  # what to carry out: all that the bounds allow, if the demand cannot be met
    infeasible: Infeasible | None
    wanted: Mapping[OfferingKey, int]  # the allocation, and places kept waiting for capacity; all are on offer
    on_demand_usd_per_hour: float | None  # None: without spot the demand cannot be met
    not_used: tuple[NotUsed, ...]
    unavailable: tuple[Unavailable, ...]
    traffic: Traffic | NotMeasured = FORECAST  # that it is made for
    days: Days | None = None  # to be remembered

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is not shown to hold of the plan, in words: shapes of it that may be fuller than the promise allows."""
        used = {key.shape for key, count in self.wanted.items() if count}
        return tuple(str(each) for each in self.question.doubtful if each.shape in used)

    @property
    def spanning(self) -> tuple[str, ...]:
        """What of the plan no engine runs on so far, in words: its shapes that span several nodes."""
        used = {key.shape for key, count in self.wanted.items() if count}
        return tuple(said for shape, said in self.question.spanning if shape in used)

    @property
    def usd_per_replica_hour(self) -> Mapping[OfferingKey, float]:
        """Price of one replica of each offering."""
        return {offering.key: offering.usd_per_hour for offering in self.question.problem.offerings}

    @property
    def usd_per_hour(self) -> float:
        """Price of all that is wanted."""
        prices = self.usd_per_replica_hour
        return round(math.fsum(prices[key] * count for key, count in self.wanted.items()), MICRODOLLARS)


def propose(observed: Observed, now: datetime) -> Proposal:
    """Return the plan for what is observed; raises InvalidInputError and SolverError."""
    found = demanded(observed, now, lambda traffic: _alone(observed, traffic))
    if isinstance(found.traffic, NotMeasured):
        return replace(_planned(observed, None, now), traffic=found.traffic, days=found.days)
    proposal = _paced(observed, found.traffic, found, now)
    same = found.standing is None or dict(proposal.wanted) == dict(observed.standing.replicas)
    return replace(proposal, days=found.days if same or found.days is None else found.days.changed(now))


def _paced(observed: Observed, options: tuple[Traffic, ...], found: Demanded, now: datetime) -> Proposal:
    """Return the plan for the first of the rates that can be met; for the last where none can."""
    if found.standing is not None and found.enough is None:
        lower = _for(observed, options[0], now, decided=found.foreseen)
        # Where nothing is foreseen, the rate stays with the fleet: a lull that one fleet serves is no reason to write.
        same = dict(lower.wanted) == dict(observed.standing.replicas)
        kept = lower.infeasible is not None or (same and not found.foreseen)
        return _for(observed, found.standing, now) if kept else lower
    if found.enough is not None and not found.foreseen and _serves(observed, found.enough, now):
        return _for(observed, found.enough, now)
    for traffic in options[:-1]:
        proposal = _for(observed, traffic, now)
        if proposal.infeasible is None:
            return proposal
    return _for(observed, options[-1], now)


def _alone(observed: Observed, traffic: Traffic) -> AllocationProblem:
    """Return what is asked for some traffic, whatever exists, is short for now or is wanted by others."""
    return _asked(observed.service, observed.classes, observed.profiles, traffic, (), (), observed.budgets).problem


def _serves(observed: Observed, traffic: Traffic, now: datetime) -> bool:
    """Say whether the plan in force would serve some traffic too."""
    question = _question(observed, traffic, unavailable_offerings(observed, now), now)
    return _as_it_stands(question.problem, dict(observed.standing.replicas)) is not None


def _for(observed: Observed, traffic: Traffic, now: datetime, *, decided: bool = False) -> Proposal:
    return replace(_planned(observed, traffic, now, decided=decided), traffic=traffic)


def _planned(observed: Observed, traffic: Traffic | None, now: datetime, *, decided: bool = False) -> Proposal:
    """Return the plan for some traffic; `decided`: the plan that stands is left for any that is cheaper."""
    unavailable = unavailable_offerings(observed, now)
    question = _question(observed, traffic, unavailable, now)
    if observed.service.allocation is AllocationMode.MELANGE:
        return _as_published(question, unavailable)
    found = _answered(question, observed.service.model)
    if isinstance(found, Allocation):
        chosen = _damped(found, question.problem, observed, decided=decided)
        return _proposal(question, chosen, None, dict(chosen.replicas), unavailable)
    wanted = dict(found.best.replicas)
    if unavailable and isinstance(_allocated(_question(observed, traffic, (), now).problem), Allocation):
        # Only capacity is missing: pods that wait for it are how the cluster learns that it is wanted.
        on_offer = {offering.key for offering in question.problem.offerings}
        short = {each.offering for each in unavailable} & on_offer
        waiting = Counter(
            replica.offering
            for replica in counted(observed, now)
            if replica.phase is ReplicaPhase.WAITING and replica.offering in short
        )
        for key, count in waiting.items():
            wanted[key] = wanted.get(key, 0) + count
    return _proposal(question, found.best, found, wanted, unavailable)


def _as_published(question: Question, unavailable: tuple[Unavailable, ...]) -> Proposal:
    found, without_spot = published(question.problem), published(on_demand_only(question.problem))
    plan = found if isinstance(found, Allocation) else found.best
    return Proposal(
        question=question,
        allocation=plan,
        infeasible=None if isinstance(found, Allocation) else found,
        wanted=dict(plan.replicas),
        on_demand_usd_per_hour=without_spot.usd_per_hour if isinstance(without_spot, Allocation) else None,
        not_used=not_used(question, found),
        unavailable=unavailable,
    )


def unavailable_offerings(observed: Observed, now: datetime) -> tuple[Unavailable, ...]:
    """Return what was remembered and is not over, and offerings for which a replica has waited too long."""
    remembered = {each.offering: each for each in observed.standing.unavailable if each.until > now}
    for replica in observed.replicas:
        since = replica.unschedulable_since
        if (
            replica.phase is ReplicaPhase.WAITING
            and not replica.leaving
            and since is not None
            and since + UNSCHEDULABLE_LIMIT <= now
            and replica.offering not in remembered
        ):
            reason = replica.message or replica.reason or "no node came"
            remembered[replica.offering] = Unavailable(replica.offering, now + UNAVAILABLE_FOR, reason)
    return tuple(remembered[key] for key in sorted(remembered))


def _question(
    observed: Observed, traffic: Traffic | None, unavailable: tuple[Unavailable, ...], now: datetime
) -> Question:
    there = counted(observed, now)
    placed = Counter(replica.offering for replica in there if replica.node)
    service = observed.service
    question = _asked(
        service,
        observed.classes,
        observed.profiles,
        traffic,
        fleet_of(there),
        tuple((each.offering, placed[each.offering], each.reason) for each in unavailable),
        observed.budgets,
    )
    published_alone = service.allocation is AllocationMode.MELANGE
    if published_alone or not observed.neighbours or not question.problem.offerings:
        return question
    drawn = next((cap for cap in question.problem.caps if cap.drawn), None)
    held = tuple(sorted(placed.items()))
    own = Claim(f"{service.namespace}/{service.name}", question.problem, held, service.priority, drawn)
    others = tuple(_claim(each, observed, now) for each in observed.neighbours)
    return replace(question, problem=left_for(own, others, _feasible))


def _feasible(problem: AllocationProblem) -> bool:
    return _cheapest(problem) is not None


def _claim(neighbour: Neighbour, observed: Observed, now: datetime) -> Claim:
    """Return what a neighbour asks for, by the same code that its own pass runs; nothing if it cannot be planned."""
    service, drawn = neighbour.service, _drawn(neighbour, observed)
    if service is None or (service.mode is OperatingMode.PLAN and not neighbour.carried_out):
        return Claim(neighbour.name, None, neighbour.held, drawn=drawn)
    held = dict(neighbour.held)
    short = tuple(each for each in neighbour.unavailable if each.until > now)
    observes = service.workload_source is WorkloadSource.OBSERVED
    try:
        question = _asked(
            service,
            observed.classes,
            observed.profiles,
            in_force(neighbour.traffic, NotMeasured("its own"), grid_of(service)) if observes else None,
            neighbour.held,
            tuple((each.offering, held.get(each.offering, 0), each.reason) for each in short),
            observed.budgets,
        )
    except MedleyError:
        return Claim(neighbour.name, None, neighbour.held, drawn=drawn)  # its own pass says why, in its own status
    return Claim(neighbour.name, question.problem, neighbour.held, service.priority, drawn)


def _drawn(neighbour: Neighbour, observed: Observed) -> Cap | None:
    """Return the Budget that a neighbour draws on, with the prices of what it holds.

    Raises UnknownPriceError where what the neighbour holds of this service's own Budget cannot be priced: what is left
    of it is not known then. Of other Budgets their own services say so.
    """
    budget = next((each for each in observed.budgets if each.name == neighbour.budget), None)
    if budget is None:
        return None  # of one that is not there nothing can be left; its own pass says so
    prices, unknown = priced((key for key, _ in neighbour.held), observed.classes)
    if unknown and budget.name == observed.service.limits.budget:
        raise UnknownPriceError(
            f"Budget {budget.name}",
            f"what is left of it is not known: {neighbour.name} holds replicas of {', '.join(map(str, unknown))}, "
            "whose price no AcceleratorClass names; write the price, or delete these replicas",
        )
    return spending(budget, prices)


def _answered(question: Question, model: str) -> Allocation | Infeasible:
    """Return the allocator's answer. Where nothing is on offer, it names what rules the classes out."""
    found = _allocated(question.problem)
    if isinstance(found, Allocation) or question.problem.offerings:
        return found
    # The allocator does not know what was ruled out before it was asked.
    return replace(found, bindings=nothing_on_offer(model, _explained(question, found)))


# Every pass asks for every neighbour what its own passes ask, and a tenth of a second each would add up.
@lru_cache(maxsize=256)
def _asked(  # noqa: PLR0917  # a cache knows arguments by their place
    service: Service,
    classes: tuple[AcceleratorClass, ...],
    profiles: tuple[Profile, ...],
    traffic: Traffic | None,
    fleet: tuple[tuple[OfferingKey, int], ...],
    withheld: tuple[tuple[OfferingKey, int, str], ...],
    budgets: tuple[Budget, ...],
) -> Question:
    return ask(service, classes, profiles, budgets, traffic=traffic, fleet=fleet, withheld=withheld)


# A pass over a service that did not change asks what the pass before asked.
@lru_cache(maxsize=256)
def _allocated(problem: AllocationProblem) -> Allocation | Infeasible:
    return allocate(problem)


@lru_cache(maxsize=256)
def _cheapest(problem: AllocationProblem) -> Allocation | None:
    return cheapest(problem)


@lru_cache(maxsize=256)
def _explained(question: Question, answer: Allocation | Infeasible) -> tuple[NotUsed, ...]:
    return explain(question, answer)


def _damped(found: Allocation, problem: AllocationProblem, observed: Observed, *, decided: bool) -> Allocation:
    standing = _as_it_stands(problem, dict(observed.standing.replicas))
    if standing is None:
        return found
    there, launch = dict(problem.fleet), {each.key: launch_usd(each) for each in problem.offerings}
    launches = launches_usd(there, found.replicas, launch) - launches_usd(there, standing.replicas, launch)
    saved = _expected_usd_per_hour(standing) - _expected_usd_per_hour(found)
    return found if (decided and saved > 0) or pays(standing, found, launches, saved) else standing


def _expected_usd_per_hour(allocation: Allocation) -> float:
    return allocation.usd_per_hour + allocation.interruptions_usd_per_hour


def _as_it_stands(problem: AllocationProblem, replicas: Mapping[OfferingKey, int]) -> Allocation | None:
    """Return the plan of exactly these replicas with today's shares and prices; None if it does not serve any more."""
    offerings = tuple(
        replace(offering, max_replicas=replicas[offering.key])
        for offering in problem.offerings
        if replicas.get(offering.key)
        and (offering.max_replicas is None or offering.max_replicas >= replicas[offering.key])
    )
    total = sum(replicas.values())
    kept = {offering.key for offering in offerings}
    bounds = problem.limits
    if not total or kept != replicas.keys() or not bounds.min_replicas <= total <= bounds.max_replicas:
        return None
    exactly = replace(
        problem,
        offerings=offerings,
        limits=replace(bounds, min_replicas=total, max_replicas=total),
        caps=tuple(replace(cap, uses=tuple(use for use in cap.uses if use[0] in kept)) for cap in problem.caps),
        utilisation_of=tuple(each for each in problem.utilisation_of if each[0] in kept),
        change_usd=(),
    )
    return _cheapest(exactly)


def _proposal(
    question: Question,
    allocation: Allocation,
    infeasible: Infeasible | None,
    wanted: Mapping[OfferingKey, int],
    unavailable: tuple[Unavailable, ...],
) -> Proposal:
    counterfactual = _allocated(on_demand_only(question.problem))
    return Proposal(
        question=question,
        allocation=allocation,
        infeasible=infeasible,
        wanted=wanted,
        on_demand_usd_per_hour=counterfactual.usd_per_hour if isinstance(counterfactual, Allocation) else None,
        not_used=_explained(question, infeasible or allocation),
        unavailable=unavailable,
    )
