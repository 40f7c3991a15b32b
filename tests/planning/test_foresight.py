"""A made-up day (synthetic: see medley.testing.days), decided minute by minute, beside the best schedule in hindsight."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.core.accelerators import Market
from medley.core.errors import InvalidInputError
from medley.core.service import SpotPolicy
from medley.planning.allocator import allocate
from medley.planning.changes import CHANGES_PER_DAY
from medley.planning.foresight import (
    Ladder,
    Rung,
    followed,
    hindsight,
    ladder,
    reacting,
)
from medley.planning.outlook import Course, Outlook, course, level
from medley.testing.allocation import LARGE, SMALL, key, offer, problem, rates
from medley.testing.days import at_night, azure_hour, day

WEEK = 7
WITHIN = 1.03
HOURS = 24 / 1440


@pytest.fixture(scope="module")
def fleets():
    return ladder(at_night(2.0), 0.85, 3.5)


def serves(fleets: Ladder, schedule, demand) -> bool:
    return all(fleets.rungs[rung].serves >= each for rung, each in zip(schedule.rungs, demand, strict=True))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_noisy_day_takes_at_most_twelve_changes_and_costs_little_more_than_in_hindsight(fleets, seed):
    week, today = [day(1000 * seed + number) for number in range(WEEK)], day(seed)
    best = hindsight(fleets, today, HOURS, most_changes=CHANGES_PER_DAY)
    found = followed(fleets, week, today, look=5)
    assert serves(fleets, best, today)
    assert serves(fleets, found, today)
    assert found.changes <= CHANGES_PER_DAY
    assert found.usd <= WITHIN * best.usd


@pytest.mark.data
def test_so_does_a_day_of_the_azure_hours_sizes(data):
    sizes = azure_hour(data / "requests" / "azure" / "AzureLLMInferenceTrace_conv.csv")
    fleets = ladder(at_night(2.0, sizes), 0.85, 3.5)
    week, today = [day(4000 + number) for number in range(WEEK)], day(4)
    found = followed(fleets, week, today, look=5)
    assert serves(fleets, found, today)
    assert found.changes <= CHANGES_PER_DAY
    assert found.usd <= WITHIN * hindsight(fleets, today, HOURS, most_changes=CHANGES_PER_DAY).usd


def test_a_first_day_is_served_without_flapping_at_a_price(fleets):
    today = day(5)
    found = followed(fleets, (), today, look=5)
    assert serves(fleets, found, today)
    assert found.changes <= CHANGES_PER_DAY
    assert found.usd <= 1.2 * hindsight(fleets, today, HOURS, most_changes=CHANGES_PER_DAY).usd


def test_noise_alone_changes_nothing_for_long(fleets):
    flat = day(6, ratio=1.0)
    assert followed(fleets, (), flat, look=5).changes == 0
    week = [day(6000 + number, ratio=1.0) for number in range(WEEK)]
    assert followed(fleets, week, flat, look=5).changes <= 1


def test_every_rung_is_the_cheapest_for_what_it_serves_and_no_more(fleets):
    for below, rung in itertools.pairwise(fleets.rungs):
        for demand in (below.serves * (1 + 1e-4), rung.serves * (1 - 1e-4)):
            found = allocate(at_night(2.0 * demand))
            assert math.isclose(found.usd_per_hour, rung.usd_per_hour), demand


def test_a_rung_serves_what_is_promised_after_a_loss_too():
    asked = problem(
        {SMALL: 1.0},
        [offer("l4", 0.4, Market.SPOT, zone) for zone in ("zone-a", "zone-b")],
        [rates("l4", {SMALL: 1.0})],
        spot=SpotPolicy(survive_zone_loss=0.5),
    )
    found = ladder(asked, 1.0, 4.0)
    for rung in found.rungs:
        in_zone = [count for _, count in rung.replicas]
        assert rung.serves == pytest.approx(min(sum(in_zone), 2 * (sum(in_zone) - max(in_zone))))


def test_launches_alone_cost():
    asked = problem({SMALL: 1.0}, [offer("l4", 1.2)], [rates("l4", {SMALL: 1.0})])
    found = ladder(asked, 1.0, 3.0)
    assert [rung.replicas for rung in found.rungs] == [((key("l4"), count),) for count in (1, 2, 3)]
    # Five minutes, the usual cold start, at 1.20 USD/h.
    np.testing.assert_allclose(found.change_usd, [[0, 0.1, 0.2], [0, 0, 0.1], [0, 0, 0]])


@pytest.mark.parametrize(("least", "most"), [(0.0, 1.0), (2.0, 1.0), (math.nan, 1.0)])
def test_absurd_demands_are_refused(least, most):
    with pytest.raises(InvalidInputError, match="demand"):
        ladder(at_night(1.0), least, most)


def test_what_cannot_be_served_is_refused():
    asked = problem({LARGE: 1.0}, [offer("l4", 1.0, at_most=1)], [rates("l4", {LARGE: 1.0})])
    assert [rung.serves for rung in ladder(asked, 0.5, 9.0).rungs] == pytest.approx([1.0])
    with pytest.raises(InvalidInputError, match="cannot be served"):
        ladder(asked, 2.0, 9.0)


def of_prices(*steps: tuple[float, float]) -> Ladder:
    """Return a ladder of (serves, price) with launches at a tenth of the difference in price."""
    rungs = tuple(Rung(((key("l4"), number),), price, serves) for number, (serves, price) in enumerate(steps))
    moves = [[max(b.usd_per_hour - a.usd_per_hour, 0) / 10 for b in rungs] for a in rungs]
    return Ladder(rungs, np.array(moves))


SMALL_LADDER = of_prices((1, 1.0), (2, 1.8), (3, 3.0))


@settings(max_examples=40)
@given(st.lists(st.floats(0.1, 3.0), min_size=2, max_size=6), st.integers(0, 3))
def test_hindsight_is_the_best_of_all_schedules(demand, most_changes):
    costs = []
    for rungs in itertools.product(range(3), repeat=len(demand)):
        moves = list(itertools.pairwise(rungs))
        if sum(a != b for a, b in moves) <= most_changes and all(
            SMALL_LADDER.rungs[rung].serves >= each for rung, each in zip(rungs, demand, strict=True)
        ):
            fleets = sum(SMALL_LADDER.rungs[rung].usd_per_hour for rung in rungs)
            costs.append(fleets + sum(SMALL_LADDER.change_usd[a, b] for a, b in moves))
    found = hindsight(SMALL_LADDER, demand, 1.0, most_changes=most_changes)
    assert math.isclose(found.usd, min(costs))
    assert found.changes <= most_changes


@settings(max_examples=40)
@given(st.lists(st.floats(0.1, 3.0), min_size=1, max_size=5), st.integers(0, 2), st.floats(0, 2))
def test_the_next_rung_begins_the_cheapest_schedule(ahead, standing, change_usd):
    """Without noise, and with a change for every step, the outlook is that of a day that is known."""

    def cost(rungs):
        path = (standing, *rungs)
        moves = [(a, b) for a, b in itertools.pairwise(path) if a != b]
        if any(SMALL_LADDER.rungs[rung].serves < each for rung, each in zip(rungs, ahead, strict=True)):
            return math.inf
        return sum(SMALL_LADDER.rungs[rung].usd_per_hour for rung in rungs) + sum(
            SMALL_LADDER.change_usd[a, b] + change_usd for a, b in moves
        )

    schedules = {rungs: cost(rungs) for rungs in itertools.product(range(3), repeat=len(ahead))}
    known = Course(np.array(ahead), np.ones(1))
    outlook = Outlook(SMALL_LADDER, known, 1.0, len(ahead), np.full(3, change_usd))
    first = outlook.best(0, ahead[0], standing, len(ahead))
    best = min(schedules.values())
    assert math.isclose(min(usd for rungs, usd in schedules.items() if rungs[0] == first), best, abs_tol=1e-9)
    assert math.isclose(outlook.expected(0, standing, len(ahead)), best, abs_tol=1e-9)


def test_what_a_step_costs_is_the_mean_over_what_may_come():
    """One step, either 1 or 3 times the usual, from the lowest rung: it stays, or it has to go to the highest."""
    low, high = SMALL_LADDER.rungs[0], SMALL_LADDER.rungs[2]
    outlook = Outlook(SMALL_LADDER, Course(np.ones(1), np.array([1.0, 3.0])), 1.0, 1, np.zeros(3))
    change = float(SMALL_LADDER.change_usd[0, 2])
    assert outlook.expected(0, 0, 1) == pytest.approx((low.usd_per_hour + high.usd_per_hour + change) / 2)


def test_a_day_costs_less_the_more_changes_are_left():
    usual = Course(np.array([1, 3, 1, 3, 1, 2, 1.0, 3.0]) / 1.1, np.array([0.9, 1.0, 1.1]))
    outlook = Outlook(SMALL_LADDER, usual, 1.0, 9, np.zeros(3))
    costs = [outlook.expected(0, 0, left) for left in range(10)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] - costs[1] > sum(rung.usd_per_hour for rung in SMALL_LADDER.rungs)


def test_the_course_of_a_day_is_told_from_its_noise():
    usual = course([day(7000 + number) for number in range(WEEK)])
    np.testing.assert_allclose(usual.mean, day(0, noise=0.0), rtol=0.02)
    assert 0.88 < usual.noise[0] < 0.91
    assert 1.09 < usual.noise[-1] < 1.12


def test_a_day_that_is_busier_than_usual_is_expected_to_stay_so():
    usual = course([day(7000 + number) for number in range(WEEK)])
    assert level(usual, day(7)[:300]) == 1.0
    assert level(usual, [1.5 * each for each in day(7)[:300]]) == pytest.approx(1.5, rel=0.02)


def test_without_a_day_before_a_fleet_is_left_only_where_that_pays():
    assert reacting(SMALL_LADDER, [1.5], 1, 1440) == 1
    assert reacting(SMALL_LADDER, [2.1], 1, 1440) == 2
    assert reacting(SMALL_LADDER, [0.5], 2, 1440) == 0
    assert reacting(SMALL_LADDER, [0.5], 0, 1440) == 0
