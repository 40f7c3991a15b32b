"""Calls to engines over connections that are kept: HTTP/1.1, one call at a time on each.

Used by `engine_client` for what clients wait for: rendering and generating. aiohttp's client does more (redirects,
cookies, proxies, compression), for three times the processor time per call and per chunk.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import httptools

CONNECT_SECONDS = 3.0  # a machine that is gone does not refuse, it says nothing
# vLLM's server closes what was idle for 5 s. One that is younger cannot meet a call on its way out.
KEPT_SECONDS = 4.0
# What follows a finish reason is a few bytes; their connection is worth waiting for.
_TAIL_SECONDS = 1.0
_FIRST_FINAL_STATUS = 200
_FED_STATUS = 200  # bodies of others say what went wrong
_LENGTHS = frozenset({b"content-length", b"transfer-encoding"})

# Takes the parts of a body as they come; True: it has enough.
Taker = Callable[[bytes], bool]


class UnreachableError(ConnectionError):
    """There is no connection; nothing was sent."""


class Place(NamedTuple):
    """Where an engine is."""

    host: str
    port: int
    tls: bool
    authority: str  # as the header `Host` has it
    prefix: str  # of its paths


class Trust(NamedTuple):
    """How to know engines by TLS."""

    context: ssl.SSLContext
    name: str | None  # that their certificates are for; None: their host's


class Answer(asyncio.Protocol):
    """A connection, while one call has it: the answer to that call.

    Its reader ends with `leave`, always; then the connection may serve another call.
    """

    __slots__ = (
        "_blocks", "_complete", "_error", "_fed", "_left", "_lengthy", "_loop", "_parser", "_pool", "_reader", "_sated",
        "_stays", "_tail", "_take", "_transport", "idle_since", "place", "status",
    )  # fmt: skip

    def __init__(self, pool: Calls, place: Place, loop: asyncio.AbstractEventLoop) -> None:
        self.place, self.idle_since = place, 0.0  # event loop time
        self.status = 0  # 0: its head has not come
        self._pool, self._loop = pool, loop
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._reader: asyncio.Future[None] | None = None
        self._blocks: list[bytes] = []
        self._complete = self._left = True
        self._lengthy = self._stays = self._sated = False
        self._take: Taker | None = None  # who takes the body as it comes
        self._fed = False  # somebody waits for what `_take` says, and for nothing before that
        self._error: Exception | None = None
        self._tail: asyncio.TimerHandle | None = None

    # What callers do

    async def ask(self, question: bytes, take: Taker | None = None) -> None:
        """Send a call and wait for the head of its answer: `status`.

        What of a body comes with the head or right after it goes to `take`, if it is an answer to be fed to it.
        """
        assert self._transport is not None
        self.status, self._take = 0, take
        self._complete = self._left = self._lengthy = self._sated = False
        self._transport.write(question)
        while not self.status:
            await self._news()

    async def feed(self, take: Taker) -> bool:
        """Give `take` the body as it comes until it has enough; False: the body ended before.

        It is called from where bytes come in, which spares each of them the way through a task. What it raises is
        raised here; `ConnectionError` if the connection breaks.
        """
        self._take, self._fed = take, True
        try:
            self._offer()
            while not self._sated and not self._complete:
                await self._news()
        finally:
            self._fed = False
        if self._error is not None and not self._sated:
            raise self._error
        return self._sated

    async def read(self) -> bytes:
        """Return the body; `ConnectionError` if the connection breaks before its end."""
        while not self._complete:
            await self._news()
        return b"".join(self._blocks)

    def leave(self, *, ended: bool) -> None:
        """Read no more. `ended`: little is to come, so the connection is kept; else the engine's work is aborted."""
        self._left, self._take = True, None
        self._blocks.clear()
        if self._complete:
            self._give_back()
        elif ended and self._error is None:
            self._tail = self._loop.call_later(_TAIL_SECONDS, self.abort)
        else:
            self.abort()

    def abort(self) -> None:
        """Close the connection at once."""
        assert self._transport is not None
        self._transport.abort()

    @property
    def reusable(self) -> bool:
        """Whether another call may have the connection."""
        transport = self._transport
        assert transport is not None
        # What was not sent yet belongs to a call that was answered early.
        unsent = transport.get_write_buffer_size()
        return self._stays and self._error is None and not transport.is_closing() and not unsent

    async def _news(self) -> None:
        if self._error is not None:
            raise self._error
        self._reader = self._loop.create_future()
        await self._reader

    def _offer(self) -> None:
        """Give what came to the one who takes it."""
        if self._take is None or self._sated or not self._blocks or self.status != _FED_STATUS:
            return
        blocks, self._blocks = self._blocks, []
        try:
            self._sated = self._take(blocks[0] if len(blocks) == 1 else b"".join(blocks))
        except Exception as error:  # noqa: BLE001  # it is the taker's, who waits in `feed`
            self._error = error

    def _give_back(self) -> None:
        if self._tail is not None:
            self._tail.cancel()
            self._tail = None
        if self.reusable:
            self._pool.keep(self)
        else:
            self.abort()

    def _fail(self, error: ConnectionError) -> None:
        """Note what broke the connection; an answer that is complete is none the worse for it."""
        if not self._complete and self._error is None:
            self._error = error

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by type
        self._pool.add(self)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._complete:  # between calls there is nothing to say
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(ConnectionError(f"{self.place.host} does not speak HTTP: {error}"))
            self.abort()
        if not self._left:
            self._offer()
            if not self._fed or self._sated or self._complete or self._error is not None:
                self._wake()
        elif self._complete and self._tail is not None:
            self._give_back()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end: of the answer, if it has no other."""
        if self._tail is not None:
            self._tail.cancel()
        self._pool.forget(self)
        if self.status and not self._lengthy and exc is None:
            self._complete = True
        self._fail(ConnectionResetError(f"{self.place.host} closed the connection: {exc or 'no error'}"))
        self._wake()

    # What the parser calls

    def on_message_begin(self) -> None:
        """Note an answer that nobody asked for."""
        self._stays = self._stays and not self._complete

    def on_header(self, name: bytes, _: bytes) -> None:
        """Note whether the answer says where it ends."""
        if name.lower() in _LENGTHS:
            self._lengthy = True

    def on_headers_complete(self) -> None:
        """Take the status; what comes before the final one says nothing."""
        status = self._parser.get_status_code()
        if status >= _FIRST_FINAL_STATUS and not self._complete:
            self.status, self._stays = status, self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        if not self._left and not self._complete:
            self._blocks.append(body)

    def on_message_complete(self) -> None:
        """Note the end."""
        self._complete = self.status > 0


class Calls:
    """Connections to engines. `trust` is asked for each new one that speaks TLS: certificates change."""

    def __init__(self, trust: Callable[[], Trust]) -> None:
        self._trust = trust
        self._loop = asyncio.get_running_loop()
        self._open: set[Answer] = set()
        self._idle: dict[Place, list[Answer]] = {}
        self._sweep: asyncio.TimerHandle | None = None

    async def post(self, url: str, path: str, key: str | None, body: bytes, take: Taker | None = None) -> Answer:
        """Send JSON and return the answer when its head is there; whoever gets it has to `leave` it.

        `take`: to whom the answer will be fed; it may get the first of it before this returns.
        `UnreachableError` if there is no connection, another `ConnectionError` if it breaks.
        """
        place = _place(url)
        answer = self._kept(place) or await self._connected(place)
        try:
            await answer.ask(b"%b%d\r\n\r\n%b" % (_head(place, path, key), len(body), body), take)
        except BaseException:
            answer.leave(ended=False)
            raise
        return answer

    def close(self) -> None:
        """Close all connections."""
        if self._sweep is not None:
            self._sweep.cancel()
        for each in self._open:
            each.abort()

    def add(self, connection: Answer) -> None:
        """Note a new connection."""
        self._open.add(connection)

    def keep(self, connection: Answer) -> None:
        """Take back a connection that served its call."""
        connection.idle_since = self._loop.time()
        self._idle.setdefault(connection.place, []).append(connection)
        if self._sweep is None:
            self._sweep = self._loop.call_later(KEPT_SECONDS, self._close_old)

    def forget(self, connection: Answer) -> None:
        """Drop a connection that is closed."""
        self._open.discard(connection)
        kept = self._idle.get(connection.place, [])
        if connection in kept:
            kept.remove(connection)
            if not kept:
                del self._idle[connection.place]

    def _kept(self, place: Place) -> Answer | None:
        oldest = self._loop.time() - KEPT_SECONDS
        while kept := self._idle.get(place):
            connection = kept.pop()  # the youngest
            if not kept:
                del self._idle[place]
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    async def _connected(self, place: Place) -> Answer:
        trust = self._trust() if place.tls else None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await self._loop.create_connection(
                    lambda: Answer(self, place, self._loop),
                    place.host,
                    place.port,
                    ssl=None if trust is None else trust.context,
                    server_hostname=None if trust is None else trust.name,
                )
        except OSError as error:  # TimeoutError is one, and so are those of TLS
            raise UnreachableError(f"connecting to {place.authority}: {error or type(error).__name__}") from error
        return connection

    def _close_old(self) -> None:
        oldest = self._loop.time() - KEPT_SECONDS
        for each in [each for kept in self._idle.values() for each in kept if each.idle_since <= oldest]:
            each.abort()
        self._sweep = self._loop.call_later(KEPT_SECONDS, self._close_old) if self._idle else None


@lru_cache(maxsize=1024)
def _place(url: str) -> Place:
    parts = urlsplit(url)
    assert parts.hostname is not None
    tls = parts.scheme == "https"
    return Place(parts.hostname, parts.port or (443 if tls else 80), tls, parts.netloc, parts.path.rstrip("/"))


@lru_cache(maxsize=1024)
def _head(place: Place, path: str, key: str | None) -> bytes:
    """Return the head of a call up to its length."""
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    return (
        f"POST {place.prefix}{path} HTTP/1.1\r\nHost: {place.authority}\r\nAccept: */*\r\n{authorization}"
        "Content-Type: application/json\r\nContent-Length: "
    ).encode()
