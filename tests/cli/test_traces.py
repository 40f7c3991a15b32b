"""Traces of requests: the published forms are read, and what is wrong is named by file, line and column."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.cli import traces
from medley.core.errors import InvalidInputError
from medley.planning.arrivals import Arrival

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "requests.csv"
    path.write_text(text)
    return path


def test_azure(tmp_path):
    first, second = traces.read(written(tmp_path, AZURE))
    assert second.at_s - first.at_s == pytest.approx(4.314579)
    assert (first.input_tokens, first.output_tokens, second.input_tokens, second.output_tokens) == (374, 44, 396, 109)


def test_vidur_has_no_times(tmp_path):
    text = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n3772,54,3826,69.85\n"
    assert traces.read(written(tmp_path, text)) == (Arrival(None, 3772, 54),)


def test_seconds_and_names_of_openai_in_any_order(tmp_path):
    text = "completion_tokens,Arrived_At,prompt_tokens\n5,12.5,100\n\n6,13,0\n"
    assert traces.read(written(tmp_path, text)) == (Arrival(12.5, 100, 5), Arrival(13.0, 0, 6))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "requests.csv, line 1: has no column of input tokens (it has: nothing)", id="empty"),
        pytest.param("0,5.2,512,0\n", "line 1: has no column of input tokens (it has: 0, 5.2, 512, 0)", id="no header"),
        pytest.param("time,input_tokens\n", "line 1: has no column of output tokens", id="no outputs"),
        pytest.param("input_tokens,prompt_tokens,output_tokens\n", "several columns of input", id="two inputs"),
        pytest.param("time,timestamp,input_tokens,output_tokens\n", "several columns of times", id="two times"),
        pytest.param(AZURE.splitlines()[0], "has no requests below its header", id="header alone"),
        pytest.param(AZURE + "2023-11-16 18:15:51,x,1\n", "line 4, column ContextTokens: expected a whole number of tokens, got 'x'", id="word"),
        pytest.param(AZURE + "2023-11-16 18:15:51,1.5,1\n", "line 4, column ContextTokens: expected a whole number of tokens, got '1.5'", id="fraction"),
        pytest.param(AZURE + "2023-11-16 18:15:51,1,-1\n", "line 4, column GeneratedTokens: expected 0 tokens or more, got -1", id="negative"),
        pytest.param(AZURE + "2023-11-16 18:15:51,99999999,1\n", "does the column count bytes?", id="bytes"),
        pytest.param(AZURE + "17:00,1,1\n", "line 4, column TIMESTAMP: expected a time such as", id="clock time"),
        pytest.param(AZURE + "12.5,1,1\n", "line 4, column TIMESTAMP: is a number of seconds, lines before it are a date", id="mixed"),
        pytest.param(AZURE + "2023-11-16 18:15:51,1\n", "line 4: has 2 columns, the header 3", id="too few"),
        pytest.param("time,input_tokens,output_tokens\nnan,1,1\n", "line 2, column time: expected a finite number", id="NaN"),
        pytest.param("time,input_tokens,output_tokens\n1700158546680,1,1\n", "column time: expected seconds, got 1700158546680: that looks like milli", id="ms"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_line_and_column(tmp_path, text, message):
    with pytest.raises(InvalidInputError) as refused:
        traces.read(written(tmp_path, text))
    assert message in str(refused.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InvalidInputError, match="cannot be read: No such file"):
        traces.read(tmp_path / "none.csv")


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "binary.csv"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InvalidInputError, match="is not CSV"):
        traces.read(path)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_by_name(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text("time,input_tokens,output_tokens\n" + text, encoding="utf-8", errors="replace")
    refusal = None
    try:
        found = traces.read(path)
    except InvalidInputError as error:
        refusal = str(error)
    if refusal is None:
        assert all(each.input_tokens >= 0 and each.output_tokens >= 0 for each in found)
    else:
        assert refusal.startswith(str(path))


@given(
    st.lists(st.tuples(st.floats(-1e9, 1e9), st.integers(0, 10_000), st.integers(0, 10_000)), min_size=1, max_size=20)
)
def test_what_is_written_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "rows.csv"
    lines = [f"{at!r},{inputs},{outputs}" for at, inputs, outputs in rows]
    path.write_text("\n".join(["time,input_tokens,output_tokens", *lines]))
    assert traces.read(path) == tuple(Arrival(*row) for row in rows)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "requests", "first"),
    [
        pytest.param("azure/AzureLLMInferenceTrace_conv.csv", 19366, (374, 44), id="conversation"),
        pytest.param("azure/AzureLLMInferenceTrace_code.csv", 8819, (4808, 10), id="code"),
        pytest.param("vidur/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv", 28257, (3772, 54), id="arXiv"),
    ],
)
def test_published_traces(data, name, requests, first):
    found = traces.read(data / "requests" / name)
    assert (len(found), found[0].input_tokens, found[0].output_tokens) == (requests, *first)
