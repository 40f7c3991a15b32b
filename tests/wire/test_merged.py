"""Events that were read together."""

from __future__ import annotations

import pytest

from medley.wire.generate import EngineFault, TokenEvent, TokenLogprob, merged

LOGPROB = TokenLogprob(1, -0.5, ())
FAULT = EngineFault(500, "x", None)


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
    assert merged(events) == expected
