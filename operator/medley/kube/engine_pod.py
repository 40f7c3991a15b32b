"""The engine pod: a GPU holder that runs any vLLM image under medley's supervisor.

`kube/observe.py` builds it to see whether a live pod is outdated, `handlers/acting.py` to launch one. It meets Pod
Security "restricted". An init container copies medley's supervisor and plugin into an emptyDir on PYTHONPATH, so that
no vLLM image is rebuilt. The pod carries its own assignment as an annotation: what a supervisor is sent does not change
while the pod lives, and a service that changes gets new pods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medley.api import convert
from medley.api.acceleratorclass import AcceleratorClass
from medley.api.llmservice import LLMService
from medley.core import names
from medley.core.accelerators import ExistingNodes, OfferingKey
from medley.core.grace import grace
from medley.core.identity import TLS_FOLDER_VARIABLE, Role
from medley.kube.apply import digest
from medley.kube.manifests import (
    CONTAINER_SECURITY,
    KEY_FIELD,
    KEY_FOLDER,
    POD_SECURITY,
    TLS_FOLDER,
    Images,
    environment,
    key_mount,
    key_volume,
    merged,
    metadata,
    tls_mount,
    tls_volume,
)
from medley.wire.assignment import Assignment

Json = dict[str, Any]

ANNOTATION_ASSIGNMENT = f"{names.GROUP}/assignment"
CONTAINER = "engine"
MODEL_FOLDER = "/model"
PACKAGE_FOLDER = "/medley"
CACHE_FOLDER = "/cache"
GENERATION = 1  # a pod's assignment never changes: re-laying replicas over pods will count up from here
DEFAULT_MAX_RUNNING = 64


@dataclass(frozen=True, slots=True)
class PodRequest:
    """What one engine pod is made from."""

    item: LLMService
    accelerator_class: AcceleratorClass
    offering: OfferingKey
    images: Images
    max_running: int | None  # requests at once, by the profile; None: not measured

    @property
    def image(self) -> str:
        """The vLLM image: the service's, else the class's, else the chart's."""
        return self.item.spec.engine.image or self.accelerator_class.spec.engine.image or self.images.engine


def engine_pod(request: PodRequest, name: str) -> Json:
    """Return the manifest of the engine pod of this name."""
    item, offering = request.item, request.offering
    template = item.spec.engine.pod_template
    meta = metadata(item, name, names.Component.ENGINE)
    meta["labels"] = {
        **template.metadata.labels,
        **meta["labels"],
        names.LABEL_CLASS: offering.shape.accelerator_class,
        names.LABEL_SHAPE: offering.shape.key,
        names.LABEL_MARKET: offering.market.value,
        names.LABEL_ZONE: offering.zone,
        names.LABEL_TEMPLATE_HASH: template_hash(request),
    }
    meta["annotations"] = {
        **template.metadata.annotations,
        ANNOTATION_ASSIGNMENT: _assignment(request, name).model_dump_json(),
        names.ANNOTATION_MAX_RUNNING: str(request.max_running or DEFAULT_MAX_RUNNING),
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": _spec(request)}


def template_hash(request: PodRequest) -> str:
    """Return the hash of all that would make a new pod another one; its name and what routers read are not part."""
    added = request.item.spec.engine.pod_template.metadata
    return digest(
        {
            "spec": _spec(request),
            "assignment": _assignment(request, "").model_dump(mode="json"),
            "labels": added.labels,
            "annotations": added.annotations,
        }
    )


def _assignment(request: PodRequest, name: str) -> Assignment:
    model, shape = request.item.spec.model, request.offering.shape
    hub = model.source.hub
    folder = model.source.pvc or model.source.image
    path = model.name if folder is None else f"{MODEL_FOLDER}/{folder.path}".rstrip("/")
    revision = ("--revision", hub.revision) if hub is not None and hub.revision else ()
    return Assignment(
        service=request.item.metadata.name,
        replica=name,
        generation=GENERATION,
        model=path,
        served_model_name=model.served_name or model.name,
        max_model_len=model.max_model_len,
        tensor_parallel=shape.tensor_parallel,
        pipeline_parallel=shape.pipeline_parallel,
        engine_args=(*revision, *request.item.spec.engine.args),
    )


def _spec(request: PodRequest) -> Json:
    item, offering = request.item, request.offering
    nodes = convert.accelerator_class(request.accelerator_class).nodes
    seconds = round(grace(offering.market, nodes).total_seconds())
    runtime_class = request.accelerator_class.spec.engine.runtime_class_name
    pull_secrets = [{"name": each.name} for each in item.spec.engine.image_pull_secrets]
    ours: Json = {
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": seconds,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": POD_SECURITY,
        "affinity": _affinity(request),
        "tolerations": _tolerations(request),
        "initContainers": [_init_container(request)],
        "containers": [_container(request, seconds)],
        "volumes": _volumes(item),
        **({"runtimeClassName": runtime_class} if runtime_class else {}),
        **({"imagePullSecrets": pull_secrets} if pull_secrets else {}),
    }
    result: Json = merged(item.spec.engine.pod_template.spec, ours)
    return result


def _affinity(request: PodRequest) -> Json:
    nodes, offering = convert.accelerator_class(request.accelerator_class).nodes, request.offering
    if isinstance(nodes, ExistingNodes):
        wanted = dict(nodes.node_selector)
    else:
        wanted = {
            names.LABEL_CLASS: offering.shape.accelerator_class,
            names.LABEL_CAPACITY_TYPE: offering.market.value,
        }
    wanted[names.LABEL_NODE_ZONE] = offering.zone
    expressions = [{"key": key, "operator": "In", "values": [value]} for key, value in sorted(wanted.items())]
    term = {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}


def _tolerations(request: PodRequest) -> list[Json]:
    spec = request.accelerator_class.spec
    own = {"key": spec.gpu.resource_name, "operator": "Exists", "effect": "NoSchedule"}
    return [own, *(each.model_dump(by_alias=True, exclude_none=True, mode="json") for each in spec.engine.tolerations)]


def _init_container(request: PodRequest) -> Json:
    return {
        "name": "medley",
        "image": request.images.engine_init,
        "args": [PACKAGE_FOLDER],  # the image's entry point copies the package there
        "securityContext": CONTAINER_SECURITY,
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
        "volumeMounts": [{"name": "medley", "mountPath": PACKAGE_FOLDER}],
    }


def _container(request: PodRequest, grace_seconds: int) -> Json:
    item = request.item
    resources = item.spec.engine.resources.model_dump(by_alias=True, mode="json")
    gpus = {request.accelerator_class.spec.gpu.resource_name: str(request.offering.shape.gpus)}
    return {
        "name": CONTAINER,
        "image": request.image,
        "command": ["python3", "-m", "medley.engine"],
        "env": environment(
            {"HOME": "/tmp", "USER": "medley", "HF_HOME": CACHE_FOLDER, "VLLM_NO_USAGE_STATS": "1"},  # noqa: S108
            request.accelerator_class.spec.engine.env,
            item.spec.engine.env,
            {
                "PYTHONPATH": PACKAGE_FOLDER,
                "MEDLEY_KEY_FILE": f"{KEY_FOLDER}/{KEY_FIELD}",
                TLS_FOLDER_VARIABLE: TLS_FOLDER,
                "MEDLEY_MIGRATION": item.spec.migration.mode.value,
                "MEDLEY_GRACE": str(grace_seconds),
            },
        )
        + _token(item),
        "ports": [
            {"name": "engine", "containerPort": names.PORT_ENGINE},
            {"name": "control", "containerPort": names.PORT_CONTROL},
            {"name": "status", "containerPort": names.PORT_ENGINE_STATUS},
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
        "resources": {
            **({"requests": resources["requests"]} if resources["requests"] else {}),
            "limits": {**resources["limits"], **gpus},
        },
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": "medley", "mountPath": PACKAGE_FOLDER, "readOnly": True},
            key_mount(),
            tls_mount(),
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  # an emptyDir of the pod's own
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
            {"name": "cache", "mountPath": CACHE_FOLDER},
            *(
                [{"name": "model", "mountPath": MODEL_FOLDER, "readOnly": True}]
                if item.spec.model.source.hub is None
                else []
            ),
        ],
    }


def _token(item: LLMService) -> list[Json]:
    hub = item.spec.model.source.hub
    if hub is None or hub.token_secret_ref is None:
        return []
    reference = {"name": hub.token_secret_ref.name, "key": hub.token_secret_ref.key}
    return [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}}]


def _volumes(item: LLMService) -> list[Json]:
    source = item.spec.model.source
    volumes: list[Json] = [
        {"name": "medley", "emptyDir": {}},
        key_volume(item),
        tls_volume(item, Role.ENGINE),
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},  # NCCL and vLLM's own processes talk through it
        {"name": "cache", "emptyDir": {}},
    ]
    if source.pvc is not None:
        claim = {"claimName": source.pvc.claim_name, "readOnly": True}
        volumes.append({"name": "model", "persistentVolumeClaim": claim})
    if source.image is not None:
        volumes.append({"name": "model", "image": {"reference": source.image.reference}})
    return volumes
