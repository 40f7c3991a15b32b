"""Run by test_endpoints.py in vLLM's Python, which has FastAPI: what the routes take, and what they answer."""

from __future__ import annotations

import asyncio
import json
import sys
from types import SimpleNamespace

from fastapi import FastAPI

from medley.core.service import MigrationMode
from medley.engine.kv.activation import STANDING
from medley.engine.kv.endpoints import endpoints
from medley.wire.ticket import KvState

STATE = KvState(mode=MigrationMode.AUTO, capable=True, takes_outputs=True, total_blocks=7)


async def ask(app: FastAPI, method: str, path: str, body: bytes = b"") -> tuple[int, dict]:
    """One HTTP request, without a socket."""
    sent, parts = [], [body[at : at + 65536] for at in range(0, len(body), 65536)] or [b""]

    async def receive() -> dict:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http", "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": [], "client": ("t", 1), "server": ("t", 1),
    }  # fmt: skip
    await app(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


class Core:
    """The engine core as the API server sees it."""

    def __init__(self, state: KvState = STATE) -> None:
        self.state, self.calls = state, []

    async def call_utility_async(self, name: str, *arguments: str) -> str:
        self.calls.append((name, *map(json.loads, arguments)))
        return self.state.model_dump_json() if name == "medley_state" else json.dumps({"did": name})


async def application(core: Core | None) -> FastAPI:
    plugin, app = endpoints(), FastAPI()
    plugin.attach_router(app)
    await plugin.init_state(core and SimpleNamespace(engine_core=core), None, None)
    return app


async def main() -> None:
    core = Core()
    app = await application(core)
    found: dict[str, object] = {}
    STANDING.mode, STANDING.reason = MigrationMode.RESUME, "vllm.part has no step"
    found["not carried: state"] = await ask(app, "GET", "/medley/v1/kv")
    found["not carried: export"] = await ask(app, "POST", "/medley/v1/export", b"{}")
    assert core.calls == []  # an engine core without the plugin's methods is not asked
    STANDING.mode, STANDING.reason = MigrationMode.AUTO, ""
    found["unchecked"] = await ask(app, "GET", "/medley/v1/kv")
    STANDING.takes_outputs = True
    found["state"] = await ask(app, "GET", "/medley/v1/kv")
    found["export"] = await ask(app, "POST", "/medley/v1/export", b'{"requests": ["a"], "lease_s": 3}')
    found["empty"] = await ask(app, "POST", "/medley/v1/export")
    found["renew"] = await ask(app, "POST", "/medley/v1/renew", b'{"exports": ["e"]}')
    found["release"] = await ask(app, "POST", "/medley/v1/release", b'{"exports": ["e"]}')
    found["no json"] = await ask(app, "POST", "/medley/v1/release", b"{")
    found["field"] = await ask(app, "POST", "/medley/v1/release", b'{"exports": [1], "more": 2}')
    found["long"] = await ask(app, "POST", "/medley/v1/release", b" " * (5 << 20))
    found["questions"] = sum(call[0] == "medley_state" for call in core.calls)
    found["calls"] = [call for call in core.calls if call[0] != "medley_state"]
    other = Core(KvState(mode=MigrationMode.RESUME, capable=False, reason="models with latent attention"))
    found["obstacle"] = await ask(await application(other), "POST", "/medley/v1/export", b"{}")
    sys.stdout.write(json.dumps(found))


asyncio.run(main())
