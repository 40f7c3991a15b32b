"""What people may set about engine pods, in an LLMService and in an AcceleratorClass."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from medley.api.base import AnyObject, KeyRef, LocalName, Part, Quantity, Rule, exactly_one, unique
from medley.core.arguments import OPERATORS, SUPERVISORS, reserved

# Variables that medley sets in engine pods, or that its ports and probes rely on.
RESERVED_VARIABLES = (
    "MEDLEY_BIND_HOST", "MEDLEY_CONTROL_PORT", "MEDLEY_ENGINE_PORT", "MEDLEY_GRACE", "MEDLEY_KEY_FILE",
    "MEDLEY_MIGRATION", "MEDLEY_STATUS_PORT", "MEDLEY_TLS_DIR", "PYTHONPATH",
)  # fmt: skip
RESERVED_ARGUMENTS = tuple(sorted({**SUPERVISORS, **OPERATORS}))


def each_name_once(attribute: str, path: str, remedy: str) -> Rule:
    """Return the rule of a list that is a map by name to the API server."""
    return Rule(
        None,
        lambda part: unique(tuple(each.name for each in getattr(part, attribute))),
        f"a name occurs twice: {remedy}",
        path,
    )


class EnvSource(Part):
    """Where the value of an environment variable comes from."""

    rules: ClassVar = (exactly_one("secretKeyRef", "configMapKeyRef", remedy="a value has one source"),)

    secret_key_ref: KeyRef | None = None
    """A key of a Secret."""
    config_map_key_ref: KeyRef | None = None
    """A key of a ConfigMap."""


class EnvVar(Part):
    """One environment variable of the engine."""

    rules: ClassVar = (
        Rule(
            "!(has(self.value) && has(self.valueFrom))",
            lambda part: part.value is None or part.value_from is None,
            "set value or valueFrom, not both",
        ),
        Rule(
            f"!(self.name in {list(RESERVED_VARIABLES)})",
            lambda part: part.name not in RESERVED_VARIABLES,
            "medley sets this variable itself; remove it (spec.migration.mode decides MEDLEY_MIGRATION)",
            ".name",
        ),
    )

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=253)]
    """Its name."""
    value: Annotated[str, Field(max_length=32768)] | None = None
    """Its value."""
    value_from: EnvSource | None = None
    """Where its value comes from."""


class Resources(Part):
    """CPU and memory; GPUs are set by medley from the AcceleratorClass."""

    requests: dict[str, Quantity] = Field(default={})
    """What is reserved, by resource name."""
    limits: dict[str, Quantity] = Field(default={})
    """What is never exceeded, by resource name."""


class PodMetadata(Part):
    """Labels and annotations that engine pods get besides medley's own."""

    labels: dict[str, str] = Field(default={})
    """Labels; keys of medley.dev and app.kubernetes.io stay medley's."""
    annotations: dict[str, str] = Field(default={})
    """Annotations."""


class PodTemplate(Part):
    """What engine pods get besides what medley puts there."""

    metadata: PodMetadata = PodMetadata()
    """Labels and annotations."""
    spec: AnyObject = Field(default={})
    """Fields of a pod's spec: tolerations, nodeSelector, priorityClassName, volumes, ... Named lists are merged by
    name; the engine's container is called `engine`. What medley needs itself (volumes, probes, GPUs, affinity) wins."""


class Engine(Part):
    """The vLLM engine and its pods."""

    rules: ClassVar = (
        Rule(
            # medley.core.arguments.reserved, in CEL
            "!has(self.args) || self.args.map(word, word.split('=', 2)[0]).map(flag, flag.startsWith('--') ? "
            f"flag.replace('_', '-') : flag).all(flag, !{list(RESERVED_ARGUMENTS)!r}.exists(name, name == flag || "
            "(size(flag) > 2 && name.startsWith(flag))))",
            lambda part: not any(reserved(each, RESERVED_ARGUMENTS) for each in part.args),
            f"not yours to give: {' '.join(RESERVED_ARGUMENTS)}. Remove them: spec.model and the plan decide",
            ".args",
        ),
        each_name_once("env", ".env", "name each variable once"),
        each_name_once("image_pull_secrets", ".imagePullSecrets", "name each Secret once"),
    )

    image: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """vLLM image; the AcceleratorClass's if absent, then the chart's default."""
    args: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...], Field(max_length=64)] = ()
    """Arguments appended to vLLM's command line, for example --gpu-memory-utilization=0.92."""
    env: Annotated[
        tuple[EnvVar, ...],
        Field(
            max_length=64,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = ()
    """Environment variables of the engine."""
    resources: Resources = Resources()
    """CPU and memory of the engine's container."""
    pod_template: PodTemplate = PodTemplate()
    """What engine pods get besides what medley puts there."""
    image_pull_secrets: Annotated[
        tuple[LocalName, ...],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = ()
    """Secrets for private registries, in this namespace."""
