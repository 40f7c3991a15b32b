"""What a load test measures and what it makes of it: percentiles, saturation, the next rate. Pure.

Called by `medley profile measure`, which sends the requests.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from medley.core.profiles import Latency, LatencyPoint

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.5, 99.9)
_LEAST_BEYOND = 2  # requests above a percentile, below which it is one request's luck
_GROWTH = 1.5  # of the mean time in the engine, from the first third of the requests to the last: a queue that grows
_LEAST_COMPLETED = 0.9  # of the rate at which requests came
_LEAST_THIRD = 3  # requests


@dataclass(frozen=True, slots=True)
class Cell:
    """One size at one rate."""

    input_tokens: int
    output_tokens: int
    requests_per_second: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One request; times in seconds of one clock. `failure`: why it did not end as asked; its latencies are unknown."""

    arrived_s: float  # when it was due, not when the client got round to it
    first_s: float | None = None
    last_s: float | None = None
    output_tokens: int = 0
    failure: str | None = None

    @property
    def ttft_s(self) -> float:
        """Seconds to the first token; infinite: none came."""
        return math.inf if self.failure is not None or self.first_s is None else self.first_s - self.arrived_s

    @property
    def tpot_s(self) -> float:
        """Seconds per token after the first; 0: there was only one; infinite: not all came."""
        if self.failure is not None or self.first_s is None or self.last_s is None:
            return math.inf
        return 0.0 if self.output_tokens <= 1 else (self.last_s - self.first_s) / (self.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What requests of one size met at one rate. Of a saturated replica latencies are not kept: they grow for ever."""

    cell: Cell
    requests: int
    failures: int
    saturated: bool
    latencies: tuple[Latency, ...]  # ascending percentiles; those that too few requests lie beyond are left out

    @property
    def point(self) -> LatencyPoint | None:
        """The point for a profile; None: nothing that a plan may use."""
        if self.saturated or not self.latencies:
            return None
        cell = self.cell
        return LatencyPoint(cell.input_tokens, cell.output_tokens, cell.requests_per_second, self.latencies)


def outcome(cell: Cell, samples: Sequence[Sample], *, aborted: bool = False) -> Outcome:
    """Return what the samples of a cell say. `aborted`: the test was stopped since requests piled up."""
    failures = sum(sample.failure is not None for sample in samples)
    full = aborted or saturated(samples)
    return Outcome(cell, len(samples), failures, full, () if full else latencies(samples))


def latencies(samples: Sequence[Sample]) -> tuple[Latency, ...]:
    """Return TTFT and TPOT at each percentile that enough requests lie beyond; failures count as never."""
    ttft, tpot = sorted(each.ttft_s for each in samples), sorted(each.tpot_s for each in samples)
    found: list[Latency] = []
    for percentile in PERCENTILES:
        if len(samples) * (100 - percentile) / 100 < _LEAST_BEYOND - 1e-9:
            continue
        rank = math.ceil(len(samples) * percentile / 100 - 1e-9) - 1
        if math.isfinite(ttft[rank]) and math.isfinite(tpot[rank]):
            found.append(Latency(percentile, timedelta(seconds=ttft[rank]), timedelta(seconds=tpot[rank])))
    return tuple(found)


def saturated(samples: Sequence[Sample]) -> bool:
    """Say whether requests came faster than they were served: each took longer, and fewer ended than came."""
    ended = sorted((each for each in samples if each.last_s is not None), key=lambda each: each.arrived_s)
    third = len(ended) // 3
    if third < _LEAST_THIRD:
        return False
    grew = _mean_time(ended[-third:]) > _GROWTH * _mean_time(ended[:third])
    # Over the same number of requests: the time in which they came, and the time in which they ended.
    came = ended[-1].arrived_s - ended[0].arrived_s
    ends = sorted(each.last_s for each in ended if each.last_s is not None)
    return grew and came < _LEAST_COMPLETED * (ends[-1] - ends[0])


def _mean_time(samples: Iterable[Sample]) -> float:
    return statistics.fmean(each.last_s - each.arrived_s for each in samples if each.last_s is not None)


def next_rate(done: Iterable[Outcome], alone_s: float, *, growth: float) -> float | None:
    """Return the next rate of a size, in requests/s; None: it is saturated, or fails.

    The first is at a fifth of what serving one request after the other would do (`alone_s` each); each further one is
    `growth` times the last.
    """
    outcomes = sorted(done, key=lambda each: each.cell.requests_per_second)
    if any(each.saturated or not each.latencies for each in outcomes):
        return None
    rate = outcomes[-1].cell.requests_per_second * growth if outcomes else 0.2 / alone_s
    return float(f"{rate:.3g}")
