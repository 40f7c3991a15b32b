"""The allocator beside Mélange's programme as published: binaries, one per slice, through PuLP and CBC.

Instances are of the paper's size (60 buckets, 4 GPU types, 8 slices) with its prices; throughputs come from the simple
model below, since the paper's tables were never published, and sizes from the presets.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

import pulp

from bench.rows import Row
from medley.core.accelerators import Market, Offering, OfferingKey, Shape
from medley.core.service import Limits, SpotPolicy
from medley.core.workload import MELANGE_GRID, Bucket
from medley.planning.allocator import allocate
from medley.planning.melange import SlicedAllocation, sliced
from medley.planning.presets import COUNTS, preset
from medley.planning.problem import Allocation, AllocationProblem, ShapeThroughput
from medley.testing.allocation import MELANGE_EXAMPLE, melange

SLICES = 8
CBC_SECONDS = 20
RATES = (1.0, 4.0, 16.0, 32.0)
ZONES = ("zone-a", "zone-b", "zone-c")
SPOT_PRICE = 0.4  # of on-demand
CENT = 0.005
# Prices: Mélange table 1 (USD per GPU-hour). Speeds: tokens/s of prefill and of decode, of the order that vLLM reaches
# with a 7B model; longest: the paper sends inputs of 12,000 tokens and more to the large GPUs only.
GPUS = {
    "l4": (0.70, 5_000, 250, 8_000),
    "a10g": (1.01, 6_500, 520, 8_000),
    "a100-80gb": (3.67, 24_000, 2_300, 16_000),
    "h100": (7.516, 60_000, 4_500, 16_000),
}


def measure() -> Iterator[Row]:
    """Yield cost and time of every way to solve, over all instances."""
    instances = [_instance(name, rate) for name in sorted(COUNTS) for rate in RATES]
    ours, our_seconds = zip(*(_timed_allocation(each) for each in instances), strict=True)
    cut = [_cut(each) for each in instances]
    published = [_published(each) for each in instances]
    proven = [(mine, theirs) for mine, (theirs, _) in zip(cut, published, strict=True) if theirs is not None]
    hedged_seconds = [_timed_allocation(_hedged(each))[1] for each in instances]
    cbc = [seconds for _, seconds in published]
    worst = max(mine.usd_per_hour / theirs.usd_per_hour for mine, theirs in zip(ours, cut, strict=True))
    saved = statistics.mean(1 - mine.usd_per_hour / theirs.usd_per_hour for mine, theirs in zip(ours, cut, strict=True))
    example = melange(MELANGE_EXAMPLE, 30.0)
    yield _row("Mélange's example, one slice", _cut(example, 1).usd_per_hour, "USD/h", 6.70, "published: 6.70")
    yield Row(
        "allocator/slices as integers: cost against binaries",
        max((abs(mine.usd_per_hour - theirs) for mine, theirs in proven), default=0.0),
        "USD/h apart",
        "0",
        all(abs(mine.usd_per_hour - theirs) < CENT for mine, theirs in proven),
        f"CBC proved {len(proven)} of {len(instances)} within {CBC_SECONDS} s",
    )
    yield Row(
        "allocator/cost against 8 slices, worst",
        worst,
        "x",
        "at most 1",
        worst <= 1 + 1e-6,
        f"{len(instances)} instances",
    )
    yield Row("allocator/saved by continuous shares, mean", 100 * saved, "%")
    median, peer = statistics.median(our_seconds), statistics.median(cbc)
    yield Row(
        "allocator/time, median", median * 1e3, "ms", "below CBC", median < peer, f"CBC, binaries: {peer * 1e3:.0f} ms"
    )
    yield Row(
        "allocator/time, worst",
        max(our_seconds) * 1e3,
        "ms",
        "below CBC",
        max(our_seconds) < max(cbc),
        f"CBC, binaries: {max(cbc) * 1e3:.0f} ms (stopped at {CBC_SECONDS} s)",
    )
    for name, seconds in (("median", statistics.median(hedged_seconds)), ("worst", max(hedged_seconds))):
        yield Row(
            f"allocator/time with spot, 3 zones, floor and zone loss, {name}", seconds * 1e3, "ms", peer="24 offerings"
        )


def _row(what: str, value: float, unit: str, want: float, peer: str) -> Row:
    return Row(f"allocator/{what}", value, unit, f"{want:g}", abs(value - want) < CENT, peer)


def _instance(name: str, requests_per_second: float) -> AllocationProblem:
    return AllocationProblem(
        preset(name).demand(requests_per_second),
        tuple(
            Offering(OfferingKey(Shape(gpu), Market.ON_DEMAND, ZONES[0]), price, None)
            for gpu, (price, _, _, _) in GPUS.items()
        ),
        tuple(_throughput(gpu) for gpu in GPUS),
        limits=Limits(max_replicas=100_000, min_replicas=0),
        utilisation=1.0,
    )


def _throughput(gpu: str) -> ShapeThroughput:
    _, prefill, decode, longest = GPUS[gpu]
    rates: list[tuple[Bucket, float]] = []
    for bucket in MELANGE_GRID.buckets():
        inputs, outputs = MELANGE_GRID.sizes(bucket)
        if inputs <= longest:
            # Long requests leave room for smaller batches, so decoding slows down with their length.
            rates.append((bucket, 1 / (inputs / prefill + outputs / decode * (1 + (inputs + outputs) / 4_000))))
    return ShapeThroughput(Shape(gpu), tuple(rates))


def _hedged(problem: AllocationProblem) -> AllocationProblem:
    return replace(
        problem,
        offerings=tuple(
            Offering(OfferingKey(each.key.shape, market, zone), each.usd_per_hour * factor, None)
            for each in problem.offerings
            for market, factor in ((Market.ON_DEMAND, 1.0), (Market.SPOT, SPOT_PRICE))
            for zone in ZONES
        ),
        spot=SpotPolicy(on_demand_floor=0.2, survive_zone_loss=0.8),
    )


def _timed_allocation(problem: AllocationProblem) -> tuple[Allocation, float]:
    started = time.perf_counter()
    found = allocate(problem)
    seconds = time.perf_counter() - started
    if not isinstance(found, Allocation):
        raise TypeError(f"an instance that can be met was refused: {found.message}")
    return found, seconds


def _cut(problem: AllocationProblem, slices: int = SLICES) -> SlicedAllocation:
    prices = {each.key.shape: each.usd_per_hour for each in problem.offerings}
    found = sliced(problem.demand, problem.throughput, prices, slices=slices)
    if not isinstance(found, SlicedAllocation):
        raise TypeError(f"no GPU serves {found.buckets}")
    return found


def _published(problem: AllocationProblem) -> tuple[float | None, float]:
    """Return what the published programme costs (None: not proven in time) and the seconds it took."""
    programme = pulp.LpProblem("published", pulp.LpMinimize)
    prices = {each.key.shape: each.usd_per_hour for each in problem.offerings}
    rates = {row.shape: dict(row.requests_per_second) for row in problem.throughput}
    bought = {
        shape: programme.add_variable(f"buy_{number}", lowBound=0, cat=pulp.LpInteger)
        for number, shape in enumerate(prices)
    }
    programme.setObjective(pulp.lpSum(prices[shape] * count for shape, count in bought.items()))
    loads: dict[Shape, list[pulp.LpAffineExpression]] = {shape: [] for shape in prices}
    for number, (bucket, rate) in enumerate(problem.demand.requests_per_second):
        for slice_number in range(SLICES):
            able = [shape for shape in prices if bucket in rates[shape]]
            placed = [
                programme.add_variable(f"place_{number}_{slice_number}_{gpu}", 0, 1, pulp.LpInteger)
                for gpu in range(len(able))
            ]
            programme.addConstraint(pulp.lpSum(placed) == 1)
            for shape, here in zip(able, placed, strict=True):
                loads[shape].append(rate / SLICES / rates[shape][bucket] * here)
    for shape, load in loads.items():
        programme.addConstraint(pulp.lpSum(load) <= bought[shape])
    started = time.perf_counter()
    programme.solve(pulp.PULP_CBC_CMD(msg=False, timeLimit=CBC_SECONDS))
    seconds = time.perf_counter() - started
    proven = programme.sol_status == pulp.LpSolutionOptimal and seconds < CBC_SECONDS
    return (sum(prices[shape] * round(count.value()) for shape, count in bought.items()) if proven else None), seconds
