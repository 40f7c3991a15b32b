"""Two real vLLM engines, one killed in mid-stream: every client gets the tokens of an uninterrupted run."""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager

import aiohttp
import pytest

from e2e.vllm_venv import ensure_venv
from medley.demo import local
from medley.demo.processes import SERVED_NAME, processes
from tests.model import ensure_model

pytestmark = pytest.mark.vllm
STREAMS, TOKENS = 6, 96


@contextmanager
def _started(folder):
    with processes(folder) as started:
        yield started


async def _ask(session, url, path, key=None, **body):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with session.post(url + path, json={"model": SERVED_NAME, **body}, headers=headers) as response:
        return response.status, json.loads(await response.read())


async def _engine_and_router_agree(session, engine, router, key):
    """The router's text, stop strings, log probabilities and end are what vLLM's own front end gives."""
    text = {"prompt": "the quick brown fox", "temperature": 0, "max_tokens": 64, "logprobs": 3}
    _, whole = await _ask(session, engine, "/v1/completions", key, **text)
    choice = whole["choices"][0]
    stop = choice["text"][20:23]
    for fields in ({}, {"stop": stop}, {"stop": [stop], "include_stop_str_in_output": True}, {"max_tokens": None}):
        asked = {name: value for name, value in {**text, **fields}.items() if value is not None}
        _, theirs = await _ask(session, engine, "/v1/completions", key, **asked)
        _, ours = await _ask(session, router, "/v1/completions", **asked)
        for name in ("text", "finish_reason", "stop_reason"):
            assert (fields, ours["choices"][0][name]) == (fields, theirs["choices"][0][name])
        if "stop" not in fields:
            assert ours["usage"] == {name: theirs["usage"][name] for name in ours["usage"]}
            mine, other = ours["choices"][0]["logprobs"], theirs["choices"][0]["logprobs"]
            assert mine["token_logprobs"] == pytest.approx(other["token_logprobs"], abs=1e-4)
            # Part of a character is U+FFFD here; vLLM gives nothing, and the character with its last part.
            pairs = list(zip(mine["tokens"], other["tokens"], strict=True))
            whole = [pair for pair in pairs if "\ufffd" not in pair[0]]
            assert len(whole) > len(pairs) / 2
            assert [one for one, _ in whole] == [other for _, other in whole]
    chat = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 24}
    _, theirs = await _ask(session, engine, "/v1/chat/completions", key, **chat)
    _, ours = await _ask(session, router, "/v1/chat/completions", **chat)
    assert ours["choices"][0]["message"]["content"] == theirs["choices"][0]["message"]["content"]
    status, refused = await _ask(session, router, "/v1/chat/completions", **chat | {"max_tokens": 100_000})
    assert (status, refused["error"]["param"]) == (400, "max_tokens")


async def test_a_killed_engine_costs_no_client_a_token(tmp_path):
    python, model = await asyncio.to_thread(ensure_venv), await asyncio.to_thread(ensure_model)
    with _started(tmp_path) as started:
        engines, router = await local.start(started, python, model)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
            key = started.key_file.read_text()
            await _engine_and_router_agree(session, engines[0].url, router.url, key)
        references = await local.record(router, STREAMS, TOKENS)
        streams = await local.interrupted(router, engines, references, TOKENS)
        moved = await local.resumes(router)
    assert [(each.error, each.finish_reason) for each in streams] == [(None, "length")] * STREAMS
    assert [tuple(each.tokens) for each in streams] == [each.tokens for each in references]
    assert moved >= 1
