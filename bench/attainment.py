"""Do the allocator's plans keep the promise? Plans for six workloads, served by the simulated engines.

Workloads are the histograms of `mix/synthetic-*.json` (MEDLEY_DATA), or twins of them from the presets where the data
is not there. GPUs have Mélange's prices and step times by the roofline of `medley profile estimate`, for Llama-2-7B.
Every plan is served with Poisson arrivals, sizes drawn evenly within their buckets, and the router's rule.
Promises: TPOT alone, at the attainment that the Mélange paper measured (section 6.3: 99.5 % within 40 ms, 99.95 %
within 120 ms); and our own, the 99th percentile of TPOT with TTFT within 2 s. Beside them the same programme with one
utilisation for all, as it was before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path

import numpy as np

from bench.rows import Row
from bench.simulator import LONGEST, engine
from medley.core.accelerators import Market, Offering, OfferingKey, Shape
from medley.core.latency import LatencyModel
from medley.core.service import Limits
from medley.core.workload import MELANGE_GRID, Bucket, Demand, Slo
from medley.planning import mixture
from medley.planning.allocator import allocate
from medley.planning.mixture import Sizes
from medley.planning.presets import preset
from medley.planning.problem import Allocation, AllocationProblem, ShapeThroughput
from medley.planning.routing import RoutingTable
from medley.planning.settled import Promise, settled
from medley.simulation import arrivals
from medley.simulation.arrivals import Requests
from medley.simulation.fleet import Replica, serve

DATA = Path(os.environ.get("MEDLEY_DATA") or Path(__file__).parents[2] / "shared" / "data")
PRICES = {"l4": 0.70, "a10g": 1.01, "a100-80gb": 3.67, "h100": 7.516}  # Mélange table 1, USD per GPU-hour
TWINS: Mapping[str, Mapping[str, float]] = {
    "arena": {"chat": 1.0},
    "pubmed": {"summarization": 1.0},
    "mixed": {"chat": 0.8, "summarization": 0.2},
}
RATES = (1.0, 4.0, 16.0)
REQUESTS = 20_000
PAPER = {40: 99.5, 120: 99.95}  # milliseconds of TPOT: per cent
CONSTANT = 0.85  # utilisation of every shape and size before there was a limit of each


@dataclass(frozen=True, slots=True)
class Case:
    """One plan, planned by limits (`utilisation` None) or at one utilisation for all, and what its requests met."""

    workload: str
    requests_per_second: float
    slo: Slo
    utilisation: float | None
    usd_per_hour: float
    replicas: tuple[tuple[str, int], ...]
    expected: bool  # whether the formulas say that it holds
    attained: float

    @property
    def kept(self) -> bool:
        return self.attained >= self.slo.percentile / 100


def measure() -> Iterator[Row]:
    limited: list[Case] = []
    constant: list[Case] = []
    for slo in _promises():
        here = [_case(name, rate, slo, None) for name in TWINS for rate in RATES]
        limited += here
        constant += [_case(name, rate, slo, CONSTANT) for name in TWINS for rate in RATES]
        worst = min(here, key=lambda case: case.attained)
        yield Row(
            f"attainment/{_name(slo)}, worst of {len(here)} plans",
            100 * worst.attained,
            "%",
            f"at least {slo.percentile:g}",
            worst.kept,
            f"{worst.workload} at {worst.requests_per_second:g} requests/s",
        )
    yield Row(
        "attainment/plans that keep their promise",
        100 * sum(case.kept for case in limited) / len(limited),
        "%",
        "100",
        all(case.kept for case in limited),
        f"at {CONSTANT:g} of capacity for all: {100 * sum(case.kept for case in constant) / len(constant):.0f} %, "
        f"worst {100 * min(case.attained for case in constant):.1f} %",
    )
    dearer = [one.usd_per_hour / other.usd_per_hour for one, other in zip(limited, constant, strict=True)]
    yield Row(
        "attainment/price of keeping it, against 0.85 of capacity for all, mean", 100 * (np.mean(dearer) - 1), "%"
    )


def cases(utilisation: float | None) -> Iterator[Case]:
    """Yield every plan, served."""
    for slo in _promises():
        for name in TWINS:
            for rate in RATES:
                yield _case(name, rate, slo, utilisation)


def _promises() -> tuple[Slo, ...]:
    paper = tuple(Slo(percentile, None, timedelta(milliseconds=ms)) for ms, percentile in PAPER.items())
    return *paper, *(Slo(99.0, timedelta(seconds=2), each.tpot) for each in paper)


def _name(slo: Slo) -> str:
    tpot = f"TPOT {slo.tpot / timedelta(milliseconds=1):g} ms" if slo.tpot else ""
    return f"{tpot}{f', TTFT {slo.ttft.total_seconds():g} s' if slo.ttft else ''} at {slo.percentile:g} %"


def _case(name: str, rate: float, slo: Slo, utilisation: float | None) -> Case:
    models = {Shape(gpu): engine(gpu) for gpu in PRICES}
    demand = _demand(name, rate)
    if utilisation is None:
        found = settled(_problem(demand, models, slo), models, Promise(slo, LONGEST, sizes=Sizes.EVEN))
        plan, expected = found.answer, found.holds
    else:
        plan, expected = allocate(replace(_problem(demand, models, slo, rows=True), utilisation=utilisation)), False
    if not isinstance(plan, Allocation):
        raise TypeError(f"{name} at {rate:g} requests/s was refused: {plan.message}")
    return Case(
        name,
        rate,
        slo,
        utilisation,
        plan.usd_per_hour,
        tuple((key.shape.key, count) for key, count in plan.replicas),
        expected,
        _attained(plan, demand, models, slo),
    )


def _problem(
    demand: Demand, models: Mapping[Shape, LatencyModel], slo: Slo, *, rows: bool = False
) -> AllocationProblem:
    throughput: list[ShapeThroughput] = []
    for shape, model in models.items():
        able = mixture.served(model, slo, demand.grid, longest=LONGEST)
        row = mixture.mixed(shape, model, slo, demand, longest=LONGEST, able=able, sizes=Sizes.EVEN)
        if row is not None:
            throughput.append(row if rows else ShapeThroughput(shape, tuple((bucket, 1.0) for bucket in able)))
    return AllocationProblem(
        demand,
        tuple(
            Offering(OfferingKey(row.shape, Market.ON_DEMAND, "zone-a"), PRICES[row.shape.accelerator_class], None)
            for row in throughput
        ),
        tuple(throughput),
        limits=Limits(max_replicas=100_000, min_replicas=0),
    )


def _attained(plan: Allocation, demand: Demand, models: Mapping[Shape, LatencyModel], slo: Slo) -> float:
    chance = np.random.default_rng(1)
    inputs, outputs = arrivals.sizes(demand, REQUESTS, chance)
    requests = Requests(arrivals.poisson(demand.total, REQUESTS, chance), inputs, outputs)
    shares: dict[Bucket, list[tuple[str, float]]] = {}
    for each in plan.shares:
        shares.setdefault(each.bucket, []).append((each.shape.key, each.share))
    table = RoutingTable(demand.grid, {bucket: tuple(parts) for bucket, parts in shares.items()})
    fleet = [
        Replica(f"{key.shape}-{number:03}", key.shape.key, models[key.shape])
        for key, count in plan.replicas
        for number in range(count)
    ]
    return serve(requests, fleet, table).after(REQUESTS // 10).attainment(slo)


@cache
def _weights(name: str) -> tuple[tuple[Bucket, float], ...]:
    """Return the parts of requests per bucket; rarer than 1 in 10,000 is left out, as nobody could tell its share."""
    path = DATA / "mix" / f"synthetic-{name}-40ms.json"
    weights: dict[Bucket, float] = {}
    if path.is_file():
        rows = json.loads(path.read_text())["workload_distribution"]
        weights = {Bucket(i, o): weight for i, row in enumerate(rows) for o, weight in enumerate(row) if weight >= 1e-4}
    else:
        for part, share in TWINS[name].items():
            for bucket, rate in preset(part).demand(share).requests_per_second:
                weights[bucket] = weights.get(bucket, 0.0) + rate
    whole = sum(weights.values())
    return tuple((bucket, weight / whole) for bucket, weight in sorted(weights.items()))


def _demand(name: str, rate: float) -> Demand:
    return Demand(MELANGE_GRID, tuple((bucket, weight * rate) for bucket, weight in _weights(name)))


def main() -> None:
    """Print every case as a table in Markdown."""
    print(
        "| promise | workload | requests/s | plan | USD/h | attained | at 0.85 for all |\n|---|---|---|---|---|---|---|"
    )
    for ours, theirs in zip(cases(None), cases(CONSTANT), strict=True):
        plan = ", ".join(f"{count} {shape}" for shape, count in ours.replicas)
        said = ("" if ours.kept else " **missed**") + ("" if ours.expected else " (not expected to hold)")
        print(
            f"| {_name(ours.slo)} | {ours.workload} | {ours.requests_per_second:g} | {plan} | {ours.usd_per_hour:.2f} "
            f"| {100 * ours.attained:.2f} %{said} "
            f"| {100 * theirs.attained:.2f} % for {theirs.usd_per_hour:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
