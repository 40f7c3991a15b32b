"""The bounds of a case, each with how far it can give and what is written then. Called by `relaxation`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Protocol

from medley.core.accelerators import AcceleratorClass, Market
from medley.core.service import Budget, GpuQuota, Service, SpotUse
from medley.core.units import figure, format_duration
from medley.planning.whatif import (
    HEDGES,
    Case,
    FractionName,
    LatencyName,
    fraction_of,
    latency_of,
    with_budget,
    with_fraction,
    with_latency,
    with_rate,
)

_PERCENT = 100
_CENTS = 100
_LONGEST_TIMES = 10  # a latency bound is relaxed up to so many times
_DEAREST_TIMES = 1_000  # a budget likewise
_MOST_MORE = 1_000  # replicas, or nodes, beyond a bound
_LEAST_DEMAND_PERCENT = 1  # a plan for less than this part of the demand is no plan


class Bound(Protocol):
    """A bound that gives step by step, up to `steps`; `whole` steps are all of it."""

    @property
    def field(self) -> str:
        """What to write differently."""
        ...

    @property
    def steps(self) -> int:
        """As far as it can give."""
        ...

    @property
    def whole(self) -> float | None:
        """Steps that are 100 % of it; None: it gives at once."""
        ...

    def relaxed(self, case: Case, steps: int) -> Case:
        """Return the case with the bound so many steps looser."""
        ...

    def said(self, steps: int) -> str:
        """Return what is written then, and what is now."""
        ...


def bounds_of(case: Case) -> Iterator[Bound]:
    """Yield the bounds that could give, the promise and the demand last."""
    service = case.service
    latencies: tuple[LatencyName, ...] = ("tpot", "ttft")
    if service.limits.max_usd_per_hour:
        yield _Budget(service.limits.max_usd_per_hour)
    yield from (_SharedBudget(each.usd_per_hour, each) for each in case.budgets if each.name == service.limits.budget)
    yield _Replicas(service.limits.max_replicas)
    for fraction in HEDGES:
        if asked := round(_PERCENT * fraction_of(service, fraction)):
            yield _Fraction(fraction, asked)
    yield from (_Quota(number, quota) for number, quota in enumerate(service.limits.gpu_quotas))
    yield from _nodes(case)
    yield from _quotas_of_classes(case)
    yield from _permissions(case)
    for latency in latencies:
        bound = latency_of(service, latency)
        if bound is not None:
            yield _Latency(latency, bound)
    if service.forecast.requests_per_second > 0:
        yield _Demand(service.forecast.requests_per_second)


def is_promise(bound: Bound) -> bool:
    """Say whether a bound is the promise, or the demand that it is made to; the others are limits and hedges."""
    return isinstance(bound, _Latency | _Demand)


@dataclass(frozen=True)
class _Money:
    """By the cent: money is worth knowing exactly."""

    allowed: Decimal

    @property
    def steps(self) -> int:
        return math.ceil(_DEAREST_TIMES * self.allowed * _CENTS)

    @property
    def whole(self) -> float | None:
        return float(self.allowed * _CENTS)

    def raised(self, steps: int) -> Decimal:
        return (self.allowed + Decimal(steps) / _CENTS).quantize(Decimal("0.01"), rounding=ROUND_CEILING)


@dataclass(frozen=True)
class _Budget(_Money):
    field: str = "spec.limits.maxUSDPerHour"

    def relaxed(self, case: Case, steps: int) -> Case:
        limits = replace(case.service.limits, max_usd_per_hour=self.raised(steps))
        return case._replace(service=replace(case.service, limits=limits))

    def said(self, steps: int) -> str:
        return f"maxUSDPerHour {self.raised(steps)} instead of {self.allowed}"


@dataclass(frozen=True)
class _SharedBudget(_Money):
    budget: Budget

    @property
    def field(self) -> str:
        return f"Budget {self.budget.name}: maxUSDPerHour"

    def relaxed(self, case: Case, steps: int) -> Case:
        return with_budget(case, replace(self.budget, usd_per_hour=self.raised(steps)))

    def said(self, steps: int) -> str:
        return f"Budget {self.budget.name} of {self.raised(steps)} USD/h instead of {self.allowed}"


@dataclass(frozen=True)
class _Replicas:
    allowed: int
    field: str = "spec.limits.maxReplicas"
    steps: int = _MOST_MORE

    @property
    def whole(self) -> float | None:
        return float(max(self.allowed, 1))

    def relaxed(self, case: Case, steps: int) -> Case:
        limits = replace(case.service.limits, max_replicas=self.allowed + steps)
        return case._replace(service=replace(case.service, limits=limits))

    def said(self, steps: int) -> str:
        return f"maxReplicas {self.allowed + steps} instead of {self.allowed}"


@dataclass(frozen=True)
class _Fraction:
    name: FractionName
    percent: int

    @property
    def field(self) -> str:
        return f"spec.spot.{self.name}"

    @property
    def steps(self) -> int:
        return self.percent

    @property
    def whole(self) -> float | None:
        return float(self.percent)

    def relaxed(self, case: Case, steps: int) -> Case:
        lower = (self.percent - steps) / _PERCENT
        return case._replace(service=with_fraction(case.service, self.name, lower))

    def said(self, steps: int) -> str:
        return f"spot.{self.name} {self.percent - steps}% instead of {self.percent}%"


@dataclass(frozen=True)
class _Latency:
    name: LatencyName
    bound: timedelta
    steps: int = _PERCENT * (_LONGEST_TIMES - 1)
    whole: float | None = float(_PERCENT)

    @property
    def field(self) -> str:
        return f"spec.slo.{self.name}"

    def relaxed(self, case: Case, steps: int) -> Case:
        return case._replace(service=with_latency(case.service, self.name, self._loosened(steps)))

    def said(self, steps: int) -> str:
        return f"{self.name} {format_duration(self._loosened(steps))} instead of {format_duration(self.bound)}"

    def _loosened(self, steps: int) -> timedelta:
        return self.bound * (_PERCENT + steps) / _PERCENT


@dataclass(frozen=True)
class _Demand:
    requests_per_second: float
    field: str = "spec.workload.requestsPerSecond"
    steps: int = _PERCENT - _LEAST_DEMAND_PERCENT
    whole: float | None = float(_PERCENT)

    def relaxed(self, case: Case, steps: int) -> Case:
        return case._replace(service=with_rate(case.service, self._lowered(steps)))

    def said(self, steps: int) -> str:
        return f"{figure(self._lowered(steps))} requests/s instead of {figure(self.requests_per_second)}"

    def _lowered(self, steps: int) -> float:
        return self.requests_per_second * (_PERCENT - steps) / _PERCENT


@dataclass(frozen=True)
class _Nodes:
    """Nodes of a class in a market: as many more in every zone that has a cap."""

    accelerator_class: str
    market: Market
    most: int  # in one zone now
    steps: int = _MOST_MORE

    @property
    def field(self) -> str:
        return f"AcceleratorClass {self.accelerator_class}: {_CAPS[self.market]}"

    @property
    def whole(self) -> float | None:
        return float(max(self.most, 1))

    def relaxed(self, case: Case, steps: int) -> Case:
        return case._replace(classes=tuple(self._enlarged(each, steps) for each in case.classes))

    def said(self, steps: int) -> str:
        nodes = "one node" if steps == 1 else f"{steps} nodes"
        return f"{nodes} more of {self.accelerator_class}, {self.market}, in every zone"

    def _enlarged(self, each: AcceleratorClass, more: int) -> AcceleratorClass:
        if each.name != self.accelerator_class:
            return each
        return replace(
            each,
            offers=tuple(
                replace(offer, max_nodes=offer.max_nodes + more)
                if offer.market is self.market and offer.max_nodes is not None
                else offer
                for offer in each.offers
            ),
        )


_CAPS = {Market.ON_DEMAND: "maxNodes", Market.SPOT: "maxSpotNodes", Market.RESERVED: "maxReservedNodes"}


@dataclass(frozen=True)
class _Quota:
    """GPUs of one of the service's own quotas."""

    number: int
    quota: GpuQuota
    steps: int = _MOST_MORE

    @property
    def field(self) -> str:
        return f"spec.limits.gpuQuotas[{self.number}]"

    @property
    def whole(self) -> float | None:
        return float(max(self.quota.gpus, 1))

    def relaxed(self, case: Case, steps: int) -> Case:
        limits = case.service.limits
        quotas = list(limits.gpu_quotas)
        quotas[self.number] = replace(self.quota, gpus=self.quota.gpus + steps)
        return case._replace(service=replace(case.service, limits=replace(limits, gpu_quotas=tuple(quotas))))

    def said(self, steps: int) -> str:
        return f"gpuQuotas[{self.number}] of {self.quota.gpus + steps} GPUs instead of {self.quota.gpus}"


@dataclass(frozen=True)
class _ClassQuota:
    """GPUs of a class in a market, over all zones."""

    accelerator_class: str
    market: Market
    gpus: int
    steps: int = _MOST_MORE

    @property
    def field(self) -> str:
        return f"AcceleratorClass {self.accelerator_class}: gpuQuota"

    @property
    def whole(self) -> float | None:
        return float(max(self.gpus, 1))

    def relaxed(self, case: Case, steps: int) -> Case:
        return case._replace(classes=tuple(self._enlarged(each, steps) for each in case.classes))

    def said(self, steps: int) -> str:
        return f"{self.gpus + steps} GPUs of {self.accelerator_class}, {self.market}, instead of {self.gpus}"

    def _enlarged(self, each: AcceleratorClass, more: int) -> AcceleratorClass:
        if each.name != self.accelerator_class:
            return each
        quotas = {market: gpus + more if market is self.market else gpus for market, gpus in each.gpu_quotas}
        return replace(each, gpu_quotas=tuple(quotas.items()))


def _quotas_of_classes(case: Case) -> Iterator[_ClassQuota]:
    for each in case.classes:
        if not case.service.classes or each.name in case.service.classes:
            yield from (_ClassQuota(each.name, market, gpus) for market, gpus in each.gpu_quotas)


def _nodes(case: Case) -> Iterator[_Nodes]:
    service = case.service
    for each in case.classes:
        for market in sorted({offer.market for offer in each.offers if offer.max_nodes is not None}):
            forbidden = market is Market.SPOT and service.spot.use is SpotUse.NEVER
            if not forbidden and (not service.classes or each.name in service.classes):
                most = max(offer.max_nodes or 0 for offer in each.offers if offer.market is market)
                yield _Nodes(each.name, market, most)


@dataclass(frozen=True)
class _Permission:
    """What is forbidden altogether gives at once."""

    field: str
    change: str
    service: Service
    steps: int = 1
    whole: float | None = None

    def relaxed(self, case: Case, steps: int) -> Case:
        del steps
        return case._replace(service=self.service)

    def said(self, steps: int) -> str:
        del steps
        return self.change


def _permissions(case: Case) -> Iterator[_Permission]:
    service = case.service
    if service.spot.use is SpotUse.NEVER:
        changed = replace(service, spot=replace(service.spot, use=SpotUse.PREFER))
        yield _Permission("spec.spot.policy", "spot.policy Prefer instead of Never", changed)
    if service.classes:
        for name in sorted({each.name for each in case.classes} - set(service.classes)):
            changed = replace(service, classes=(*service.classes, name))
            yield _Permission("spec.accelerators.classes", f"class {name} allowed too", changed)
    if service.zones:
        for zone in sorted({offer.zone for each in case.classes for offer in each.offers} - set(service.zones)):
            changed = replace(service, zones=(*service.zones, zone))
            yield _Permission("spec.accelerators.zones", f"zone {zone} allowed too", changed)
