"""Fetches blocks for requests that wait for them, in threads of its own. Made by the connector in each worker.

A load either succeeds whole, or fails and says why: then vLLM computes all of it. What was received counts only after
the exporting engine has said that the blocks were still pinned.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Final, Literal, NamedTuple, Protocol

from medley.engine.kv.blocks import Blocks
from medley.engine.kv.layout import IncompleteError, Pull, pulls, split
from medley.engine.kv.messages import (
    Answer,
    PinQuery,
    ProtocolError,
    ReadRequest,
    Remote,
    slice_bytes,
)
from medley.wire.ticket import Ticket

_LOG: Final = logging.getLogger("vllm.medley.kv")
_LOADS_AT_ONCE: Final = 8
_READS_AT_ONCE: Final = 16
MOST_CONNECTIONS: Final = 4  # to one source worker, for one load
_WORTH_A_CONNECTION: Final = 4 << 20  # bytes
_ASKS_EVERY_S: Final = 1.0  # whether the source is there, while bytes come without its doing


@dataclass(frozen=True, slots=True)
class Load:
    """Blocks that one request waits for."""

    request_id: str
    ticket: Ticket
    first: int  # position in the ticket's blocks from which on they are wanted
    into: tuple[int, ...]  # our blocks, as many as are wanted
    within_s: float  # afterwards the request is computed instead


@dataclass(frozen=True, slots=True)
class Loaded:
    """How a load ended."""

    request_id: str
    bytes_read: int
    seconds: float
    fault: str  # empty: all is in place
    bytes_fetched: int = 0  # of them, those that this worker got by itself, by NIXL


class _Read(NamedTuple):
    """Bytes that are in place: sent by the source, and fetched from its memory."""

    sent: int
    fetched: int


class FailedError(Exception):
    """A load cannot succeed; the message is for the log."""


class NotFetchedError(Exception):
    """Bytes could not be fetched, and nothing more is written; the source may still send them."""


class Fetcher(Protocol):
    """Fetches bytes from another process's memory: the transport beside TCP."""

    def fetch(self, remote: Remote, into: Iterator[memoryview], check: Callable[[], None]) -> int:
        """Fill pieces from where the bytes are; return the bytes. NotFetchedError, or what `check` raises."""
        ...


class Reader(Protocol):
    """The way to other engines: `errands.Errands`."""

    def ask(self, host: str, port: int, question: PinQuery) -> Answer:
        """Return the answer to a question without bytes; OSError or ProtocolError if there is none."""
        ...

    def read(  # noqa: PLR0917 - one call in one place
        self,
        host: str,
        port: int,
        question: ReadRequest,
        size: int,
        into: Iterator[memoryview],
        check: Callable[[], None],
    ) -> int | Remote | Answer:
        """Fill pieces with `size` bytes, and return how many; or where they are, or an answer that is of no use."""
        ...

    def close(self) -> None:
        """Stop."""
        ...


@dataclass(slots=True)
class _Running:
    load: Load
    ends_at: float
    cancelled: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise FailedError if there is no use in going on."""
        if self.cancelled.is_set():
            raise FailedError("the request is over")
        if time.monotonic() > self.ends_at:
            raise FailedError(f"not done within {self.load.within_s:.1f} s")


class Puller:
    """Runs loads into one worker's blocks."""

    def __init__(self, blocks: Blocks, reader: Reader, *, rank: int = 0, fetcher: Fetcher | None = None) -> None:
        self._blocks, self._reader, self._rank, self._fetcher = blocks, reader, rank, fetcher
        self._loads = ThreadPoolExecutor(_LOADS_AT_ONCE, thread_name_prefix="medley-kv-load")
        self._reads = ThreadPoolExecutor(_READS_AT_ONCE, thread_name_prefix="medley-kv-read")
        self._running: dict[str, _Running] = {}
        self._ended: SimpleQueue[Loaded] = SimpleQueue()

    def begin(self, load: Load) -> None:
        """Start a load; its end is told by `ended`."""
        running = _Running(load, time.monotonic() + load.within_s)
        self._running[load.request_id] = running
        self._loads.submit(self._run, running)

    def cancel(self, request_id: str) -> None:
        """End a load soon, if it runs; `ended` still tells."""
        if (running := self._running.get(request_id)) is not None:
            running.cancelled.set()

    def ended(self) -> list[Loaded]:
        """Return the loads that ended since the last call, each once."""
        found = []
        while True:
            try:
                found.append(self._ended.get_nowait())
            except Empty:
                break
        for each in found:
            self._running.pop(each.request_id, None)
        return found

    def close(self) -> None:
        """End what runs and take nothing more."""
        for running in self._running.values():
            running.cancelled.set()
        self._reader.close()
        self._loads.shutdown(wait=False, cancel_futures=True)
        self._reads.shutdown(wait=False, cancel_futures=True)

    def _run(self, running: _Running) -> None:
        begun, total, fetched, fault = time.monotonic(), 0, 0, ""
        try:
            total, fetched = self._load(running)
        except (FailedError, IncompleteError, ProtocolError, OSError) as error:
            fault = str(error) or type(error).__name__
        except Exception:  # noqa: BLE001  # a bug must not leave the request waiting for ever; it is logged
            _LOG.exception("loading blocks of %s", running.load.request_id)
            fault = "a bug, see the log"
        self._ended.put(Loaded(running.load.request_id, total, time.monotonic() - begun, fault, fetched))

    def _load(self, running: _Running) -> tuple[int, int]:
        """Return the bytes that are in place, and how many of them were fetched."""
        load, ticket = running.load, running.load.ticket
        parts = [
            part
            for pull in pulls(self._blocks.shard, ticket.sources, turn=self._rank)
            for part in split(pull, self._connections_for(pull, load))
        ]
        others = [self._reads.submit(self._read, running, part) for part in parts[1:]]
        try:
            reads = [self._read(running, parts[0]), *(each.result() for each in others)]
        except BaseException:
            running.cancelled.set()  # the rest is of no use
            _wait(others)  # and must not write into blocks that are used for something else
            raise
        self._confirm(ticket)
        fetched = sum(each.fetched for each in reads)
        return sum(each.sent for each in reads) + fetched, fetched

    def _confirm(self, ticket: Ticket) -> None:
        """Have the source say that the export is still pinned."""
        assert ticket.pins is not None
        answer = self._reader.ask(ticket.pins.host, ticket.pins.port, PinQuery(export_id=ticket.export_id))
        if not answer.ok:
            raise FailedError(answer.reason)

    def _connections_for(self, pull: Pull, load: Load) -> int:
        return min(MOST_CONNECTIONS, 1 + self._bytes_of(pull, load) // _WORTH_A_CONNECTION)

    def _bytes_of(self, pull: Pull, load: Load) -> int:
        return len(pull.shard.layers) * len(load.into) * slice_bytes(self._blocks.geometry, pull.shard.head_n)

    def _read(self, running: _Running, pull: Pull) -> _Read:
        if self._fetcher is not None:
            try:
                return self._read_by(running, pull, "nixl")
            except NotFetchedError as error:
                _LOG.info("medley: %s is sent, not fetched: %s", running.load.request_id, error)
        return self._read_by(running, pull, "tcp")

    def _read_by(self, running: _Running, pull: Pull, by: Literal["tcp", "nixl"]) -> _Read:
        load, ticket = running.load, running.load.ticket
        source = ticket.sources[pull.source]
        request = ReadRequest(
            export_id=ticket.export_id,
            grant=source.grant,
            granted=ticket.blocks,
            wanted=(load.first, load.first + len(load.into)),
            layers=pull.shard.layers,
            head_lo=pull.shard.head_lo,
            head_n=pull.shard.head_n,
            block_size=ticket.block_size,
            dtype=ticket.dtype,
            content=ticket.content,
            by=by,
        )
        running.check()
        size = self._bytes_of(pull, load)
        into = self._blocks.writing(pull.shard, load.into)
        given = self._reader.read(source.host, source.port, request, size, into, running.check)
        match given:
            case int():
                return _Read(given, 0)
            case Remote() if self._fetcher is not None:
                return _Read(0, self._fetcher.fetch(given, into, self._watching(running)))
            case Answer(ok=False, reason=reason):
                raise FailedError(reason)
            case Answer(bytes_total=offered):
                raise FailedError(f"{offered} bytes are offered, {size} were asked for")
            case _:
                raise FailedError("bytes were to follow, and do not")

    def _watching(self, running: _Running) -> Callable[[], None]:
        """Return a check that also raises if the source is gone: nobody else would say so, as nobody sends."""
        asks_at = time.monotonic() + _ASKS_EVERY_S

        def check() -> None:
            nonlocal asks_at
            running.check()
            if time.monotonic() > asks_at:
                self._confirm(running.load.ticket)
                asks_at = time.monotonic() + _ASKS_EVERY_S

        return check


def _wait(reads: Sequence[Future[_Read]]) -> None:
    for each in reads:
        if not each.cancel():
            each.exception()
