"""The rate that is planned for over a day: what is needed, what is foreseen, and how often the fleet changes for it."""

from dataclasses import replace
from datetime import timedelta

import pytest

from medley.core.traffic import Counts
from medley.kube.workload_status import days_in, workload_status
from medley.planning import pace
from medley.planning.changes import CHANGES_PER_DAY
from medley.planning.days import HALF_HOURS, Days, remembered
from medley.planning.fleet import Standing
from medley.planning.foresight import hindsight, ladder
from medley.planning.ledger import Ledger, read
from medley.planning.traffic import NotMeasured
from medley.testing.days import MINUTES, day
from medley.testing.operated import MIDNIGHT, MINUTE, by_night, learnt, operated, paid

NIGHT = 4.0
HOUR = 60
FLAT = Days((10.0,) * HALF_HOURS, spread=0.03, seen=HALF_HOURS, until=MIDNIGHT)


def heard(minutes, rate=10.0, begun=MIDNIGHT):
    """Return a ledger of a reading a minute."""
    ledger = Ledger()
    for minute in range(minutes + 1):
        ledger = read(ledger, {"r": Counts({(100, 200): rate * 60 * minute})}, begun + minute * MINUTE)
    return ledger


def windows(*rates, now=MIDNIGHT):
    """Return windows of five minutes, the latest first."""
    return tuple((now - (number + 0.5) * 5 * MINUTE, rate) for number, rate in enumerate(rates))


def test_the_operator_changes_a_noisy_day_s_fleet_at_most_twelve_times_at_little_more_than_hindsight_pays():
    """The whole path, a pass every ten minutes, and another leader from noon on: only the status outlives the first."""
    week, today = [day(1000 + number) for number in range(7)], day(1)
    known = learnt(week, NIGHT, MIDNIGHT, seed=1)
    warm, standing = operated([NIGHT * each for each in week[-1][-HOUR:]], MIDNIGHT - HOUR * MINUTE, Standing(days=known), seed=2)  # fmt: skip
    half = MINUTES // 2
    morning, at_noon = operated([NIGHT * each for each in today[:half]], MIDNIGHT, standing, seed=3, every=10)
    evening, _ = operated([NIGHT * each for each in today[half:]], MIDNIGHT + half * MINUTE, at_noon, seed=4, every=10)
    problem = by_night(NIGHT)
    best = hindsight(ladder(problem, 0.85, 3.5), today, 24 / MINUTES, most_changes=CHANGES_PER_DAY)
    found = paid(problem, (*morning, *evening), today, warm[-1])
    assert found.changes <= CHANGES_PER_DAY
    assert found.usd <= 1.03 * best.usd
    assert found.five_minutes_above == 0


def test_a_first_day_changes_the_fleet_no_more_often():
    today = day(5)
    fleets, standing = operated([NIGHT * each for each in today], MIDNIGHT, Standing(), seed=5, every=10)
    found = paid(by_night(NIGHT), fleets[HOUR:], today[HOUR:], fleets[HOUR - 1])
    assert found.changes <= CHANGES_PER_DAY
    assert standing.days.changes_on(MIDNIGHT) <= CHANGES_PER_DAY


class TestDays:
    """What is remembered of days."""

    def test_a_half_hour_counts_once_it_was_heard_in_full(self):
        first = remembered(None, heard(31), MIDNIGHT + 31 * MINUTE)
        assert first == Days((10.0, *[None] * 47), 0.0, 1, MIDNIGHT + 30 * MINUTE)
        assert remembered(first, heard(59), MIDNIGHT + 59 * MINUTE) == first
        second = remembered(first, heard(60), MIDNIGHT + 60 * MINUTE)
        assert second == Days((10.0, 10.0, *[None] * 46), 0.0, 2, MIDNIGHT + 60 * MINUTE)
        late = heard(20, begun=MIDNIGHT + 15 * MINUTE)
        assert remembered(None, late, MIDNIGHT + 35 * MINUTE) == Days()

    def test_later_days_move_the_mean_by_a_seventh(self):
        old = replace(FLAT, seen=100 * HALF_HOURS, until=MIDNIGHT)
        found = remembered(old, heard(30, rate=17.0), MIDNIGHT + 30 * MINUTE)
        assert (found.rates[0], found.rates[1:]) == (11.0, old.rates[1:])

    def test_nothing_is_usual_until_a_whole_day_was_seen(self):
        assert replace(FLAT, rates=(None, *FLAT.rates[1:])).usual(MIDNIGHT) is None
        rising = replace(FLAT, rates=tuple(map(float, range(HALF_HOURS))))
        assert rising.usual(MIDNIGHT + timedelta(hours=10)) == pytest.approx(19.5)

    def test_the_status_keeps_them(self):
        some = Days((None, 0.0, *[12.34] * 46), 0.0321, 47, MIDNIGHT, MIDNIGHT.date(), 3)
        assert days_in(workload_status(NotMeasured("a new leader"), some)) == some
        assert workload_status(NotMeasured("nobody came"), Days()) is None

    def test_changes_are_those_of_the_day(self):
        twice = FLAT.changed(MIDNIGHT).changed(MIDNIGHT + timedelta(hours=23))
        assert [twice.changes_on(MIDNIGHT), twice.changes_on(MIDNIGHT + timedelta(days=1))] == [2, 0]
        assert twice.changed(MIDNIGHT + timedelta(days=1)).changes == 1


class TestNeeded:
    """What the promise needs now."""

    RISING = replace(FLAT, rates=tuple(10.0 + number for number in range(HALF_HOURS)))
    NOON = MIDNIGHT + timedelta(hours=12)

    def test_the_busiest_of_half_an_hour_where_no_day_is_known(self):
        assert pace.needed(windows(8, 9, 8, 8, 8, 8, 99), Days(), MIDNIGHT) == pytest.approx(1.05 * 9)

    def test_what_it_usually_grows_by_until_a_launch_serves(self):
        # 33.5 at noon, a third of a requests/s more in ten minutes, a twelfth less in the middle of the last window.
        growth = (33.5 + 1 / 3) / (33.5 - 1 / 12)
        assert pace.needed(windows(20, now=self.NOON), self.RISING, self.NOON) == pytest.approx(1.02 * 20 * growth)

    def test_never_less_than_what_came_last(self):
        cliff = replace(FLAT, rates=(100.0,) * 24 + (10.0,) * 24)
        late = windows(60, 50, now=self.NOON)
        # Usually it falls from 62.5 to 55 within these minutes.
        assert pace.needed(late, cliff, self.NOON) == pytest.approx(1.02 * 60 * 55 / 62.5)
        assert pace.needed(late, cliff, self.NOON, 60.0) == 60

    def test_a_usual_rise_is_believed_up_to_half(self):
        cliff = replace(FLAT, rates=(0.01,) * 24 + (10.0,) * 24)
        assert pace.needed(windows(2, now=self.NOON), cliff, self.NOON) <= 1.02 * 1.5 * 2


class TestCautious:
    """Where no whole day is known."""

    @pytest.mark.parametrize(
        ("rates", "planned", "chosen"),
        [
            pytest.param([10.0] * 6, 10.5, 10.5, id="as planned"),
            pytest.param([10.4] * 6, 10.5, 10.5, id="less than is planned for, though not by the margin"),
            pytest.param([12.0] * 6, 10.5, 1.05 * 12 * 3**0.2, id="more: with a quarter to spare"),
            pytest.param([10.0] * 6, 16.0, 16.0, id="less, by hardly more than that"),
            pytest.param([10.0] * 6, 25.0, 1.1**27, id="far less"),
            pytest.param([10.0] * 5, 25.0, 25.0, id="far less, for less than half an hour"),
        ],
    )
    def test_the_rate(self, rates, planned, chosen):
        least = pace.needed(windows(*rates), Days(), MIDNIGHT)
        assert pace.cautious(windows(*rates), planned, least, 1.0) == pytest.approx(chosen)

    def test_chance_changes_nothing(self):
        # 0.1 requests/s: 30 in five minutes, plus or minus 5.
        assert pace.cautious(windows(0.14, *[0.1] * 5), 0.105, 1.05 * 0.14, 1.0) == 0.105
        # In bursts of ten as many again are no news.
        assert pace.cautious(windows(0.2, *[0.1] * 5), 0.105, 1.05 * 0.2, 10.0) == 0.105
