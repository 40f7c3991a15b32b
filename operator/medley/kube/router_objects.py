"""What a service's front door is made of: Deployment, Service, identity and rights, budgets; and the engine key.

`handlers/acting.py` applies these. Routers never run on spot nodes, since they hold the clients' streams, nor on
medley's GPU nodes, which go when their engines go.
"""

from __future__ import annotations

import secrets
from typing import Any

from medley.api.llmservice import LLMService
from medley.core import names, units
from medley.core.identity import TLS_FOLDER_VARIABLE, Role
from medley.kube.api import (
    BUDGET,
    CLUSTER_ROLE_BINDING,
    DEPLOYMENT,
    ROLE_BINDING,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    Kind,
)
from medley.kube.manifests import (
    CONTAINER_SECURITY,
    KEY_FIELD,
    KEY_FOLDER,
    POD_SECURITY,
    TLS_FOLDER,
    Images,
    key_mount,
    key_volume,
    labels,
    metadata,
    selector,
    tls_mount,
    tls_volume,
)
from medley.kube.rbac import ROUTER_NODES_ROLE, ROUTER_ROLE

Json = dict[str, Any]

# After SIGTERM a router serves until its last stream ends, so it may take as long as the longest request, and a bit.
GRACE_MARGIN_SECONDS = 15
# Every node's proxy learns of a leaving router a moment after it: until then clients still come, and are served. Not by
# a preStop hook: the router has to know, since its answers in this time tell clients to connect elsewhere next.
LINGER_SECONDS = 5
# A new router answers at once, and knows engines and tokenizer a moment later.
MIN_READY_SECONDS = 10
DEFAULT_REQUESTS = {"cpu": "100m", "memory": "128Mi"}
# How the clouds mark a spot node. An absent label is not spot.
NOT_SPOT = (
    (names.LABEL_CAPACITY_TYPE, "spot"),
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("cloud.google.com/gke-spot", "true"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
)


def router_objects(item: LLMService, images: Images) -> tuple[tuple[Kind, Json], ...]:
    """Return all objects of the routers, in the order in which they are made."""
    name = names.router(item.metadata.name)
    meta = metadata(item, name, names.Component.ROUTER)
    subject = {"kind": "ServiceAccount", "name": name, "namespace": item.metadata.namespace}
    return (
        (SERVICE_ACCOUNT, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}),
        (ROLE_BINDING, {**_binding(ROLE_BINDING, ROUTER_ROLE, subject), "metadata": meta}),
        (
            CLUSTER_ROLE_BINDING,
            {
                **_binding(CLUSTER_ROLE_BINDING, ROUTER_NODES_ROLE, subject),
                # Cluster-scoped objects cannot be owned by namespaced ones: the finalizer removes this one.
                "metadata": {"name": nodes_binding_name(item), "labels": labels(item, names.Component.ROUTER)},
            },
        ),
        (SERVICE, {**_service(item), "metadata": meta}),
        (DEPLOYMENT, {**_deployment(item, images), "metadata": meta}),
    )


def nodes_binding_name(item: LLMService) -> str:
    """Return the name of the ClusterRoleBinding; neither part can contain a colon, so no two services share one."""
    return f"medley:router:{item.metadata.namespace}:{item.metadata.name}"


def url(item: LLMService) -> str:
    """Return where clients inside the cluster reach the OpenAI API."""
    return f"http://{names.router(item.metadata.name)}.{item.metadata.namespace}.svc:{names.PORT_ROUTER}/v1"


def budgets(item: LLMService, engines_available: int) -> tuple[Json, ...]:
    """Return the disruption budgets of engines and routers.

    Integers: pods under a controller without a scale subresource cannot have percentages.
    """
    return (
        _budget(item, names.Component.ENGINE, engine_budget_name(item), engines_available),
        _budget(item, names.Component.ROUTER, names.router(item.metadata.name), 1),
    )


def engine_budget_name(item: LLMService) -> str:
    """Return the name of the engines' disruption budget."""
    suffix = "-engine"
    return f"{names.shortened(item.metadata.name, names.NAME_LIMIT - len(suffix))}{suffix}"


def new_engine_key(item: LLMService) -> Json:
    """Return a Secret with a new key of 256 random bits, printable."""
    meta = metadata(item, names.engine_key(item.metadata.name), names.Component.ENGINE)
    return {
        "apiVersion": SECRET.api_version,
        "kind": SECRET.kind,
        "metadata": meta,
        "type": "Opaque",
        "immutable": True,
        "stringData": {KEY_FIELD: secrets.token_urlsafe(32)},
    }


def _binding(kind: Kind, role: str, subject: Json) -> Json:
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "roleRef": {"apiGroup": kind.group, "kind": "ClusterRole", "name": role},
        "subjects": [subject],
    }


def _service(item: LLMService) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "spec": {
            "selector": selector(item, names.Component.ROUTER),
            "ports": [{"name": "http", "port": names.PORT_ROUTER, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def _deployment(item: LLMService, images: Images) -> Json:
    chosen = selector(item, names.Component.ROUTER)
    return {
        "apiVersion": DEPLOYMENT.api_version,
        "kind": DEPLOYMENT.kind,
        "spec": {
            "replicas": item.spec.router.replicas,
            "selector": {"matchLabels": chosen},
            # One after another: the next begins when this one has had time to see its engines.
            "minReadySeconds": MIN_READY_SECONDS,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": {"labels": labels(item, names.Component.ROUTER)},
                "spec": _router_pod(item, images, chosen),
            },
        },
    }


def _router_pod(item: LLMService, images: Images, chosen: dict[str, str]) -> Json:
    longest = int(units.duration(item.spec.router.request_timeout, field="spec.router.requestTimeout").total_seconds())
    grace = longest + GRACE_MARGIN_SECONDS
    expressions = [{"key": key, "operator": "NotIn", "values": [value]} for key, value in NOT_SPOT]
    expressions.append({"key": names.LABEL_CLASS, "operator": "DoesNotExist"})
    spread = {"maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": chosen}}
    return {
        "serviceAccountName": names.router(item.metadata.name),
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace + LINGER_SECONDS,
        "securityContext": POD_SECURITY,
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": expressions}]
                }
            }
        },
        "topologySpreadConstraints": [
            {"topologyKey": "kubernetes.io/hostname", **spread},
            {"topologyKey": names.LABEL_NODE_ZONE, **spread},
        ],
        "containers": [
            {
                "name": "router",
                "image": images.router,
                "command": ["medley", "router"],
                "env": [
                    {"name": "MEDLEY_NAMESPACE", "value": item.metadata.namespace},
                    {"name": "MEDLEY_SERVICE", "value": item.metadata.name},
                    {"name": "MEDLEY_KEY_FILE", "value": f"{KEY_FOLDER}/{KEY_FIELD}"},
                    {"name": TLS_FOLDER_VARIABLE, "value": TLS_FOLDER},
                    {"name": "MEDLEY_LINGER", "value": str(LINGER_SECONDS)},
                    {"name": "MEDLEY_GRACE", "value": str(grace)},
                ],
                "ports": [{"name": "http", "containerPort": names.PORT_ROUTER, "protocol": "TCP"}],
                # Alive and not "ready": a router without engines answers 503 itself, with the reason.
                "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 2},
                "livenessProbe": {
                    "httpGet": {"path": "/health", "port": "http"},
                    "periodSeconds": 10,
                    "timeoutSeconds": 5,
                    "failureThreshold": 6,
                },
                "resources": _resources(item),
                "securityContext": CONTAINER_SECURITY,
                "volumeMounts": [key_mount(), tls_mount(), {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
            }
        ],
        "volumes": [key_volume(item), tls_volume(item, Role.ROUTER), {"name": "tmp", "emptyDir": {}}],
    }


def _resources(item: LLMService) -> Json:
    asked = item.spec.router.resources.model_dump(by_alias=True, mode="json")
    return {
        "requests": {**DEFAULT_REQUESTS, **asked["requests"]},
        **({"limits": asked["limits"]} if asked["limits"] else {}),
    }


def _budget(item: LLMService, component: names.Component, name: str, available: int) -> Json:
    return {
        "apiVersion": BUDGET.api_version,
        "kind": BUDGET.kind,
        "metadata": metadata(item, name, component),
        "spec": {"minAvailable": available, "selector": {"matchLabels": selector(item, component)}},
    }
