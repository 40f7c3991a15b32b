"""The allocator beside Mélange's programme as published, and at the size of a large operator.

The peer is written from the paper's formulas (arXiv 2404.14527, section 5): a binary per slice and GPU type, 8 slices,
PuLP and CBC, cut at 60 s. Inputs are the six synthetic ones of the paper's size (60 buckets, 4 GPU types) that
MEDLEY_DATA holds, at 1 to 32 requests/s; without that folder, the presets with the throughputs below. FULL=1 takes all
six rates, otherwise three. All times are processor seconds of one thread (CBC's own and PuLP's), so that other work on
the machine changes little; both sides are timed from the question as a value to the answer as a value.
"""

from __future__ import annotations

import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pulp

from bench._offerings import large
from bench.rows import Row
from medley.core.accelerators import Market, Offering, OfferingKey, Shape
from medley.core.service import Limits, SpotPolicy
from medley.core.workload import MELANGE_GRID, Bucket
from medley.planning.allocator import allocate, extended, reallocate
from medley.planning.melange import SlicedAllocation, sliced
from medley.planning.presets import COUNTS, preset
from medley.planning.problem import Allocation, AllocationProblem, Infeasible, ShapeThroughput
from medley.testing.allocation import MELANGE_EXAMPLE, config, melange

SLICES = 8
CBC_SECONDS = 60
FULL = os.environ.get("FULL") == "1"
RATES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0) if FULL else (2.0, 8.0, 32.0)
DATA = Path(os.environ.get("MEDLEY_DATA") or Path(__file__).parents[2] / "shared" / "data") / "mix"
ZONES = ("zone-a", "zone-b", "zone-c")
SPOT_PRICE = 0.4  # of on-demand
CENT = 0.005
LEAST_RATIO, MOST_SECONDS = 20.0, 0.5
MOST_LARGE_SECONDS, MOST_GAP, MOST_BYTES = 5.0, 1e-3, 1e9
MOST_WARM_SECONDS = 0.2
LARGE_RATES, LARGE_SEEDS = (5.0, 50.0, 500.0), (0, 1, 2)
# Shapes and zones of the growth curve: 12 to 1,152 offerings in two markets.
GROWTH = ((3, 2), (6, 2), (12, 2), (12, 4), (36, 4), (72, 4), (144, 4))
# Prices: Mélange table 1 (USD per GPU-hour). Speeds: tokens/s of prefill and of decode, of the order that vLLM reaches
# with a 7B model; longest: the paper sends inputs of 12,000 tokens and more to the large GPUs only.
GPUS = {
    "l4": (0.70, 5_000, 250, 8_000),
    "a10g": (1.01, 6_500, 520, 8_000),
    "a100-80gb": (3.67, 24_000, 2_300, 16_000),
    "h100": (7.516, 60_000, 4_500, 16_000),
}


@dataclass(frozen=True, slots=True)
class Beside:
    """One input solved here and by the published programme: USD/h and processor seconds."""

    usd: float
    seconds: float
    their_usd: float
    their_seconds: float


def measure() -> Iterator[Row]:
    """Yield cost and time beside the published programme, then at the size of a large operator."""
    example = melange(MELANGE_EXAMPLE, 30.0)
    yield Row(
        "allocator/Mélange's example, one slice",
        _cut(example, 1).usd_per_hour,
        "USD/h",
        "6.7",
        abs(_cut(example, 1).usd_per_hour - 6.70) < CENT,
        "published: 6.70",
    )
    yield from _published_rows()
    yield from _hedged_rows()
    yield from _large_rows()
    yield from _warm_rows()
    yield from _growth_rows()


def _published_rows() -> Iterator[Row]:
    inputs, where = _inputs()
    allocate(inputs[0])  # what is loaded once is not timed
    found = [_beside(each) for each in inputs]
    worst = max(each.usd / each.their_usd for each in found)
    ratios = [each.their_seconds / each.seconds for each in found]
    cut = sum(each.their_seconds >= 0.9 * CBC_SECONDS for each in found)
    peer = f"{len(inputs)} of {where}; CBC cut at {CBC_SECONDS} s: {cut}"
    yield Row("allocator/cost against the published programme, worst", worst, "x", "at most 1", worst <= 1 + 1e-6, peer)
    saved = 100 * statistics.mean(1 - each.usd / each.their_usd for each in found)
    yield Row("allocator/saved by continuous shares, mean", saved, "%", peer=peer)
    ratio = statistics.median(ratios)
    yield Row(
        "allocator/times as fast as the published programme, median",
        ratio,
        "x",
        f"at least {LEAST_RATIO:g}",
        ratio >= LEAST_RATIO,
        f"median {_ms(each.seconds for each in found)} ms, CBC {_ms(each.their_seconds for each in found)} ms",
    )
    yield Row("allocator/times as fast, least", min(ratios), "x", peer=f"most {max(ratios):.0f} x")
    slowest = max(each.seconds for each in found)
    yield Row(
        "allocator/time at the paper's size, worst",
        slowest,
        "s",
        f"below {MOST_SECONDS:g}",
        slowest < MOST_SECONDS,
        f"CBC: {max(each.their_seconds for each in found):.1f} s",
    )


def _hedged_rows() -> Iterator[Row]:
    seconds = [_timed(_hedged(each))[1] for each in _inputs()[0]]
    for name, value in (("median", statistics.median(seconds)), ("worst", max(seconds))):
        yield Row(
            f"allocator/time with spot, 3 zones, floor and zone loss, {name}", value * 1e3, "ms", peer="24 offerings"
        )


def _large_rows() -> Iterator[Row]:
    runs = [_apart(36, 4, rate, seed) for seed in LARGE_SEEDS for rate in LARGE_RATES]
    what = f"allocator/288 offerings x 100 classes x 4 losses ({len(runs)} instances)"
    seconds, gap, memory = (max(run[name] for run in runs) for name in ("seconds", "gap", "bytes"))
    middle = statistics.median(run["seconds"] for run in runs)
    yield Row(
        f"{what}: time, worst",
        seconds,
        "s",
        f"below {MOST_LARGE_SECONDS:g}",
        seconds < MOST_LARGE_SECONDS,
        f"median {middle:.2f} s",
    )
    yield Row(f"{what}: proven gap, worst", 100 * gap, "%", f"at most {100 * MOST_GAP:g}", gap <= MOST_GAP)
    yield Row(f"{what}: memory, worst", memory / 1e6, "MB", "below 1000", memory < MOST_BYTES)


def _warm_rows() -> Iterator[Row]:
    kept: list[tuple[float, float]] = []
    anew: list[float] = []
    for seed in LARGE_SEEDS:
        for rate in LARGE_RATES:
            asked = large(36, 4, rate, seed)
            found, learnt = reallocate(asked)
            lost = max(_allocation(found).replicas, key=lambda each: each[1])[0]
            left = replace(
                asked,
                offerings=tuple(o for o in asked.offerings if o.key != lost),
                fleet=tuple(each for each in _allocation(found).replicas if each[0] != lost),
            )
            started = time.process_time()
            quick = extended(left, learnt)
            seconds = time.process_time() - started
            started = time.process_time()
            best = _allocation(reallocate(left, learnt)[0])
            anew.append(time.process_time() - started)
            if quick is not None:
                kept.append((seconds, quick.objective / best.objective - 1))
    times = [seconds for seconds, _ in kept]
    middle = statistics.median(times)
    name = "allocator/re-solve after the most used of 288 offerings is lost"
    yield Row(
        f"{name}, keeping what is left: median",
        middle * 1e3,
        "ms",
        f"below {MOST_WARM_SECONDS * 1e3:g}",
        middle < MOST_WARM_SECONDS,
        f"worst {max(times) * 1e3:.0f} ms; dearer than anew by {100 * max(dearer for _, dearer in kept):.1f} % at most",
    )
    yield Row(f"{name}, anew: median", statistics.median(anew) * 1e3, "ms", peer=f"worst {max(anew) * 1e3:.0f} ms")


def _growth_rows() -> Iterator[Row]:
    for shapes, zones in GROWTH:
        run = _apart(shapes, zones, 50.0, 0)
        peer = f"gap {100 * run['gap']:.2g} %, {run['bytes'] / 1e6:.0f} MB"
        yield Row(f"allocator/growth: {shapes * zones * 2:,} offerings", run["seconds"], "s", peer=peer)


def _inputs() -> tuple[list[AllocationProblem], str]:
    files = sorted(DATA.glob("synthetic-*.json"))
    if files:
        return [melange(config(file), rate) for file in files for rate in RATES], f"6 inputs x {len(RATES)} rates"
    return [_instance(name, rate) for name in sorted(COUNTS) for rate in RATES], "the presets"


def _beside(problem: AllocationProblem) -> Beside:
    """Solve both ways; where that takes less than a second, thrice, and the median counts."""
    ours = [_timed(problem) for _ in range(3)]
    theirs = [_published(problem)]
    if theirs[0][1] < 1:
        theirs += [_published(problem) for _ in range(2)]
    return Beside(
        ours[0][0].usd_per_hour,
        statistics.median(seconds for _, seconds in ours),
        theirs[0][0],
        statistics.median(seconds for _, seconds in theirs),
    )


def _ms(seconds: Iterator[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.0f}"


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


def _timed(problem: AllocationProblem) -> tuple[Allocation, float]:
    asked = replace(problem)  # a value that has worked out nothing yet
    started = time.process_time()
    found = allocate(asked)
    return _allocation(found), time.process_time() - started


def _allocation(found: Allocation | Infeasible) -> Allocation:
    if not isinstance(found, Allocation):
        raise TypeError(f"an instance that can be met was refused: {found.message}")
    return found


def _cut(problem: AllocationProblem, slices: int = SLICES) -> SlicedAllocation:
    prices = {each.key.shape: each.usd_per_hour for each in problem.offerings}
    found = sliced(problem.demand, problem.throughput, prices, slices=slices)
    if not isinstance(found, SlicedAllocation):
        raise TypeError(f"no GPU serves {found.buckets}")
    return found


def _published(problem: AllocationProblem) -> tuple[float, float]:
    """Return what the published programme's best answer costs (infinite: none in time) and the processor seconds."""
    before = time.process_time() + _children()
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
    programme.solve(pulp.PULP_CBC_CMD(msg=False, timeLimit=CBC_SECONDS, timeMode="cpu"))
    seconds = time.process_time() + _children() - before
    counts = [count.value() for count in bought.values()]
    if programme.sol_status not in {pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible} or None in counts:
        return math.inf, seconds
    return sum(price * round(count) for price, count in zip(prices.values(), counts, strict=True)), seconds


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _apart(shapes: int, zones: int, requests_per_second: float, seed: int) -> dict[str, float]:
    """Solve a large problem in a process of its own, whose memory is its own."""
    command = [sys.executable, "-m", "bench.allocator", *map(str, (shapes, zones, requests_per_second, seed))]
    answer: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer


def main() -> None:
    """Solve one large problem (shapes, zones, requests/s, seed) and print seconds, gap and memory."""
    shapes, zones, rate, seed = sys.argv[1:]
    asked = large(int(shapes), int(zones), float(rate), int(seed))
    found, seconds = _timed(asked)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "gap": found.gap, "bytes": peak, "usd": found.usd_per_hour}))


if __name__ == "__main__":
    main()
