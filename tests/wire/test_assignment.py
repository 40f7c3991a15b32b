"""The control messages refuse what they do not know and survive a round trip."""

import pytest
from pydantic import ValidationError

from medley.wire.assignment import Assignment, DrainRequest, EnginePhase, EngineReport

ASSIGNMENT = Assignment(service="chat", replica="chat-l4-s-a-0", generation=1, model="/model", served_model_name="m")


@pytest.mark.parametrize(
    "message",
    [ASSIGNMENT, DrainRequest(), EngineReport(phase=EnginePhase.SERVING, generation=1, running=2)],
    ids=lambda m: type(m).__name__,
)
def test_a_message_survives_the_wire(message):
    assert type(message).model_validate_json(message.model_dump_json()) == message


@pytest.mark.parametrize(
    "change",
    [{"generation": 0}, {"tensor_parallel": 0}, {"rank": -1}, {"max_model_len": 0}, {"colour": "red"}],
    ids=lambda c: next(iter(c)),
)
def test_what_makes_no_sense_is_refused(change):
    with pytest.raises(ValidationError):
        Assignment.model_validate(ASSIGNMENT.model_dump() | change)
