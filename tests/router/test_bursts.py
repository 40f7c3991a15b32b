"""Counters of arrivals in windows, against counting them by hand and against Allan's factor of the same times."""

from __future__ import annotations

import random
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.core.traffic import WINDOWS_S, Arrivals
from medley.planning.burstiness import dispersion
from medley.router.bursts import Windows


def counted(times, until, start=1000.0):
    now = start
    windows = Windows(lambda: now)
    for each in sorted(times):
        now = start + each
        windows.count()
    now = start + until
    return windows.totals()


def by_hand(times, length, until):
    counts = [0] * int(until / length)
    for each in times:
        if int(each / length) < len(counts):
            counts[int(each / length)] += 1
    pairs = list(pairwise(counts))
    return Arrivals(sum(b for _, b in pairs), sum((b - a) ** 2 for a, b in pairs))


@given(st.lists(st.integers(0, 20_000), max_size=200), st.integers(0, 1000))
def test_windows_hold_what_came_in_them(quarters, later):
    times = [each / 16 for each in quarters]  # exact in binary, edges of windows included
    until = max(times, default=0.0) + later
    assert counted(times, until) == {length: by_hand(times, length, until) for length in WINDOWS_S}


def test_what_they_say_is_allan_s_factor():
    chance = random.Random(5)
    # Every arrival brings four at once: four times as bursty as by chance, at all lengths.
    times = [each for each in accumulate(chance.expovariate(2.0) for _ in range(6000)) for _ in range(4)]
    for length, total in counted(times, times[-1]).items():
        found = total.squares / (2 * total.requests)
        assert found == pytest.approx(dispersion([0.0, *times], length), rel=0.1)
        assert 2.0 < found < 6.0


def test_a_gap_is_one_fall():
    assert counted([0.5, 0.6, 1.5, 100.5], 102.0)[1] == Arrivals(1 + 1, (1 - 2) ** 2 + 1**2 + 1**2 + 1**2)
