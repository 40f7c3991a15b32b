"""Services of 288 offerings x 100 arrival classes x 4 losses each that share the quotas of one account.

Synthetic (`_offerings`): one catalogue with its prices and quotas of spot GPUs, a demand of its own for each service.
Times are those of the clock; beside them the processors' time, which others on the machine do not lengthen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace

from bench._offerings import large
from bench.rows import Row
from medley.planning.commons import shared_caps
from medley.planning.joint import Joint, Sharer, together

SHAPES, ZONES = 36, 4
SERVICES = (1, 2, 5, 10)
RATE, MORE = 10.0, 4.0  # requests/s of the first service, and more of each after it
WANTED_GAP, WANTED_SECONDS = 0.01, 60.0


def measure() -> Iterator[Row]:
    """Yield gap and time by number of services."""
    for count in SERVICES:
        found, seconds, busy = solved(count)
        want = count == SERVICES[-1]
        about = f"{found.usd_per_hour:.2f} USD/h, bound {found.bound:.2f}, {len(found.prices)} quotas have a price"
        yield Row(
            f"joint/{count} services: gap",
            100 * found.gap,
            "%",
            "at most 1" if want else None,
            found.gap <= WANTED_GAP if want else None,
            about,
        )
        yield Row(
            f"joint/{count} services: time",
            seconds,
            "s",
            "below 60" if want else None,
            seconds < WANTED_SECONDS if want else None,
            f"{busy:.0f} s of processors' time",
        )


def solved(count: int) -> tuple[Joint, float, float]:
    """Return the plans of so many services, and how long that took: by the clock, and of the processors."""
    catalogue = large(SHAPES, ZONES, 1.0)
    problems = [
        replace(catalogue, demand=large(SHAPES, ZONES, RATE + MORE * number, seed=number).demand)
        for number in range(count)
    ]
    sharers = [Sharer(f"service-{number}", problem) for number, problem in enumerate(problems)]
    shared = shared_caps(problems)
    started, busy = time.monotonic(), time.process_time()
    found = together(sharers, shared, wanted_gap=WANTED_GAP)
    seconds, busy = time.monotonic() - started, time.process_time() - busy
    if not math.isfinite(found.gap):
        raise ValueError("services that can be met were not")
    return found, seconds, busy
