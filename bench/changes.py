"""A made-up day (synthetic: the Azure hour's sizes, a 3:1 curve, +-10 % noise a minute) beside the best in hindsight.

The policy sees a week of such days, and then each minute of this one as it comes; a first day sees none before it.
`changes/operator` is the operator's whole decision: routers' counts, what the status remembers, a pass every
minute, and launches that take five.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence

from bench.rows import Row
from medley.planning.changes import CHANGES_PER_DAY
from medley.planning.fleet import Standing
from medley.planning.foresight import Ladder, Schedule, followed, hindsight, ladder
from medley.planning.problem import AllocationProblem
from medley.testing.days import MINUTES, RATIO, at_night, day
from medley.testing.operated import MIDNIGHT, MINUTE, Paid, by_night, learnt, operated, paid

SEEDS = range(1, 9)
WEEK = 7
LEAST, MOST = 0.85, 3.5
REQUESTS_PER_SECOND = 4.0
LOOK = 5
WANTED = 1.03
# Of the operator: requests/s in the busiest minutes, and fewer days, since each is hundreds of passes.
AT_NOON = (12.0, 40.0)
FEW = (1, 2)
WARM = 60  # minutes of the evening before, which a new leader needs to have measured


def measure() -> Iterator[Row]:
    """Yield changes and cost of days decided as they come."""
    started = time.process_time()
    fleets = ladder(at_night(REQUESTS_PER_SECOND), LEAST, MOST)
    built = time.process_time() - started
    days = {seed: day(seed) for seed in SEEDS}
    best = {seed: hindsight(fleets, each, 24 / MINUTES, most_changes=CHANGES_PER_DAY) for seed, each in days.items()}
    started = time.process_time()
    known = {seed: followed(fleets, _week(seed), each, look=LOOK) for seed, each in days.items()}
    seconds = time.process_time() - started
    first = {seed: followed(fleets, (), each, look=LOOK) for seed, each in days.items()}
    most = max(each.changes for each in known.values())
    worst = max(known[seed].usd / best[seed].usd for seed in SEEDS)
    about = f"{len(days)} synthetic days, {len(fleets.rungs)} fleets"
    yield Row("changes/a day, most", most, "changes", "at most 12", most <= CHANGES_PER_DAY, about)
    yield Row("changes/cost against hindsight, worst", worst, "x", "at most 1.03", worst <= WANTED, about)
    yield Row("changes/first day: most", max(each.changes for each in first.values()), "changes", peer=about)
    yield Row(
        "changes/first day: cost against hindsight, mean",
        statistics.mean(first[seed].usd / best[seed].usd for seed in SEEDS),
        "x",
        peer="no day before is known",
    )
    yield Row("changes/steps not served", sum(_missed(fleets, known[s], days[s]) for s in SEEDS), "minutes", peer=about)
    yield Row("changes/time to find all fleets", built, "s", peer="CPU time, one solve each")
    yield Row("changes/time to decide", 1e3 * seconds / len(days) / (MINUTES / LOOK), "ms", peer="per look, CPU time")
    for rate in AT_NOON:
        yield from _operated(rate)


def _operated(at_noon: float) -> Iterator[Row]:
    """Yield what the operator makes of days, a week of which it has seen, and of a first one."""
    night = at_noon / RATIO
    asked = by_night(night)
    fleets = ladder(asked, LEAST, MOST)
    started = time.process_time()
    days = {seed: day(seed) for seed in FEW}
    best = {
        seed: hindsight(fleets, each, 24 / MINUTES, most_changes=CHANGES_PER_DAY).usd for seed, each in days.items()
    }
    found = {seed: _lived(asked, night, seed, _week(seed)) for seed in FEW}
    first = _lived(asked, night, FEW[0], ())
    seconds = time.process_time() - started
    name, about = f"changes/operator at {at_noon:g} requests/s", f"{len(FEW)} synthetic days, after a week of such"
    most = max(each.changes for each in found.values())
    worst = max(found[seed].usd / best[seed] for seed in FEW)
    yield Row(f"{name}: most", most, "changes", "at most 12", most <= CHANGES_PER_DAY, about)
    yield Row(f"{name}: cost against hindsight, worst", worst, "x", "at most 1.03", worst <= WANTED, about)
    above = max(each.minutes_above for each in found.values())
    yield Row(f"{name}: minutes above planned load, most", above, "minutes", peer="of 1,440, each by its own rate")
    above = max(each.five_minutes_above for each in found.values())
    yield Row(f"{name}: the same by five-minute means", above, "minutes", peer=about)
    yield Row(f"{name}: first day", first.changes, "changes", "at most 12", first.changes <= CHANGES_PER_DAY)
    yield Row(f"{name}: first day, cost against hindsight", first.usd / best[FEW[0]], "x", peer="no day is known")
    yield Row(f"{name}: first day, above by five-minute means", first.five_minutes_above, "minutes", peer="of 1,440")
    yield Row(f"{name}: time", seconds / (len(FEW) + 1), "s", peer="per day, CPU time")


def _lived(asked: AllocationProblem, night: float, seed: int, week: Sequence[Sequence[float]]) -> Paid:
    evening = [night * each for each in (week[-1] if week else day(seed + 1))[-WARM:]]
    known = Standing(days=learnt(week, night, MIDNIGHT, seed=seed)) if week else Standing()
    today = day(seed)
    fleets, _ = operated(
        [*evening, *(night * each for each in today)], MIDNIGHT - WARM * MINUTE, known, seed=seed, every=1
    )
    return paid(asked, fleets[WARM:], today, fleets[WARM - 1])


def _week(seed: int) -> list[list[float]]:
    return [day(1000 * seed + number) for number in range(WEEK)]


def _missed(fleets: Ladder, schedule: Schedule, demand: Sequence[float]) -> int:
    return sum(fleets.rungs[rung].serves < each for rung, each in zip(schedule.rungs, demand, strict=True))
