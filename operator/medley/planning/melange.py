"""The integer programme of the Mélange paper (arXiv 2404.14527, section 5), for comparison with the allocator.

Called by tests, benchmarks and whoever asks what the paper would buy (`as_published`). Every bucket is cut into
`slices` equal parts, each served by one shape; capacity is one replica's, unreduced; every shape can be bought without
end at one price. The paper has one binary per slice and shape; here x[b][s] counts the slices of bucket b on shape s,
which has the same optimum without the symmetry that makes a solver try every permutation of equal slices.

    min sum_s c_s y_s   s.t.   sum_s x_bs = slices    sum_b x_bs l_b / (slices m_sb) <= y_s    x, y whole
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from medley.core.accelerators import Shape
from medley.core.errors import InvalidInputError, SolverError
from medley.core.workload import Bucket, Demand
from medley.planning.ilp import Effort, Programme, Row, Solved, Undecided, Unsolvable, Variable, minimise
from medley.planning.problem import MICRODOLLARS, AllocationProblem, ShapeThroughput


@dataclass(frozen=True, slots=True)
class SlicedAllocation:
    """Replicas per shape (0 included), slices per bucket and shape (0 left out), price and gap."""

    replicas: tuple[tuple[Shape, int], ...]
    slices: tuple[tuple[Bucket, Shape, int], ...]
    usd_per_hour: float
    gap: float


@dataclass(frozen=True, slots=True)
class Unservable:
    """Buckets that no shape serves."""

    buckets: tuple[Bucket, ...]


@dataclass(frozen=True, slots=True)
class _Slices:
    bucket: Bucket
    shape: Shape


def sliced(
    demand: Demand,
    throughput: tuple[ShapeThroughput, ...],
    usd_per_hour: Mapping[Shape, float],
    *,
    slices: int,
    effort: Effort | None = None,
) -> SlicedAllocation | Unservable:
    """Return the cheapest allocation of whole slices. The paper uses 8 slices; its repository's example uses 1."""
    if slices < 1:
        raise InvalidInputError("slices", f"expected 1 or more, got {slices}")
    prices = dict(sorted(usd_per_hour.items()))
    rates = {row.shape: dict(row.requests_per_second) for row in throughput}
    if missing := sorted(prices.keys() - rates.keys()):
        raise InvalidInputError("throughput", f"no throughput of {', '.join(map(str, missing))}")
    nowhere = tuple(b for b, _ in sorted(demand.requests_per_second) if not any(b in rates[s] for s in prices))
    if nowhere:
        return Unservable(nowhere)
    found = minimise(_programme(demand, rates, prices, slices), prices, effort or Effort())
    match found:
        case Solved():
            counts = tuple((shape, found.count(shape)) for shape in prices)
            return SlicedAllocation(
                replicas=counts,
                slices=tuple(
                    (key.bucket, key.shape, number)
                    for key in found.values
                    if isinstance(key, _Slices) and (number := found.count(key))
                ),
                usd_per_hour=round(math.fsum(prices[shape] * count for shape, count in counts), MICRODOLLARS),
                gap=found.gap,
            )
        case Unsolvable() | Undecided():
            raise SolverError("the sliced programme was not solved within the solver's limits")


def as_published(problem: AllocationProblem, *, slices: int = 8) -> SlicedAllocation | Unservable:
    """Return what the paper's programme makes of a problem: `mode: melange`.

    Every shape at the lowest price that it is offered at, without end; no spot loss, cap, bound or utilisation, and of
    what bounds a replica only requests/s measured alone.
    """
    prices: dict[Shape, float] = {}
    for offering in problem.offerings:
        shape = offering.key.shape
        if shape in problem.rates:
            prices[shape] = min(offering.usd_per_hour, prices.get(shape, math.inf))
    return sliced(problem.demand, problem.throughput, prices, slices=slices, effort=problem.effort)


def _programme(
    demand: Demand, rates: Mapping[Shape, Mapping[Bucket, float]], prices: Mapping[Shape, float], slices: int
) -> Programme:
    variables = [Variable(shape, integer=True) for shape in prices]
    rows: list[Row] = []
    loads: dict[Shape, dict[object, float]] = {shape: {shape: -1.0} for shape in prices}
    for bucket, demanded in sorted(demand.requests_per_second):
        parts = [_Slices(bucket, shape) for shape in prices if bucket in rates[shape]]
        variables += [Variable(part, upper=float(slices), integer=True) for part in parts]
        rows.append(Row(dict.fromkeys(parts, 1.0), at_least=float(slices), at_most=float(slices)))
        for part in parts:
            loads[part.shape][part] = demanded / slices / rates[part.shape][bucket]
    rows += [Row(terms, at_most=0.0) for terms in loads.values()]
    return Programme(tuple(variables), tuple(rows))
