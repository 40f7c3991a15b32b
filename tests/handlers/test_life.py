"""The life of a service against the real API server: made, served, interrupted, changed, deleted; and every refusal."""

import re
from datetime import timedelta

import pytest

from medley.core import names
from medley.kube.api import (
    BUDGET,
    CLUSTER_ROLE_BINDING,
    DEPLOYMENT,
    EVENT,
    LLM_SERVICE,
    NODE,
    NODE_POOL,
    POD,
    ROLE_BINDING,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    Kind,
)
from medley.wire.assignment import Assignment
from tests.apiserver import with_karpenter
from tests.handlers.world import MODEL, class_manifest, profile_manifest, service_manifest

pytestmark = pytest.mark.apiserver

QUOTA = Kind("", "v1", "ResourceQuota", "resourcequotas")
# Of what the operator writes; the API server writes Leases and endpoints of its own.
OURS = (
    "llmservices|acceleratorclasses|nodepools|nodeclaims|pods|events|deployments|services|secrets|serviceaccounts"
    "|rolebindings|clusterrolebindings|poddisruptionbudgets|migrations"
)
WRITES = re.compile(
    rf'^apiserver_request_total\{{(?=.*resource="(?:{OURS})")(?=.*verb="(?:POST|PUT|PATCH|APPLY|DELETE)").*\}} (\S+)$',
    re.MULTILINE,
)


SECRETS = {"chat-engine-key", "chat-ca", "chat-engine-tls", "chat-router-tls", "chat-operator-tls"}


async def names_of(here, kind):
    objects, _ = await here.api.list(kind, here.namespace if kind.namespaced else None)
    return {each["metadata"]["name"] for each in objects}


async def made(here, **spec):
    await here.apply(class_manifest(), profile_manifest(), service_manifest(**spec))


async def served(here, **spec):
    await made(here, **spec)
    await here.settle(passes=6)
    assert (await here.condition("Ready"))[0] == "True"


async def test_a_service_becomes_ready(here):
    await served(here)
    assert await names_of(here, POD) == {"chat-l4-s-a-0", "chat-l4-s-a-1"}
    assert await names_of(here, NODE_POOL) == {"medley-l4-spot"}
    assert await names_of(here, DEPLOYMENT) == {"chat-router"}
    assert await names_of(here, SERVICE) == {"chat-router"}
    assert await names_of(here, SERVICE_ACCOUNT) == {"chat-router"}
    assert await names_of(here, BUDGET) == {"chat-engine", "chat-router"}
    assert await names_of(here, SECRET) == SECRETS
    service = await here.service()
    assert service["metadata"]["finalizers"] == ["medley.dev/cleanup"]
    status = service["status"]
    assert status["replicas"] == {"desired": 2, "ready": 2, "spot": 2, "summary": "2/2"}
    assert status["plan"]["usdPerHour"] == "0.80"
    assert status["plan"]["onDemandUSDPerHour"] == "2.00"
    assert status["plan"]["savedPercent"] == "60%"
    assert status["plan"]["routing"] == {
        "inputEdges": [1000],
        "outputEdges": [1000],
        "shares": [{"input": 0, "output": 0, "shape": "l4", "share": 1}],
    }
    assert here.assigned["chat-l4-s-a-0"] == Assignment(
        service="chat",
        replica="chat-l4-s-a-0",
        generation=1,
        model="/model",
        served_model_name=MODEL,
        max_model_len=4096,
    )


async def test_an_idle_pass_writes_nothing(here):
    await served(here)
    before = await writes(here)
    assert before > 0
    for _ in range(5):
        assert await here.reconciler.reconcile((here.namespace, "chat")) == 60
    assert await writes(here) == before


async def writes(here) -> float:
    response = await here.api._send("GET", "/metrics", (), None)  # the one answer that is no JSON
    text = (await response.read()).decode()
    return sum(float(count) for count in WRITES.findall(text))


async def test_a_notice_is_answered_in_the_same_pass(here):
    await served(here)
    node = here.machines["chat-l4-s-a-0"]
    taint = {"key": names.TAINT_KARPENTER_DISRUPTED, "effect": "NoSchedule"}
    await here.api.merge(NODE, node, None, {"spec": {"taints": [taint]}})
    await here.reconciler.reconcile((here.namespace, "chat"))
    assert await names_of(here, POD) == {"chat-l4-s-a-0", "chat-l4-s-a-1", "chat-l4-s-a-2"}
    assert (await here.service())["status"]["replicas"]["ready"] == 1
    sample = here.metrics.registry.get_sample_value
    assert sample("medley_notices_total", {"source": "KarpenterTaint", "cause": "Unknown"}) == 1


SILENT = [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]


async def test_a_node_that_only_the_api_server_does_not_hear_keeps_its_engine(here):
    """As after an outage of the API server: the node controller calls nodes and pods not ready, the engines serve."""
    await served(here)
    pods = await here.pods()
    for name, pod in pods.items():
        since = "2026-01-01T00:00:00Z"
        conditions = [{**each, "lastTransitionTime": since} for each in SILENT]
        await here.patch_status(NODE, here.machines[name], {"conditions": conditions})
        probes = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]
        await here.patch_status(POD, name, {**pod["status"], "conditions": probes}, here.namespace)
    for _ in range(3):
        await here.reconciler.reconcile((here.namespace, "chat"))
    assert {name: pod["metadata"]["uid"] for name, pod in (await here.pods()).items()} == {
        name: pod["metadata"]["uid"] for name, pod in pods.items()
    }
    assert (await here.service())["status"]["replicas"]["ready"] == 2


async def test_a_machine_that_vanished_takes_its_pod_along(here):
    await served(here)
    await here.lose("chat-l4-s-a-0")
    await here.reconciler.reconcile((here.namespace, "chat"))
    assert await names_of(here, POD) == {"chat-l4-s-a-1", "chat-l4-s-a-2"}
    await here.settle(passes=4)
    assert (await here.condition("Ready"))[0] == "True"


async def test_a_changed_service_is_rolled_out_one_by_one(here):
    await served(here)
    before = {name: pod["metadata"]["uid"] for name, pod in (await here.pods()).items()}
    await made(here, engine={"args": ["--enforce-eager"]})
    least = 2
    for _ in range(20):
        await here.pass_over()
        least = min(least, (await here.service())["status"]["replicas"]["ready"])
    after = await here.pods()
    assert len(after) == 2
    assert not set(before.values()) & {pod["metadata"]["uid"] for pod in after.values()}
    assert least == 2
    assert len(here.drained) == 2
    assert {here.assigned[name].engine_args for name in after} == {("--enforce-eager",)}


async def test_an_old_engine_on_a_node_that_lasts_gets_a_while_for_its_streams_to_end_or_move(here):
    await served(here, spot={"policy": "Never"})
    await made(here, engine={"args": ["--enforce-eager"]}, spot={"policy": "Never"})
    for address, report in here.reports.items():
        here.reports[address] = report.model_copy(update={"running": 3})
    gone = {}
    for _ in range(12):
        await here.reconciler.reconcile((here.namespace, "chat"))
        for name, pod in (await here.pods()).items():
            if "deletionTimestamp" in pod["metadata"]:
                gone[name] = pod["metadata"]["deletionGracePeriodSeconds"]
        await here.react()
    assert gone == {"chat-l4-d-a-0": 120, "chat-l4-d-a-1": 120}
    assert [deadline is None for deadline in here.deadlines] == [True, False] * 2


async def test_a_sold_out_market_falls_back(here):
    here.sold_out.add("spot")
    await made(here)
    await here.pass_over()
    moment = here.reconciler.clock()
    object.__setattr__(here.reconciler, "clock", lambda: moment + timedelta(minutes=30))
    await here.settle(passes=6)
    assert {pod["metadata"]["labels"][names.LABEL_MARKET] for pod in (await here.pods()).values()} == {"on-demand"}
    status = (await here.service())["status"]
    assert [(each["market"], each["zone"], each["reason"]) for each in status["unavailable"]] == [
        ("spot", "a", "sold out"),
        ("spot", "b", "sold out"),
    ]
    assert (await here.condition("Ready"))[0] == "True"


async def test_deletion_removes_everything(here):
    await served(here)
    assert await here.api.get(CLUSTER_ROLE_BINDING, f"medley:router:{here.namespace}:chat") is not None
    await here.api.delete(LLM_SERVICE, "chat", here.namespace)
    for _ in range(8):
        await here.pass_over()
    for kind in (LLM_SERVICE, POD, DEPLOYMENT, SERVICE, SERVICE_ACCOUNT, ROLE_BINDING, BUDGET, SECRET, NODE_POOL):
        assert await names_of(here, kind) == set(), kind
    assert await here.api.get(CLUSTER_ROLE_BINDING, f"medley:router:{here.namespace}:chat") is None
    assert (
        here.metrics.registry.get_sample_value(
            "medley_replicas", {"namespace": here.namespace, "service": "chat", "state": "ready"}
        )
        is None
    )


async def test_a_pool_that_another_service_uses_stays(here):
    await served(here)
    await here.apply(service_manifest("other"))
    await here.settle("other", passes=6)
    await here.api.delete(LLM_SERVICE, "chat", here.namespace)
    for _ in range(8):
        await here.pass_over()
    assert await names_of(here, LLM_SERVICE) == {"other"}
    assert await names_of(here, NODE_POOL) == {"medley-l4-spot"}
    assert all(name.startswith("other-") for name in await names_of(here, POD))
    await here.api.delete(LLM_SERVICE, "other", here.namespace)
    for _ in range(8):
        await here.pass_over("other")
    assert await names_of(here, NODE_POOL) == set()


async def test_a_quota_is_named(here):
    hard = {"requests.nvidia.com/gpu": "1"}
    await here.api.create(QUOTA, {"metadata": {"name": "gpus"}, "spec": {"hard": hard}}, here.namespace)
    used = {"hard": hard, "used": {"requests.nvidia.com/gpu": "1"}}
    await here.patch_status(QUOTA, "gpus", used, here.namespace)
    await made(here)
    await here.pass_over()
    truth, reason, message = await here.condition("CapacityReady")
    assert (truth, reason) == ("False", "QuotaExceeded")
    assert "exceeded quota: gpus" in message
    assert (await here.condition("Ready"))[1] == "QuotaExceeded"
    assert here.metrics.registry.get_sample_value("medley_refusals_total", {"reason": "QuotaExceeded"}) == 1


async def test_an_image_that_cannot_be_pulled_is_named(here):
    await made(here, engine={"image": "r.example/nothing:1"})
    await here.pass_over()
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off"}}
    status = {"name": "engine", "image": "r.example/nothing:1", "imageID": "", "ready": False, "restartCount": 0}
    for name in await here.pods():
        await here.patch_status(POD, name, {"containerStatuses": [{**status, "state": waiting}]}, here.namespace)
    await here.reconciler.reconcile((here.namespace, "chat"))
    assert await here.condition("CapacityReady") == (
        "False",
        "ImageNotPulled",
        (
            "chat-l4-s-a-0, chat-l4-s-a-1: image r.example/nothing:1 cannot be pulled; correct spec.engine.image, "
            "or the AcceleratorClass's, or give spec.engine.imagePullSecrets"
        ),
    )


async def test_an_engine_that_cannot_start_says_why(here):
    await made(here)
    await here.pass_over()
    for pod in (await here.pods()).values():
        here.fail(pod, "spec.model.source.pvc.path: /model not found in the volume")
    await here.reconciler.reconcile((here.namespace, "chat"))
    truth, reason, message = await here.condition("CapacityReady")
    assert (truth, reason) == ("False", "EngineFailed")
    assert "spec.model.source.pvc.path: /model not found in the volume" in message
    assert len(await here.pods()) == 2


async def test_services_of_one_name_in_two_namespaces_live_apart(here, plane):
    from tests.handlers.world import world

    await served(here)
    async with world(plane.kubeconfig) as there:
        await there.apply(class_manifest(), profile_manifest(), service_manifest())
        await there.settle(passes=6)
        assert (await there.condition("Ready"))[0] == "True"
        await there.api.delete(LLM_SERVICE, "chat", there.namespace)
        for _ in range(8):
            await there.pass_over()
        assert await names_of(there, POD) == set()
    assert len(await names_of(here, POD)) == 2
    assert await names_of(here, SECRET) == SECRETS
    assert await here.api.get(CLUSTER_ROLE_BINDING, f"medley:router:{here.namespace}:chat") is not None


async def test_events_tell_the_story_once(here):
    await served(here)
    await here.settle(passes=3)
    found, _ = await here.api.list(EVENT, here.namespace)
    objects = [each for each in found if each["involvedObject"]["kind"] == LLM_SERVICE.kind]  # not the cluster's own
    assert {each["count"] for each in objects} == {1}
    assert sorted(each["reason"] for each in objects if each["type"] == "Normal") == [
        "CapacityThere",
        "Forecast",
        "Hedged",
        "KVCarried",
        "Launching",
        "Launching",
        "Planned",
        "Profiled",
        "Serving",
        "Starting",
        "TokenLog",
    ]


async def test_without_karpenter_the_remedy_is_said(here, plane):
    plane.kubectl("delete", "crd", "nodepools.karpenter.sh", "nodeclaims.karpenter.sh")
    try:
        await made(here)
        await here.pass_over()
        truth, reason, message = await here.condition("CapacityReady")
        assert (truth, reason) == ("False", "RefusedByCluster")
        assert "AcceleratorClass l4 asks for Karpenter, which this cluster has not" in message
    finally:
        with_karpenter(plane)


async def test_services_share_what_a_class_caps_by_priority(here):
    zones = [{"name": "a", "perHour": "1.00", "spotPerHour": "0.40", "maxNodes": 0, "maxSpotNodes": 3}]
    await here.apply(class_manifest(zones=zones), profile_manifest(), service_manifest(), service_manifest("other"))
    await here.settle(passes=6)
    assert (await here.condition("Ready"))[0] == "True"
    await here.settle("other", passes=4)
    truth, reason, message = await here.condition("PlanFeasible", "other")
    assert (truth, reason) == ("False", "CapacityCapped")
    assert f"nodes of l4, spot, a, of 3 {here.namespace}/chat takes 2 (1)" in message
    assert {name for name in await here.pods() if name.startswith("other-")} == {"other-l4-s-a-0"}
    # The other becomes more important: this one lets go first, then there is room.
    await here.apply(service_manifest("other", priority=10))
    for _ in range(6):
        await here.pass_over("chat")
        await here.pass_over("other")
    assert (await here.condition("PlanFeasible", "other"))[0] == "True"
    assert f"{here.namespace}/other takes 2" in (await here.condition("PlanFeasible"))[2]
    assert sorted(name.split("-")[0] for name in await here.pods()) == ["chat", "other", "other"]


def budget_manifest(usd: str):
    kind = {"apiVersion": "medley.dev/v1alpha1", "kind": "Budget", "metadata": {"name": "team"}}
    return {**kind, "spec": {"maxUSDPerHour": usd}}


async def test_services_share_a_budget_by_priority(here):
    on_it = {"limits": {"budget": "team"}}
    services = (service_manifest(**on_it), service_manifest("other", **on_it))
    await here.apply(class_manifest(), profile_manifest(), budget_manifest("1.20"), *services)
    await here.pass_over()
    await here.pass_over("other")
    assert (await here.condition("PlanFeasible"))[0] == "True"
    assert await here.condition("PlanFeasible", "other") == (
        "False",
        "BudgetExhausted",
        (
            f"spec.limits.budget: 0.40 USD/h left of Budget team (of 1.20 {here.namespace}/chat takes 0.80) is too little: "
            "the demand needs 0.80 USD/h; raise its maxUSDPerHour, or spend less of it"
        ),
    )
    assert sorted(name.split("-")[0] for name in await here.pods()) == ["chat", "chat", "other"]
    await here.apply(budget_manifest("1.60"))
    await here.pass_over("other")
    assert (await here.condition("PlanFeasible", "other"))[0] == "True"
    assert sorted(name.split("-")[0] for name in await here.pods()) == ["chat", "chat", "other", "other"]
