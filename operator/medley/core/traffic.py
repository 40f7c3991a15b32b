"""What routers count of the requests that come, as totals since each of them started: the raw material of a demand.

Routers count (`router/metrics.py`), the operator reads (`telemetry/counts.py`) and judges (`planning/traffic.py`).
Sizes are given by the upper edges of their ranges in tokens, as in the metrics' labels: a router's grid is the one of
the plan that it follows, which may be older than the service's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Lengths of the windows in which arrivals are counted, in seconds: around the life of a request at an engine, which
# decides how much a burst hurts (`planning/burstiness.py`).
WINDOWS_S = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests in windows of one length that had a window before them, and the sum of their squared differences.

    The mean squared difference of neighbours over twice the mean is Allan's factor: `squares / (2 x requests)`.
    """

    requests: float
    squares: float


@dataclass(frozen=True, slots=True)
class Counts:
    """Totals of one router.

    A request is one choice of one answer: what an engine gets. `outputs` are of choices that came to their end.
    """

    requests: Mapping[tuple[int, int], float] = field(default_factory=dict)  # by edges of input and max_tokens
    outputs: Mapping[tuple[int, int, int], float] = field(default_factory=dict)  # and of the tokens it made
    turned_away: float = 0.0  # before their size was known
    arrivals: Mapping[int, Arrivals] = field(default_factory=dict)  # by length of the window in seconds
