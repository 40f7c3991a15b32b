"""An engine that costs next to nothing, as a process of its own: all it says was made before it is asked.

It answers OpenAI's chat for routers that pass bytes through, and vLLM's render and generate for ours, with as many
events of about the same size.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

import uvloop
from aiohttp import web

from tests.router.stub_engine import MODEL, TOKENIZER

EVENTS = 50
_TOKENS = [70 + n % 100 for n in range(EVENTS)]
_HEAD = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 1, "model": MODEL}


def _sse(event: object) -> bytes:
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


def _chat_event(n: int) -> bytes:
    choice = {"index": 0, "delta": {"content": TOKENIZER.decode([_TOKENS[n]])}, "logprobs": None, "finish_reason": None}
    return _sse({**_HEAD, "choices": [choice | ({"finish_reason": "length"} if n == EVENTS - 1 else {})]})


def _generate_event(n: int) -> bytes:
    reason = "length" if n == EVENTS - 1 else None
    choice = {"index": 0, "logprobs": None, "finish_reason": reason, "stop_reason": None, "token_ids": [_TOKENS[n]]}
    return _sse({"request_id": "generate-tokens-0", "usage": None, "output_mode": "tokens", "choices": [choice]})


_CHAT = [*(_chat_event(n) for n in range(EVENTS)), b"data: [DONE]\n\n"]
_GENERATE = [*(_generate_event(n) for n in range(EVENTS)), b"data: [DONE]\n\n"]
_RENDERED = json.dumps(
    {"token_ids": list(range(3, 23)), "sampling_params": {"temperature": 0.0, "max_tokens": EVENTS}, "features": None}
).encode()


async def _events(request: web.Request, events: list[bytes]) -> web.StreamResponse:
    await request.read()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for event in events:
        await response.write(event)
    return response


async def _chat(request: web.Request) -> web.StreamResponse:
    return await _events(request, _CHAT)


async def _generate(request: web.Request) -> web.StreamResponse:
    return await _events(request, _GENERATE)


async def _render(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=_RENDERED, content_type="application/json")


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 4096}]})


async def _health(_: web.Request) -> web.Response:
    return web.Response(text="ok")


async def main() -> None:
    """Serve until killed; write the URL into the file named, then the tokenizer beside it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/chat/completions", _chat)
    app.router.add_post("/v1/chat/completions/render", _render)
    app.router.add_post("/inference/v1/generate", _generate)
    app.router.add_get("/v1/models", _models)
    app.router.add_get("/health", _health)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    given.file.with_suffix(".json").write_text(TOKENIZER.to_str())
    given.file.write_text(f"http://127.0.0.1:{runner.addresses[0][1]}")
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
