"""Allocation problems of the size of a large operator, made of data sheets and chance; for bench/allocator.py.

Synthetic: prices of 12 GPU classes as clouds ask for them, speeds of the order that a 7B model reaches, tensor-parallel
sizes 1, 2, 4, 8 of each and pipelines of those, two markets, spot at 30 to 60 % of on-demand, quotas of 2 to 32 spot
GPUs per class and zone, 100 arrival classes (10 input ranges x 10 output bounds), 20 % on-demand, and 80 % of the
demand served after the loss of any zone's spot. With 4 zones these are 4 loss scenarios.
"""

from __future__ import annotations

import math
from datetime import timedelta
from random import Random

from medley.core.accelerators import Market, Offering, OfferingKey, Shape
from medley.core.service import Limits, SpotPolicy
from medley.core.workload import Bucket, Demand, SizeGrid
from medley.planning.ilp import Effort
from medley.planning.problem import AllocationProblem, Quota, ShapeThroughput

GRID = SizeGrid(
    (25, 100, 250, 500, 1000, 2000, 4000, 8000, 12000, 16000), (25, 50, 100, 200, 400, 600, 800, 1000, 1500, 2000)
)
# USD per GPU-hour, prefill and decode tokens/s, tokens of KV cache
CLASSES = {
    "t4": (0.35, 1_800, 110, 6_000),
    "l4": (0.70, 5_000, 250, 24_000),
    "a10g": (1.01, 6_500, 520, 24_000),
    "l40s": (1.86, 14_000, 900, 60_000),
    "v100": (2.20, 6_000, 700, 20_000),
    "a100-40gb": (2.90, 20_000, 1_700, 60_000),
    "a100-80gb": (3.67, 24_000, 2_300, 130_000),
    "h100": (7.516, 60_000, 4_500, 130_000),
    "h200": (8.90, 62_000, 6_000, 280_000),
    "b200": (12.50, 110_000, 9_500, 400_000),
    "mi300x": (6.20, 50_000, 4_800, 400_000),
    "gh200": (7.90, 60_000, 5_600, 200_000),
}


def large(shapes: int, zones: int, requests_per_second: float, seed: int = 0) -> AllocationProblem:
    """Return a problem of shapes x 2 markets x zones offerings; `seed`: of the chance in prices, speeds and quotas."""
    chance = Random(seed)
    names = [f"zone-{chr(ord('a') + number)}" for number in range(zones)]
    throughput: list[ShapeThroughput] = []
    offerings: list[Offering] = []
    used: list[str] = []
    for number in range(shapes):
        name = list(CLASSES)[-1 - number % len(CLASSES)]  # few shapes: those that serve the longest requests
        doubled = number // len(CLASSES)
        tensor, pipeline = 1 << min(doubled, 3), max(1, doubled - 2)  # beyond 8 GPUs: pipelines of 2, 3, ... stages
        gpus = tensor * pipeline
        used.append(name)
        usd, prefill, decode, kv = CLASSES[name]
        speed = gpus * 0.92**doubled * chance.uniform(0.9, 1.1)
        shape = Shape(name, tensor, pipeline)
        throughput.append(_throughput(shape, prefill * speed, decode * speed, kv * gpus * 1.15**doubled))
        for zone in names:
            on_demand, spot = usd * gpus * chance.uniform(1, 1.05), usd * gpus * chance.uniform(0.3, 0.6)
            offerings += [
                Offering(OfferingKey(shape, Market.ON_DEMAND, zone), round(on_demand, 4), None),
                Offering(
                    OfferingKey(shape, Market.SPOT, zone),
                    round(spot, 4),
                    None,
                    chance.uniform(0.005, 0.1),
                    timedelta(minutes=4),
                ),
            ]
    return AllocationProblem(
        _demand(requests_per_second, chance),
        tuple(offerings),
        tuple(throughput),
        limits=Limits(max_replicas=100_000, min_replicas=0),
        spot=SpotPolicy(on_demand_floor=0.2, survive_zone_loss=0.8),
        quotas=tuple(
            Quota(chance.choice([2.0, 4.0, 8.0, 16.0, 32.0]), name, Market.SPOT, zone)
            for name in dict.fromkeys(used)
            for zone in names
        ),
        effort=Effort(max_seconds=60),
    )


def _throughput(shape: Shape, prefill: float, decode: float, kv: float) -> ShapeThroughput:
    rates: list[tuple[Bucket, float]] = []
    for bucket in GRID.buckets():
        inputs, outputs = GRID.sizes(bucket)
        if inputs + outputs <= kv / 3:
            rates.append((bucket, 1 / (inputs / prefill + outputs / decode * (1 + (inputs + outputs) / 4_000))))
    return ShapeThroughput(shape, tuple(rates))


def _demand(requests_per_second: float, chance: Random) -> Demand:
    weights: dict[Bucket, float] = {}
    for bucket in GRID.buckets():
        inputs, outputs = GRID.sizes(bucket)
        far = 0.6 * abs(math.log(inputs / 700)) + 0.7 * abs(math.log(outputs / 250))
        weights[bucket] = math.exp(-far) * chance.uniform(0.5, 1.5)
    total = math.fsum(weights.values())
    return Demand(GRID, tuple((b, requests_per_second * weight / total) for b, weight in sorted(weights.items())))
