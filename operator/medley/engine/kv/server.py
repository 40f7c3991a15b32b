"""Answers other engines' workers: blocks from a worker's cache, and whether an export is still pinned.

One `Holder` in each worker, one in the engine core; each accepts in a thread of its own and serves every connection in
another, off the thread that steps the model. With a keyring only engines of the service get an answer.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from medley.core.identity import Role
from medley.engine.kv.connections import STALL_S, Connection, prepare
from medley.engine.kv.layout import Shard
from medley.engine.kv.messages import (
    Answer,
    PinQuery,
    ProtocolError,
    ReadRequest,
    Remote,
    parse_question,
    refusal,
    slice_bytes,
)

if TYPE_CHECKING:
    from medley.engine.kv.blocks import Blocks  # it imports numpy, which a porter does without

_LOG: Final = logging.getLogger("vllm.medley.kv")
_IDLE_S: Final = 60.0  # until a connection without questions is closed
_MOST_CONNECTIONS: Final = 256
_BACKLOG: Final = 128
_MOST_PIECES: Final = 1 << 16  # of an offer: more might not fit into a message


class Recognising(Protocol):
    """What a holder needs of `medley.tls.keyring.Keyring`."""

    @property
    def server(self) -> ssl.SSLContext:
        """To listen with."""
        ...

    def role(self, certificate: dict[str, object] | None) -> Role | None:
        """Return who the other side is."""
        ...


@dataclass(frozen=True, slots=True)
class Payload:
    """A yes, and the memory that follows it."""

    bytes_total: int
    pieces: Iterator[memoryview]


def block_answers(
    blocks: Blocks, secret: bytes, offer: Callable[[Iterator[memoryview]], Remote] | None = None
) -> Callable[[ReadRequest | PinQuery], Answer | Payload]:
    """Return what a worker answers: blocks that its engine granted, nothing else. `offer` says where they are."""

    def answer(question: ReadRequest | PinQuery) -> Answer | Payload:
        if not isinstance(question, ReadRequest):
            return Answer(ok=False, reason="kind: a worker gives blocks; ask the engine core about exports")
        if reason := refusal(question, secret, blocks.shard, blocks.geometry):
            return Answer(ok=False, reason=reason)
        lo, hi = question.wanted
        part = Shard(question.layers, question.head_lo, question.head_n)
        size = len(part.layers) * (hi - lo) * slice_bytes(blocks.geometry, part.head_n)
        pieces = blocks.reading(part, question.granted[lo:hi])
        if question.by == "nixl" and offer is not None:
            remote = offer(pieces)
            if len(remote.pieces) <= _MOST_PIECES:
                return Answer(ok=True, bytes_total=size, remote=remote)
            pieces = blocks.reading(part, question.granted[lo:hi])
        return Payload(size, pieces)

    return answer


def pin_answers(holds: Callable[[str], bool]) -> Callable[[ReadRequest | PinQuery], Answer | Payload]:
    """Return what the engine core answers: whether an export is pinned."""

    def answer(question: ReadRequest | PinQuery) -> Answer | Payload:
        if not isinstance(question, PinQuery):
            return Answer(ok=False, reason="kind: the engine core has no blocks; ask its workers")
        if not holds(question.export_id):
            return Answer(ok=False, reason="export_id: released, run out, or never known")
        return Answer(ok=True)

    return answer


class Holder:
    """Listens until it is closed."""

    def __init__(
        self,
        at: str | socket.socket,
        answer: Callable[[ReadRequest | PinQuery], Answer | Payload],
        keyring: Recognising | None,
        *,
        stall_s: float = STALL_S,
    ) -> None:
        """`at`: a host, or a socket that listens already."""
        self._answer, self._keyring, self._stall_s = answer, keyring, stall_s
        self._sock = socket.create_server((at, 0), backlog=_BACKLOG) if isinstance(at, str) else at
        self.port: int = self._sock.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closed = False
        threading.Thread(target=self._accept, name="medley-kv-accept", daemon=True).start()

    def close(self) -> None:
        """Stop answering; readers see their connections end."""
        with self._lock:
            self._closed = True
            open_now = list(self._open)
        # Closing alone would leave another thread in accept, or a reader in silence.
        for sock in (self._sock, *open_now):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                _LOG.debug("closing a connection that was over: %s", error)
        self._sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, address = self._sock.accept()
            except OSError as error:
                if self._closed:
                    return
                _LOG.warning("accepting a connection: %s", error)  # out of file descriptors, say: they come back
                threading.Event().wait(0.1)
                continue
            with self._lock:
                refused = self._closed or len(self._open) >= _MOST_CONNECTIONS
                if not refused:
                    self._open.add(sock)
            if refused:
                sock.close()
                continue
            threading.Thread(target=self._serve, args=(sock, address), name="medley-kv-serve", daemon=True).start()

    def _serve(self, sock: socket.socket, address: object) -> None:
        using = sock
        try:
            prepare(sock, self._stall_s)
            if self._keyring is not None:
                using = self._keyring.server.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                with self._lock:  # the wrapped one has the file descriptor now
                    self._open.discard(sock)
                    self._open.add(using)
                using.do_handshake()
                if self._keyring.role(using.getpeercert()) is not Role.ENGINE:
                    _LOG.warning("refusing %s: not an engine of this service", address)
                    return
            connection = Connection(using)
            while True:
                using.settimeout(_IDLE_S)
                question = connection.receive()
                using.settimeout(self._stall_s)
                self._reply(connection, question)
        except (OSError, ProtocolError) as error:  # ssl.SSLError and TimeoutError are OSErrors
            _LOG.debug("a connection from %s ended: %s", address, error)
        finally:
            with self._lock:
                self._open.discard(using)
            using.close()

    def _reply(self, connection: Connection, question: bytes) -> None:
        try:
            answer = self._answer(parse_question(question))
        except ProtocolError as error:
            connection.send(Answer(ok=False, reason=str(error)[:1000]))
            raise
        if isinstance(answer, Payload):
            connection.send(Answer(ok=True, bytes_total=answer.bytes_total))
            connection.send_pieces(answer.pieces)
        else:
            connection.send(answer)
