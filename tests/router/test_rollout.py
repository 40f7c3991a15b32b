"""Routers are replaced one after another under load, as their Deployment does it: no stream notices."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

import aiohttp

from medley.demo.processes import free_port
from tests.router.stub_engine import TOKENIZER, StubEngine, reference
from tests.router.test_main import _ready

ROUTERS = 2
CLIENTS = 8
TOKENS = 60
WANTED = [TOKENIZER.decode([token]) for token in reference([5, 6], TOKENS)]


class RouterProcess:
    """One router pod."""

    def __init__(self, engines: list[str], tokenizer) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        named = [part for engine in engines for part in ("--engine", engine)]
        self._command = [
            *(sys.executable, "-c", "from medley.cli import main; main()", "router", "--host", "127.0.0.1"),
            *("--port", str(port), "--tokenizer", str(tokenizer), "--grace", "60", *named),
        ]
        self.process: asyncio.subprocess.Process

    async def start(self, session) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MEDLEY_")}
        self.process = await asyncio.create_subprocess_exec(
            *self._command, env=environment, stderr=asyncio.subprocess.DEVNULL
        )
        await _ready(session, self.url)


async def tokens_of(session, url) -> list[str]:
    body = {"prompt": [5, 6], "temperature": 0, "max_tokens": TOKENS, "stream": True, "logprobs": 0}
    async with session.post(f"{url}/v1/completions", json=body) as response:
        raw = await response.read()
    events = [json.loads(line[6:]) for line in raw.split(b"\n") if line.startswith(b"data: {")]
    assert raw.endswith(b"data: [DONE]\n\n")
    return [token for event in events for token in event["choices"][0]["logprobs"]["tokens"]]


async def test_no_stream_notices_that_every_router_is_replaced(tokenizer_file):
    engines = [StubEngine(pause=lambda _: 0.02) for _ in range(2)]
    answers: list[list[str]] = []
    stopping = asyncio.Event()
    async with (
        engines[0].running() as first,
        engines[1].running() as second,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        serving = [RouterProcess([first, second], tokenizer_file) for _ in range(ROUTERS)]
        everyone = list(serving)

        async def client(number: int) -> None:
            while not stopping.is_set():
                # The Service's: where one refuses a connection, the next is asked. The same connections are used again.
                for router in serving[number % len(serving) :] + serving:
                    try:
                        answers.append(await tokens_of(session, router.url))
                        break
                    except (aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError):
                        continue

        try:
            for router in serving:
                await router.start(session)
            clients = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
            for old in list(serving):
                new = RouterProcess([first, second], tokenizer_file)
                everyone.append(new)
                await new.start(session)
                serving.append(new)
                old.process.send_signal(signal.SIGTERM)
                serving.remove(old)
                assert await old.process.wait() == 0
            await asyncio.sleep(0.5)
            stopping.set()
            await asyncio.gather(*clients)
        finally:
            for router in everyone:
                if hasattr(router, "process") and router.process.returncode is None:
                    router.process.kill()
                    await router.process.wait()
    assert len(answers) > CLIENTS
    assert all(each == WANTED for each in answers)
