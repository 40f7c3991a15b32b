"""From routers' counts to the traffic that is planned for: rates, sizes, outputs, bursts, and when they change."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.core.accelerators import Market, NodeOffer
from medley.core.latency import LatencyModel
from medley.core.names import Condition, Reason
from medley.core.profiles import FittedLatency
from medley.core.service import Forecast, Histogram, WorkloadSource
from medley.core.traffic import Arrivals, Counts
from medley.core.workload import Bucket, Demand, SizeGrid
from medley.planning.demanded import traffic_of
from medley.planning.fleet import Neighbour, Standing, Truth
from medley.planning.ignorance import Class
from medley.planning.ledger import Ledger, forgotten, read
from medley.planning.proposal import propose
from medley.planning.question import ask
from medley.planning.reconcile import plan
from medley.planning.traffic import ClassTraffic, NotMeasured, Traffic, in_force, measured
from medley.testing.builders import GRID as ONE
from medley.testing.builders import NOW, accelerator_class, observed, offering, profile, service

GRID = SizeGrid((100, 1000), (50, 200))
MINUTE = timedelta(minutes=1)
# Fast enough for the promise of the builders' service.
MODEL = LatencyModel(10e-3, 50e-6, 50e-6, 0.1e-6, 200_000, 32, 2048)
PRIOR = Demand(GRID, ((Bucket(0, 0), 1.0), (Bucket(1, 0), 1.0), (Bucket(1, 1), 1.0)))
LONG = 1200


def listened(*rates, routers=("r1",), every=MINUTE, sizes=((100, 200),), started=0.0, made=50):
    """Return a ledger that heard, minute by minute, so many requests/s; and the moment of the last reading."""
    totals = dict.fromkeys(routers, started)
    ledger, at = Ledger(), NOW
    for rate in (0.0, *rates):
        for each in routers:
            totals[each] += rate * every.total_seconds() / len(routers)
        said = {
            name: Counts(
                requests={size: number / len(sizes) for size in sizes},
                outputs={(*size, made): number / len(sizes) for size in sizes},
            )
            for name, number in totals.items()
        }
        ledger = read(ledger, said, at)
        at += every
    return ledger, at - every


def found(ledger, now, had=None, prior=PRIOR):
    return measured(ledger, now, GRID, prior, had, longest=LONG)


def test_the_traffic_of_an_hour():
    ledger, now = listened(*[4.0] * 30, sizes=((100, 200), (1000, 50)))
    assert found(ledger, now) == Traffic(
        GRID,
        (
            # 20 requests' worth of the forecast, in which inputs of up to 100 tokens lead to outputs of up to 50.
            ClassTraffic(Bucket(0, 1), 2.1, (1000, 0)),
            ClassTraffic(Bucket(1, 0), 2.1, (1000, 0)),
        ),
        (),
        7200,
        now,
    )


def test_the_busiest_five_minutes_of_half_an_hour_are_planned_for():
    ledger, now = listened(*[9.0] * 5, *[1.0] * 20)
    assert found(ledger, now).requests_per_second == 9.45
    ledger, now = listened(*[9.0] * 5, *[1.0] * 30)
    assert found(ledger, now).requests_per_second == 1.05
    ledger, now = listened(*[1.0] * 30, *[9.0] * 5)
    assert found(ledger, now).requests_per_second == 9.45


def test_a_pass_every_ten_seconds_says_the_same_as_one_a_minute():
    ledger, now = listened(*[4.0] * 240, every=timedelta(seconds=10))
    assert (found(ledger, now).requests_per_second, found(ledger, now).requests) == (4.2, 9600)
    assert len(ledger.totals) < 60


def test_what_is_older_than_an_hour_is_forgotten():
    ledger, now = listened(*[4.0] * 200)
    assert found(ledger, now).requests == pytest.approx(4 * 3600, rel=0.02)
    assert len(ledger.totals) <= 61


def test_what_was_counted_before_a_router_was_heard_is_not_traffic():
    ledger, now = listened(*[4.0] * 10, started=1e6)
    assert found(ledger, now).requests_per_second == 4.2


def test_a_router_that_comes_later_counts_from_when_it_is_heard():
    ledger, now = listened(*[2.0] * 10)
    mine = ledger.last["r1"].requests[100, 200]
    for step in range(1, 11):
        came = {"r1": mine + 120 * step, "r2": 5e5 + 120 * step}
        said = {name: Counts(requests={(100, 200): number}) for name, number in came.items()}
        ledger = read(ledger, said, now + step * MINUTE)
    assert found(ledger, now + 10 * MINUTE).requests_per_second == pytest.approx(4.2)


def test_a_router_that_began_anew_has_counted_what_it_says():
    ledger, now = listened(*[2.0] * 10)
    for step in range(1, 11):
        ledger = read(ledger, {"r1": Counts(requests={(100, 200): 60.0 * step})}, now + step * MINUTE)
    assert found(ledger, now + 10 * MINUTE).requests == 10 * 120 + 10 * 60


def test_silence_of_a_router_costs_nothing_once_it_answers():
    ledger, now = listened(*[2.0] * 10)
    mine = ledger.last["r1"].requests[100, 200]
    assert read(ledger, {}, now + MINUTE) == ledger
    ledger = read(ledger, {"r1": Counts(requests={(100, 200): mine + 600.0})}, now + 5 * MINUTE)
    assert found(ledger, now + 5 * MINUTE).requests_per_second == 2.1
    assert forgotten(ledger, frozenset()).last == {}


def test_who_was_turned_away_is_traffic_too():
    ledger, now = listened(*[2.0] * 10)
    mine = ledger.last["r1"]
    late = replace(mine, requests={(100, 200): mine.requests[100, 200] + 600.0}, turned_away=300.0)
    assert found(read(ledger, {"r1": late}, now + 5 * MINUTE), now + 5 * MINUTE).requests_per_second == 3.15


@pytest.mark.parametrize(
    ("ledger", "now", "why"),
    [
        pytest.param(Ledger(), NOW, "no router was heard yet", id="no router"),
        pytest.param(*listened(9.0, 9.0), "routers were listened to for less than 5 minutes", id="not for long"),
        pytest.param(*listened(*[0.1] * 10), "fewer than 100 requests came in an hour", id="too little"),
        pytest.param(*listened(*[0.0] * 10), "fewer than 100 requests came in an hour", id="nothing at all"),
        pytest.param(*listened(*[9.0] * 9, sizes=((7, 7),)), "fewer than 100 requests came in an hour", id="other ranges"),
    ],
)  # fmt: skip
def test_too_little_is_not_zero(ledger, now, why):
    assert found(ledger, now) == NotMeasured(why)


def test_once_measured_silence_lowers_the_rate_and_keeps_the_sizes():
    ledger, now = listened(*[4.0] * 30, sizes=((100, 200), (1000, 50)))
    had = found(ledger, now)
    quiet, later = listened(*[0.01] * 40)
    assert found(quiet, later, had) == replace(
        had,
        classes=tuple(replace(each, requests_per_second=0.00525) for each in had.classes),
        requests=24,
        measured_at=later,
    )
    silent, later = listened(*[0.0] * 40)
    assert found(silent, later, had).requests_per_second == pytest.approx(1 / 3600, rel=0.01)


def test_a_size_that_came_twice_asks_for_no_profile():
    ledger, now = listened(*[4.0] * 10)
    said = ledger.last["r1"]
    ledger = read(ledger, {"r1": replace(said, requests={**said.requests, (1000, 200): 2.0})}, now + MINUTE)
    assert [each.bucket for each in found(ledger, now + MINUTE).classes] == [Bucket(0, 1)]


class TestOutputs:
    """P(output | class): counted, beside 20 requests' worth of the forecast."""

    def test_what_came_outweighs_the_forecast(self):
        ledger, now = listened(*[4.0] * 10, sizes=((1000, 200),), made=200)
        # 2400 requests made up to 200 tokens; the forecast has it half and half.
        parts = (round(1000 * 10 / 2420), round(1000 * 2410 / 2420))
        assert found(ledger, now).classes == (ClassTraffic(Bucket(1, 1), 4.2, parts),)

    def test_a_class_of_which_none_ended_has_the_forecast_s(self):
        ledger, now = listened(*[4.0] * 10, sizes=((1000, 200),))
        blank = replace(ledger, totals=tuple(replace(each, outputs={}) for each in ledger.totals))
        assert found(blank, now).classes == (ClassTraffic(Bucket(1, 1), 4.2, (500, 500)),)

    def test_inputs_that_the_forecast_does_not_know_have_the_outputs_of_all(self):
        ledger, now = listened(*[4.0] * 10, sizes=((100, 200),))
        blank = replace(ledger, totals=tuple(replace(each, outputs={}) for each in ledger.totals))
        prior = Demand(GRID, ((Bucket(1, 0), 3.0), (Bucket(1, 1), 1.0)))
        assert found(blank, now, prior=prior).classes == (ClassTraffic(Bucket(0, 1), 4.2, (750, 250)),)

    def test_nothing_is_expected_beyond_max_tokens(self):
        ledger, now = listened(*[4.0] * 10, sizes=((1000, 50),), made=50)
        assert found(ledger, now).classes == (ClassTraffic(Bucket(1, 0), 4.2, (1000, 0)),)

    def test_as_routers_see_it_and_as_it_comes_out(self):
        traffic = Traffic(GRID, (ClassTraffic(Bucket(1, 1), 4.0, (250, 750)),), (), 100, NOW)
        assert traffic.arrivals == (Class(Bucket(1, 1), 4.0, ((0, 0.25), (1, 0.75))),)
        assert traffic.demand == Demand(GRID, ((Bucket(1, 0), 1.0), (Bucket(1, 1), 3.0)))


class TestBursts:
    """Dispersion over lengths of windows, put together from routers that each see a part."""

    def burst(self, routers, seconds=3600, size=5, rate=0.5):
        chance = random.Random(11)
        totals = {f"r{n}": [0.0, 0.0] for n in range(routers)}
        before: Counter[str] = Counter()
        ledger = read(Ledger(), {name: Counts(arrivals={8: Arrivals(0, 0)}) for name in totals}, NOW)
        requests = dict.fromkeys(totals, 0.0)
        for window in range(seconds // 8):
            came: Counter[str] = Counter()
            bursts = sum(chance.random() < rate * 8 / 1000 for _ in range(1000))
            for _ in range(bursts * size):
                came[f"r{chance.randrange(routers)}"] += 1
            for name, total in totals.items():
                total[0] += came[name]
                total[1] += (came[name] - before[name]) ** 2
                requests[name] += came[name]
            before = came
            said = {
                name: Counts({(100, 200): requests[name]}, {}, 0.0, {8: Arrivals(*total)})
                for name, total in totals.items()
            }
            ledger = read(ledger, said, NOW + timedelta(seconds=8 * (window + 1)))
        return found(ledger, NOW + timedelta(seconds=seconds))

    @pytest.mark.parametrize("routers", [1, 2, 4])
    def test_bursts_of_five_have_a_dispersion_of_five_however_many_routers_share_them(self, routers):
        # Of 450 windows: a standard deviation of a tenth or so.
        assert dict(self.burst(routers).bursts)[8] == pytest.approx(5.0, rel=0.3)

    def test_chance_has_one(self):
        assert dict(self.burst(2, size=1, rate=2.0).bursts)[8] == pytest.approx(1.0, abs=0.3)

    def test_windows_of_which_too_few_were_seen_say_nothing(self):
        assert self.burst(1, seconds=304).bursts != ()
        arrivals = {8: Arrivals(0, 0), 16: Arrivals(0, 0)}
        ledger = read(Ledger(), {"r": Counts(arrivals=arrivals)}, NOW)
        said = Counts({(100, 200): 500.0}, {}, 0.0, {8: Arrivals(400, 800), 16: Arrivals(400, 800)})
        late = NOW + timedelta(seconds=400)
        assert found(read(ledger, {"r": said}, late), late).bursts == ((8, 1.0),)

    def test_the_window_that_is_as_long_as_a_request_lives(self):
        traffic = Traffic(GRID, (), ((1, 0.9), (4, 2.0), (16, 3.0)), 0, NOW)
        assert [traffic.dispersion(life) for life in (0.1, 1, 1.5, 4, 10, 99)] == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
        assert replace(traffic, bursts=()).dispersion(5) == 1.0


class TestInForce:
    """The plan's traffic changes for what is more than chance, and for nothing else."""

    HALVES = ((Bucket(0, 1), 0.5), (Bucket(1, 1), 0.5))

    def traffic(self, rate=4.0, parts=HALVES, bursts=(), requests=5000):
        classes = tuple(ClassTraffic(bucket, rate * part, (500, 500)) for bucket, part in parts)
        return Traffic(GRID, classes, tuple(bursts), requests, NOW)

    def test_the_first_measurement_takes_the_forecast_s_place(self):
        assert in_force(None, self.traffic(), GRID) == self.traffic()
        assert in_force(None, NotMeasured("why"), GRID) is None

    def test_without_a_measurement_the_one_before_stays(self):
        assert in_force(self.traffic(), NotMeasured("a new leader"), GRID) == self.traffic()

    def test_other_ranges_of_sizes_make_it_useless(self):
        assert in_force(self.traffic(), NotMeasured("why"), ONE) is None

    @pytest.mark.parametrize(
        ("change", "taken"),
        [
            pytest.param({"rate": 9.0}, False, id="another rate, of which others decide"),
            pytest.param({"parts": ((Bucket(0, 1), 0.45), (Bucket(1, 1), 0.55))}, False, id="5 % of other sizes"),
            pytest.param({"parts": ((Bucket(0, 1), 0.3), (Bucket(1, 1), 0.7))}, True, id="20 % of other sizes"),
            pytest.param({"bursts": ((1, 1.2),)}, False, id="hardly burstier"),
            pytest.param({"bursts": ((1, 2.0),)}, True, id="twice as bursty"),
            pytest.param({"bursts": ((64, 1.4),)}, False, id="burstier over windows of which an hour has 56"),
        ],
    )
    def test_what_counts_as_a_change(self, change, taken):
        now = replace(self.traffic(**change), measured_at=NOW + MINUTE)
        assert in_force(self.traffic(), now, GRID) == (now if taken else self.traffic())

    def test_few_requests_differ_by_chance(self):
        # 0.1 requests/s: 30 in five minutes, plus or minus 5.
        few = self.traffic(rate=0.1, requests=120)
        assert in_force(few, self.traffic(rate=0.14, requests=150), GRID) == few
        shifted = self.traffic(rate=0.1, requests=120, parts=((Bucket(0, 1), 0.4), (Bucket(1, 1), 0.6)))
        assert in_force(few, shifted, GRID) == few

    @settings(max_examples=15)
    @given(st.integers(0, 10_000), st.sampled_from([0.2, 2.0, 20.0]))
    def test_steady_traffic_is_planned_for_once(self, seed, rate):
        """Three hours of Poisson arrivals, a reading a minute: the plan's traffic hardly changes."""
        chance = random.Random(seed)
        ledger, had, changes = Ledger(), None, 0
        requests: Counter[tuple[int, int]] = Counter()
        outputs: Counter[tuple[int, int, int]] = Counter()
        for minute in range(180):
            mean = rate * 60
            came = max(0, round(chance.gauss(mean, mean**0.5)))
            for _ in range(came):
                size = (100, 200) if chance.random() < 0.7 else (1000, 200)
                requests[size] += 1
                outputs[(*size, 50 if chance.random() < 0.6 else 200)] += 1
            now = NOW + minute * MINUTE
            ledger = read(ledger, {"r": Counts(dict(requests), dict(outputs))}, now)
            force = in_force(had, found(ledger, now, had), GRID)
            changes += force != had
            had = force
        assert had is not None
        assert 1 <= changes <= 4  # the first, while windows come to be six, and chance


class TestPlans:
    """What is measured is what is planned for."""

    CLASSES, PROFILES = (accelerator_class(),), (profile(),)

    def seen(self, ledger=None, had=None, **changes):
        asked = service(workload_source=WorkloadSource.OBSERVED, **changes)
        return observed(
            service=asked,
            classes=self.CLASSES,
            profiles=self.PROFILES,
            ledger=ledger or Ledger(),
            standing=Standing(traffic=had),
        )

    MEASURED = Traffic(ONE, (ClassTraffic(Bucket(0, 0), 8.0, (1000,)),), (), 9000, NOW)

    def test_the_forecast_until_there_is_a_measurement(self):
        proposal = propose(self.seen(), NOW)
        assert (proposal.wanted, proposal.traffic) == ({offering(): 2}, NotMeasured("no router was heard yet"))

    def test_the_measurement_from_then_on(self):
        ledger, now = listened(*[8.0] * 10, sizes=((1000, 1000),), made=1000)
        proposal = propose(self.seen(ledger), now)
        # 8 requests/s and 5 % at 85 % of 2 per replica.
        assert (proposal.wanted, proposal.traffic.requests_per_second) == ({offering(): 5}, 8.4)

    def test_what_people_are_told(self):
        ledger, now = listened(*[8.0] * 10, sizes=((1000, 1000),), made=1000)
        said = {each.type: each for each in plan(self.seen(ledger), now).status.conditions}[Condition.WORKLOAD_OBSERVED]
        assert (said.status, said.reason, said.message) == (
            Truth.TRUE,
            Reason.MEASURED,
            "Planned for up to 8.4 requests/s, of sizes that routers measured up to 2030-01-01 12:10 UTC: 4800 requests",
        )
        said = plan(self.seen(), NOW).status.conditions[0]
        assert (said.type, said.status, said.reason, said.message) == (
            Condition.WORKLOAD_OBSERVED,
            Truth.UNKNOWN,
            Reason.FORECAST,
            "Planned for the forecast of spec.workload; traffic is not measured yet: no router was heard yet",
        )

    def test_bursts_lower_what_replicas_may_carry(self):
        models = (profile(points=(), latency=FittedLatency(MODEL, 0.2, 4096, 32, 4096)),)
        calm = replace(self.MEASURED, bursts=((1, 1.0), (64, 1.0)))
        bursty = replace(calm, bursts=((1, 8.0), (64, 20.0)))
        asked = [ask(service(), self.CLASSES, models, traffic=each) for each in (self.MEASURED, calm, bursty)]
        assert [each.dispersion for each in asked] == [1.0, 1.0, 20.0]
        fullest = [max(each.problem.utilisations.values()) for each in asked]
        assert fullest[0] == fullest[1] > fullest[2]

    def test_bursts_that_points_know_nothing_of_are_said(self):
        bursty = replace(self.MEASURED, bursts=((64, 20.0),))
        said = {each.type: each for each in plan(self.seen(had=bursty), NOW).status.conditions}
        expected = (
            "planned at 85% of what was measured, whatever the bursts of dispersion 20 and the mix of sizes: l4; "
        )
        assert expected in said[Condition.PROFILES_READY].message

    def test_a_neighbour_is_planned_for_what_it_measured(self):
        # Two nodes for both: the other one measured what takes both of them.
        few = accelerator_class(offers=(NodeOffer(Market.SPOT, "a", 0.4, 2),))
        other = replace(service(workload_source=WorkloadSource.OBSERVED, priority=1), name="other")
        measured_there = replace(self.MEASURED, classes=(ClassTraffic(Bucket(0, 0), 3.0, (1000,)),))
        quiet = replace(self.MEASURED, classes=(ClassTraffic(Bucket(0, 0), 0.1, (1000,)),))
        own = service(forecast=Forecast(1.0, Histogram(ONE, ((1.0,),))))
        wanted = [
            propose(
                observed(
                    service=own,
                    classes=(few,),
                    profiles=self.PROFILES,
                    neighbours=(Neighbour("default/other", other, traffic=traffic),),
                ),
                NOW,
            ).wanted
            for traffic in (measured_there, quiet)
        ]
        assert wanted == [{}, {offering(): 1}]

    def test_a_new_leader_plans_for_what_the_status_says(self):
        proposal = propose(self.seen(had=self.MEASURED), NOW)
        assert (proposal.wanted, proposal.traffic) == ({offering(): 5}, self.MEASURED)

    def test_a_service_that_asks_for_its_forecast_gets_it(self):
        seen = self.seen(had=self.MEASURED)
        asked = replace(seen.service, workload_source=WorkloadSource.FORECAST)
        assert propose(replace(seen, service=asked), NOW).wanted == {offering(): 2}
        assert traffic_of(replace(seen, service=asked), NOW) == NotMeasured("spec.workload.source is Forecast")

    def test_limits_of_max_tokens_reach_the_shares(self):
        grid = SizeGrid((1000,), (500, 1000))
        forecast = Forecast(3.0, Histogram(grid, ((1.0, 1.0),)))
        traffic = Traffic(grid, (ClassTraffic(Bucket(0, 0), 1.0, (1000, 0)), ClassTraffic(Bucket(0, 1), 1.0, (500, 500))), (), 900, NOW)  # fmt: skip
        question = ask(service(forecast=forecast), self.CLASSES, self.PROFILES, traffic=traffic)
        assert question.problem.demand.requests_per_second == ((Bucket(0, 0), 1.0), (Bucket(0, 1), 1.0))
