"""Events that were read together, and those that msgspec reads."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.core.errors import EngineError
from medley.wire.generate import EngineFault, TokenEvent, TokenLogprob, _parse_other, parse_event, parse_events

LOGPROB = TokenLogprob(1, -0.5, ())
FAULT = EngineFault(500, "x", None)


def spelled(each):
    """Spell an event as vLLM does."""
    if isinstance(each, EngineFault):
        return json.dumps({"error": {"message": each.message, "code": each.code}}).encode()
    content = [
        {
            "token_id": one.token_id,
            "logprob": one.logprob,
            "rank": 1,
            "top_logprobs": [{"token_id": token_id, "logprob": logprob} for token_id, logprob in one.top],
        }
        for one in each.logprobs
    ]
    choice = {
        "index": 0,
        "finish_reason": each.finish_reason,
        "stop_reason": each.stop_reason,
        "token_ids": each.token_ids,
        "routed_experts": None,
        "sampling_mask": None,
        "weight_versions": None,
        "logprobs": {"content": content} if content else None,
    }
    event = {"request_id": "generate-tokens-cmpl-0", "usage": None, "output_mode": "tokens", "choices": [choice]}
    return json.dumps(event, separators=(",", ":")).encode()


def event(*tokens, reason=None, logprobs=()):
    return TokenEvent(list(tokens), reason, None, logprobs)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param([event(1)], [event(1)], id="one"),
        pytest.param([event(1), event(2, 3), event(4)], [event(1, 2, 3, 4)], id="tokens"),
        pytest.param([event(1), event(2, reason="stop")], [event(1, 2, reason="stop")], id="a finish"),
        pytest.param(
            [event(1, logprobs=(LOGPROB,)), event(2, logprobs=(LOGPROB,))],
            [event(1, 2, logprobs=(LOGPROB, LOGPROB))],
            id="log probabilities",
        ),
        pytest.param([event(1), event(2, reason="abort")], [event(1), event(2, reason="abort")], id="an abort"),
        pytest.param([event(1), event(reason="error")], [event(1), event(reason="error")], id="an error"),
        pytest.param([event(1), FAULT], [event(1), FAULT], id="a fault"),
        pytest.param(
            [event(1, reason="stop"), event(2)], [event(1, reason="stop"), event(2)], id="nothing after a finish"
        ),
    ],
)
def test_what_only_adds_tokens_becomes_one(events, expected):
    assert parse_events([spelled(each) for each in events]) == expected


USUAL = (spelled(event(5, 17)), spelled(event(5, reason="stop", logprobs=(TokenLogprob(5, -0.5, ((7, -1.5),)),))))


def read_by(parse, payload):
    try:
        return parse(payload)
    except EngineError:
        return "refused"


@given(st.sampled_from(USUAL), st.text(max_size=3), st.integers(0, len(USUAL[1])), st.integers(0, 3))
def test_msgspec_reads_of_an_event_what_the_standard_library_reads(payload, noise, at, cut):
    """Whatever is written over an event, both agree."""
    payload = payload[:at] + noise.encode(errors="replace") + payload[at + cut :]
    assert read_by(parse_event, payload) == read_by(_parse_other, payload)


@given(st.lists(st.integers(0, 10**9 - 1), min_size=1, max_size=5))
def test_plain_events_are_read_whole(tokens):
    assert parse_events([spelled(event(*tokens)), spelled(event(*tokens))]) == [event(*tokens, *tokens)]
