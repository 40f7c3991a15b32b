"""What clients may ask, and how they are told what they may not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.router.openai_api import INTERNAL_FIELDS, Endpoint, RequestError, parse_question
from medley.router.text import TextRules

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields):
    return parse_question(json.dumps({"messages": MESSAGES, **fields}).encode(), Endpoint.CHAT)


def completion(**fields):
    return parse_question(json.dumps(fields).encode(), Endpoint.COMPLETION)


def test_a_question_is_parsed_whole():
    question = chat(
        model="m",
        temperature=0.5,
        n=2,
        seed=7,
        stop=["a", "b"],
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=3,
        max_completion_tokens=9,
        min_tokens=2,
        user="u",
    )
    assert question.body == {
        "messages": MESSAGES,
        "model": "m",
        "temperature": 0.5,
        "logprobs": True,
        "top_logprobs": 3,
        "max_completion_tokens": 9,
        "min_tokens": 2,
    }
    assert (question.n, question.prompts, question.seed, question.stream) == (2, 1, 7, True)
    assert (question.include_usage, question.continuous_usage, question.top_logprobs) == (True, False, 3)
    assert (question.rules, question.ignored) == (TextRules(("a", "b"), min_tokens=2), ("user",))


def test_messages_reach_the_engine_as_they_were_written():
    messages = [{"role": "assistant", "content": None, "name": "x"}, {"role": "user", "content": [{"type": "text"}]}]
    assert chat(messages=messages).body == {"messages": messages}


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("text", 1), ([1, 2, 3], 1), (["a", "b"], 2), ([[1], [2, 3], [4]], 3)],
    ids=["text", "ids", "texts", "lists of ids"],
)
def test_a_completion_has_one_prompt_or_several(prompt, prompts):
    question = completion(prompt=prompt)
    assert (question.body, question.prompts) == ({"prompt": prompt}, prompts)


REFUSALS = {
    "no body": (b"", None, "the body is not valid JSON: Expecting value: line 1 column 1 (char 0)"),
    "cut off": (b'{"messages": [', None, "the body is not valid JSON: Expecting value: line 1 column 15 (char 14)"),
    "not an object": (b"[]", None, "the body has to be a JSON object"),
    "NaN": (b'{"temperature": NaN}', None, "the body is not valid JSON: NaN is not JSON"),
    "no double": (b'{"metadata": {"a": 1e400}}', None, "the body is not valid JSON: 1e400 is too large a number"),
    "too deep": (b"[" * 200_000, None, "the body is nested too deeply"),
    "not UTF-8": (b"\xff\xfe", None, "the body is not valid JSON: "),
    "no messages": (b"{}", "messages", "messages: required"),
    "empty messages": (b'{"messages": []}', "messages", "messages: list should have at least 1 item"),
}


@pytest.mark.parametrize(("raw", "param", "message"), REFUSALS.values(), ids=REFUSALS)
def test_a_body_that_is_no_request_is_refused(raw, param, message):
    with pytest.raises(RequestError) as refused:
        parse_question(raw, Endpoint.CHAT)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"temperature": -1}, "temperature", "temperature: input should be greater than or equal to 0"),
        ({"temperature": "1"}, "temperature", "temperature: input should be a valid number"),
        ({"top_p": 0}, "top_p", "top_p: input should be greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens: input should be greater than or equal to 1"),
        ({"max_tokens": 10**30}, "max_tokens", "max_tokens: input should be less than or equal to 10000000"),
        ({"max_tokens": 1.5}, "max_tokens", "max_tokens: input should be a valid integer"),
        ({"n": 33}, "n", "n: input should be less than or equal to 32"),
        ({"seed": 2**63}, "seed", "seed: input should be less than 9223372036854775808"),
        ({"stop": ""}, "stop", "stop: string should have at least 1 character"),
        ({"stop": ["x"] * 17}, "stop", "stop: list should have at most 16 items after validation, not 17"),
        ({"stream": "yes"}, "stream", "stream: input should be a valid boolean"),
        ({"stream_options": {}}, "stream_options", "stream_options: only allowed with stream: true"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "stream_options.x: unknown parameter; leave it out"),
        ({"top_logprobs": 3}, "top_logprobs", "top_logprobs: needs logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "top_logprobs: input should be less than or equal to 20"),
        ({"functions": [{}]}, "functions", "functions: replaced by tools; use those"),
        ({"tool_choice": "some"}, "tool_choice", "tool_choice: input should be 'none', 'auto' or 'required'"),
        ({"presence_penalty": 3}, "presence_penalty", "presence_penalty: input should be less than or equal to 2"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "logit_bias: input should be less than or equal to 100"),
        ({"max_token": 5}, "max_token", "max_token: unknown parameter; leave it out"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "stop_token_ids.0: input should be greater than or equal to 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_an_absurd_parameter_is_named(fields, param, message):
    with pytest.raises(RequestError) as refused:
        chat(**fields)
    assert (refused.value.status, refused.value.param, str(refused.value)) == (400, param, message)


@pytest.mark.parametrize("prompt", [[], [[]], [["a"]], {"a": 1}, 5, ["a", 1], [-1], [True], None], ids=repr)
def test_a_prompt_is_text_or_token_ids(prompt):
    with pytest.raises(RequestError) as refused:
        completion(prompt=prompt)
    assert (refused.value.status, refused.value.param) == (400, "prompt")


@pytest.mark.parametrize("name", sorted(INTERNAL_FIELDS))
@pytest.mark.parametrize(
    "place",
    [
        lambda name: {name: {}},
        lambda name: {"metadata": {"a": [{"b": {name: None}}]}},
        lambda name: {"messages": [{"role": "user", "content": [{"type": "text", name: 1}]}]},
        lambda name: {"chat_template_kwargs": {name: 1}},
    ],
    ids=["top", "nested", "in a message", "in a template"],
)
def test_internal_fields_are_refused_wherever_they_are(name, place):
    with pytest.raises(RequestError) as refused:
        chat(**place(name))
    assert (refused.value.status, refused.value.param) == (400, name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    max_leaves=10,  # there are up to nine of them in a body
)


@given(
    st.dictionaries(
        st.sampled_from(
            ["messages", "prompt", "n", "stop", "stream_options", "logit_bias", "seed", "response_format", "x"]
        ),
        JSON,
    ),
    st.sampled_from(list(Endpoint)),
)
def test_any_json_is_a_question_or_a_refusal_with_a_status_of_its_own(body, endpoint):
    try:
        outcome = parse_question(json.dumps(body).encode(), endpoint).endpoint
    except RequestError as refused:
        outcome = refused.status
    assert outcome in {400, endpoint}
