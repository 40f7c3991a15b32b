"""What is wrong is refused with the field and the remedy, in the same words by the API server and by the models."""

import copy
import json

import pytest

from e2e.stage.processes import StageError
from medley.api.convert import (
    read_accelerator_class,
    read_budget,
    read_llm_service,
    read_migration,
    read_performance_profile,
)
from medley.api.pods import RESERVED_ARGUMENTS
from medley.core.errors import InvalidInputError
from tests.apiserver import PATHS, posting

READ = {
    "LLMService": read_llm_service,
    "AcceleratorClass": read_accelerator_class,
    "PerformanceProfile": read_performance_profile,
    "Budget": read_budget,
    "Migration": read_migration,
}

GOOD = {
    "LLMService": {
        "apiVersion": "medley.dev/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "chat", "namespace": "default"},
        "spec": {"model": {"name": "meta-llama/Llama-2-7b-hf"}},
    },
    "AcceleratorClass": {
        "apiVersion": "medley.dev/v1alpha1",
        "kind": "AcceleratorClass",
        "metadata": {"name": "l4"},
        "spec": {
            "gpu": {"product": "NVIDIA-L4", "memory": "24Gi"},
            "zones": [{"name": "us-east-1a", "perHour": "0.8048", "spotPerHour": "0.36"}],
            "nodes": {
                "karpenter": {
                    "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu"},
                    "instanceTypes": ["g6.xlarge"],
                }
            },
        },
    },
    "PerformanceProfile": {
        "apiVersion": "medley.dev/v1alpha1",
        "kind": "PerformanceProfile",
        "metadata": {"name": "llama-2-7b-l4"},
        "spec": {
            "model": "meta-llama/Llama-2-7b-hf",
            "acceleratorClass": "l4",
            "source": "Measured",
            "measuredAt": "2026-05-01T12:00:00Z",
            "maxModelLen": 4096,
            "points": [
                {
                    "inputTokens": 250,
                    "outputTokens": 250,
                    "requestsPerSecond": 0.5,
                    "latencies": [{"percentile": 99, "ttft": "180ms", "tpot": "38500us"}],
                }
            ],
        },
    },
    "Budget": {
        "apiVersion": "medley.dev/v1alpha1",
        "kind": "Budget",
        "metadata": {"name": "team"},
        "spec": {"maxUSDPerHour": "60"},
    },
    "Migration": {
        "apiVersion": "medley.dev/v1alpha1",
        "kind": "Migration",
        "metadata": {"name": "chat-node-1", "namespace": "default"},
        "spec": {
            "service": "chat",
            "node": "node-1",
            "deadline": "2026-05-01T12:00:00Z",
            "source": "KarpenterTaint",
            "cause": "Reclaimed",
            "replicas": ["chat-l4-s-a-0"],
        },
    },
}

_MISSING = object()


def manifest(kind, changes):
    """Return the good manifest of a kind with values replaced by path; steps into lists are numbers."""
    document = copy.deepcopy(GOOD[kind])
    for path, value in changes.items():
        *steps, last = (int(step) if step.isdigit() else step for step in path.split("."))
        node = document
        for step in steps:
            node = node.setdefault(step, {}) if isinstance(node, dict) else node[step]
        if value is _MISSING:
            del node[last]
        else:
            node[last] = value
    return document


PRICE_OF_THE_MARKET = (
    "every zone needs the price of nodes.existing.market: perHour for on-demand, spotPerHour for spot, "
    "reservedPerHour for reserved"
)
POINT = GOOD["PerformanceProfile"]["spec"]["points"][0]
LATENCY_MODEL = {
    "stepMicroseconds": 6500,
    "prefillTokenMicroseconds": 180.5,
    "sequenceMicroseconds": 40,
    "contextTokenMicroseconds": 0.22,
    "kvTokens": 20000,
    "maxBatchedTokens": 2048,
    "errorPercent": 15,
    "range": {"prefillTokens": 2048, "sequences": 32, "contextTokens": 4096},
}

# id: kind, changes, field, message. One message for both borders, unless a second is given for the API server's own checks.
RULES = {
    "nothing promised": (
        "LLMService",
        {"spec.slo": {"percentile": 95}},
        "spec.slo",
        "promise at least one of ttft and tpot, for example tpot: 40ms; or leave slo out for the default",
    ),
    "minutes per token": (
        "LLMService",
        {"spec.slo": {"tpot": "100m"}},
        "spec.slo.tpot",
        "tpot 100m is ten seconds or more per token: another unit is meant, such as 100ms (m is minutes)",
    ),
    "hours until the first token": (
        "LLMService",
        {"spec.slo": {"ttft": "2h"}},
        "spec.slo.ttft",
        "ttft 2h is ten minutes or more until the first token: another unit is meant, such as 100ms (m is minutes)",
    ),
    "floor without spot": (
        "LLMService",
        {"spec.spot": {"policy": "Never", "onDemandFloor": "20%"}},
        "spec.spot.onDemandFloor",
        "policy Never buys no spot, so a floor says nothing: remove onDemandFloor, or set policy: Prefer",
    ),
    "zone loss without spot": (
        "LLMService",
        {"spec.spot": {"policy": "Never", "surviveZoneLoss": "80%"}},
        "spec.spot.surviveZoneLoss",
        "policy Never buys no spot, so no spot can be lost: remove surviveZoneLoss, or set policy: Prefer",
    ),
    "class loss without spot": (
        "LLMService",
        {"spec.spot": {"policy": "Never", "surviveClassLoss": "50%"}},
        "spec.spot.surviveClassLoss",
        "policy Never buys no spot, so no spot can be lost: remove surviveClassLoss, or set policy: Prefer",
    ),
    "loss of a class in a zone without spot": (
        "LLMService",
        {"spec.spot": {"policy": "Never", "surviveClassZoneLoss": "50%"}},
        "spec.spot.surviveClassZoneLoss",
        "policy Never buys no spot, so no spot can be lost: remove surviveClassZoneLoss, or set policy: Prefer",
    ),
    "more zones than replicas": (
        "LLMService",
        {"spec.spread": {"minZones": 3}, "spec.limits": {"maxReplicas": 2}},
        "spec.spread.minZones",
        "spread.minZones needs a replica in each of its zones: raise limits.maxReplicas, or lower minZones",
    ),
    "more zones than are allowed": (
        "LLMService",
        {"spec.spread": {"minZones": 3}, "spec.accelerators": {"zones": ["a", "b"]}},
        "spec.spread.minZones",
        "spread.minZones is above the number of accelerators.zones: allow more zones, or lower minZones",
    ),
    "parts of zones that do not make a whole": (
        "LLMService",
        {"spec.spread": {"maxZoneShare": "49%"}, "spec.accelerators": {"zones": ["a", "b"]}},
        "spec.spread.maxZoneShare",
        "spread.maxZoneShare times the accelerators.zones is below 100%: allow more zones, or raise maxZoneShare",
    ),
    "no part of any zone": (
        "LLMService",
        {"spec.spread": {"maxZoneShare": "0%"}},
        "spec.spread.maxZoneShare",
        "maxZoneShare 0% leaves every zone empty: write at least 1%, or remove it",
    ),
    "a comparison that is carried out": (
        "LLMService",
        {"spec.allocation": "Melange"},
        "spec.allocation",
        (
            "allocation Melange keeps no limits and survives no loss, so it is for comparison: "
            "set mode: Plan, or allocation: Shares"
        ),
    ),
    "a quota of the account on nothing": (
        "AcceleratorClass",
        {"spec.gpuQuota": {}},
        "spec.gpuQuota",
        "gpuQuota bounds nothing: set onDemand, spot or both, or remove it",
    ),
    "a shared budget of nothing": (
        "Budget",
        {"spec.maxUSDPerHour": "0.00"},
        "spec.maxUSDPerHour",
        "maxUSDPerHour 0 buys nothing: raise it, or give the services that name this Budget another",
    ),
    "contradictory limits": (
        "LLMService",
        {"spec.limits": {"minReplicas": 5, "maxReplicas": 3}},
        "spec.limits.minReplicas",
        "minReplicas 5 is above maxReplicas 3: lower minReplicas or raise maxReplicas",
    ),
    "minimum above the default maximum": (
        "LLMService",
        {"spec.limits": {"minReplicas": 21}},
        "spec.limits.minReplicas",
        "minReplicas 21 is above maxReplicas 20: lower minReplicas or raise maxReplicas",
    ),
    "a budget of nothing": (
        "LLMService",
        {"spec.limits": {"maxUSDPerHour": "0"}},
        "spec.limits.maxUSDPerHour",
        "maxUSDPerHour 0 buys nothing: raise it, or remove it for no bound",
    ),
    "two sources": (
        "LLMService",
        {"spec.model.source": {"hub": {}, "pvc": {"claimName": "models"}}},
        "spec.model.source",
        "set exactly one of hub, pvc, image: a model has one source; leave source out to use the hub",
    ),
    "no source": (
        "LLMService",
        {"spec.model.source": {}},
        "spec.model.source",
        "set exactly one of hub, pvc, image: a model has one source; leave source out to use the hub",
    ),
    "path out of the claim": (
        "LLMService",
        {"spec.model.source": {"pvc": {"claimName": "models", "path": "a/../../b"}}},
        "spec.model.source.pvc.path",
        "path must stay inside the volume: write it without '..', from the volume's root",
    ),
    "preset and histogram": (
        "LLMService",
        {
            "spec.workload.distribution": {
                "preset": "chat",
                "histogram": {"inputEdges": [10], "outputEdges": [10], "weights": [[1]]},
            }
        },
        "spec.workload.distribution",
        "set exactly one of preset, histogram: for example preset: chat",
    ),
    "edges out of order": (
        "LLMService",
        {
            "spec.workload.distribution": {
                "histogram": {"inputEdges": [100, 25], "outputEdges": [10], "weights": [[1], [1]]}
            }
        },
        "spec.workload.distribution.histogram.inputEdges",
        "inputEdges must ascend, each edge once: write the upper edge of every range, smallest first",
    ),
    "an edge twice": (
        "LLMService",
        {"spec.workload.distribution": {"histogram": {"inputEdges": [10], "outputEdges": [9, 9], "weights": [[1, 1]]}}},
        "spec.workload.distribution.histogram.outputEdges",
        "outputEdges must ascend, each edge once: write the upper edge of every range, smallest first",
    ),
    "a row of weights missing": (
        "LLMService",
        {"spec.workload.distribution": {"histogram": {"inputEdges": [5, 9], "outputEdges": [9], "weights": [[1]]}}},
        "spec.workload.distribution.histogram.weights",
        "weights needs one row per input edge, each with one weight per output edge",
    ),
    "no weight": (
        "LLMService",
        {"spec.workload.distribution": {"histogram": {"inputEdges": [5], "outputEdges": [9], "weights": [[0]]}}},
        "spec.workload.distribution.histogram.weights",
        "all weights are 0: give at least one size a weight above 0",
    ),
    "an argument that is medley's": (
        "LLMService",
        {"spec.engine.args": ["--enforce-eager", "--tensor-parallel-size=2"]},
        "spec.engine.args",
        f"not yours to give: {' '.join(RESERVED_ARGUMENTS)}. Remove them: spec.model and the plan decide",
    ),
    "value twice": (
        "LLMService",
        {
            "spec.engine.env": [
                {"name": "A", "value": "1", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            ]
        },
        "spec.engine.env[0]",
        "set value or valueFrom, not both",
    ),
    "a variable that is medley's": (
        "LLMService",
        {"spec.engine.env": [{"name": "MEDLEY_MIGRATION", "value": "Live"}]},
        "spec.engine.env[0].name",
        "medley sets this variable itself; remove it (spec.migration.mode decides MEDLEY_MIGRATION)",
    ),
    "value from nowhere": (
        "LLMService",
        {"spec.engine.env": [{"name": "A", "valueFrom": {}}]},
        "spec.engine.env[0].valueFrom",
        "set exactly one of secretKeyRef, configMapKeyRef: a value has one source",
    ),
    "a name that no Service can have": (
        "LLMService",
        {"metadata.name": "chat.v1"},
        "",
        "metadata.name names pods and Services: write at most 63 of a-z, 0-9 and -, starting with a letter",
    ),
    "a zone without a price": (
        "AcceleratorClass",
        {"spec.zones": [{"name": "a"}]},
        "spec.zones[0]",
        "a zone needs a price: set at least one of perHour, spotPerHour and reservedPerHour",
    ),
    "a price of nothing": (
        "AcceleratorClass",
        {"spec.zones": [{"name": "a", "perHour": "0.0"}]},
        "spec.zones[0]",
        "a price of 0 would make medley buy without end: write what a node costs, or what it is worth to you",
    ),
    "a reservation without a size": (
        "AcceleratorClass",
        {"spec.zones": [{"name": "a", "reservedPerHour": "1"}]},
        "spec.zones[0]",
        "reservedPerHour and maxReservedNodes go together: a reservation has a price and a size",
    ),
    "a cap on spot that is not sold": (
        "AcceleratorClass",
        {"spec.zones": [{"name": "a", "perHour": "1", "maxSpotNodes": 3}]},
        "spec.zones[0]",
        "maxSpotNodes needs spotPerHour: set the price, or remove the cap",
    ),
    "spot in cents": (
        "AcceleratorClass",
        {"spec.zones": [{"name": "a", "perHour": "0.8048", "spotPerHour": "32"}]},
        "spec.zones[0].spotPerHour",
        "spotPerHour is more than ten times perHour 0.8048: both are USD per hour of one node, not cents",
    ),
    "nodes from two places": (
        "AcceleratorClass",
        {"spec.nodes.existing": {"nodeSelector": {"gpu": "l4"}}},
        "spec.nodes",
        "set exactly one of karpenter, existing: nodes are made by Karpenter or are there already",
    ),
    "existing spot nodes without their price": (
        "AcceleratorClass",
        {
            "spec.nodes": {"existing": {"nodeSelector": {"gpu": "l4"}, "market": "spot"}},
            "spec.zones": [{"name": "a", "perHour": "1"}],
        },
        "spec.zones",
        PRICE_OF_THE_MARKET,
    ),
    "a class named like a shape": (
        "AcceleratorClass",
        {"metadata.name": "l4-tp2"},
        "",
        "metadata.name must not end in -tpN or -ppN: medley appends these to name shapes",
    ),
    "a class name too long for labels": (
        "AcceleratorClass",
        {"metadata.name": "l" * 41},
        "",
        "metadata.name becomes part of labels and pod names: at most 40 of a-z, 0-9 and -",
    ),
    "nothing measured": (
        "PerformanceProfile",
        {"spec.points": _MISSING},
        "spec.points",
        "a profile without latencies says nothing: give points, latencyModel, or both",
    ),
    "an empty list of points": (
        "PerformanceProfile",
        {"spec.points": []},
        "spec.points",
        "a profile without latencies says nothing: give points, latencyModel, or both",
    ),
    "a step without time": (
        "PerformanceProfile",
        {"spec.latencyModel": LATENCY_MODEL | {"stepMicroseconds": 0, "sequenceMicroseconds": 0}},
        "spec.latencyModel.stepMicroseconds",
        "a step takes time: give stepMicroseconds or sequenceMicroseconds",
    ),
    "a cache smaller than a request": (
        "PerformanceProfile",
        {"spec.latencyModel": LATENCY_MODEL | {"kvTokens": 4000}},
        "spec.latencyModel.kvTokens",
        "latencyModel.kvTokens is below maxModelLen 4096, so the longest request fits no replica: lower maxModelLen",
    ),
    "a step smaller than its batch": (
        "PerformanceProfile",
        {"spec.latencyModel": LATENCY_MODEL | {"maxBatchedTokens": 32}},
        "spec.latencyModel.maxBatchedTokens",
        (
            "latencyModel.maxBatchedTokens is below maxRunning 64, and a step takes one token of every request "
            "that decodes: raise it, or lower maxRunning"
        ),
    ),
    "a measurement without a date": (
        "PerformanceProfile",
        {"spec.measuredAt": _MISSING},
        "spec.measuredAt",
        "a profile that is not Estimated needs measuredAt, for example 2026-05-01T12:00:00Z",
    ),
    "a point longer than the model": (
        "PerformanceProfile",
        {"spec.maxModelLen": 499},
        "spec.points",
        "a point is longer than maxModelLen 499, so it cannot be served: raise maxModelLen or remove it",
    ),
    "percentiles out of order": (
        "PerformanceProfile",
        {
            "spec.points.0.latencies": [
                {"percentile": 99, "ttft": "2s", "tpot": "40ms"},
                {"percentile": 50, "ttft": "1s", "tpot": "30ms"},
            ]
        },
        "spec.points[0].latencies",
        "latencies must ascend by percentile, each percentile once",
    ),
}

# What the structural schema refuses: id: kind, changes, field, words of the API server, words of the models.
SCHEMA = {
    "a compound duration": (
        "LLMService",
        {"spec.slo": {"tpot": "1m30s"}},
        "spec.slo.tpot",
        "should match",
        "expected a duration such as 40ms, 2s, 10m or 1h, got '1m30s'",
    ),
    "a percentage in words": (
        "LLMService",
        {"spec.spot": {"onDemandFloor": "a fifth"}},
        "spec.spot.onDemandFloor",
        "should match",
        "expected a whole percentage from 0% to 100%, got 'a fifth'",
    ),
    "money as a number": (
        "LLMService",
        {"spec.limits": {"maxUSDPerHour": 40}},
        "spec.limits.maxUSDPerHour",
        "must be of type string",
        'expected US dollars as a string such as "0.36", got 40: write "40"',
    ),
    "a duration as a number": (
        "LLMService",
        {"spec.slo": {"tpot": 100}},
        "spec.slo.tpot",
        "must be of type string",
        'expected a duration such as 40ms, 2s, 10m or 1h, got 100: write "100ms"',
    ),
    "a percentage as a fraction": (
        "LLMService",
        {"spec.spot": {"onDemandFloor": 0.2}},
        "spec.spot.onDemandFloor",
        "must be of type string",
        'expected a whole percentage from 0% to 100%, got 0.2: write "20%"',
    ),
    "a number as text": (
        "LLMService",
        {"spec.limits": {"maxReplicas": "40"}},
        "spec.limits.maxReplicas",
        "must be of type integer",
        "expected a number, got the text '40': write it without quotes",
    ),
    "memory in decimal units": (
        "AcceleratorClass",
        {"spec.gpu.memory": "24GB"},
        "spec.gpu.memory",
        "should match",
        "expected a memory size such as 24Gi, got '24GB'",
    ),
    "percentile of everything": (
        "LLMService",
        {"spec.slo": {"tpot": "40ms", "percentile": 100}},
        "spec.slo.percentile",
        "should be less than 100",
        "input should be less than 100, got 100",
    ),
    "a class twice": (
        "LLMService",
        {"spec.accelerators": {"classes": ["l4", "l4"]}},
        "spec.accelerators.classes",
        "Duplicate value",
        "an entry occurs twice: name each of the classes once",
    ),
    "a zone twice": (
        "LLMService",
        {"spec.accelerators": {"zones": ["a", "a"]}},
        "spec.accelerators.zones",
        "Duplicate value",
        "an entry occurs twice: name each of the zones once",
    ),
    "a variable twice": (
        "LLMService",
        {"spec.engine.env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
        "spec.engine.env",
        "Duplicate value",
        "a name occurs twice: name each variable once",
    ),
    "a priced zone twice": (
        "AcceleratorClass",
        {"spec.zones": [{"name": "a", "perHour": "1"}, {"name": "a", "perHour": "2"}]},
        "spec.zones",
        "Duplicate value",
        "a zone occurs twice: name each zone once",
    ),
    "a point twice": (
        "PerformanceProfile",
        {"spec.points": [POINT, POINT]},
        "spec.points",
        "Duplicate value",
        "two points are of the same size and rate: keep one",
    ),
    "one router": (
        "LLMService",
        {"spec.router": {"replicas": 1}},
        "spec.router.replicas",
        "should be greater than or equal to 2",
        "input should be greater than or equal to 2, got 1",
    ),
    "no rate": (
        "LLMService",
        {"spec.workload": {"requestsPerSecond": 0}},
        "spec.workload.requestsPerSecond",
        "should be greater than 0",
        "input should be greater than 0, got 0",
    ),
    "a priority below all": (
        "LLMService",
        {"spec.priority": -1},
        "spec.priority",
        "should be greater than or equal to 0",
        "input should be greater than or equal to 0, got -1",
    ),
    "routers that know something else": (
        "LLMService",
        {"spec.workload.routing": "Random"},
        "spec.workload.routing",
        'supported values: "Blind", "Oracle"',
        "input should be 'Blind' or 'Oracle', got 'Random'",
    ),
    "no model": ("LLMService", {"spec.model": _MISSING}, "spec.model", "Required value", "this field is required"),
    "an unknown policy": (
        "LLMService",
        {"spec.spot": {"policy": "Always"}},
        "spec.spot.policy",
        'supported values: "Prefer", "Never"',
        "input should be 'Prefer' or 'Never', got 'Always'",
    ),
}


@pytest.fixture(scope="module")
def refusal_of(plane):
    """Return a function: what the API server says when it refuses a document."""
    with posting(plane) as post:

        def refusal(document):
            status, said = post(PATHS[document["kind"]], document)
            assert status in {400, 422}, said
            return said["message"]

        yield refusal


@pytest.mark.parametrize(("kind", "changes", "field", "message"), RULES.values(), ids=RULES)
def test_a_rule_refuses_in_the_models(kind, changes, field, message):
    with pytest.raises(InvalidInputError) as refused:
        READ[kind](manifest(kind, changes))
    assert str(refused.value) == f"{field.replace('[0]', '.0') or kind}: {message}"


@pytest.mark.parametrize(("kind", "changes", "field", "_", "words"), SCHEMA.values(), ids=SCHEMA)
def test_the_schema_refuses_in_the_models(kind, changes, field, _, words):
    with pytest.raises(InvalidInputError) as refused:
        READ[kind](manifest(kind, changes))
    assert str(refused.value) == f"{field}: {words}"


@pytest.mark.apiserver
@pytest.mark.parametrize(("kind", "changes", "field", "message"), RULES.values(), ids=RULES)
def test_a_rule_refuses_at_the_api_server(refusal_of, kind, changes, field, message):
    said = refusal_of(manifest(kind, changes))
    assert message in said
    assert f"{field}: Invalid value" in said


@pytest.mark.apiserver
@pytest.mark.parametrize("case", SCHEMA.values(), ids=SCHEMA)
def test_the_schema_refuses_at_the_api_server(refusal_of, case):
    kind, changes, field, words, _ = case
    said = refusal_of(manifest(kind, changes))
    assert words in said
    assert field in said


@pytest.mark.parametrize("kind", GOOD)
def test_an_unknown_field_is_refused_in_the_models(kind):
    with pytest.raises(InvalidInputError) as refused:
        READ[kind](manifest(kind, {"spec.replica": 3}))
    assert str(refused.value) == "spec.replica: there is no such field: check its spelling and its indentation"


@pytest.mark.apiserver
@pytest.mark.parametrize("kind", GOOD)
def test_an_unknown_field_is_refused_by_kubectls_strict_validation(plane, kind):
    with pytest.raises(StageError, match=r'unknown field "spec\.replica"'):
        plane.kubectl("create", "-f", "-", stdin=json.dumps(manifest(kind, {"spec.replica": 3})))
