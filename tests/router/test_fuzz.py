"""Clients and engines that send anything at all: the router answers in OpenAI's shape, and serves the next one."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import timedelta

import aiohttp
import pytest
from aiohttp import web
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from medley.router.fleet import FleetView, Limits, Replica
from medley.router.main import running
from medley.router.server import Options
from medley.router.settings import RouterSettings
from tests.router.conftest import staged
from tests.router.stub_engine import MODEL, StubEngine
from tests.router.test_server import expected, said, stream, until

PATHS = ("/v1/chat/completions", "/v1/completions")
# What a client may be told. Never 500: that would be our own fault.
CLIENT_STATUSES = {200, 400, 404, 413, 422, 429}
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=120)

numbers = st.integers(-2, 40) | st.sampled_from([2**31, 2**63, -(2**63), 10**30]) | st.floats()
leaves = st.none() | st.booleans() | numbers | st.text(max_size=12)
anything = st.recursive(
    leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3), max_leaves=6
)
# Plausible values beside any: a body that is refused at its first field tests little.
FIELDS = {
    "model": st.just(MODEL),
    "messages": st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "x"]), "content": st.text(max_size=9)})
    ),
    "prompt": st.text(min_size=1, max_size=9) | st.lists(st.integers(0, 300), min_size=1, max_size=5),
    "max_tokens": st.integers(1, 20),
    "n": st.integers(1, 3),
    "stream": st.booleans(),
    "stop": st.text(max_size=3) | st.lists(st.text(min_size=1, max_size=3), max_size=3),
    "seed": st.integers(0, 9),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.1, 1),
    "logprobs": st.booleans() | st.integers(0, 3),
    "top_logprobs": st.integers(0, 3),
    "stream_options": st.just({"include_usage": True}),
    "logit_bias": st.dictionaries(st.integers(0, 300).map(str), st.floats(-100, 100), max_size=2),
    "presence_penalty": st.floats(-2, 2),
    "response_format": st.just({"type": "json_object"}),
    "tools": st.lists(anything, max_size=1),
    "ignore_eos": st.booleans(),
    "x": st.none(),
}
plausible = st.fixed_dictionaries({}, optional=FIELDS)
wild = st.dictionaries(st.sampled_from(list(FIELDS)), anything, max_size=2)
bodies = (
    st.builds(lambda good, bad: json.dumps(good | bad).encode(), plausible, wild)
    | plausible.map(
        lambda body: json.dumps({"prompt": "a", "messages": [{"role": "user", "content": "a"}], **body}).encode()
    )
    | st.binary(max_size=60)
)


@pytest.fixture
async def stage(tokenizer_file):
    engines = [StubEngine(max_model_len=128), StubEngine(max_model_len=128)]
    async with staged(engines, tokenizer_file) as stage, aiohttp.ClientSession() as session:
        stage.session = session
        yield stage
        _, events = await stream(stage.url, max_tokens=5)
        assert said(events)[1:] == expected(5)[1:]
        await until(lambda: sum(engine.open for engine in engines) == 0)


@shared
@example(PATHS[0], json.dumps({"messages": [{"role": "user", "content": "too long" * 50}]}).encode())
@given(st.sampled_from(PATHS), bodies)
async def test_any_body_gets_an_answer_or_an_error_of_openais_shape(stage, path, body):
    async with asyncio.timeout(60), stage.session.post(stage.url + path, data=body) as answer:
        raw = await answer.read()
        assert answer.status in CLIENT_STATUSES, (answer.status, raw)
        if answer.content_type == "text/event-stream":
            events = [each.removeprefix(b"data: ") for each in raw.split(b"\n\n") if each]
            assert events[-1] == b"[DONE]"
            assert all("choices" in json.loads(each) or "error" in json.loads(each) for each in events[:-1])
        elif answer.status == 200:
            assert json.loads(raw)["choices"]
        else:
            assert isinstance(json.loads(raw)["error"]["message"], str)


@shared
@given(
    st.sampled_from(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"]),
    st.sampled_from([*PATHS, "/v1/models", "/health", "/ready", "/metrics", "/", "/v1/%2e%2e/x", "/medley/v1/export"]),
    st.binary(max_size=20),
)
async def test_any_method_on_any_path_is_answered(stage, method, path, body):
    async with asyncio.timeout(60), stage.session.request(method, stage.url + path, data=body) as answer:
        assert answer.status in {200, 404, 405}


@shared
@given(st.binary(max_size=80) | st.binary(max_size=40).map(lambda tail: b"POST /v1/completions HTTP/1.1\r\n" + tail))
async def test_bytes_that_are_no_http_end_their_connection_alone(stage, sent):
    host, port = stage.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent + b"\r\n\r\n")
    writer.write_eof()
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    assert answer == b"" or answer.split(b" ")[1] != b"500"


# Engines of a version that never was.

EVENT = {"choices": [{"token_ids": [5], "finish_reason": None, "stop_reason": None, "logprobs": None}]}
events = st.builds(
    lambda name, value: json.dumps({"choices": [EVENT["choices"][0] | {name: value}]}).encode(),
    st.sampled_from(["token_ids", "finish_reason", "stop_reason", "logprobs", "index"]),
    anything,
)
streams = st.lists(
    (events | anything.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30)).map(
        lambda data: b"data: " + data + b"\n\n"
    )
    | st.binary(max_size=30),
    max_size=4,
).map(b"".join)
renders = (
    st.builds(
        lambda name, value: {"token_ids": [5, 6], "sampling_params": {"max_tokens": 4}} | {name: value},
        st.sampled_from(["token_ids", "sampling_params", "features", "x"]),
        anything,
    )
    | anything
)


@asynccontextmanager
async def liar(tokenizer):
    """Yield a router over one engine, and the answers of that engine, which a test sets."""
    told = {"render": b"", "stream": b"", "status": 200}

    async def render(_):
        return web.Response(body=told["render"], content_type="application/json")

    async def generate(request):
        await request.read()
        return web.Response(status=told["status"], body=told["stream"], content_type="text/event-stream")

    app = web.Application()
    app.router.add_post("/v1/completions/render", render)
    app.router.add_post("/inference/v1/generate", generate)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()

    async def source(kept, _):
        kept.serving.model = MODEL
        kept.fleet.replace(FleetView({"e": Replica("e", f"http://127.0.0.1:{runner.addresses[0][1]}")}))
        await asyncio.Event().wait()

    # A request that no engine can serve is given up after this.
    options = Options(request_timeout=timedelta(seconds=1))
    settings = RouterSettings(
        engines=("http://named.by.the.source",), tokenizer=tokenizer, host="127.0.0.1", port=0, options=options,
        limits=Limits(), grace=timedelta(seconds=0.2),
    )  # fmt: skip
    try:
        async with running(settings, source) as router, aiohttp.ClientSession() as session:
            yield router.url, session, told
    finally:
        await runner.cleanup()


@pytest.fixture
async def lying(tokenizer_file):
    async with liar(tokenizer_file) as it:
        yield it


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(renders, streams, st.sampled_from([200, 200, 400, 500]), st.booleans())
async def test_an_engine_that_answers_nonsense_is_no_fault_of_the_router(lying, rendered, events, status, streaming):
    url, session, told = lying
    told.update(render=json.dumps(rendered).encode(), stream=events, status=status)
    body = {"prompt": "a", "max_tokens": 4, "stream": streaming, "logprobs": 1}
    async with asyncio.timeout(60), session.post(f"{url}/v1/completions", json=body) as answer:
        raw = await answer.read()
        assert answer.status in {200, 400, 502, 503, 504}, raw
        if answer.status == 200 and streaming:
            assert raw.endswith(b"data: [DONE]\n\n")
        else:
            json.loads(raw)
