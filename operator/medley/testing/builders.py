"""Values with defaults, so that a test shows only what it is about: a service `chat`, classes l4 and h100, zones a, b.

    plan(observed(replicas=(replica(n=0), replica(n=1, phase=ReplicaPhase.DRAINING))), NOW)

One l4 sustains 2 requests/s within the SLO and costs 0.40 USD per hour on spot and 1.00 on demand; one h100 sustains 10
requests/s and costs 4.00 and 9.00. Plans use 85 % of that.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from medley.core.accelerators import AcceleratorClass, KarpenterNodes, Market, NodeOffer, OfferingKey, Shape
from medley.core.profiles import Latency, LatencyPoint, Profile, ProfileSource
from medley.core.service import (
    Forecast,
    Histogram,
    Limits,
    MigrationMode,
    OperatingMode,
    Service,
    SpotPolicy,
    WorkloadSource,
)
from medley.core.workload import SizeGrid, Slo
from medley.planning.fleet import Observed, Replica, ReplicaPhase, RouterState, Standing
from medley.planning.rollout import pod_name

NOW = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)
MODEL = "acme/model-7b"
ZONES = ("a", "b")
GRID = SizeGrid((1000,), (1000,))
USD_PER_HOUR = {"l4": (1.0, 0.4), "h100": (9.0, 4.0)}
REQUESTS_PER_SECOND = {"l4": 2.0, "h100": 10.0}


def service(**changes: Any) -> Service:
    """Return a service that needs two l4: 3 requests/s, 2 x 2 x 0.85 = 3.4."""
    default = Service(
        namespace="default",
        name="chat",
        uid="chat-uid",
        generation=1,
        model=MODEL,
        max_model_len=4096,
        slo=Slo(99, timedelta(seconds=2), timedelta(milliseconds=100)),
        forecast=Forecast(3.0, Histogram(GRID, ((1.0,),))),
        workload_source=WorkloadSource.FORECAST,
        classes=(),
        zones=(),
        spot=SpotPolicy(),
        limits=Limits(max_usd_per_hour=Decimal(40), max_replicas=20, min_replicas=1),
        migration=MigrationMode.AUTO,
        mode=OperatingMode.AUTO,
    )
    return replace(default, **changes)


def accelerator_class(name: str = "l4", *, max_nodes: int | None = None, **changes: Any) -> AcceleratorClass:
    """Return a class of one GPU per node, sold on demand and as spot in both zones."""
    on_demand, spot = USD_PER_HOUR[name]
    default = AcceleratorClass(
        name=name,
        uid=f"{name}-uid",
        gpu_memory_bytes=24 * 2**30,
        gpus_per_node=1,
        resource_name="nvidia.com/gpu",
        nodes=KarpenterNodes("karpenter.k8s.aws", "EC2NodeClass", "gpu", (f"{name}.large", f"{name}.xlarge")),
        offers=tuple(
            NodeOffer(market, zone, price, max_nodes)
            for market, price in ((Market.ON_DEMAND, on_demand), (Market.SPOT, spot))
            for zone in ZONES
        ),
    )
    return replace(default, **changes)


def profile(name: str = "l4", **changes: Any) -> Profile:
    """Return a profile that keeps the promise of `service` up to REQUESTS_PER_SECOND."""
    latencies = (Latency(99, timedelta(seconds=1), timedelta(milliseconds=50)),)
    default = Profile(
        name=f"model-7b-{name}",
        model=MODEL,
        shape=Shape(name),
        source=ProfileSource.MEASURED,
        measured_at=NOW - timedelta(days=1),
        max_model_len=8192,
        max_running=32,
        points=(LatencyPoint(1000, 1000, REQUESTS_PER_SECOND[name], latencies),),
    )
    return replace(default, **changes)


def offering(market: Market = Market.SPOT, zone: str = "a", name: str = "l4") -> OfferingKey:
    """Return an offering of one-GPU replicas."""
    return OfferingKey(Shape(name), market, zone)


def replica(key: OfferingKey | None = None, n: int = 0, **changes: Any) -> Replica:
    """Return a replica that serves on a node of its own."""
    key = offering() if key is None else key
    name = pod_name("chat", key, n)
    default = Replica(
        name=name,
        uid=f"{name}-uid",
        offering=key,
        phase=ReplicaPhase.SERVING,
        created_at=NOW - timedelta(hours=1),
        node=f"node-of-{name}",
        assigned=True,
    )
    return replace(default, **changes)


def waiting(key: OfferingKey | None = None, n: int = 0, *, since: datetime | None = None, **changes: Any) -> Replica:
    """Return a replica that waits for a node; `since`: when the scheduler found none."""
    unplaced = {"phase": ReplicaPhase.WAITING, "node": "", "assigned": True, "unschedulable_since": since}
    return replica(key, n, **{**unplaced, **changes})


def observed(**changes: Any) -> Observed:
    """Return what a pass sees: `service` with classes and profiles, routers that are ready, no replicas."""
    default = Observed(
        service=service(),
        classes=(accelerator_class("l4"), accelerator_class("h100")),
        profiles=(profile("l4"), profile("h100")),
        router=RouterState(exists=True, wanted=2, pods=2, ready=2),
        standing=Standing(),
        finalizer=True,
    )
    return replace(default, **changes)


def steady(**changes: Any) -> Observed:
    """Return a service in which all that is planned serves: two spot l4 in zone a."""
    fleet = (replica(n=0), replica(n=1))
    return observed(**{"replicas": fleet, "standing": Standing(replicas=((offering(), 2),)), **changes})
