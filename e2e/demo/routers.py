"""What the routers of a service say of themselves: their metrics."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from e2e.demo.cluster import Cluster, ready


@dataclass(frozen=True, slots=True)
class RouterCounts:
    """Counters of all routers added up, at one moment."""

    resumes: float
    pauses: tuple[tuple[float, float], ...]  # (upper bound in seconds, pauses up to it), cumulative
    last_issue: dict[str, float]  # replica -> when a router last sent it a call (Unix time)
    departures: dict[str, float]  # finished, carried, refilled -> streams of replicas that had notice

    def since(self, before: RouterCounts) -> RouterCounts:
        """Return what was counted after `before`."""
        earlier = dict(before.pauses)
        pauses = tuple((bound, count - earlier.get(bound, 0.0)) for bound, count in self.pauses)
        departures = {how: count - before.departures.get(how, 0.0) for how, count in self.departures.items()}
        return RouterCounts(self.resumes - before.resumes, pauses, self.last_issue, departures)

    def departed(self, how: str) -> int:
        """Return the streams that left after a notice in one way: finished, carried or refilled."""
        return round(self.departures.get(how, 0.0))

    def pause_at_most(self, percent: float) -> float:
        """Return the bound (seconds) that `percent` percent of the pauses kept to; NaN if there were none."""
        total = max((count for _, count in self.pauses), default=0.0)
        return next((bound for bound, count in self.pauses if total and count >= total * percent / 100), math.nan)


Read = Callable[[Cluster, str, str], Awaitable[str]]
"""Reads the metrics of a router: the cluster, its namespace, its pod."""


async def through_api_server(cluster: Cluster, namespace: str, pod: str) -> str:
    """Be a `Read` for clusters whose API server reaches pods."""
    return await cluster.kubectl("get", "--raw", f"/api/v1/namespaces/{namespace}/pods/{pod}:8080/proxy/metrics")


async def counts(cluster: Cluster, namespace: str, service: str, *, read: Read = through_api_server) -> RouterCounts:
    """Read every Ready router of a service."""
    selector = f"medley.dev/service={service},medley.dev/component=router"
    families: list[Metric] = []
    for pod in await cluster.items("pods", "--namespace", namespace, "--selector", selector):
        if ready(pod):
            families += text_string_to_metric_families(await read(cluster, namespace, pod["metadata"]["name"]))
    samples = [sample for family in families for sample in family.samples]
    pauses: dict[float, float] = {}
    last_issue: dict[str, float] = {}
    departures: dict[str, float] = {}
    for sample in samples:
        if sample.name == "medley_router_pause_seconds_bucket":
            bound = float(sample.labels["le"])
            pauses[bound] = pauses.get(bound, 0.0) + sample.value
        if sample.name == "medley_router_last_issue_timestamp_seconds":
            replica = sample.labels["replica"]
            last_issue[replica] = max(last_issue.get(replica, 0.0), sample.value)
        if sample.name == "medley_router_departures_total":
            how = sample.labels["how"]
            departures[how] = departures.get(how, 0.0) + sample.value
    resumes = sum(sample.value for sample in samples if sample.name == "medley_router_resumes_total")
    return RouterCounts(resumes, tuple(sorted(pauses.items())), last_issue, departures)
