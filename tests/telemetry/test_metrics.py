"""Metrics: names and labels that dashboards match on, and gauges that go with their service."""

from datetime import UTC, datetime

from aiohttp import ClientSession
from prometheus_client import CollectorRegistry, generate_latest

from medley.core.accelerators import Market
from medley.core.identity import Role
from medley.core.notices import Cause, Notice, NoticeSource
from medley.telemetry.metrics import OperatorMetrics
from medley.telemetry.serving import served


def test_names_and_labels():
    metrics = OperatorMetrics(CollectorRegistry())
    metrics.planned("team", "chat", {Market.SPOT: 0.8}, 2.0)
    metrics.counted("team", "chat", desired=2, ready=1, spot=1)
    metrics.refusals.labels("QuotaExceeded").inc()
    metrics.certified("team", "chat", {Role.ROUTER: datetime(2030, 1, 1, tzinfo=UTC)})
    text = generate_latest(metrics.registry).decode()
    for line in (
        'medley_plan_usd_per_hour{market="spot",namespace="team",service="chat"} 0.8',
        'medley_plan_usd_per_hour{market="on-demand",namespace="team",service="chat"} 0.0',
        'medley_on_demand_usd_per_hour{namespace="team",service="chat"} 2.0',
        'medley_replicas{namespace="team",service="chat",state="ready"} 1.0',
        'medley_refusals_total{reason="QuotaExceeded"} 1.0',
        'medley_certificate_expiry_timestamp_seconds{namespace="team",role="router",service="chat"} 1.893456e+09',
        "medley_is_leader 0.0",
    ):
        assert line in text.splitlines()
    metrics.forget("team", "chat")
    assert "chat" not in generate_latest(metrics.registry).decode()


def test_a_notice_is_counted_once():
    metrics = OperatorMetrics(CollectorRegistry())
    notice = Notice("n", datetime(2030, 1, 1, tzinfo=UTC), NoticeSource.NODE_GONE, Cause.UNKNOWN)
    metrics.noticed([notice])
    metrics.noticed([notice])
    labels = {"source": "NodeGone", "cause": "Unknown"}
    assert metrics.registry.get_sample_value("medley_notices_total", labels) == 1


async def test_the_port_says_alive_ready_and_how_it_goes():
    metrics = OperatorMetrics(CollectorRegistry())
    ready = False
    async with served(metrics.registry, lambda: ready, "127.0.0.1", 0) as port, ClientSession() as session:
        answers = {}
        for path in ("livez", "readyz", "metrics"):
            async with session.get(f"http://127.0.0.1:{port}/{path}") as response:
                answers[path] = (response.status, await response.text())
        assert answers["livez"][0] == 200
        assert answers["readyz"] == (503, "the API server was not reached lately\n")
        assert "medley_is_leader" in answers["metrics"][1]
        ready = True
        async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
            assert response.status == 200
