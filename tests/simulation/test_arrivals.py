"""Arrival processes have the rate and the burstiness that was asked for; traces are read as they are."""

from __future__ import annotations

import numpy as np
import pytest

from medley.core.errors import InvalidInputError
from medley.planning.presets import COUNTS, preset
from medley.simulation import arrivals
from medley.simulation.arrivals import Requests


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gaps_have_the_mean_and_the_variation_asked_for(cv):
    gaps = np.diff(arrivals.gamma(5.0, cv, 200_000, np.random.default_rng(1)))
    assert gaps.mean() == pytest.approx(0.2, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


def test_a_modulated_process_has_the_mean_of_its_rates_and_bursts_that_last():
    times = arrivals.markov_modulated(2.0, 8.0, 10.0, 200_000, np.random.default_rng(2))
    assert len(times) / times[-1] == pytest.approx(5.0, rel=0.05)
    counts = np.histogram(times, np.arange(0, times[-1], 10.0))[0]
    # Poisson would have 1; here rates of +-3 that last about 10 s add 9 x 10^2 x 0.57 / 50.
    assert counts.var() / counts.mean() > 5


def test_the_same_seed_gives_the_same_arrivals():
    one, two = (arrivals.gamma(1.0, 2.0, 50, np.random.default_rng(4)) for _ in range(2))
    assert one.tolist() == two.tolist()


def test_sizes_are_drawn_as_often_as_their_buckets():
    demand = preset("code").demand(3.0)
    inputs, outputs = arrivals.sizes(demand, 100_000, np.random.default_rng(3))
    drawn = {}
    for pair in zip(inputs.tolist(), outputs.tolist(), strict=True):
        bucket = demand.grid.bucket(*pair)
        drawn[bucket] = drawn.get(bucket, 0) + 1
    shares = {bucket: rate / demand.total for bucket, rate in demand.requests_per_second}
    assert drawn.keys() == shares.keys()
    assert {bucket: count / 100_000 for bucket, count in drawn.items()} == pytest.approx(shares, abs=0.01)


def test_the_largest_sizes_are_the_edges():
    demand = preset(min(COUNTS)).demand(1.0)
    inputs, outputs = arrivals.sizes(demand, 1000, np.random.default_rng(3), largest=True)
    assert {demand.grid.sizes(demand.grid.bucket(*pair)) for pair in zip(inputs, outputs, strict=True)} == set(
        zip(inputs.tolist(), outputs.tolist(), strict=True)
    )


def test_a_trace_is_read_sorted_and_starts_at_0():
    found = arrivals.azure(
        [
            "TIMESTAMP,ContextTokens,GeneratedTokens",
            "2023-11-16 18:17:04.0319600,3180,8",
            "2023-11-16 18:17:03.9819600,4808,0",
        ]
    )
    assert found.arrival_s.tolist() == pytest.approx([0.0, 0.05])
    assert (found.input_tokens.tolist(), found.output_tokens.tolist()) == ([4808, 3180], [1, 8])


def test_a_trace_of_another_form_is_refused():
    with pytest.raises(InvalidInputError, match="ContextTokens"):
        arrivals.azure(["time,in,out", "1,2,3"])


@pytest.mark.data
def test_the_published_hour_of_conversations_is_read_whole(data):
    with (data / "requests" / "azure" / "AzureLLMInferenceTrace_conv.csv").open() as lines:
        found = arrivals.azure(lines)
    assert len(found) == 19366
    assert found.requests_per_second == pytest.approx(5.5, rel=0.05)


def test_scaling_a_trace_changes_its_rate_alone():
    found = Requests(np.array([5.0, 6.0, 9.0]), np.array([1, 2, 3]), np.array([4, 5, 6])).at_rate(4.0)
    assert found.arrival_s.tolist() == pytest.approx([0.0, 0.125, 0.5])
    assert found.requests_per_second == pytest.approx(4.0)
    assert found.input_tokens.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("times", "inputs", "said"),
    [([1.0, 0.5], [1, 1], "ascending"), ([0.0, 1.0], [1, 0], "at least one"), ([0.0], [1, 1], "one length")],
)
def test_requests_that_cannot_be_are_refused(times, inputs, said):
    with pytest.raises(InvalidInputError, match=said):
        Requests(np.array(times), np.array(inputs), np.ones(len(inputs), dtype=int))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_cannot_be_is_refused(rate):
    with pytest.raises(InvalidInputError, match="requests_per_second"):
        arrivals.poisson(rate, 10, np.random.default_rng(0))
