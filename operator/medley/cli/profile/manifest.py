"""Writes PerformanceProfiles as manifests that `kubectl apply` takes, once medley's own models took them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from medley.api.convert import read_performance_profile
from medley.core.errors import InvalidInputError
from medley.core.names import API_VERSION
from medley.core.profiles import Confidence, FittedLatency, LatencyPoint, ProfileSource
from medley.core.units import format_duration

_MICROSECONDS = 1e6  # of a second
_DIGITS = 6
_LONGEST_NAME = 253


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose profile it is, and what one replica holds. `name`: of the object; None: made of model and shape."""

    model: str
    accelerator_class: str
    max_model_len: int
    max_running: int
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    name: str | None = None


def manifest(
    subject: Subject,
    source: ProfileSource,
    *,
    measured_at: datetime | None = None,
    confidence: Confidence | None = None,
    points: Sequence[LatencyPoint] = (),
    latency: FittedLatency | None = None,
) -> dict[str, Any]:
    """Return the manifest of a PerformanceProfile. Raises InvalidInputError where the object would be refused."""
    spec: dict[str, Any] = {
        "model": subject.model,
        "acceleratorClass": subject.accelerator_class,
        "tensorParallel": subject.tensor_parallel,
        "pipelineParallel": subject.pipeline_parallel,
        "source": source.value,
    }
    if measured_at is not None:
        spec["measuredAt"] = measured_at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    if confidence is not None:
        spec["confidence"] = confidence.value
    spec |= {"maxModelLen": subject.max_model_len, "maxRunning": subject.max_running}
    if points:
        spec["points"] = [_point(point) for point in points]
    if latency is not None:
        spec["latencyModel"] = _latency(latency)
    name = subject.name or object_name(subject)
    document = {
        "apiVersion": API_VERSION,
        "kind": "PerformanceProfile",
        "metadata": {"name": name},
        "spec": spec,
    }
    read_performance_profile(document)
    return document


def object_name(subject: Subject) -> str:
    """Return a name that Kubernetes takes: model and shape, in lower case."""
    shape = subject.accelerator_class
    shape += f"-tp{subject.tensor_parallel}" if subject.tensor_parallel > 1 else ""
    shape += f"-pp{subject.pipeline_parallel}" if subject.pipeline_parallel > 1 else ""
    plain = re.sub(r"[^a-z0-9]+", "-", subject.model.rsplit("/", 1)[-1].lower()).strip("-") or "model"
    return f"{plain[: _LONGEST_NAME - len(shape) - 1]}-{shape}"


def written(document: dict[str, Any], path: Path | None, *, note: str) -> str:
    """Return the manifest as YAML below a comment; with `path`, write it there too."""
    comment = "".join(f"# {line}\n" for line in note.splitlines())
    text = comment + yaml.safe_dump(document, sort_keys=False, width=120)
    if path is not None:
        try:
            path.write_text(text)
        except OSError as error:
            raise InvalidInputError("--out", f"{path} cannot be written: {error.strerror}") from error
    return text


def _point(point: LatencyPoint) -> dict[str, Any]:
    return {
        "inputTokens": point.input_tokens,
        "outputTokens": point.output_tokens,
        "requestsPerSecond": _rounded(point.requests_per_second),
        "latencies": [
            {"percentile": each.percentile, "ttft": _duration(each.ttft), "tpot": _duration(each.tpot)}
            for each in point.latencies
        ],
    }


def _latency(latency: FittedLatency) -> dict[str, Any]:
    model = latency.model
    return {
        "stepMicroseconds": _rounded(model.step_s * _MICROSECONDS),
        "prefillTokenMicroseconds": _rounded(model.per_prefill_token_s * _MICROSECONDS),
        "sequenceMicroseconds": _rounded(model.per_sequence_s * _MICROSECONDS),
        "contextTokenMicroseconds": _rounded(model.per_context_token_s * _MICROSECONDS),
        "kvTokens": model.kv_tokens,
        "maxBatchedTokens": model.max_batched_tokens,
        "errorPercent": math.ceil(latency.error * 1000) / 10,
        "range": {
            "prefillTokens": latency.largest_prefill_tokens,
            "sequences": latency.largest_sequences,
            "contextTokens": latency.largest_context_tokens,
        },
    }


def _duration(value: timedelta) -> str:
    """Return at least a microsecond, in whole ones: the form has no zero and no fractions."""
    return format_duration(max(value, timedelta(microseconds=1)))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
