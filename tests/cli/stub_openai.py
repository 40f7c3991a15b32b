"""An OpenAI endpoint without a model, with a latency law of its own; it writes down what it did, by its own clock."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Served:
    """One request as the stub saw it; seconds of the loop's clock."""

    prompt: tuple[int, ...]
    output_tokens: int
    came_s: float
    first_s: float
    last_s: float


@dataclass(slots=True)
class StubOpenAI:
    """Serves `slots` requests at a time, each for prefill_s and then token_s per further token."""

    prefill_s: float = 0.002
    token_s: float = 0.001
    slots: int = 1000
    max_model_len: int | None = 4096
    models: tuple[str, ...] = ("stub",)
    fault: str | None = None  # "short", "no usage", "refused", "broken"
    served: list[Served] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    most_at_once: int = 0
    _running: int = 0
    _free: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        application = web.Application(client_max_size=2**24)
        application.router.add_get("/v1/models", self._models)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_post("/v1/completions", self._complete)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._free = asyncio.Semaphore(self.slots)
        try:
            host, port = runner.addresses[0][:2]
            yield f"http://{host}:{port}"
        finally:
            await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        self.keys.add(request.headers.get("Authorization"))
        length = {} if self.max_model_len is None else {"max_model_len": self.max_model_len}
        return web.json_response({"data": [{"id": name, **length} for name in self.models]})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text='vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="500"} 1.0\n')

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        clock = asyncio.get_running_loop().time
        came = clock()
        if self.fault == "refused":
            return web.json_response({"error": {"message": "out of memory"}}, status=500)
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        self._running += 1
        self.most_at_once = max(self.most_at_once, self._running)
        try:
            async with self._free:
                tokens = body["max_tokens"] if self.fault != "short" else body["max_tokens"] - 1
                await asyncio.sleep(self.prefill_s)
                first = clock()
                for number in range(tokens):
                    if number:
                        await asyncio.sleep(self.token_s)
                    last = clock()
                    await self._send(reply, {"choices": [{"text": "x"}]})
                if self.fault == "broken":
                    await self._send(reply, {"error": {"message": "engine died"}})
                if self.fault != "no usage":
                    usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": tokens}
                    await self._send(reply, {"choices": [], "usage": usage})
                await reply.write(b"data: [DONE]\n\n")
                self.served.append(Served(tuple(body["prompt"]), tokens, came, first, last))
        except ConnectionResetError:
            return reply  # the client has left, as it does once it has measured enough
        finally:
            self._running -= 1
        return reply

    async def _send(self, reply: web.StreamResponse, chunk: dict[str, Any]) -> None:
        await reply.write(f"data: {json.dumps(chunk)}\n\n".encode())
