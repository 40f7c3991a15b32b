"""A server that starts, serves, stalls and dies the way vLLM does; `--fake-*` arguments and POST /fake/* choose how."""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress

from aiohttp import web


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="api_server.py")
    for flag in (
        "--model",
        "--served-model-name",
        "--host",
        "--middleware",
        "--uds",
        "--disable-access-log-for-endpoints",
    ):
        parser.add_argument(flag)
    for flag in ("--port", "--tensor-parallel-size", "--pipeline-parallel-size", "--max-model-len"):
        parser.add_argument(flag, type=int)
    parser.add_argument("--enable-scale-out", action="store_true", required=True)
    parser.add_argument("--fake-start-delay", type=float, default=0.0)
    parser.add_argument("--fake-exit", type=int)  # at once, with these words
    parser.add_argument("--fake-words", default="")
    parser.add_argument("--fake-plain", action="store_true")  # without medley's endpoints
    parser.add_argument("--fake-no-tokens", action="store_true")  # healthy, but never makes one
    parser.add_argument("--fake-ignore-sigterm", action="store_true")
    parser.add_argument("--fake-child", action="store_true")  # a worker that outlives its parent
    parser.add_argument("--fake-token-interval", type=float, default=0.02)
    return parser.parse_args()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Engine:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.running = 0
        self.generated = 0
        self.exports = 0
        self.cut = False
        self.going = asyncio.Event()
        if not options.fake_no_tokens:
            self.going.set()

    async def token(self) -> int:
        await self.going.wait()
        await asyncio.sleep(self.options.fake_token_interval)
        self.generated += 1
        return self.generated

    async def generate(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            raise web.HTTPUnauthorized
        body = await request.json()
        count = body["sampling_params"]["max_tokens"]
        self.running += 1
        try:
            if not body.get("stream"):
                return web.json_response({"choices": [{"token_ids": [await self.token() for _ in range(count)]}]})
            answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await answer.prepare(request)
            for _ in range(count):
                if self.cut:
                    end = {"choices": [{"token_ids": [], "finish_reason": "abort"}]}
                    await answer.write(f"data: {json.dumps(end)}\n\n".encode())
                    break
                token = {"choices": [{"token_ids": [await self.token()]}]}
                await answer.write(f"data: {json.dumps(token)}\n\n".encode())
            await answer.write(b"data: [DONE]\n\n")
            return answer
        finally:
            self.running -= 1

    async def metrics(self, _: web.Request) -> web.Response:
        label = '{engine="0",model_name="m"}'
        return web.Response(
            text=f"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{label} {float(self.running)}\n"
            f"vllm:num_requests_waiting{label} 0.0\nvllm:prompt_tokens_total{label} {float(self.generated)}\n"
            f"vllm:generation_tokens_total{label} {float(self.generated)}\nvllm:kv_cache_usage_perc{label} 0.0\n"
        )

    async def kv(self, _: web.Request) -> web.Response:
        return web.json_response({"mode": "Auto", "capable": True, "exports": self.exports})

    async def export(self, request: web.Request) -> web.Response:
        assert await request.json() == {"requests": None, "keep_running": False, "lease_s": 1.0}
        say("asked to end all requests")
        self.cut = True
        return web.json_response({"tickets": [], "unknown": []})

    async def fake(self, request: web.Request) -> web.Response:
        match request.match_info["what"]:
            case "stall":
                self.going.clear()
            case "recover":
                self.going.set()
            case "pin":
                self.exports += 1
            case "unpin":
                self.exports -= 1
            case "die":
                say("RuntimeError: CUDA error: an illegal memory access")
                os._exit(1)
        return web.Response()


async def serve(options: argparse.Namespace) -> None:
    await asyncio.sleep(options.fake_start_delay)
    engine = Engine(options)
    app = web.Application()
    app.router.add_get("/health", lambda _: _answer(web.Response()))
    app.router.add_get("/version", lambda _: _answer(web.json_response({"version": "0.32.0"})))
    app.router.add_get("/metrics", engine.metrics)
    app.router.add_post("/inference/v1/generate", engine.generate)
    app.router.add_post("/fake/{what}", engine.fake)
    if not options.fake_plain:
        app.router.add_get("/medley/v1/kv", engine.kv)
        app.router.add_post("/medley/v1/export", engine.export)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.UnixSite(runner, options.uds) if options.uds else web.TCPSite(runner, options.host, options.port)
    await site.start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGTERM, (lambda: say("SIGTERM, and I stay")) if options.fake_ignore_sigterm else ended.set
    )
    say(f"serving {options.served_model_name}")
    await ended.wait()


async def _answer(response: web.Response) -> web.Response:
    return response


if __name__ == "__main__":
    options = arguments()
    if options.fake_child:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        say(f"child {child.pid}")
    if options.fake_exit is not None:
        say(options.fake_words)
        sys.exit(options.fake_exit)
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(options))
