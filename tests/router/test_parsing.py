"""Tool calls and reasoning: read by whichever engine is there, from the router's own log."""

from __future__ import annotations

from collections import deque

import aiohttp
import openai
import pytest

from medley.router.parsing import Asked, ParsedStream, parsed_message
from medley.router.session import Deliver, Finish
from medley.wire.generate import EngineFault, Rendered
from tests.router.conftest import staged
from tests.router.stub_engine import MODEL, TOKENIZER, Fault, StubEngine, reference

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
ASKED = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 30,
    "temperature": 0,
    "tools": TOOLS,
}
PROMPT = TOKENIZER.encode("user: hi").ids


def numbers(tokens):
    return "".join(f" {token}" for token in tokens)


def engines(**fields):
    faults = [Fault("cut", 7), Fault("cut", 6)]
    return [
        StubEngine(faults=deque([each]), derender_faults=deque([500, 503]), together=2, **fields) for each in faults
    ]


@pytest.mark.parametrize("reasons", [False, True], ids=["tools", "tools and a reasoning parser"])
async def test_a_streamed_tool_call_goes_on_with_another_engine(tokenizer_file, reasons):
    there = engines(reasons=reasons)
    async with staged(there, tokenizer_file) as stage:
        client = openai.AsyncOpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0)
        answer = await client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in answer]
        await client.close()
    made = reference(PROMPT, 30)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert deltas[0].role == "assistant"
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == numbers(made[:5])
    assert "".join(delta.content or "" for delta in deltas) == numbers(made[5:10])
    assert "".join(call.function.arguments for call in calls) == numbers(made[10:])
    assert [call.function.name for call in calls if call.function.name] == ["f"]
    assert len({call.id for call in calls if call.id}) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "tool_calls"
    assert chunks[-1].usage.completion_tokens == 30
    assert all(each.calls for each in there)


async def test_a_whole_answer_with_tool_calls(tokenizer_file):
    async with staged(engines(), tokenizer_file) as stage:
        client = openai.AsyncOpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0)
        answer = await client.chat.completions.create(**ASKED, n=2, logprobs=True)
        await client.close()
    made = reference(PROMPT, 30)
    for choice in answer.choices:
        calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls]
        assert (choice.message.content, choice.finish_reason) == (numbers(made[5:10]), "tool_calls")
        assert calls == [("f", numbers(made[10:]))]
        assert [entry.token for entry in choice.logprobs.content] == [TOKENIZER.decode([token]) for token in made]
    assert answer.usage.completion_tokens == 60


async def test_plain_chat_is_read_only_where_engines_reason(tokenizer_file):
    body = {**ASKED, "tools": None, "max_tokens": 8}
    made = reference(PROMPT, 8)
    read = {"role": "assistant", "reasoning": numbers(made[:5]), "content": numbers(made[5:]), "refusal": None}
    for reasons in (False, True):
        engine = StubEngine(reasons=reasons)
        async with (
            staged([engine], tokenizer_file) as stage,
            aiohttp.ClientSession() as session,
            session.post(f"{stage.url}/v1/chat/completions", json=body) as response,
        ):
            message = (await response.json())["choices"][0]["message"]
        assert (engine.derendered, message == read) == (int(reasons), reasons)


async def test_an_answer_that_no_engine_can_read_is_an_error(tokenizer_file):
    engine = StubEngine(derender_faults=deque([400]))
    async with (
        staged([engine], tokenizer_file) as stage,
        aiohttp.ClientSession() as session,
        session.post(f"{stage.url}/v1/chat/completions", json=ASKED) as response,
    ):
        assert (response.status, (await response.json())["error"]["message"]) == (400, "as told")


async def test_adapters_pass_through_by_name(tokenizer_file):
    first = StubEngine(adapters=("sql",), faults=deque([Fault("cut", 3)]))
    there = [first, StubEngine(), StubEngine(adapters=("sql",))]
    async with staged(there, tokenizer_file) as stage, aiohttp.ClientSession() as session:
        while len(stage.kept.fleet.knowledge.adapters) < 3:
            async with session.get(f"{stage.url}/health") as response:
                await response.read()
        async with session.get(f"{stage.url}/v1/models") as response:
            names = [each["id"] for each in (await response.json())["data"]]
        body = {**ASKED, "tools": None, "model": "sql"}
        async with session.post(f"{stage.url}/v1/chat/completions", json=body) as response:
            answer = await response.json()
    assert names == [MODEL, "sql"]
    assert (answer["model"], answer["usage"]["completion_tokens"]) == ("sql", 30)
    assert [call["model"] for each in there for call in each.calls] == ["sql"] * len(first.calls + there[2].calls)
    assert there[1].calls == []


# On values

FOR = Asked({"model": "m"}, Rendered((1, 2), 10, 0, {}, {}), "r")


async def spelled(body):
    """Read tokens as letters of content."""
    kind = "generate_chunk" if body["stream"] else "generate_response"
    choice = body[kind]["choices"][0]
    said = {"role": "assistant", "content": "".join(map(chr, choice["token_ids"])), "tool_calls": []}
    if not body["stream"]:
        return {"choices": [{"message": said}]}
    return {"chunk": {"choices": [{"delta": said, "finish_reason": choice["finish_reason"]}]}, "stream_state": {}}


def parts(*texts, excess=0, ended=False, held=()):
    made = [Deliver(text, list(map(ord, text)), (), n not in held) for n, text in enumerate(texts[:-1])]
    return [*made, Finish(texts[-1], list(map(ord, texts[-1])), (), "stop", None, excess, ended)]


@pytest.mark.parametrize(
    ("given", "content"),
    [
        pytest.param(parts("one ", "two ", "three"), "one two three", id="plain"),
        pytest.param(
            parts("one ", "tw", "o ENDx", excess=4, held=(1,)), "one two ", id="no stop string, nor what follows"
        ),
        pytest.param(parts("one ", "two", "e", ended=True), "one two", id="the token that ended it is no text"),
    ],
)
async def test_what_is_not_text_does_not_show(given, content):
    read = []
    stream = ParsedStream(FOR, spelled, read.append)
    for part in given:
        stream.feed(part)
    assert await stream.run() is None
    assert "".join(each.delta.get("content", "") for each in read) == content
    message, reason = await parsed_message(FOR, given, spelled)
    assert (message, reason) == ({"role": "assistant", "content": content}, "stop")


async def test_what_may_begin_a_stop_string_is_not_read_yet():
    read = []
    stream = ParsedStream(FOR, spelled, read.append)
    for part in parts("one ", "tw", "o", held=(1,))[:-1]:
        stream.feed(part)
    stream.close()
    assert await stream.run() is None
    assert [each.delta for each in read] == [{"content": "one "}]


async def test_a_fault_ends_the_reading():
    async def refuses(_):
        return EngineFault(400, "no parser", None)

    stream = ParsedStream(FOR, refuses, print)
    stream.feed(parts("x", "y")[-1])
    assert await stream.run() == EngineFault(400, "no parser", None)
