"""Small allocation problems, written down or drawn by Hypothesis; for tests of the allocator and its benchmark."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from medley.core.accelerators import Market, Offering, OfferingKey, Shape
from medley.core.service import Limits, SpotPolicy
from medley.core.workload import Bucket, Demand, SizeGrid
from medley.planning.problem import AllocationProblem, Cap, ShapeThroughput

FREE = Limits(max_replicas=100_000, min_replicas=0)
GRID = SizeGrid((100, 1000), (100, 1000))
SMALL, LONG_OUT, LONG_IN, LARGE = GRID.buckets()

# Mélange's example (its repository, melange/config/example.json): the answer at slice factor 1 is 3 x A10G and
# 1 x A100-80GB for $6.70.
MELANGE_EXAMPLE = {
    "gpu_info": {
        "A10G": {"cost": 1.01, "tputs": [[2, 1], [5, 2]]},
        "A100-80GB": {"cost": 3.67, "tputs": [[20, 20], [40, 20]]},
    },
    "workload_distribution": [[0.2, 0.1], [0.5, 0.2]],
    "total_request_rate": 30.0,
}
# An older example of the same repository (2024-04-12).
MELANGE_OLDER_EXAMPLE = {
    "gpu_info": {
        "A10G": {"cost": 1.01, "tputs": [[5, 1], [10, 5]]},
        "A100-80GB": {"cost": 3.67, "tputs": [[20, 2], [50, 20]]},
    },
    "workload_distribution": [[0.25, 0.125], [0.375, 0.25]],
    "total_request_rate": 30.0,
}


def key(shape: str, market: Market = Market.ON_DEMAND, zone: str = "zone-a") -> OfferingKey:
    """Return an offering's identity; `shape` is the class of a shape of one GPU."""
    return OfferingKey(Shape(shape), market, zone)


def offer(
    shape: str, usd: float, market: Market = Market.ON_DEMAND, zone: str = "zone-a", at_most: int | None = None
) -> Offering:
    """Return an offering."""
    return Offering(key(shape, market, zone), usd, at_most)


def rates(shape: str, per_bucket: Mapping[Bucket, float]) -> ShapeThroughput:
    """Return what one replica sustains."""
    return ShapeThroughput(Shape(shape), tuple(sorted(per_bucket.items())))


def problem(
    demand: Mapping[Bucket, float],
    offerings: Iterable[Offering],
    throughput: Iterable[ShapeThroughput],
    *,
    utilisation: float = 1.0,
    limits: Limits = FREE,
    spot: SpotPolicy | None = None,
    caps: tuple[Cap, ...] = (),
    fleet: tuple[tuple[OfferingKey, int], ...] = (),
) -> AllocationProblem:
    """Return a problem over GRID in which replicas are used to the full, unless said otherwise."""
    return AllocationProblem(
        Demand(GRID, tuple(sorted(demand.items()))),
        tuple(offerings),
        tuple(throughput),
        limits=limits,
        spot=spot or SpotPolicy(),
        caps=caps,
        fleet=fleet,
        utilisation=utilisation,
    )


def melange(config: Mapping[str, Any], requests_per_second: float) -> AllocationProblem:
    """Return a configuration in the format of Mélange's repository as a problem: on-demand, one zone, no bounds.

    Throughputs below one request per hour are how its authors write that a GPU cannot serve a size.
    """
    weights = config["workload_distribution"]
    grid = SizeGrid(tuple(range(1, len(weights) + 1)), tuple(range(1, len(weights[0]) + 1)))
    gpus = config["gpu_info"]
    return AllocationProblem(
        Demand(
            grid,
            tuple(
                (b, requests_per_second * weights[b.input][b.output])
                for b in grid.buckets()
                if weights[b.input][b.output]
            ),
        ),
        tuple(offer(name, float(gpu["cost"])) for name, gpu in gpus.items()),
        tuple(
            rates(
                name, {b: tput for b in grid.buckets() if (tput := float(gpu["tputs"][b.input][b.output])) > 1 / 3600}
            )
            for name, gpu in gpus.items()
        ),
        limits=FREE,
        utilisation=1.0,
    )


def config(path: Path) -> dict[str, Any]:
    """Return a configuration file in the format of Mélange's repository."""
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


_RATE = st.floats(0.05, 50.0).map(lambda value: round(value, 3))
_PRICE = st.floats(0.1, 10.0).map(lambda value: round(value, 2))


@st.composite
def problems(draw: st.DrawFn, *, most_shapes: int = 3, bounded: bool = False) -> AllocationProblem:
    """Draw a problem of few shapes; each bucket is served by the first shape at least, so that it can be met."""
    names = ["a", "b", "c", "d"][: draw(st.integers(1, most_shapes))]
    demand = draw(st.dictionaries(st.sampled_from(GRID.buckets()), _RATE, min_size=1))
    throughput = [
        rates(name, {b: draw(_RATE) for b in GRID.buckets() if number == 0 or draw(st.booleans())})
        for number, name in enumerate(names)
    ]
    offerings = [offer(name, draw(_PRICE)) for name in names]
    if not bounded:
        return problem(demand, offerings, throughput, utilisation=draw(st.sampled_from([1.0, 0.85])))
    zones = ["zone-a", "zone-b", "zone-c"][: draw(st.integers(1, 3))]
    for name in names:
        spot_price = draw(_PRICE)
        at_most = draw(st.none() | st.integers(0, 20))
        offerings += [offer(name, spot_price, Market.SPOT, zone, at_most) for zone in zones]
    return problem(
        demand,
        offerings,
        throughput,
        limits=Limits(
            max_replicas=draw(st.sampled_from([3, 20, 100_000])),
            min_replicas=draw(st.integers(0, 2)),
        ),
        spot=SpotPolicy(
            on_demand_floor=draw(st.sampled_from([0.0, 0.2, 0.5])),
            survive_zone_loss=draw(st.sampled_from([0.0, 0.5, 0.8])),
        ),
    )
