"""What the matrix of sizes takes for equal, carried and screened; the engines themselves are run by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medley.wire.generate import TokenEvent, TokenLogprob
from tests.engine.kv.cases import KINDS, Said, body, least_gap, same, stop_within
from tests.engine.kv.matrix import SIZES, TOGETHER, Case, Reference, Report, holds, pairs, table

RESULT = {
    "case": Case("tp1", "tp2", "greedy"), "equal": True, "how": ["carried"], "copies": 1, "tokens": 128, "cut": 40,
    "exact": True, "local_compute": 21, "calls": 21, "missed": [],
}  # fmt: skip


def event(*gaps):
    return TokenEvent(
        [1] * len(gaps), None, None, tuple(TokenLogprob(1, -1.0, ((2, -1.0 - gap), (1, -1.0))) for gap in gaps)
    )


def test_the_least_gap_is_that_of_all_tokens():
    assert least_gap([event(0.5, 0.25), event(0.125), TokenEvent([], "length", None, ())]) == 0.125


def test_every_size_meets_every_other_and_one_its_like():
    assert pairs(["tp1", "tp1b", "tp2"]) == [("tp1", "tp1b"), ("tp1", "tp2"), ("tp2", "tp1")]
    assert len(pairs(["tp1", "tp1b", "tp2", "pp2", "tp2pp2"])) == 13


def test_every_pair_is_there_once_engines_were_started_some_after_the_others():
    every = {pair for names in TOGETHER for pair in pairs(names)}
    assert (every, len(every)) == (set(pairs(list(SIZES))), 16)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"equal": False}, False),
        ({"how": ["computed again"]}, False),
        ({"how": ["carried", "finished"]}, False),
        ({"exact": False}, False),
        ({"exact": None}, True),
        ({"straddled": True}, True),
        ({"straddled": False}, False),
    ],
    ids=[
        "held",
        "other tokens",
        "computed again",
        "one of two ended",
        "more computed",
        "not known",
        "across",
        "not across",
    ],
)
def test_a_case_holds_if_it_was_carried_and_nothing_differs(change, expected):
    assert holds(RESULT | change) is expected


@pytest.mark.parametrize(
    "change",
    [
        {"text": "b"},
        {"calls": [["f", "{}"]]},
        {"finish_reason": "length"},
        {"stop_reason": "x"},
        {"logprobs": [-1.0]},
        {"logprobs": [-1.0, -2.01]},
    ],
    ids=["text", "tool call", "end", "stop string", "fewer log probabilities", "other log probabilities"],
)
def test_answers_differ_in_anything_that_a_client_has(change):
    said = Said("a", [], "stop", None, [-1.0, -2.0])
    assert same([said], [replace(said, logprobs=[-1.0, -2.0001])])
    assert not same([said], [replace(said, **change)])


def test_the_parts_of_a_tool_call_are_put_together():
    said = Said()
    for part in ({"name": "f"}, {"arguments": '{"a"'}, {"arguments": ":1}"}):
        said.add({"delta": {"tool_calls": [{"index": 0, "function": part}]}, "finish_reason": None})
    said.add({"delta": {}, "finish_reason": "tool_calls", "stop_reason": None})
    assert said == Said("", [["f", '{"a":1}']], "tool_calls", None, [])


def test_a_stop_string_spans_most_of_a_text():
    text = "".join(map(chr, range(1000, 1400)))
    assert stop_within(text) == text[10:360]
    assert len(stop_within(text * 10)) == 1000


def test_a_prompt_is_the_same_in_every_run_and_of_its_case_alone():
    asked = [body(KINDS["greedy"], name, "salt")["prompt"] for name in ("a", "a", "b")]
    assert asked[0] == asked[1] != asked[2]
    assert body(KINDS["tool call"], "a", "salt")["messages"] != body(KINDS["tool call"], "b", "salt")["messages"]


def test_a_report_is_read_as_it_was_written(tmp_path):
    report = Report.read(tmp_path / "matrix.json")
    case = Case("tp1", "tp2", "stop string")
    report.references["stop string"] = Reference(
        "a name", [Said("text", [["f", "{}"]], "stop", "x", [-0.5])], [[1, 2]], 0.01, 1
    )
    report.results[case] = RESULT | {"case": case, "straddled": True}
    report.write()
    again = Report.read(report.path)
    assert (again.references, table(again.results)) == (report.references, table(report.results))
    assert again.results.keys() == {case}


def test_the_table_says_what_held():
    other = RESULT | {"case": Case("tp2", "tp1", "a copy ahead"), "equal": False, "exact": None}
    head, *rows = table({each["case"]: each for each in (RESULT, other)}).splitlines()
    assert head.split("  ")[0] == "source -> target"
    assert [row.split("  ")[0].strip() for row in rows] == ["tp1 -> tp2", "tp2 -> tp1"]
    assert ("= 1+1 40/128" in rows[0], "NO ? 40/128" in rows[1]) == (True, True)
