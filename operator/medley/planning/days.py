"""How a service's traffic usually goes over a day, learnt from what routers counted, and how often its fleet changed.

    days = remembered(had, ledger, now)                # the last half hour that is over, once
    usual = days.usual(now)                            # requests/s; None until every half hour of a day was seen

Called by `proposal`. It lives in the service's status, so it outlives the operator: 48 rates and five figures. A half
hour that nobody heard in full changes nothing: unknown is not zero. Days are those of UTC. Pure.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

from medley.planning.ledger import Ledger
from medley.planning.traffic import WINDOW

HALF_HOUR = timedelta(minutes=30)
HALF_HOURS = 48
# The mean of so many days, later ones counting as much as the earlier: a week.
_REMEMBERED = 7
_DIGITS = 4  # of rates: a mean of seven moves in steps of a seventh


@dataclass(frozen=True, slots=True)
class Days:
    """What is remembered: `rates` in requests/s by half hour from midnight UTC, None where none was seen.

    `spread`: standard deviation of five-minute windows, as a part of their mean. `seen`: half hours that this rests on.
    `until`: end of the last of them. `changes`: of the fleet, for the sake of the rate, on the day `on`.
    """

    rates: tuple[float | None, ...] = (None,) * HALF_HOURS
    spread: float = 0.0
    seen: int = 0
    until: datetime | None = None
    on: date | None = None
    changes: int = 0

    @property
    def complete(self) -> bool:
        """Whether every half hour of a day was seen."""
        return None not in self.rates

    def usual(self, at: datetime) -> float | None:
        """Return the usual rate at a moment, in requests/s, by straight lines between half hours."""
        known = [rate for rate in self.rates if rate is not None]
        if len(known) < HALF_HOURS:
            return None
        place = (at - midnight(at)) / HALF_HOUR - 0.5
        before = math.floor(place)
        part = place - before
        return known[before % HALF_HOURS] * (1 - part) + known[(before + 1) % HALF_HOURS] * part

    def changes_on(self, now: datetime) -> int:
        """Return how often the fleet changed today."""
        return self.changes if self.on == now.date() else 0

    def changed(self, now: datetime) -> Days:
        """Return the same after one more change."""
        return replace(self, on=now.date(), changes=self.changes_on(now) + 1)


def remembered(had: Days | None, ledger: Ledger, now: datetime) -> Days:
    """Return what is remembered once the last half hour that is over is part of it, if it was heard in full."""
    days = had or Days()
    last = midnight(now) + (now - midnight(now)) // HALF_HOUR * HALF_HOUR
    return _with(days, ledger, last) if days.until is None or last > days.until else days


def _with(days: Days, ledger: Ledger, end: datetime) -> Days:
    windows = tuple(_windows(ledger, end))
    if len(windows) < HALF_HOUR // WINDOW:
        return days
    rate = math.fsum(windows) / len(windows)
    place = int((end - HALF_HOUR - midnight(end - HALF_HOUR)) / HALF_HOUR)
    old = days.rates[place]
    weight = min(days.seen // HALF_HOURS + 1, _REMEMBERED)
    new = rate if old is None else old + (rate - old) / weight
    rates = (*days.rates[:place], _rounded(new), *days.rates[place + 1 :])
    # Of neighbours, so that the rise and fall of the day is no noise.
    steps = [(b - a) ** 2 / 2 for a, b in itertools.pairwise(windows)]
    variance = math.fsum(steps) / len(steps) / rate**2 if rate else days.spread**2
    mixed = days.spread**2 + (variance - days.spread**2) / min(days.seen + 1, HALF_HOURS * _REMEMBERED)
    return replace(days, rates=rates, spread=_rounded(math.sqrt(max(mixed, 0.0))), seen=days.seen + 1, until=end)


def _windows(ledger: Ledger, end: datetime) -> Iterator[float]:
    """Yield requests/s of the windows of the half hour that ends then, oldest first; none if it was not all heard."""
    times = [each.at for each in ledger.totals]
    edges = [end - HALF_HOUR + number * WINDOW for number in range(HALF_HOUR // WINDOW + 1)]
    read = [bisect_right(times, edge) - 1 for edge in edges]
    if not times or read[0] < 0 or any(edge - times[each] > WINDOW / 2 for each, edge in zip(read, edges, strict=True)):
        return
    for a, b in itertools.pairwise(read):
        seconds = (times[b] - times[a]).total_seconds()
        yield (ledger.totals[b].arrived - ledger.totals[a].arrived) / seconds


def midnight(at: datetime) -> datetime:
    """Return the begin of a moment's day."""
    return at.replace(hour=0, minute=0, second=0, microsecond=0)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
