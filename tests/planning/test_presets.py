"""The presets are counts of real requests, and the data they came from says the same."""

from __future__ import annotations

import csv

import pytest

from medley.core.errors import InvalidInputError
from medley.core.workload import MELANGE_GRID
from medley.planning.presets import COUNTS, RAREST, preset


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_a_preset_keeps_nearly_all_requests_and_none_of_the_rare_sizes(name):
    weights = [weight for row in preset(name).weights for weight in row]
    counts = [count for row in COUNTS[name] for count in row]
    assert sum(weights) > 0.985 * sum(counts)
    assert min(weight for weight in weights if weight) >= RAREST * sum(counts)
    assert sum(rate for _, rate in preset(name).demand(8.0).requests_per_second) == pytest.approx(8.0)


def test_an_unknown_preset_is_refused_with_the_names_that_exist():
    with pytest.raises(InvalidInputError, match="no preset named 'poems'; there are: chat, code, summarization"):
        preset("poems")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "file", "input_column", "output_column"),
    [
        ("chat", "azure/AzureLLMInferenceTrace_conv.csv", "ContextTokens", "GeneratedTokens"),
        ("code", "azure/AzureLLMInferenceTrace_code.csv", "ContextTokens", "GeneratedTokens"),
        (
            "summarization",
            "vidur/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",
            "num_prefill_tokens",
            "num_decode_tokens",
        ),
    ],
)
def test_counts_are_those_of_the_published_requests(data, name, file, input_column, output_column):
    counted = [[0] * len(MELANGE_GRID.output_edges) for _ in MELANGE_GRID.input_edges]
    with (data / "requests" / file).open() as lines:
        for row in csv.DictReader(lines):
            bucket = MELANGE_GRID.bucket(int(float(row[input_column])), int(float(row[output_column])))
            counted[bucket.input][bucket.output] += 1
    assert tuple(map(tuple, counted)) == COUNTS[name]
