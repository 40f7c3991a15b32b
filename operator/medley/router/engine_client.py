"""Requests to engines: render a prompt, generate tokens, fetch the tokenizer. One attempt each; who retries is above.

Called by `carrier` and `server`. Translates what can go wrong with a connection into `Broken`, once, here.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import aiohttp
from pydantic import ValidationError

from medley.core.errors import EngineError, InvalidInputError
from medley.core.identity import Role, dns_name
from medley.router.calls import CONNECT_SECONDS, Answer, Calls, Trust, UnreachableError
from medley.router.openai_api import Endpoint
from medley.router.session import Broken, Cause
from medley.tls.keyring import Keyring
from medley.wire.assignment import Message
from medley.wire.generate import (
    DERENDER_CHAT_PATH,
    GENERATE_PATH,
    MODELS_PATH,
    RENDER_CHAT_PATH,
    RENDER_COMPLETION_PATH,
    EngineFault,
    EventSplitter,
    GenerateCall,
    Rendered,
    TokenEvent,
    parse_events,
    parse_fault,
    parse_rendered,
)
from medley.wire.json_text import read_json, write_json
from medley.wire.ticket import (
    EXPORT_PATH,
    RELEASE_PATH,
    RENEW_PATH,
    STATE_PATH,
    Exported,
    ExportRequest,
    Held,
    KvState,
    ReleaseRequest,
    RenewRequest,
    Ticket,
)

_Answer = TypeVar("_Answer", bound=Message)

# Takes the events that came together; True: it wants no more.
Taker = Callable[[Sequence[TokenEvent | EngineFault | Broken]], bool]

PROBE_SECONDS = 5.0
EXPORT_SECONDS = 5.0
RENDER_SECONDS = 30.0
_OK = 200
_NOT_FOUND = 404
_SERVER_ERROR = 500


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


class Served(NamedTuple):
    """A name that an engine serves."""

    name: str
    longest: int  # tokens of a sequence; 0: not said
    is_adapter: bool  # a LoRA adapter of the model


class EngineClient:
    """Talks to engines over kept connections; with a keyring, by mutual TLS."""

    def __init__(
        self, session: aiohttp.ClientSession, key: Callable[[], str | None], keyring: Keyring | None = None
    ) -> None:
        self._session = session
        self._key = key
        self._keyring = keyring
        self._calls = Calls(self._trust)

    def close(self) -> None:
        """Close the connections of calls."""
        self._calls.close()

    def _trust(self) -> Trust:
        # The newest certificates for each new connection; those that are open keep theirs.
        if self._keyring is None:
            return Trust(_public(), None)
        return Trust(self._keyring.client, dns_name(Role.ENGINE))

    @property
    def scheme(self) -> str:
        """How URLs of engines begin, of all ports but the open one."""
        return "http" if self._keyring is None else "https"

    async def generate(self, url: str, call: GenerateCall, take: Taker) -> None:
        """Give `take` the events of a call as they come, until it says that it has enough: the engine's work ends then.

        Those that came together come in one list. The last may be a fault or `Broken`; none comes after either.
        """
        answer: Answer | None = None
        splitter, ended = EventSplitter(), False

        def read(block: bytes) -> bool:
            nonlocal ended
            events = parse_events(splitter.feed(block))
            if not events:
                return False
            ended = _is_an_end(events[-1])
            return take(events)

        last: EngineFault | Broken | None = None
        try:
            # Without a timeout: silence is judged by `fleet`.
            answer = await self._calls.post(url, GENERATE_PATH, self._key(), call.body(), read)
            if answer.status != _OK:
                last = parse_fault(answer.status, await answer.read())
            elif not await answer.feed(read):
                last = Broken(Cause.CONNECTION, accepted=True)  # the end came before a finish reason
        except UnreachableError:
            last = Broken(Cause.UNREACHABLE, accepted=False)
        except EngineError:  # events that are not the protocol
            last = Broken(Cause.ENGINE_ERROR, accepted=True)
        except OSError:
            last = Broken(Cause.CONNECTION, accepted=answer is not None)
        finally:
            if answer is not None:
                answer.leave(ended=ended)
        if last is not None:
            take([last])

    async def render(
        self, url: str, endpoint: Endpoint, body: Mapping[str, Any]
    ) -> tuple[Rendered, ...] | EngineFault | Broken:
        """Turn a client's body into token ids and sampling parameters, one per prompt."""
        path = RENDER_CHAT_PATH if endpoint is Endpoint.CHAT else RENDER_COMPLETION_PATH
        try:
            async with asyncio.timeout(RENDER_SECONDS):
                status, answer = await self._post(url, path, write_json(body))
            if status != _OK:
                fault = parse_fault(status, answer)
                return Broken(Cause.ENGINE_ERROR, accepted=True) if _is_the_engines(fault.code) else fault
            rendered = read_json(answer)
            made = tuple(parse_rendered(each) for each in (rendered if isinstance(rendered, list) else [rendered]))
            return made or Broken(Cause.ENGINE_ERROR, accepted=True)
        except UnreachableError:
            return Broken(Cause.UNREACHABLE, accepted=False)
        except (EngineError, OSError, ValueError, RecursionError):  # TimeoutError is an OSError
            return Broken(Cause.CONNECTION, accepted=True)

    async def _post(self, url: str, path: str, body: bytes) -> tuple[int, bytes]:
        answer = await self._calls.post(url, path, self._key(), body)
        try:
            return answer.status, await answer.read()
        finally:
            answer.leave(ended=False)

    async def derender(self, url: str, body: Mapping[str, Any]) -> dict[str, Any] | EngineFault | Broken:
        """Have an engine's parsers read what was made: reasoning, content, tool calls."""
        try:
            status, answer = await self._ask(
                "POST", url + DERENDER_CHAT_PATH, RENDER_SECONDS, json.dumps(body).encode()
            )
            if status != _OK:
                fault = parse_fault(status, answer)
                return Broken(Cause.ENGINE_ERROR, accepted=True) if _is_the_engines(fault.code) else fault
            read = json.loads(answer)
        except (EngineError, ValueError, RecursionError):
            return Broken(Cause.CONNECTION, accepted=True)
        return read if isinstance(read, dict) else Broken(Cause.ENGINE_ERROR, accepted=True)

    async def run(self, url: str, call: GenerateCall) -> None:
        """Let an engine work through a call whose tokens nobody wants; `EngineError` if it ends otherwise."""
        last: TokenEvent | EngineFault | Broken | None = None

        def take(events: Sequence[TokenEvent | EngineFault | Broken]) -> bool:
            nonlocal last
            last = next((each for each in events if not isinstance(each, TokenEvent) or each.finish_reason), None)
            return last is not None

        await self.generate(url, call, take)
        if not isinstance(last, TokenEvent) or last.finish_reason not in {"stop", "length"}:
            raise EngineError(f"running {call.request_id} at {url}: {last}")

    async def kv_state(self, url: str) -> KvState | None:
        """Return what an engine says of its KV cache; None if it has not the plugin. `EngineError` if it is silent."""
        status, body = await self._ask("GET", url + STATE_PATH, PROBE_SECONDS)
        if status == _NOT_FOUND:
            return None
        return _parsed(KvState, status, body, url + STATE_PATH)

    async def export(self, url: str, request_id: str, *, keep_running: bool, lease_s: float) -> Ticket | None:
        """Return a ticket for one of this router's own requests; None if the engine does not know it (any more)."""
        asked = ExportRequest(requests=(request_id,), keep_running=keep_running, lease_s=lease_s)
        status, body = await self._ask("POST", url + EXPORT_PATH, EXPORT_SECONDS, asked)
        return next(iter(_parsed(Exported, status, body, url + EXPORT_PATH).tickets), None)

    async def renew(self, url: str, export_id: str, lease_s: float) -> None:
        """Lengthen a lease."""
        asked = RenewRequest(exports=(export_id,), lease_s=lease_s)
        _parsed(Held, *await self._ask("POST", url + RENEW_PATH, PROBE_SECONDS, asked), url + RENEW_PATH)

    async def release(self, url: str, export_id: str) -> None:
        """Give an export's blocks back; one that is not there any more is as good."""
        asked = ReleaseRequest(exports=(export_id,))
        _parsed(Held, *await self._ask("POST", url + RELEASE_PATH, PROBE_SECONDS, asked), url + RELEASE_PATH)

    async def _ask(
        self, method: str, url: str, seconds: float, body: Message | bytes | None = None
    ) -> tuple[int, bytes]:
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        data = body.model_dump_json().encode() if isinstance(body, Message) else body
        try:
            async with self._request(method, url, data=data, timeout=timeout) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            raise EngineError(f"asking {url}: {error or type(error).__name__}") from error

    async def models(self, url: str) -> tuple[Served, ...]:
        """Return what an engine serves; `EngineError` if it does not answer."""
        answer = _good(*await self._ask("GET", url + MODELS_PATH, PROBE_SECONDS), url + MODELS_PATH)
        try:
            return tuple(
                Served(each["id"], int(each.get("max_model_len") or 0), each.get("parent") is not None)
                for each in json.loads(answer)["data"]
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise EngineError(f"reading {url}{MODELS_PATH}: {error!r}") from error

    async def text(self, url: str) -> str:
        """Return the body of a GET; `EngineError` if there is none."""
        return _good(*await self._ask("GET", url, PROBE_SECONDS), url).decode(errors="replace")

    def _request(self, method: str, url: str, **options: Any) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if self._keyring is not None:
            trust = self._trust()
            options |= {"ssl": trust.context, "server_hostname": trust.name}
        return self._session.request(method, url, headers=self._headers(), **options)

    def _headers(self) -> dict[str, str]:
        key = self._key()
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        return headers


@cache
def _public() -> ssl.SSLContext:
    """Return the context for engines that a public authority vouches for."""
    return ssl.create_default_context()


def _is_an_end(event: TokenEvent | EngineFault) -> bool:
    """Whether an engine says nothing of a call after this."""
    return isinstance(event, EngineFault) or event.finish_reason is not None


def _is_the_engines(code: int) -> bool:
    """Whether a status speaks of the engine and not of the request."""
    return code >= _SERVER_ERROR or code in {401, 403, 404, 429}


def _good(status: int, body: bytes, url: str) -> bytes:
    if status != _OK:
        raise EngineError(f"asking {url}: status {status}: {body[:200].decode(errors='replace')}")
    return body


def _parsed(kind: type[_Answer], status: int, body: bytes, url: str) -> _Answer:
    try:
        return kind.model_validate_json(_good(status, body, url))
    except ValidationError as error:
        raise EngineError(f"reading {url}: {error.errors(include_url=False)[:2]}") from error


def connection_pool() -> aiohttp.ClientSession:
    """Return a session for engines: no limit on connections, since every stream holds one."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
        cookie_jar=aiohttp.DummyCookieJar(),  # engines set none
        auto_decompress=False,
        trust_env=False,
    )
