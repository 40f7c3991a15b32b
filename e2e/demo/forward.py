"""`kubectl port-forward` as an async context manager: the one way to a pod that every cluster lets an administrator go.

Used by `existing`. The API server's own proxy is shorter, but firewalls between control plane and nodes often stop it.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from contextlib import suppress
from typing import Self

from e2e.demo.cluster import Cluster, CommandError

START_SECONDS = 30
_LISTENS = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ")


class Forward:
    """A port of this machine's loopback that leads to a port of a pod; `async with` opens and closes it."""

    def __init__(self, cluster: Cluster, namespace: str, target: str, port: int) -> None:
        self._command = (
            str(cluster.kubectl_program), "--kubeconfig", str(cluster.kubeconfig), "port-forward",
            "--namespace", namespace, "--address", "127.0.0.1", target, f":{port}",
        )  # fmt: skip
        self._target = f"{namespace}/{target}"
        self._process: asyncio.subprocess.Process | None = None
        self._drain: asyncio.Task[None] | None = None
        self._said: deque[str] = deque(maxlen=5)
        self.url = ""

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                self.url = f"http://127.0.0.1:{await self._port()}"
        except BaseException:
            await self.__aexit__()
            raise
        # It writes a line per connection and would stop at a full pipe.
        self._drain = asyncio.create_task(self._read_on())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.terminate()
        await self._process.wait()
        if self._drain is not None:
            await self._drain

    @property
    def ended(self) -> str | None:
        """Its last words if it ended by itself, else None."""
        assert self._process is not None
        return None if self._process.returncode is None else " | ".join(self._said) or "no words"

    async def _port(self) -> int:
        while line := await self._line():
            if found := _LISTENS.match(line):
                return int(found[1])
        raise CommandError(f"kubectl port-forward {self._target}: {' | '.join(self._said) or 'ended at once'}")

    async def _read_on(self) -> None:
        while await self._line():
            pass

    async def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode(errors="replace")
        if line and not line.startswith(("Forwarding from", "Handling connection")):
            self._said.append(line.strip())
        return line
