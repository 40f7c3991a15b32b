"""vLLM's counters are read under the names of every version."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.engine.samples import Sample, sample_from

NEW = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:prompt_tokens_total{engine="0",model_name="m"} 700.0
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.7952163889e+09
vllm:generation_tokens_total{engine="0",model_name="m"} 1.2e+03
vllm:request_generation_tokens_sum{engine="0",model_name="m"} 9.0
python_info{implementation="CPython"} 1.0
"""
OLD = """vllm:num_requests_running{model_name="a b"} 2
vllm:num_requests_waiting{model_name="a b"} 1
vllm:num_requests_swapped{model_name="a b"} 0
vllm:gpu_cache_usage_perc{model_name="a b"} 0.25
vllm:prompt_tokens{model_name="a b"} 700
vllm:generation_tokens{model_name="a b"} 1200
"""
EXPECTED = Sample(at=3.0, running=2, waiting=1, generated=1200, prompted=700, cache_usage=0.25)


@pytest.mark.parametrize("text", [NEW, OLD, NEW.replace("vllm:", "vllm_")], ids=["vllm 1", "older", "underscores"])
def test_counters_are_found(text):
    assert sample_from(text, at=3.0) == EXPECTED


def test_data_parallel_engines_add_up():
    second = "".join(line.replace('"0"', '"1"') + "\n" for line in NEW.splitlines() if line.startswith("vllm"))
    assert sample_from(NEW + second, at=3.0) == Sample(3.0, 4, 2, 2400, 1400, 0.5)


@pytest.mark.parametrize(
    "text", ["", "<html>", NEW.replace("generation_tokens_total", "x")], ids=["empty", "html", "part"]
)
def test_what_is_not_there_is_unknown_and_not_zero(text):
    assert sample_from(text, at=3.0) is None


@given(
    st.lists(
        st.sampled_from(["vllm:", "vllm_", "num_requests_running", "{", "}", " ", "\n", "1.0", "nan", "-1e999"])
        | st.text()
    )
)
def test_any_text_is_read_or_unknown(parts):
    assert isinstance(sample_from("".join(parts), at=0.0), Sample | None)
