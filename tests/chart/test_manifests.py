"""What the chart renders: everything it should, nothing else, with exactly the rights that the code uses."""

import pytest
import yaml

from e2e.stage.processes import StageError
from medley.api.convert import read_llm_service
from medley.kube import rbac
from tests.chart.conftest import CHART

DEFINITIONS = {"llmservices", "acceleratorclasses", "performanceprofiles", "budgets", "migrations"}
ALWAYS = {
    *(("CustomResourceDefinition", f"{plural}.medley.dev") for plural in DEFINITIONS),
    ("Deployment", "medley-operator"),
    ("PodDisruptionBudget", "medley-operator"),
    ("Service", "medley-operator"),
    ("ServiceAccount", "medley-operator"),
    ("ClusterRole", "medley-operator"),
    ("ClusterRoleBinding", "medley-operator"),
    ("Role", "medley-operator"),
    ("RoleBinding", "medley-operator"),
    ("ClusterRole", "medley-router"),
    ("ClusterRole", "medley-router-nodes"),
    ("ClusterRole", "medley-edit"),
    ("ClusterRole", "medley-view"),
    ("ClusterRole", "medley-catalogue"),
    ("ClusterRoleBinding", "medley-catalogue"),
    ("ServiceAccount", "medley-release"),
    ("ClusterRole", "medley-release"),
    ("ClusterRoleBinding", "medley-release"),
    ("Job", "medley-release"),
    ("Pod", "medley-test"),
}


def test_the_whole_of_it(rendered):
    assert set(rendered()) == ALWAYS


def test_one_operator_has_no_budget_that_would_block_a_drain(rendered):
    assert set(rendered(**{"operator.replicas": 1})) == ALWAYS - {("PodDisruptionBudget", "medley-operator")}


def test_a_service_monitor_on_demand(rendered):
    found = rendered(
        **{"metrics.serviceMonitor.enabled": "true", "metrics.serviceMonitor.labels.release": "prometheus"}
    )
    monitor = found["ServiceMonitor", "medley-operator"]
    assert set(found) == ALWAYS | {("ServiceMonitor", "medley-operator")}
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["endpoints"] == [{"port": "status", "path": "/metrics", "interval": "30s"}]
    service = found["Service", "medley-operator"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert [port["name"] for port in service["spec"]["ports"]] == ["status"]


def policy(rules):
    return [
        {
            "apiGroups": [rule.group],
            "resources": list(rule.resources),
            "verbs": list(rule.verbs),
            **({"resourceNames": list(rule.resource_names)} if rule.resource_names else {}),
        }
        for rule in rules
    ]


@pytest.mark.parametrize(
    ("kind", "name", "rules"),
    [
        pytest.param("ClusterRole", "medley-operator", rbac.OPERATOR_CLUSTER_RULES, id="operator"),
        pytest.param("Role", "medley-operator", rbac.OPERATOR_NAMESPACE_RULES, id="operator's own namespace"),
        pytest.param("ClusterRole", rbac.ROUTER_ROLE, rbac.ROUTER_RULES, id="router"),
        pytest.param("ClusterRole", rbac.ROUTER_NODES_ROLE, rbac.ROUTER_NODES_RULES, id="router, nodes"),
    ],
)
def test_rights_are_exactly_those_that_the_code_lists(rendered, kind, name, rules):
    assert rendered()[kind, name]["rules"] == policy(rules)


def test_no_rule_has_a_wildcard(rendered):
    for (kind, name), document in rendered().items():
        if kind in {"ClusterRole", "Role"}:
            said = [
                value
                for rule in document["rules"]
                for key in ("apiGroups", "resources", "verbs")
                for value in rule[key]
            ]
            assert "*" not in said, name


def test_objects_and_router_rights_outlive_the_chart(rendered):
    kept = {
        name
        for name, document in rendered().items()
        if document["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"
    }
    assert kept == {
        *(("CustomResourceDefinition", f"{plural}.medley.dev") for plural in DEFINITIONS),
        ("ClusterRole", "medley-router"),
        ("ClusterRole", "medley-router-nodes"),
    }


def test_the_finalizers_are_released_after_everything_else_went_by_an_account_of_its_own(rendered):
    found = rendered()
    hooks = {
        name: document["metadata"]["annotations"]["helm.sh/hook-weight"]
        for name, document in found.items()
        if document["metadata"].get("annotations", {}).get("helm.sh/hook") == "post-delete"
    }
    assert hooks == {
        ("ServiceAccount", "medley-release"): "-10",
        ("ClusterRole", "medley-release"): "-10",
        ("ClusterRoleBinding", "medley-release"): "-5",
        ("Job", "medley-release"): "0",
    }
    pod = found["Job", "medley-release"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "medley-release"
    assert [container["command"] for container in pod["containers"]] == [["medley", "operator", "release"]]


def pods(found):
    yield found["Deployment", "medley-operator"]["spec"]["template"]["spec"]
    yield found["Job", "medley-release"]["spec"]["template"]["spec"]
    yield found["Pod", "medley-test"]["spec"]


def test_nothing_of_the_chart_runs_on_spot_or_on_gpu_nodes(rendered):
    for pod in pods(rendered()):
        required = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert required["nodeSelectorTerms"] == [
            {
                "matchExpressions": [
                    {"key": "karpenter.sh/capacity-type", "operator": "NotIn", "values": ["spot"]},
                    {"key": "eks.amazonaws.com/capacityType", "operator": "NotIn", "values": ["SPOT"]},
                    {"key": "cloud.google.com/gke-spot", "operator": "NotIn", "values": ["true"]},
                    {"key": "kubernetes.azure.com/scalesetpriority", "operator": "NotIn", "values": ["spot"]},
                    {"key": "medley.dev/accelerator-class", "operator": "DoesNotExist"},
                ]
            }
        ]


def test_placement_reaches_every_pod(rendered):
    values = {
        "operator.nodeSelector.pool": "system",
        "operator.tolerations[0].key": "CriticalAddonsOnly",
        "operator.tolerations[0].operator": "Exists",
        "imagePullSecrets[0].name": "registry",
    }
    for pod in pods(rendered(**values)):
        assert pod["nodeSelector"] == {"pool": "system"}
        assert pod["tolerations"] == [{"key": "CriticalAddonsOnly", "operator": "Exists"}]
        assert pod["imagePullSecrets"] == [{"name": "registry"}]


def test_the_operator_is_told_its_images_and_where_it_is(rendered):
    (container,) = rendered(logLevel="debug")["Deployment", "medley-operator"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "r.example/operator:1"
    assert container["env"] == [
        {"name": "MEDLEY_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
        {"name": "MEDLEY_IDENTITY", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "MEDLEY_LOG_LEVEL", "value": "debug"},
        {"name": "MEDLEY_ENGINE_IMAGE", "value": "docker.io/vllm/vllm-openai:v0.32.0"},
        {"name": "MEDLEY_ENGINE_INIT_IMAGE", "value": "r.example/engine:1"},
        {"name": "MEDLEY_ROUTER_IMAGE", "value": "r.example/router:1"},
    ]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        pytest.param({"image.operator": "x"}, "additional properties 'image' not allowed", id="misspelt"),
        pytest.param({"operator.replica": 3}, "additional properties 'replica' not allowed", id="misspelt below"),
        pytest.param({"operator.replicas": 0}, "at '/operator/replicas'", id="no replica"),
        pytest.param({"logLevel": "trace"}, "at '/logLevel'", id="unknown level"),
        pytest.param({"images.router": ""}, "images.router: name the image that you built", id="no router image"),
        pytest.param({"images.operator": ""}, "images.operator: name the image that you built", id="no operator image"),
        pytest.param(
            {"images.engineInit": ""}, "images.engineInit: name the image that you built", id="no engine image"
        ),
        pytest.param({"images.operator": "a b"}, "at '/images/operator'", id="no image name"),
        pytest.param({"defaults.engineImage": ""}, "at '/defaults/engineImage'", id="no engine"),
        pytest.param({"metrics.serviceMonitor.interval": "often"}, "/metrics/serviceMonitor/interval", id="interval"),
    ],
)
def test_wrong_values_are_refused_with_their_path(rendered, values, said):
    with pytest.raises(StageError) as refused:
        rendered(**values)
    assert said in str(refused.value)


def test_lint_is_content(helm):
    assert "0 chart(s) failed" in helm("lint", str(CHART), "--strict")


def test_the_notes_show_a_manifest_that_is_valid(helm):
    notes = helm("install", "m", str(CHART), "--namespace", "medley-system", "--dry-run=client", "--hide-notes=false")
    text = notes.split("<<MANIFEST\n")[1].split("MANIFEST")[0]
    assert read_llm_service(yaml.safe_load(text)).spec.mode == "Plan"
