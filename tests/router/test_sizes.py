"""How much a request is expected to make."""

from __future__ import annotations

from medley.core.workload import Bucket
from medley.router.sizes import ASSUMED_TOKENS, Sizes

SHORT, LONG = Bucket(0, 0), Bucket(1, 1)


def test_a_class_is_expected_to_make_what_it_made():
    sizes = Sizes(clock=lambda: 0.0)
    assert sizes.expected(SHORT, 1000) == ASSUMED_TOKENS
    for _ in range(10):
        sizes.made(SHORT, 20)
        sizes.made(LONG, 400)
    assert (sizes.expected(SHORT, 1000), sizes.expected(LONG, 1000), sizes.expected(LONG, 100)) == (20, 400, 100)
    assert sizes.expected(Bucket(5, 5), 1000) == 210  # of a class that was not seen: as all


def test_an_old_habit_is_forgotten():
    sizes = Sizes(clock=lambda: 0.0)
    for made in [20] * 500 + [400] * 500:
        sizes.made(SHORT, made)
    assert sizes.expected(SHORT, 1000) > 399


def test_a_minute_is_counted():
    now = 0.0
    sizes = Sizes(clock=lambda: now)
    for _ in range(600):
        now += 0.5
        count = sizes.arrived(SHORT)
    assert 100 < count < 130
    now += 3600
    assert sizes.arrived(SHORT) == 1
