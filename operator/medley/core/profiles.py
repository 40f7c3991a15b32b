"""What an engine was measured to do: latencies at sizes and rates, before any SLO is applied."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from medley.core.accelerators import Shape
from medley.core.latency import LatencyModel


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


class Confidence(StrEnum):
    """How far a figure is trusted."""

    LOW = "Low"
    MEDIUM = "Medium"
    HIGH = "High"


@dataclass(frozen=True, slots=True)
class FittedLatency:
    """A latency model, how far it is off, and the largest step it was fitted to.

    `error`: relative; step times are believed to be within 1 / (1 + error) and (1 + error) times the model's. The
    `largest_*` say what was measured: beyond, the model extrapolates, and whoever uses it says so.
    """

    model: LatencyModel
    error: float
    largest_prefill_tokens: int  # of one step
    largest_sequences: int  # of one step
    largest_context_tokens: int  # of one sequence

    def cautious(self, error: float | None = None) -> LatencyModel:
        """Return the model with all times at the slow end of the error, or of another one."""
        slower = 1 + (self.error if error is None else error)
        model = self.model
        return replace(
            model,
            step_s=model.step_s * slower,
            per_prefill_token_s=model.per_prefill_token_s * slower,
            per_sequence_s=model.per_sequence_s * slower,
            per_context_token_s=model.per_context_token_s * slower,
        )


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured points of one model on one shape, or the latency model fitted to such measurements, or both."""

    name: str  # of the PerformanceProfile object
    model: str
    shape: Shape
    source: ProfileSource
    measured_at: datetime | None
    max_model_len: int  # longest input + output the replica can hold
    max_running: int  # requests that may run at once
    points: tuple[LatencyPoint, ...]
    latency: FittedLatency | None = None
    confidence: Confidence | None = None  # None: its author did not say
