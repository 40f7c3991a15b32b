"""Reading another worker's memory by NIXL, over UCX: RDMA, or what else there is. Made by worker_half.py.

Which blocks, for whom and how long is agreed as ever (`server`, `puller`); only the bytes take another way, past the
holder's processor and without TLS. Tested on the CPU with UCX over this machine; never run on a network with RDMA.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

from medley.engine.kv.layout import paired
from medley.engine.kv.messages import Remote

_LOG: Final = logging.getLogger("vllm.medley.kv")
_HOST_MEMORY: Final = "DRAM"
_POLL_S: Final = 0.0005
_LAST_S: Final = 60.0  # for a transfer that nobody wants to end: until then it may write


class DirectMemory:
    """This worker's cache, registered; reads others'. Safe from several threads."""

    def __init__(self, regions: Sequence[tuple[int, int]]) -> None:
        self._lock = threading.Lock()
        self._agent: Any = nixl_agent(f"medley-{secrets.token_hex(8)}", nixl_agent_config(backends=["UCX"]))
        self._agent.register_memory([(address, size, 0, "") for address, size in regions], _HOST_MEMORY)
        self._metadata = b64encode(self._agent.get_agent_metadata()).decode()
        self._known: dict[str, str] = {}  # agents' names by their metadata

    def offer(self, pieces: Iterator[memoryview]) -> Remote:
        """Say where pieces of this cache are."""
        return Remote(agent=self._metadata, pieces=tuple(_placed(piece) for piece in pieces))

    def fetch(self, remote: Remote, into: Iterator[memoryview], check: Callable[[], None]) -> int:
        """Fill pieces of this cache; return the bytes. OSError if NIXL cannot, or what `check` raises."""
        try:
            here, there = paired([_placed(piece) for piece in into], remote.pieces)
        except ValueError as error:
            raise ConnectionError(str(error)) from error
        try:
            with self._lock:
                handle = self._begun(remote.agent, here, there)
            self._finish(handle, check)
        except Exception as error:
            if isinstance(error, OSError) or not type(error).__name__.startswith("nixl"):
                raise
            self._forget(remote.agent)
            raise ConnectionError(f"NIXL: {error}") from error
        return sum(size for _, size in here)

    def _begun(self, metadata: str, here: Sequence[tuple[int, int]], there: Sequence[tuple[int, int]]) -> Any:
        if metadata not in self._known:
            name = self._agent.add_remote_agent(b64decode(metadata))
            self._known[metadata] = name.decode() if isinstance(name, bytes) else name
        local, remote = (
            self._agent.get_xfer_descs([(address, size, 0) for address, size in pieces], _HOST_MEMORY)
            for pieces in (here, there)
        )
        handle = self._agent.initialize_xfer("READ", local, remote, self._known[metadata], b"")
        self._agent.transfer(handle)
        return handle

    def _finish(self, handle: Any, check: Callable[[], None]) -> None:
        """Wait for the end of a transfer, also when nobody wants it any more: until then it writes."""
        unwanted: Exception | None = None
        last = 0.0
        while (state := self._state(handle)) not in {"DONE", "ERR"}:
            time.sleep(_POLL_S)
            if unwanted is None:
                try:
                    check()
                except Exception as error:  # noqa: BLE001  # raised below, when it is safe
                    unwanted, last = error, time.monotonic() + _LAST_S
            elif time.monotonic() > last:
                _LOG.error("medley: a transfer by NIXL does not end")
                break
        with self._lock:
            self._agent.release_xfer_handle(handle)
        if unwanted is not None:
            raise unwanted
        if state == "ERR":
            raise ConnectionError("NIXL: the transfer failed")

    def _state(self, handle: Any) -> str:
        with self._lock:
            return str(self._agent.check_xfer_state(handle))

    def _forget(self, metadata: str) -> None:
        with self._lock:
            if (name := self._known.pop(metadata, None)) is not None:
                self._agent.remove_remote_agent(name)


def _placed(piece: memoryview) -> tuple[int, int]:
    return np.frombuffer(piece, np.uint8).ctypes.data, len(piece)
