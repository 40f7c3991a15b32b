"""Events as vLLM 0.32.0 wrote them, and what is made of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.core.errors import EngineError
from medley.wire.generate import (
    EngineFault,
    EventSplitter,
    GenerateCall,
    Rendered,
    TokenEvent,
    TokenLogprob,
    parse_event,
    parse_fault,
    parse_rendered,
)

# Recorded from vLLM 0.32.0.
EVENT = (
    b'{"request_id":"generate-tokens-r1","usage":null,"output_mode":"tokens","choices":[{"index":0,"finish_reason":null,'
    b'"stop_reason":null,"token_ids":[360],"routed_experts":null,"sampling_mask":null,"weight_versions":null,"logprobs":'
    b'{"content":[{"token_id":360,"logprob":-3.71,"rank":1,"top_logprobs":[{"token_id":360,"logprob":-3.71,"rank":1},'
    b'{"token_id":96,"logprob":-3.87,"rank":2}]}]}}]}'
)
ERROR = b'{"error": {"message": "Token id 700000 is out of vocabulary", "type": "BadRequestError", "param": null, "code": 400}}'
RENDERED = {
    "request_id": "chatcmpl-a00b4d2c58930cb0",
    "token_ids": [286, 274],
    "token_offsets": None,
    "features": None,
    "sampling_params": {
        "n": 2, "presence_penalty": 0.0, "temperature": 1.0, "seed": 5, "stop": ["abc"], "stop_token_ids": [],
        "max_tokens": 5, "min_tokens": 2, "logprobs": 2, "output_kind": 1, "skip_clone": True,
        "output_text_buffer_length": 2, "bad_words": [],
    },
    "model": "m",
    "stream": True,
    "cache_salt": "s",
    "priority": 0,
}  # fmt: skip


def test_an_event_with_tokens():
    assert parse_event(EVENT) == TokenEvent([360], None, None, (TokenLogprob(360, -3.71, ((360, -3.71), (96, -3.87))),))


@pytest.mark.parametrize(
    ("payload", "event"),
    [
        pytest.param(b"[DONE]", None, id="done"),
        pytest.param(b'{"choices":[],"usage":{"prompt_tokens":3}}', None, id="usage"),
        pytest.param(ERROR, EngineFault(400, "Token id 700000 is out of vocabulary", None), id="error"),
        pytest.param(b'{"error":"Unauthorized"}', EngineFault(500, "Unauthorized", None), id="error as text"),
        pytest.param(
            b'{"choices":[{"finish_reason":"abort","token_ids":[]}]}', TokenEvent([], "abort", None, ()), id="aborted"
        ),
    ],
)
def test_events_without_tokens(payload, event):
    assert parse_event(payload) == event


@pytest.mark.parametrize("payload", [b"{]", b"[]", b'{"choices":[1]}', b'{"choices":[{"logprobs":{"content":[{}]}}]}'])
def test_what_is_no_event_is_an_engine_error(payload):
    with pytest.raises(EngineError, match="reading an engine's event"):
        parse_event(payload)


def test_a_rendered_request_keeps_what_the_engine_needs_again():
    assert parse_rendered(RENDERED) == Rendered(
        token_ids=(286, 274),
        max_tokens=5,
        min_tokens=2,
        sampling={"presence_penalty": 0.0, "temperature": 1.0, "stop_token_ids": [], "logprobs": 2, "bad_words": []},
        attachments={"cache_salt": "s", "priority": 0},
    )


def test_a_limit_that_was_left_out_is_the_default_of_sampling_parameters_and_not_the_models():
    assert parse_rendered({"token_ids": [1], "sampling_params": {}}).max_tokens == 16


def test_the_body_of_a_call():
    call = GenerateCall("r", (1, 2), {"max_tokens": 3}, {"cache_salt": "s"})
    assert json.loads(call.body()) == {
        "request_id": "r",
        "token_ids": [1, 2],
        "sampling_params": {"max_tokens": 3, "detokenize": False},
        "cache_salt": "s",
        "stream": True,
    }


@given(
    st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"")), max_size=8),
    st.lists(st.integers(1, 9), min_size=1),
)
def test_events_are_whole_however_the_bytes_come(payloads, sizes):
    raw = b"".join(b"data: " + payload + b"\n\n" for payload in payloads) + b"data: half"
    splitter, found, at, turn = EventSplitter(), [], 0, 0
    while at < len(raw):
        size = sizes[turn % len(sizes)]
        found += splitter.feed(raw[at : at + size])
        at, turn = at + size, turn + 1
    assert found == payloads


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (ERROR, EngineFault(503, "Token id 700000 is out of vocabulary", None)),
        (b"<html>", EngineFault(503, "<html>", None)),
        (b"", EngineFault(503, "status 503", None)),
        (b'{"error":"Unauthorized"}', EngineFault(503, "Unauthorized", None)),
    ],
    ids=["vLLM's", "a proxy's", "empty", "text"],
)
def test_the_status_of_an_error_answer_goes_before_what_its_body_says(body, fault):
    assert parse_fault(503, body) == fault
