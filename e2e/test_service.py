"""One service from `helm install` to `helm uninstall` on a real cluster with real vLLM; the tests run in this order.

Each test is one thing that a platform engineer does or that happens to them. They share the service: starting engines
is what costs time here.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from typing import Any

import pytest

from e2e.demo import manifests, story
from e2e.demo.cluster import CommandError, condition, ready, until
from e2e.demo.load import Load
from e2e.prepare import Environment
from e2e.stage import paths

pytestmark = [pytest.mark.stage, pytest.mark.asyncio(loop_scope="session")]

SYSTEM = "medley-system"


@pytest.fixture(scope="module")
def cluster(environment: Environment) -> Any:
    return environment.cluster


@pytest.fixture(scope="module")
def load() -> list[Load]:
    """The load, made by the test that first has something to send it to."""
    return []


async def test_the_chart_installs_and_its_own_test_passes(environment: Environment) -> None:
    await environment.cluster.install(environment.images, f"defaults.engineImage={environment.engine_image}")
    said = await environment.cluster.helm("test", "medley", "--namespace", SYSTEM, "--timeout", "120s")
    assert "Succeeded" in said


async def test_a_service_is_planned_over_spot_and_on_demand_and_served(environment: Environment, cluster: Any) -> None:
    await story.apply_catalogue(cluster)
    await story.apply_service(cluster, environment.engine_image)
    plan = (await story.planned(cluster))["status"]["plan"]
    markets = Counter[str]()
    for offering in plan["offerings"]:
        markets[offering["market"]] += offering["replicas"]
    assert dict(markets) == {"spot": 1, "on-demand": 1}
    assert float(plan["usdPerHour"]) < float(plan["onDemandUSDPerHour"])
    service = await story.serving(cluster)
    conditions = {c["type"]: c["status"] for c in service["status"]["conditions"]}
    assert {k: conditions[k] for k in ("PlanFeasible", "CapacityReady", "Ready")} == {
        "PlanFeasible": "True",
        "CapacityReady": "True",
        "Ready": "True",
    }


async def test_engines_run_where_the_plan_says_and_routers_never_on_spot(cluster: Any) -> None:
    nodes = {n["metadata"]["name"]: n["metadata"]["labels"] for n in await cluster.items("nodes")}
    for pod in await cluster.engines(story.NAMESPACE, story.SERVICE):
        labels, node = pod["metadata"]["labels"], nodes[pod["spec"]["nodeName"]]
        assert node["karpenter.sh/capacity-type"] == labels["medley.dev/market"]
        assert node["topology.kubernetes.io/zone"] == labels["medley.dev/zone"]
    selector = "medley.dev/component=router"
    routers = await cluster.items("pods", "--namespace", story.NAMESPACE, "--selector", selector)
    assert len(routers) >= 2
    assert {nodes[p["spec"]["nodeName"]].get("karpenter.sh/capacity-type") for p in routers} == {"on-demand"}


@pytest.mark.usefixtures("environment")
async def test_an_idle_operator_writes_nothing_but_its_lease() -> None:
    await asyncio.sleep(5)
    since = time.time()
    await asyncio.sleep(30)
    assert writes_of_medley(since) == {}


async def test_streams_survive_a_reclaimed_node_with_and_without_notice(cluster: Any, load: list[Load]) -> None:
    clients = Load(await story.entrance_url(cluster), manifests.MODEL, concurrency=24)
    load.append(clients)
    await clients.record_references(24)
    running = asyncio.create_task(clients.run())
    try:
        await asyncio.sleep(3)
        noticed = await story.take_away(cluster, clients, "karpenter", 30)
        await story.serving(cluster)
        sudden = await story.take_away(cluster, clients, "none", 0)
    finally:
        clients.stop()
        await running
    assert [s for s in clients.streams if s.broken] == []
    # With 30 s to go a stream of this model ends where it is, or moves: either way nothing new went there.
    assert noticed.streams
    assert sudden.moved > 0


async def test_a_killed_operator_goes_on_where_it_was(cluster: Any) -> None:
    await story.serving(cluster)
    await cluster.kubectl(
        "delete", "pods", "--namespace", SYSTEM, "--all", "--grace-period=0", "--force", "--wait=false"
    )
    pod = await story.spot_engine(cluster)
    await cluster.kubectl("delete", "pod", pod["metadata"]["name"], "--namespace", story.NAMESPACE, "--wait=false")
    service = await story.serving(cluster)
    assert condition(service, "Ready")["status"] == "True"


async def test_streams_survive_a_router_that_is_replaced(cluster: Any, load: list[Load]) -> None:
    clients = Load(await story.entrance_url(cluster), manifests.MODEL, concurrency=8)
    await story.serving(cluster)
    clients.references = load[0].references
    running = asyncio.create_task(clients.run())
    await asyncio.sleep(2)
    await cluster.kubectl("rollout", "restart", f"deployment/{story.SERVICE}-router", "--namespace", story.NAMESPACE)
    await asyncio.sleep(10)
    clients.stop()
    await running
    assert [s for s in clients.streams if s.broken] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({"accelerators": {"classes": ["l5"]}}, "no AcceleratorClass named l5", id="an unknown class"),
        pytest.param({"slo": {"percentile": 99, "tpot": "1ms"}}, "relax the SLO", id="an SLO beyond every class"),
        pytest.param({"limits": {"maxUSDPerHour": "0.10"}}, "spec.limits.maxUSDPerHour", id="a budget too small"),
    ],
)
async def test_what_cannot_be_is_said_in_a_condition(cluster: Any, change: Any, said: str) -> None:
    wanted = manifests.service("wrong", "wrong", "none:1", mode="Plan")
    wanted["spec"] |= change
    await cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "wrong"}}, wanted)

    async def refused() -> dict[str, Any]:
        found = condition(await cluster.get("llmservice", "wrong", "--namespace", "wrong"), "PlanFeasible")
        return found if found.get("status") == "False" and said in found["message"] else {}

    await until(f"PlanFeasible=False with {said!r}", refused, seconds=60)
    await cluster.kubectl("delete", "llmservice", "wrong", "--namespace", "wrong", "--timeout=60s")


async def test_two_services_of_one_name_do_not_meet(cluster: Any) -> None:
    twin = manifests.service(story.SERVICE, "twin", "none:1", mode="Plan")
    await cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "twin"}}, twin)
    await story.planned(cluster, "twin")
    assert await cluster.engines("twin", story.SERVICE) == []
    await cluster.kubectl("delete", "llmservice", story.SERVICE, "--namespace", "twin", "--timeout=60s")
    assert condition(await cluster.get("llmservice", story.SERVICE, "-n", story.NAMESPACE), "Ready")["status"] == "True"


@pytest.mark.usefixtures("environment")
async def test_nobody_was_forbidden_anything() -> None:
    forbidden = Counter(
        f"{e['user']['username']} {e['verb']} {e['objectRef'].get('resource')}"
        for e in audit_events()
        if e.get("responseStatus", {}).get("code") == 403 and is_medley(e)
    )
    assert forbidden == {}


async def test_after_helm_uninstall_services_serve_on_and_can_be_deleted(cluster: Any) -> None:
    await cluster.helm("uninstall", "medley", "--namespace", SYSTEM, "--wait", "--timeout", "120s")
    engines = await cluster.engines(story.NAMESPACE, story.SERVICE)
    assert sum(map(ready, engines)) >= 1
    await cluster.kubectl("delete", "llmservice", story.SERVICE, "--namespace", story.NAMESPACE, "--timeout=60s")

    async def gone() -> bool:
        return await cluster.engines(story.NAMESPACE, story.SERVICE) == []

    await until("engine pods collected", gone, seconds=120)
    with pytest.raises(CommandError, match="NotFound"):
        await cluster.get("llmservice", story.SERVICE, "--namespace", story.NAMESPACE)


def audit_events() -> list[dict[str, Any]]:
    """Return what the API server's audit log says, finished requests only."""
    with (paths.logs() / "audit.jsonl").open() as lines:
        events = [json.loads(line) for line in lines if line.endswith("}\n")]
    return [event for event in events if event["stage"] == "ResponseComplete"]


def is_medley(event: dict[str, Any]) -> bool:
    """Whether the operator or a router asked."""
    name = event["user"]["username"]
    return name.startswith((f"system:serviceaccount:{SYSTEM}:", f"system:serviceaccount:{story.NAMESPACE}:"))


def writes_of_medley(since: float) -> dict[str, int]:
    """Return medley's writes after `since` (seconds since the epoch), Lease renewals left out, by what they were."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since))
    return dict(
        Counter(
            f"{e['verb']} {e['objectRef'].get('resource')}"
            for e in audit_events()
            if is_medley(e)
            and e["requestReceivedTimestamp"] >= stamp
            and e["verb"] not in ("get", "list", "watch")
            and e.get("objectRef", {}).get("resource") != "leases"
        )
    )
