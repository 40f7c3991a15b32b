"""What all manifests of a service share: labels, ownership, restricted security; and merging what the user added.

Called by `engine_pod` and `router_objects`. Pure: models in, manifests out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medley.api.llmservice import LLMService
from medley.api.pods import EnvVar
from medley.core import names
from medley.core.identity import Role
from medley.kube.api import LLM_SERVICE

Json = dict[str, Any]

# Any id but root's; files in emptyDirs and on claims are made readable by it through the group.
USER_ID = 65532
KEY_FOLDER = "/var/run/medley/key"
KEY_FIELD = "key"
TLS_FOLDER = "/var/run/medley/tls"
_TLS_MODE = 0o440  # by the group of the pod, which the kubelet gives the files

POD_SECURITY: Json = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "fsGroup": USER_ID,
    "fsGroupChangePolicy": "OnRootMismatch",  # a model of 100 GB is not walked at every start
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Json = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


@dataclass(frozen=True, slots=True)
class Images:
    """The images that the chart names."""

    engine: str  # vLLM
    engine_init: str  # carries medley's supervisor and plugin into the vLLM image
    router: str


def labels(item: LLMService, component: names.Component) -> dict[str, str]:
    """Return the labels of everything made for a service."""
    return {
        **selector(item, component),
        names.LABEL_NAME: "medley",
        names.LABEL_INSTANCE: item.metadata.name,
        names.LABEL_APP_COMPONENT: component.value,
        names.LABEL_PART_OF: "medley",
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_MODEL: label_value(item.spec.model.name),
    }


def selector(item: LLMService, component: names.Component) -> dict[str, str]:
    """Return the labels by which the pods of a component are found."""
    return {names.LABEL_SERVICE: item.metadata.name, names.LABEL_COMPONENT: component.value}


def owner(item: LLMService) -> Json:
    """Return the reference by which everything in the service's namespace goes when the service goes."""
    return {
        "apiVersion": LLM_SERVICE.api_version,
        "kind": LLM_SERVICE.kind,
        "name": item.metadata.name,
        "uid": item.metadata.uid,
        "controller": True,
    }


def metadata(item: LLMService, name: str, component: names.Component) -> Json:
    """Return the metadata of an object in the service's namespace."""
    return {
        "name": name,
        "namespace": item.metadata.namespace,
        "labels": labels(item, component),
        "ownerReferences": [owner(item)],
    }


def label_value(text: str) -> str:
    """Return `text` as a label's value: at most 63 letters, digits, dots, dashes and underscores."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]", "-", text)
    return names.shortened(cleaned).strip("-._")


def environment(*layers: Sequence[EnvVar] | Mapping[str, str]) -> list[Json]:
    """Return the env of a container; of variables of one name the last layer's wins."""
    entries: dict[str, Json] = {}
    for layer in layers:
        if isinstance(layer, Mapping):
            entries |= {name: {"name": name, "value": value} for name, value in layer.items()}
        else:
            entries |= {each.name: _variable(each) for each in layer}
    return list(entries.values())


def merged(theirs: Any, ours: Any, *, field: str = "") -> Any:
    """Return `ours` laid over `theirs`: maps by key, named lists by name, tolerations together; otherwise ours."""
    match theirs, ours:
        case Mapping(), Mapping():
            both = {key: merged(theirs[key], ours[key], field=key) for key in theirs.keys() & ours.keys()}
            return {**theirs, **ours, **both}
        case list(), list() if field == "tolerations":
            return [*(each for each in theirs if each not in ours), *ours]
        case list(), list() if _named(theirs) and _named(ours):
            by_name = {each["name"]: each for each in theirs}
            for each in ours:
                by_name[each["name"]] = merged(by_name.get(each["name"], {}), each)
            return list(by_name.values())
        case _:
            return ours


def key_volume(item: LLMService) -> Json:
    """Return the volume with the service's engine key."""
    return {"name": "engine-key", "secret": {"secretName": names.engine_key(item.metadata.name)}}


def key_mount() -> Json:
    """Return where the key is mounted; its file is `KEY_FOLDER/key`."""
    return {"name": "engine-key", "mountPath": KEY_FOLDER, "readOnly": True}


def tls_volume(item: LLMService, role: Role) -> Json:
    """Return the volume with the certificate of a role; its files change while the pod runs."""
    secret = {"secretName": names.certificates(item.metadata.name, role), "defaultMode": _TLS_MODE}
    return {"name": "tls", "secret": secret}


def tls_mount() -> Json:
    """Return where the certificate is mounted; no `subPath`, under which changes would not come through."""
    return {"name": "tls", "mountPath": TLS_FOLDER, "readOnly": True}


def _named(items: Sequence[Any]) -> bool:
    return all(isinstance(item, Mapping) and "name" in item for item in items)


def _variable(variable: EnvVar) -> Json:
    # An entry without a value is an empty one, as in Kubernetes itself.
    return (
        {"value": "", **variable.model_dump(by_alias=True, exclude_none=True, mode="json")}
        if (variable.value_from is None)
        else variable.model_dump(by_alias=True, exclude_none=True, mode="json")
    )
