"""A streamed answer: what is made goes into the client's socket where it comes in, without the way through a task.

Made by `delivery` for each answer of server-sent events. aiohttp's own stream would be written to by a task that has to
be woken for each chunk, which costs more than the chunk itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE
from aiohttp.web_request import BaseRequest


class EventStream(web.StreamResponse):
    """Nothing is out before the first events: until then the request may get another answer.

    A slow client slows nobody: what it has not taken yet waits in its connection.
    """

    def __init__(
        self, request: web.Request, headers: Callable[[], Mapping[str, str]], leaving: Callable[[], bool]
    ) -> None:
        super().__init__()
        self._client, self._transport = request, request.transport
        self._told, self._leaving = headers, leaving  # both are asked late
        self._chunks = request.version >= HttpVersion11  # else its end is that of the connection
        self._stays = self._chunks and request.keep_alive
        self._head, self._held = b"", b""
        self.begun = False

    def send(self, events: bytes, *, last: bool = False) -> None:
        """Write events; never blocks. `last`: the end follows at once; they go out with it, but for the first ones."""
        if last and self.begun:
            self._held = events
        elif events:
            self._write(self._framed(events))

    async def end(self, events: bytes) -> None:
        """Write the last events, and wait until the client has taken nearly all."""
        rest = self._framed(self._held + events)
        self._write(rest + b"0\r\n\r\n" if self._chunks else rest)
        await self._client.writer.drain()

    def word_head(self) -> None:
        """Make ready what comes before the first events; done while an engine works, it costs no client time."""
        told = {
            **self._told(),
            "Content-Type": "text/event-stream",
            "Date": rfc822_formatted_time(),
            "Server": SERVER_SOFTWARE,
        }
        if self._chunks:
            told["Transfer-Encoding"] = "chunked"
        version = self._client.version
        lines = (f"{name}: {value}\r\n" for name, value in told.items())
        self._head = f"HTTP/{version.major}.{version.minor} 200 OK\r\n{''.join(lines)}".encode()

    def _write(self, block: bytes) -> None:
        if not self.begun:
            self.begun = True
            if not self._head:
                self.word_head()
            self._stays = self._stays and not self._leaving()
            block = self._head + (b"\r\n" if self._stays else b"Connection: close\r\n\r\n") + block
            self._client.writer.output_size = len(block)  # aiohttp asks whether another answer can follow
        if self._transport is not None and not self._transport.is_closing():  # else the handler is cancelled soon
            self._transport.write(block)

    def _framed(self, events: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(events), events) if self._chunks else events

    # What aiohttp asks of an answer that a handler returned

    @property
    def keep_alive(self) -> bool:
        """Whether the connection serves another request."""
        return self._stays

    async def prepare(self, _: BaseRequest) -> AbstractStreamWriter | None:
        """Do nothing: all is out."""
        return None

    async def write_eof(self, _: bytes = b"") -> None:
        """Do nothing: all is out."""
