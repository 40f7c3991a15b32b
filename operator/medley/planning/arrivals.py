"""From requests that were seen to a forecast: which sizes, at what rate, and how bursty.

Called by `medley plan --trace`. A trace says more than a mean: the rate to plan for is a choice (`RateChoice`), and
every figure of that choice is kept, so that a person sees what another would have been.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from itertools import pairwise

from medley.core.errors import InvalidInputError
from medley.core.service import Forecast, Histogram
from medley.core.workload import SizeGrid
from medley.planning.presets import RAREST

# Fewer gaps say nothing about burstiness.
_FEWEST_GAPS = 30
# Of a trace that is not a whole number of windows, the rest is left out unless it is most of one.
_MOST_OF_A_WINDOW = 0.5


class RateChoice(StrEnum):
    """Which rate of a trace a plan is made for: over windows of the trace, their mean, a percentile or the highest."""

    MEAN = "mean"
    P50 = "p50"
    P90 = "p90"
    P95 = "p95"
    P99 = "p99"
    PEAK = "peak"


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request; `at_s`: seconds since any fixed moment, None where the trace has no times."""

    at_s: float | None
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Burstiness:
    """How unevenly requests arrive, against 1 for Poisson arrivals.

    `gap_variation`: squared coefficient of variation of the gaps between arrivals. `dispersion`: variance over mean of
    the number of arrivals in a window (index of dispersion for counts), which also sees slow swings.
    """

    gap_variation: float
    dispersion: float | None  # None: fewer than two windows


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a trace says."""

    requests: int
    histogram: Histogram  # of the sizes that are kept
    rare: int  # requests of sizes that are left out, being rarer than 1 in 1000
    beyond: int  # requests larger than the grid's last edges, counted in its last ranges
    duration: timedelta | None  # None: no times
    window: timedelta
    requests_per_second: tuple[tuple[RateChoice, float], ...]  # empty: no times
    burstiness: Burstiness | None  # None: no times, or too few requests

    def rate(self, choice: RateChoice) -> float | None:
        """Return the rate of a choice in requests/s; None where the trace has no times."""
        return dict(self.requests_per_second).get(choice)


def traffic(arrivals: Sequence[Arrival], grid: SizeGrid, window: timedelta) -> Traffic:
    """Return what a trace says about sizes, rates and burstiness. Order does not matter.

    Raises InvalidInputError for a trace without requests or shorter than one window.
    """
    if not arrivals:
        raise InvalidInputError("--trace", "has no requests; give a trace with at least one")
    if window <= timedelta(0):
        raise InvalidInputError("--trace-window", f"expected a duration above 0, got {window}")
    counts = Counter(grid.bucket(each.input_tokens, each.output_tokens) for each in arrivals)
    fewest = RAREST * len(arrivals)
    kept = {bucket: count for bucket, count in counts.items() if count >= fewest}
    weights = [[0.0] * len(grid.output_edges) for _ in grid.input_edges]
    for bucket, count in kept.items():
        weights[bucket.input][bucket.output] = float(count)
    times = sorted(each.at_s for each in arrivals if each.at_s is not None)
    timed = len(times) == len(arrivals)
    counted = _counts(times, window.total_seconds()) if timed else []
    return Traffic(
        requests=len(arrivals),
        histogram=Histogram(grid, tuple(tuple(row) for row in weights)),
        rare=len(arrivals) - sum(kept.values()),
        beyond=sum(
            each.input_tokens > grid.input_edges[-1] or each.output_tokens > grid.output_edges[-1] for each in arrivals
        ),
        duration=timedelta(seconds=times[-1] - times[0]) if timed else None,
        window=window,
        requests_per_second=_rates(counted, window.total_seconds()) if counted else (),
        burstiness=_burstiness(times, counted) if timed else None,
    )


def forecast(found: Traffic, requests_per_second: float) -> Forecast:
    """Return the sizes of a trace at a rate."""
    return Forecast(requests_per_second, found.histogram)


def _counts(times: Sequence[float], window_s: float) -> list[int]:
    """Return the arrivals per window from the first arrival on; a last window that is mostly missing is left out."""
    if not math.isfinite(times[-1] - times[0]):
        raise InvalidInputError("--trace", "expected times that are finite numbers of seconds")
    windows = (times[-1] - times[0]) / window_s
    whole = math.floor(windows) + (windows % 1 >= _MOST_OF_A_WINDOW)
    if whole < 1:
        raise InvalidInputError(
            "--trace-window",
            f"the trace is {times[-1] - times[0]:.3g} s long, less than a window of {window_s:g} s; use a shorter one",
        )
    counts = [0] * whole
    for time in times:
        place = math.floor((time - times[0]) / window_s)
        if place < whole:
            counts[place] += 1
    return counts


def _rates(counts: Sequence[int], window_s: float) -> tuple[tuple[RateChoice, float], ...]:
    ordered = sorted(counts)
    chosen = {
        RateChoice.MEAN: statistics.fmean(ordered),
        **{
            each: _percentile(ordered, float(each[1:]))
            for each in RateChoice
            if each.startswith("p") and each[1:].isdigit()
        },
        RateChoice.PEAK: ordered[-1],
    }
    return tuple((choice, chosen[choice] / window_s) for choice in RateChoice)


def _percentile(ordered: Sequence[int], percent: float) -> float:
    """Return the smallest value that at least this many percent of the values do not exceed."""
    return float(ordered[max(math.ceil(percent / 100 * len(ordered)), 1) - 1])


def _burstiness(times: Sequence[float], counts: Sequence[int]) -> Burstiness | None:
    gaps = [after - before for before, after in pairwise(times)]
    if len(gaps) < _FEWEST_GAPS or not any(gaps):
        return None
    mean = statistics.fmean(gaps)
    counted = statistics.fmean(counts)
    return Burstiness(
        gap_variation=statistics.pvariance(gaps, mean) / mean**2,
        dispersion=statistics.pvariance(counts, counted) / counted if len(counts) > 1 and counted else None,
    )
