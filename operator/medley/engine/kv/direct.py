"""Reading another worker's memory by NIXL, over UCX: RDMA, or what else there is. Made by worker_half.py.

Which blocks, for whom and how long is agreed as ever (`server`, `puller`); only the bytes take another way, past the
holder's processor and without TLS. Tested on the CPU with UCX over this machine; never run on a network with RDMA.

What lies below `nixl._api` is used, since that lets nobody say how often NIXL's own thread looks for work: it looks all
the time, which takes a processor from the model.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from nixl import _bindings as nixl

from medley.engine.kv.layout import paired
from medley.engine.kv.messages import Remote
from medley.engine.kv.puller import NotFetchedError

Places = Sequence[tuple[int, int]]  # address, bytes

_LOG: Final = logging.getLogger("vllm.medley.kv")
_LOOKS_EVERY_US: Final = 10_000  # NIXL's thread, though nothing woke it; it takes a thousandth of a processor so
_POLL_S: Final = 0.0005
_PATIENCE_S: Final = 5.0  # for a transfer that nobody wants any more to end by itself
_FAULTS: Final = tuple(each for name, each in vars(nixl).items() if name.endswith("Error"))


class DirectMemory:
    """This worker's cache, registered; reads others'. Safe from several threads."""

    def __init__(self, regions: Places) -> None:
        """OSError if NIXL cannot, or is another version."""
        self._regions = list(regions)
        self._lock = threading.Lock()
        try:
            # Two, since the one that reads may have to be ended: others may be reading from here.
            self._giving = _Agent(self._regions)
            self._taking: _Agent | None = _Agent(self._regions)
            self._metadata = b64encode(self._giving.metadata()).decode()
        except (*_FAULTS, AttributeError, TypeError) as error:
            raise OSError(f"NIXL: {error}") from error

    def offer(self, pieces: Iterator[memoryview]) -> Remote:
        """Say where pieces of this cache are."""
        return Remote(agent=self._metadata, pieces=tuple(_placed(piece) for piece in pieces))

    def fetch(self, remote: Remote, into: Iterator[memoryview], check: Callable[[], None]) -> int:
        """Fill pieces of this cache; return the bytes. NotFetchedError if NIXL cannot, or what `check` raises.

        Nothing is written any more when it returns or raises.
        """
        try:
            here, there = paired([_placed(piece) for piece in into], remote.pieces)
            holder = b64decode(remote.agent, validate=True)
        except ValueError as error:
            raise NotFetchedError(str(error)) from error
        try:
            with self._lock:
                if self._taking is None:
                    self._taking = _Agent(self._regions)
                agent = self._taking
                transfer = agent.begin(holder, here, there)
            self._finish(agent, transfer, check)
        except _FAULTS as error:
            raise NotFetchedError(f"NIXL: {error}") from error
        return sum(size for _, size in here)

    def _finish(self, agent: _Agent, transfer: _Transfer, check: Callable[[], None]) -> None:
        """Wait for the end of a transfer, also when nobody wants it any more: until then it writes."""
        unwanted: Exception | None = None
        ends = 0.0
        try:
            while self._runs(agent, transfer):
                time.sleep(_POLL_S)
                if unwanted is None:
                    try:
                        check()
                    except Exception as error:  # noqa: BLE001  # raised below, when it is safe
                        unwanted, ends = error, time.monotonic() + _PATIENCE_S
                elif time.monotonic() > ends:
                    _LOG.warning("medley: a read by NIXL does not end (%s); this worker's reads all end", unwanted)
                    self._end(agent)
        except (NotFetchedError, *_FAULTS):
            if unwanted is None:
                raise
        if unwanted is not None:
            raise unwanted

    def _runs(self, agent: _Agent, transfer: _Transfer) -> bool:
        """Whether a transfer goes on; NotFetchedError if it was ended, one of NIXL's if it broke."""
        with self._lock:
            return agent.runs(transfer)

    def _end(self, agent: _Agent) -> None:
        """End an agent: only without its connections nothing more is written, whatever NIXL says of its transfers."""
        with self._lock:
            if agent is self._taking:
                self._taking = None
                agent.end()


class _Transfer(NamedTuple):
    handle: int
    holder: bytes


class _Agent:
    """One of NIXL's agents and its transfers. Not safe from several threads; all raise NIXL's errors."""

    def __init__(self, regions: Places) -> None:
        config = nixl.nixlAgentConfig()
        config.useProgThread, config.pthrDelay = True, _LOOKS_EVERY_US
        self._agent: Any = nixl.nixlAgent(f"medley-{secrets.token_hex(8)}", config)
        self._way = [self._agent.createBackend("UCX", {})]
        described = [(address, size, 0, "") for address, size in regions]
        self._agent.registerMem(nixl.nixlRegDList(nixl.DRAM_SEG, described), self._way)
        self._names: dict[bytes, str] = {}  # of holders that are connected to, by their metadata
        self._running: set[_Transfer] = set()
        self._broken: set[bytes] = set()  # holders that a transfer from failed

    def metadata(self) -> bytes:
        """Return what others need to read from here."""
        return bytes(self._agent.getLocalMD())

    def begin(self, holder: bytes, here: Places, there: Places) -> _Transfer:
        """Start to read from a holder, by its metadata."""
        if holder in self._broken:
            raise NotFetchedError("NIXL: the connection is broken")
        if holder not in self._names:
            self._names[holder] = self._agent.loadRemoteMD(holder).decode()
        local, remote = (
            nixl.nixlXferDList(nixl.DRAM_SEG, [(address, size, 0) for address, size in places])
            for places in (here, there)
        )
        name = self._names[holder]
        transfer = _Transfer(self._agent.createXferReq(nixl.NIXL_READ, local, remote, name, "", self._way), holder)
        self._running.add(transfer)
        try:
            self._agent.postXferReq(transfer.handle, "")
        except _FAULTS:
            self._over(transfer, broken=True)
            raise
        return transfer

    def runs(self, transfer: _Transfer) -> bool:
        """Whether a transfer goes on; NotFetchedError if it was ended."""
        if transfer not in self._running:
            raise NotFetchedError("NIXL: ended, since another transfer did not end")
        try:
            state = self._agent.getXferStatus(transfer.handle)
        except _FAULTS:
            self._over(transfer, broken=True)
            raise
        if state == nixl.NIXL_IN_PROG:
            return True
        self._over(transfer)
        return False

    def end(self) -> None:
        """Close all connections; nothing is written any more."""
        for each in self._running:
            self._agent.releaseXferReq(each.handle)
        self._running.clear()
        for name in self._names.values():
            self._agent.invalidateRemoteMD(name)
        self._agent = None

    def _over(self, transfer: _Transfer, *, broken: bool = False) -> None:
        """Let go of a transfer, and with the last one of a broken connection: those beside it may still write."""
        self._running.discard(transfer)
        self._agent.releaseXferReq(transfer.handle)
        if broken:
            self._broken.add(transfer.holder)
        others = any(each.holder == transfer.holder for each in self._running)
        if transfer.holder in self._broken and not others:
            self._broken.discard(transfer.holder)
            self._agent.invalidateRemoteMD(self._names.pop(transfer.holder))


def _placed(piece: memoryview) -> tuple[int, int]:
    return np.frombuffer(piece, np.uint8).ctypes.data, len(piece)
