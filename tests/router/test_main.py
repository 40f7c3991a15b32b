"""The process: its arguments, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest

from medley.core.errors import InvalidInputError
from medley.demo.processes import free_port
from medley.router.fleet import Limits
from medley.router.main import running
from medley.router.server import Options
from medley.router.settings import RouterSettings, read_settings
from tests.router.stub_engine import TOKENIZER, StubEngine, reference


def test_a_pod_is_told_by_its_environment():
    environment = {
        "MEDLEY_NAMESPACE": "team",
        "MEDLEY_SERVICE": "chat",
        "MEDLEY_KEY_FILE": "/etc/medley/key",
        "MEDLEY_LINGER": "5",
        "MEDLEY_GRACE": "615",
    }
    assert read_settings([], environment) == RouterSettings(
        namespace="team",
        service="chat",
        engine_key_file=Path("/etc/medley/key"),
        linger=timedelta(seconds=5),
        grace=timedelta(seconds=612),
    )


def test_a_person_names_engines():
    arguments = (
        "--engine http://a:1 --engine http://b:2/ --silence 2s --first-token 10s --request-timeout 1m --queue-limit 5"
    )
    assert read_settings(arguments.split(), {}) == RouterSettings(
        engines=("http://a:1", "http://b:2"),
        limits=Limits(timedelta(seconds=2), timedelta(seconds=10)),
        options=Options(timedelta(minutes=1), 5),
        grace=timedelta(seconds=27),
    )


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ("", "--service"),
        ("--service chat", "--service"),
        ("--service chat --namespace n --engine http://a:1", "--service"),
        ("--engine a:1", "--engine"),
        ("--engine http://user:secret@a", "--engine"),
        ("--engine http://a --port 70000", "--port"),
        ("--engine http://a --silence 2", "--silence"),
        ("--engine http://a --max-running 0", "--max-running"),
        ("--engine http://a --queue-limit x", "--queue-limit"),
        ("--engine http://a --grace -1", "MEDLEY_GRACE"),
    ],
)
def test_what_must_be_corrected_is_named(arguments, field):
    with pytest.raises(InvalidInputError) as refused:
        read_settings(arguments.replace("--grace -1", "--grace=-1").split(), {})
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("host", "listening", "url"),
    [
        pytest.param("127.0.0.1", "http://127.0.0.1:{}", "http://127.0.0.1:{}", id="loopback"),
        pytest.param("0.0.0.0", "http://0.0.0.0:{} (every IPv4 address)", "http://127.0.0.1:{}", id="everywhere"),
    ],
)
async def test_it_says_where_it_is_bound(host, listening, url, tokenizer_file):
    port = free_port()
    settings = RouterSettings(engines=("http://127.0.0.1:1",), tokenizer=tokenizer_file, host=host, port=port)
    async with running(settings) as router:
        assert (router.listening, router.url) == (listening.format(port), url.format(port))


async def test_after_sigterm_it_takes_no_connection_and_serves_until_the_last_stream_ends(tokenizer_file):
    port = free_port()
    async with StubEngine(pause=lambda _: 0.02).running() as engine:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from medley.cli import main; main()", "router", "--host", "127.0.0.1"),
            *("--port", str(port), "--engine", engine, "--tokenizer", str(tokenizer_file)),
            env={name: value for name, value in os.environ.items() if not name.startswith("MEDLEY_")},
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with aiohttp.ClientSession() as session:
                url = f"http://127.0.0.1:{port}"
                await _ready(session, url)
                body = {"prompt": [5, 6], "temperature": 0, "max_tokens": 80, "stream": True, "logprobs": 0}
                async with session.post(f"{url}/v1/completions", json=body) as response:
                    raw = await response.content.readuntil(b"\n\n")
                    process.send_signal(signal.SIGTERM)
                    refused = await _refuses(url)
                    raw += await response.read()
            status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    events = [json.loads(line[6:]) for line in raw.split(b"\n") if line.startswith(b"data: {")]
    tokens = [token for event in events for token in event["choices"][0]["logprobs"]["tokens"]]
    assert tokens == [TOKENIZER.decode([token]) for token in reference([5, 6], 80)]
    assert (refused, status) == (True, 0)


async def test_a_request_whose_body_comes_after_the_leaving_began_is_answered_and_its_connection_closed(tokenizer_file):
    body = json.dumps({"prompt": [5, 6], "temperature": 0, "max_tokens": 8, "logprobs": 0}).encode()
    async with StubEngine().running() as engine:
        settings = RouterSettings(engines=(engine,), tokenizer=tokenizer_file, host="127.0.0.1", port=0)
        async with AsyncExitStack() as router:
            port = int((await router.enter_async_context(running(settings))).url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            before = await reader.readuntil(b"ok\n")
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode())
            await asyncio.sleep(0.1)
            leaving = asyncio.create_task(router.aclose())
            await asyncio.sleep(0.2)
            writer.write(body)
            answer = await reader.read()  # to its end
            await leaving
            writer.close()
    head, _, answered = answer.partition(b"\r\n\r\n")
    assert b"Connection: close" not in before
    assert (head.split(b"\r\n")[0], b"Connection: close" in head) == (b"HTTP/1.1 200 OK", True)
    tokens = json.loads(answered)["choices"][0]["logprobs"]["tokens"]
    assert tokens == [TOKENIZER.decode([token]) for token in reference([5, 6], 8)]


async def test_while_it_lingers_new_connections_are_served_and_closed(tokenizer_file):
    settings = RouterSettings(
        engines=("http://127.0.0.1:1",),
        tokenizer=tokenizer_file,
        host="127.0.0.1",
        port=0,
        linger=timedelta(seconds=1),
    )
    async with AsyncExitStack() as router:
        url = (await router.enter_async_context(running(settings))).url
        leaving = asyncio.create_task(router.aclose())
        await asyncio.sleep(0.1)
        async with aiohttp.ClientSession() as session, session.get(f"{url}/health") as response:
            seen = response.status, response.headers["Connection"]
        await leaving
    assert seen == (200, "close")


async def _ready(session, url):
    for _ in range(600):
        try:
            async with session.get(f"{url}/ready") as response:
                if response.status == 200:
                    return
        except aiohttp.ClientConnectorError:
            pass
        await asyncio.sleep(0.05)
    raise AssertionError("the router did not become ready")


async def _refuses(url):
    """Whether new connections are refused while the stream still runs (1.6 s)."""
    for _ in range(40):
        try:
            async with aiohttp.ClientSession() as fresh, fresh.get(f"{url}/health"):
                await asyncio.sleep(0.02)
        except aiohttp.ClientConnectorError:
            return True
    return False
