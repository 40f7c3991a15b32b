"""Replicas behind the router's rule, and limits that theory knows."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.core.errors import InvalidInputError
from medley.core.latency import LatencyModel
from medley.core.workload import Bucket, SizeGrid, Slo
from medley.planning.routing import Candidate, RoutingTable, place
from medley.simulation import arrivals
from medley.simulation.arrivals import Requests
from medley.simulation.fleet import Replica, serve

MODEL = LatencyModel(0.010, 0.0001, 0.0002, 1e-6, 40_000, 32, 512)
GRID = SizeGrid((100, 1000), (50, 500))


def drawn(count: int, rate: float, seed: int, *, inputs: int = 400, outputs: int = 60) -> Requests:
    chance = np.random.default_rng(seed)
    return Requests(
        arrivals.poisson(rate, count, chance),
        chance.integers(1, inputs, count, endpoint=True),
        chance.integers(1, outputs, count, endpoint=True),
    )


def replicas(*shapes: str, model: LatencyModel = MODEL) -> list[Replica]:
    return [Replica(f"{shape}-{number}", shape, model) for number, shape in enumerate(shapes)]


@settings(max_examples=20)
@given(st.integers(1, 4), st.sampled_from([2.0, 20.0, 200.0]), st.integers(0, 1000))
def test_every_request_ends_once_and_takes_at_least_its_steps(number, rate, seed):
    requests = drawn(200, rate, seed)
    served = serve(requests, replicas(*["s"] * number, model=replace(MODEL, kv_tokens=4000)))
    assert len(served.last_token_s) == 200
    assert set(served.replica.tolist()) <= set(range(number))
    least = MODEL.step_s + MODEL.per_prefill_token_s * requests.input_tokens
    assert (served.ttft_s >= least - 1e-9).all()
    steps = (requests.output_tokens - 1) * (MODEL.step_s + MODEL.per_sequence_s)
    assert (served.last_token_s - served.first_token_s >= steps - 1e-9).all()


def test_the_same_input_gives_the_same_run():
    runs = [serve(drawn(300, 30.0, 7), replicas("s", "s", "s")) for _ in range(2)]
    assert runs[0].last_token_s.tolist() == runs[1].last_token_s.tolist()


def test_requests_go_where_the_routers_rule_sends_them():
    """All come within the first step, so nobody ends meanwhile and `place` can be asked beside."""
    requests = replace(drawn(60, 1e6, 3, inputs=1000, outputs=500), output_tokens=np.full(60, 500))
    fleet = replicas("l4", "l4", "h100", "h100", "l4", model=replace(MODEL, max_running=16))
    table = RoutingTable(
        GRID,
        {Bucket(0, 1): (("l4", 1.0),), Bucket(1, 1): (("l4", 0.3), ("h100", 0.7))},
    )
    expected, running, credit = [], [0] * len(fleet), {}
    for inputs in requests.input_tokens.tolist():
        candidates = [Candidate(each.name, each.shape, count, 16) for each, count in zip(fleet, running, strict=True)]
        placed = place(table, GRID.bucket(inputs, 500), candidates, credit)
        credit = placed.credit
        index = next(index for index, each in enumerate(fleet) if each.name == placed.replica)
        running[index] += 1
        expected.append(index)
    assert serve(requests, fleet, table).replica.tolist() == expected


def test_a_request_waits_in_the_router_while_its_replicas_are_full():
    requests = Requests(np.array([0.0, 0.0, 0.0]), np.array([100, 100, 100]), np.array([2, 2, 2]))
    served = serve(requests, replicas("s", model=replace(MODEL, max_running=2)))
    # It is released when the others end, by which time the engine is idle.
    assert served.first_token_s[2] == pytest.approx(served.last_token_s[0] + MODEL.step(100, 0, 0))


def test_one_server_at_a_time_is_the_queue_of_pollaczek_and_khinchine():
    """Slots for one request, outputs of one token, one size: a queue M/D/1, whose mean wait is known."""
    model = LatencyModel(0.010, 0.0001, 0.0, 0.0, 10_000, 1, 512)
    service, load, count = 0.010 + 0.0001 * 400, 0.7, 40_000
    chance = np.random.default_rng(11)
    requests = Requests(arrivals.poisson(load / service, count, chance), np.full(count, 400), np.full(count, 1))
    waits = serve(requests, replicas("s", model=model)).ttft_s - service
    assert waits.mean() == pytest.approx(load * service / (2 * (1 - load)), rel=0.05)


def test_decoding_alone_is_the_processor_sharing_queue_of_cohen():
    """Prompts cost nothing and a step takes s + b N: the number of requests is negative binomial, whatever the sizes.

    Its mean is (1 + s/b) rho / (1 - rho) with rho = rate x output x b (docs/simulation.md).
    """
    model = LatencyModel(0.004, 0.0, 0.0005, 0.0, 10_000_000, 4000, 4000)
    count, outputs = 30_000, 100
    chance = np.random.default_rng(5)
    rho = 0.8
    requests = Requests(
        arrivals.poisson(rho / (outputs * 0.0005), count, chance),
        np.full(count, 1),
        chance.choice([10, 190], count),
    )
    served = serve(requests, replicas("s", model=model)).after(2000)
    present = (served.last_token_s - served.requests.arrival_s).sum() / (
        served.requests.arrival_s[-1] - served.requests.arrival_s[0]
    )
    # A request waits for the end of the step it comes in, half a step, and its first token takes a step too.
    assert present == pytest.approx((1 + 0.004 / 0.0005) * rho / (1 - rho), rel=0.1)


def test_attainment_counts_requests_for_which_both_bounds_hold():
    served = serve(drawn(500, 20.0, 9), replicas("s"))
    loose = Slo(99, timedelta(seconds=100), timedelta(seconds=100))
    ttft, tpot = float(np.median(served.ttft_s)), float(np.median(served.tpot_s))
    tight = Slo(99, timedelta(seconds=ttft), timedelta(seconds=tpot))
    ttft, tpot = tight.ttft.total_seconds(), tight.tpot.total_seconds()  # as rounded to microseconds
    assert served.attainment(loose) == 1.0
    assert served.attainment(tight) == ((served.ttft_s <= ttft) & (served.tpot_s <= tpot)).mean()
    assert served.attainment(replace(tight, ttft=None)) == (served.tpot_s <= tpot).mean()


def test_no_replicas_are_refused():
    with pytest.raises(InvalidInputError, match="at least one replica"):
        serve(drawn(1, 1.0, 0), [])
