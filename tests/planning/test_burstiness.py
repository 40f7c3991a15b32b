"""Burstiness: 1 for chance, c^2 for uneven gaps, blind to drift, and what the published hours have."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from medley.core.errors import InvalidInputError
from medley.core.latency import LatencyModel
from medley.core.workload import Slo
from medley.planning.burstiness import dispersion, life_s
from medley.planning.mixture import Stream
from medley.simulation import arrivals


@pytest.mark.parametrize(("cv", "low", "high"), [(1.0, 0.8, 1.2), (2.0, 3.0, 4.6), (4.0, 9.0, 17.0), (0.2, 0.0, 0.2)])
def test_gaps_of_one_variation_have_about_its_square(cv, low, high):
    times = arrivals.gamma(5.0, cv, 40_000, np.random.default_rng(1))
    assert low <= dispersion(times, 10.0) <= high


def test_a_drift_is_no_burst():
    chance = np.random.default_rng(2)
    # Poisson whose rate triples over the hour: times of an even process, bent.
    times = 3600 * (np.sqrt(1 + 8 * np.sort(chance.random(20_000))) - 1) / 2
    counts = np.histogram(times, np.arange(0, 3600, 10.0))[0]
    assert counts.var() / counts.mean() > 5
    assert dispersion(times, 10.0) == pytest.approx(1, abs=0.2)


def test_regular_arrivals_have_none():
    assert dispersion([0.1 * number for number in range(1000)], 1.0) == pytest.approx(0, abs=0.02)


def test_a_request_lives_for_its_steps():
    model = LatencyModel(0.010, 0.0001, 0.0001, 1e-6, 50_000, 64, 2048)
    slo = Slo(99, None, timedelta(milliseconds=40))
    assert life_s(model, slo, [Stream(2000, 11, 1.0), Stream(2000, 21, 1.0)]) == pytest.approx(0.040 * 16)
    assert life_s(model, Slo(99, None, timedelta(milliseconds=5)), [Stream(1, 1, 1.0)]) is None


@pytest.mark.parametrize(
    ("times", "window", "said"),
    [
        ([0.0, 2.0, 1.0], 0.01, "ascending"),
        ([0.0, 1.0], 1.0, "longer trace"),
        ([], 1.0, "longer"),
        ([0.0, 9.0], 0.0, "window"),
    ],
)
def test_what_says_nothing_is_refused(times, window, said):
    with pytest.raises(InvalidInputError, match=said):
        dispersion(times, window)


@pytest.mark.data
@pytest.mark.parametrize(("name", "low", "high"), [("conv", 1.0, 4.0), ("code", 5.0, 40.0)])
def test_the_published_hours_come_in_bursts(data, name, low, high):
    with (data / "requests" / "azure" / f"AzureLLMInferenceTrace_{name}.csv").open() as lines:
        found = arrivals.azure(lines)
    assert low < dispersion(found.arrival_s.tolist(), 10.0) < high
