"""What an engine was measured to do: latencies at sizes and rates, before any SLO is applied."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from medley.core.accelerators import Shape


class ProfileSource(StrEnum):
    """Where a profile's numbers come from."""

    ESTIMATED = "Estimated"
    MEASURED = "Measured"
    OBSERVED = "Observed"


@dataclass(frozen=True, slots=True)
class Latency:
    """Time to first token and time per output token at one percentile of requests."""

    percentile: float
    ttft: timedelta
    tpot: timedelta


@dataclass(frozen=True, slots=True)
class LatencyPoint:
    """What requests of one size met at one rate on one replica, Poisson arrivals."""

    input_tokens: int
    output_tokens: int
    requests_per_second: float
    latencies: tuple[Latency, ...]  # ascending percentiles


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured points of one model on one shape."""

    name: str  # of the PerformanceProfile object
    model: str
    shape: Shape
    source: ProfileSource
    measured_at: datetime | None
    max_model_len: int  # longest input + output the replica can hold
    max_running: int  # requests that may run at once
    points: tuple[LatencyPoint, ...]
