"""What a change costs, and which plans are worth it."""

from dataclasses import replace
from datetime import timedelta

import pytest

from medley.planning.allocator import allocate
from medley.planning.changes import CHANGES_PER_DAY, HORIZON, in_the_objective, launch_usd, launches_usd, pays
from medley.planning.problem import Allocation
from medley.testing.allocation import SMALL, key, offer, problem, rates


def fleet(name: str, count: int, usd_per_hour: float) -> Allocation:
    return Allocation(((key(name), count),), (), usd_per_hour, 0.0)


def test_a_plan_stands_two_hours_of_twelve_changes_a_day():
    assert (12, timedelta(hours=2)) == (CHANGES_PER_DAY, HORIZON)


def test_a_launch_costs_its_cold_start():
    asked = offer("l4", 1.2)
    assert launch_usd(asked) == pytest.approx(0.1)  # five minutes where it is not known
    assert launch_usd(replace(asked, cold_start=timedelta(minutes=30))) == pytest.approx(0.6)
    assert in_the_objective([asked]) == ((key("l4"), pytest.approx(0.05)),)


def test_only_launches_cost():
    cost = {key("l4"): 0.1, key("h100"): 1.0}
    assert launches_usd({key("l4"): 3}, [(key("l4"), 2)], cost) == 0
    assert launches_usd({key("l4"): 1}, [(key("l4"), 3), (key("h100"), 1)], cost) == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("saved", "launches", "worth"),
    [
        # Ten minutes of a fleet of 12 USD/h are 2 USD; a saving counts for two hours.
        pytest.param(0.99, 0.0, False, id="less than the disturbance"),
        pytest.param(1.01, 0.0, True, id="more than the disturbance"),
        pytest.param(1.4, 1.0, False, id="less than disturbance and launches"),
        pytest.param(1.6, 1.0, True, id="more than both"),
        pytest.param(-1.0, 0.0, False, id="dearer"),
        pytest.param(0.9, -1.0, True, id="launches that it spares count for it"),
    ],
)
def test_a_change_must_pay_for_itself_within_the_horizon(saved, launches, worth):
    assert pays(fleet("l4", 12, 12.0), fleet("h100", 1, 12.0 - saved), launches, saved) is worth


def test_other_shares_of_the_same_replicas_are_no_change():
    assert pays(fleet("l4", 2, 2.0), fleet("l4", 2, 2.0), 0.0, 0.0)


def test_the_allocator_counts_launches():
    able = [rates(name, {SMALL: 1.0}) for name in ("a", "b")]
    offers = [offer("a", 1.00), offer("b", 0.97)]
    fleet_of_a = ((key("a"), 2),)
    asked = replace(problem({SMALL: 2.0}, offers, able, fleet=fleet_of_a), change_usd=in_the_objective(offers))
    # 3 cents an hour are less than a twenty-fourth of the price, the five minutes over two hours.
    assert allocate(asked).replicas == fleet_of_a
    cheaper = [offer("a", 1.00), offer("b", 0.95)]
    assert allocate(replace(asked, offerings=tuple(cheaper), change_usd=in_the_objective(cheaper))).replicas == (
        (key("b"), 2),
    )
