"""What the user of an existing cluster gives the demo: a manifest, and variables. Pure; used by `existing`.

Every refusal names the variable or the field, and what to write there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from e2e.demo.place import PlaceError

Json = dict[str, Any]

GROUP = "medley.dev/"
MANIFEST, CONFIRM, REGISTRY, TAG = "DEMO_MANIFEST", "CONFIRM", "IMAGE_REGISTRY", "IMAGE_TAG"
# Value of the chart -> (variable that names the image, its name in IMAGE_REGISTRY).
IMAGES = {
    "operator": ("MEDLEY_OPERATOR_IMAGE", "medley-operator"),
    "router": ("MEDLEY_ROUTER_IMAGE", "medley-router"),
    "engineInit": ("MEDLEY_ENGINE_INIT_IMAGE", "medley-engine"),
}
CATALOGUE = ("AcceleratorClass", "PerformanceProfile")
# Applied in this order (what is not named here in between), removed in the opposite one.
_FIRST, _LAST = ("Namespace",), (*CATALOGUE, "LLMService")
LONGEST_REQUEST = 4096  # tokens of the longest request that the demo sends, with its answer
LEAST_REPLICAS = 2


@dataclass(frozen=True, slots=True)
class Manifest:
    """The objects of a manifest, in the order in which they are applied; one of them is the service."""

    objects: tuple[Json, ...]

    @property
    def service(self) -> Json:
        """The LLMService."""
        return self.objects[-1]

    @property
    def model(self) -> str:
        """What clients write in the field `model`."""
        model = self.service["spec"]["model"]
        return str(model.get("servedName") or model["name"])

    @property
    def exact(self) -> bool:
        """Whether two engines agree on every greedy token: in fp32 they do, in 16 bits the best two often tie."""
        arguments = [str(a) for a in (self.service["spec"].get("engine") or {}).get("args") or ()]
        return any(word in " ".join(arguments) for word in ("--dtype=float32", "--dtype float32"))

    def named(self, kind: str) -> list[str]:
        """Return the names of the objects of a kind."""
        return [each["metadata"]["name"] for each in self.objects if each["kind"] == kind]

    @property
    def lacking(self) -> tuple[str, ...]:
        """Kinds of the catalogue that it does not hold: the cluster must have them already."""
        return tuple(kind for kind in CATALOGUE if not self.named(kind))


def manifest(text: str, where: str) -> Manifest:
    """Return the objects of a YAML text; raise PlaceError if the demo could not be told with them."""
    try:
        documents = [each for each in yaml.safe_load_all(text) if each is not None]
    except yaml.YAMLError as error:
        raise PlaceError(f"{MANIFEST}={where}: not YAML: {error}") from error
    objects = [one for each in documents for one in (each["items"] if _is_list(each) else [each])]
    for number, each in enumerate(objects, 1):
        if not isinstance(each, dict) or "kind" not in each or "name" not in (each.get("metadata") or {}):
            raise PlaceError(f"{MANIFEST}={where}: object {number} has no kind or no metadata.name")
    services = [each for each in objects if _is_ours(each, "LLMService")]
    if len(services) != 1:
        names = ", ".join(each["metadata"]["name"] for each in services) or "none"
        raise PlaceError(f"{MANIFEST}={where}: exactly one LLMService is needed, it holds: {names}")
    _check(services[0], where)
    found = Manifest(tuple(sorted(objects, key=_rank)))
    _check_profiles(found, where)
    return found


def images(environment: Mapping[str, str]) -> dict[str, str]:
    """Return medley's images as the chart's values ({operator|router|engineInit: reference}); raise PlaceError."""
    registry, tag = environment.get(REGISTRY, "").rstrip("/"), environment.get(TAG, "")
    by_registry = {value: f"{registry}/{name}:{tag}" for value, (_, name) in IMAGES.items() if registry and tag}
    chosen = {value: environment.get(variable) or by_registry.get(value) for value, (variable, _) in IMAGES.items()}
    missing = [IMAGES[value][0] for value, reference in chosen.items() if not reference]
    if missing:
        raise PlaceError(
            f"medley is not in this cluster, and no registry carries its images: set {REGISTRY} and {TAG} (for "
            f"`${REGISTRY}/medley-operator:${TAG}` and its two siblings; images/README.md builds them), "
            f"or {', '.join(missing)}"
        )
    return {value: reference for value, reference in chosen.items() if reference}


def _is_list(document: Any) -> bool:
    return isinstance(document, dict) and document.get("kind") == "List" and isinstance(document.get("items"), list)


def _is_ours(thing: Json, kind: str) -> bool:
    return bool(thing["kind"] == kind and str(thing.get("apiVersion", "")).startswith(GROUP))


def _rank(thing: Json) -> int:
    kind = thing["kind"]
    return 0 if kind in _FIRST else 2 + _LAST.index(kind) if kind in _LAST and _is_ours(thing, kind) else 1


def _check(service: Json, where: str) -> None:
    spec = service.get("spec") or {}
    model = spec.get("model") or {}
    limits = spec.get("limits") or {}
    problems = []
    if not model.get("name"):
        problems.append("spec.model.name is missing")
    if (longest := model.get("maxModelLen")) is not None and longest < LONGEST_REQUEST:
        problems.append(f"spec.model.maxModelLen: {longest}; the demo's longest request needs {LONGEST_REQUEST}")
    if spec.get("mode", "Auto") != "Auto":
        problems.append(f"spec.mode: {spec['mode']} buys nothing; leave it out")
    if (most := limits.get("maxReplicas")) is not None and most <= LEAST_REPLICAS:
        problems.append(
            f"spec.limits.maxReplicas: {most}; one that replaces the lost one needs {LEAST_REPLICAS + 1} or more"
        )
    if problems:
        raise PlaceError(f"{MANIFEST}={where}: LLMService {service['metadata']['name']}: {'; '.join(problems)}")


def _check_profiles(found: Manifest, where: str) -> None:
    if "PerformanceProfile" in found.lacking:
        return
    wanted = found.service["spec"]["model"]["name"]
    specs = [each.get("spec") or {} for each in found.objects if _is_ours(each, "PerformanceProfile")]
    if wanted not in [spec.get("model") for spec in specs]:
        raise PlaceError(
            f"{MANIFEST}={where}: no PerformanceProfile has spec.model: {wanted}, "
            "which is the LLMService's spec.model.name"
        )
    classes = found.named("AcceleratorClass")
    of_model = {str(spec.get("acceleratorClass")) for spec in specs if spec.get("model") == wanted}
    if classes and not of_model & set(classes):
        raise PlaceError(
            f"{MANIFEST}={where}: its profiles of {wanted} are for {', '.join(sorted(of_model))}; "
            f"none of its AcceleratorClasses ({', '.join(classes)}) has a profile"
        )
