"""TLS on vLLM's port: the service's routers pass, nobody else; vLLM itself listens on a socket file that only we reach.

Made by __main__.py. Not vLLM's own `--ssl-*`: in 0.32 its refresh watches files that the kubelet replaces and so
misses all changes after the first, it never drops an authority, and it knows no roles. Bytes go through as they come;
what they say is vLLM's business.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from medley.core.identity import Role
from medley.tls.keyring import Keyring

_HANDSHAKE_S: Final = 10.0  # who says nothing for so long is not waited for
_SHUTDOWN_S: Final = 2.0  # for the other side's polite end
_BACKLOG: Final = 1024
_CALLERS: Final = frozenset({Role.ROUTER})


async def open_front(keyring: Keyring, host: str, port: int, vllm: Path) -> asyncio.Server:
    """Listen, and pass what routers say to vLLM's socket file. The caller closes the server."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(
        lambda: _Client(keyring, vllm),
        host,
        port,
        ssl=keyring.server,
        ssl_handshake_timeout=_HANDSHAKE_S,
        ssl_shutdown_timeout=_SHUTDOWN_S,
        backlog=_BACKLOG,
    )


class _Side(asyncio.Protocol):
    """One of two connections; what comes here goes out there, no faster than there takes it."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self.there: _Side | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self.there is not None:  # else the other side ended, and this one is ending
            self.there.write(data)

    def pause_writing(self) -> None:
        if self.there is not None:
            self.there.hold()

    def resume_writing(self) -> None:
        if self.there is not None:
            self.there.go_on()

    def connection_lost(self, _: Exception | None) -> None:
        # What was said before the end still goes out. The end of either side ends both: HTTP has no half-open answers.
        if self.there is not None:
            self.there.end()

    def write(self, data: bytes) -> None:
        """Send; what cannot go at once waits here, and holds the other side."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def hold(self) -> None:
        """Read no more for now."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Read again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def end(self) -> None:
        """Write what is left, and close."""
        if self._transport is not None:
            self._transport.close()


class _Client(_Side):
    """The side of a router."""

    def __init__(self, keyring: Keyring, vllm: Path) -> None:
        super().__init__()
        self._keyring, self._vllm = keyring, vllm
        self._reaching: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self._transport is not None
        if self._keyring.role(transport.get_extra_info("peercert")) not in _CALLERS:
            self._transport.abort()
            return
        self._transport.pause_reading()
        self._reaching = asyncio.get_running_loop().create_task(self._reach())

    async def _reach(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, there = await loop.create_unix_connection(_Side, str(self._vllm))
        except OSError:  # vLLM does not run: to a router, a connection that ends
            self.end()
            return
        self.there, there.there = there, self
        if self._transport is None or self._transport.is_closing():
            there.end()
        else:
            self.go_on()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._transport = None
