"""The models and the API server refuse the same manifests, and fill in the same defaults for the others."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medley.api.convert import read_accelerator_class, read_llm_service, read_performance_profile
from medley.core.errors import InvalidInputError
from tests.api.test_bad_input import GOOD
from tests.apiserver import PATHS, posting

pytestmark = pytest.mark.apiserver


@pytest.fixture(scope="module")
def create(plane):
    """Yield a function: ask the API server to create an object, dry; what it would store, or None if it refuses."""

    with posting(plane) as post:

        def create(document):
            status, said = post(f"{PATHS[document['kind']]}?dryRun=All&fieldValidation=Strict", document)
            assert status in {201, 400, 422}, said
            return said if status == 201 else None

        yield create


def sometimes(**fields):
    return st.fixed_dictionaries({}, optional=fields)


def mostly(good, bad):
    """Draw good values nine times of ten, so that most objects have few faults."""
    return st.integers(0, 9).flatmap(lambda draw: bad if draw == 0 else good)


durations = mostly(st.sampled_from(["40ms", "850us", "2s", "1h"]), st.sampled_from(["0s", "1m30s", "5", "", 5]))
percents = mostly(st.sampled_from(["0%", "20%", "100%"]), st.sampled_from(["101%", "5", 0.2, "007%"]))
money = mostly(st.sampled_from(["40", "0.36", "0.000001"]), st.sampled_from(["0", "0.0", "-1", "01", 40, "1e3", "1."]))
names = st.sampled_from(["l4", "a10g", "h100"])
counts = mostly(st.integers(1, 40), st.sampled_from([0, -1, 10_001, "3", True, 1.5]))
edges = st.lists(st.integers(0, 4), min_size=0, max_size=3)
sources = sometimes(
    hub=sometimes(revision=st.sampled_from(["main", ""])),
    pvc=sometimes(
        claimName=st.sampled_from(["models", ""]), path=st.sampled_from(["", "a/b", "/a", "..", "a/..b", "a/.."])
    ),
    image=sometimes(reference=st.sampled_from(["r/m:1"]), path=st.sampled_from(["", "a", "/"])),
)
environments = st.lists(
    sometimes(
        name=st.sampled_from(["A", "B", "1", "a-b"]),
        value=st.sampled_from(["", "x", 1]),
        valueFrom=sometimes(
            secretKeyRef=sometimes(name=names, key=names), configMapKeyRef=sometimes(name=names, key=names)
        ),
    ),
    max_size=2,
)
service_specs = sometimes(
    engine=sometimes(
        args=st.lists(
            st.sampled_from(
                [
                    "--a",
                    "--port",
                    "--port=1",
                    "--portal",
                    "-tp",
                    "-tpx",
                    "-t",
                    "--",
                    "--max_model_len=2",
                    "--seed",
                    "--rev",
                    "",
                    "=",
                    "-d",
                ]
            ),
            max_size=2,
        ),
        env=environments,
        imagePullSecrets=st.lists(sometimes(name=names), max_size=2),
        resources=sometimes(requests=st.dictionaries(names, st.sampled_from(["1", 1, "1Gi", 1.5]), max_size=1)),
        podTemplate=sometimes(spec=st.sampled_from([{}, {"tolerations": [{"key": "a"}]}, []])),
    ),
    slo=sometimes(
        percentile=mostly(st.sampled_from([50, 99, 99.9]), st.sampled_from([0, 49.9, 100, "99"])),
        ttft=durations,
        tpot=durations,
    ),
    workload=sometimes(
        requestsPerSecond=mostly(st.floats(0.001, 1e6), st.sampled_from([0, -1, "8", 1e7])),
        distribution=sometimes(
            preset=st.sampled_from(["chat", "code", "other"]),
            histogram=sometimes(
                inputEdges=edges,
                outputEdges=edges,
                weights=st.lists(st.lists(st.sampled_from([0, 1, 0.5, -1]), max_size=3), max_size=3),
            ),
        ),
        source=st.sampled_from(["Observed", "Forecast", "observed"]),
    ),
    accelerators=sometimes(classes=st.lists(names, max_size=2), zones=st.lists(names, max_size=2)),
    spot=sometimes(
        policy=st.sampled_from(["Prefer", "Never", "Only"]), onDemandFloor=percents, surviveZoneLoss=percents
    ),
    limits=sometimes(maxUSDPerHour=money, maxReplicas=counts, minReplicas=counts),
    migration=sometimes(mode=st.sampled_from(["Auto", "Live", "Resume", "None"])),
    mode=st.sampled_from(["Auto", "Plan", "plan"]),
    router=sometimes(
        replicas=mostly(st.integers(2, 100), st.sampled_from([1, 101])), requestTimeout=durations, queueLimit=counts
    ),
)
zones = st.lists(
    sometimes(
        name=mostly(st.sampled_from(["a", "b"]), st.sampled_from(["", "A", "a."])),
        perHour=money,
        spotPerHour=money,
        reservedPerHour=money,
        maxNodes=counts,
        maxSpotNodes=counts,
        maxReservedNodes=counts,
        spotInterruptionsPerHour=st.sampled_from([0, 0.02, -1, 61]),
    ),
    max_size=2,
)
karpenter = sometimes(
    nodeClassRef=st.just({"group": "g", "kind": "k", "name": "n"}), instanceTypes=st.lists(names, max_size=2)
)
existing = sometimes(
    nodeSelector=st.dictionaries(names, names, max_size=1),
    market=st.sampled_from(["spot", "on-demand", "reserved", "x"]),
)
class_specs = sometimes(
    gpu=sometimes(
        product=names,
        memory=mostly(st.just("24Gi"), st.sampled_from(["24", "24GB"])),
        perNode=counts,
        resourceName=st.sampled_from(["amd.com/gpu", "gpu"]),
    ),
    zones=zones,
    nodes=sometimes(karpenter=karpenter, existing=existing),
    engine=sometimes(
        env=environments,
        tolerations=st.lists(sometimes(key=names, operator=st.sampled_from(["Exists", "Equal", "exists"])), max_size=1),
    ),
)
points = st.lists(
    st.fixed_dictionaries(
        {
            "inputTokens": st.integers(1, 20),
            "outputTokens": st.integers(1, 20),
            "requestsPerSecond": st.sampled_from([0.5, 1]),
            "latencies": st.lists(
                st.fixed_dictionaries(
                    {"percentile": st.sampled_from([50, 90, 99]), "ttft": durations, "tpot": durations}
                ),
                max_size=3,
            ),
        }
    ),
    max_size=3,
)
times = mostly(st.sampled_from([0, 0.25, 40, 6500.5]), st.sampled_from([-1, "4", True]))
latency_models = st.fixed_dictionaries(
    {
        "stepMicroseconds": times,
        "prefillTokenMicroseconds": times,
        "sequenceMicroseconds": times,
        "contextTokenMicroseconds": times,
        "kvTokens": st.sampled_from([16, 30, 100_000]),
        "errorPercent": mostly(st.sampled_from([0, 12.5]), st.sampled_from([-1, 1001])),
        "range": st.fixed_dictionaries(
            {"prefillTokens": st.just(64), "sequences": st.sampled_from([0, 8])},
            optional={"contextTokens": st.just(64)},
        ),
    },
    optional={"maxBatchedTokens": st.sampled_from([15, 16, 64, 4096])},
)
profile_specs = st.fixed_dictionaries(
    {
        "model": names,
        "acceleratorClass": names,
        "source": st.sampled_from(["Estimated", "Measured", "Guessed"]),
        "maxModelLen": st.sampled_from([16, 30, 4096]),
        "points": points,
    },
    optional={
        "measuredAt": st.sampled_from(["2026-05-01T12:00:00Z", "yesterday"]),
        "confidence": st.sampled_from(["Low", "High", "Some"]),
        "latencyModel": latency_models,
    },
)


def merged(good, drawn):
    """Replace fields of a good spec by drawn ones, whole."""
    return {**good, **drawn}


KINDS = {
    "LLMService": (service_specs, read_llm_service),
    "AcceleratorClass": (class_specs, read_accelerator_class),
    "PerformanceProfile": (profile_specs, read_performance_profile),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_both_borders_agree(create, kind, data):
    specs, read = KINDS[kind]
    document = {**GOOD[kind], "spec": merged(GOOD[kind]["spec"], data.draw(specs))}
    stored, ours, refusal = create(document), None, ""
    try:
        ours = read(document)
    except InvalidInputError as error:
        refusal = str(error)
    assert (stored is None, refusal) == (ours is None, refusal)
    if stored is not None and ours is not None:
        assert read(stored).spec == ours.spec


def test_the_largest_objects_fit_the_budget_of_the_rules(create):
    latencies = [{"percentile": percentile, "ttft": "180ms", "tpot": "38500us"} for percentile in range(91, 99)]
    profile = {
        **GOOD["PerformanceProfile"]["spec"],
        "points": [
            {"inputTokens": 1 + size, "outputTokens": 10, "requestsPerSecond": 1.5, "latencies": latencies}
            for size in range(600)
        ],
    }
    assert create({**GOOD["PerformanceProfile"], "spec": profile}) is not None
    service = {
        "model": {"name": "m" * 253},
        "engine": {
            "args": [f"--{'a' * 4000}={number}" for number in range(64)],
            "env": [{"name": f"A{number}", "value": "x" * 1000} for number in range(64)],
        },
        "workload": {
            "distribution": {
                "histogram": {
                    "inputEdges": list(range(1, 33)),
                    "outputEdges": list(range(1, 33)),
                    "weights": [[0.5] * 32] * 32,
                }
            }
        },
        "accelerators": {
            "classes": [f"c{number}" for number in range(64)],
            "zones": [f"z{number}" for number in range(64)],
        },
    }
    assert create({**GOOD["LLMService"], "spec": service}) is not None
    zones = [{"name": f"z{number}", "perHour": "1.000001", "spotPerHour": "0.4"} for number in range(32)]
    assert (
        create({**GOOD["AcceleratorClass"], "spec": {**GOOD["AcceleratorClass"]["spec"], "zones": zones}}) is not None
    )
