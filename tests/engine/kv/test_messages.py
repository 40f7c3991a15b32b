"""A worker gives only what its engine granted, and a stranger's bytes do nothing."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.engine.kv.layout import Shard
from medley.engine.kv.messages import (
    LENGTH,
    MOST_MESSAGE_BYTES,
    Answer,
    PinQuery,
    ProtocolError,
    ReadRequest,
    framed,
    grant,
    length,
    parse_answer,
    parse_question,
    refusal,
)
from tests.engine.kv.cache import GEOMETRY

SECRET = b"s" * 32
HELD = Shard(("a", "b"), 2, 2)


def read(**changes) -> ReadRequest:
    return ReadRequest(**{
        "export_id": "e", "grant": grant(SECRET, "e", (4, 9, 5)), "granted": (4, 9, 5), "wanted": (1, 3), "layers": ("b",),
        "head_lo": 3, "head_n": 1, "block_size": GEOMETRY.block_size, "dtype": GEOMETRY.dtype, "content": GEOMETRY.content,
    } | changes)  # fmt: skip


def test_messages_survive_their_frame():
    for message in (read(), PinQuery(export_id="e")):
        frame = framed(message)
        assert length(frame[: LENGTH.size]) == len(frame) - LENGTH.size
        assert parse_question(frame[LENGTH.size :]) == message
    answer = Answer(ok=True, bytes_total=9)
    assert parse_answer(framed(answer)[LENGTH.size :]) == answer


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({}, ""),
        ({"grant": "0" * 64}, "grant"),
        ({"export_id": "other"}, "grant"),
        ({"granted": (4, 9, 6)}, "grant"),
        ({"granted": (4, 9)}, "grant"),
        ({"block_size": 8}, "layout"),
        ({"dtype": "float32"}, "layout"),
        ({"content": 7}, "layout"),
        ({"wanted": (1, 4)}, "wanted"),
        ({"wanted": (2, 2)}, "wanted"),
        ({"head_lo": 1}, "heads"),
        ({"head_lo": 3, "head_n": 2}, "heads"),
        ({"layers": ("c",)}, "layers"),
        ({"layers": ("a", "a")}, "layers"),
    ],
    ids=str,
)
def test_what_is_not_granted_or_not_here_is_refused_by_name(change, named):
    said = refusal(read(**change), SECRET, HELD, GEOMETRY)
    assert said.partition(":")[0] == named


def test_too_long_messages_are_refused_before_they_are_read():
    assert length(LENGTH.pack(MOST_MESSAGE_BYTES)) == MOST_MESSAGE_BYTES
    with pytest.raises(ProtocolError, match="at most"):
        length(LENGTH.pack(MOST_MESSAGE_BYTES + 1))


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_are_a_protocol_error(body):
    for parse in (parse_question, parse_answer):
        with pytest.raises(ProtocolError):
            parse(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(ReadRequest.model_fields)), JSON)
def test_any_value_in_any_field_is_a_message_a_refusal_or_a_protocol_error(name, value):
    raw = json.loads(read().model_dump_json()) | {name: value}
    try:
        question = parse_question(json.dumps(raw).encode())
    except ProtocolError:
        return
    assert isinstance(question, ReadRequest)
    assert isinstance(refusal(question, SECRET, HELD, GEOMETRY), str)
