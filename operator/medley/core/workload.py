"""What arrives: request sizes, rates, and the promise they are served under."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import NamedTuple

from medley.core.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Slo:
    """Bounds on time to first token and time per output token that `percentile` percent of requests must meet.

    None: not promised. At least one of the two is promised.
    """

    percentile: float
    ttft: timedelta | None
    tpot: timedelta | None

    def __post_init__(self) -> None:
        if self.ttft is None and self.tpot is None:
            raise InvalidInputError("spec.slo", "promise at least one of ttft and tpot, for example {tpot: 40ms}")
        if not 0 < self.percentile < 100:  # noqa: PLR2004  # a percentage
            raise InvalidInputError(
                "spec.slo.percentile", f"expected a number between 0 and 100, got {self.percentile}"
            )


@dataclass(frozen=True, slots=True)
class SizeGrid:
    """Upper edges, inclusive, of the input and output ranges that make buckets; ascending token counts.

    A size above the last edge belongs to the last range (Mélange section 5: the label of a range is its upper edge).
    """

    input_edges: tuple[int, ...]
    output_edges: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, edges in (("inputEdges", self.input_edges), ("outputEdges", self.output_edges)):
            if not edges or edges[0] < 1 or any(a >= b for a, b in pairwise(edges)):
                raise InvalidInputError(name, f"expected ascending token counts from 1 up, got {list(edges)}")

    def bucket(self, input_tokens: int, output_tokens: int) -> Bucket:
        """Return the bucket of a request of these sizes."""
        return Bucket(_range_of(self.input_edges, input_tokens), _range_of(self.output_edges, output_tokens))

    def sizes(self, bucket: Bucket) -> tuple[int, int]:
        """Return the largest input and output token counts of a bucket."""
        return self.input_edges[bucket.input], self.output_edges[bucket.output]

    def smallest(self, bucket: Bucket) -> tuple[int, int]:
        """Return the smallest input and output token counts of a bucket."""
        return (
            self.input_edges[bucket.input - 1] + 1 if bucket.input else 1,
            self.output_edges[bucket.output - 1] + 1 if bucket.output else 1,
        )

    def middle(self, bucket: Bucket) -> tuple[float, float]:
        """Return the input and output token counts in the middle of a bucket."""
        (least_in, least_out), (most_in, most_out) = self.smallest(bucket), self.sizes(bucket)
        return (least_in + most_in) / 2, (least_out + most_out) / 2

    def buckets(self) -> tuple[Bucket, ...]:
        """Return all buckets, row by row (input-major)."""
        return tuple(Bucket(i, o) for i in range(len(self.input_edges)) for o in range(len(self.output_edges)))


# The paper's ranges (Mélange figure 5).
MELANGE_GRID = SizeGrid(
    (25, 100, 250, 500, 1000, 2000, 4000, 8000, 12000, 16000),
    (25, 100, 250, 500, 1000, 2000),
)


class Bucket(NamedTuple):
    """Indices of an input range and an output range of a `SizeGrid`."""

    input: int
    output: int


@dataclass(frozen=True, slots=True)
class Demand:
    """Requests per second per bucket; buckets without traffic are absent."""

    grid: SizeGrid
    requests_per_second: tuple[tuple[Bucket, float], ...]

    def __post_init__(self) -> None:
        for bucket, rate in self.requests_per_second:
            if not math.isfinite(rate) or rate <= 0:
                raise InvalidInputError("spec.workload", f"expected positive rates, got {rate} in bucket {bucket}")
        if len({bucket for bucket, _ in self.requests_per_second}) != len(self.requests_per_second):
            raise InvalidInputError("spec.workload", "a bucket is named twice")

    @property
    def total(self) -> float:
        """Requests per second over all buckets."""
        return math.fsum(rate for _, rate in self.requests_per_second)


def _range_of(edges: tuple[int, ...], size: int) -> int:
    return min(bisect_left(edges, size), len(edges) - 1)
