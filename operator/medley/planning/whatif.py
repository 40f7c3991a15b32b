"""What a plan would cost if one thing were different.

    for each in what_ifs(case, plan): ...        # 10 % looser TPOT, one more zone, a lower floor: each re-solved

Called by `medley explain` and by `relaxation`. Every answer comes from the programme that made the plan, asked again
with one thing changed; nothing is read off a continuous version of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

from medley.core.accelerators import AcceleratorClass, Market, NodeOffer
from medley.core.errors import InvalidInputError
from medley.core.profiles import Profile
from medley.core.service import Budget, RoutingKnowledge, Service, SpotUse
from medley.core.units import figure, format_duration
from medley.planning.allocator import cheapest
from medley.planning.problem import MICRODOLLARS, Allocation
from medley.planning.question import ask

_STEP = 0.10  # relative change that what-ifs ask about, and points of a percentage
_SAME = 0.005  # USD/h: less is not a difference

LatencyName = Literal["tpot", "ttft"]
FractionName = Literal["onDemandFloor", "surviveZoneLoss", "surviveClassLoss", "surviveClassZoneLoss"]
HEDGES: tuple[FractionName, ...] = get_args(FractionName)
_FRACTIONS: Mapping[FractionName, str] = {
    "onDemandFloor": "on_demand_floor",
    "surviveZoneLoss": "survive_zone_loss",
    "surviveClassLoss": "survive_class_loss",
    "surviveClassZoneLoss": "survive_class_zone_loss",
}


class Case(NamedTuple):
    """What a plan is made from."""

    service: Service
    classes: tuple[AcceleratorClass, ...]
    profiles: tuple[Profile, ...]
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True, slots=True)
class WhatIf:
    """A plan with one thing changed.

    `usd_per_hour`: the bill; None: it cannot be met then. `saves_usd_per_hour`: of bill and expected interruptions
    together, which is what plans are chosen by; negative where the change costs money.
    """

    change: str
    usd_per_hour: float | None
    saves_usd_per_hour: float | None


def what_ifs(case: Case, plan: Allocation) -> Iterator[WhatIf]:
    """Yield what single changes save or cost, those that make no difference too; `plan` is the case's own."""
    for change, changed in (
        *_promises(case),
        *_traffic(case),
        *_knowledge(case),
        *_hedges(case),
        *_limits(case, plan),
        *_more_to_buy(case, plan),
    ):
        found = plan_of(changed)
        saved = None if found is None else round(_expected(plan) - _expected(found), MICRODOLLARS)
        yield WhatIf(
            change,
            None if found is None else found.usd_per_hour,
            0.0 if saved is not None and abs(saved) < _SAME else saved,
        )


@lru_cache(maxsize=1024)  # pure; relaxations come back to the same cases
def plan_of(case: Case) -> Allocation | None:
    """Return the cheapest plan; None: there is none."""
    try:
        problem = ask(*case).problem
    except InvalidInputError:
        return None  # such as limits that exclude each other
    # Not `allocate`: where there is no plan it would work out why, which takes many solves.
    return cheapest(problem)


def _expected(plan: Allocation) -> float:
    """Return what a plan costs in USD per hour, with what interruptions are expected to cost."""
    return plan.usd_per_hour + plan.interruptions_usd_per_hour


def latency_of(service: Service, name: LatencyName) -> timedelta | None:
    """Return one bound of the promise."""
    return service.slo.tpot if name == "tpot" else service.slo.ttft


def with_latency(service: Service, name: LatencyName, bound: timedelta) -> Service:
    """Return the service with another bound in its promise."""
    slo = service.slo
    return replace(service, slo=replace(slo, tpot=bound) if name == "tpot" else replace(slo, ttft=bound))


def fraction_of(service: Service, name: FractionName) -> float:
    """Return one of the fractions that hedge against the loss of spot, 0..1."""
    return float(getattr(service.spot, _FRACTIONS[name]))


def with_fraction(service: Service, name: FractionName, value: float) -> Service:
    """Return the service with another hedge, 0..1."""
    changes: dict[str, Any] = {_FRACTIONS[name]: value}
    return replace(service, spot=replace(service.spot, **changes))


def with_rate(service: Service, requests_per_second: float) -> Service:
    """Return the service with as many requests of the same sizes."""
    return replace(service, forecast=replace(service.forecast, requests_per_second=requests_per_second))


def with_budget(case: Case, budget: Budget) -> Case:
    """Return the case with another Budget of this name."""
    return case._replace(budgets=tuple(budget if each.name == budget.name else each for each in case.budgets))


def _promises(case: Case) -> Iterator[tuple[str, Case]]:
    names: tuple[LatencyName, ...] = ("tpot", "ttft")
    for name in names:
        bound = latency_of(case.service, name)
        for word, factor in (("looser", 1 + _STEP), ("tighter", 1 - _STEP)):
            if bound is not None:
                changed = with_latency(case.service, name, bound * factor)
                said = f"{name.upper()} {_STEP:.0%} {word}: {format_duration(bound * factor)}"
                yield said, case._replace(service=changed)


def _traffic(case: Case) -> Iterator[tuple[str, Case]]:
    rate = case.service.forecast.requests_per_second
    for word, factor in (("more", 1 + _STEP), ("less", 1 - _STEP)):
        if rate > 0:
            said = f"{_STEP:.0%} {word} traffic: {figure(rate * factor)} requests/s"
            yield said, case._replace(service=with_rate(case.service, rate * factor))


def _knowledge(case: Case) -> Iterator[tuple[str, Case]]:
    """Yield what it is worth to know: routers do not see how long an answer becomes, and the plan pays for that."""
    if case.service.routing is RoutingKnowledge.BLIND:
        changed = replace(case.service, routing=RoutingKnowledge.ORACLE)
        yield "lengths of answers known on arrival (routing Oracle)", case._replace(service=changed)


def _hedges(case: Case) -> Iterator[tuple[str, Case]]:
    service = case.service
    for name in HEDGES:
        value = fraction_of(service, name)
        for other in (max(value - _STEP, 0.0), min(value + _STEP, 1.0)):
            if value > 0 and other != value:
                said = f"spot.{name} {other:.0%} instead of {value:.0%}"
                yield said, case._replace(service=with_fraction(service, name, other))
    if service.spot.use is SpotUse.NEVER:
        changed = replace(service, spot=replace(service.spot, use=SpotUse.PREFER))
        yield "spot.policy Prefer instead of Never", case._replace(service=changed)


def _limits(case: Case, plan: Allocation) -> Iterator[tuple[str, Case]]:
    service, limits = case.service, case.service.limits
    if limits.max_usd_per_hour is not None:
        more = (limits.max_usd_per_hour * (1 + Decimal(str(_STEP)))).quantize(Decimal("0.01"))
        changed = replace(service, limits=replace(limits, max_usd_per_hour=more))
        yield f"budget {_STEP:.0%} higher: {more} USD/h", case._replace(service=changed)
    budget = next((each for each in case.budgets if each.name == limits.budget), None)
    if budget is not None:
        more = (budget.usd_per_hour * (1 + Decimal(str(_STEP)))).quantize(Decimal("0.01"))
        yield (
            f"Budget {budget.name} {_STEP:.0%} higher: {more} USD/h",
            with_budget(case, replace(budget, usd_per_hour=more)),
        )
    if plan.total_replicas == limits.max_replicas:
        changed = replace(service, limits=replace(limits, max_replicas=limits.max_replicas + 1))
        yield f"one replica more: maxReplicas {limits.max_replicas + 1}", case._replace(service=changed)
    if plan.total_replicas == limits.min_replicas > 0:
        changed = replace(service, limits=replace(limits, min_replicas=limits.min_replicas - 1))
        yield f"one replica less: minReplicas {limits.min_replicas - 1}", case._replace(service=changed)


def _more_to_buy(case: Case, plan: Allocation) -> Iterator[tuple[str, Case]]:
    service = case.service
    if service.classes:
        for name in sorted({each.name for each in case.classes} - set(service.classes)):
            changed = replace(service, classes=(*service.classes, name))
            yield f"class {name} allowed too", case._replace(service=changed)
    known = {offer.zone for each in case.classes for offer in each.offers}
    if service.zones and (others := sorted(known - set(service.zones))):
        for zone in others:
            changed = replace(service, zones=(*service.zones, zone))
            yield f"zone {zone} allowed too", case._replace(service=changed)
    elif known:
        another = _unused_name(known)
        changed = replace(service, zones=(*service.zones, another) if service.zones else ())
        classes = tuple(_with_zone(each, another, service.zones) for each in case.classes)
        yield "one more zone, at each class's lowest prices", case._replace(service=changed, classes=classes)
    for name, offer, more in _exhausted(case, plan):
        classes = tuple(_with_nodes(each, name, offer, more) for each in case.classes)
        nodes = "one node" if more == 1 else f"{more} nodes"
        yield f"{nodes} more of {name}, {offer.market}, {offer.zone}", case._replace(classes=classes)


def _unused_name(zones: Iterable[str]) -> str:
    taken, number = set(zones), 1
    while f"another-{number}" in taken:
        number += 1
    return f"another-{number}"


def _with_zone(each: AcceleratorClass, zone: str, allowed: Sequence[str]) -> AcceleratorClass:
    """Return a class with one more zone, which has the cheapest of its offers per market among those allowed."""
    cheapest: dict[Market, NodeOffer] = {}
    for offer in sorted(each.offers, key=lambda offer: (offer.usd_per_node_hour, offer.zone)):
        # A reservation is where it is: another zone does not come with one.
        if offer.market is not Market.RESERVED and (not allowed or offer.zone in allowed):
            cheapest.setdefault(offer.market, offer)
    return replace(each, offers=(*each.offers, *(replace(offer, zone=zone) for offer in cheapest.values())))


def _exhausted(case: Case, plan: Allocation) -> Iterator[tuple[str, NodeOffer, int]]:
    """Yield the offers whose cap has no room for one more of the replicas that the plan has there, and what it lacks.

    That is in nodes, for the replica that takes least.
    """
    counts = dict(plan.replicas)
    for each in case.classes:
        for offer in each.offers:
            here = [
                (nodes, count)
                for key, count in counts.items()
                if (key.shape.accelerator_class, key.market, key.zone) == (each.name, offer.market, offer.zone)
                and (nodes := each.nodes_of(key.shape)) is not None
            ]
            if offer.max_nodes is None or not here:
                continue
            one_more = sum(nodes * count for nodes, count in here) + min(nodes for nodes, _ in here)
            if one_more > offer.max_nodes:
                yield each.name, offer, math.ceil(one_more - offer.max_nodes)


def _with_nodes(each: AcceleratorClass, name: str, offer: NodeOffer, more: int) -> AcceleratorClass:
    if each.name != name:
        return each
    return replace(
        each,
        offers=tuple(
            replace(other, max_nodes=other.max_nodes + more)
            if other == offer and other.max_nodes is not None
            else other
            for other in each.offers
        ),
    )
