"""Requests to engines: render a prompt, generate tokens, fetch the tokenizer. One attempt each; who retries is above.

Called by `carrier` and `server`. Translates what can go wrong with a connection into `Broken`, once, here.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from medley.core.errors import EngineError, InvalidInputError
from medley.router.openai_api import Endpoint
from medley.router.session import Broken, Cause
from medley.wire.generate import (
    GENERATE_PATH,
    MODELS_PATH,
    RENDER_CHAT_PATH,
    RENDER_COMPLETION_PATH,
    EngineFault,
    EventSplitter,
    GenerateCall,
    Rendered,
    TokenEvent,
    parse_event,
    parse_fault,
    parse_rendered,
)

CONNECT_SECONDS = 3.0  # a machine that is gone does not refuse, it says nothing
PROBE_SECONDS = 5.0
RENDER_SECONDS = 30.0
_OK = 200
_SERVER_ERROR = 500
_READ_BUFFER_BYTES = 2**16

# What went wrong with a connection, or with what came over it.
_CONNECTION_ERRORS = (aiohttp.ClientError, ConnectionError, OSError, EngineError, TimeoutError)


def key_file(path: Path | None) -> Callable[[], str | None]:
    """Return a reader of the engines' key: read again at each use, since a mounted Secret may change."""

    def read() -> str | None:
        if path is None:
            return None
        try:
            return path.read_text().strip()
        except OSError as error:
            raise InvalidInputError("--engine-key-file", f"reading {path}: {error.strerror}") from error

    return read


class EngineClient:
    """Talks to engines over one connection pool."""

    def __init__(self, session: aiohttp.ClientSession, key: Callable[[], str | None]) -> None:
        self._session = session
        self._key = key

    async def generate(self, url: str, call: GenerateCall) -> AsyncGenerator[list[TokenEvent | EngineFault | Broken]]:
        """Yield the events of a call as they come, those that came together in one list; the last may be `Broken`.

        Ends after an event with a finish reason, a fault or a break. Closing the generator aborts the request.
        """
        accepted = False
        splitter = EventSplitter()
        try:
            async with self._session.post(
                url + GENERATE_PATH,
                data=call.body(),
                headers=self._headers(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                read_bufsize=_READ_BUFFER_BYTES,
            ) as response:
                if response.status != _OK:
                    yield [parse_fault(response.status, await response.read())]
                    return
                accepted = True
                async for block in response.content.iter_any():
                    events = [event for data in splitter.feed(block) if (event := parse_event(data)) is not None]
                    if events:
                        yield [*events]
        except aiohttp.ClientConnectorError:
            yield [Broken(Cause.UNREACHABLE, accepted=False)]
        except aiohttp.ConnectionTimeoutError:
            yield [Broken(Cause.UNREACHABLE, accepted=False)]
        except EngineError:  # events that are not the protocol
            yield [Broken(Cause.ENGINE_ERROR, accepted=True)]
        except (aiohttp.ClientError, OSError):
            yield [Broken(Cause.CONNECTION, accepted=accepted)]
        else:
            yield [Broken(Cause.CONNECTION, accepted=True)]  # the end came before a finish reason

    async def render(
        self, url: str, endpoint: Endpoint, body: Mapping[str, Any]
    ) -> tuple[Rendered, ...] | EngineFault | Broken:
        """Turn a client's body into token ids and sampling parameters, one per prompt."""
        path = RENDER_CHAT_PATH if endpoint is Endpoint.CHAT else RENDER_COMPLETION_PATH
        timeout = aiohttp.ClientTimeout(total=RENDER_SECONDS, sock_connect=CONNECT_SECONDS)
        try:
            async with self._session.post(
                url + path, data=json.dumps(body).encode(), headers=self._headers(), timeout=timeout
            ) as response:
                answer = await response.read()
                if response.status != _OK:
                    fault = parse_fault(response.status, answer)
                    if fault.code >= _SERVER_ERROR or fault.code in {401, 403, 404, 429}:
                        return Broken(Cause.ENGINE_ERROR, accepted=True)
                    return fault
            rendered = json.loads(answer)
            return tuple(parse_rendered(each) for each in (rendered if isinstance(rendered, list) else [rendered]))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            return Broken(Cause.UNREACHABLE, accepted=False)
        except (*_CONNECTION_ERRORS, ValueError):
            return Broken(Cause.CONNECTION, accepted=True)

    async def models(self, url: str) -> dict[str, int]:
        """Return the names an engine serves and their longest sequence; `EngineError` if it does not answer."""
        answer = await self._get(url + MODELS_PATH)
        try:
            return {each["id"]: int(each.get("max_model_len") or 0) for each in json.loads(answer)["data"]}
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(f"reading {url}{MODELS_PATH}: {error!r}") from error

    async def text(self, url: str) -> str:
        """Return the body of a GET; `EngineError` if there is none."""
        return (await self._get(url)).decode(errors="replace")

    async def _get(self, url: str) -> bytes:
        try:
            timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS)
            async with self._session.get(url, headers=self._headers(), timeout=timeout) as response:
                body = await response.read()
                if response.status != _OK:
                    raise EngineError(f"getting {url}: status {response.status}: {body[:200].decode(errors='replace')}")
                return body
        except (aiohttp.ClientError, OSError) as error:
            raise EngineError(f"getting {url}: {error or type(error).__name__}") from error

    def _headers(self) -> dict[str, str]:
        key = self._key()
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        return headers


def connection_pool() -> aiohttp.ClientSession:
    """Return a session for engines: no limit on connections, since every stream holds one."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30), auto_decompress=False, trust_env=False
    )
