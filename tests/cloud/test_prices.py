"""Prices and the catalogue: which offers a price is of, which of several counts, and which are old."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.cloud.prices import Price, applied, stale
from medley.core.accelerators import ExistingNodes, Market, NodeOffer
from medley.testing.builders import accelerator_class

NOW = datetime(2026, 11, 20, tzinfo=UTC)


def price(usd: float, **changes):
    return Price(**{"market": Market.SPOT, "usd_per_node_hour": usd, "known_at": NOW, "source": "a file", **changes})


def offers(*sources, **changes):
    """Return what the builder's l4 costs per market and zone under these prices; in the catalogue 1.0 and 0.4."""
    (each,) = applied([accelerator_class(**changes)], sources).classes
    return {(offer.market.value, offer.zone): offer.usd_per_node_hour for offer in each.offers}


CATALOGUE = {("on-demand", "a"): 1.0, ("on-demand", "b"): 1.0, ("spot", "a"): 0.4, ("spot", "b"): 0.4}


@pytest.mark.parametrize(
    ("prices", "changed"),
    [
        pytest.param([price(0.3, accelerator_class="l4", zone="a")], {("spot", "a"): 0.3}, id="class and zone"),
        pytest.param([price(0.3, accelerator_class="l4")], {("spot", "a"): 0.3, ("spot", "b"): 0.3}, id="anywhere"),
        pytest.param([price(0.3, instance_type="l4.large", zone="b")], {("spot", "b"): 0.3}, id="instance type"),
        pytest.param([price(0.3, instance_type="p5.4xlarge")], {}, id="another instance type"),
        pytest.param([price(0.3, accelerator_class="h100")], {}, id="another class"),
        pytest.param([price(0.3, accelerator_class="l4", zone="c")], {}, id="a zone that is not offered"),
        pytest.param([price(0.3, accelerator_class="l4", market=Market.RESERVED)], {}, id="a market that is not"),
        pytest.param(
            [price(0.3, instance_type="l4.large", zone="a"), price(0.2, instance_type="l4.xlarge", zone="a")],
            {("spot", "a"): 0.2},
            id="the cheapest instance type",
        ),
        pytest.param(
            [price(0.3, accelerator_class="l4", zone="a"), price(0.2, accelerator_class="l4")],
            {("spot", "a"): 0.3, ("spot", "b"): 0.2},
            id="a zone's own price before one for anywhere",
        ),
        pytest.param(
            [price(0.3, accelerator_class="l4"), price(0.2, instance_type="l4.large", zone="a")],
            {("spot", "a"): 0.3, ("spot", "b"): 0.3},
            id="a class's own price before an instance type's",
        ),
    ],
)
def test_which_offers_a_price_is_of(prices, changed):
    assert offers(prices) == {**CATALOGUE, **changed}


@pytest.mark.parametrize(
    ("region", "zone", "within"),
    [
        ("us-east-1", "us-east-1a", True),
        ("us-east1", "us-east1-b", True),
        ("eastus", "eastus-1", True),
        ("eastus", "eastus2-1", False),
        ("us-east-1", "us-east-1-bos-1a", False),
        ("us-east-1", "us-east-1", False),
        ("us-east-1", "us-west-2a", False),
    ],
)
def test_a_region_is_its_own_zones(region, zone, within):
    each = accelerator_class(offers=(NodeOffer(Market.SPOT, zone, 0.4, None),))
    found = applied([each], [[price(0.3, accelerator_class="l4", region=region)]])
    assert bool(found.repriced) is within


def test_a_later_source_wins():
    assert offers([price(0.2, accelerator_class="l4")], [price(0.3, accelerator_class="l4")])["spot", "a"] == 0.3
    assert (
        offers([price(0.2, accelerator_class="l4", zone="a")], [price(0.3, accelerator_class="l4")])["spot", "a"] == 0.3
    )


def test_existing_nodes_have_no_instance_types():
    existing = {"nodes": ExistingNodes((("gpu", "l4"),))}
    assert offers([price(0.2, instance_type="l4.large")], **existing) == CATALOGUE
    assert offers([price(0.2, accelerator_class="l4", zone="a")], **existing)["spot", "a"] == 0.2


def test_what_was_used_kept_and_passed_over_is_told():
    used = price(0.3, accelerator_class="l4", zone="a")
    found = applied([accelerator_class()], [[used, price(0.1, accelerator_class="h100")]])
    assert [(each.zone, each.before_usd_per_node_hour, each.price) for each in found.repriced] == [("a", 0.4, used)]
    assert [(name, offer.market, offer.zone) for name, offer in found.kept] == [
        ("l4", Market.ON_DEMAND, "a"),
        ("l4", Market.ON_DEMAND, "b"),
        ("l4", Market.SPOT, "b"),
    ]
    assert found.passed_over == 1


def test_old_prices_are_told():
    found = applied([accelerator_class()], [[price(0.3, accelerator_class="l4", zone="a")]]).repriced
    assert stale(found, NOW + timedelta(days=30)) == ()
    assert stale(found, NOW + timedelta(days=31)) == found
    assert stale(found, NOW + timedelta(days=2), timedelta(days=1)) == found


@given(st.lists(st.tuples(st.sampled_from(["l4", "h100"]), st.sampled_from(["a", "b", "c"]), st.floats(0.01, 100))))
def test_prices_change_what_offers_cost_and_nothing_else(named):
    classes = [accelerator_class("l4"), accelerator_class("h100")]
    found = applied(classes, [[price(usd, accelerator_class=name, zone=zone) for name, zone, usd in named]])
    free = [
        tuple(replace(offer, usd_per_node_hour=0.0) for offer in each.offers) for each in (*classes, *found.classes)
    ]
    assert free[:2] == free[2:]
    assert len(found.repriced) + len(found.kept) == sum(len(each.offers) for each in classes)
