"""The router between real clients and engines that break: bytes over sockets."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections import deque
from datetime import UTC, datetime, timedelta

import aiohttp
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.router.conftest import staged
from tests.router.stub_engine import MODEL, TOKENIZER, Fault, StubEngine, reference

PROMPT = [5, 6, 7]
KINDS = ("cut", "half-event", "end", "error-event", "abort", "garbage", "status-500", "status-429")


async def stream(url, **fields):
    """Return status, the tokens and the text of one streamed completion, its last events and the headers."""
    body = {"prompt": PROMPT, "temperature": 0, "stream": True, "logprobs": 0, **fields}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/completions", json=body) as response,
    ):
        raw = (await response.read()).decode()
        if response.status != 200:
            return response.status, json.loads(raw)
        events = [line.removeprefix("data: ") for line in raw.split("\n\n") if line]
        assert events[-1] == "[DONE]"
        return response, [json.loads(event) for event in events[:-1]]


async def until(holds):
    """Wait for something that no event announces."""
    for _ in range(3000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come about within half a minute")


def said(events):
    choices = [choice for event in events for choice in event.get("choices", ())]
    texts = [token for choice in choices for token in (choice["logprobs"] or {}).get("tokens", ())]
    return "".join(choice["text"] for choice in choices), texts, choices[-1]["finish_reason"]


def expected(count, prompt=PROMPT, **kind):
    tokens = reference(prompt, count, **kind)
    return TOKENIZER.decode(tokens), [TOKENIZER.decode([token]) for token in tokens], "length"


@settings(max_examples=25)
@given(
    # At most four breaks: a fifth without a token in between is counted against the request (test_session).
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 12)), max_size=2),
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 12)), max_size=2),
    st.integers(1, 3),
)
def test_a_client_sees_an_uninterrupted_stream_wherever_engines_break(tokenizer_file, first, second, together):
    engines = [
        StubEngine(faults=deque(Fault(kind, after) for kind, after in faults), together=together)
        for faults in (first, second)
    ]
    for engine in engines:  # whatever breaks without a token is counted against the request: see test_session
        engine.faults = deque(
            fault for fault in engine.faults if not fault.kind.startswith("status") or fault is engine.faults[0]
        )

    async def main():
        async with staged(engines, tokenizer_file) as stage:
            return await stream(stage.url, max_tokens=24)

    _, events = asyncio.run(main())
    text, texts, reason = said(events)
    # The last character may be incomplete: then its bytes are not shown.
    whole, parts, length = expected(24)
    assert (text, texts, reason) == (text if whole.startswith(text) else whole, parts, length)
    assert len(whole.rstrip("\N{REPLACEMENT CHARACTER}")) <= len(text)


async def test_usage_counts_what_the_client_got(tokenizer_file):
    engines = [StubEngine(faults=deque([Fault("cut", 5), Fault("cut", 3)])) for _ in range(2)]
    async with staged(engines, tokenizer_file) as stage:
        _, events = await stream(stage.url, max_tokens=20, stream_options={"include_usage": True})
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 20, "total_tokens": 23}
    assert {event["usage"] for event in events[:-1]} == {None}


async def test_an_answer_in_one_piece_gets_the_same_protection(tokenizer_file):
    engines = [StubEngine(faults=deque([Fault("cut", 5), Fault("half-event", 3)])) for _ in range(2)]
    async with staged(engines, tokenizer_file) as stage, aiohttp.ClientSession() as session:
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 30, "temperature": 0}
        async with session.post(f"{stage.url}/v1/chat/completions", json=body) as response:
            answer = await response.json()
    ids = TOKENIZER.encode("user: hi").ids
    text = TOKENIZER.decode(reference(ids, 30)).rstrip("\N{REPLACEMENT CHARACTER}")
    choice = answer["choices"][0]
    assert (choice["message"]["role"], choice["message"]["content"].rstrip("\N{REPLACEMENT CHARACTER}")) == (
        "assistant",
        text,
    )
    assert (choice["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 30)


async def test_penalties_are_replayed_and_a_capable_engine_is_given_its_outputs_back(tokenizer_file):
    for capable in (False, True):
        engines = [StubEngine(faults=deque([Fault("cut", 5)]), resumes_output=capable) for _ in range(2)]
        async with staged(engines, tokenizer_file) as stage:
            response, events = await stream(stage.url, max_tokens=20, presence_penalty=1.0)
        assert said(events)[1:] == expected(20, outputs_count=True)[1:]
        assert response.headers["x-medley-resume"] == "exact"


async def test_sampling_is_seeded_and_says_that_a_cut_would_be_approximate(tokenizer_file):
    engines = [StubEngine()]
    async with staged(engines, tokenizer_file) as stage:
        given_seed, _ = await stream(stage.url, max_tokens=5, temperature=1, seed=42)
        await stream(stage.url, max_tokens=5, temperature=1)
    assert given_seed.headers["x-medley-resume"] == "approximate"
    first, second = (call["sampling_params"]["seed"] for call in engines[0].calls)
    assert first == 42
    assert 0 <= second < 2**63


async def test_token_ids_are_rendered_once_per_set_of_parameters(tokenizer_file):
    engine = StubEngine(defaults={"presence_penalty": 0.5})
    async with staged([engine], tokenizer_file) as stage:
        await until(lambda: stage.kept.fleet.knowledge.longest)
        answers = [
            (await stream(stage.url, max_tokens=tokens, prompt=prompt, temperature=temperature))[1]
            for tokens, prompt, temperature in ((5, [5, 6], 0), (5, [7, 8, 9], 0), (5, [5, 6], 1), (6, [5, 6], 0))
        ]
        refused, body = await stream(stage.url, max_tokens=5000)
        text = await stream(stage.url, max_tokens=5, prompt="the quick")
    assert engine.rendered == 3 + 2  # the second needs none; what is too long, and text, are the engine's to judge
    assert [said(each)[1] for each in answers[:2]] == [
        expected(5, prompt, outputs_count=True)[1] for prompt in ([5, 6], [7, 8, 9])
    ]
    assert [call["sampling_params"]["presence_penalty"] for call in engine.calls] == [0.5] * 5
    assert (refused, body["error"]["param"], text[0].status) == (400, "max_tokens", 200)


async def test_choices_are_split_and_seeded_one_by_one(tokenizer_file):
    engines = [StubEngine(faults=deque([Fault("cut", 2)])) for _ in range(2)]
    async with staged(engines, tokenizer_file) as stage:
        client = openai.AsyncOpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0)
        answer = await client.completions.create(
            model=MODEL, prompt=[PROMPT, [8, 9]], n=2, seed=100, temperature=1, max_tokens=12
        )
        await client.close()
    texts = [
        TOKENIZER.decode(reference(prompt, 12, seed=seed)).rstrip("\N{REPLACEMENT CHARACTER}")
        for prompt in (PROMPT, [8, 9])
        for seed in (100, 101)
    ]
    assert [choice.text.rstrip("\N{REPLACEMENT CHARACTER}") for choice in answer.choices] == texts
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.completion_tokens == 48
    assert answer.usage.prompt_tokens == 5


async def test_the_openai_client_streams_chat(tokenizer_file):
    engines = [StubEngine(faults=deque([Fault("cut", 6)])) for _ in range(2)]
    async with staged(engines, tokenizer_file) as stage:
        client = openai.AsyncOpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0)
        models = [model.id async for model in await client.models.list()]
        answer = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=16,
            temperature=0,
            stream=True,
            logprobs=True,
            top_logprobs=2,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in answer]
        await client.close()
    tokens = reference(TOKENIZER.encode("user: hi").ids, 16)
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    entries = [entry for choice in choices for entry in (choice.logprobs.content if choice.logprobs else ())]
    assert models == [MODEL]
    assert choices[0].delta.role == "assistant"
    assert [entry.token for entry in entries] == [TOKENIZER.decode([token]) for token in tokens]
    assert [len(entry.top_logprobs) for entry in entries] == [2] * 16
    assert choices[-1].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 16


async def test_the_synchronous_openai_client_gets_whole_answers_and_typed_errors(tokenizer_file):
    async with staged([StubEngine()], tokenizer_file) as stage:

        def ask():
            with openai.OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0) as client:
                text = client.completions.create(model=MODEL, prompt="x", max_tokens=4, temperature=0).choices[0].text
                with pytest.raises(openai.NotFoundError, match="this service serves 'stub', not 'other'"):
                    client.completions.create(model="other", prompt="x")
                with pytest.raises(openai.BadRequestError) as refused:
                    client.completions.create(model=MODEL, prompt="x", max_tokens=5000)
                return text, refused.value.param

        text, param = await asyncio.to_thread(ask)
    whole = TOKENIZER.decode(reference(TOKENIZER.encode("x").ids, 4))
    assert whole.startswith(text)
    assert param == "max_tokens"


async def test_a_stop_string_that_straddles_a_cut_is_met(tokenizer_file):
    tokens = reference(PROMPT, 60)
    texts = [TOKENIZER.decode([token]) for token in tokens]
    at = next(n for n in range(5, 50) if all(t.isascii() and t.isprintable() and len(t) == 1 for t in texts[n : n + 2]))
    stop = "".join(texts[at : at + 2])
    whole = TOKENIZER.decode(tokens)
    engines = [StubEngine(faults=deque([Fault("cut", at + 1)])), StubEngine(faults=deque([Fault("cut", at + 1)]))]
    async with staged(engines, tokenizer_file) as stage:
        _, events = await stream(stage.url, max_tokens=60, stop=stop)
        await asyncio.sleep(0.05)
        open_calls = [engine.open for engine in engines]
    text, parts, reason = said(events)
    assert (text, reason) == (whole[: whole.index(stop)], "stop")
    assert parts == texts[: len(parts)]
    assert open_calls == [0, 0]  # the engine does not go on for nobody


async def test_silence_is_a_break(tokenizer_file):
    engines = [StubEngine(faults=deque([Fault("silence", 5)])) for _ in range(2)]
    async with staged(engines, tokenizer_file, silence=0.3) as stage:
        _, events = await stream(stage.url, max_tokens=20)
        async with aiohttp.ClientSession() as session, session.get(f"{stage.url}/metrics") as response:
            metrics = await response.text()
    assert said(events)[1:] == expected(20)[1:]
    assert 'medley_router_resumes_total{cause="silence",mode="prompt"} 2.0' in metrics


async def test_an_engine_that_never_begins_to_answer_is_left(tokenizer_file):
    engines = [StubEngine(faults=deque([Fault("no-answer")])), StubEngine()]
    async with staged(engines, tokenizer_file, first_token=0.3) as stage:
        _, events = await stream(stage.url, max_tokens=20)
    assert said(events)[1:] == expected(20)[1:]


async def test_slowness_is_not_taken_for_silence_for_ever(tokenizer_file):
    engine = StubEngine(pause=lambda n: 0.5 if n == 3 else 0.0)
    async with staged([engine], tokenizer_file, silence=0.2) as stage:
        # Each call resumes one later and meets its fourth token later; patience doubles until it is enough.
        _, events = await stream(stage.url, max_tokens=12)
    assert said(events)[1:] == expected(12)[1:]


async def test_at_a_notice_the_stream_moves_and_nothing_new_goes_there(tokenizer_file):
    engines = [StubEngine(pause=lambda _: 0.02) for _ in range(2)]
    async with staged(engines, tokenizer_file) as stage:
        running = [asyncio.create_task(stream(stage.url, max_tokens=60)) for _ in range(6)]
        await until(lambda: sum(engine.open for engine in engines) == 6)
        stage.change("e0", leaves_at=datetime.now(UTC))
        calls = len(engines[0].calls)
        results = [await each for each in running]
        later = await asyncio.gather(*(stream(stage.url, max_tokens=3) for _ in range(5)))
        lines = (await _get(stage, "/metrics")).splitlines()
    assert [said(events)[1:] for _, events in results] == [expected(60)[1:]] * 6
    assert [said(events)[1:] for _, events in later] == [expected(3)[1:]] * 5
    assert len(engines[0].calls) == calls
    assert engines[0].vanished == 3
    times = {line.split("{")[0]: float(line.split()[1]) for line in lines if '{replica="e0"}' in line}
    assert times["medley_router_last_issue_timestamp_seconds"] <= times["medley_router_notice_timestamp_seconds"]


async def test_at_a_notice_with_time_a_short_stream_ends_where_it_is(tokenizer_file):
    engines = [StubEngine(pause=lambda _: 0.01), StubEngine()]
    async with staged(engines, tokenizer_file) as stage:
        stage.change("e1", ready=False)
        running = asyncio.create_task(stream(stage.url, max_tokens=30))
        await until(lambda: engines[0].open == 1)
        await asyncio.sleep(0.1)
        stage.change("e1", ready=True)
        stage.change("e0", leaves_at=datetime.now(UTC) + timedelta(seconds=60))
        _, events = await running
    assert said(events)[1:] == expected(30)[1:]
    assert (engines[0].vanished, engines[1].calls) == (0, [])


async def test_with_nowhere_to_go_a_stream_stays_until_its_engine_ends(tokenizer_file):
    engines = [StubEngine(faults=deque([Fault("cut", 40)]), pause=lambda _: 0.005), StubEngine()]
    async with staged(engines, tokenizer_file) as stage:
        stage.change("e1", ready=False)
        running = asyncio.create_task(stream(stage.url, max_tokens=60))
        await until(lambda: engines[0].open == 1)
        stage.change("e0", leaves_at=datetime.now(UTC))
        await until(lambda: engines[0].open == 0)
        stage.change("e1", ready=True)
        _, events = await running
    assert said(events)[1:] == expected(60)[1:]
    assert len(engines[1].calls[0]["token_ids"]) == 3 + 40


async def test_requests_wait_for_an_engine_to_come(tokenizer_file):
    async with staged([StubEngine()], tokenizer_file) as stage:
        stage.change("e0", ready=False)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{stage.url}/ready") as response:
                assert (response.status, await response.text()) == (503, "no replica is ready\n")
            waiting = asyncio.create_task(stream(stage.url, max_tokens=3))
            await asyncio.sleep(0.1)
            stage.change("e0", ready=True)
            _, events = await waiting
            async with session.get(f"{stage.url}/ready") as response:
                assert response.status == 200
    assert said(events)[1:] == expected(3)[1:]


async def test_a_full_queue_says_when_to_come_back(tokenizer_file):
    engine = StubEngine(pause=lambda _: 0.02)
    async with staged([engine], tokenizer_file, queue_limit=2, max_running=1) as stage:
        accepted = []
        for waiting in (0, 1, 2):
            accepted.append(asyncio.create_task(stream(stage.url, max_tokens=40)))
            await until_queue(stage, waiting, engine)
        async with aiohttp.ClientSession() as session:
            body = {"prompt": PROMPT, "max_tokens": 3}
            async with session.post(f"{stage.url}/v1/completions", json=body) as response:
                status, retry, error = response.status, response.headers["Retry-After"], await response.json()
        assert "medley_router_turned_away_total 1.0" in (await _get(stage, "/metrics")).splitlines()
        results = [await each for each in accepted]
    assert (status, error["error"]["type"], error["error"]["code"]) == (429, "rate_limit_error", "queue_full")
    assert 1 <= int(retry) <= 60
    assert [said(events)[1:] for _, events in results] == [expected(40)[1:]] * 3


async def _get(stage, path):
    async with aiohttp.ClientSession() as session, session.get(stage.url + path) as response:
        return await response.text()


async def until_queue(stage, waiting, engine):
    line = f"medley_router_queue {waiting}.0"
    for _ in range(1000):
        if len(engine.calls) == 1 and line in (await _get(stage, "/metrics")).splitlines():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{line} did not come about")


async def test_a_deadline_before_the_first_token_is_a_status_and_after_it_an_error_event(tokenizer_file):
    engines = [StubEngine(faults=deque([Fault("silence", 0), Fault("silence", 3)]))]
    async with staged(engines, tokenizer_file, deadline=0.5) as stage:
        status, body = await stream(stage.url, max_tokens=9)
        response, events = await stream(stage.url, max_tokens=9)
    assert (status, body["error"]["type"]) == (504, "timeout_error")
    assert response.status == 200
    assert events[-1] == {
        "error": {
            "message": "the request's deadline passed before it was complete",
            "type": "timeout_error",
            "param": None,
            "code": None,
        }
    }


async def test_a_client_that_vanishes_ends_its_work_on_the_engine(tokenizer_file):
    engine = StubEngine(pause=lambda _: 0.01)
    async with staged([engine], tokenizer_file) as stage:
        async with aiohttp.ClientSession() as session:
            body = {"prompt": PROMPT, "max_tokens": 3000, "stream": True, "n": 3}
            async with session.post(f"{stage.url}/v1/completions", json=body) as response:
                await response.content.readany()
        await until(lambda: not engine.open and not stage.kept.fleet.running)
    assert engine.vanished == 3


async def test_a_client_that_waits_in_the_queue_may_leave(tokenizer_file):
    engine = StubEngine(pause=lambda _: 0.01)
    async with staged([engine], tokenizer_file, max_running=1) as stage:
        first = asyncio.create_task(stream(stage.url, max_tokens=60))
        await until(lambda: engine.open == 1)
        second = asyncio.create_task(stream(stage.url, max_tokens=60))
        await until_queue(stage, 1, engine)
        second.cancel()
        await until_queue(stage, 0, engine)
        _, events = await first
    assert said(events)[1:] == expected(60)[1:]
    assert len(engine.calls) == 1


async def test_a_slow_reader_does_not_hold_the_engine(tokenizer_file):
    engine = StubEngine(together=8)
    async with staged([engine], tokenizer_file) as stage:
        host, port = stage.url.removeprefix("http://").split(":")
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)  # noqa: FBT003  # its only signature
            loop = asyncio.get_running_loop()
            await loop.sock_connect(slow, (host, int(port)))
            body = json.dumps(
                {"prompt": PROMPT, "temperature": 0, "max_tokens": 4000, "stream": True, "logprobs": 20}
            ).encode()
            head = (
                f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            await loop.sock_sendall(slow, head.encode() + body)
            await until(lambda: engine.calls and not engine.open)  # nobody reads, and the engine ends nevertheless
            raw = b""
            while block := await loop.sock_recv(slow, 2**20):
                raw += block
    events = [line for line in raw.split(b"\n") if line.startswith(b"data: {")]
    texts = [t for event in events for t in json.loads(event[6:])["choices"][0]["logprobs"]["tokens"]]
    assert texts == [TOKENIZER.decode([token]) for token in reference(PROMPT, 4000)]


REFUSALS = {
    "malformed": ("POST", "/v1/chat/completions", b'{"messages": [', 400, None),
    "no body": ("POST", "/v1/completions", b"", 400, None),
    "internal field": ("POST", "/v1/completions", b'{"prompt":"x","kv_transfer_params":{}}', 400, "kv_transfer_params"),
    "absurd": ("POST", "/v1/completions", b'{"prompt":"x","temperature":1e9}', 400, "temperature"),
    "beyond the model": ("POST", "/v1/completions", b'{"prompt":"x","max_tokens":9999}', 400, "max_tokens"),
    "unknown path": ("GET", "/v1/embeddings", b"", 404, None),
    "wrong method": ("GET", "/v1/completions", b"", 405, None),
    "too large": ("POST", "/v1/completions", b" " * (16 * 2**20 + 1), 413, None),
}


@pytest.mark.parametrize(("method", "path", "body", "status", "param"), REFUSALS.values(), ids=REFUSALS)
async def test_every_refusal_has_openais_shape(tokenizer_file, method, path, body, status, param):  # noqa: PLR0917
    async with (
        staged([StubEngine()], tokenizer_file) as stage,
        aiohttp.ClientSession() as session,
        session.request(method, stage.url + path, data=io.BytesIO(body)) as response,
    ):
        error = (await response.json())["error"]
    assert (response.status, sorted(error), error["type"]) == (
        status,
        ["code", "message", "param", "type"],
        "invalid_request_error",
    )
    assert error["param"] == param


async def test_engines_are_shown_the_key(tokenizer_file, tmp_path):
    key = tmp_path / "key"
    key.write_text("secret\n")
    async with staged([StubEngine(key="secret")], tokenizer_file, key_file=key) as stage:
        _, events = await stream(stage.url, max_tokens=3)
    assert said(events)[1:] == expected(3)[1:]


async def test_requests_are_counted_by_size(tokenizer_file):
    async with staged([StubEngine()], tokenizer_file) as stage:
        await stream(stage.url, max_tokens=3)
        await stream(stage.url, max_tokens=300, prompt=[5] * 200)
        metrics = await _get(stage, "/metrics")
    lines = metrics.splitlines()
    assert 'medley_router_requests_total{input_bucket="25",output_bucket="25"} 1.0' in lines
    assert 'medley_router_requests_total{input_bucket="250",output_bucket="500"} 1.0' in lines
    assert "medley_router_tokens_total 303.0" in lines
    made = 'input_bucket="250",made_bucket="500",output_bucket="500"'
    assert f"medley_router_outputs_total{{{made}}} 1.0" in lines
    assert "medley_router_turned_away_total 0.0" in lines
    assert 'medley_router_answers_total{status="200"} 2.0' in lines
