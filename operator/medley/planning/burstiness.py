"""How unevenly requests come, on the time scale that matters to an engine: for `queueing.utilisation`.

Called by whoever has arrival times (`medley plan --trace`, the operator's telemetry). Pure.

A burst hurts if it comes within the life of a request, since then its requests share their steps. Slower swings are
the business of the rate that is planned for, and must not count twice. So counts of neighbouring windows of that
length are compared (Allan's factor: the mean squared difference of two neighbours over twice their mean), in which a
drift cancels that an ordinary variance over mean would take for bursts. Poisson arrivals have 1; gaps drawn
independently with coefficient of variation c come near c^2 where windows hold many of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from medley.core.errors import InvalidInputError
from medley.core.latency import LatencyModel
from medley.core.workload import Slo
from medley.planning import mixture
from medley.planning.mixture import Stream

FEWEST_WINDOWS = 30  # fewer say next to nothing: the figure is then off by a quarter or more


def dispersion(arrival_s: Sequence[float], window_s: float) -> float:
    """Return Allan's factor of arrivals (seconds, ascending) in windows of `window_s`.

    Raises InvalidInputError for times that are not ascending, or too few windows.
    """
    if not math.isfinite(window_s) or window_s <= 0:
        raise InvalidInputError("window", f"expected seconds above 0, got {window_s}")
    times = [float(each) for each in arrival_s]
    if any(not (a <= b) for a, b in pairwise(times)):
        raise InvalidInputError("arrivals", "expected finite times in ascending order; sort the trace")
    windows = int((times[-1] - times[0]) / window_s) if times else 0
    if windows < FEWEST_WINDOWS:
        raise InvalidInputError(
            "arrivals",
            f"they span {windows} windows of {window_s:g} s, expected at least {FEWEST_WINDOWS}; take a longer trace",
        )
    counts = [0] * windows
    for at in times:
        place = int((at - times[0]) / window_s)
        if place < windows:
            counts[place] += 1
    squares = math.fsum((b - a) ** 2 for a, b in pairwise(counts)) / (windows - 1)
    return squares / (2 * sum(counts) / windows)


def life_s(model: LatencyModel, slo: Slo, mix: Sequence[Stream]) -> float | None:
    """Return how long a mean request of a mix lives where the replica carries the most of it; None: out of reach."""
    step_s = mixture.operating_step(model, slo, mix)
    if step_s is None:
        return None
    rate = math.fsum(each.requests_per_second for each in mix)
    return step_s * math.fsum(
        each.requests_per_second / rate * mixture.steps_present(model, each.input_tokens, each.output_tokens)
        for each in mix
    )
