"""Every metric of the router, in one place; names are what dashboards and the operator's demand estimate match on."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from medley.core import names
from medley.core.workload import Bucket, SizeGrid
from medley.router.bursts import Windows
from medley.router.left import Left
from medley.router.session import Cause, ResumeMode

# Of vLLM's own histograms, so that the two can be laid over one another.
_TTFT_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_ITL_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_PAUSE_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)
# Replicas come and go for months, and gone ones are asked for a while longer.
_REMEMBERED_REPLICAS = 512


class _Live(Collector):
    """Gauges read from what is, at the moment of the scrape."""

    def __init__(self) -> None:
        self.running: Callable[[], Mapping[str, int]] = dict
        self.waiting: Callable[[], int] = lambda: 0
        self.last_issue: dict[str, float] = {}  # the latest last
        self.notices: Callable[[], Mapping[str, float]] = dict

    def collect(self) -> list[GaugeMetricFamily]:
        """Return the gauges."""
        waiting = GaugeMetricFamily("medley_router_queue", "Choices that wait for their first replica.")
        waiting.add_metric([], self.waiting())
        families = [waiting]
        for name, text, values in (
            (names.METRIC_RUNNING, "Attempts that run on a replica.", self.running()),
            (
                "medley_router_last_issue_timestamp_seconds",
                "When a call was last sent to a replica (Unix time).",
                self.last_issue,
            ),
            (
                "medley_router_notice_timestamp_seconds",
                "When this router saw that a replica leaves (Unix time).",
                self.notices(),
            ),
        ):
            family = GaugeMetricFamily(name, text, labels=[names.LABEL_REPLICA])
            for replica, value in values.items():
                family.add_metric([replica], value)
            families.append(family)
        return families


class _Deliveries(Collector):
    """What is counted at every delivery: plain numbers, since the library's own take a lock for each."""

    def __init__(self) -> None:
        self.tokens = 0
        self._gaps = [0] * (len(_ITL_SECONDS) + 1)
        self._seconds = 0.0

    def gap(self, seconds: float) -> None:
        """Note the time between two deliveries of one choice."""
        self._gaps[bisect_left(_ITL_SECONDS, seconds)] += 1
        self._seconds += seconds

    def collect(self) -> list[CounterMetricFamily | HistogramMetricFamily]:
        """Return the counter and the histogram."""
        edges = [*map(floatToGoString, _ITL_SECONDS), "+Inf"]
        return [
            CounterMetricFamily("medley_router_tokens", "Tokens given to clients.", self.tokens),
            HistogramMetricFamily(
                "medley_router_inter_token_latency_seconds",
                "Time between deliveries of one choice.",
                list(zip(edges, accumulate(self._gaps), strict=True)),
                self._seconds,
            ),
        ]


@dataclass(frozen=True, slots=True)
class _OfClass:
    """What is counted of one size class: looking labels up costs the library more than counting."""

    requests: Counter
    output_tokens: Counter
    outputs: Callable[[int], Counter]  # by upper edge of what they made


class RouterMetrics:
    """The registry of one router and what it counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self.live = _Live()
        self.registry.register(self.live)
        self.left = Left(_REMEMBERED_REPLICAS)
        self.registry.register(self.left)
        self._windows = Windows(clock)
        self.registry.register(self._windows)
        self.deliveries = _Deliveries()
        self.registry.register(self.deliveries)
        self._requests = Counter(
            names.METRIC_REQUESTS,
            "Requests by size class: upper edges of prompt tokens and of max_tokens.",
            [names.LABEL_INPUT, names.LABEL_LIMIT],
            registry=self.registry,
        )
        self._answers = Counter(
            "medley_router_answers", "Answers by status of the HTTP response.", ["status"], registry=self.registry
        )
        self._prompt_tokens = Counter("medley_router_prompt_tokens", "Prompt tokens.", registry=self.registry)
        self._output_tokens = Counter(
            "medley_router_output_tokens",
            "Tokens that finished choices made, by size class of the request.",
            [names.LABEL_INPUT, names.LABEL_LIMIT],
            registry=self.registry,
        )
        self._outputs = Counter(
            names.METRIC_OUTPUTS,
            "Finished choices by size class of the request and upper edge of the tokens that they made.",
            [names.LABEL_INPUT, names.LABEL_LIMIT, names.LABEL_MADE],
            registry=self.registry,
        )
        self._turned_away = Counter(
            names.METRIC_TURNED_AWAY,
            "Choices refused before their size was known: the queue was full, or no engine ready.",
            registry=self.registry,
        )
        self.broken = Counter(
            "medley_router_broken_attempts", "Attempts that ended early.", ["cause"], registry=self.registry
        )
        self._resumes = Counter(
            "medley_router_resumes",
            "Calls that went on with a choice after an attempt broke.",
            ["cause", "mode"],
            registry=self.registry,
        )
        self.ttft = Histogram(
            "medley_router_time_to_first_token_seconds",
            "Arrival of a request to its first token.",
            buckets=_TTFT_SECONDS,
            registry=self.registry,
        )
        self._pause = Histogram(
            "medley_router_pause_seconds",
            "Last token of a broken attempt to the next token of its choice; kind: carried, refilled (both after a "
            "notice) or broken.",
            ["kind"],
            buckets=_PAUSE_SECONDS,
            registry=self.registry,
        )
        self._departures = Counter(
            "medley_router_departures",
            "Streams of leaving replicas: finished there, carried with their KV cache, or computed again (refilled).",
            ["how"],
            registry=self.registry,
        )
        self._of_classes: dict[tuple[int, int], _OfClass] = {}
        for how in ("finished", "carried", "refilled"):
            self._departures.labels(how)
        self._copies = Counter(
            "medley_router_copies",
            "KV caches of streams copied to a target ahead of their move; outcome: done or failed.",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in ("done", "failed"):
            self._copies.labels(outcome)

    def asked(self, grid: SizeGrid, bucket: Bucket, prompt_tokens: int) -> None:
        """Count a request of a size class."""
        self._of_class(grid, bucket).requests.inc()
        self._windows.count()
        self._prompt_tokens.inc(prompt_tokens)

    def finished(self, grid: SizeGrid, bucket: Bucket, output_tokens: int) -> None:
        """Count a choice that came to its end."""
        made = grid.sizes(grid.bucket(1, output_tokens))[1]
        counters = self._of_class(grid, bucket)
        counters.output_tokens.inc(output_tokens)
        counters.outputs(made).inc()

    def _of_class(self, grid: SizeGrid, bucket: Bucket) -> _OfClass:
        edges = grid.sizes(bucket)
        known = self._of_classes.get(edges)
        if known is None:
            labels = tuple(map(str, edges))
            known = self._of_classes[edges] = _OfClass(
                self._requests.labels(*labels),
                self._output_tokens.labels(*labels),
                cache(lambda made: self._outputs.labels(*labels, str(made))),
            )
        return known

    def turned_away(self, choices: int) -> None:
        """Count choices that were refused before anybody knew their size."""
        self._turned_away.inc(choices)

    def answered(self, status: int) -> None:
        """Count an answer."""
        self._answers.labels(str(status)).inc()

    def issued(self, replica: str, at: float) -> None:
        """Note that a call was sent to a replica (Unix time)."""
        latest = self.live.last_issue
        latest.pop(replica, None)
        latest[replica] = at
        if len(latest) > _REMEMBERED_REPLICAS:
            del latest[next(iter(latest))]

    def resumed(self, cause: Cause, mode: ResumeMode | None) -> None:
        """Count a call that goes on after a break."""
        self._resumes.labels(cause.value, "restart" if mode is None else mode.value).inc()

    def departed(self, how: str) -> None:
        """Count a stream of a leaving replica: finished, carried or refilled."""
        self._departures.labels(how).inc()

    def copied(self, *, done: bool) -> None:
        """Count a copy ahead."""
        self._copies.labels("done" if done else "failed").inc()

    def paused(self, kind: str, seconds: float) -> None:
        """Note a client's pause: carried, refilled or broken."""
        self._pause.labels(kind).observe(seconds)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
