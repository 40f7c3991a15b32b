"""A made-up day as the operator would live it: passes over what routers counted, without a cluster.

    days = learnt([day(seed) for seed in ...], night, MIDNIGHT, seed=1)     # what a week leaves in the status
    fleets, left = operated(rates, MIDNIGHT, Standing(days=days), seed=1)   # by minute, and the status at the end
    cost = paid(by_night(night), fleets, demand, before)                    # and how often it was not enough

Called by tests and `bench/changes.py`. Each pass is `proposal.propose` on what an operator observes. What it remembers
goes through the status, as it is written and read back. A new fleet serves once its cold start is over, until then the
old one does.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from medley.core.accelerators import AcceleratorClass, KarpenterNodes, Market, NodeOffer, OfferingKey
from medley.core.profiles import Latency, LatencyPoint, Profile, ProfileSource
from medley.core.service import Forecast, Limits, Service, WorkloadSource
from medley.core.traffic import Counts
from medley.core.workload import MELANGE_GRID, Slo
from medley.kube.workload_status import days_in, traffic_in, workload_status
from medley.planning.changes import USUAL_COLD_START, launch_usd, launches_usd
from medley.planning.days import Days, remembered
from medley.planning.fleet import Observed, Replica, ReplicaPhase, RouterState, Standing
from medley.planning.foresight import served
from medley.planning.ledger import Ledger, read
from medley.planning.presets import preset
from medley.planning.problem import Allocation, AllocationProblem
from medley.planning.proposal import propose
from medley.planning.question import ask
from medley.planning.separation import Separation
from medley.planning.traffic import at_rate
from medley.testing.builders import MODEL, service
from medley.testing.days import GPUS, MINUTES, at_night

MINUTE = timedelta(minutes=1)
MIDNIGHT = datetime(2030, 1, 7, tzinfo=UTC)
_SIZES = tuple((MELANGE_GRID.sizes(bucket), part) for bucket, part in preset("chat").demand(1.0).requests_per_second)
_WINDOW = 5  # minutes

Fleet = tuple[tuple[OfferingKey, int], ...]


@dataclass(frozen=True, slots=True)
class Paid:
    """What a day came to: `above`: minutes whose own rate, or that of the five minutes up to them, was too much."""

    usd: float
    changes: int
    minutes_above: int
    five_minutes_above: int


def chat() -> Service:
    """Return a service that is planned for what comes, without bounds."""
    return service(
        max_model_len=None,
        forecast=Forecast(1.0, "chat"),
        workload_source=WorkloadSource.OBSERVED,
        slo=Slo(99, timedelta(seconds=2), timedelta(milliseconds=100)),
        limits=Limits(max_replicas=10_000, min_replicas=0),
    )


def classes() -> tuple[AcceleratorClass, ...]:
    """Return the classes of `days.GPUS`, on demand in one zone."""
    return tuple(
        AcceleratorClass(
            name=gpu,
            uid=f"{gpu}-uid",
            gpu_memory_bytes=80 * 2**30,
            gpus_per_node=1,
            resource_name="nvidia.com/gpu",
            nodes=KarpenterNodes("karpenter.k8s.aws", "EC2NodeClass", "gpu", (gpu,)),
            offers=(NodeOffer(Market.ON_DEMAND, "zone-a", price, None),),
        )
        for gpu, (price, _, _) in GPUS.items()
    )


def profiles() -> tuple[Profile, ...]:
    """Return profiles that were measured at every size of the grid."""
    latencies = (Latency(99, timedelta(seconds=1), timedelta(milliseconds=50)),)
    return tuple(
        Profile(
            name=f"model-7b-{row.shape}",
            model=MODEL,
            shape=row.shape,
            source=ProfileSource.MEASURED,
            measured_at=MIDNIGHT,
            max_model_len=sum(MELANGE_GRID.sizes(row.requests_per_second[-1][0])),
            max_running=256,
            points=tuple(
                LatencyPoint(*MELANGE_GRID.sizes(bucket), rate, latencies) for bucket, rate in row.requests_per_second
            ),
        )
        for row in at_night(1.0).throughput
    )


_SERVICE, _CLASSES, _PROFILES = chat(), classes(), profiles()


def learnt(days: Sequence[Sequence[float]], night: float, until: datetime, *, seed: int) -> Days:
    """Return what is remembered at a midnight of the days before it, minute by minute in multiples of `night`."""
    chance, known, ledger, came = random.Random(seed), None, Ledger(), 0.0  # noqa: S311  # a made-up day
    begun = until - len(days) * timedelta(days=1)
    for number, rate in enumerate(rate for each in days for rate in each):
        mean = night * rate * 60
        came += max(0.0, chance.gauss(mean, math.sqrt(mean)))
        now = begun + (number + 1) * MINUTE
        ledger = read(ledger, {"r": Counts({_SIZES[0][0]: came})}, now)
        if now.minute % 30 == 0:
            known = remembered(known, ledger, now)
    return known or Days()


def operated(
    rates: Sequence[float], begun: datetime, standing: Standing, *, seed: int, every: int = 5
) -> tuple[tuple[Fleet, ...], Standing]:
    """Return the fleet that is wanted minute by minute, and what the status says at the end.

    `rates`: requests/s by minute; how many come is as by chance. The operator begins with an empty ledger, as a new
    leader does. `every`: minutes between passes.
    """
    chance = random.Random(seed)  # noqa: S311  # a made-up day, not a secret
    requests: Counter[tuple[int, int]] = Counter()
    outputs: Counter[tuple[int, int, int]] = Counter()
    ledger, fleets = Ledger(), []
    for minute, rate in enumerate(rates):
        came = max(0.0, chance.gauss(rate * 60, math.sqrt(rate * 60)))
        for size, part in _SIZES:
            requests[size] += came * part  # type: ignore[assignment]  # parts of requests, so that sizes do not scatter
            outputs[*size, size[1]] += came * part  # type: ignore[assignment]
        now = begun + (minute + 1) * MINUTE
        ledger = read(ledger, {"r": Counts(dict(requests), dict(outputs))}, now)
        if minute % every == 0:
            standing = _passed(standing, ledger, now)
        fleets.append(standing.replicas)
    return tuple(fleets), standing


def by_night(night: float) -> AllocationProblem:
    """Return what the allocator is asked at the quietest minute, by the sizes that the operator measures."""
    _, standing = operated([night] * 10, MIDNIGHT, Standing(), seed=0)
    if standing.traffic is None:
        raise ValueError("ten minutes were measured, and say nothing")
    return ask(_SERVICE, _CLASSES, _PROFILES, traffic=at_rate(standing.traffic, night)).problem


def paid(problem: AllocationProblem, fleets: Sequence[Fleet], demand: Sequence[float], before: Fleet) -> Paid:
    """Return what fleets cost, launches included, and how many minutes had more than what served then could take.

    `problem`: by_night; `demand`: in its multiples; `before`: the fleet of the minute before.
    """
    separation = Separation(problem)
    price = {each.key: each.usd_per_hour for each in problem.offerings}
    launch = {each.key: launch_usd(each) for each in problem.offerings}
    takes = {
        fleet: served(problem, Allocation(fleet, (), 0.0, 0.0), separation) if fleet else 0.0
        for fleet in {before, *fleets}
    }
    path = (before, *fleets)
    usd = math.fsum(price[key] * count for fleet in fleets for key, count in fleet) * 24 / MINUTES
    usd += math.fsum(launches_usd(dict(a), b, launch) for a, b in itertools.pairwise(path) if a != b)
    starting = USUAL_COLD_START // MINUTE
    above = [0, 0]
    for minute, (fleet, rate) in enumerate(zip(fleets, demand, strict=True)):
        able = min(takes[fleet], takes[path[max(minute + 1 - starting, 0)]])
        lately = demand[max(minute + 1 - _WINDOW, 0) : minute + 1]
        above[0] += rate > able
        above[1] += math.fsum(lately) / len(lately) > able
    return Paid(usd, sum(a != b for a, b in itertools.pairwise(path)), *above)


def _passed(standing: Standing, ledger: Ledger, now: datetime) -> Standing:
    """Return what the status says after a pass, as the next one reads it."""
    there = tuple(
        Replica(f"{key}-{n}", f"{key}-{n}", key, ReplicaPhase.SERVING, MIDNIGHT, node=f"{key}-{n}", assigned=True)
        for key, count in standing.replicas
        for n in range(count)
    )
    found = propose(
        Observed(
            service=_SERVICE,
            classes=_CLASSES,
            profiles=_PROFILES,
            replicas=there,
            router=RouterState(exists=True, pods=2, ready=2),
            standing=standing,
            finalizer=True,
            ledger=ledger,
        ),
        now,
    )
    written = workload_status(found.traffic, found.days)
    return Standing(tuple(sorted(found.wanted.items())), found.unavailable, (), traffic_in(written), days_in(written))
