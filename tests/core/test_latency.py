"""The linear model of an engine's step, and what it refuses."""

from dataclasses import replace

import pytest

from medley.core.errors import InvalidInputError
from medley.core.latency import LatencyModel

MODEL = LatencyModel(
    step_s=0.010,
    per_prefill_token_s=0.001,
    per_sequence_s=0.0005,
    per_context_token_s=0.00001,
    kv_tokens=1000,
    max_running=8,
    max_batched_tokens=512,
)


def test_a_step_is_the_sum_of_what_it_holds():
    assert MODEL.step(100, 4, 500) == pytest.approx(0.010 + 0.1 + 0.002 + 0.005)


def test_an_empty_step_takes_the_fixed_time():
    assert MODEL.step(0, 0, 0) == 0.010


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step_s", float("nan")),
        ("per_prefill_token_s", -1e-9),
        ("per_sequence_s", float("inf")),
        ("per_context_token_s", -1.0),
        ("kv_tokens", 0),
        ("max_running", 0),
        ("max_batched_tokens", 1.5),
    ],
)
def test_a_number_that_cannot_be_is_refused_by_its_field(field, value):
    with pytest.raises(InvalidInputError, match=field):
        replace(MODEL, **{field: value})


def test_a_step_that_takes_no_time_is_refused():
    with pytest.raises(InvalidInputError, match="step_s"):
        replace(MODEL, step_s=0.0, per_sequence_s=0.0)


def test_a_budget_below_the_sequences_that_run_is_refused():
    with pytest.raises(InvalidInputError, match=r"max_batched_tokens.*max_running \(8\)"):
        replace(MODEL, max_batched_tokens=7)
