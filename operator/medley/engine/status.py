"""Port 8002: what anybody in the cluster may read. Called by the kubelet, Prometheus and routers."""

from __future__ import annotations

import os
import time
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from medley.engine.client import EngineClient
from medley.engine.supervisor import Supervisor
from medley.engine.tokenizer import FILES, tokenizer_file
from medley.wire.assignment import EnginePhase, EngineReport

_ALIVE_S: Final = 10.0  # a loop that has not turned for so long is stuck


def status_app(supervisor: Supervisor, client: EngineClient) -> web.Application:
    """Return the application of the read-only port."""

    async def livez(_: web.Request) -> web.Response:
        behind = time.monotonic() - supervisor.ticked_at
        if behind > _ALIVE_S:
            return web.Response(status=503, text=f"the supervisor's loop has not turned for {behind:.0f} s\n")
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        report = supervisor.report()
        return web.Response(
            status=200 if supervisor.ready else 503, text=report.model_dump_json(), content_type="application/json"
        )

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=exposition(supervisor.report(), ready=supervisor.ready), content_type="text/plain")

    async def tokenizer(request: web.Request) -> web.StreamResponse:
        name = request.path.removeprefix("/")
        assignment = supervisor.assignment
        if assignment is None:
            raise web.HTTPNotFound(text=f"{name}: no model is assigned yet\n")
        path = tokenizer_file(assignment, name, os.environ)
        if path is None:
            raise web.HTTPNotFound(text=f"{name}: the model {assignment.model} has no such file here\n")
        return web.FileResponse(path, headers={"Content-Type": "application/json"})

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/engine/metrics", _engine_metrics(client))
    for name in FILES:
        app.router.add_get(f"/{name}", tokenizer)
    return app


def _engine_metrics(client: EngineClient) -> Handler:
    """Return the handler that passes on what vLLM itself counts: its own port is closed to scrapers."""

    async def engine_metrics(_: web.Request) -> web.StreamResponse:
        text = await client.metrics()
        if text is None:
            return web.Response(status=503, text="vLLM does not answer\n")
        return web.Response(text=text, content_type="text/plain")

    return engine_metrics


def exposition(report: EngineReport, *, ready: bool) -> str:
    """Return the supervisor's metrics in Prometheus text; vLLM's own are on vLLM's port."""
    lines = ["# HELP medley_engine_phase 1 for the phase the engine is in.", "# TYPE medley_engine_phase gauge"]
    lines += [f'medley_engine_phase{{phase="{phase}"}} {int(phase is report.phase)}' for phase in EnginePhase]
    for name, kind, help_text, value in (
        ("medley_engine_ready", "gauge", "1 if a router may send requests here.", int(ready)),
        ("medley_engine_generation", "gauge", "Generation of the assignment in force; 0: none.", report.generation),
        ("medley_engine_requests_running", "gauge", "Requests running in vLLM.", report.running),
        ("medley_engine_requests_waiting", "gauge", "Requests waiting in vLLM.", report.waiting),
        (
            "medley_engine_tokens_generated",
            "gauge",
            "Tokens since vLLM started, probes included.",
            report.tokens_generated,
        ),
        ("medley_engine_restarts_total", "counter", "Restarts of vLLM after a failure.", report.restarts),
    ):
        lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}", f"{name} {value}"]
    return "\n".join(lines) + "\n"
