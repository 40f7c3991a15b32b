"""Beyond 60 offerings: a plan proven to be near enough, the same each time, that keeps every bound."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from bench._offerings import large
from medley.core.accelerators import Market
from medley.planning.allocator import allocate, extended, reallocate
from medley.planning.problem import NEAR, Allocation
from tests.planning.test_terms import serves

ASKED = large(9, 4, 20.0)  # 72 offerings, 100 arrival classes, 4 losses


@pytest.fixture(scope="module")
def found():
    return reallocate(ASKED)


def test_the_plan_is_near_enough_and_keeps_every_bound(found):
    plan, _ = found
    assert isinstance(plan, Allocation)
    assert 0 <= plan.gap <= NEAR
    assert plan.bound <= plan.objective <= plan.bound / (1 - NEAR)
    fleet = dict(plan.replicas)
    total = plan.total_replicas
    assert total - plan.spot_replicas >= math.ceil(0.2 * total - 1e-9)
    assert all(sum(use * fleet.get(key, 0) for key, use in cap.uses) <= cap.at_most for cap in ASKED.all_caps)
    assert serves(ASKED, fleet, 1.0)
    assert [part for _, part in ASKED.losses] == [0.8] * 4
    assert all(serves(ASKED, fleet, part, lost) for lost, part in ASKED.losses)


def test_the_same_question_has_the_same_answer(found):
    assert allocate(replace(ASKED)) == found[0]


def test_after_a_loss_what_is_left_is_kept(found):
    plan, learnt = found
    lost = max((each for each in plan.replicas if each[0].market is Market.SPOT), key=lambda each: each[1])[0]
    left = replace(
        ASKED,
        offerings=tuple(o for o in ASKED.offerings if o.key != lost),
        fleet=tuple(each for each in plan.replicas if each[0] != lost),
    )
    kept, anew = extended(left, learnt), allocate(left)
    assert isinstance(anew, Allocation)
    assert kept is not None
    assert all(kept.of(key) >= count for key, count in left.fleet)
    assert all(serves(left, dict(kept.replicas), part, each) for each, part in ((None, 1.0), *left.losses))
    assert kept.bound <= anew.objective <= kept.objective * (1 + NEAR)
