"""The guard in vLLM's API server, as ASGI."""

import pytest

from medley.engine.guard import KeyGuard


async def app(scope, receive, send):
    scope["reached"] = True


async def status_of(monkeypatch, path, *headers, kind="http"):
    monkeypatch.setenv("VLLM_API_KEY", "key")
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "path": path, "method": "GET", "headers": list(headers)}
    await KeyGuard(app)(scope, None, send)
    return "passed" if scope.get("reached") else sent[0].get("status", sent[0]["type"])


RIGHT = (b"authorization", b"Bearer key")


@pytest.mark.parametrize(
    ("path", "headers", "kind", "expected"),
    [
        ("/v1/models", [RIGHT], "http", "passed"),
        ("/v1/models", [(b"authorization", b"bearer key")], "http", "passed"),
        ("/health", [], "http", "passed"),
        ("/metrics", [], "http", "passed"),
        ("/", [], "lifespan", "passed"),
        ("/invocations", [], "http", 401),
        ("/health/", [], "http", 401),
        ("//health", [], "http", 401),
        ("/metrics/../v1/models", [], "http", 401),
        ("/v1/models", [(b"authorization", b"Bearer wrong")], "http", 401),
        ("/v1/models", [(b"authorization", b"key")], "http", 401),
        ("/v1/models", [(b"authorization", b"Bearer wrong"), RIGHT], "http", 401),
        ("/v1/realtime", [], "websocket", "websocket.close"),
        ("/v1/realtime", [RIGHT], "websocket", "passed"),
    ],
)
async def test_what_passes(monkeypatch, path, headers, kind, expected):
    assert await status_of(monkeypatch, path, *headers, kind=kind) == expected


def test_without_a_key_it_does_not_even_start(monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(KeyError):
        KeyGuard(app)
