"""Utilisation limits: exact where theory is, ordered as they must be, and kept by the simulated engine."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.core.errors import InvalidInputError
from medley.core.latency import LatencyModel
from medley.core.workload import Slo
from medley.planning import mixture, queueing
from medley.planning.mixture import Stream
from medley.planning.queueing import misses, utilisation
from medley.simulation.arrivals import Requests, gamma
from medley.simulation.fleet import Replica, serve

MODEL = LatencyModel(0.010, 0.00005, 0.0001, 3e-7, 100_000, 256, 2048)
SLO = Slo(99, timedelta(seconds=2), timedelta(milliseconds=40))
MIX = (Stream(200, 60, 3.0), Stream(1500, 200, 2.0), Stream(4000, 400, 0.5))


def simulated(rate_factor: float, *, replicas: int, cv: float, slo: Slo, count: int = 5000) -> float:
    chance = np.random.default_rng(2)
    rates = np.array([each.requests_per_second for each in MIX])
    chosen = chance.choice(len(MIX), count, p=rates / rates.sum())
    inputs, outputs = (
        np.array([getattr(each, name) for each in MIX])[chosen] for name in ("input_tokens", "output_tokens")
    )
    requests = Requests(gamma(1.0, cv, count, chance), inputs, outputs).at_rate(float(rates.sum()) * rate_factor)
    fleet = [Replica(f"r{number}", "s", MODEL) for number in range(replicas)]
    return serve(requests, fleet).after(count // 5).attainment(slo)


@pytest.mark.parametrize(("replicas", "cv"), [(1, 1.0), (1, 2.0), (4, 1.0), (10, 2.0)])
@pytest.mark.parametrize("percentile", [90, 99])
def test_the_promise_holds_at_the_limit_and_breaks_not_far_above(replicas, cv, percentile):
    slo = replace(SLO, percentile=percentile)
    found = utilisation(MODEL, slo, MIX, replicas=replicas, dispersion=cv**2)
    whole = mixture.capacity(MODEL, slo, MIX) * replicas
    assert simulated(found.value * whole, replicas=replicas, cv=cv, slo=slo) >= percentile / 100
    assert simulated((found.value + 0.25) * whole, replicas=replicas, cv=cv, slo=slo) < percentile / 100


def test_ten_replicas_may_be_fuller_than_one_and_forty_than_ten():
    found = [utilisation(MODEL, SLO, MIX, replicas=n).value for n in (1, 2, 4, 10, 40)]
    assert found == sorted(found)
    assert found[3] > found[0] + 0.1


@pytest.mark.parametrize(
    "better",
    [
        {"dispersion": 1.0},
        {"slo": replace(SLO, percentile=90)},
        {"slo": replace(SLO, ttft=timedelta(seconds=4))},
        {"replicas": 8},
    ],
    ids=["calmer", "lower percentile", "looser TTFT", "more replicas"],
)
def test_what_is_easier_may_be_fuller(better):
    asked = {"slo": SLO, "replicas": 3, "dispersion": 4.0}
    easier = asked | better
    one, other = (
        utilisation(MODEL, each["slo"], MIX, replicas=each["replicas"], dispersion=each["dispersion"]).value
        for each in (asked, easier)
    )
    assert other >= one


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 6000), st.integers(1, 800), st.floats(0.01, 5)), min_size=1, max_size=4),
    st.integers(1, 60),
    st.floats(0.2, 30),
    st.sampled_from([90.0, 99.0, 99.9]),
)
def test_a_limit_is_a_part_of_capacity_and_its_misses_are_within_the_promise(mix, replicas, dispersion, percentile):
    slo = replace(SLO, percentile=percentile)
    found = utilisation(MODEL, slo, [Stream(*each) for each in mix], replicas=replicas, dispersion=dispersion)
    if found is not None:
        assert 0 < found.value <= 1
        assert found.misses.total <= (1 - percentile / 100) * (1 + 1e-9)


def test_decoding_alone_is_present_as_cohen_says():
    """No prompts, no burst: the mean number present is the negative binomial's, (1 + s/b) rho / (1 - rho)."""
    model = LatencyModel(0.004, 0.0, 0.0005, 0.0, 10**7, 4000, 4000)
    rate, outputs = 16.0, 101
    rho = rate * (outputs - 1) * 0.0005
    mean = (1 + 0.004 / 0.0005) * rho / (1 - rho)
    bound = timedelta(seconds=mean / (rate * (outputs - 1)))  # Little: the mean TPOT
    slo = Slo(50, None, bound)
    # Misses at the mean: near one half, a little less since the distribution leans to the right.
    assert misses(model, slo, [Stream(1, outputs, rate)], replicas=1).tpot == pytest.approx(0.45, abs=0.06)


def test_overload_misses_everything():
    assert misses(MODEL, SLO, [Stream(1000, 100, 100.0)], replicas=1).total == 1.0


def test_nothing_is_promised_below_the_empty_step():
    assert utilisation(MODEL, replace(SLO, tpot=timedelta(milliseconds=10)), MIX, replicas=1) is None


def test_one_replica_and_bursts_of_sixteen_are_promised_nothing_at_the_99th_percentile():
    """Answers of 60 tokens beside prompts of 4000 that come in bursts: no load is low enough."""
    assert utilisation(MODEL, SLO, MIX, replicas=1, dispersion=100.0) is None


@pytest.mark.parametrize(
    ("asked", "field"),
    [({"replicas": 0}, "replicas"), ({"replicas": 1, "dispersion": 0.0}, "dispersion")],
)
def test_what_cannot_be_is_refused(asked, field):
    with pytest.raises(InvalidInputError, match=field):
        utilisation(MODEL, SLO, MIX, **asked)


def test_where_mean_values_are_all_there_is_capacity_is_the_bound():
    loose = Slo(50, timedelta(hours=1), timedelta(seconds=10))
    model = replace(MODEL, kv_tokens=10**9, max_running=2000)
    found = utilisation(model, loose, [Stream(10, 20, 1.0)], replicas=100)
    assert found.value > 0.9
    assert queueing.Utilisation(1.0, found.misses).bound == "capacity"
