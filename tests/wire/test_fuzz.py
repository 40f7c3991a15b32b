"""Whatever bytes come in a message's place: it is parsed, or refused with the one error that its readers expect."""

import importlib
import json
import pkgutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import medley.wire
from medley.core.errors import EngineError
from medley.wire.assignment import Assignment, DrainRequest, EngineReport, Message
from medley.wire.generate import EngineFault, Rendered, TokenEvent, parse_event, parse_fault, parse_rendered
from medley.wire.ticket import (
    Exported,
    ExportRequest,
    Held,
    KvState,
    Pins,
    ReleaseRequest,
    RenewRequest,
    Source,
    Ticket,
)

DIGEST = "ab" * 32
SOURCE = {
    "host": "10.0.0.1", "port": 4000, "pp": 0, "tp": 0, "layers": ["a"], "head_lo": 0, "head_n": 2, "grant": DIGEST,
}  # fmt: skip
PINS = {"host": "10.0.0.1", "port": 4001}
TICKET = {
    "export_id": "e-1", "request_id": "r", "valid_tokens": 33, "tokens": DIGEST, "block_size": 32, "blocks": [7, 9],
    "dtype": "float32", "content": 128, "numerics": DIGEST, "model": DIGEST, "lease_s": 30.0, "pins": PINS,
    "sources": [SOURCE],
}  # fmt: skip
EXAMPLES = {
    Assignment: {"service": "s", "replica": "r", "generation": 1, "model": "/m", "served_model_name": "m"},
    DrainRequest: {"deadline": "2026-01-01T00:00:00Z"},
    EngineReport: {"phase": "Serving", "capabilities": ["resume-exact"]},
    Source: SOURCE,
    Pins: PINS,
    Ticket: TICKET,
    ExportRequest: {"requests": ["a"], "keep_running": True, "lease_s": 1.0},
    Exported: {"tickets": [TICKET], "unknown": ["b"]},
    RenewRequest: {"exports": ["e-1"], "lease_s": 1.0},
    ReleaseRequest: {"exports": ["e-1"]},
    Held: {"exports": ["e-1"], "unknown": []},
    KvState: {"mode": "Auto", "capable": True},
}
EVENT = {
    "choices": [{"token_ids": [1], "finish_reason": None, "logprobs": {"content": [{"token_id": 1, "logprob": 0}]}}]
}
RENDERED = {"token_ids": [1, 2], "sampling_params": {"max_tokens": 3, "stop": None}}

DEEP = {"lists": b"[" * 100_000, "maps": b'{"a":' * 50_000, "closed": b"[" * 50_000 + b"]" * 50_000}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def mangled(example):
    """Return JSON values that are the example but for one place, at any depth."""
    places = list(_places(example))
    return st.builds(lambda place, value: _put(example, place, value), st.sampled_from(places), anything)


def _places(value, at=()):
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*at, key))


def _put(value, place, new):
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = _put(value[place[0]], place[1:], new)
    return copy


def bodies(example):
    return (
        mangled(example).map(lambda value: json.dumps(value).encode())
        | anything.map(lambda value: json.dumps(value).encode())
        | st.binary(max_size=200)
        | st.sampled_from([b"", b"\xff\xfe", json.dumps(example).encode()[:-3]])
        | st.sampled_from(list(DEEP)).map(DEEP.__getitem__)
    )


def test_every_message_has_an_example():
    for module in pkgutil.iter_modules(medley.wire.__path__):
        importlib.import_module(f"medley.wire.{module.name}")
    wire = {each for each in Message.__subclasses__() if each.__module__.startswith("medley.wire.")}
    assert wire == EXAMPLES.keys()
    for kind, example in EXAMPLES.items():
        kind.model_validate_json(json.dumps(example))


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_any_bytes_are_a_message_or_refused(kind):
    @given(bodies(EXAMPLES[kind]))
    def parsed(body):
        try:
            message = kind.model_validate_json(body)
        except ValidationError:
            return
        assert kind.model_validate_json(message.model_dump_json()) == message

    parsed()


@given(bodies(EVENT))
def test_any_bytes_are_an_event_or_an_engine_error(body):
    try:
        event = parse_event(body)
    except EngineError:
        return
    assert event is None or isinstance(event, TokenEvent | EngineFault)


@given(st.integers(100, 599), bodies({"error": {"message": "m", "code": 400, "param": "p"}}))
def test_any_error_answer_is_a_fault(status, body):
    fault = parse_fault(status, body)
    assert fault.code == status
    assert isinstance(fault.message, str)


@given(mangled(RENDERED) | anything)
def test_any_json_is_a_rendered_request_or_an_engine_error(answer):
    try:
        assert isinstance(parse_rendered(answer), Rendered)
    except EngineError:
        return
