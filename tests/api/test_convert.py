"""From manifests to core values, compared whole."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.api import convert
from medley.core.accelerators import AcceleratorClass, ExistingNodes, KarpenterNodes, Market, NodeOffer, Shape
from medley.core.errors import InvalidInputError
from medley.core.latency import LatencyModel
from medley.core.profiles import Confidence, FittedLatency, Latency, LatencyPoint, Profile, ProfileSource
from medley.core.service import (
    AllocationMode,
    Forecast,
    GpuQuota,
    Histogram,
    Limits,
    MigrationMode,
    OperatingMode,
    RoutingKnowledge,
    Service,
    SpotPolicy,
    SpotUse,
    Spread,
    WorkloadSource,
)
from medley.core.workload import Bucket, Demand, SizeGrid, Slo
from tests.api.test_bad_input import _MISSING, GOOD, LATENCY_MODEL, manifest


def test_a_minimal_service():
    assert convert.service(convert.read_llm_service(GOOD["LLMService"])) == Service(
        namespace="default",
        name="chat",
        uid="",
        generation=0,
        model="meta-llama/Llama-2-7b-hf",
        max_model_len=None,
        slo=Slo(99, timedelta(seconds=2), timedelta(milliseconds=100)),
        forecast=Forecast(1, "chat"),
        workload_source=WorkloadSource.OBSERVED,
        classes=(),
        zones=(),
        spot=SpotPolicy(SpotUse.PREFER, 0.0, 0.0),
        limits=Limits(None, 20, 1),
        migration=MigrationMode.AUTO,
        mode=OperatingMode.AUTO,
    )


def test_a_full_service():
    written = manifest(
        "LLMService",
        {
            "metadata.uid": "u-1",
            "metadata.generation": 7,
            "spec.model.maxModelLen": 4096,
            "spec.slo": {"percentile": 95, "tpot": "40ms"},
            "spec.workload": {
                "requestsPerSecond": 8,
                "distribution": {"histogram": {"inputEdges": [100, 1000], "outputEdges": [50], "weights": [[3], [1]]}},
                "source": "Forecast",
                "routing": "Oracle",
            },
            "spec.priority": 5,
            "spec.accelerators": {"classes": ["l4", "a10g"], "zones": ["a"]},
            "spec.spot": {
                "onDemandFloor": "20%",
                "surviveZoneLoss": "80%",
                "surviveClassLoss": "50%",
                "surviveClassZoneLoss": "90%",
            },
            "spec.limits": {
                "maxUSDPerHour": "40.5",
                "maxReplicas": 40,
                "minReplicas": 2,
                "gpuQuotas": [{"class": "l4", "market": "on-demand", "zone": "a", "gpus": 4}, {"gpus": 16}],
            },
            "spec.spread": {"minZones": 1, "maxZoneShare": "100%"},
            "spec.allocation": "Melange",
            "spec.migration": {"mode": "Resume"},
            "spec.mode": "Plan",
        },
    )
    assert convert.service(convert.read_llm_service(written)) == Service(
        namespace="default",
        name="chat",
        uid="u-1",
        generation=7,
        model="meta-llama/Llama-2-7b-hf",
        max_model_len=4096,
        slo=Slo(95, None, timedelta(milliseconds=40)),
        forecast=Forecast(8, Histogram(SizeGrid((100, 1000), (50,)), ((3.0,), (1.0,)))),
        workload_source=WorkloadSource.FORECAST,
        classes=("l4", "a10g"),
        zones=("a",),
        spot=SpotPolicy(SpotUse.PREFER, 0.2, 0.8, 0.5, 0.9),
        limits=Limits(Decimal("40.5"), 40, 2, (GpuQuota(4, "l4", Market.ON_DEMAND, "a"), GpuQuota(16))),
        migration=MigrationMode.RESUME,
        mode=OperatingMode.PLAN,
        routing=RoutingKnowledge.ORACLE,
        priority=5,
        spread=Spread(1, 1.0),
        allocation=AllocationMode.MELANGE,
    )


def test_replicas_are_spread_over_zones():
    written = manifest("LLMService", {"spec.spread": {"minZones": 2, "maxZoneShare": "60%"}})
    assert convert.service(convert.read_llm_service(written)).spread == Spread(2, 0.6)


def test_a_class_that_karpenter_makes_nodes_for():
    written = manifest(
        "AcceleratorClass",
        {
            "metadata.uid": "u-2",
            "spec.gpu.perNode": 4,
            "spec.zones": [
                {
                    "name": "a",
                    "perHour": "0.8048",
                    "spotPerHour": "0.36",
                    "reservedPerHour": "0.5",
                    "maxNodes": 3,
                    "maxSpotNodes": 5,
                    "maxReservedNodes": 1,
                    "spotInterruptionsPerHour": 0.02,
                },
                {"name": "b", "spotPerHour": "0.4"},
            ],
            "spec.engine.image": "vllm:1",
            "spec.gpuQuota": {"onDemand": 16, "spot": 64},
        },
    )
    assert convert.accelerator_class(convert.read_accelerator_class(written)) == AcceleratorClass(
        name="l4",
        uid="u-2",
        gpu_memory_bytes=24 * 2**30,
        gpus_per_node=4,
        resource_name="nvidia.com/gpu",
        nodes=KarpenterNodes("karpenter.k8s.aws", "EC2NodeClass", "gpu", ("g6.xlarge",)),
        offers=(
            NodeOffer(Market.ON_DEMAND, "a", 0.8048, 3),
            NodeOffer(Market.SPOT, "a", 0.36, 5, 0.02),
            NodeOffer(Market.RESERVED, "a", 0.5, 1),
            NodeOffer(Market.SPOT, "b", 0.4, None),
        ),
        engine_image="vllm:1",
        gpu_quotas=((Market.ON_DEMAND, 16), (Market.SPOT, 64)),
    )


def test_existing_nodes_offer_only_the_market_they_were_bought_in():
    written = manifest(
        "AcceleratorClass",
        {"spec.nodes": {"existing": {"nodeSelector": {"pool": "gpu", "gpu": "l4"}, "market": "spot"}}},
    )
    read = convert.accelerator_class(convert.read_accelerator_class(written))
    assert (read.nodes, read.offers) == (
        ExistingNodes((("gpu", "l4"), ("pool", "gpu"))),
        (NodeOffer(Market.SPOT, "us-east-1a", 0.36, None),),
    )


def test_a_profile_is_ordered_by_size_and_rate():
    point = GOOD["PerformanceProfile"]["spec"]["points"][0]
    written = manifest("PerformanceProfile", {"spec.points": [point, {**point, "requestsPerSecond": 0.25}]})
    latencies = (Latency(99, timedelta(milliseconds=180), timedelta(microseconds=38500)),)
    assert convert.profile(convert.read_performance_profile(written)) == Profile(
        name="llama-2-7b-l4",
        model="meta-llama/Llama-2-7b-hf",
        shape=Shape("l4"),
        source=ProfileSource.MEASURED,
        measured_at=datetime(2026, 5, 1, 12, tzinfo=UTC),
        max_model_len=4096,
        max_running=64,
        points=(LatencyPoint(250, 250, 0.25, latencies), LatencyPoint(250, 250, 0.5, latencies)),
    )


def test_a_profile_of_a_latency_model_alone():
    written = manifest(
        "PerformanceProfile", {"spec.points": _MISSING, "spec.latencyModel": LATENCY_MODEL, "spec.confidence": "High"}
    )
    assert convert.profile(convert.read_performance_profile(written)) == Profile(
        name="llama-2-7b-l4",
        model="meta-llama/Llama-2-7b-hf",
        shape=Shape("l4"),
        source=ProfileSource.MEASURED,
        measured_at=datetime(2026, 5, 1, 12, tzinfo=UTC),
        max_model_len=4096,
        max_running=64,
        points=(),
        latency=FittedLatency(
            LatencyModel(
                step_s=0.0065,
                per_prefill_token_s=180.5e-6,
                per_sequence_s=40e-6,
                per_context_token_s=0.22e-6,
                kv_tokens=20000,
                max_running=64,
                max_batched_tokens=2048,
            ),
            error=0.15,
            largest_prefill_tokens=2048,
            largest_sequences=32,
            largest_context_tokens=4096,
        ),
        confidence=Confidence.HIGH,
    )


def test_status_fields_of_another_version_are_passed_over():
    written = manifest("LLMService", {"status.plan": {"usdPerHour": "1.52", "fromTheFuture": 1}})
    plan = convert.read_llm_service(written).status.plan
    assert plan is not None
    assert plan.usd_per_hour == "1.52"


@given(
    st.lists(st.lists(st.floats(0, 1e6), min_size=2, max_size=2), min_size=3, max_size=3).filter(
        lambda rows: any(weight > 1e-6 for row in rows for weight in row)
    ),
    st.floats(min_value=1e-3, max_value=1e5),
)
def test_a_histogram_spreads_the_whole_rate(weights, rate):
    histogram = Histogram(SizeGrid((1, 2, 3), (1, 2)), tuple(map(tuple, weights)))
    assert histogram.demand(rate).total == pytest.approx(rate)


def test_a_bucket_without_weight_is_absent():
    histogram = Histogram(SizeGrid((10, 20), (5,)), ((0.0,), (2.0,)))
    assert histogram.demand(3) == Demand(histogram.grid, ((Bucket(1, 0), 3.0),))


@pytest.mark.parametrize("weights", [((1.0,),), ((-1.0,), (1.0,)), ((float("nan"),), (1.0,)), ((0.0,), (0.0,))])
def test_a_histogram_that_says_nothing_is_refused(weights):
    with pytest.raises(InvalidInputError, match="weights"):
        Histogram(SizeGrid((10, 20), (5,)), weights)
