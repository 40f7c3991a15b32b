"""The manifests of a service: one engine pod compared whole, what each source of models adds, and what people may add."""

import pytest

from medley.api import convert
from medley.core.accelerators import Market, OfferingKey, Shape
from medley.kube.engine_pod import ANNOTATION_ASSIGNMENT, PodRequest, engine_pod, template_hash
from medley.kube.manifests import Images, label_value, merged
from medley.kube.router_objects import budgets, nodes_binding_name, router_objects
from medley.wire.assignment import Assignment

IMAGES = Images("vllm:1", "engine:1", "router:1")
CLASS = {
    "apiVersion": "medley.dev/v1alpha1",
    "kind": "AcceleratorClass",
    "metadata": {"name": "l4", "uid": "l4-uid"},
    "spec": {
        "gpu": {"product": "L4", "memory": "24Gi"},
        "zones": [{"name": "a", "perHour": "1", "spotPerHour": "0.4"}],
        "nodes": {
            "karpenter": {
                "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu"},
                "instanceTypes": ["g6.xlarge"],
            }
        },
    },
}


def item(**spec):
    return convert.read_llm_service(
        {
            "apiVersion": "medley.dev/v1alpha1",
            "kind": "LLMService",
            "metadata": {"name": "chat", "namespace": "team", "uid": "chat-uid"},
            "spec": {
                "model": {"name": "acme/model-7b", "source": {"pvc": {"claimName": "models", "path": "7b"}}},
                **spec,
            },
        }
    )


def request(service=None, market=Market.SPOT, **spec):
    there = {**CLASS, "spec": {**CLASS["spec"], **spec}}
    offering = OfferingKey(Shape("l4"), market, "a")
    return PodRequest(service or item(), convert.read_accelerator_class(there), offering, IMAGES, 32)


RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


def test_the_engine_pod_whole():
    pod = engine_pod(request(), "chat-l4-s-a-0")
    assignment = pod["metadata"]["annotations"].pop(ANNOTATION_ASSIGNMENT)
    assert Assignment.model_validate_json(assignment) == Assignment(
        service="chat", replica="chat-l4-s-a-0", generation=1, model="/model/7b", served_model_name="acme/model-7b"
    )
    assert pod == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "chat-l4-s-a-0",
            "namespace": "team",
            "labels": {
                "medley.dev/service": "chat",
                "medley.dev/component": "engine",
                "app.kubernetes.io/name": "medley",
                "app.kubernetes.io/instance": "chat",
                "app.kubernetes.io/component": "engine",
                "app.kubernetes.io/part-of": "medley",
                "app.kubernetes.io/managed-by": "medley",
                "llm-d.ai/model": "acme-model-7b",
                "medley.dev/accelerator-class": "l4",
                "medley.dev/shape": "l4",
                "medley.dev/market": "spot",
                "medley.dev/zone": "a",
                "medley.dev/template-hash": template_hash(request()),
            },
            "annotations": {"medley.dev/max-running": "32"},
            "ownerReferences": [
                {
                    "apiVersion": "medley.dev/v1alpha1",
                    "kind": "LLMService",
                    "name": "chat",
                    "uid": "chat-uid",
                    "controller": True,
                }
            ],
        },
        "spec": {
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 90,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "fsGroup": 65532,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {
                                "matchExpressions": [
                                    {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["spot"]},
                                    {"key": "medley.dev/accelerator-class", "operator": "In", "values": ["l4"]},
                                    {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a"]},
                                ]
                            }
                        ]
                    }
                }
            },
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "initContainers": [
                {
                    "name": "medley",
                    "image": "engine:1",
                    "args": ["/medley"],
                    "securityContext": RESTRICTED,
                    "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
                    "volumeMounts": [{"name": "medley", "mountPath": "/medley"}],
                }
            ],
            "containers": [
                {
                    "name": "engine",
                    "image": "vllm:1",
                    "command": ["python3", "-m", "medley.engine"],
                    "env": [
                        {"name": "HOME", "value": "/tmp"},
                        {"name": "USER", "value": "medley"},
                        {"name": "HF_HOME", "value": "/cache"},
                        {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
                        {"name": "PYTHONPATH", "value": "/medley"},
                        {"name": "MEDLEY_KEY_FILE", "value": "/var/run/medley/key/key"},
                        {"name": "MEDLEY_TLS_DIR", "value": "/var/run/medley/tls"},
                        {"name": "MEDLEY_MIGRATION", "value": "Auto"},
                        {"name": "MEDLEY_GRACE", "value": "90"},
                    ],
                    "ports": [
                        {"name": "engine", "containerPort": 8000},
                        {"name": "control", "containerPort": 8001},
                        {"name": "status", "containerPort": 8002},
                    ],
                    "readinessProbe": {
                        "httpGet": {"path": "/readyz", "port": "status"},
                        "periodSeconds": 2,
                        "timeoutSeconds": 2,
                        "failureThreshold": 2,
                    },
                    "livenessProbe": {
                        "httpGet": {"path": "/livez", "port": "status"},
                        "periodSeconds": 10,
                        "timeoutSeconds": 5,
                        "failureThreshold": 6,
                    },
                    "resources": {"limits": {"nvidia.com/gpu": "1"}},
                    "securityContext": RESTRICTED,
                    "volumeMounts": [
                        {"name": "medley", "mountPath": "/medley", "readOnly": True},
                        {"name": "engine-key", "mountPath": "/var/run/medley/key", "readOnly": True},
                        {"name": "tls", "mountPath": "/var/run/medley/tls", "readOnly": True},
                        {"name": "tmp", "mountPath": "/tmp"},
                        {"name": "shm", "mountPath": "/dev/shm"},
                        {"name": "cache", "mountPath": "/cache"},
                        {"name": "model", "mountPath": "/model", "readOnly": True},
                    ],
                }
            ],
            "volumes": [
                {"name": "medley", "emptyDir": {}},
                {"name": "engine-key", "secret": {"secretName": "chat-engine-key"}},
                {"name": "tls", "secret": {"secretName": "chat-engine-tls", "defaultMode": 0o440}},
                {"name": "tmp", "emptyDir": {}},
                {"name": "shm", "emptyDir": {"medium": "Memory"}},
                {"name": "cache", "emptyDir": {}},
                {"name": "model", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}},
            ],
        },
    }


def test_a_model_of_the_hub_is_cached_and_pinned():
    hub = {"revision": "abc", "tokenSecretRef": {"name": "hf", "key": "token"}}
    pod = engine_pod(request(item(model={"name": "acme/model-7b", "source": {"hub": hub}})), "p")
    assignment = Assignment.model_validate_json(pod["metadata"]["annotations"][ANNOTATION_ASSIGNMENT])
    assert (assignment.model, assignment.engine_args) == ("acme/model-7b", ("--revision", "abc"))
    container = pod["spec"]["containers"][0]
    secret = {"secretKeyRef": {"name": "hf", "key": "token"}}
    assert {"name": "HF_TOKEN", "valueFrom": secret} in container["env"]
    assert "model" not in [each["name"] for each in pod["spec"]["volumes"]]


def test_a_model_in_an_image_is_a_volume():
    pod = engine_pod(request(item(model={"name": "m", "source": {"image": {"reference": "r/m:1"}}})), "p")
    assert {"name": "model", "image": {"reference": "r/m:1"}} in pod["spec"]["volumes"]


def test_existing_nodes_are_found_by_their_labels():
    nodes = {"existing": {"nodeSelector": {"gpu": "l4"}}}
    pod = engine_pod(request(market=Market.ON_DEMAND, nodes=nodes), "p")
    affinity = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert [each["key"] for each in affinity["nodeSelectorTerms"][0]["matchExpressions"]] == [
        "gpu",
        "topology.kubernetes.io/zone",
    ]
    assert pod["spec"]["terminationGracePeriodSeconds"] == 600


def test_what_people_add_is_there_and_what_medley_needs_wins():
    template = {
        "metadata": {"labels": {"team": "x", "medley.dev/service": "other"}, "annotations": {"note": "y"}},
        "spec": {
            "tolerations": [{"key": "mine", "operator": "Exists"}],
            "priorityClassName": "high",
            "restartPolicy": "Never",
            "containers": [{"name": "engine", "command": ["sh"], "workingDir": "/x"}, {"name": "side", "image": "s"}],
        },
    }
    pod = engine_pod(request(item(engine={"podTemplate": template})), "p")
    assert pod["metadata"]["labels"]["team"] == "x"
    assert pod["metadata"]["labels"]["medley.dev/service"] == "chat"
    assert pod["metadata"]["annotations"]["note"] == "y"
    spec = pod["spec"]
    assert spec["tolerations"][0] == {"key": "mine", "operator": "Exists"}
    assert (spec["priorityClassName"], spec["restartPolicy"]) == ("high", "Always")
    engine = next(each for each in spec["containers"] if each["name"] == "engine")
    assert (engine["command"], engine["workingDir"]) == (["python3", "-m", "medley.engine"], "/x")
    assert {"name": "side", "image": "s"} in spec["containers"]


@pytest.mark.parametrize(
    ("changed", "other"),
    [
        pytest.param({"engine": {"args": ["--x"]}}, True, id="args"),
        pytest.param({"engine": {"image": "vllm:2"}}, True, id="image"),
        pytest.param({"router": {"replicas": 3}}, False, id="router"),
        pytest.param({"workload": {"requestsPerSecond": 9}}, False, id="workload"),
    ],
)
def test_only_what_makes_another_pod_changes_the_hash(changed, other):
    assert (template_hash(request(item(**changed))) != template_hash(request())) is other


def test_merged_lists():
    assert merged({"a": [{"name": "x", "v": 1}]}, {"a": [{"name": "x", "w": 2}, {"name": "y"}]}) == {
        "a": [{"name": "x", "v": 1, "w": 2}, {"name": "y"}]
    }
    assert merged({"command": ["a"]}, {"command": ["b"]}) == {"command": ["b"]}


def test_label_values_are_valid():
    assert label_value("meta-llama/Llama 2@7b/") == "meta-llama-Llama-2-7b"
    assert len(label_value("x" * 200)) == 63


def test_routers_stay_off_spot_and_off_gpu_nodes():
    objects = {manifest["kind"]: manifest for _, manifest in router_objects(item(), IMAGES)}
    assert list(objects) == ["ServiceAccount", "RoleBinding", "ClusterRoleBinding", "Service", "Deployment"]
    spec = objects["Deployment"]["spec"]
    assert spec["replicas"] == 2
    assert spec["minReadySeconds"] == 10
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    pod = spec["template"]["spec"]
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
    assert pod["terminationGracePeriodSeconds"] == 620
    assert {"name": "MEDLEY_LINGER", "value": "5"} in pod["containers"][0]["env"]
    assert objects["ClusterRoleBinding"]["metadata"]["name"] == "medley:router:team:chat"
    assert "ownerReferences" not in objects["ClusterRoleBinding"]["metadata"]


def test_no_two_services_share_a_binding():
    one = item()
    other = one.model_copy(update={"metadata": one.metadata.model_copy(update={"namespace": "team-chat", "name": "x"})})
    assert nodes_binding_name(one) != nodes_binding_name(other)


def test_budgets_are_integers():
    engines, routers = budgets(item(), 3)
    assert (engines["metadata"]["name"], engines["spec"]["minAvailable"]) == ("chat-engine", 3)
    assert (routers["metadata"]["name"], routers["spec"]["minAvailable"]) == ("chat-router", 1)
