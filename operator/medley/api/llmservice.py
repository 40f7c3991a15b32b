"""LLMService: what a user writes to have a model served. Only `spec.model` is required."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from medley.api.base import (
    AnyObject,
    Duration,
    Metadata,
    Money,
    Part,
    Percent,
    Quantity,
    Rule,
    Text,
    exactly_one,
    unique,
)
from medley.api.llmservice_status import LLMServiceStatus
from medley.core.names import API_VERSION
from medley.core.service import MigrationMode, OperatingMode, SpotUse, WorkloadSource

# Arguments of vLLM that medley gives itself; a second value would make the engine something else than was planned.
OWN_ARGUMENTS = (
    "--model",
    "--served-model-name",
    "--host",
    "--port",
    "--api-key",
    "--max-model-len",
    "--tensor-parallel-size",
    "-tp",
    "--pipeline-parallel-size",
    "-pp",
    "--data-parallel-size",
    "-dp",
    "--kv-transfer-config",
    "--revision",
)


class LocalName(Part):
    """Names an object of the same namespace."""

    name: Text
    """Name of the object."""


class KeyRef(Part):
    """Names one key of an object of the same namespace."""

    name: Text
    """Name of the object."""
    key: Text
    """Key within the object."""


class HubSource(Part):
    """A model hub that vLLM downloads from (Hugging Face)."""

    revision: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Branch, tag or commit; the hub's default if absent. A commit makes replicas equal for ever."""
    token_secret_ref: KeyRef | None = None
    """Secret with an access token, for gated models."""


_RELATIVE = r"^$|^[^/].*$"


_STAYS_INSIDE = Rule(
    "!('..' in self.path.split('/'))",
    lambda part: ".." not in part.path.split("/"),
    "path must stay inside the volume: write it without '..', from the volume's root",
    ".path",
)


class PvcSource(Part):
    """A PersistentVolumeClaim that holds the model; it is mounted read-only by every engine."""

    rules: ClassVar = (_STAYS_INSIDE,)

    claim_name: Text
    """Name of the claim."""
    path: Annotated[str, Field(pattern=_RELATIVE, max_length=1024)] = ""
    """Folder of the model within the claim, without a leading slash; empty: the root of the claim."""


class ImageSource(Part):
    """An OCI image that holds the model, mounted as an image volume (Kubernetes 1.35 and later have it on)."""

    rules: ClassVar = (_STAYS_INSIDE,)

    reference: Annotated[str, Field(min_length=1, max_length=1024)]
    """Image, for example registry.example/models/llama-2-7b:1."""
    path: Annotated[str, Field(pattern=_RELATIVE, max_length=1024)] = ""
    """Folder of the model within the image, without a leading slash; empty: the root of the image."""


class ModelSource(Part):
    """Where engines get the model from."""

    rules: ClassVar = (
        exactly_one("hub", "pvc", "image", remedy="a model has one source; leave source out to use the hub"),
    )

    hub: HubSource | None = None
    """Download from a model hub by `model.name`."""
    pvc: PvcSource | None = None
    """Read from a PersistentVolumeClaim."""
    image: ImageSource | None = None
    """Read from an OCI image."""


class Model(Part):
    """The model."""

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
    """Its name on the hub; PerformanceProfiles are found by it."""
    source: ModelSource = ModelSource(hub=HubSource())
    """Where engines get it from; the hub if absent."""
    max_model_len: Annotated[int, Field(ge=16, le=10_000_000)] | None = None
    """Longest request, input + output, in tokens; the model's own limit if absent."""
    served_name: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """What clients write in the field `model`; `name` if absent."""


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
    )

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=253)]
    """Its name."""
    value: Annotated[str, Field(max_length=32768)] | None = None
    """Its value."""
    value_from: EnvSource | None = None
    """Where its value comes from."""


class Resources(Part):
    """CPU and memory; GPUs are set by medley from the AcceleratorClass."""

    requests: dict[str, Quantity] = {}
    """What is reserved, by resource name."""
    limits: dict[str, Quantity] = {}
    """What is never exceeded, by resource name."""


class PodMetadata(Part):
    """Labels and annotations that engine pods get besides medley's own."""

    labels: dict[str, str] = {}
    """Labels; keys of medley.dev and app.kubernetes.io stay medley's."""
    annotations: dict[str, str] = {}
    """Annotations."""


class PodTemplate(Part):
    """What engine pods get besides what medley puts there."""

    metadata: PodMetadata = PodMetadata()
    """Labels and annotations."""
    spec: AnyObject = {}
    """Fields of a pod's spec: tolerations, nodeSelector, priorityClassName, volumes, ... Named lists are merged by name; the
    engine's container is called `engine`. What medley needs itself (its volumes, probes, GPUs, affinity) wins."""


class Engine(Part):
    """The vLLM engine and its pods."""

    rules: ClassVar = (
        Rule(
            f"self.args.all(each, !(each.split('=')[0] in {list(OWN_ARGUMENTS)!r}))",
            lambda part: not any(each.split("=")[0] in OWN_ARGUMENTS for each in part.args),
            f"medley sets these arguments itself: {' '.join(OWN_ARGUMENTS)}. Remove them; sizes, length and names come from "
            "spec.model and the plan",
            ".args",
        ),
        Rule(
            None,
            lambda part: unique(tuple(each.name for each in part.env)),
            "a name occurs twice: name each variable once",
            ".env",
        ),
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


class SloSpec(Part):
    """The promise: at least `percentile` percent of requests meet every bound that is set."""

    rules: ClassVar = (
        Rule(
            "has(self.ttft) || has(self.tpot)",
            lambda part: part.ttft is not None or part.tpot is not None,
            "promise at least one of ttft and tpot, for example tpot: 40ms; or leave slo out for the default",
        ),
    )

    percentile: Annotated[float, Field(ge=50, lt=100)] = 99
    """Percent of requests that meet the bounds."""
    ttft: Duration | None = None
    """Time to first token, from arrival at the router: 500ms, 2s."""
    tpot: Duration | None = None
    """Time per output token of one request, (last - first) / (tokens - 1): 40ms."""


Edges = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, max_length=32)]


def _ascending(edges: tuple[int, ...]) -> bool:
    return list(edges) == sorted(set(edges))


class HistogramSpec(Part):
    """Request sizes spelt out."""

    rules: ClassVar = (
        *(
            Rule(
                f"self.{name}.isSorted() && self.{name}.all(edge, self.{name}.exists_one(other, other == edge))",
                lambda part, attribute=attribute: _ascending(getattr(part, attribute)),
                f"{name} must ascend, each edge once: write the upper edge of every range, smallest first",
                f".{name}",
            )
            for name, attribute in (("inputEdges", "input_edges"), ("outputEdges", "output_edges"))
        ),
        Rule(
            "self.weights.size() == self.inputEdges.size() && "
            "self.weights.all(row, row.size() == self.outputEdges.size())",
            lambda part: (
                len(part.weights) == len(part.input_edges)
                and all(len(row) == len(part.output_edges) for row in part.weights)
            ),
            "weights needs one row per input edge, each with one weight per output edge",
            ".weights",
        ),
        Rule(
            "self.weights.exists(row, row.exists(weight, weight > 0.0))",
            lambda part: any(weight > 0 for row in part.weights for weight in row),
            "all weights are 0: give at least one size a weight above 0",
            ".weights",
        ),
    )

    input_edges: Edges
    """Upper edges, inclusive, of the ranges of input tokens, ascending."""
    output_edges: Edges
    """Upper edges, inclusive, of the ranges of output tokens, ascending."""
    weights: Annotated[
        tuple[Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1, max_length=32)], ...],
        Field(min_length=1, max_length=32),
    ]
    """Relative weights: one row per input range, one number per output range. They need not add up to 1."""


class Distribution(Part):
    """How request sizes are distributed."""

    rules: ClassVar = (exactly_one("preset", "histogram", remedy="for example preset: chat"),)

    preset: Literal["chat", "summarization", "code"] | None = None
    """A distribution that comes with medley."""
    histogram: HistogramSpec | None = None
    """Weights per range of input and output tokens."""


class Workload(Part):
    """The traffic to plan for."""

    requests_per_second: Annotated[float, Field(gt=0, le=1_000_000)] = 1
    """Expected rate, in requests per second."""
    distribution: Distribution = Distribution(preset="chat")
    """Expected sizes."""
    source: WorkloadSource = WorkloadSource.OBSERVED
    """Observed: what the routers measured, once they have, and the forecast until then. Forecast: always the forecast."""


NameSet = Annotated[
    tuple[Text, ...],
    Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
]


class Accelerators(Part):
    """Which GPUs may be used."""

    rules: ClassVar = tuple(
        Rule(
            None,
            lambda part, attribute=attribute: unique(getattr(part, attribute)),
            f"an entry occurs twice: name each of the {attribute} once",
            f".{attribute}",
        )
        for attribute in ("classes", "zones")
    )

    classes: NameSet = ()
    """Names of AcceleratorClasses; empty: every class there is."""
    zones: NameSet = ()
    """Zones; empty: every zone of the classes."""


class Spot(Part):
    """How much may depend on spot capacity."""

    rules: ClassVar = (
        Rule(
            "self.policy != 'Never' || !has(self.onDemandFloor)",
            lambda part: part.policy is not SpotUse.NEVER or part.on_demand_floor is None,
            "policy Never buys no spot, so a floor says nothing: remove onDemandFloor, or set policy: Prefer",
            ".onDemandFloor",
        ),
        Rule(
            "self.policy != 'Never' || !has(self.surviveZoneLoss)",
            lambda part: part.policy is not SpotUse.NEVER or part.survive_zone_loss is None,
            "policy Never buys no spot, so no spot can be lost: remove surviveZoneLoss, or set policy: Prefer",
            ".surviveZoneLoss",
        ),
    )

    policy: SpotUse = SpotUse.PREFER
    """Prefer: spot wherever it is cheapest. Never: no spot."""
    on_demand_floor: Percent | None = None
    """At least this part of the replicas is not spot; 0% if absent."""
    survive_zone_loss: Percent | None = None
    """This part of the demand is still served, within the SLO, when the spot nodes of one zone are lost; 0% if absent."""


class LimitsSpec(Part):
    """Bounds that no plan crosses; a demand that needs more is reported, never silently cut."""

    rules: ClassVar = (
        Rule(
            "self.minReplicas <= self.maxReplicas",
            lambda part: part.min_replicas <= part.max_replicas,
            "minReplicas {minReplicas} is above maxReplicas {maxReplicas}: lower minReplicas or raise maxReplicas",
            ".minReplicas",
        ),
        Rule(
            "!has(self.maxUSDPerHour) || double(self.maxUSDPerHour) > 0.0",
            lambda part: part.max_usd_per_hour is None or float(part.max_usd_per_hour) > 0,
            "maxUSDPerHour 0 buys nothing: raise it, or remove it for no bound",
            ".maxUSDPerHour",
        ),
    )

    max_usd_per_hour: Annotated[Money | None, Field(alias="maxUSDPerHour")] = None
    """Most that the nodes of this service may cost, in USD per hour, as a string: "40". No bound if absent."""
    max_replicas: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Most replicas."""
    min_replicas: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Fewest replicas."""


class Migration(Part):
    """How running requests leave a node that goes away."""

    mode: MigrationMode = MigrationMode.AUTO
    """Auto: the KV cache moves where engine and network allow it, else the token log is replayed. Live: engines that cannot
    move their KV cache are refused. Resume: the token log is always replayed."""


class Router(Part):
    """The service's front door."""

    replicas: Annotated[int, Field(ge=2, le=100)] = 2
    """Router pods; at least 2, so that one may go."""
    request_timeout: Duration = "10m"
    """Longest that one request may take, from arrival to last token."""
    queue_limit: Annotated[int, Field(ge=0, le=1_000_000)] = 1024
    """Requests that may wait in one router pod; more get 429 with Retry-After."""
    resources: Resources = Resources()
    """CPU and memory of a router pod."""


class LLMServiceSpec(Part):
    """One large language model, a promise about its latency, and the bounds within which medley chooses GPUs for it."""

    model: Model
    """The model to serve."""
    engine: Engine = Engine()
    """The vLLM engine and its pods."""
    slo: SloSpec = SloSpec(percentile=99, ttft="2s", tpot="100ms")
    """The promise; if absent: 99 % of requests see their first token within 2s and then 10 tokens per second."""
    workload: Workload = Workload()
    """The traffic to plan for."""
    accelerators: Accelerators = Accelerators()
    """Which GPUs may be used."""
    spot: Spot = Spot()
    """How much may depend on spot capacity."""
    limits: LimitsSpec = LimitsSpec()
    """Bounds that no plan crosses."""
    migration: Migration = Migration()
    """How running requests leave a node that goes away."""
    mode: OperatingMode = OperatingMode.AUTO
    """Auto: carry plans out. Plan: compute and show them in status.plan, change nothing."""
    router: Router = Router()
    """The service's front door."""


NAME_RULE = Rule(
    "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 63",
    lambda item: _is_label(item.metadata.name),
    "metadata.name must be a DNS label, since it names pods and Services: at most 63 of a-z, 0-9 and -, starting with a letter",
)


def _is_label(name: str) -> bool:
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789-")
    return 1 <= len(name) <= 63 and set(name) <= allowed and name[0].isalpha() and name[-1] != "-"  # noqa: PLR2004


_SERVING = "!has(oldSelf.status) || oldSelf.status.?replicas.?ready.orValue(0) == 0"


class LLMService(Part):
    """Serves one large language model on the cheapest mix of GPUs that keeps its latency promise."""

    rules: ClassVar = (NAME_RULE,)
    transitions: ClassVar = (
        {
            "rule": f"self.spec.model.name == oldSelf.spec.model.name || {_SERVING}",
            "message": "the model cannot change while replicas serve, because running streams would go on with other weights: "
            "create another LLMService and move clients to it, or delete this one first",
            "fieldPath": ".spec.model.name",
        },
        {
            "rule": "(self.spec.model.source.?hub.?revision == oldSelf.spec.model.source.?hub.?revision && "
            "self.spec.model.source.?pvc == oldSelf.spec.model.source.?pvc && "
            f"self.spec.model.source.?image == oldSelf.spec.model.source.?image) || {_SERVING}",
            "message": "the weights cannot change while replicas serve, because running streams would go on with other weights: "
            "create another LLMService and move clients to it, or delete this one first",
            "fieldPath": ".spec.model.source",
        },
    )

    api_version: Literal["medley.dev/v1alpha1"] = API_VERSION
    kind: Literal["LLMService"] = "LLMService"
    metadata: Metadata
    spec: LLMServiceSpec
    """What is wanted."""
    status: LLMServiceStatus = LLMServiceStatus()
    """What is."""
