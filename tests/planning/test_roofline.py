"""Estimates from data sheets: figures that can be worked out by hand, order, and what does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.core.errors import InvalidInputError
from medley.planning.roofline import (
    BEST,
    GIGA,
    MEMORY_SHARE,
    RESERVED_BYTES,
    TERA,
    USUAL,
    WORST,
    Dtype,
    Efficiency,
    Gpu,
    ModelShape,
    Roofline,
)

IDEAL = Efficiency(multiply=1.0, read=1.0, link=1.0, layer_s=0.0, step_s=0.0)
# 1 TB/s, 100 TFLOPS, 80 GB, 100 GB/s; 10 billion parameters, 100 kB of KV cache per token.
GPU = Gpu("round", 80e9, 1000 * GIGA, ((Dtype.BF16, 100 * TERA), (Dtype.FP8, 200 * TERA)), 100 * GIGA)
MODEL = ModelShape(10e9, layers=25, hidden=4000, kv_heads=10, head_size=100)
LIMITS = {"max_running": 64, "max_batched_tokens": 2048}


def test_a_small_batch_takes_as_long_as_reading_the_weights():
    assert Roofline(GPU, MODEL).step_s(0, 1, 0, efficiency=IDEAL) == pytest.approx(20e9 / 1e12)


def test_contexts_are_read_once_a_step():
    assert MODEL.kv_bytes_per_token == 100_000
    longer = Roofline(GPU, MODEL).step_s(0, 10, 20_000, efficiency=IDEAL)
    assert longer == pytest.approx(20e-3 + 20_000 * 100e3 / 1e12)


def test_a_prompt_takes_as_long_as_multiplying():
    # 2 x 10 billion x 2000 tokens; and of attention 2 x 25 x 4000 per pair of tokens, of which half are needed.
    found = Roofline(GPU, MODEL).step_s(2000, 0, 0, efficiency=IDEAL, prompt_tokens=2000)
    assert found == pytest.approx((2 * 10e9 * 2000 + 2 * 25 * 4000 * 2000 * 2000) / 100e12)


def test_two_gpus_halve_both_and_talk():
    one, two = Roofline(GPU, MODEL), Roofline(GPU, MODEL, tensor_parallel=2)
    # Two all-reduces a layer, each moves 2 x (1/2) of 4000 numbers of 2 bytes.
    talking = 2 * 25 * 8000 / 100e9
    assert two.step_s(0, 8, 0, efficiency=IDEAL) == pytest.approx(
        one.step_s(0, 8, 0, efficiency=IDEAL) / 2 + 8 * talking
    )


def test_software_takes_its_time_per_layer_and_stage():
    slow = replace(IDEAL, layer_s=1e-3, step_s=5e-3)
    plain = Roofline(GPU, MODEL).step_s(0, 1, 0, efficiency=IDEAL)
    assert Roofline(GPU, MODEL).step_s(0, 1, 0, efficiency=slow) == pytest.approx(plain + 25e-3 + 5e-3)


def test_kv_cache_is_what_the_weights_leave():
    usable = 80e9 * MEMORY_SHARE - RESERVED_BYTES
    assert Roofline(GPU, MODEL).kv_tokens() == int((usable - 20e9) / 100e3)
    assert Roofline(GPU, MODEL, tensor_parallel=2).kv_tokens() == int((2 * usable - 20e9) / 100e3)


def test_more_gpus_than_heads_hold_copies():
    few = replace(MODEL, kv_heads=2)
    alone, copied = Roofline(GPU, few, tensor_parallel=2), Roofline(GPU, few, tensor_parallel=4)
    assert (alone.kv_copies, copied.kv_copies) == (1, 2)
    usable = 80e9 * MEMORY_SHARE - RESERVED_BYTES
    assert copied.kv_tokens() == int((4 * usable - 20e9) / (2 * few.kv_bytes_per_token))


def test_fp8_reads_half_and_multiplies_twice_as_fast():
    eight = replace(MODEL, dtype=Dtype.FP8)
    assert Roofline(GPU, eight).step_s(0, 1, 0, efficiency=IDEAL) == pytest.approx(10e-3)
    wide, narrow = (Roofline(GPU, each).step_s(4000, 0, 0, efficiency=IDEAL) for each in (MODEL, eight))
    assert narrow == pytest.approx(wide / 2)


def test_experts_take_memory_but_not_time_to_multiply():
    experts = replace(MODEL, parameters=2e9, parameters_in_memory=10e9)
    assert Roofline(GPU, experts).kv_tokens() == Roofline(GPU, MODEL).kv_tokens()
    assert Roofline(GPU, experts).coefficients()[1] < Roofline(GPU, MODEL).coefficients()[1]


@given(
    st.integers(0, 8192),
    st.integers(0, 256),
    st.integers(0, 4000),
    st.sampled_from([1, 2, 5, 10]),
    st.sampled_from([USUAL, WORST, BEST]),
)
def test_the_linear_model_is_never_faster_and_at_most_twice_as_slow(prefill, sequences, context, parallel, efficiency):
    roofline = Roofline(GPU, MODEL, tensor_parallel=parallel)
    exact = roofline.step_s(prefill, sequences, sequences * context, efficiency=efficiency)
    linear = roofline.linear(efficiency=efficiency, **LIMITS).step(prefill, sequences, sequences * context)
    assert exact * (1 - 1e-9) <= linear <= 2 * exact


@given(st.integers(0, 2048), st.integers(1, 64), st.integers(0, 4000), st.sampled_from([1, 2, 5]))
def test_the_error_reaches_from_the_best_to_the_worst(prefill, sequences, context, parallel):
    roofline = Roofline(GPU, MODEL, tensor_parallel=parallel)
    found = roofline.estimate(**LIMITS, longest=4096)
    step = (prefill, sequences, sequences * context)
    best, worst = (roofline.linear(efficiency=each, **LIMITS).step(*step) for each in (BEST, WORST))
    usual = found.model.step(*step)
    assert best < usual < worst
    # Every coefficient's own range is at most that of the worst of the three steps, or that of software alone.
    assert worst <= found.cautious().step(*step) * 1.35


def test_a_pipeline_has_wider_bars():
    one, two = (Roofline(GPU, MODEL, 1, stages).estimate(**LIMITS, longest=4096) for stages in (1, 2))
    assert two.error > one.error
    assert two.model.per_prefill_token_s == pytest.approx(one.model.per_prefill_token_s / 2)


@pytest.mark.parametrize(
    ("roofline", "words"),
    [
        pytest.param(
            lambda: Roofline(GPU, replace(MODEL, parameters=60e9)).linear(**LIMITS),
            r"--tp: 120 GB of weights do not fit 1 x round \(70 GB usable\)",
            id="too large",
        ),
        pytest.param(
            lambda: Roofline(GPU, replace(MODEL, dtype=Dtype.FP16)),
            "round does not multiply in float16; use one of bfloat16, fp8",
            id="a number format that it does not have",
        ),
        pytest.param(lambda: Roofline(GPU, MODEL, 3), "3 does not divide the 10 key-value heads", id="heads"),
        pytest.param(lambda: replace(MODEL, layers=0), "--layers: expected a number above 0", id="no layers"),
        pytest.param(lambda: replace(MODEL, parameters=float("nan")), "--parameters", id="NaN"),
    ],
)
def test_what_cannot_be_is_refused(roofline, words):
    with pytest.raises(InvalidInputError, match=words):
        roofline()
