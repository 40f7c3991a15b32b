"""One vLLM process and its process group. Called by supervisor.py. Knows processes and pipes, nothing of HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from medley.engine.policy import Alive, Exited
from medley.engine.words import last_words

_KEPT_LINES: Final = 400  # a traceback of each of vLLM's processes
_LINE_LIMIT: Final = 8192  # bytes; longer ones are forwarded in pieces
_BURIAL_S: Final = 2.0  # SIGKILL is immediate, unless the kernel holds the process
_REMAINS_S: Final = 10.0  # how long to wait for killed children before calling it an end all the same


class EngineProcess:
    """vLLM, from launch to the end of the last process of its group."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], forward: Callable[[str], None]) -> None:
        self._forward = forward
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        # A group of its own, so that it can be killed whole, but not a new session: the kernel's autogroups would then
        # let vLLM's busy loops starve their neighbours (seen as pauses of 5 to 20 s).
        self._popen = subprocess.Popen(  # noqa: S603 - argv is ours, see command.py
            list(argv),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        self._ended_at: float | None = None
        self._log = asyncio.get_running_loop().create_task(self._forward_log())

    @property
    def pid(self) -> int:
        """Of the leader, and of the group."""
        return self._popen.pid

    def poll(self) -> Alive | Exited:
        """Return what is. When the leader ends, what remains of its group is killed; only then has it exited."""
        code = self._popen.poll()
        if code is None:
            return Alive()
        now = time.monotonic()
        if self._ended_at is None:
            self._ended_at = now
        remains = self._signal_group(signal.SIGKILL) or not self._log.done()
        if remains and now - self._ended_at < _REMAINS_S:
            return Alive()
        return Exited(code, last_words(self._lines))

    def terminate(self) -> None:
        """Tell the leader to end; it ends its children."""
        if self._popen.poll() is None:
            self._popen.terminate()

    def kill(self) -> None:
        """End the whole group, now."""
        self._signal_group(signal.SIGKILL)

    async def close(self) -> None:
        """Kill what is left and stop reading."""
        self.kill()
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(_BURIAL_S)
        self._log.cancel()
        with suppress(asyncio.CancelledError):
            await self._log

    def _signal_group(self, number: signal.Signals) -> bool:
        """Signal the group; say whether anybody was there."""
        try:
            os.killpg(self._popen.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:  # a remaining member changed its user: nothing we can end
            return False
        return True

    async def _forward_log(self) -> None:
        assert self._popen.stdout is not None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._popen.stdout)
        try:
            rest = b""
            while piece := await reader.read(65536):
                *lines, rest = (rest + piece).split(b"\n")
                if len(rest) > _LINE_LIMIT:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    self._keep(line)
            if rest:
                self._keep(rest)
        finally:
            transport.close()

    def _keep(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip("\r")
        self._lines.append(text)
        self._forward(text)
