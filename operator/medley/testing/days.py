"""Days of demand for tests and benchmarks, made up: a daily curve with noise about it, over the Azure hour's sizes.

No public trace of requests is longer than an hour with sizes, so a day is synthetic and says so: sizes as they were in
that hour (the preset `chat` counts them), rates by a curve that rises 3:1 and falls again, a step a minute.
"""

from __future__ import annotations

import csv
import math
import random
from pathlib import Path

from medley.core.accelerators import Market, Offering, OfferingKey, Shape
from medley.core.service import Histogram, Limits
from medley.core.workload import MELANGE_GRID, Bucket
from medley.planning.presets import preset
from medley.planning.problem import AllocationProblem, ShapeThroughput

MINUTES = 1440
RATIO = 3.0
NOISE = 0.10
# USD per hour (Mélange table 1); tokens/s of prefill and of decode of the order that vLLM reaches with a 7B model.
GPUS = {"l4": (0.70, 5_000, 250), "a10g": (1.01, 6_500, 520), "a100-80gb": (3.67, 24_000, 2_300)}


def day(seed: int, *, steps: int = MINUTES, ratio: float = RATIO, noise: float = NOISE) -> list[float]:
    """Return a day's demand, step by step, as multiples of its lowest: a cosine, each step up to `noise` off it."""
    chance = random.Random(seed)  # noqa: S311  # a made-up day, not a secret
    curve = (1 + (ratio - 1) * (1 - math.cos(2 * math.pi * step / steps)) / 2 for step in range(steps))
    return [level * (1 + chance.uniform(-noise, noise)) for level in curve]


def azure_hour(file: Path) -> Histogram:
    """Return the sizes of an hour of AzurePublicDataset's 2023 traces (TIMESTAMP,ContextTokens,GeneratedTokens)."""
    weights = [[0.0] * len(MELANGE_GRID.output_edges) for _ in MELANGE_GRID.input_edges]
    with file.open(newline="") as opened:
        for row in csv.DictReader(opened):
            bucket = MELANGE_GRID.bucket(int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            weights[bucket.input][bucket.output] += 1
    return Histogram(MELANGE_GRID, tuple(map(tuple, weights)))


def at_night(requests_per_second: float, sizes: Histogram | None = None) -> AllocationProblem:
    """Return the problem of the quietest minute: on demand in one zone, without bounds; sizes None: the preset chat."""
    demand = (sizes or preset("chat")).demand(requests_per_second)
    return AllocationProblem(
        demand,
        tuple(
            Offering(OfferingKey(Shape(gpu), Market.ON_DEMAND, "zone-a"), price, None)
            for gpu, (price, _, _) in GPUS.items()
        ),
        tuple(_throughput(gpu) for gpu in GPUS),
        limits=Limits(max_replicas=10_000, min_replicas=0),
    )


def _throughput(gpu: str) -> ShapeThroughput:
    _, prefill, decode = GPUS[gpu]
    rates: list[tuple[Bucket, float]] = []
    for bucket in MELANGE_GRID.buckets():
        inputs, outputs = MELANGE_GRID.sizes(bucket)
        rates.append((bucket, 1 / (inputs / prefill + outputs / decode * (1 + (inputs + outputs) / 4_000))))
    return ShapeThroughput(Shape(gpu), tuple(rates))
