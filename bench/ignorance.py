"""What it costs not to know outputs: blind plans beside those that know, on six workloads x six rates.

Inputs: the synthetic ones of MEDLEY_DATA (`mix/synthetic-*.json`). Without them there are no rows.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from bench.rows import Row
from bench.savings import DATA, RATES
from medley.planning.allocator import cheapest
from medley.planning.ignorance import arrivals, blind
from medley.planning.problem import AllocationProblem
from medley.testing.allocation import config, melange

SLACK = 0.01  # percentile 99


def measure() -> Iterator[Row]:
    """Yield the ratio of the blind plan's price to that of the plan that knows, by workload and over all."""
    ratios: list[float] = []
    for file in sorted((DATA / "mix").glob("synthetic-*.json")):
        own = [_ratio(melange(config(file), rate)) for rate in RATES]
        ratios += own
        shown = ", ".join(f"{rate:g}/s: {ratio:.3f}" for rate, ratio in zip(RATES, own, strict=True))
        yield Row(f"ignorance/{file.stem.removeprefix('synthetic-')}, mean", statistics.mean(own), "x", peer=shown)
    if ratios:
        yield Row("ignorance/all workloads, mean", statistics.mean(ratios), "x", peer="routing: Oracle")
        yield Row("ignorance/all workloads, worst", max(ratios), "x", peer="routing: Oracle")


def _ratio(known: AllocationProblem) -> float:
    plans = cheapest(known), cheapest(blind(known, arrivals(known.demand), SLACK))
    if plans[0] is None or plans[1] is None:
        raise ValueError("a workload that can be served was refused")
    return plans[1].usd_per_hour / plans[0].usd_per_hour
