"""The worker's side of its porter: starts the process, says what it may give, and takes what it brings.

Copies between cache and shared memory are made here, without Python's lock: else the thread that steps the model would
wait for it. Blocks that lie together are copied by numpy, many small pieces by one call to the system. Made by
`worker_half`.
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
_MUCH: Final = 1 << 18  # bytes of a piece that is copied alone
_YIELDING: Final = 5  # niceness beyond the worker's
_AGAIN_S: Final = 1.0  # until a porter that ended is started anew


class Errands:
    """One worker's porter, started again if it ends."""

    def __init__(
        self,
        host: str,
        answer: Callable[[ReadRequest | PinQuery], Answer | Payload],
        *,
        lasting: bool = False,
        aside: bool = False,
    ) -> None:
        """Start the porter.

        `lasting`: pieces of the cache stay what they are when the next is asked for, so many are copied at once.
        `aside`: the porter yields to this thread, and both keep off the processors of this.
        """
        self._answer, self._lasting, self._aside = answer, lasting, aside
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
            left, filling = size, self._pieces(into)
            while left:
                part = Part.model_validate_json(self._said(channel, check, Part))
                if part.fault or not part.size:
                    raise ConnectionError(part.fault or "the porter brought less than there is")
                filling.take(part)
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
            left, pieces = answer.bytes_total, self._pieces(answer.pieces)
            while left:
                asked = Part.model_validate_json(channel.receive())
                size = pieces.give(asked.at, min(asked.size, left))
                channel.send(Part(at=asked.at, size=size))
                left -= size

    def _pieces(self, pieces: Iterator[memoryview]) -> _Pieces:
        return _Pieces(self._staging, pieces, lasting=self._lasting)

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
    """Copy by numpy, which leaves Python's lock to others meanwhile; twice as fast as the system with its calls."""
    np.copyto(np.frombuffer(into, np.uint8), np.frombuffer(source, np.uint8))


class _Pieces:
    """Memory in pieces, copied into or filled from shared memory in parts of other sizes."""

    def __init__(self, staging: Staging, pieces: Iterator[memoryview], *, lasting: bool) -> None:
        self._staging, self._pieces, self._lasting = staging, pieces, lasting
        self._rest = memoryview(b"")

    def give(self, at: int, size: int) -> int:
        """Copy what comes next; return how much, which is less only at the end."""
        done = 0
        while done < size and (some := self._next(size - done)):
            if len(some) > 1:
                done += self._staging.write(at + done, some)
            else:
                _copy(self._staging.part(Part(at=at + done, size=len(some[0]))), some[0])
                done += len(some[0])
        return done

    def take(self, part: Part) -> None:
        """Fill what comes next."""
        done = 0
        while done < part.size:
            some = self._next(part.size - done)
            assert some, "as many bytes are taken as were asked for"
            if len(some) > 1:
                done += self._staging.read(part.at + done, some)
            else:
                _copy(some[0], self._staging.part(Part(at=part.at + done, size=len(some[0]))))
                done += len(some[0])

    def end(self) -> None:
        """Let who lent the memory know that all is filled."""
        assert not self._rest
        assert next(self._pieces, None) is None

    def _next(self, most: int) -> list[memoryview]:
        """Return what comes next, `most` bytes at most: a large piece alone, small ones together if they last."""
        found: list[memoryview] = []
        while most and (self._lasting or not found):
            if not self._rest:
                following = next(self._pieces, None)
                if following is None:
                    break
                self._rest = following
            if found and len(self._rest) >= _MUCH:
                break
            found.append(self._rest[:most])
            self._rest, most = self._rest[len(found[-1]) :], most - len(found[-1])
            if len(found[-1]) >= _MUCH:
                break
        return found
