"""A made-up day (synthetic: the Azure hour's sizes, a 3:1 curve, +-10 % noise a minute) beside the best in hindsight.

The policy sees a week of such days, and then each minute of this one as it comes; a first day sees none before it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence

from bench.rows import Row
from medley.planning.changes import CHANGES_PER_DAY
from medley.planning.foresight import Ladder, Schedule, followed, hindsight, ladder
from medley.testing.days import MINUTES, at_night, day

SEEDS = range(1, 9)
WEEK = 7
LEAST, MOST = 0.85, 3.5
REQUESTS_PER_SECOND = 4.0
LOOK = 5
WANTED = 1.03


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


def _week(seed: int) -> list[list[float]]:
    return [day(1000 * seed + number) for number in range(WEEK)]


def _missed(fleets: Ladder, schedule: Schedule, demand: Sequence[float]) -> int:
    return sum(fleets.rungs[rung].serves < each for rung, each in zip(schedule.rungs, demand, strict=True))
