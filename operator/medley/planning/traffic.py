"""From what routers counted to the traffic that a plan is made for. Called by `proposal` and `handlers`; pure.

    known = ledger.read(known, counts_by_router, now)   # once a pass, from the routers that answered
    found = measured(known, now, grid, prior, had)      # Traffic, or why there is none
    plan_for = in_force(had, found, grid)               # sizes change only where the difference is beyond chance

What the operator keeps in memory, the ledger, it may lose at any time: `had`, which the status holds, stays in force
until there is as much again. The rate that is found is MARGIN above that of the busiest WINDOW of the last STABLE;
which one is planned for from then on, `pace` says. Sizes, and the outputs that they lead to, are those of the last
KEPT; outputs rest on the forecast until they have been counted.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from medley.core.traffic import WINDOWS_S
from medley.core.workload import Bucket, Demand, SizeGrid
from medley.planning.burstiness import FEWEST_WINDOWS
from medley.planning.ignorance import Class, learned
from medley.planning.ledger import KEPT, Ledger, Totals
from medley.planning.presets import RAREST
from medley.planning.sizes import largest_request

WINDOW = timedelta(minutes=5)
# The middle of whole windows and their requests/s, latest first.
Windows = tuple[tuple[datetime, float], ...]
STABLE = timedelta(minutes=30)
FEWEST_REQUESTS = 100  # fewer say little about sizes
_SEEN = 3  # requests of a size: fewer are no reason to ask for a profile of it
_PARTS = 1000  # outputs are kept in thousandths
_DIGITS = 3  # of rates and dispersions
_DIGITS_SCALED = 5  # of rates that are scaled again and again
_PRIOR_WEIGHT = 20.0  # requests that the forecast's outputs of a class are worth
# A difference is beyond chance if it is more than so many standard deviations, and worth a new plan if it is more than
# so much of the traffic.
_DEVIATIONS, _WORTH = 3.0, 0.10
# What is planned for is at least so much above what was measured: traffic that grows is served while capacity is on its
# way (five minutes of measuring, five of starting).
MARGIN = 0.05
_BURSTIER = 1.25
# Where nothing came: a request in an hour, since sizes of nothing cannot be planned for.
LEAST = 1 / KEPT.total_seconds()


@dataclass(frozen=True, slots=True)
class ClassTraffic:
    """Requests of one input range and range of max_tokens; `outputs`: thousandths per output range that they made."""

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
    def unevenness(self) -> float:
        """How bursty arrivals are at the length at which they are most; 1, as by chance, where nobody knows."""
        return max((value for _, value in self.bursts), default=1.0)

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
        rates: defaultdict[Bucket, float] = defaultdict(float)
        for each in self.arrivals:
            for output, part in each.outputs:
                rates[Bucket(each.bucket.input, output)] += each.requests_per_second * part
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


def measured(
    ledger: Ledger, now: datetime, grid: SizeGrid, prior: Demand, had: Traffic | None, *, longest: int
) -> Traffic | NotMeasured:
    """Return the traffic of late.

    `prior`: the forecast, which says what outputs to expect of classes that were hardly seen. `had`: what was measured
    before; where there is too little to tell sizes, its sizes are kept. `longest`: tokens of the longest request.
    """
    if not ledger.totals:
        return NotMeasured("no router was heard yet")
    rates = [rate for _, rate in windows(ledger, now)[: STABLE // WINDOW]]
    if not rates:
        return NotMeasured(f"routers were listened to for less than {WINDOW // timedelta(minutes=1)} minutes")
    first, last = ledger.totals[0], ledger.totals[-1]
    seen = _known(first, last, grid)
    number = round(sum(seen.values()))
    rate = max(max(rates) * (1 + MARGIN), LEAST)
    if number < FEWEST_REQUESTS:
        if had is None or had.grid != grid:
            return NotMeasured(f"fewer than {FEWEST_REQUESTS} requests came in an hour")
        # Silence was measured; sizes were not.
        factor = rate / had.requests_per_second
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
    """Return the traffic to plan for: as it was, unless its sizes or bursts differ by more than chance; None: neither.

    Its rate stays (`pace` says when another is planned for). What was measured over other ranges of sizes is no use
    any more.
    """
    standing = had if had is not None and had.grid == grid else None
    if isinstance(found, NotMeasured) or standing is None:
        return standing if isinstance(found, NotMeasured) else found
    if _sizes_differ(standing, found) or _bursts_differ(standing, found):
        return at_rate(found, standing.requests_per_second)
    return standing


def at_rate(traffic: Traffic, requests_per_second: float, *, digits: int = _DIGITS_SCALED) -> Traffic:
    """Return the same sizes at another rate, by class to so many digits."""
    factor = requests_per_second / traffic.requests_per_second
    classes = tuple(
        replace(each, requests_per_second=_rounded(each.requests_per_second * factor, digits))
        for each in traffic.classes
    )
    return replace(traffic, classes=classes)


def windows(ledger: Ledger, now: datetime) -> Windows:
    """Return the whole windows of the last KEPT, each between the readings nearest before its ends."""
    return tuple(_windows(ledger.totals, now))


def _windows(totals: tuple[Totals, ...], now: datetime) -> Iterator[tuple[datetime, float]]:
    times = [each.at for each in totals]
    for number in range(KEPT // WINDOW):
        end = bisect_right(times, now - number * WINDOW) - 1
        start = bisect_right(times, now - (number + 1) * WINDOW) - 1
        if start < 0 or end <= start:
            return
        seconds = (times[end] - times[start]).total_seconds()
        middle = times[start] + (times[end] - times[start]) / 2
        yield middle, (totals[end].arrived - totals[start].arrived) / seconds


def _known(first: Totals, last: Totals, grid: SizeGrid) -> dict[Bucket, float]:
    """Return requests per class, those of another grid left out."""
    inputs, outputs = _places(grid)
    return {
        Bucket(inputs[size[0]], outputs[size[1]]): came
        for size, number in last.requests.items()
        if size[0] in inputs and size[1] in outputs and (came := number - first.requests.get(size, 0.0)) > 0
    }


def _made(first: Totals, last: Totals, grid: SizeGrid, bucket: Bucket) -> dict[int, float]:
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
    believed = Class(bucket, 1.0, tuple((output, part / whole) for output, part in own.items() if part))
    came: defaultdict[int, float] = defaultdict(float)
    for output, number in made.items():
        came[min(output, bucket.output)] += number
    parts = dict(learned(believed, came, weight=_PRIOR_WEIGHT).outputs)
    return tuple(round(_PARTS * parts.get(output, 0.0)) for output in range(len(grid.output_edges)))


def _bursts(first: Totals, last: Totals) -> Iterator[tuple[int, float]]:
    seconds = (last.at - first.at).total_seconds()
    for length in WINDOWS_S:
        by_chance = last.chance.get(length, 0.0) - first.chance.get(length, 0.0)
        if by_chance > 0 and seconds >= FEWEST_WINDOWS * length:
            beyond = last.excess.get(length, 0.0) - first.excess.get(length, 0.0)
            yield length, _rounded(max(1.0, 1 + beyond / by_chance))


def _sizes_differ(had: Traffic, found: Traffic) -> bool:
    """Say whether over a tenth of the requests is of other sizes, more than two samples of one source would differ."""
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


def _rounded(value: float, digits: int = _DIGITS) -> float:
    return float(f"{value:.{digits}g}")
