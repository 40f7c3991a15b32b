"""JSON that msgspec takes, and JSON that only the standard library does."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.wire.json_text import canonical, read_json, write_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_what_is_written_reads_the_same_to_anybody(value):
    assert read_json(write_json(value)) == json.loads(write_json(value)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param(b'"\\ud800"', "\ud800", id="a lone surrogate"),
        pytest.param(b"1e400", float("inf"), id="a number beyond a double"),
        pytest.param(b"-Infinity", float("-inf"), id="a constant"),
        pytest.param('["é"]'.encode("utf-16"), ["é"], id="another encoding"),
    ],
)
def test_what_msgspec_refuses_the_standard_library_reads(text, value):
    assert read_json(text) == value


@given(st.binary(max_size=20))
def test_what_neither_takes_is_refused_by_the_one_who_is_asked_last(text):
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError, match="asked last"):
            read_json(text, _refuse)
    else:
        assert json.dumps(read_json(text)) == json.dumps(expected)


def _refuse(_):
    raise ValueError("asked last")


def test_a_lone_surrogate_is_written_as_an_escape():
    assert write_json({"a": "\ud800", "b": [1]}) == b'{"a":"\\ud800","b":[1]}'


@given(st.dictionaries(st.text(max_size=3), values, max_size=4))
def test_equal_values_have_one_canonical_text(value):
    turned = dict(reversed(value.items()))
    assert canonical((None, value)) == canonical((None, turned))
    assert json.loads(canonical((None, value))) == [None, value]


def test_of_a_lone_surrogate_too():
    assert canonical({"b": 1, "a": "\ud800"}) == canonical({"a": "\ud800", "b": 1})
