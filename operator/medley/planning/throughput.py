"""From measured latencies to what one replica sustains within an SLO: requests/s per bucket.

Called by `question`. Nothing is extrapolated: a bucket is judged by points measured at sizes at least as large as its
largest request, in both dimensions, and only rates between measured rates are interpolated. What cannot be judged
cannot be served, and `Unable` says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

from medley.core.profiles import LatencyPoint, Profile, ProfileSource
from medley.core.workload import Bucket, SizeGrid, Slo
from medley.planning.problem import ShapeThroughput

# A size measured this near to the longest possible request counts as measured there: 4096 is met by 3840 + 256.
_NEARLY = 0.95
_TRUST = {ProfileSource.ESTIMATED: 0, ProfileSource.MEASURED: 1, ProfileSource.OBSERVED: 2}


@dataclass(frozen=True, slots=True)
class NotMeasured:
    """The profile has no point at sizes this large; `largest` is the largest measured (input, output)."""

    input_tokens: int
    output_tokens: int
    largest: tuple[int, int]

    def __str__(self) -> str:
        return (
            f"not measured at {self.input_tokens} + {self.output_tokens} tokens or more "
            f"(largest: {self.largest[0]} + {self.largest[1]})"
        )


@dataclass(frozen=True, slots=True)
class TooLong:
    """A replica cannot hold requests this long."""

    tokens: int
    holds: int

    def __str__(self) -> str:
        return f"{self.tokens} tokens are longer than the {self.holds} that a replica holds"


@dataclass(frozen=True, slots=True)
class SloMissed:
    """The promise is broken at every measured rate; the latencies are those of the lowest."""

    requests_per_second: float
    ttft: timedelta
    tpot: timedelta

    def __str__(self) -> str:
        return (
            f"at {self.requests_per_second:g} requests/s, the lowest rate measured, "
            f"TTFT is {_ms(self.ttft)} and TPOT {_ms(self.tpot)}"
        )


@dataclass(frozen=True, slots=True)
class PercentileMissing:
    """The profile's latencies stop below the promised percentile."""

    promised: float
    measured: float

    def __str__(self) -> str:
        return f"measured up to percentile {self.measured:g} only, the SLO promises {self.promised:g}"


Unable = NotMeasured | TooLong | SloMissed | PercentileMissing


@dataclass(frozen=True, slots=True)
class Sustained:
    """What one replica sustains, and why not the rest."""

    throughput: ShapeThroughput
    unable: tuple[tuple[Bucket, Unable], ...]


@dataclass(frozen=True, slots=True)
class _AtRate:
    requests_per_second: float
    ttft: timedelta
    tpot: timedelta


def most_trusted(profiles: Iterable[Profile]) -> tuple[Profile, ...]:
    """Return one profile per shape: observed before measured before estimated, then newest, then first by name."""
    best: dict[object, Profile] = {}
    for profile in sorted(profiles, key=lambda profile: profile.name, reverse=True):
        held = best.get(profile.shape)
        if held is None or _trust(profile) >= _trust(held):
            best[profile.shape] = profile
    return tuple(best[shape] for shape in sorted(best, key=str))


def sustained(profile: Profile, slo: Slo, grid: SizeGrid, *, longest: int) -> Sustained:
    """Return the rates that a replica of the profile's shape sustains within the SLO, bucket by bucket.

    `longest`: tokens, input + output, of the longest request that is let in; buckets that hold no such request are
    in neither list.
    """
    rates: list[tuple[Bucket, float]] = []
    unable: list[tuple[Bucket, Unable]] = []
    for bucket in grid.buckets():
        largest = largest_request(grid, bucket, longest)
        if largest is None:
            continue
        match _rate(profile, slo, largest, longest):
            case float() as rate:
                rates.append((bucket, rate))
            case reason:
                unable.append((bucket, reason))
    return Sustained(ShapeThroughput(profile.shape, tuple(rates)), tuple(unable))


def largest_request(grid: SizeGrid, bucket: Bucket, longest: int) -> tuple[int, int] | None:
    """Return the largest input and the largest output that a request of a bucket may have; None: it holds none.

    A request is at most `longest` tokens in all, so its input leaves room for the bucket's shortest output, and the
    other way round.
    """
    inputs, outputs = grid.sizes(bucket)
    shortest_input, shortest_output = grid.smallest(bucket)
    if shortest_input + shortest_output > longest:
        return None
    return min(inputs, longest - shortest_output), min(outputs, longest - shortest_input)


def _rate(profile: Profile, slo: Slo, largest: tuple[int, int], longest: int) -> float | Unable:
    needed = min(sum(largest), longest)
    if needed > profile.max_model_len:
        return TooLong(needed, profile.max_model_len)
    if sum(largest) > longest:
        # No request is that large in both dimensions, and none could be measured. Of those at the limit the one with
        # the most output stands for all, since decoding a token costs more than prefilling it.
        output = largest[1]
        largest = math.floor(_NEARLY * (longest - output)), math.floor(_NEARLY * output)
    sizes = _covering(profile.points, largest)
    if not sizes:
        return NotMeasured(
            *largest, largest=max(((p.input_tokens, p.output_tokens) for p in profile.points), default=(0, 0))
        )
    results = [_within(profile.points, size, slo) for size in sizes]
    rates = [result for result in results if isinstance(result, float)]
    # Each covering size is a safe judgement of the bucket, so the best of them may be believed.
    return max(rates) if rates else results[0]


def _covering(points: Iterable[LatencyPoint], largest: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the smallest measured sizes that are at least `largest` in both dimensions (none is within another)."""
    sizes = {(point.input_tokens, point.output_tokens) for point in points}
    covering = {size for size in sizes if size[0] >= largest[0] and size[1] >= largest[1]}
    return sorted(
        size
        for size in covering
        if not any(other != size and other[0] <= size[0] and other[1] <= size[1] for other in covering)
    )


def _within(points: Iterable[LatencyPoint], size: tuple[int, int], slo: Slo) -> float | SloMissed | PercentileMissing:
    """Return the highest rate up to which the promise holds at a size, between measured rates by straight lines."""
    at_size = sorted(
        (point for point in points if (point.input_tokens, point.output_tokens) == size),
        key=lambda point: point.requests_per_second,
    )
    measured: list[_AtRate] = []
    for point in at_size:
        latency = next((each for each in point.latencies if each.percentile >= slo.percentile), None)
        if latency is None:
            return PercentileMissing(slo.percentile, max((each.percentile for each in point.latencies), default=0.0))
        measured.append(_AtRate(point.requests_per_second, latency.ttft, latency.tpot))
    first = measured[0]
    if not _kept(first, slo):
        return SloMissed(first.requests_per_second, first.ttft, first.tpot)
    for below, above in pairwise(measured):
        # Where the promise is broken once, points at higher rates that keep it again are luck and not relied on.
        if not _kept(above, slo):
            return min(_crossings(below, above, slo))
    return float(measured[-1].requests_per_second)


def _kept(at: _AtRate, slo: Slo) -> bool:
    return (slo.ttft is None or at.ttft <= slo.ttft) and (slo.tpot is None or at.tpot <= slo.tpot)


def _crossings(below: _AtRate, above: _AtRate, slo: Slo) -> Iterator[float]:
    """Yield the rates at which the line between two points crosses a bound of the promise."""
    step = above.requests_per_second - below.requests_per_second
    for bound, low, high in ((slo.ttft, below.ttft, above.ttft), (slo.tpot, below.tpot, above.tpot)):
        if bound is not None and high > bound:
            yield below.requests_per_second + step * ((bound - low) / (high - low))


def _trust(profile: Profile) -> tuple[int, float]:
    return _TRUST[profile.source], profile.measured_at.timestamp() if profile.measured_at else 0.0


def _ms(value: timedelta) -> str:
    return f"{value / timedelta(milliseconds=1):.0f} ms"
