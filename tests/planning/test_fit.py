"""Latency models from step times: known coefficients come back, errors are those of sizes that were left out."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.core.errors import InvalidInputError
from medley.core.latency import LatencyModel
from medley.core.profiles import FittedLatency
from medley.planning.fit import Errors, StepPoint, fit, fitted_latency, repeated

# An A100 with a 7B model, about: 7 ms to read the weights, 60 us per prompt token.
TRUTH = (7e-3, 60e-6, 30e-6, 0.4e-6)


def seconds(size, truth=TRUTH):
    return truth[0] + sum(each * value for each, value in zip(truth[1:], size, strict=True))


def points(truth=TRUTH, *, noise=0.0, seed=1, contexts=(200, 1000, 4000)):
    chance = random.Random(seed)
    sizes = [(tokens, 0, 0) for tokens in (64, 128, 256, 512, 1024, 2048, 4096)]
    sizes += [(0, batch, batch * context) for batch in (1, 2, 4, 8, 16, 32, 64) for context in contexts]
    return [StepPoint(*size, seconds(size, truth) * math.exp(chance.gauss(0, noise))) for size in sizes]


def coefficients(found):
    return found.step_s, found.per_prefill_token_s, found.per_sequence_s, found.per_context_token_s


def test_exact_times_give_the_coefficients_back():
    found = fit(points())
    assert coefficients(found) == pytest.approx(TRUTH, rel=1e-6)
    assert found.by_size.worst == pytest.approx(0, abs=1e-6)
    assert (found.context_known, found.points, found.sizes) == (True, 28, 28)
    assert (found.largest_prefill_tokens, found.largest_sequences, found.largest_context_tokens) == (4096, 64, 4000)


def test_noisy_times_give_them_back_within_the_noise():
    noisy = [point for run in range(20) for point in points(noise=0.05, seed=run)]
    found = fit(noisy)
    step, prefill, sequence, context = coefficients(found)
    assert (step, prefill, context) == pytest.approx((TRUTH[0], TRUTH[1], TRUTH[3]), rel=0.05)
    assert sequence == pytest.approx(
        TRUTH[2], rel=0.2
    )  # at most a fifth of any step here, so the noise hides most of it
    # The median of a Gaussian's size is 0.67 of its width; the model itself adds next to nothing.
    assert found.by_fold.median == pytest.approx(0.67 * 0.05, rel=0.1)


@settings(max_examples=15, deadline=None)
@given(
    st.floats(1e-4, 1.0),
    st.floats(1e-7, 1e-2),
    st.floats(1e-6, 1e-2),
    st.floats(1e-8, 1e-5),
)
def test_any_coefficients_come_back(step, prefill, sequence, context):
    truth = (step, prefill, sequence, context)
    found = fit(points(truth))
    assert found.by_size.worst < 1e-3
    assert seconds((1500, 20, 30_000), coefficients(found)) == pytest.approx(
        seconds((1500, 20, 30_000), truth), rel=1e-3
    )


def test_a_record_that_cannot_be_does_not_bend_the_rest():
    # As in splitwise-sim's data: 64 prompts of 512 tokens, of which only some ran, in a tenth of the time they take.
    found = fit([*points(), StepPoint(32_768, 0, 0, 0.1 * seconds((32_768, 0, 0)))])
    assert coefficients(found) == pytest.approx(TRUTH, rel=0.03)
    assert found.by_size.p90 < 0.03
    assert found.by_size.worst == pytest.approx(9, rel=0.05)


def test_one_context_for_all_tells_nothing_of_others():
    found = fit(points(contexts=(1000,)))
    assert not found.context_known
    assert coefficients(found) == pytest.approx((TRUTH[0], TRUTH[1], TRUTH[2] + 1000 * TRUTH[3], 0), rel=1e-6)
    assert found.largest_context_tokens == 1000


def test_a_law_that_is_not_linear_shows_in_the_error_of_sizes_left_out():
    bent = [StepPoint(*each.size, each.seconds + 2e-9 * each.prefill_tokens**2) for each in points()]
    found = fit(bent)
    assert found.by_size_prefill.worst > 0.08
    assert found.by_size.worst > found.within.worst


def test_what_was_recorded_coarsely_is_not_off_within_its_last_digit():
    coarse = [
        StepPoint(*each.size, max(1e-3, round(each.seconds, 3)), resolution_s=0.5e-3)
        for each in points(contexts=(200, 1000, 4000))
    ]
    found = fit(coarse)
    assert found.within.median == 0
    assert coefficients(found)[:2] == pytest.approx(TRUTH[:2], rel=0.05)


def test_the_error_is_a_factor_both_ways():
    found = fit(
        [*points(), StepPoint(9000, 0, 0, seconds((9000, 0, 0)) / 2), StepPoint(9001, 0, 0, seconds((9001, 0, 0)) * 2)]
    )
    assert found.by_size.worst == pytest.approx(1.0, rel=0.05)


def test_a_profile_carries_the_error_of_sizes_left_out():
    found = fit(points(noise=0.05))
    assert fitted_latency(found, kv_tokens=100_000, max_running=128, max_batched_tokens=2048) == FittedLatency(
        LatencyModel(*coefficients(found), kv_tokens=100_000, max_running=128, max_batched_tokens=2048),
        error=found.by_size.p90,
        largest_prefill_tokens=4096,
        largest_sequences=64,
        largest_context_tokens=4000,
    )


def test_repetitions_become_their_median():
    times = [0.020, 0.023, 0.021]
    assert repeated([StepPoint(0, 1, 10, each) for each in times]) == (StepPoint(0, 1, 10, statistics.median(times)),)


def test_order_does_not_matter():
    given_points = points(noise=0.1)
    assert fit(given_points) == fit(given_points)
    assert coefficients(fit(given_points[::-1])) == pytest.approx(coefficients(fit(given_points)), rel=1e-6)


@pytest.mark.parametrize(
    ("kept", "missing"),
    [
        pytest.param(lambda point: not point.sequences, "decoding batches (sequences), got 0", id="prompts alone"),
        pytest.param(lambda point: not point.prefill_tokens, "prompts (prefill_tokens), got 0", id="decoding alone"),
        pytest.param(lambda point: point.prefill_tokens in (0, 64), "prompts (prefill_tokens), got 1", id="one prompt"),
    ],
)
def test_too_little_to_tell_is_refused_with_what_is_missing(kept, missing):
    with pytest.raises(InvalidInputError, match="measure more") as refused:
        fit([point for point in points() if kept(point)])
    assert missing in str(refused.value)


@pytest.mark.parametrize(
    "bad", [(0, 0, 0, 1.0), (1, 0, 0, 0.0), (1, 0, 0, math.nan), (-1, 1, 1, 1.0), (0, 1, 1, math.inf)]
)
def test_points_that_cannot_be_are_refused(bad):
    with pytest.raises(InvalidInputError):
        StepPoint(*bad)


def test_no_prediction_has_no_error():
    only = [StepPoint(64, 0, 0, 0.01), StepPoint(128, 0, 0, 0.02), StepPoint(0, 1, 10, 0.01), StepPoint(0, 2, 20, 0.01)]
    found = fit(only)
    assert isinstance(found.by_size, Errors)
    assert found.by_size.number == 4
