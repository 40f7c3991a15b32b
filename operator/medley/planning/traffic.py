"""From what routers counted to the traffic that a plan is made for. Called by `proposal` and `handlers`; pure.

    ledger = read(ledger, counts_by_router, now)      # once a pass, from the routers that answered
    found = measured(ledger, now, grid, prior, had)   # Traffic, or why there is none
    plan_for = in_force(had, found)                   # changes only where the difference is beyond chance

What the operator keeps in memory, the ledger, it may lose at any time: `had`, which the status holds, stays in force
until there is as much again. The rate is that of the busiest WINDOW of the last STABLE: more traffic counts at once,
less only once it has been less for so long (as the stabilisation window of Kubernetes' autoscaler has it). Sizes, and
the outputs that they lead to, are those of the last KEPT; outputs rest on the forecast until they have been counted.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from medley.core.traffic import WINDOWS_S, Counts
from medley.core.workload import Bucket, Demand, SizeGrid
from medley.planning.burstiness import FEWEST_WINDOWS
from medley.planning.ignorance import Class
from medley.planning.presets import RAREST
from medley.planning.sizes import largest_request

WINDOW = timedelta(minutes=5)
STABLE = timedelta(minutes=30)
KEPT = timedelta(hours=1)
FEWEST_REQUESTS = 100  # fewer say little about sizes
_APART = timedelta(seconds=45)  # readings nearer to each other are not both kept
_SEEN = 3  # requests of a size: fewer are no reason to ask for a profile of it
_PARTS = 1000  # outputs are kept in thousandths
_DIGITS = 3  # of rates and dispersions
_PRIOR_WEIGHT = 20.0  # requests that the forecast's outputs of a class are worth
# A difference is beyond chance if it is more than so many standard deviations, and worth a new plan if it is more than
# so much of the traffic.
_DEVIATIONS, _WORTH = 3.0, 0.10
_BURSTIER = 1.25


@dataclass(frozen=True, slots=True)
class ClassTraffic:
    """Requests of one input range and range of max_tokens; `outputs`: thousandths per output range that came of them."""

    bucket: Bucket
    requests_per_second: float
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was measured: by class, how bursty, and on how many requests it rests. Rounded, so that it can be written.

    `bursts`: dispersion (Allan's factor) by length of the window in seconds; lengths that say nothing yet are absent.
    """

    grid: SizeGrid
    classes: tuple[ClassTraffic, ...]  # sorted
    bursts: tuple[tuple[int, float], ...]  # sorted
    requests: int
    measured_at: datetime

    @property
    def requests_per_second(self) -> float:
        """Over all classes."""
        return math.fsum(each.requests_per_second for each in self.classes)

    @property
    def arrivals(self) -> tuple[Class, ...]:
        """The classes as routers see them, with P(output | class)."""
        return tuple(
            Class(
                each.bucket,
                each.requests_per_second,
                tuple((output, part / sum(each.outputs)) for output, part in enumerate(each.outputs) if part),
            )
            for each in self.classes
        )

    @property
    def demand(self) -> Demand:
        """The same by the outputs that are expected."""
        rates: Counter[Bucket] = Counter()
        for each in self.arrivals:
            for output, part in each.outputs:
                rates[Bucket(each.bucket.input, output)] += each.requests_per_second * part  # type: ignore[assignment]
        return Demand(self.grid, tuple(sorted(rates.items())))

    def dispersion(self, life_s: float) -> float:
        """Return how bursty arrivals are for requests that live so long; 1, as by chance, where nobody knows.

        More even than by chance is not relied upon.
        """
        if not self.bursts:
            return 1.0
        known = next((value for length, value in self.bursts if length >= life_s), self.bursts[-1][1])
        return max(1.0, known)


@dataclass(frozen=True, slots=True)
class NotMeasured:
    """Why there is no measurement; nothing in the words ticks."""

    why: str


@dataclass(frozen=True, slots=True)
class _Totals:
    """What came since the ledger began, over all routers."""

    at: datetime
    requests: Mapping[tuple[int, int], float] = field(default_factory=dict)
    outputs: Mapping[tuple[int, int, int], float] = field(default_factory=dict)
    turned_away: float = 0.0
    excess: Mapping[int, float] = field(default_factory=dict)  # of squared differences over chance, by window
    chance: Mapping[int, float] = field(default_factory=dict)  # what the excess is measured in

    @property
    def arrived(self) -> float:
        return math.fsum(self.requests.values()) + self.turned_away


@dataclass(frozen=True, slots=True)
class Ledger:
    """Totals at the readings of the last KEPT, and what every router said last."""

    last: Mapping[str, Counts] = field(default_factory=dict)
    totals: tuple[_Totals, ...] = ()  # oldest first


def read(ledger: Ledger, said: Mapping[str, Counts], now: datetime) -> Ledger:
    """Return the ledger with what routers say now, by their identity; none that answered: nothing is known of now.

    A router that was not heard before only counts from now on: nobody knows when it counted what it has. One whose
    counts fell began anew.
    """
    if not said:
        return ledger
    last = {**ledger.last, **said}
    before = ledger.totals[-1] if ledger.totals else _Totals(now)
    if ledger.totals and now <= before.at:
        return ledger
    grown = [_grown(ledger.last[name], counts) for name, counts in said.items() if name in ledger.last]
    totals = _added(before, grown, len(said), now)
    kept = [each for each in ledger.totals if each.at > now - KEPT]
    # The last is replaced while it is near the one before it, so readings are spaced without a gap at the end.
    if len(kept) > 1 and kept[-1].at - kept[-2].at < _APART:
        kept.pop()
    return Ledger(last, (*kept, totals))


def forgotten(ledger: Ledger, routers: frozenset[str]) -> Ledger:
    """Return the ledger without routers that are no more."""
    return replace(ledger, last={name: counts for name, counts in ledger.last.items() if name in routers})


def measured(
    ledger: Ledger, now: datetime, grid: SizeGrid, prior: Demand, had: Traffic | None, *, longest: int
) -> Traffic | NotMeasured:
    """Return the traffic of late.

    `prior`: the forecast, which says what outputs to expect of classes that were hardly seen. `had`: what was measured
    before; where there is too little to tell sizes, its sizes are kept. `longest`: tokens of the longest request.
    """
    if not ledger.totals:
        return NotMeasured("no router was heard yet")
    rates = tuple(_rates(ledger.totals, now))
    if not rates:
        return NotMeasured(f"routers were listened to for less than {WINDOW // timedelta(minutes=1)} minutes")
    first, last = ledger.totals[0], ledger.totals[-1]
    seen = _known(first, last, grid)
    number = round(sum(seen.values()))
    rate = max(rates)
    if number < FEWEST_REQUESTS:
        if had is None or had.grid != grid:
            return NotMeasured(f"fewer than {FEWEST_REQUESTS} requests came in an hour")
        # Silence was measured; sizes were not.
        least = 1 / KEPT.total_seconds()
        factor = max(rate, least) / had.requests_per_second
        classes = tuple(
            replace(each, requests_per_second=_rounded(each.requests_per_second * factor)) for each in had.classes
        )
        return replace(had, classes=classes, requests=number, measured_at=now)
    kept = {bucket: count for bucket, count in seen.items() if count >= max(_SEEN, RAREST * number)}
    if not kept:
        return NotMeasured("no size came more than twice in an hour")
    whole = math.fsum(kept.values())
    expected = dict(prior.requests_per_second)
    return Traffic(
        grid=grid,
        classes=tuple(
            ClassTraffic(
                bucket,
                _rounded(rate * count / whole),
                _outputs(bucket, _made(first, last, grid, bucket), expected, grid, longest),
            )
            for bucket, count in sorted(kept.items())
        ),
        bursts=tuple(_bursts(first, last)),
        requests=number,
        measured_at=now,
    )


def in_force(had: Traffic | None, found: Traffic | NotMeasured, grid: SizeGrid) -> Traffic | None:
    """Return the traffic to plan for: what was, unless what is differs from it by more than chance; None: neither.

    What was measured over other ranges of sizes is no use any more.
    """
    standing = had if had is not None and had.grid == grid else None
    if isinstance(found, NotMeasured):
        return standing
    return found if standing is None or _differ(standing, found) else standing


def _grown(before: Counts, after: Counts) -> Counts:
    """Return what a router counted between two readings."""
    restarted = (
        math.fsum(after.requests.values()) < math.fsum(before.requests.values())
        or after.turned_away < before.turned_away
        or any(total.requests < before.arrivals[w].requests for w, total in after.arrivals.items() if w in before.arrivals)
    )  # fmt: skip
    old = Counts() if restarted else before
    return Counts(
        {size: number - old.requests.get(size, 0.0) for size, number in after.requests.items()},
        {size: number - old.outputs.get(size, 0.0) for size, number in after.outputs.items()},
        after.turned_away - old.turned_away,
        {
            length: replace(
                total,
                requests=total.requests - (old.arrivals[length].requests if length in old.arrivals else 0.0),
                squares=total.squares - (old.arrivals[length].squares if length in old.arrivals else 0.0),
            )
            for length, total in after.arrivals.items()
        },
    )


def _added(before: _Totals, grown: list[Counts], routers: int, now: datetime) -> _Totals:
    """Return totals with what came.

    Of n routers each sees a part of the requests, drawn as by chance: what a service's dispersion D has beyond 1, a
    router's has a part of, D_r - 1 = (D - 1) / n. So D = 1 + sum (squares - 2 requests) / sum (2 requests / n). Clients
    that stay with their router make that too large, never too small.
    """
    requests, outputs = Counter(before.requests), Counter(before.outputs)
    excess, chance = Counter(before.excess), Counter(before.chance)
    for each in grown:
        requests.update(each.requests)  # type: ignore[arg-type]  # Counters hold floats as well
        outputs.update(each.outputs)  # type: ignore[arg-type]
        for length, total in each.arrivals.items():
            excess[length] += total.squares - 2 * total.requests
            chance[length] += 2 * total.requests / routers
    turned_away = before.turned_away + math.fsum(each.turned_away for each in grown)
    return _Totals(now, dict(requests), dict(outputs), turned_away, dict(excess), dict(chance))


def _rates(totals: tuple[_Totals, ...], now: datetime) -> Iterator[float]:
    """Yield requests/s of every whole window of the last STABLE, each between the readings nearest before its ends."""
    times = [each.at for each in totals]
    for number in range(STABLE // WINDOW):
        end = bisect_right(times, now - number * WINDOW) - 1
        start = bisect_right(times, now - (number + 1) * WINDOW) - 1
        if start < 0 or end <= start:
            return
        seconds = (times[end] - times[start]).total_seconds()
        yield (totals[end].arrived - totals[start].arrived) / seconds


def _known(first: _Totals, last: _Totals, grid: SizeGrid) -> dict[Bucket, float]:
    """Return requests per class, those of another grid left out."""
    inputs, outputs = _places(grid)
    return {
        Bucket(inputs[size[0]], outputs[size[1]]): came
        for size, number in last.requests.items()
        if size[0] in inputs and size[1] in outputs and (came := number - first.requests.get(size, 0.0)) > 0
    }


def _made(first: _Totals, last: _Totals, grid: SizeGrid, bucket: Bucket) -> dict[int, float]:
    edges, (_, outputs) = grid.sizes(bucket), _places(grid)
    return {
        outputs[size[2]]: number - first.outputs.get(size, 0.0)
        for size, number in last.outputs.items()
        if size[:2] == edges and size[2] in outputs
    }


def _outputs(
    bucket: Bucket, made: Mapping[int, float], expected: Mapping[Bucket, float], grid: SizeGrid, longest: int
) -> tuple[int, ...]:
    """Return thousandths per output range: what came, and, worth a few requests, what the forecast says of such.

    The forecast of the same inputs, or else of all, as far as max_tokens and the model's length allow.
    """
    possible = [
        output
        for output in range(bucket.output + 1)
        if largest_request(grid, Bucket(bucket.input, output), longest) is not None
    ] or [0]
    own = {output: expected.get(Bucket(bucket.input, output), 0.0) for output in possible}
    if not any(own.values()):
        own = {output: math.fsum(r for b, r in expected.items() if b.output == output) for output in possible}
    if not any(own.values()):
        own = {possible[-1]: 1.0}
    whole = math.fsum(own.values())
    believed = {output: _PRIOR_WEIGHT * part / whole for output, part in own.items()}
    for output, number in made.items():
        place = min(output, bucket.output)
        believed[place] = believed.get(place, 0.0) + number
    total = math.fsum(believed.values())
    parts = [round(_PARTS * believed.get(output, 0.0) / total) for output in range(len(grid.output_edges))]
    return tuple(parts)


def _bursts(first: _Totals, last: _Totals) -> Iterator[tuple[int, float]]:
    seconds = (last.at - first.at).total_seconds()
    for length in WINDOWS_S:
        by_chance = last.chance.get(length, 0.0) - first.chance.get(length, 0.0)
        if by_chance > 0 and seconds >= FEWEST_WINDOWS * length:
            beyond = last.excess.get(length, 0.0) - first.excess.get(length, 0.0)
            yield length, _rounded(max(1.0, 1 + beyond / by_chance))


def _differ(had: Traffic, found: Traffic) -> bool:
    return _rate_differs(had, found) or _sizes_differ(had, found) or _bursts_differ(had, found)


def _rate_differs(had: Traffic, found: Traffic) -> bool:
    """Say whether rates differ by more than a tenth and more than the numbers of a window scatter."""
    old, new = had.requests_per_second, found.requests_per_second
    uneven = max((value for _, value in (*had.bursts, *found.bursts)), default=1.0)
    deviation = math.sqrt(uneven * max(old, new) / WINDOW.total_seconds())
    return abs(new - old) > max(_WORTH * old, _DEVIATIONS * deviation)


def _sizes_differ(had: Traffic, found: Traffic) -> bool:
    """Say whether more than a tenth of the requests is of other sizes, and more than two samples of one source differ."""
    old, new = _sizes(had), _sizes(found)
    numbers = max(had.requests, 1), max(found.requests, 1)
    cells = old.keys() | new.keys()
    distance = math.fsum(abs(old.get(each, 0.0) - new.get(each, 0.0)) for each in cells) / 2
    pooled = (1 / numbers[0] + 1 / numbers[1]) * 2 / math.pi
    chance = math.fsum(math.sqrt(pooled * (old.get(each, 0.0) + new.get(each, 0.0)) / 2) for each in cells) / 2
    return distance > max(_WORTH, _DEVIATIONS * chance)


def _sizes(traffic: Traffic) -> dict[tuple[Bucket, int], float]:
    whole = traffic.requests_per_second
    return {
        (each.bucket, output): each.requests_per_second / whole * part
        for each in traffic.arrivals
        for output, part in each.outputs
    }


def _bursts_differ(had: Traffic, found: Traffic) -> bool:
    """Say whether, at some length, one is burstier than the other by a quarter and beyond the figure's own scatter."""
    lengths = {length for length, _ in (*had.bursts, *found.bursts)}
    return any(
        abs(math.log(found.dispersion(length) / had.dispersion(length)))
        > max(math.log(_BURSTIER), _DEVIATIONS * math.sqrt(2 * length / KEPT.total_seconds()))
        for length in lengths
    )


def _places(grid: SizeGrid) -> tuple[dict[int, int], dict[int, int]]:
    inputs, outputs = ({edge: n for n, edge in enumerate(edges)} for edges in (grid.input_edges, grid.output_edges))
    return inputs, outputs


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
