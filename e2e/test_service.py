"""One service from `helm install` to `helm uninstall` on a real cluster with real vLLM; the tests run in this order.

Each test is one thing that a platform engineer does or that happens to them. They share the service: starting engines
is what costs time here.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from e2e import recorded
from e2e.demo import manifests, on_stage, story
from e2e.demo.cluster import CommandError, condition, ready, until
from e2e.demo.load import Load, Reference
from e2e.demo.on_stage import OnStage
from e2e.demo.place import Blow
from e2e.prepare import Environment
from e2e.stage import cluster as stage
from e2e.stage import paths
from e2e.stage.processes import load as load_process

pytestmark = [pytest.mark.stage, pytest.mark.asyncio(loop_scope="session")]

SYSTEM = "medley-system"
# What an ordinary pod on Google's spot nodes has; `make demo` gives 30 s, as clouds do.
SHORT_NOTICE = Blow("karpenter", 15, "15 s notice")
SILENCE_LIMIT_SECONDS = 5.0  # after which a router takes an engine for dead


@pytest.fixture(scope="module")
def cluster(environment: Environment) -> Any:
    return environment.cluster


@pytest.fixture(scope="module")
def place(environment: Environment) -> OnStage:
    return OnStage(environment=environment)


@pytest.fixture(scope="module")
def references() -> list[Reference]:
    """The answers of an uninterrupted run: filled by the test that first has a service to ask."""
    return []


@pytest.fixture(scope="module")
def interruptions() -> list[story.Interruption]:
    """The nodes that were taken away under load, with a notice and without."""
    return []


@pytest.fixture(scope="module")
def outages() -> list[tuple[float, float]]:
    """From when to when the API server was coming back (seconds since the epoch)."""
    return []


@asynccontextmanager
async def streaming(cluster: Any, references: Sequence[Reference], concurrency: int) -> AsyncGenerator[Load, None]:
    """Keep streams open around a block; afterwards all of them have ended, and none was broken."""
    async with Load(await on_stage.entrance_url(cluster), manifests.MODEL, concurrency) as load:
        load.references = tuple(references)
        running = asyncio.create_task(load.run())
        try:
            await asyncio.sleep(3)
            yield load
        finally:
            load.stop()
            await running
    assert load.streams
    assert [s for s in load.streams if s.broken] == []


async def test_the_chart_installs_and_its_own_test_passes(environment: Environment) -> None:
    await environment.cluster.install(environment.images, f"defaults.engineImage={environment.engine_image}")
    said = await environment.cluster.helm("test", "medley", "--namespace", SYSTEM, "--timeout", "120s")
    assert "Succeeded" in said


async def test_a_service_is_planned_over_spot_and_on_demand_and_served(place: OnStage, cluster: Any) -> None:
    await place.apply()
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


async def test_with_a_notice_streams_leave_before_the_deadline(
    place: OnStage, cluster: Any, references: list[Reference], interruptions: list[story.Interruption]
) -> None:
    async with Load(await on_stage.entrance_url(cluster), manifests.MODEL) as asking:
        await recorded.references(asking, 24)
        references += asking.references
        long = asking.long
    aimed = await story.aim(place)
    # So many long answers at once that none is over before the deadline, however fast the machine.
    asked = (long * 24)[:24]
    async with streaming(cluster, asked, len(asked)) as load:
        # By then the machine is gone; streams that begin later would only take time.
        asyncio.get_running_loop().call_later(SHORT_NOTICE.notice_seconds + 3, load.stop)
        taken = await story.take_away(place, load, SHORT_NOTICE, aimed, settle_seconds=2)
    interruptions.append(taken)
    assert taken.routers is not None
    left = {how: taken.routers.departed(how) for how in ("carried", "refilled")}
    assert sum(left.values()) > 0
    # The machine died when nobody was on it: a stream there would have waited out the routers' limit of silence.
    assert taken.routers.pause_at_most(100) <= SILENCE_LIMIT_SECONDS
    assert taken.last_request_after < 5  # clients asked all the time; how soon it ended is for `make demo` to show


async def test_without_notice_streams_are_resumed_from_the_token_log(
    place: OnStage, cluster: Any, references: list[Reference], interruptions: list[story.Interruption]
) -> None:
    await story.serving(cluster)
    aimed = await story.aim(place)
    async with streaming(cluster, short(references), 24) as load:
        taken = await story.take_away(place, load, on_stage.DEATH, aimed, settle_seconds=8)
    interruptions.append(taken)
    moved = taken.moved
    assert moved > 0


async def test_an_operator_killed_while_it_repairs_goes_on_where_it_was(cluster: Any) -> None:
    """Its node is gone and nothing serves in its place yet: the next operator finds that, whatever the last one did."""
    await cluster.kubectl(
        "delete", "pods", "--namespace", SYSTEM, "--all", "--grace-period=0", "--force", "--wait=false"
    )
    for pod in await cluster.engines(story.NAMESPACE, story.SERVICE):
        if not ready(pod):
            name = pod["metadata"]["name"]
            await cluster.kubectl("delete", "pod", name, "--namespace", story.NAMESPACE, "--wait=false")
    service = await story.serving(cluster)
    assert condition(service, "Ready")["status"] == "True"


async def test_what_became_of_both_nodes_is_on_record(cluster: Any, interruptions: list[story.Interruption]) -> None:
    """Written by whichever operator there was; the second node's, while the first of them was killed."""

    async def over(node: str) -> list[dict[str, Any]]:
        """Return the records of a node, once all are over."""
        found = await cluster.items("migrations.medley.dev", "--namespace", story.NAMESPACE)
        records = [each for each in found if each["spec"]["node"] == node]
        return records if all("completedAt" in each.get("status", {}) for each in records) else []

    noticed, died = interruptions
    for taken in (noticed, died):
        (record,) = await until(f"the record of {taken.node}", partial(over, taken.node), seconds=240)
        status = record["status"]
        assert (status["phase"], status["streams"]["lost"]) == ("Completed", 0)
        assert {each["replica"] for each in status["moves"]} == set(record["spec"]["replicas"])
        if taken is noticed:
            assert taken.routers is not None
            assert status["streams"]["carried"] == taken.routers.departed("carried")
            assert status["streams"]["refilled"] >= taken.routers.departed("refilled")
        else:
            assert (status["streams"]["carried"], status["streams"]["refilled"] > 0) == (0, True)


async def test_streams_survive_a_router_that_is_replaced(cluster: Any, references: list[Reference]) -> None:
    router = f"deployment/{story.SERVICE}-router"
    async with streaming(cluster, short(references), 8):
        await cluster.kubectl("rollout", "restart", router, "--namespace", story.NAMESPACE)
        await cluster.kubectl("rollout", "status", router, "--namespace", story.NAMESPACE, "--timeout=120s")


async def test_what_cannot_run_says_so_and_how_to_mend_it(cluster: Any, environment: Environment) -> None:
    """Three services with one replica each: a quota of no GPUs, an image that is nowhere, a model that is not there."""
    quota = {"spec": {"hard": {"requests.nvidia.com/gpu": "0"}}, "apiVersion": "v1", "kind": "ResourceQuota"}
    wrong = {
        "quota": (environment.engine_image, {}, "exceeded quota"),
        "image": (f"{environment.engine_image.rpartition(':')[0]}:nowhere", {}, "correct spec.engine.image"),
        "path": (environment.engine_image, {"path": "nowhere"}, "spec.model.source.pvc.path"),
    }

    async def begin(name: str) -> None:
        image, source, _ = wrong[name]
        await cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        await on_stage.command("model", "--namespace", name)
        if name == "quota":
            await cluster.apply(quota | {"metadata": {"name": "none", "namespace": name}})
        wanted = manifests.service(name, name, image, rate=1.0, spot={"policy": "Prefer"})
        wanted["spec"]["model"]["source"]["pvc"] |= source
        await cluster.apply(wanted)

    async def said(name: str) -> dict[str, Any]:
        found = condition(await cluster.get("llmservice", name, "--namespace", name), "CapacityReady")
        return found if found.get("status") == "False" and wrong[name][2] in found["message"] else {}

    async def end(name: str) -> list[Any]:
        await cluster.kubectl("delete", "llmservice", name, "--namespace", name, "--timeout=60s")
        return list(await cluster.engines(name, name))

    await asyncio.gather(*map(begin, wrong))
    for name in wrong:
        await until(f"CapacityReady=False of {name}", partial(said, name), seconds=120)
    assert await asyncio.gather(*map(end, wrong)) == [[], [], []]


async def test_streams_flow_while_the_api_server_is_away(
    cluster: Any, references: list[Reference], outages: list[tuple[float, float]]
) -> None:
    before = await cluster.engines(story.NAMESPACE, story.SERVICE)
    async with streaming(cluster, short(references), 8):
        server = load_process(paths.processes() / "apiserver")
        assert server is not None
        server.kill(signal.SIGKILL)
        await asyncio.sleep(30)
        up = time.time()
        await asyncio.to_thread(stage.start_control_plane)
        outages.append((up, time.time() + 15))
    await story.serving(cluster)
    after = await cluster.engines(story.NAMESPACE, story.SERVICE)
    assert [p["metadata"]["uid"] for p in after] == [p["metadata"]["uid"] for p in before]


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
async def test_nobody_was_forbidden_anything(outages: list[tuple[float, float]]) -> None:
    # An API server that has just come up has not read its roles yet, and refuses Kubernetes' own controllers too.
    spans = [(stamp(begin), stamp(end)) for begin, end in outages]
    forbidden = Counter(
        f"{e['user']['username']} {e['verb']} {e['objectRef'].get('resource')}"
        for e in audit_events()
        if e.get("responseStatus", {}).get("code") == 403
        and is_medley(e)
        and "exceeded quota" not in e["responseStatus"].get("message", "")  # asked for by a test
        and not any(begin <= e["requestReceivedTimestamp"] <= end for begin, end in spans)
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


def short(references: Sequence[Reference]) -> list[Reference]:
    """Return those that are answered within seconds."""
    return [each for each in references if not each.is_long]


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
    return dict(
        Counter(
            f"{e['verb']} {e['objectRef'].get('resource')}"
            for e in audit_events()
            if is_medley(e)
            and e["requestReceivedTimestamp"] >= stamp(since)
            and e["verb"] not in ("get", "list", "watch")
            and e.get("objectRef", {}).get("resource") != "leases"
        )
    )


def stamp(at: float) -> str:
    """Return a time (seconds since the epoch) so that it compares with those of the audit log."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
