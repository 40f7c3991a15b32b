"""The process: its arguments, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
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
        "MEDLEY_GRACE": "615",
    }
    assert read_settings([], environment) == RouterSettings(
        namespace="team",
        service="chat",
        engine_key_file=Path("/etc/medley/key"),
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
