"""Streams that left replicas, by replica: what the operator writes into Migration records.

`carrier` counts, `metrics` exposes. A gauge and no counter: the numbers are of the replica that is there, or was last,
under a name; they begin anew when another one takes the name, and replicas long gone are forgotten.
"""

from __future__ import annotations

from collections import Counter

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from medley.core import names
from medley.core.migrations import How


class Left(Collector):
    """Counts of at most so many replicas that are not under way, the latest kept."""

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        self._counts: dict[str, Counter[How]] = {}  # the latest last
        self._underway: Counter[str] = Counter()

    def begun(self, replica: str) -> None:
        """Begin anew for a replica that came: what left one of its name before says nothing of it."""
        self._counts.pop(replica, None)

    def count(self, replica: str, how: How) -> None:
        """Count a stream that has left a replica."""
        counts = self._counts.pop(replica, None) or Counter()
        counts[how] += 1
        self._counts[replica] = counts
        if len(self._counts) > self._remembered:
            del self._counts[next(iter(self._counts))]

    def departed(self, replica: str) -> None:
        """Note a stream that left a replica and is nowhere yet; `arrived` must follow."""
        self._underway[replica] += 1

    def arrived(self, replica: str, how: How | None) -> None:
        """Note how it went on; None: nobody wants to know, its client left."""
        self._underway[replica] -= 1
        if not self._underway[replica]:
            del self._underway[replica]
        if how is not None:
            self.count(replica, how)

    def collect(self) -> list[GaugeMetricFamily]:
        """Return the gauge."""
        family = GaugeMetricFamily(
            names.METRIC_LEFT,
            "Streams that left a replica since it came: finished, carried or refilled after a notice, resumed after a "
            "break, lost; underway: nowhere yet.",
            labels=[names.LABEL_REPLICA, names.LABEL_HOW],
        )
        for replica, counts in self._counts.items():
            for how, number in sorted(counts.items()):
                family.add_metric([replica, how.value], number)
        for replica, number in self._underway.items():
            family.add_metric([replica, How.UNDERWAY.value], number)
        return [family]
