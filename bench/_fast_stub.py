"""An engine that costs next to nothing, as a process of its own: all it says was made before it is asked.

It answers OpenAI's chat for routers that pass bytes through, and vLLM's render and generate for ours, with as many
events of about the same size.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop
from aiohttp import web

from tests.router.stub_engine import MODEL, TOKENIZER

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

EVENTS = 50
_FIRST, _PRINTABLE = 3, 93  # ids of ASCII's printable bytes: each makes text, so each makes a chunk
_HEAD = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 1, "model": MODEL}


def _sse(event: object) -> bytes:
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


def _chat_event(token: int, reason: str | None) -> bytes:
    choice = {"index": 0, "delta": {"content": TOKENIZER.decode([token])}, "logprobs": None, "finish_reason": reason}
    return _sse({**_HEAD, "choices": [choice]})


def _generate_event(token: int, reason: str | None) -> bytes:
    choice = {"index": 0, "logprobs": None, "finish_reason": reason, "stop_reason": None, "token_ids": [token]}
    return _sse({"request_id": "generate-tokens-0", "usage": None, "output_mode": "tokens", "choices": [choice]})


def _stream(event: Callable[[int, str | None], bytes], count: int, pause: float) -> Handler:
    """Return the handler that streams so many events; `pause`: seconds between them."""
    made = [event(_FIRST + n % _PRINTABLE, "length" if n == count - 1 else None) for n in range(count)]

    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for each in made:
            await response.write(each)
            if pause:
                await asyncio.sleep(pause)
        await response.write(b"data: [DONE]\n\n")
        return response

    return answer


def _render(count: int) -> Handler:
    sampling = {"temperature": 0.0, "max_tokens": count}
    rendered = json.dumps({"token_ids": list(range(3, 23)), "sampling_params": sampling, "features": None}).encode()

    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(body=rendered, content_type="application/json")

    return answer


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 4096}]})


async def _health(_: web.Request) -> web.Response:
    return web.Response(text="ok")


async def main() -> None:
    """Serve until killed; write the URL into the file named, then the tokenizer beside it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--events", type=int, default=EVENTS, help="of one answer")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between events")
    given = parser.parse_args()
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/chat/completions", _stream(_chat_event, given.events, given.pause))
    app.router.add_post("/v1/chat/completions/render", _render(given.events))
    app.router.add_post("/inference/v1/generate", _stream(_generate_event, given.events, given.pause))
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
