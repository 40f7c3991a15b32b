"""What routers counted since somebody listened: readings of their totals, put together over routers that come and go.

Called by `handlers/routers.py` once a pass; read by `traffic.measured`. Pure. It may be lost at any time (a new leader
begins with an empty one): what outlives it is in the service's status.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from medley.core.traffic import Arrivals, Counts

KEPT = timedelta(hours=1)
_APART = timedelta(seconds=45)  # readings nearer to each other are not both kept


@dataclass(frozen=True, slots=True)
class Totals:
    """What came since the ledger began, over all routers."""

    at: datetime
    requests: Mapping[tuple[int, int], float] = field(default_factory=dict)
    outputs: Mapping[tuple[int, int, int], float] = field(default_factory=dict)
    turned_away: float = 0.0
    excess: Mapping[int, float] = field(default_factory=dict)  # of squared differences over chance, by window
    chance: Mapping[int, float] = field(default_factory=dict)  # what the excess is measured in

    @property
    def arrived(self) -> float:
        """Requests of all sizes, those that were turned away included."""
        return math.fsum(self.requests.values()) + self.turned_away


@dataclass(frozen=True, slots=True)
class Ledger:
    """Totals at the readings of the last KEPT, and what every router said last."""

    last: Mapping[str, Counts] = field(default_factory=dict)
    totals: tuple[Totals, ...] = ()  # oldest first


def read(ledger: Ledger, said: Mapping[str, Counts], now: datetime) -> Ledger:
    """Return the ledger with what routers say now, by their identity; none that answered: nothing is known of now.

    A router that was not heard before only counts from now on: nobody knows when it counted what it has. One whose
    counts fell began anew.
    """
    if not said:
        return ledger
    last = {**ledger.last, **said}
    before = ledger.totals[-1] if ledger.totals else Totals(now)
    if ledger.totals and now <= before.at:
        return ledger
    grown = [_grown(ledger.last[name], counts) for name, counts in said.items() if name in ledger.last]
    totals = _added(before, grown, len(said), now)
    kept = [each for each in ledger.totals if each.at > now - KEPT]
    # The last is replaced while it is near the one before it.
    if len(kept) > 1 and kept[-1].at - kept[-2].at < _APART:
        kept.pop()
    return Ledger(last, (*kept, totals))


def forgotten(ledger: Ledger, routers: frozenset[str]) -> Ledger:
    """Return the ledger without routers that are no more."""
    return replace(ledger, last={name: counts for name, counts in ledger.last.items() if name in routers})


def _grown(before: Counts, after: Counts) -> Counts:
    """Return what a router counted between two readings."""
    nothing = Arrivals(0.0, 0.0)
    restarted = (
        math.fsum(after.requests.values()) < math.fsum(before.requests.values())
        or after.turned_away < before.turned_away
        or any(total.requests < before.arrivals.get(w, nothing).requests for w, total in after.arrivals.items())
    )
    old = Counts() if restarted else before
    return Counts(
        {size: number - old.requests.get(size, 0.0) for size, number in after.requests.items()},
        {size: number - old.outputs.get(size, 0.0) for size, number in after.outputs.items()},
        after.turned_away - old.turned_away,
        {
            length: Arrivals(
                total.requests - old.arrivals.get(length, nothing).requests,
                total.squares - old.arrivals.get(length, nothing).squares,
            )
            for length, total in after.arrivals.items()
        },
    )


def _added(before: Totals, grown: Iterable[Counts], routers: int, now: datetime) -> Totals:
    """Return totals with what came.

    Of n routers each sees a part of the requests, drawn as by chance: what a service's dispersion D has beyond 1, a
    router's has a part of, D_r - 1 = (D - 1) / n. So D = 1 + sum (squares - 2 requests) / sum (2 requests / n). Clients
    that stay with their router make that too large, never too small.
    """
    requests, outputs = defaultdict(float, before.requests), defaultdict(float, before.outputs)
    excess, chance = defaultdict(float, before.excess), defaultdict(float, before.chance)
    for each in grown:
        for size, number in each.requests.items():
            requests[size] += number
        for made, number in each.outputs.items():
            outputs[made] += number
        for length, total in each.arrivals.items():
            excess[length] += total.squares - 2 * total.requests
            chance[length] += 2 * total.requests / routers
    turned_away = before.turned_away + math.fsum(each.turned_away for each in grown)
    return Totals(now, dict(requests), dict(outputs), turned_away, dict(excess), dict(chance))
