"""Rates derived from a latency model, in the simulated engine: whether they keep the promise, how far they are off.

The engine is Llama 2 7B on an A100 80 GB by its data sheet; requests are of one size at a time, Poisson, one replica.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import numpy as np

from bench.rows import Row
from medley.cli.profile.catalogue import gpu
from medley.core.latency import LatencyModel
from medley.core.profiles import FittedLatency
from medley.core.workload import Slo
from medley.planning.predicted import Predicted, predicted
from medley.planning.roofline import Dtype, ModelShape, Roofline
from medley.simulation.arrivals import Requests, poisson
from medley.simulation.fleet import Replica, serve

SIZES = ((100, 100), (500, 250), (1000, 100), (2000, 500), (4000, 50), (100, 1000), (8000, 250))
SLOS = (
    Slo(99.0, timedelta(seconds=2), timedelta(milliseconds=40)),
    Slo(95.0, timedelta(seconds=1), timedelta(milliseconds=60)),
)
REQUESTS, WARM_UP = 4000, 400
FACTORS = (1.05, 1.1, 1.2, 1.3, 1.5, 2.0)  # of the derived rate, at which the promise is tried as well


def measure() -> Iterator[Row]:
    """Yield the worst attainment at derived rates, and by how much they could have been higher."""
    model = Roofline(gpu("a100-80gb"), ModelShape(6.74e9, 32, 4096, 32, 128, Dtype.FP16, Dtype.FP16)).linear(
        max_running=256, max_batched_tokens=2048
    )
    exact = FittedLatency(model, 0.0, 100_000, 256, 100_000)
    short: list[float] = []
    room: list[float] = []
    for slo in SLOS:
        for size in SIZES:
            found = predicted(exact, slo, *size)
            if not isinstance(found, Predicted) or found.requests_per_second <= 0:
                continue
            rate = found.requests_per_second
            short.append(slo.percentile - 100 * attainment(model, slo, size, rate))
            kept = [f for f in FACTORS if 100 * attainment(model, slo, size, rate * f) >= slo.percentile]
            room.append(max(kept, default=1.0))
    yield Row(
        "derived/attainment below the promised percentile, worst",
        max(short),
        "points",
        peer=f"{sum(each > 0 for each in short)} of {len(short)} sizes and SLOs below, TTFT and TPOT together",
    )
    yield Row("derived/rate that would still keep the promise, worst", max(room), "x of the derived one")


def attainment(model: LatencyModel, slo: Slo, size: tuple[int, int], rate: float) -> float:
    """Return the part of the requests that meets both bounds, once the engine has warmed up."""
    inputs, outputs = size
    arrivals = poisson(rate, REQUESTS, np.random.default_rng(1))
    served = serve(
        Requests(arrivals, np.full(REQUESTS, inputs), np.full(REQUESTS, outputs)), [Replica("a", "a", model)]
    )
    ttft = served.first_token_s - arrivals
    tpot = (served.last_token_s - served.first_token_s) / (outputs - 1)
    met = np.ones(REQUESTS, dtype=bool)
    if slo.ttft is not None:
        met &= ttft <= slo.ttft.total_seconds()
    if slo.tpot is not None:
        met &= tpot <= slo.tpot.total_seconds()
    return float(met[WARM_UP:].mean())
