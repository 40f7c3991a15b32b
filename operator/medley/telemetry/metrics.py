"""Every metric of the operator: names, labels, units; nothing else makes one.

`handlers/reconciling.py` records, `telemetry/serving.py` exposes. Gauges of a service that is gone are removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from medley.core.accelerators import Market
from medley.core.identity import Role
from medley.core.notices import Notice

_PASS_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_KNOWN_NOTICES = 10_000


class OperatorMetrics:
    """The operator's metrics in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        service = ("namespace", "service")
        self.plan_usd_per_hour = Gauge(
            "medley_plan_usd_per_hour", "Price of the plan in force, by market", (*service, "market"), registry=registry
        )
        self.on_demand_usd_per_hour = Gauge(
            "medley_on_demand_usd_per_hour",
            "Price of the cheapest plan without spot for the same demand and SLO",
            service,
            registry=registry,
        )
        self.replicas = Gauge(
            "medley_replicas", "Replicas: desired, ready, spot (ready on spot)", (*service, "state"), registry=registry
        )
        self.reconcile_seconds = Histogram(
            "medley_reconcile_seconds",
            "Duration of a pass over one service",
            ("result",),
            buckets=_PASS_BUCKETS,
            registry=registry,
        )
        self.refusals = Counter(
            "medley_refusals_total", "Things medley refused or was refused, by reason", ("reason",), registry=registry
        )
        self.notices = Counter(
            "medley_notices_total", "Notices about nodes with engines", ("source", "cause"), registry=registry
        )
        self.certificate_ends = Gauge(
            "medley_certificate_expiry_timestamp_seconds",
            "End of the certificates of a service, by role; renewed 60 days before",
            (*service, "role"),
            registry=registry,
        )
        self.is_leader = Gauge("medley_is_leader", "1 while this operator leads", registry=registry)
        self._known: dict[tuple[str, str], None] = {}

    def planned(self, namespace: str, service: str, by_market: dict[Market, float], on_demand: float | None) -> None:
        """Record what a plan costs, in USD per hour."""
        for market in Market:
            self.plan_usd_per_hour.labels(namespace, service, market.value).set(by_market.get(market, 0.0))
        if on_demand is not None:
            self.on_demand_usd_per_hour.labels(namespace, service).set(on_demand)

    def counted(self, namespace: str, service: str, *, desired: int, ready: int, spot: int) -> None:
        """Record the replicas of a service."""
        for state, count in (("desired", desired), ("ready", ready), ("spot", spot)):
            self.replicas.labels(namespace, service, state).set(count)

    def certified(self, namespace: str, service: str, ends: Mapping[Role, datetime]) -> None:
        """Record until when the certificates of a service hold."""
        for role, end in ends.items():
            self.certificate_ends.labels(namespace, service, role.value).set(end.timestamp())

    def noticed(self, notices: Iterable[Notice]) -> None:
        """Count notices, each node and source once."""
        for notice in notices:
            key = (notice.node, notice.source.value)
            if key in self._known:
                continue
            self._known[key] = None
            if len(self._known) > _KNOWN_NOTICES:
                del self._known[next(iter(self._known))]
            self.notices.labels(notice.source.value, notice.cause.value).inc()

    def forget(self, namespace: str, service: str) -> None:
        """Remove the gauges of a service that is gone."""
        for gauge in (self.plan_usd_per_hour, self.on_demand_usd_per_hour, self.replicas, self.certificate_ends):
            gauge.remove_by_labels({"namespace": namespace, "service": service})
