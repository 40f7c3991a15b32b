"""From a profile to what one replica sustains within an SLO: requests/s per bucket.

Called by `question`. Measured points go first: a bucket is judged by points measured at sizes at least as large as its
largest request, in both dimensions, and only rates between measured rates are interpolated. Where there is no such
point the profile's latency model answers (`predicted`), if it has one; what that extrapolates is named in `doubts`.
What cannot be judged cannot be served, and `Unable` says why (in words: `refusals`).

A request attains the SLO if TTFT and TPOT both hold. Of points, only the percentiles of each are known, and at worst no
request misses both: (100 - a) % that miss one and (100 - b) % that miss the other must together be within what the
promise allows. Where the percentiles are too few to show that, each is held at the highest one and `JointUnknown` says
so. A larger size or a tighter SLO never serves more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise

from medley.core.profiles import Confidence, FittedLatency, LatencyPoint, Profile, ProfileSource
from medley.core.workload import Bucket, SizeGrid, Slo
from medley.planning.predicted import Extrapolated, TooFarBeyond, predicted
from medley.planning.problem import ShapeThroughput
from medley.planning.sizes import largest_request

# A size measured this near to the longest possible request counts as measured there: 4096 is met by 3840 + 256.
_NEARLY = 0.95
_ROUNDING = 1e-9  # of percentages: 100 - 99.9 is a little more than 0.1
_TRUST = {ProfileSource.ESTIMATED: 0, ProfileSource.MEASURED: 1, ProfileSource.OBSERVED: 2}


@dataclass(frozen=True, slots=True)
class NotMeasured:
    """The profile has no point at sizes this large; `largest` is the largest measured (input, output)."""

    input_tokens: int
    output_tokens: int
    largest: tuple[int, int]


@dataclass(frozen=True, slots=True)
class TooLong:
    """A replica cannot hold requests this long."""

    tokens: int
    holds: int


@dataclass(frozen=True, slots=True)
class SloMissed:
    """The promise is broken at every measured rate; the latencies are those of the lowest."""

    requests_per_second: float
    ttft: timedelta
    tpot: timedelta


@dataclass(frozen=True, slots=True)
class PercentileMissing:
    """The profile's latencies stop below the promised percentile."""

    promised: float
    measured: float


@dataclass(frozen=True, slots=True)
class OutOfReach:
    """The promise is broken by an idle replica, or as soon as requests meet; the idle one's latencies, by the model."""

    size: tuple[int, int]  # (input, output) tokens; of a larger size that is refused for this one, the smaller
    ttft: timedelta
    tpot: timedelta
    holds_tokens: int  # of KV cache
    alone: bool = False  # an idle replica keeps the promise


Unable = NotMeasured | TooLong | SloMissed | PercentileMissing | OutOfReach | TooFarBeyond


@dataclass(frozen=True, slots=True)
class JointUnknown:
    """Both bounds are known at one percentile only, which allows for more misses of either than were promised."""

    percentile: float

    def __str__(self) -> str:
        at_least = 100 - 2 * (100 - self.percentile)
        return (
            f"TTFT and TPOT are each measured up to percentile {self.percentile:g} only: "
            f"both together may hold for as few as {at_least:g} % of requests"
        )


Doubt = Extrapolated | JointUnknown


@dataclass(frozen=True, slots=True)
class Sustained:
    """What one replica sustains, and why not the rest."""

    throughput: ShapeThroughput
    unable: tuple[tuple[Bucket, Unable], ...]
    doubts: tuple[tuple[Bucket, Doubt], ...] = ()
    confidence: Confidence | None = None  # the profile's own, one lower if sizes are extrapolated; None: not said

    @property
    def extrapolated(self) -> tuple[tuple[Bucket, Extrapolated], ...]:
        """The buckets whose rates rest on more than was measured."""
        return tuple((bucket, doubt) for bucket, doubt in self.doubts if isinstance(doubt, Extrapolated))


@dataclass(frozen=True, slots=True)
class _Judged:
    requests_per_second: float
    doubt: Doubt | None = None


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
    rates: dict[Bucket, float] = {}
    unable: list[tuple[Bucket, Unable]] = []
    doubts: list[tuple[Bucket, Doubt]] = []
    for bucket in grid.buckets():
        largest = largest_request(grid, bucket, longest)
        if largest is None:
            continue
        match _judged(profile, slo, largest, longest):
            case _Judged(rate, doubt):
                # What serves a size serves a smaller one as well: more than a smaller size is the model's error.
                smaller = (rates[each] for each in rates if _within_bucket(each, bucket))
                refused = next((why for each, why in unable if _within_bucket(each, bucket)), None)
                if refused is not None:
                    unable.append((bucket, refused))
                    continue
                rates[bucket] = min((rate, *smaller))
                doubts += [(bucket, doubt)] if doubt is not None else []
            case reason:
                unable.append((bucket, reason))
    found = Sustained(ShapeThroughput(profile.shape, tuple(rates.items())), tuple(unable), tuple(doubts))
    return replace(found, confidence=_confidence(profile, found))


def _within_bucket(small: Bucket, large: Bucket) -> bool:
    return small.input <= large.input and small.output <= large.output


def _confidence(profile: Profile, found: Sustained) -> Confidence | None:
    if profile.confidence is None or not found.extrapolated:
        return profile.confidence
    return {Confidence.HIGH: Confidence.MEDIUM}.get(profile.confidence, Confidence.LOW)


def _judged(profile: Profile, slo: Slo, largest: tuple[int, int], longest: int) -> _Judged | Unable:
    needed = min(sum(largest), longest)
    if needed > profile.max_model_len:
        return TooLong(needed, profile.max_model_len)
    if sum(largest) > longest:
        # No request is that large in both dimensions, and none could be measured. Of those at the limit the one with
        # the most output stands for all, since decoding a token costs more than prefilling it.
        output = largest[1]
        largest = math.floor(_NEARLY * (longest - output)), math.floor(_NEARLY * output)
    sizes = _covering(profile.points, largest)
    if sizes:
        results = [_within(profile.points, size, slo) for size in sizes]
        judged = [result for result in results if isinstance(result, _Judged)]
        # Each covering size is a safe judgement of the bucket, so the best of them may be believed.
        return max(judged, key=lambda each: each.requests_per_second) if judged else results[0]
    if profile.latency is not None:
        return _by_model(profile.latency, slo, *largest)
    return NotMeasured(
        *largest, largest=max(((p.input_tokens, p.output_tokens) for p in profile.points), default=(0, 0))
    )


def _by_model(latency: FittedLatency, slo: Slo, input_tokens: int, output_tokens: int) -> _Judged | Unable:
    match predicted(latency, slo, input_tokens, output_tokens):
        case TooFarBeyond() as beyond:
            return beyond
        case found if found.requests_per_second <= 0:
            first, each = timedelta(seconds=found.ttft_s), timedelta(seconds=found.tpot_s)
            return OutOfReach((input_tokens, output_tokens), first, each, latency.model.kv_tokens, found.alone)
        case found:
            return _Judged(found.requests_per_second, found.doubt)


def _covering(points: Iterable[LatencyPoint], largest: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the measured sizes that are at least `largest` in both dimensions, those first that hold no other."""
    sizes = {(point.input_tokens, point.output_tokens) for point in points}
    covering = {size for size in sizes if size[0] >= largest[0] and size[1] >= largest[1]}
    return sorted(covering, key=lambda size: (_holds_another(size, covering), size))


def _holds_another(size: tuple[int, int], sizes: Iterable[tuple[int, int]]) -> bool:
    return any(other != size and other[0] <= size[0] and other[1] <= size[1] for other in sizes)


def _within(points: Iterable[LatencyPoint], size: tuple[int, int], slo: Slo) -> _Judged | SloMissed | PercentileMissing:
    """Return the highest rate up to which the promise holds at a size, between measured rates by straight lines."""
    at_size = sorted(
        (point for point in points if (point.input_tokens, point.output_tokens) == size),
        key=lambda point: point.requests_per_second,
    )
    top = min(max((each.percentile for each in point.latencies), default=0.0) for point in at_size)
    if top < slo.percentile:
        return PercentileMissing(slo.percentile, top)
    pairs, doubt = _percentiles(at_size, slo, top)
    results = [_up_to([_at_rate(point, ttft, tpot) for point in at_size], slo) for ttft, tpot in pairs]
    rates = [result for result in results if isinstance(result, float)]
    if rates:
        return _Judged(max(rates), doubt)
    return next(result for result in results if isinstance(result, SloMissed))


def _percentiles(
    points: Iterable[LatencyPoint], slo: Slo, top: float
) -> tuple[list[tuple[float, float]], JointUnknown | None]:
    """Return the pairs of percentiles, of TTFT and of TPOT, at each of which the promise is known to hold."""
    known = sorted({each.percentile for point in points for each in point.latencies if each.percentile <= top})
    if slo.ttft is None or slo.tpot is None:
        enough = next((each for each in known if each >= slo.percentile), top)
        return [(enough, enough)], None
    allowed = 100 - slo.percentile
    pairs = [(ttft, tpot) for ttft in known for tpot in known if (100 - ttft) + (100 - tpot) <= allowed + _ROUNDING]
    return (pairs, None) if pairs else ([(top, top)], JointUnknown(top))


def _at_rate(point: LatencyPoint, ttft: float, tpot: float) -> _AtRate:
    """Return the latencies of a point at the first percentiles that are at least these."""
    of_ttft = next(each for each in point.latencies if each.percentile >= ttft)
    of_tpot = next(each for each in point.latencies if each.percentile >= tpot)
    return _AtRate(point.requests_per_second, of_ttft.ttft, of_tpot.tpot)


def _up_to(measured: list[_AtRate], slo: Slo) -> float | SloMissed:
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
