"""How unevenly requests arrive at this router, as counters from which Allan's factor follows for any span of time.

Filled by `metrics.RouterMetrics`; what the figure is and why, says `planning/burstiness.py`. Windows of each length lie
end to end from the router's start. A window's count is added once it is over, with the square of its difference from
the one before; the first has none before it and is left out. Constant work per request and window length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from medley.core import names
from medley.core.traffic import WINDOWS_S, Arrivals


@dataclass(slots=True)
class _Row:
    """Windows of one length: the number of the current one and what is counted in it; None before: it is the first."""

    current: int = 0
    count: int = 0
    before: int | None = None
    requests: int = 0
    squares: int = 0

    def advance(self, to: int) -> None:
        """Close the windows that are over."""
        if to <= self.current:
            return
        if self.before is not None:
            self.requests += self.count
            self.squares += (self.count - self.before) ** 2
        if to > self.current + 1:  # empty windows: one fall to 0, and nothing after
            self.squares += self.count**2
        self.before = 0 if to > self.current + 1 else self.count
        self.current, self.count = to, 0


class Windows(Collector):
    """Counters per length of window; `clock`: seconds, never going back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._start = clock, clock()
        self._rows = {length: _Row() for length in WINDOWS_S}

    def count(self) -> None:
        """Count an arrival now."""
        for row in self._closed():
            row.count += 1

    def totals(self) -> dict[int, Arrivals]:
        """Return what windows that are over held, by their length in seconds."""
        return {
            length: Arrivals(row.requests, row.squares) for length, row in zip(self._rows, self._closed(), strict=True)
        }

    def collect(self) -> list[CounterMetricFamily]:
        """Return the counters."""
        requests = CounterMetricFamily(
            names.METRIC_WINDOW_REQUESTS,
            "Requests in windows of this length that are over, but the first.",
            labels=[names.LABEL_WINDOW],
        )
        squares = CounterMetricFamily(
            names.METRIC_WINDOW_SQUARES,
            "Squared differences of the requests in neighbouring windows of this length.",
            labels=[names.LABEL_WINDOW],
        )
        for length, total in self.totals().items():
            requests.add_metric([str(length)], total.requests)
            squares.add_metric([str(length)], total.squares)
        return [requests, squares]

    def _closed(self) -> list[_Row]:
        past_s = self._clock() - self._start
        for length, row in self._rows.items():
            row.advance(int(past_s / length))
        return list(self._rows.values())
