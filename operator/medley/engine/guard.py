"""ASGI middleware inside vLLM's API server: nothing but health and metrics without the key.

vLLM loads it by `--middleware medley.engine.guard.KeyGuard`. Its own `--api-key` guards /v1, /v2, /inference and
/cohere alone; /invocations (which generates), /tokenize, /generative_scoring and the like stay open. Standard library
only: it runs in vLLM's process.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

KEY_VARIABLE: Final = "VLLM_API_KEY"  # vLLM's own; never on the command line, where every process could read it
OPEN_PATHS: Final = frozenset({"/health", "/metrics"})
_REFUSAL: Final = (
    b'{"error":{"message":"Unauthorized: send Authorization: Bearer <the service\'s engine key>",'
    b'"type":"invalid_request_error","param":null,"code":401}}'
)


class KeyGuard:
    """Pass on what carries the key, refuse the rest with 401."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._wanted = _digest(os.environ[KEY_VARIABLE].encode())  # absent: vLLM does not start, rather than stay open

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        kind = scope["type"]
        if kind not in {"http", "websocket"} or scope["path"] in OPEN_PATHS or self._has_key(scope):
            await self._app(scope, receive, send)
        elif kind == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "Unauthorized"})
        else:
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(_REFUSAL)).encode()),
                (b"www-authenticate", b"Bearer"),
            ]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSAL})

    def _has_key(self, scope: Message) -> bool:
        for name, value in scope["headers"]:
            if name == b"authorization":
                scheme, _, key = value.partition(b" ")
                return scheme.lower() == b"bearer" and hmac.compare_digest(_digest(key), self._wanted)
        return False


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()  # equal lengths, so that the comparison tells nothing
