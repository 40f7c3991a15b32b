"""Why a class, a market or a zone is not in the plan, with a number.

Called by `reconcile.plan` and `medley plan`. What was ruled out before the allocator was asked says so itself
(`OutOfQuestion`, `Unable`); for the rest `breakeven` finds the price at which it would be used. Each is one line for
who has not read docs/allocation.md: what is in the way, then its number. Where nothing is left on offer,
`nothing_on_offer` turns the same reasons into the bounds that bind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from medley.core.accelerators import AcceleratorClass, Market, NodeOffer, OfferingKey, Shape
from medley.planning.breakeven import Below, Breakeven, Never, NoRoom, breakeven
from medley.planning.offerings import OutOfQuestion, Why
from medley.planning.problem import Allocation, Binding, Bound, Infeasible
from medley.planning.question import Question
from medley.planning.refusals import in_the_way, reason
from medley.planning.throughput import Sustained

_CENT = 0.005
_NOISE = 1e-6
# What rules a class out altogether: the bound, and the remedy where the reason does not say it. The class that came
# nearest to serving is the first to be told about.
_RULES_OUT: Mapping[Why, tuple[Bound, str]] = {
    Why.CANNOT_SERVE: (Bound.SIZES, "relax the SLO, lower spec.model.maxModelLen, or add a class that is fast enough"),
    Why.TOO_LONG: (Bound.MODEL_LENGTH, ""),
    Why.NODE_TOO_SMALL: (Bound.GPUS_PER_NODE, "add the profile of a smaller shape, or a class with larger nodes"),
    Why.SEVERAL_NODES: (Bound.GPUS_PER_NODE, ""),
    Why.NOT_ALLOWED: (Bound.ZONES, "allow a zone in which the class is sold"),
    Why.SPOT_NOT_ALLOWED: (Bound.SPOT_USE, "allow spot, or add the price of on-demand nodes to the class"),
    Why.CAPPED: (Bound.CAPS, "raise a cap"),
    Why.NOT_OFFERED: (Bound.CAPS, "add a price"),
    Why.NO_PROFILE: (Bound.PROFILES, ""),
}
_NAMES_ITS_SHAPE = frozenset({Why.TOO_LONG, Why.NODE_TOO_SMALL, Why.SEVERAL_NODES})


@dataclass(frozen=True, slots=True)
class NotUsed:
    """Why offers are not used; market and zone None: all of the class.

    `usd_per_node_hour`: the price up to which they would be used, where price is what speaks against them.
    """

    accelerator_class: str
    market: Market | None
    zone: str | None
    why: Why
    message: str
    usd_per_node_hour: float | None = None


def explain(question: Question, answer: Allocation | Infeasible) -> tuple[NotUsed, ...]:
    """Return one reason per class that is not used, and per market and zone that is not used of a class that is.

    Of an infeasible demand, the best that can be had is explained.
    """
    used = {key for key, _ in (answer.best if isinstance(answer, Infeasible) else answer).replicas}
    return tuple(found for each in question.classes for found in _of_class(question, each, used, answer))


def nothing_on_offer(model: str, not_used: Iterable[NotUsed]) -> tuple[Binding, ...]:
    """Return the bounds that leave nothing on offer; `not_used`: what `explain` says of such a question.

    One per kind of reason, with the classes that it rules out.
    """
    ruled_out = tuple(not_used)
    if not ruled_out:
        message = "there is no AcceleratorClass: write one for each kind of GPU that may be bought"
        return (Binding(Bound.CLASSES, message),)
    return tuple(
        Binding(bound, _unprofiled(model, own) if why is Why.NO_PROFILE else _told(own, remedy))
        for why, (bound, remedy) in _RULES_OUT.items()
        if (own := [each for each in ruled_out if each.why is why])
    )


def _unprofiled(model: str, own: Iterable[NotUsed]) -> str:
    *others, last = (each.accelerator_class for each in own)
    names = f"{', '.join(others)} or {last}" if others else last
    return f"write a PerformanceProfile, measured or estimated, of {model} on class {names}: there is none"


def _told(own: Iterable[NotUsed], remedy: str) -> str:
    reasons = (
        each.message if each.why in _NAMES_ITS_SHAPE else f"{each.accelerator_class}: {each.message}" for each in own
    )
    return "; ".join([*reasons, *([remedy] if remedy else [])])


def _of_class(
    question: Question, each: AcceleratorClass, used: set[OfferingKey], answer: Allocation | Infeasible
) -> Iterator[NotUsed]:
    own = {key for key in used if key.shape.accelerator_class == each.name}
    if not own:
        yield _ruled_out(question, each) or _offers(question, each, None, each.offers, answer)
        return
    for market in sorted({offer.market for offer in each.offers}):
        offers = [offer for offer in each.offers if offer.market is market]
        zones = {key.zone for key in own if key.market is market}
        if not zones:
            yield _offers(question, each, market, offers, answer)
            continue
        prices = {offer.zone: offer.usd_per_node_hour for offer in offers if offer.zone in zones}
        for offer in sorted(offers, key=lambda offer: offer.zone):
            if offer.zone not in zones:
                yield _zone(question, each, offer, prices)


def _ruled_out(question: Question, each: AcceleratorClass) -> NotUsed | None:
    """Return why no shape of the class can serve any of the demand, or None if one can."""
    if any(shape.accelerator_class == each.name and rates for shape, rates in _able(question)):
        return None
    before = [out for out in question.out_of_question if out.accelerator_class == each.name and out.market is None]
    judged = [
        sustained for sustained in question.sustained if sustained.throughput.shape.accelerator_class == each.name
    ]
    if judged:
        messages = ((sustained.throughput.shape, _cannot(question, sustained)) for sustained in judged)
        said = (message if len(judged) == 1 else f"{shape}: {message}" for shape, message in messages)
        return NotUsed(each.name, None, None, Why.CANNOT_SERVE, "; ".join(said))
    if before:
        return NotUsed(each.name, None, None, before[0].why, "; ".join(out.message for out in before))
    return None


def _able(question: Question) -> Iterator[tuple[Shape, bool]]:
    demanded = {bucket for bucket, _ in question.problem.demand.requests_per_second}
    for each in question.sustained:
        rates = {bucket for bucket, _ in each.throughput.requests_per_second}
        yield each.throughput.shape, bool(rates & demanded) or not demanded


def _cannot(question: Question, judged: Sustained) -> str:
    """Return why a shape serves nothing of the demand: the reason of its most demanded size."""
    rates = dict(question.problem.demand.requests_per_second)
    bucket, why = max(judged.unable, key=lambda each: (rates.get(each[0], 0.0), each[0]))
    return reason(why, question.slo, question.problem.demand.grid.sizes(bucket))


def _offers(
    question: Question,
    each: AcceleratorClass,
    market: Market | None,
    offers: Iterable[NodeOffer],
    answer: Allocation | Infeasible,
) -> NotUsed:
    """Return why none of a class's offers, or none in one market, is used although a shape of it can serve."""
    keys = frozenset(
        offering.key
        for offering in question.problem.offerings
        if offering.key.shape.accelerator_class == each.name
        and market in (None, offering.key.market)
        and offering.max_replicas != 0
    )
    if not keys:
        out = [o for o in question.out_of_question if o.accelerator_class == each.name and o.market in (None, market)]
        if market is None:
            out = [o for o in question.out_of_question if o.accelerator_class == each.name]
        why = out[0].why if out else Why.NOT_OFFERED
        return NotUsed(each.name, market, None, why, _together(out) or "the AcceleratorClass names no price")
    if isinstance(answer, Infeasible):
        message = "no gain: would serve no more of the demand within the limits"
        return NotUsed(each.name, market, None, Why.NOT_NEEDED, message)
    usd_per_hour = answer.usd_per_hour + answer.interruptions_usd_per_hour
    # Prices of what the service does not allow are not what stands in the way.
    allowed = {(key.market, key.zone) for key in keys}
    prices = frozenset(offer.usd_per_node_hour for offer in offers if (offer.market, offer.zone) in allowed)
    return _priced(question, each, market, prices, breakeven(question.problem, usd_per_hour, keys))


def _priced(
    question: Question, each: AcceleratorClass, market: Market | None, prices: frozenset[float], found: Breakeven
) -> NotUsed:
    """Return what a break-even says of offers at `prices`, USD per node-hour."""
    lowest = min(prices)
    match found:
        case NoRoom():
            message = "limits: they leave no room for one replica of it"
            return NotUsed(each.name, market, None, Why.CAPPED, message)
        case Never():
            message = f"no gain even for free: {_left_over(question, each)}"
            return NotUsed(each.name, market, None, Why.NOT_NEEDED, message)
        case Below(factor, exact):
            price = factor * lowest
            if price >= lowest - _CENT:
                message = f"no gain: {lowest:.2f} USD/h a node; what is used serves as much for the same price"
            elif len(prices) == 1:
                costs = f"{price:.2f}" if exact else f"at least {price:.2f}"
                message = f"dearer: {lowest:.2f} USD/h a node; what is used serves as much for {costs}"
            else:
                # Which of its prices stands in the way is not known: they were lowered together.
                less = f"{math.ceil(100 * (1 - factor) - _NOISE)}% less"
                costs = less if exact else f"at most {less}"
                message = f"dearer: from {lowest:.2f} USD/h a node; what is used serves as much for {costs}"
            return NotUsed(each.name, market, None, Why.DEARER, message, price)
        case _:
            assert_never(found)


def _left_over(question: Question, each: AcceleratorClass) -> str:
    """Say what of the demand no shape of a class takes, for which something else is there anyhow."""
    demanded = dict(question.problem.demand.requests_per_second)
    own = {shape: rates for shape, rates in question.problem.rates.items() if shape.accelerator_class == each.name}
    unable = {bucket for bucket in demanded if not any(bucket in rates for rates in own.values())}
    if not unable:
        return "within the limits it would spare no other replica"
    refused = [
        why
        for judged in question.sustained
        if judged.throughput.shape in own
        for bucket, why in judged.unable
        if bucket in unable
    ]
    part = sum(demanded[bucket] for bucket in unable) / sum(demanded.values())
    return f"{part:.0%} of the demand {in_the_way(refused)}, and what serves that has room for the rest"


def _zone(question: Question, each: AcceleratorClass, offer: NodeOffer, used: Mapping[str, float]) -> NotUsed:
    """Return why one zone of a market is not used; `used`: those that are, with their USD per node-hour."""
    out = [
        found
        for found in question.out_of_question
        if found.accelerator_class == each.name and found.market is offer.market and found.zone == offer.zone
    ]
    if out:
        return NotUsed(each.name, offer.market, offer.zone, out[0].why, out[0].message)
    lowest = min(used.values())
    where = min(zone for zone, price in used.items() if price == lowest)
    price = f"{offer.usd_per_node_hour:.2f} USD/h a node"
    if offer.usd_per_node_hour > lowest:
        message = f"dearer: {price}, {lowest:.2f} in {where}"
        return NotUsed(each.name, offer.market, offer.zone, Why.DEARER, message, lowest)
    if offer.usd_per_node_hour < lowest:
        message = f"outweighed: {price}, {lowest:.2f} in {where}, but spread, losses or interruptions speak for that"
    else:
        message = f"no gain: {price}, as in {where}"
    return NotUsed(each.name, offer.market, offer.zone, Why.NOT_NEEDED, message)


def _together(out: Sequence[OutOfQuestion]) -> str:
    """Return what rules offers out: each reason once, and where it holds unless it is the only one."""
    placed = {each.message: [_place(other) for other in out if other.message == each.message] for each in out}
    if len(placed) == 1:
        return next(iter(placed))
    return "; ".join(
        f"{', '.join(dict.fromkeys(places))}: {message}" if all(places) else message
        for message, places in placed.items()
    )


def _place(out: OutOfQuestion) -> str:
    return " ".join(str(part) for part in (out.market, out.zone) if part is not None)
