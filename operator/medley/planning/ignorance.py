"""What a router cannot see: how many tokens a request will make. Plans by what it can: input tokens and max_tokens.

    classes = arrivals(demand)                     # of a forecast, which knows outputs but no max_tokens
    asked = blind(problem, classes, slack)         # the same problem by arrival class
    table = for_all_limits(allocation.shares, grid)

Called by `question` and `kube/plan_status`. An arrival class is a `Bucket` of the demand's grid: its input range and,
in place of the output range, the range of max_tokens. All requests of a class are routed alike, so a shape that takes a
share of a class takes that share of each of its outputs: it is loaded by the expected load, and must be able to serve
every output but for a part that the SLO's percentile forgives. `routing: Oracle` leaves all of this out, as the Mélange
paper does. Pure. Derivation: docs/allocation.md, "What the router can see".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from medley.core.errors import InvalidInputError
from medley.core.workload import Bucket, Demand, SizeGrid
from medley.planning.problem import AllocationProblem, Load, ShapeThroughput, Share

_WHOLE = 1e-6  # probabilities of a class add up to 1 within this


@dataclass(frozen=True, slots=True)
class Class:
    """An arrival class: its requests/s, and P(output range | class); outputs of probability 0 are absent."""

    bucket: Bucket  # input range x range of max_tokens
    requests_per_second: float
    outputs: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        if any(not 0 < part <= 1 for _, part in self.outputs) or not math.isclose(
            math.fsum(part for _, part in self.outputs), 1.0, abs_tol=_WHOLE
        ):
            raise InvalidInputError(
                f"outputs of class {self.bucket}", f"expected probabilities that add up to 1, got {self.outputs}"
            )
        if any(output > self.bucket.output for output, _ in self.outputs):
            raise InvalidInputError(f"outputs of class {self.bucket}", "more tokens than max_tokens allows")


def arrivals(demand: Demand) -> tuple[Class, ...]:
    """Return the classes of a demand that is known by output: clients do not say max_tokens, or one that tells nothing.

    One class per input range, its max_tokens the longest output that is expected there.
    """
    by_input: dict[int, dict[int, float]] = {}
    for bucket, rate in sorted(demand.requests_per_second):
        by_input.setdefault(bucket.input, {})[bucket.output] = rate
    return tuple(
        _class(Bucket(inputs, max(rates)), rates, math.fsum(rates.values())) for inputs, rates in by_input.items()
    )


def learned(prior: Class, counts: Mapping[int, float], *, weight: float) -> Class:
    """Return a class with outputs as they were counted (requests per output range), beside what was believed before.

    `weight`: requests that the prior is worth: the mean of the Dirichlet distribution that the counts lead to.
    """
    if not (math.isfinite(weight) and weight >= 0) or any(
        not (math.isfinite(count) and count >= 0) for count in counts.values()
    ):
        raise InvalidInputError("counts of outputs", "expected numbers of 0 or more")
    believed = {output: weight * part for output, part in prior.outputs}
    for output, count in counts.items():
        believed[output] = believed.get(output, 0.0) + count
    kept = {output: count for output, count in sorted(believed.items()) if count > 0}
    return _class(prior.bucket, kept, prior.requests_per_second) if kept else prior


def blind(problem: AllocationProblem, classes: Iterable[Class], slack: float) -> AllocationProblem:
    """Return a problem by what routers see; its throughput by output is that of `problem`.

    `slack`: part of the requests that may miss the SLO, 0.01 at percentile 99. A shape that cannot serve some output of
    a class within the SLO may serve the class only if no more than this part of it has such outputs.
    """
    if not 0 <= slack < 1:
        raise InvalidInputError("spec.slo.percentile", f"expected a slack of 0 to 1, got {slack}")
    kept = tuple(each for each in classes if each.requests_per_second > 0)
    grid = problem.demand.grid
    seen = (_seen(row, kept, grid, slack) for row in problem.throughput)
    return replace(
        problem,
        demand=Demand(grid, tuple(sorted((each.bucket, each.requests_per_second) for each in kept))),
        throughput=tuple(row for row in seen if row.requests_per_second),
    )


def for_all_limits(shares: Iterable[Share], grid: SizeGrid) -> tuple[Share, ...]:
    """Return shares for every range of max_tokens: a class that the plan does not know gets those of its next longer.

    What can serve the longer class can serve the shorter; beyond the longest the longest stands, since no more
    is expected. Input ranges without demand have no shares.
    """
    known: dict[Bucket, list[Share]] = {}
    for share in shares:
        known.setdefault(share.bucket, []).append(share)
    table: list[Share] = []
    for inputs in sorted({bucket.input for bucket in known}):
        limits = sorted(bucket.output for bucket in known if bucket.input == inputs)
        for limit in range(len(grid.output_edges)):
            like = next((each for each in limits if each >= limit), limits[-1])
            table += [replace(share, bucket=Bucket(inputs, limit)) for share in known[Bucket(inputs, like)]]
    return tuple(table)


def _class(bucket: Bucket, weights: Mapping[int, float], requests_per_second: float) -> Class:
    total = math.fsum(weights.values())
    return Class(bucket, requests_per_second, tuple((output, each / total) for output, each in weights.items()))


def _seen(row: ShapeThroughput, classes: Iterable[Class], grid: SizeGrid, slack: float) -> ShapeThroughput:
    """Return what one replica sustains of every class: the inverse of its expected load."""
    able = dict(row.requests_per_second)
    loads = {load.name: dict(load.per_request) for load in row.loads}
    rates: list[tuple[Bucket, float]] = []
    expected: dict[str, list[tuple[Bucket, float]]] = {name: [] for name in loads}
    for each in classes:
        inputs = each.bucket.input
        missed = math.fsum(part for output, part in each.outputs if Bucket(inputs, output) not in able)
        if missed > slack or missed >= 1:
            continue
        stands = [(part, *_stand_in(able, inputs, output, grid)) for output, part in each.outputs]
        rates.append((each.bucket, 1 / math.fsum(part * more / able[bucket] for part, bucket, more in stands)))
        for name, per_request in loads.items():
            load = math.fsum(part * more * per_request.get(bucket, 0.0) for part, bucket, more in stands)
            expected[name].append((each.bucket, load))
    return replace(
        row,
        requests_per_second=tuple(sorted(rates)),
        loads=tuple(Load(name, tuple(sorted(parts))) for name, parts in expected.items()),
    )


def _stand_in(able: Mapping[Bucket, float], inputs: int, output: int, grid: SizeGrid) -> tuple[Bucket, float]:
    """Return the bucket whose load is known for a size, and how many times that load it is at most.

    A size that is not served within the SLO loads its replica all the same. Of sizes that are, the next longer; else
    the longest, times the ratio of output x (input + output / 2), the token-steps held in memory, which grow faster
    with the output than anything else that a request takes.
    """
    wanted = Bucket(inputs, output)
    if wanted in able:
        return wanted, 1.0
    there = sorted(bucket.output for bucket in able if bucket.input == inputs)
    longer = next((each for each in there if each > output), None)
    if longer is not None:
        return Bucket(inputs, longer), 1.0
    tokens = grid.input_edges[inputs]
    held = [edge * (tokens + edge / 2) for edge in (grid.output_edges[output], grid.output_edges[there[-1]])]
    return Bucket(inputs, there[-1]), held[0] / held[1]
