"""The worker's side of its porter: starts the process, says what it may give, and takes what it brings.

Copies between cache and shared memory are made here, a few MiB at a time and without a system call for each block, so
the thread that steps the model is held up for a millisecond or two at most. Made by `worker_half`.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

import numpy as np

from medley.engine.kv.channels import Channels, Errand, Part, Staging
from medley.engine.kv.connections import Connection
from medley.engine.kv.messages import (
    Answer,
    PinQuery,
    ProtocolError,
    ReadRequest,
    Remote,
    parse_answer,
    parse_question,
)
from medley.engine.kv.server import Payload

_LOG: Final = logging.getLogger("vllm.medley.kv")
_LOOK_S: Final = 0.1  # between two looks whether a load is still wanted
_MUCH: Final = 1 << 18  # bytes
_YIELDING: Final = 5  # niceness beyond the worker's
_AGAIN_S: Final = 1.0  # until a porter that ended is started anew


class Errands:
    """One worker's porter, started again if it ends."""

    def __init__(
        self, host: str, answer: Callable[[ReadRequest | PinQuery], Answer | Payload], *, aside: bool = False
    ) -> None:
        """Start the porter; `aside`: it yields to this thread, and both keep off the processors of this."""
        self._answer, self._aside = answer, aside
        self._elsewhere = set(range(os.cpu_count() or 1)) - os.sched_getaffinity(0) if aside else set()
        self._staging = Staging()
        self._listening = socket.create_server((host, 0), backlog=128)
        self.port: int = self._listening.getsockname()[1]
        self._closed = threading.Event()
        self._channels, self._process = self._start()
        threading.Thread(target=self._keep, name="medley-kv-porter", daemon=True).start()

    @property
    def process_id(self) -> int:
        """The porter's."""
        return self._process.pid

    def ask(self, host: str, port: int, question: PinQuery) -> Answer:
        """Return another engine's answer to a question without bytes; OSError or ProtocolError if there is none."""
        with self._channels.lent() as channel:
            channel.send(Errand(host=host, port=port, question=question))
            answer = Answer.model_validate_json(self._said(channel, lambda: None, Answer))
            self._end(channel, lambda: None)
            return answer

    def read(  # noqa: PLR0917 - one call in one place
        self,
        host: str,
        port: int,
        question: ReadRequest,
        size: int,
        into: Iterator[memoryview],
        check: Callable[[], None],
    ) -> int | Remote | Answer:
        """Fill pieces of the cache with another engine's bytes, and return how many.

        Or return where the bytes are, or an answer that is of no use. `check` is called all the time and may raise.
        """
        with self._channels.lent() as channel:
            channel.send(Errand(host=host, port=port, question=question, expected=size))
            answer = parse_answer(self._said(channel, check, Answer))
            if not answer.ok or answer.remote is not None or answer.bytes_total != size:
                self._end(channel, check, heed=False)
                return answer.remote if answer.ok and answer.remote is not None else answer
            left, filling = size, _Pieces(into)
            while left:
                part = Part.model_validate_json(self._said(channel, check, Part))
                if part.fault or not part.size:
                    raise ConnectionError(part.fault or "the porter brought less than there is")
                filling.take(self._staging.part(part))
                channel.send(Part())
                left -= part.size
            filling.end()
            self._end(channel, check)
            return size

    def close(self) -> None:
        """Stop giving and taking."""
        self._closed.set()
        self._channels.close()
        self._listening.close()
        self._process.kill()
        self._process.wait()

    def _start(self) -> tuple[Channels, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair()
        files = (theirs.fileno(), self._staging.file, self._listening.fileno())
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "medley.engine.kv.porter", *map(str, files)],
                pass_fds=files,
                stdin=subprocess.DEVNULL,
                # vLLM's plugins and thread bindings are the worker's.
                env={name: value for name, value in os.environ.items() if name not in {"LD_PRELOAD", "VLLM_PLUGINS"}},
            )
        if self._aside:
            with suppress(ProcessLookupError):  # it is over already
                os.setpriority(os.PRIO_PROCESS, process.pid, min(os.getpriority(os.PRIO_PROCESS, 0) + _YIELDING, 19))
        _move(process.pid, self._elsewhere)
        return Channels(ours, self._give), process

    def _keep(self) -> None:
        """Serve the porter's questions; start another when it ends."""
        _move(0, self._elsewhere)  # this thread and those that it starts: they copy what is given
        while True:
            self._channels.accept()
            if self._closed.wait(_AGAIN_S):
                return
            code = self._process.wait()
            _LOG.error("medley: the process that carries blocks ended with %d; starting it again", code)
            self._channels.close()
            self._channels, self._process = self._start()

    def _give(self, channel: Connection) -> None:
        """Answer what other engines ask, over one channel."""
        while True:
            answer = self._answer(parse_question(channel.receive()))
            if isinstance(answer, Answer):
                channel.send(answer)
                continue
            channel.send(Answer(ok=True, bytes_total=answer.bytes_total))
            left, pieces = answer.bytes_total, _Pieces(answer.pieces)
            while left:
                asked = Part.model_validate_json(channel.receive())
                size = pieces.give(self._staging.part(asked)[:left])
                channel.send(Part(at=asked.at, size=size))
                left -= size

    def _said(self, channel: Connection, check: Callable[[], None], wanted: type[Answer | Part]) -> bytes:
        """Return the next message; a fault in place of an answer is raised."""
        channel.sock.settimeout(_LOOK_S)
        body = channel.receive_within(check)
        channel.sock.settimeout(None)
        if wanted is Answer and b'"fault":' in body:
            raise ConnectionError(Part.model_validate_json(body).fault)
        return body

    def _end(self, channel: Connection, check: Callable[[], None], *, heed: bool = True) -> None:
        """Read the end of an errand."""
        part = Part.model_validate_json(self._said(channel, check, Part))
        if heed and part.fault:
            raise ProtocolError(part.fault)


def _move(who: int, processors: set[int]) -> None:
    """Have a process, or this thread (0), run on these processors; on those that it has, if there are none."""
    if not processors:
        return
    try:
        os.sched_setaffinity(who, processors)
    except OSError as error:  # they are not this container's, or the process is over already
        _LOG.info("medley: blocks are carried on the model's own processors: %s", error)


def _copy(into: memoryview, source: memoryview) -> None:
    """Copy; of much, numpy does it without Python's lock, so that the model goes on meanwhile."""
    if len(source) < _MUCH:
        into[:] = source
    else:
        np.copyto(np.frombuffer(into, np.uint8), np.frombuffer(source, np.uint8))


class _Pieces:
    """Memory in pieces, filled from or copied into memory in parts of other sizes."""

    def __init__(self, pieces: Iterator[memoryview]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def give(self, into: memoryview) -> int:
        """Copy what comes next; return how much, which is less only at the end."""
        done = 0
        while done < len(into):
            if not self._rest:
                following = next(self._pieces, None)
                if following is None:
                    break
                self._rest = following
            size = min(len(self._rest), len(into) - done)
            _copy(into[done : done + size], self._rest[:size])
            self._rest, done = self._rest[size:], done + size
        return done

    def take(self, source: memoryview) -> None:
        """Fill what comes next."""
        done = 0
        while done < len(source):
            if not self._rest:
                self._rest = next(self._pieces)
            size = min(len(self._rest), len(source) - done)
            _copy(self._rest[:size], source[done : done + size])
            self._rest, done = self._rest[size:], done + size

    def end(self) -> None:
        """Let who lent the memory know that all is filled."""
        assert not self._rest
        assert next(self._pieces, None) is None
