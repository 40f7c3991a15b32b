"""Connections between workers: dialled, wrapped in TLS, kept for the next read. Called by `puller` and `server`.

Payload is never copied here: sockets send from, and receive into, the memory that `blocks` lends.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from medley.core.identity import Role, dns_name
from medley.engine.kv.messages import LENGTH, framed, length
from medley.wire.assignment import Message

CONNECT_S: Final = 3.0
STALL_S: Final = 5.0  # without a byte: the other side, or the way to it, is gone
_KEPT_S: Final = 20.0  # less than the holder keeps an idle connection
_SOCKET_BUFFER_BYTES: Final = 4 << 20


class Connection:
    """One socket, speaking framed messages and raw bytes. Not for several threads at once."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.used_at = time.monotonic()

    def send(self, message: Message) -> None:
        """Send one message."""
        self.sock.sendall(framed(message))

    def receive(self) -> bytes:
        """Return the body of the next message; ConnectionError at the end, ProtocolError if it is too long."""
        header = bytearray(LENGTH.size)
        self._fill(memoryview(header))
        body = bytearray(length(bytes(header)))
        self._fill(memoryview(body))
        self.used_at = time.monotonic()
        return bytes(body)

    def receive_within(self, check: Callable[[], None]) -> bytes:
        """Do as `receive`, and call `check`, which may raise, whenever the socket's timeout passes."""
        header = bytearray(LENGTH.size)
        self._fill(memoryview(header), check, patient=True)
        body = bytearray(length(bytes(header)))
        self._fill(memoryview(body), check, patient=True)
        return bytes(body)

    def send_pieces(self, pieces: Iterable[memoryview]) -> int:
        """Send memory as it lies; return the bytes."""
        total = 0
        for piece in pieces:
            sent = 0
            while sent < len(piece):  # not sendall: its timeout is for the whole piece, however large
                sent += self.sock.send(piece[sent:])
            total += sent
        return total

    def fill_pieces(self, pieces: Iterable[memoryview], check: Callable[[], None]) -> int:
        """Receive into memory; return the bytes. `check` is called all the time and may raise."""
        total = 0
        for piece in pieces:
            self._fill(piece, check)
            total += len(piece)
        return total

    def close(self) -> None:
        """Close it, whatever state it is in."""
        self.sock.close()

    def _fill(self, piece: memoryview, check: Callable[[], None] | None = None, *, patient: bool = False) -> None:
        got = 0
        while got < len(piece):
            if check is not None:
                check()
            try:
                count = self.sock.recv_into(piece[got:])
            except TimeoutError:
                if patient:
                    continue
                raise
            if count == 0:
                raise ConnectionError("the other side closed the connection")
            got += count


class Connections:
    """Dials, and keeps connections for the next read. Safe from several threads."""

    def __init__(self, client: Callable[[], ssl.SSLContext] | None, *, stall_s: float = STALL_S) -> None:
        self._client = client
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, int], list[Connection]] = {}

    @contextmanager
    def to(self, host: str, port: int) -> Iterator[Connection]:
        """Lend a connection; it is kept if the block ends well, else closed."""
        connection = self._take(host, port) or self._dial(host, port)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            self._kept.setdefault((host, port), []).append(connection)

    def close(self) -> None:
        """Close what is kept."""
        with self._lock:
            kept = [each for group in self._kept.values() for each in group]
            self._kept.clear()
        for each in kept:
            each.close()

    def _take(self, host: str, port: int) -> Connection | None:
        """Return a kept connection that is still open, oldest first out of the way."""
        now = time.monotonic()
        with self._lock:
            for address in list(self._kept):  # other addresses, too: engines come and go
                fresh = [each for each in self._kept[address] if now - each.used_at < _KEPT_S]
                for each in self._kept[address]:
                    if each not in fresh:
                        each.close()
                self._kept[address] = fresh
                if not fresh:
                    del self._kept[address]
            group = self._kept.get((host, port), [])
            while group:
                connection = group.pop()
                if _is_quiet(connection.sock):
                    return connection
                connection.close()
        return None

    def _dial(self, host: str, port: int) -> Connection:
        sock = socket.create_connection((host, port), timeout=CONNECT_S)
        try:
            prepare(sock, self._stall_s)
            if self._client is None:
                return Connection(sock)
            return Connection(self._client().wrap_socket(sock, server_hostname=dns_name(Role.ENGINE)))
        except BaseException:
            sock.close()
            raise


def prepare(sock: socket.socket, stall_s: float) -> None:
    """Set what every connection has: no delay for small messages, and an end to silence."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)
    sock.settimeout(stall_s)


def _is_quiet(sock: socket.socket) -> bool:
    """Whether nothing has come on an idle connection: what comes unasked is its end."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)
