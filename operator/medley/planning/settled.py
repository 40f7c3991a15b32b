"""A plan whose utilisation fits its own fleet: rounds of asking the allocator and judging its answer.

    answer = settled(problem, models, promise)

Called by whoever has latency models for the shapes on offer. Pure. How full a replica may be depends on how many share
the traffic and on which sizes it gets (`queueing`), which the allocator decides only after it was told. So: guess, ask,
judge every shape by the traffic it got; shapes that would break the promise are made to carry less, and asked again.
Utilisation only falls, so this ends; then it is tried whether what the fleet allows beyond that makes a cheaper plan
that holds too. Bounded rounds; the same input gives the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from medley.core.accelerators import Shape
from medley.core.latency import LatencyModel
from medley.core.workload import Bucket, Demand, Slo
from medley.planning import mixture, queueing
from medley.planning.allocator import allocate
from medley.planning.ignorance import Class, blind
from medley.planning.mixture import Sizes, Stream
from medley.planning.problem import Allocation, AllocationProblem, Infeasible, ShapeThroughput

_LOWERING, _RAISING = 8, 3
_LEAST = 0.01  # a shape that may not even be this full is as good as unable
_HOLDS = 1 - 1e-6

Answer = Allocation | Infeasible


@dataclass(frozen=True, slots=True)
class Promise:
    """What is promised, for which traffic."""

    slo: Slo
    longest: int  # tokens of the longest request that is let in
    dispersion: float = 1.0  # of arrivals; 1: Poisson
    sizes: Sizes = Sizes.LARGEST


@dataclass(frozen=True, slots=True)
class Judged:
    """A shape in a plan: its replicas, how full they are, and how many times the traffic it got it could take."""

    shape: Shape
    replicas: int
    busy: float  # part of its most used resource, by mean values
    reserve: float  # 1 or more: the promise holds
    bound: str | None  # what holds it down; None: nothing that it may carry

    def __str__(self) -> str:
        part = f"to {self.reserve:.0%} of the traffic that it would get" if self.bound else "to none of its traffic"
        by = f", by {self.bound}" if self.bound else ""
        return f"{self.shape}: the promise is shown to hold up {part}{by}"


@dataclass(frozen=True, slots=True)
class Settled:
    """The problem as it was asked last, the answer, and how each shape stands in it."""

    problem: AllocationProblem
    answer: Answer
    judged: tuple[Judged, ...]

    @property
    def holds(self) -> bool:
        """Whether the promise is expected to hold at every shape of the plan."""
        return isinstance(self.answer, Allocation) and not self.doubtful

    @property
    def doubtful(self) -> tuple[Judged, ...]:
        """Shapes of the plan at which the promise is not expected to hold."""
        return tuple(each for each in self.judged if each.reserve < _HOLDS)


def settled(
    problem: AllocationProblem,
    models: Mapping[Shape, LatencyModel],
    promise: Promise,
    *,
    classes: Sequence[Class] = (),
    solve: Callable[[AllocationProblem], Answer] = allocate,
) -> Settled:
    """Return the cheapest plan found whose shapes keep the promise with the traffic that the plan gives them.

    `problem`: by actual sizes. `models`: shapes without one keep the throughput and utilisation of the problem.
    `classes`: what routers see; the allocator is then asked about those (`ignorance.blind`), and the shares are of
    classes. Empty: routers know the output. Where no plan holds, the last one is returned; `Settled.holds` says so.
    """
    rows = _Rows(problem, models, promise, tuple(classes))
    full = {shape: rows.guess(shape) for shape in sorted(rows.throughput)}
    found = rows.ask(full, solve)
    for turn in range(_LOWERING):
        if found.holds or not isinstance(found.answer, Allocation):
            break
        if turn == 0:
            rows.fit(found.answer)
        for each in found.judged:
            if each.reserve < _HOLDS:
                full[each.shape] = max(_LEAST, min(full[each.shape], each.busy) * each.reserve)
        found = rows.ask(full, solve)
    for _ in range(_RAISING):
        if not found.holds:
            break
        raised = full | {each.shape: min(1.0, max(full[each.shape], each.busy * each.reserve)) for each in found.judged}
        if raised == full:
            break
        tried = rows.ask(raised, solve)
        if not tried.holds or _cost(tried.answer) >= _cost(found.answer):
            break
        full, found = raised, tried
    return found


class _Rows:
    """The rows of every shape that has a model, for the traffic that it is expected to get."""

    def __init__(
        self,
        problem: AllocationProblem,
        models: Mapping[Shape, LatencyModel],
        promise: Promise,
        classes: tuple[Class, ...],
    ) -> None:
        self._problem, self._models, self._promise = problem, models, promise
        self._classes = classes
        self._able: dict[Shape, frozenset[Bucket]] = {}
        self.throughput: dict[Shape, ShapeThroughput] = {}
        for row in problem.throughput:
            if row.shape in models:
                self._able[row.shape] = frozenset(bucket for bucket, _ in row.requests_per_second)
                self._row(row.shape, problem.demand)

    def fit(self, plan: Allocation) -> None:
        """Choose every used shape's step time anew, for the traffic that a plan gives it."""
        for shape in sorted(self.throughput):
            demand = self._traffic(plan, shape)
            if demand is not None:
                self._row(shape, demand)

    def guess(self, shape: Shape) -> float:
        """Return the utilisation had the shape all the traffic that it is able to serve."""
        mix = self._mix(shape, self._problem.demand)
        whole = mixture.capacity(self._models[shape], self._promise.slo, mix) if mix else None
        if whole is None:
            return _LEAST
        return self._may(shape, mix, max(1, math.ceil(1 / whole)))[0]

    def ask(self, full: Mapping[Shape, float], solve: Callable[[AllocationProblem], Answer]) -> Settled:
        """Return the answer at these utilisations, and how it stands."""
        asked = replace(
            self._problem,
            throughput=tuple(self.throughput.get(row.shape, row) for row in self._problem.throughput),
            utilisation_of=tuple(
                (offering.key, full.get(offering.key.shape, self._problem.utilisations[offering.key]))
                for offering in self._problem.offerings
            ),
        )
        if self._classes:
            asked = blind(asked, self._classes, 1 - self._promise.slo.percentile / 100)
        answer = solve(asked)
        judged = (
            tuple(each for shape in sorted(self.throughput) if (each := self._judge(shape, answer)) is not None)
            if isinstance(answer, Allocation)
            else ()
        )
        return Settled(asked, answer, judged)

    def _row(self, shape: Shape, demand: Demand) -> None:
        promise = self._promise
        row = mixture.mixed(
            shape,
            self._models[shape],
            promise.slo,
            demand,
            longest=promise.longest,
            able=self._able[shape],
            sizes=promise.sizes,
        )
        if row is not None:
            self.throughput[shape] = row

    def _mix(self, shape: Shape, demand: Demand) -> tuple[Stream, ...]:
        streams = mixture.streams(demand, longest=self._promise.longest, sizes=self._promise.sizes)
        return tuple(each for bucket, parts in streams.items() if bucket in self._able[shape] for each in parts)

    def _may(self, shape: Shape, mix: tuple[Stream, ...], replicas: int) -> tuple[float, str | None]:
        found = queueing.utilisation(
            self._models[shape], self._promise.slo, mix, replicas=replicas, dispersion=self._promise.dispersion
        )
        return (max(_LEAST, found.value), found.bound) if found is not None else (_LEAST, None)

    def _judge(self, shape: Shape, plan: Allocation) -> Judged | None:
        demand = self._traffic(plan, shape)
        replicas = sum(count for key, count in plan.replicas if key.shape == shape)
        if demand is None or not replicas:
            return None
        mix = self._mix(shape, demand)
        whole = mixture.capacity(self._models[shape], self._promise.slo, mix)
        rates = dict(demand.requests_per_second)
        busy = max(
            math.fsum(rates.get(bucket, 0.0) * load for bucket, load in row.per_request)
            for row in self.throughput[shape].loads
        )
        if whole is None:
            return Judged(shape, replicas, busy / replicas, _LEAST, None)
        value, bound = self._may(shape, mix, replicas)
        return Judged(shape, replicas, busy / replicas, value * whole * replicas, bound)

    def _traffic(self, plan: Allocation, shape: Shape) -> Demand | None:
        """Return what a plan gives to all replicas of a shape, by actual sizes; None: nothing."""
        demand = self._problem.demand
        rates = dict(demand.requests_per_second)
        sizes: dict[Bucket, tuple[tuple[Bucket, float], ...]] = {bucket: ((bucket, 1.0),) for bucket in rates}
        for each in self._classes:
            rates[each.bucket] = each.requests_per_second
            sizes[each.bucket] = tuple((Bucket(each.bucket.input, output), part) for output, part in each.outputs)
        found: dict[Bucket, float] = {}
        for share in plan.shares:
            if share.shape == shape:
                for bucket, part in sizes[share.bucket]:
                    found[bucket] = found.get(bucket, 0.0) + share.share * part * rates[share.bucket]
        return Demand(demand.grid, tuple(sorted(found.items()))) if found else None


def _cost(answer: Answer) -> float:
    return answer.usd_per_hour if isinstance(answer, Allocation) else math.inf
