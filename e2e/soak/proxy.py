"""A TCP proxy on loopback that misbehaves on request: between the router and one engine."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from enum import StrEnum
from typing import Self

_PIECE_BYTES = 1 << 16


class Mode(StrEnum):
    """What becomes of bytes."""

    PASS = "pass"
    DROP = "drop"  # they wait, both ways
    HALF_OPEN = "half-open"  # those of the engine vanish
    THROTTLE = "throttle"
    REFUSE = "refuse"  # connections end, new ones at once


class Proxy:
    """Listens for as long as the soak runs; the engine behind it may change."""

    def __init__(self, throttle_bytes_per_s: int = 20_000) -> None:
        self._rate = throttle_bytes_per_s
        self._mode = Mode.PASS
        self._open = asyncio.Event()  # bytes may move
        self._open.set()
        self._behind: tuple[str, int] | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._spoilt: set[asyncio.StreamWriter] = set()  # bytes of theirs vanished
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self.set(Mode.REFUSE)
        self._server.close()
        await asyncio.gather(*self._tasks)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def put_before(self, port: int) -> None:
        """Lead to another engine from now on."""
        self._behind = ("127.0.0.1", port)

    def set(self, mode: Mode) -> None:
        """Change what becomes of bytes, also on connections that are open."""
        before, self._mode = self._mode, mode
        if mode is Mode.REFUSE:
            self.reset()
        elif before is Mode.HALF_OPEN:
            for writer in self._spoilt:
                writer.transport.abort()
        if mode is Mode.DROP:
            self._open.clear()
        else:
            self._open.set()

    def reset(self) -> None:
        """End every connection with a reset."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._mode is Mode.REFUSE or self._behind is None:
            writer.transport.abort()
            return
        there = None
        try:
            await self._open.wait()
            answers, there = await asyncio.open_connection(*self._behind)
            if self._mode is Mode.REFUSE:
                return
            self._writers |= {writer, there}
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, there, writer, to_engine=True))
                group.create_task(self._pump(answers, writer, there, to_engine=False))
        except (OSError, ExceptionGroup):
            pass  # one side ended: the other does below
        finally:
            for each in (writer, there):
                if each is not None:
                    self._writers.discard(each)
                    self._spoilt.discard(each)
                    each.transport.abort() if self._mode is Mode.REFUSE else each.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: asyncio.StreamWriter, *, to_engine: bool
    ) -> None:
        try:
            while piece := await reader.read(_PIECE_BYTES):
                await self._open.wait()
                if self._mode is Mode.HALF_OPEN and not to_engine:
                    self._spoilt |= {writer, back}
                    continue
                if self._mode is Mode.THROTTLE:
                    await asyncio.sleep(len(piece) / self._rate)
                writer.write(piece)
                await writer.drain()
            while self._mode is Mode.HALF_OPEN:  # the end of one side is not told to the other either
                await asyncio.sleep(0.05)
        finally:
            with suppress(OSError, RuntimeError):
                writer.close()
