"""PerformanceProfile: what one replica of a model on a shape was measured to do, before any SLO is applied."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from medley.api.base import Duration, Metadata, Part, Rule, Text, unique
from medley.core.profiles import Confidence, ProfileSource


class LatencySpec(Part):
    """Latencies that this percentile of requests stayed within."""

    percentile: Annotated[float, Field(gt=0, lt=100)]
    """Percentile over requests, in percent: 99."""
    ttft: Duration
    """Time to first token, with its unit (us, ms, s, m, h): 180ms."""
    tpot: Duration
    """Time per output token, with its unit (us, ms, s, m, h): 21ms, or 8300us where milliseconds are too coarse."""


class Point(Part):
    """What requests of one size met at one rate on one replica, with Poisson arrivals."""

    rules: ClassVar = (
        Rule(
            "self.latencies.map(latency, latency.percentile).isSorted() && "
            "self.latencies.all(one, self.latencies.exists_one(other, other.percentile == one.percentile))",
            lambda point: all(a.percentile < b.percentile for a, b in pairwise(point.latencies)),
            "latencies must ascend by percentile, each percentile once",
            ".latencies",
        ),
    )

    input_tokens: Annotated[int, Field(ge=1, le=10_000_000)]
    """Input tokens of every request."""
    output_tokens: Annotated[int, Field(ge=1, le=10_000_000)]
    """Output tokens of every request."""
    requests_per_second: Annotated[float, Field(gt=0, le=100_000)]
    """Rate of arrival at the one replica, in requests per second."""
    latencies: Annotated[tuple[LatencySpec, ...], Field(min_length=1, max_length=8)]
    """Latencies met, by ascending percentile."""


class LatencyRange(Part):
    """The largest step that the times were fitted to. Beyond it they are extrapolated, which plans and status say."""

    prefill_tokens: Annotated[int, Field(ge=1, le=10_000_000)]
    """Prompt tokens of one step."""
    sequences: Annotated[int, Field(ge=1, le=100_000)]
    """Number of requests that decode in one step."""
    context_tokens: Annotated[int, Field(ge=1, le=10_000_000)]
    """Tokens of one request's prompt and output so far."""


class LatencyModelSpec(Part):
    """Time of one step of the engine: linear in what the step holds.

    A step takes stepMicroseconds, plus prefillTokenMicroseconds per prompt token in it, plus sequenceMicroseconds per
    request that decodes, plus contextTokenMicroseconds per token of those requests' contexts.
    """

    rules: ClassVar = (
        Rule(
            "self.stepMicroseconds + self.sequenceMicroseconds > 0.0",
            lambda model: model.step_microseconds + model.sequence_microseconds > 0,
            "a step takes time: give stepMicroseconds or sequenceMicroseconds",
            ".stepMicroseconds",
        ),
    )

    step_microseconds: Annotated[float, Field(ge=0, le=600_000_000)]
    """Microseconds of every step, whatever it holds."""
    prefill_token_microseconds: Annotated[float, Field(ge=0, le=600_000_000)]
    """Microseconds per prompt token that a step processes."""
    sequence_microseconds: Annotated[float, Field(ge=0, le=600_000_000)]
    """Microseconds per request that decodes in a step."""
    context_token_microseconds: Annotated[float, Field(ge=0, le=600_000_000)]
    """Microseconds per token of context (prompt and output so far) of the requests that decode."""
    kv_tokens: Annotated[int, Field(ge=16, le=1_000_000_000)]
    """Tokens of KV cache that one replica holds, over all its requests."""
    max_batched_tokens: Annotated[int, Field(ge=16, le=10_000_000)] = 8192
    """Most tokens of one step: prompt tokens and one per decoding request (vLLM: --max-num-batched-tokens)."""
    error_percent: Annotated[float, Field(ge=0, le=1000)]
    """How far the times may be off, in percent of them; plans reckon with times this much longer."""
    range: LatencyRange
    """What was measured."""


class PerformanceProfileSpec(Part):
    """Latencies of one model on one shape: points, the latency model fitted to them, or both."""

    rules: ClassVar = (
        Rule(
            "has(self.latencyModel) || (has(self.points) && self.points.size() > 0)",
            lambda spec: spec.latency_model is not None or bool(spec.points),
            "a profile without latencies says nothing: give points, latencyModel, or both",
            ".points",
        ),
        Rule(
            "!has(self.latencyModel) || self.latencyModel.kvTokens >= self.maxModelLen",
            lambda spec: spec.latency_model is None or spec.latency_model.kv_tokens >= spec.max_model_len,
            "latencyModel.kvTokens is below maxModelLen {maxModelLen}, so the longest request fits no replica: "
            "lower maxModelLen",
            ".latencyModel.kvTokens",
        ),
        Rule(
            "!has(self.latencyModel) || self.latencyModel.maxBatchedTokens >= self.maxRunning",
            lambda spec: spec.latency_model is None or spec.latency_model.max_batched_tokens >= spec.max_running,
            "latencyModel.maxBatchedTokens is below maxRunning {maxRunning}, and a step takes one token of every "
            "request that decodes: raise it, or lower maxRunning",
            ".latencyModel.maxBatchedTokens",
        ),
        Rule(
            "self.source == 'Estimated' || has(self.measuredAt)",
            lambda spec: spec.source is ProfileSource.ESTIMATED or spec.measured_at is not None,
            "a profile that is not Estimated needs measuredAt, for example 2026-05-01T12:00:00Z",
            ".measuredAt",
        ),
        Rule(
            "!has(self.points) || self.points.all(point, point.inputTokens + point.outputTokens <= self.maxModelLen)",
            lambda spec: all(point.input_tokens + point.output_tokens <= spec.max_model_len for point in spec.points),
            "a point is longer than maxModelLen {maxModelLen}, so it cannot be served: raise maxModelLen or remove it",
            ".points",
        ),
        Rule(
            None,
            lambda spec: unique(
                tuple((point.input_tokens, point.output_tokens, point.requests_per_second) for point in spec.points)
            ),
            "two points are of the same size and rate: keep one",
            ".points",
        ),
    )

    model: Text
    """Model, as LLMService spec.model.name writes it."""
    accelerator_class: Text
    """AcceleratorClass of the shape."""
    tensor_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    """Tensor-parallel size: number of GPUs that share each layer."""
    pipeline_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    """Pipeline-parallel size: number of stages, each of tensorParallel GPUs."""
    source: ProfileSource
    """Estimated from a model of the hardware, Measured by a load test, Observed in service."""
    measured_at: datetime | None = None
    """When it was measured."""
    confidence: Confidence | None = None
    """How far its author trusts it; for people, no plan depends on it."""
    max_model_len: Annotated[int, Field(ge=16, le=10_000_000)]
    """Longest request, input + output, in tokens, that one replica holds."""
    max_running: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Number of requests that may run at once in one replica."""
    points: Annotated[
        tuple[Point, ...],
        Field(
            max_length=600,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["inputTokens", "outputTokens", "requestsPerSecond"],
            },
        ),
    ] = ()
    """Measured points; they go before latencyModel where they cover a size."""
    latency_model: LatencyModelSpec | None = None
    """Latency model of one step, fitted to measurements (medley profile fit) or estimated (medley profile estimate)."""


class PerformanceProfileStatus(Part):
    """What is; medley writes nothing here yet."""


class PerformanceProfile(Part):
    """What one replica of a model on a shape was measured to do, before any SLO is applied."""

    api_version: Literal["medley.dev/v1alpha1"] = "medley.dev/v1alpha1"
    kind: Literal["PerformanceProfile"] = "PerformanceProfile"
    metadata: Metadata
    spec: PerformanceProfileSpec
    """What was measured."""
