"""How much a request will make: the running mean of its class, as Mélange's load balancer estimates it (App. A.2).

Kept by `fleet`. A client's max_tokens is a bound and often a bad guess; what requests of the same arrival class made is
a better one. The estimate decides which replica of a shape has the least to do; shares go by the arrival class.
"""

from __future__ import annotations

from collections.abc import Callable

from medley.core.workload import Bucket

# Where nothing was seen yet.
ASSUMED_TOKENS = 256.0
_WEIGHT_OF_THE_NEWEST = 0.02
_FEW = 50  # until there are as many, the plain mean
_MINUTE_SECONDS = 60.0


class Sizes:
    """Means of output tokens, and how often requests come, by arrival class."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._means: dict[Bucket | None, tuple[int, float]] = {}
        self._rates: dict[Bucket | None, tuple[float, float]] = {}  # requests of the last minute, when counted

    def made(self, bucket: Bucket | None, tokens: int) -> None:
        """Take in what a finished request made."""
        for key in {bucket, None}:
            count, mean = self._means.get(key, (0, 0.0))
            weight = max(1 / (count + 1), _WEIGHT_OF_THE_NEWEST)
            self._means[key] = min(count + 1, _FEW), mean + weight * (tokens - mean)

    def expected(self, bucket: Bucket | None, most: int) -> float:
        """Return how many tokens a request will make that may make so many."""
        _, mean = self._means.get(bucket) or self._means.get(None) or (0, ASSUMED_TOKENS)
        return max(min(mean, float(most)), 1.0)

    def arrived(self, bucket: Bucket | None) -> float:
        """Count one request, and return how many of its class came within about a minute."""
        now = self._clock()
        count, before = self._rates.get(bucket, (0.0, now))
        count = count * max(1.0 - (now - before) / _MINUTE_SECONDS, 0.0) + 1.0
        self._rates[bucket] = count, now
        return count
