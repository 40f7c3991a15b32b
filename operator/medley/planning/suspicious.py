"""What is legal and can hardly be meant: a unit or a currency that was mistaken for another.

Called by `medley plan` and `medley profile fit`, which warn, and by nobody who decides: everything here is planned as
it is written. What is wrong beyond doubt the API refuses (`medley.api`). Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta

from medley.core.accelerators import AcceleratorClass, Market
from medley.core.profiles import Profile
from medley.core.service import Service
from medley.core.units import figure, format_duration

_LONG_TPOT, _SHORT_TPOT = timedelta(seconds=1), timedelta(milliseconds=1)
_LONG_TTFT, _SHORT_TTFT = timedelta(minutes=2), timedelta(milliseconds=5)
_LONG_STEP_S, _SHORT_STEP_S = 2.0, 50e-6
_DEAR_NODE_USD, _CHEAP_NODE_USD = 400.0, 0.01
_OFTEN = 5.0  # losses of a node per hour


def suspicions(service: Service, classes: Iterable[AcceleratorClass], profiles: Iterable[Profile]) -> tuple[str, ...]:
    """Return one sentence per number whose unit is likely to be another one; what it was read as comes first."""
    return (
        *_of_promise(service),
        *(said for each in classes for said in _of_class(each)),
        *(said for each in profiles if each.model == service.model for said in _of_profile(each)),
    )


def _of_promise(service: Service) -> Iterator[str]:
    bounds = (
        ("tpot", service.slo.tpot, _SHORT_TPOT, _LONG_TPOT, "per token"),
        ("ttft", service.slo.ttft, _SHORT_TTFT, _LONG_TTFT, "until the first token"),
    )
    for name, bound, short, long, of in bounds:
        if bound is not None and not short <= bound <= long:
            told = f"{figure(bound.total_seconds())} s" if bound > long else f"{figure(bound.total_seconds() * 1e6)} us"
            yield f"spec.slo.{name} {format_duration(bound)} is {told} {of}: is another unit meant (us, ms, s, m, h)?"


def _of_class(each: AcceleratorClass) -> Iterator[str]:
    on_demand = {offer.zone: offer.usd_per_node_hour for offer in each.offers if offer.market is Market.ON_DEMAND}
    for offer in each.offers:
        usd, place = offer.usd_per_node_hour, f"{each.name} {offer.market} {offer.zone}"
        regular = on_demand.get(offer.zone)
        if offer.market is not Market.ON_DEMAND and regular is not None and usd > regular:
            yield f"{place}: {figure(usd)} USD per node-hour is more than the {figure(regular)} of on-demand"
        elif not _CHEAP_NODE_USD <= usd <= _DEAR_NODE_USD:
            yield f"{place}: {figure(usd)} USD for an hour of a node: are these cents, or the price of a month?"
        if offer.interruptions_per_node_hour > _OFTEN:
            rate = figure(offer.interruptions_per_node_hour)
            yield f"{place}: a node is lost {rate} times per hour: spotInterruptionsPerHour is per node and hour"


def _of_profile(each: Profile) -> Iterator[str]:
    if each.latency is not None:
        step_s = each.latency.model.step(0, 1, 1)
        if not _SHORT_STEP_S <= step_s <= _LONG_STEP_S:
            yield (
                f"profile {each.name}: a step of one request takes {figure(step_s)} s: "
                "its times are in microseconds, those of a fit in seconds"
            )
    tpots = [latency.tpot for point in each.points for latency in point.latencies]
    if tpots and not _SHORT_TPOT <= min(tpots) <= _LONG_TPOT:
        yield f"profile {each.name}: the shortest TPOT is {format_duration(min(tpots))}: is another unit meant?"


def of_steps(name: str, seconds: Iterable[float]) -> str | None:
    """Return what is odd about measured times of steps, if anything is."""
    shortest = min(seconds)
    if shortest <= _LONG_STEP_S:
        return None
    return (
        f"{name}: the shortest step takes {figure(shortest)} s: times of steps are in seconds, are these milliseconds?"
    )
