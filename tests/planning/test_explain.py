"""Why something is not used, and the price at which it would be."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.core.accelerators import AcceleratorClass, ExistingNodes, Market, NodeOffer, Shape
from medley.core.errors import InvalidInputError, UnknownClassError
from medley.core.profiles import Latency, LatencyPoint, Profile, ProfileSource
from medley.core.service import (
    Forecast,
    Histogram,
    Limits,
    MigrationMode,
    OperatingMode,
    Service,
    SpotPolicy,
    SpotUse,
    WorkloadSource,
)
from medley.core.workload import Bucket, Slo
from medley.planning.allocator import allocate
from medley.planning.breakeven import Below, Never, NoRoom, breakeven
from medley.planning.explain import NotUsed, explain
from medley.planning.offerings import Why
from medley.planning.problem import Allocation, Cap
from medley.planning.question import ask
from medley.testing.allocation import GRID, LARGE, SMALL, key, offer, problem, problems, rates

SPOT, ON_DEMAND = Market.SPOT, Market.ON_DEMAND
ALL_SMALL = Histogram(GRID, ((1.0, 0.0), (0.0, 0.0)))


def service(**changes) -> Service:
    values = {
        "namespace": "default",
        "name": "chat",
        "uid": "u",
        "generation": 1,
        "model": "llama",
        "max_model_len": 4096,
        "slo": Slo(99, timedelta(seconds=1), timedelta(milliseconds=40)),
        "forecast": Forecast(4.0, ALL_SMALL),
        "workload_source": WorkloadSource.FORECAST,
        "classes": (),
        "zones": (),
        "spot": SpotPolicy(),
        "limits": Limits(max_replicas=100),
        "migration": MigrationMode.AUTO,
        "mode": OperatingMode.AUTO,
    }
    return Service(**(values | changes))


def gpu(name: str, *offers: NodeOffer, gpus_per_node: int = 1) -> AcceleratorClass:
    return AcceleratorClass(name, "uid", 2**34, gpus_per_node, "nvidia.com/gpu", ExistingNodes(()), offers)


def sold(usd: float, market: Market = ON_DEMAND, zone: str = "zone-a", most: int | None = None) -> NodeOffer:
    return NodeOffer(market, zone, usd, most)


def measured(
    name: str, requests_per_second: float = 1.0, *, tpot_ms: float = 30, size: int = 2000, longest: int = 4096, **shape
) -> Profile:
    latency = Latency(99, timedelta(milliseconds=100), timedelta(milliseconds=tpot_ms))
    point = LatencyPoint(size, size, requests_per_second, (latency,))
    return Profile(f"{name}-llama", "llama", Shape(name, **shape), ProfileSource.MEASURED, None, longest, 64, (point,))


def said(asked: Service, classes, profiles, **more) -> tuple[NotUsed, ...]:
    question = ask(asked, classes, profiles, **more)
    return explain(question, allocate(question.problem))


L4 = gpu("l4", sold(0.7))
L4_PROFILE = measured("l4")


@pytest.mark.parametrize(
    ("other", "profile", "why", "message"),
    [
        pytest.param(
            gpu("x", sold(5)), None, Why.NO_PROFILE, "no PerformanceProfile of llama; measure or add one", id="no profile"
        ),
        pytest.param(
            gpu("x", sold(0.1)),
            measured("x", tpot_ms=55),
            Why.CANNOT_SERVE,
            "SLO: TPOT 55 ms at 1 requests/s of 100 + 100 tokens, the lowest rate measured, limit 40 ms",
            id="breaks the promise",
        ),
        pytest.param(
            gpu("x", sold(0.1)),
            measured("x", size=80),
            Why.CANNOT_SERVE,
            "profile: measured up to 80 + 80 tokens, not at 100 + 100 tokens",
            id="not measured that large",
        ),
        pytest.param(
            gpu("x", sold(0.1)),
            measured("x", longest=2048),
            Why.TOO_LONG,
            "x holds 2048 tokens, less than spec.model.maxModelLen 4096; lower it, or use a larger shape",
            id="model too long",
        ),
        pytest.param(
            gpu("x", sold(0.1)),
            measured("x", tensor_parallel=2),
            Why.NODE_TOO_SMALL,
            "x-tp2 needs 2 GPUs on one node, which has 1",
            id="node too small",
        ),
        pytest.param(gpu("x"), measured("x"), Why.NOT_OFFERED, "spec.zones of the AcceleratorClass names no price", id="no price"),
        pytest.param(
            gpu("x", sold(0.1, most=0)),
            measured("x"),
            Why.CAPPED,
            "capped at 0 nodes in the AcceleratorClass",
            id="capped at 0",
        ),
        pytest.param(
            gpu("x", sold(0.1, zone="zone-z")),
            measured("x"),
            Why.NOT_ALLOWED,
            "not among spec.accelerators.zones",
            id="other zones only",
        ),
        pytest.param(
            gpu("x", sold(0.1, SPOT)), measured("x"), Why.SPOT_NOT_ALLOWED, "spec.spot.policy is Never", id="spot only"
        ),
    ],
)  # fmt: skip
def test_a_class_that_cannot_be_used(other, profile, why, message):
    asked = service(zones=("zone-a",), spot=SpotPolicy(use=SpotUse.NEVER))
    profiles = [L4_PROFILE, *([] if profile is None else [profile])]
    assert said(asked, [L4, other], profiles) == (NotUsed("x", None, None, why, message),)


def test_a_class_that_cannot_take_what_costs_says_so():
    # Only l4 takes the large ones, and one l4 takes the small ones too.
    asked = service(forecast=Forecast(0.5, Histogram(GRID, ((1.0, 0.0), (0.0, 1.0)))), limits=Limits(min_replicas=0))
    x = gpu("x", sold(0.1)), measured("x", 3.0, size=100)
    assert said(asked, [L4, x[0]], [L4_PROFILE, x[1]], utilisation=1.0) == (
        NotUsed(
            "x",
            None,
            None,
            Why.NOT_NEEDED,
            "no gain even for free: 50% of the demand is not covered by its profile, and what serves that has room for "
            "the rest",
        ),
    )


def test_a_class_that_is_dearer_says_the_price_at_which_it_would_be_used():
    # 4 requests/s: 4 x l4 for 2.80. One x serves 3 of them, so it is worth 3 x l4 = 2.10.
    x, profile = gpu("x", sold(3.0)), measured("x", 3.0)
    assert said(service(), [L4, x], [L4_PROFILE, profile], utilisation=1.0) == (
        NotUsed(
            "x",
            None,
            None,
            Why.DEARER,
            "dearer: 3.00 USD/h a node; what is used serves as much for 2.10",
            pytest.approx(2.1),
        ),
    )


@pytest.mark.parametrize(
    ("offers", "message"),
    [
        pytest.param((sold(3.0, zone="zone-b"),), "from 3.00 USD/h a node; what is used serves as much for 30% less", id="two"),
        pytest.param((sold(0.1, SPOT),), "3.00 USD/h a node; what is used serves as much for 2.10", id="one not allowed"),
    ],
)  # fmt: skip
def test_of_several_prices_those_that_may_be_paid_are_spoken_of(offers, message):
    # As above, at 3.00 in the first zone; or at 3.50 there, and 3.00 in the second.
    first = sold(3.0 if offers[0].market is SPOT else 3.5)
    asked = service(spot=SpotPolicy(use=SpotUse.NEVER))
    (found,) = said(asked, [L4, gpu("x", first, *offers)], [L4_PROFILE, measured("x", 3.0)], utilisation=1.0)
    assert (found.why, found.message) == (Why.DEARER, f"dearer: {message}")


def test_of_a_used_class_markets_and_zones_are_explained():
    l4 = gpu(
        "l4",
        sold(0.7),
        sold(0.7, zone="zone-b"),
        sold(0.3, SPOT),
        sold(0.35, SPOT, "zone-b"),
        sold(0.3, SPOT, "zone-c"),
    )
    assert said(service(), [l4], [L4_PROFILE]) == (
        NotUsed(
            "l4",
            ON_DEMAND,
            None,
            Why.DEARER,
            "dearer: 0.70 USD/h a node; what is used serves as much for 0.30",
            pytest.approx(0.3),
        ),
        NotUsed("l4", SPOT, "zone-b", Why.DEARER, "dearer: 0.35 USD/h a node, 0.30 in zone-a", 0.3),
        NotUsed("l4", SPOT, "zone-c", Why.NOT_NEEDED, "no gain: 0.30 USD/h a node, as in zone-a"),
    )


def test_a_zone_that_is_cheaper_may_be_outweighed():
    # Three replicas; interrupted once an hour each, those in the first zone cost more than they save.
    cheap = NodeOffer(SPOT, "zone-a", 0.30, None, interruptions_per_node_hour=1.0)
    l4 = gpu("l4", cheap, sold(0.31, SPOT, "zone-b"))
    assert said(service(), [l4], [L4_PROFILE]) == (
        NotUsed(
            "l4",
            SPOT,
            "zone-a",
            Why.NOT_NEEDED,
            "outweighed: 0.30 USD/h a node, 0.31 in zone-b, but spread, losses or interruptions speak for that",
        ),
    )


def test_what_is_not_to_be_had_for_now_says_so():
    l4 = gpu("l4", sold(0.7), sold(0.3, SPOT))
    withheld = ((key("l4", SPOT), 0, "no spot capacity"),)
    assert said(service(), [l4], [L4_PROFILE], withheld=withheld) == (
        NotUsed("l4", SPOT, None, Why.UNAVAILABLE, "not to be had for now: no spot capacity"),
    )


class TestQuestion:
    def test_a_replica_costs_its_part_of_a_node(self):
        classes = [gpu("l4x4", sold(4.0, most=3), gpus_per_node=4)]
        profiles = [measured("l4x4"), measured("l4x4", tensor_parallel=2), measured("l4x4", tensor_parallel=3)]
        asked = ask(service(), classes, profiles).problem
        one, two, three = (key("l4x4"), *(replace(key("l4x4"), shape=Shape("l4x4", n)) for n in (2, 3)))
        assert {o.key: o.usd_per_hour for o in asked.offerings} == {one: 1.0, two: 2.0, three: 4.0}
        assert asked.caps == (Cap("nodes of l4x4, on-demand, zone-a", 3, ((one, 0.25), (two, 0.5), (three, 1.0))),)

    def test_only_profiles_of_the_model_count(self):
        other = replace(L4_PROFILE, model="mistral")
        assert ask(service(), [L4], [other]).unprofiled == ("l4",)

    def test_an_unknown_class_is_named_beside_those_that_exist(self):
        with pytest.raises(
            UnknownClassError, match=r"spec\.accelerators\.classes: no AcceleratorClass named l5; there are: l4"
        ):
            ask(service(classes=("l5",)), [L4], [L4_PROFILE])

    def test_a_preset_is_spread_over_the_sizes_that_the_model_holds(self):
        asked = ask(service(forecast=Forecast(8.0, "chat"), max_model_len=4096), [L4], [L4_PROFILE]).problem.demand
        assert asked.total == pytest.approx(8.0)
        assert max(bucket.input for bucket, _ in asked.requests_per_second) == 6  # 2001 to 4000 tokens

    def test_a_forecast_of_which_nothing_fits(self):
        only_large = Histogram(GRID, ((0.0, 0.0), (0.0, 1.0)))
        with pytest.raises(
            InvalidInputError, match=r"spec\.model\.maxModelLen: no request of the forecast fits 100 tokens"
        ):
            ask(service(forecast=Forecast(1.0, only_large), max_model_len=100), [L4], [measured("l4", longest=200)])

    def test_no_traffic_is_no_demand(self):
        assert ask(service(forecast=Forecast(0.0, "chat")), [L4], [L4_PROFILE]).problem.demand.requests_per_second == ()

    @pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf")])
    def test_absurd_rates(self, rate):
        with pytest.raises(InvalidInputError, match=r"spec\.workload\.requestsPerSecond"):
            ask(service(forecast=Forecast(rate, "chat")), [L4], [L4_PROFILE])

    def test_a_demand_that_was_measured_takes_the_forecasts_place(self):
        demand = problem({LARGE: 2.0}, [], []).demand
        assert ask(service(), [L4], [L4_PROFILE], demand=demand).problem.demand == demand


class TestBreakeven:
    ABLE = (rates("a", {SMALL: 1.0}), rates("b", {SMALL: 2.5}))

    def test_counts_what_more_than_one_would_save(self):
        # 10 small/s: 10 x a. 4 x b replace them all: worth 2.5 each; one b alone saves only 2 (of 7.5 left, 8 x a).
        asked = problem({SMALL: 10.0}, [offer("a", 1.0), offer("b", 3.0)], self.ABLE)
        assert breakeven(asked, 10.0, frozenset({key("b")})) == Below(pytest.approx(2.5 / 3.0), exact=True)

    def test_no_room(self):
        asked = problem({SMALL: 1.0}, [offer("a", 1.0), offer("b", 3.0, at_most=0)], self.ABLE)
        assert breakeven(asked, 1.0, frozenset({key("b")})) == NoRoom()

    def test_not_even_for_nothing(self):
        # b serves large requests only, of which there are none.
        asked = problem({SMALL: 1.0}, [offer("a", 1.0), offer("b", 3.0)], [self.ABLE[0], rates("b", {LARGE: 2.5})])
        assert breakeven(asked, 1.0, frozenset({key("b")})) == Never()

    @settings(max_examples=20)
    @given(problems(most_shapes=3), st.sampled_from([0.97, 1.03]))
    def test_below_that_price_it_is_used_and_above_it_is_not(self, asked, step):
        found = allocate(asked)
        assert isinstance(found, Allocation)
        unused = [o for o in asked.offerings if not found.of(o.key)]
        for each in unused:
            limit = breakeven(asked, found.usd_per_hour, frozenset({each.key}))
            if not isinstance(limit, Below) or limit.factor * each.usd_per_hour < 0.02:
                continue
            price = each.usd_per_hour * limit.factor * step
            offerings = tuple(replace(o, usd_per_hour=price) if o.key == each.key else o for o in asked.offerings)
            again = allocate(replace(asked, offerings=offerings))
            assert bool(again.of(each.key)) == (step < 1)


def test_the_best_of_an_infeasible_demand_is_explained_too():
    asked = service(limits=Limits(max_replicas=1), forecast=Forecast(50.0, ALL_SMALL))
    small = measured("l4", 1.0)
    big = gpu("x", sold(9.0)), measured("x", 20.0)
    assert said(asked, [L4, big[0]], [small, big[1]]) == (
        NotUsed("l4", None, None, Why.NOT_NEEDED, "no gain: would serve no more of the demand within the limits"),
    )


def test_bucket_order_is_by_input_then_output():
    assert GRID.buckets()[0] == Bucket(0, 0) == SMALL
