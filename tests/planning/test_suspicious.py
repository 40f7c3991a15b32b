"""Numbers that are legal and can hardly be meant: named with what they were read as, and planned all the same."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from medley.core.accelerators import Market, NodeOffer
from medley.core.latency import LatencyModel
from medley.core.profiles import FittedLatency
from medley.core.workload import Slo
from medley.planning.suspicious import of_steps, suspicions
from medley.testing.builders import accelerator_class, profile, service


def latency(step_s: float) -> FittedLatency:
    return FittedLatency(LatencyModel(step_s, 1e-4, 1e-4, 1e-7, 10_000, 64, 2048), 0.1, 2048, 64, 4096)


def test_ordinary_numbers_are_not_asked_about():
    fitted = profile("h100", latency=latency(0.02), points=())
    assert suspicions(service(), [accelerator_class("l4"), accelerator_class("h100")], [profile("l4"), fitted]) == ()


@pytest.mark.parametrize(
    ("slo", "said"),
    [
        (
            Slo(99, None, timedelta(seconds=4)),
            "spec.slo.tpot 4s is 4 s per token: is another unit meant (us, ms, s, m, h)?",
        ),
        (
            Slo(99, None, timedelta(microseconds=100)),
            "spec.slo.tpot 100us is 100 us per token: is another unit meant (us, ms, s, m, h)?",
        ),
        (
            Slo(99, timedelta(minutes=5), None),
            "spec.slo.ttft 5m is 300 s until the first token: is another unit meant (us, ms, s, m, h)?",
        ),
    ],
)
def test_promises_in_another_unit(slo, said):
    assert suspicions(service(slo=slo), [], []) == (said,)


@pytest.mark.parametrize(
    ("offer", "said"),
    [
        (
            NodeOffer(Market.SPOT, "a", 3.2, None),
            "l4 spot a: 3.2 USD per node-hour is more than the 0.8 of on-demand",
        ),
        (
            NodeOffer(Market.RESERVED, "b", 5000.0, None),
            "l4 reserved b: 5,000 USD for an hour of a node: are these cents, or the price of a month?",
        ),
        (
            NodeOffer(Market.SPOT, "a", 0.3, None, 30.0),
            "l4 spot a: a node is lost 30 times per hour: spotInterruptionsPerHour is per node and hour",
        ),
    ],
)
def test_prices_and_rates_in_another_unit(offer, said):
    offers = (NodeOffer(Market.ON_DEMAND, "a", 0.8, None), offer)
    assert suspicions(service(), [accelerator_class("l4", offers=offers)], []) == (said,)


def test_profiles_in_another_unit():
    slow = profile("l4", latency=latency(20.0), points=())
    assert suspicions(service(), [], [slow, replace(slow, model="of another service")]) == (
        "profile model-7b-l4: a step of one request takes 20 s: its times are in microseconds, those of a fit in seconds",
    )


def test_steps_in_milliseconds():
    assert of_steps("m l4", [0.02, 3.0, 40.0]) is None
    assert of_steps("m l4", [20.0, 35.0]) == (
        "m l4: the shortest step takes 20 s: times of steps are in seconds, are these milliseconds?"
    )
