"""What a worker and its porter share: connections made on demand, and memory that both see. Used by both sides.

Either side may begin a conversation: it makes a pair of sockets and hands one end over. Bytes of the cache never go
through these sockets, they lie in the shared memory; a `Part` says where.
"""

from __future__ import annotations

import logging
import mmap
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Annotated, Final

from pydantic import Field

from medley.engine.kv.connections import Connection
from medley.engine.kv.messages import PinQuery, ReadRequest
from medley.wire.assignment import Message

PART_BYTES: Final = 4 << 20
# Parts of the shared memory: two for each conversation, so that one is filled while the other is sent or read.
PAIRS: Final = 12
STAGING_BYTES: Final = 2 * PAIRS * PART_BYTES  # untouched pages cost nothing
_MOST_PIECES: Final = 1024  # of one call: Linux takes no more
_LOG: Final = logging.getLogger("vllm.medley.kv")


class Part(Message):
    """Bytes in the shared memory; of nothing: why there are none."""

    at: Annotated[int, Field(ge=0, le=STAGING_BYTES)] = 0
    size: Annotated[int, Field(ge=0, le=PART_BYTES)] = 0
    fault: str = ""


class Errand(Message):
    """Ask another engine, and bring what it gives."""

    host: str
    port: int
    question: Annotated[ReadRequest | PinQuery, Field(discriminator="kind")]
    expected: int = 0  # bytes; others are not taken


class Staging:
    """The shared memory."""

    def __init__(self, file: int | None = None) -> None:
        """Take the memory of a file descriptor, or make it."""
        self.file = os.memfd_create("medley-kv") if file is None else file
        if file is None:
            os.ftruncate(self.file, STAGING_BYTES)
        self._memory = memoryview(mmap.mmap(self.file, STAGING_BYTES))

    def part(self, part: Part) -> memoryview:
        """Return the memory of a part."""
        return self._memory[part.at : part.at + part.size]

    def write(self, at: int, pieces: Sequence[memoryview]) -> int:
        """Copy pieces into it, one after the other; return the bytes. OSError if there is no memory."""
        return self._all(os.pwritev, at, pieces)

    def read(self, at: int, pieces: Sequence[memoryview]) -> int:
        """Fill pieces from it, one after the other; return the bytes."""
        return self._all(os.preadv, at, pieces)

    def _all(self, call: Callable[[int, Sequence[memoryview], int], int], at: int, pieces: Sequence[memoryview]) -> int:
        """Have the system copy: it takes many pieces at once, and Python's lock is free meanwhile."""
        left, total = deque(filter(len, pieces)), 0
        while left:
            done = call(self.file, list(islice(left, _MOST_PIECES)), at + total)
            if not done:
                raise OSError(f"the shared memory ends before {len(left)} pieces")
            total += done
            while left and done >= len(left[0]):
                done -= len(left.popleft())
            if done:
                left[0] = left[0][done:]
        return total


class Channels:
    """Conversations of this side with the other. Safe from several threads."""

    def __init__(self, main: socket.socket, serve: Callable[[Connection], None]) -> None:
        """`serve` is called in a thread of its own for each connection that the other side made; OSError ends it."""
        self._main, self._serve = main, serve
        self._lock = threading.Lock()
        self._kept: list[Connection] = []

    def accept(self) -> None:
        """Serve until the other side is gone."""
        while True:
            try:
                _, files, _, _ = socket.recv_fds(self._main, 1, 1)
            except OSError:
                return
            if not files:
                return
            threading.Thread(
                target=self._served, args=(socket.socket(fileno=files[0]),), name="medley-kv-channel", daemon=True
            ).start()

    def take(self) -> Connection:
        """Return a connection to the other side; OSError if it is gone."""
        with self._lock:
            if self._kept:
                return self._kept.pop()
            ours, theirs = socket.socketpair()
            try:
                socket.send_fds(self._main, [b"c"], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
            finally:
                theirs.close()
            return Connection(ours)

    def give(self, connection: Connection) -> None:
        """Keep a connection for the next conversation."""
        with self._lock:
            self._kept.append(connection)

    @contextmanager
    def lent(self) -> Iterator[Connection]:
        """Lend a connection; it is kept if the block ends well, else closed, which ends the conversation."""
        connection = self.take()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self.give(connection)

    def close(self) -> None:
        """End all conversations."""
        try:
            self._main.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            _LOG.debug("closing the way to a porter that was gone: %s", error)
        self._main.close()
        with self._lock:
            kept, self._kept = self._kept, []
        for each in kept:
            each.close()

    def _served(self, sock: socket.socket) -> None:
        with sock:
            try:
                self._serve(Connection(sock))
            except OSError as error:
                _LOG.debug("a conversation ended: %s", error)
