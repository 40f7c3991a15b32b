"""Who comes when, with which sizes: seeded arrival processes, sizes of a histogram, and published traces.

Called by `medley.cli`, the benchmarks and tests, which open files and choose seeds. Times are seconds from 0.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from medley.core.errors import InvalidInputError
from medley.core.workload import Demand

Seconds: TypeAlias = NDArray[np.float64]
Tokens: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """Requests in order of arrival; the arrays are of one length.

    `max_tokens` is what the client allows, and all that a router sees of the output: by default the output itself
    (a client that knows).
    """

    arrival_s: Seconds
    input_tokens: Tokens
    output_tokens: Tokens
    max_tokens: Tokens | None = None

    def __post_init__(self) -> None:
        lengths = {len(each) for each in (self.arrival_s, self.input_tokens, self.output_tokens)}
        if self.max_tokens is not None:
            lengths.add(len(self.max_tokens))
        if len(lengths) > 1:
            raise InvalidInputError("requests", f"expected arrays of one length, got {sorted(lengths)}")
        if len(self) and not (np.isfinite(self.arrival_s).all() and (np.diff(self.arrival_s) >= 0).all()):
            raise InvalidInputError("requests: arrival_s", "expected finite times in ascending order; sort the trace")
        if len(self) and (self.input_tokens.min() < 1 or self.output_tokens.min() < 1):
            raise InvalidInputError("requests", "expected at least one input and one output token per request")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def requests_per_second(self) -> float:
        """Mean rate over the gaps between the first and the last arrival."""
        if len(self) < 2 or self.arrival_s[-1] <= self.arrival_s[0]:  # noqa: PLR2004  # a gap has two ends
            raise InvalidInputError("requests", "expected at least two requests at different times to have a rate")
        return (len(self) - 1) / float(self.arrival_s[-1] - self.arrival_s[0])

    def at_rate(self, requests_per_second: float) -> Requests:
        """Return the same requests with time stretched or pressed, so that the mean rate is this one.

        Bursts keep their shape in numbers of requests, not in seconds.
        """
        factor = self.requests_per_second / _positive("requests_per_second", requests_per_second)
        return replace(self, arrival_s=(self.arrival_s - self.arrival_s[0]) * factor)


def poisson(requests_per_second: float, count: int, chance: np.random.Generator) -> Seconds:
    """Return arrival times of a Poisson process."""
    return gamma(requests_per_second, 1.0, count, chance)


def gamma(requests_per_second: float, cv: float, count: int, chance: np.random.Generator) -> Seconds:
    """Return arrival times with independent Gamma gaps; `cv`: a gap's standard deviation over its mean (1: Poisson)."""
    rate, cv = _positive("requests_per_second", requests_per_second), _positive("cv", cv)
    return np.cumsum(chance.gamma(1 / cv**2, cv**2 / rate, count))


def markov_modulated(
    calm_per_second: float, busy_per_second: float, mean_stay_s: float, count: int, chance: np.random.Generator
) -> Seconds:
    """Return arrival times of a Poisson process whose rate switches between two values.

    Each is kept for an exponential time of mean `mean_stay_s`, so bursts last, which gaps drawn independently
    cannot show.
    """
    rates = (_positive("calm_per_second", calm_per_second), _positive("busy_per_second", busy_per_second))
    stay = _positive("mean_stay_s", mean_stay_s)
    parts: list[Seconds] = []
    start, number, state = 0.0, 0, 0
    while number < count:
        length = chance.exponential(stay)
        here = start + np.sort(chance.random(chance.poisson(rates[state] * length))) * length
        parts.append(here)
        start, number, state = start + length, number + len(here), 1 - state
    return np.concatenate(parts)[:count]


def sizes(demand: Demand, count: int, chance: np.random.Generator, *, largest: bool = False) -> tuple[Tokens, Tokens]:
    """Return input and output tokens of `count` requests whose buckets are drawn by their rates.

    Within a bucket, sizes are uniform over its ranges; `largest`: all are the bucket's largest, as a plan judges it.
    """
    if not demand.requests_per_second:
        raise InvalidInputError("demand", "expected a bucket with traffic, to draw sizes from")
    buckets = [bucket for bucket, _ in demand.requests_per_second]
    weights = np.array([rate for _, rate in demand.requests_per_second])
    drawn = chance.choice(len(buckets), size=count, p=weights / weights.sum())
    high = np.array([demand.grid.sizes(bucket) for bucket in buckets])[drawn]
    low = high if largest else np.array([demand.grid.smallest(bucket) for bucket in buckets])[drawn]
    tokens = chance.integers(low, high, endpoint=True)
    return tokens[:, 0], tokens[:, 1]


def azure(lines: Iterable[str]) -> Requests:
    """Return the requests of an Azure LLM inference trace: TIMESTAMP,ContextTokens,GeneratedTokens.

    Timestamps have seven decimals, of which microseconds are kept. Requests without a token generated are counted as
    one token: the trace has them, and no engine answers with nothing.
    """
    rows = list(csv.DictReader(lines))
    if not rows:
        raise InvalidInputError("trace", "expected TIMESTAMP,ContextTokens,GeneratedTokens and at least one request")
    try:
        times = np.array([datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows])
        inputs = np.array([int(row["ContextTokens"]) for row in rows])
        outputs = np.array([int(row["GeneratedTokens"]) for row in rows])
    except (KeyError, ValueError) as error:
        raise InvalidInputError("trace", f"expected TIMESTAMP,ContextTokens,GeneratedTokens; got {error}") from error
    order = np.argsort(times, kind="stable")
    return Requests(times[order] - times[order[0]], np.maximum(inputs[order], 1), np.maximum(outputs[order], 1))


def _positive(name: str, value: float) -> float:
    if not math.isfinite(value) or value <= 0:
        raise InvalidInputError(f"arrivals: {name}", f"expected a number above 0, got {value}")
    return value
