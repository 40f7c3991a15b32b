"""Engines of the soak as processes of their own: vLLM under medley's supervisor with TLS, or the stub of the tests."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from e2e.soak.held import Held, family, held
from e2e.soak.proxy import Proxy
from medley.core.identity import Role, dns_name
from medley.demo.processes import free_port
from medley.demo.vllm_venv import engine_environment
from medley.testing.certificates import Issuer
from medley.tls.keyring import Keyring
from medley.wire.assignment import Assignment
from medley.wire.ticket import STATE_PATH, KvState

ROOT = Path(__file__).parents[2]
MODEL = "soaked"
_START_S = 900.0
_NICENESS = 8


class NotServingError(Exception):
    """An engine ended, or did not come up."""


@dataclass(frozen=True, slots=True)
class Started:
    """What a process was started as."""

    popen: subprocess.Popen[bytes]
    log: Path
    port: int  # of vLLM's API
    control_port: int = 0


class Engine(ABC):
    """One engine behind a proxy; killed and started again it keeps its name and its proxy."""

    scheme = "http"
    model = MODEL

    def __init__(self, name: str, folder: Path, proxy: Proxy, kv_host: str = "127.0.0.1") -> None:
        """`kv_host`: the address of its own at which other engines read its blocks, where the engine has any."""
        self.name, self.folder, self.proxy, self.kv_host = name, folder, proxy, kv_host
        self.life = 0  # of the replica that routers see: a new one after each departure
        self.starts = 0
        self._started: Started | None = None
        self.free_blocks: int | None = None  # when it was fresh

    @property
    def replica(self) -> str:
        """The name by which routers know it now."""
        return f"{self.name}-{self.life}"

    @property
    def url(self) -> str:
        """Where routers reach it: the proxy."""
        return f"{self.scheme}://127.0.0.1:{self.proxy.port}"

    @property
    def api(self) -> str | None:
        """Where the engine itself listens, past its proxy; None before it is started."""
        return None if self._started is None else f"{self.scheme}://127.0.0.1:{self._started.port}"

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._started is not None and self._started.popen.poll() is None

    async def start(self, session: aiohttp.ClientSession) -> None:
        """Start the process, and return when it serves."""
        self.starts += 1
        self._started = self._start(self.folder / f"{self.name}-{self.starts}.log")
        await self._serves(session)
        give_way(self._started.popen.pid)
        self.proxy.put_before(self._started.port)
        state = await self.state(session)
        self.free_blocks = None if state is None else state.free_blocks

    def kill(self) -> None:
        """End the process and its children as a machine that is taken away would."""
        if self._started is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._started.popen.pid, signal.SIGKILL)
            self._started.popen.wait()

    def freeze(self) -> None:
        """Let every process of it stand still."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    async def state(self, session: aiohttp.ClientSession) -> KvState | None:
        """Return what it says of its KV cache; None if it does not answer or has no plugin."""
        if self._started is None:
            return None
        url = f"{self.scheme}://127.0.0.1:{self._started.port}{STATE_PATH}"
        try:
            async with session.get(url, **self.access(), timeout=aiohttp.ClientTimeout(10)) as answer:
                return KvState.model_validate_json(await answer.read()) if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError):
            return None

    def held(self) -> Held:
        """Return what all its processes hold, porters too."""
        return held(self._started.popen.pid) if self._started is not None else Held()

    def tail(self) -> str:
        """Return the end of its log."""
        return "" if self._started is None else self._started.log.read_bytes()[-3000:].decode(errors="replace")

    def access(self) -> dict[str, Any]:
        """Return what requests to its own port need."""
        return {}

    @abstractmethod
    def _start(self, log: Path) -> Started: ...

    @abstractmethod
    async def _answers(self, session: aiohttp.ClientSession) -> bool: ...

    async def _serves(self, session: aiohttp.ClientSession) -> None:
        try:
            async with asyncio.timeout(_START_S):
                while not await self._answers(session):
                    if not self.running:
                        raise NotServingError(f"{self.name} ended:\n{self.tail()}")
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise NotServingError(f"{self.name} did not serve within {_START_S:.0f} s:\n{self.tail()}") from None

    def _signal(self, number: signal.Signals) -> None:
        if self._started is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._started.popen.pid, number)
            for child in family(self._started.popen.pid)[1:]:  # vLLM has a group of its own
                with suppress(psutil.NoSuchProcess):
                    child.send_signal(number)


class StubProcess(Engine):
    """The tests' engine without a model."""

    pause_s = 0.01
    model = "stub"

    def _start(self, log: Path) -> Started:
        port = free_port()
        command = [sys.executable, "-m", "e2e.soak.stub_process", "--port", str(port), "--pause", str(self.pause_s)]
        return Started(spawned(command, log, os.environ | {"PYTHONPATH": str(ROOT)}), log, port)

    async def _answers(self, session: aiohttp.ClientSession) -> bool:
        assert self._started is not None
        try:
            async with session.get(f"http://127.0.0.1:{self._started.port}/v1/models") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False


class VllmEngine(Engine):
    """vLLM on the CPU under medley's supervisor: TLS on its ports and between engines, KV carried."""

    scheme = "https"
    python: Path
    weights: Path
    secrets: Secrets
    # For vLLM, beyond those that follow. A cache so small that all of it was used when memory is first looked at:
    # what an engine holds more after that is no block that was never touched before.
    arguments: tuple[str, ...] = ("--num-gpu-blocks-override", "1024")
    threads = "nobind"  # the processors that a model's threads run on; so: all

    def access(self) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.secrets.key}"}
        ring = self.secrets.rings[Role.ROUTER]
        return {"headers": headers, "ssl": ring.client, "server_hostname": dns_name(Role.ENGINE)}

    def kill(self) -> None:
        # The supervisor's death leaves vLLM alive, as no machine's end would.
        processes = [] if self._started is None else family(self._started.popen.pid)
        super().kill()
        for each in processes:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(processes, timeout=10)

    def _start(self, log: Path) -> Started:
        port, control, status = free_port(), free_port(), free_port()
        environment = {
            **engine_environment(self.threads),
            "PYTHONPATH": str(ROOT / "operator"),
            "MEDLEY_KEY_FILE": str(self.secrets.key_file),
            "MEDLEY_TLS_DIR": str(self.secrets.folders[Role.ENGINE]),
            "MEDLEY_KV_HOST": self.kv_host,
            "MEDLEY_MIGRATION": "Live",
            "MEDLEY_BIND_HOST": "127.0.0.1",
            "MEDLEY_ENGINE_PORT": str(port),
            "MEDLEY_CONTROL_PORT": str(control),
            "MEDLEY_STATUS_PORT": str(status),
            # Engines that share two cores are slow, not dead.
            "MEDLEY_STALL_LIMIT": "300",
            "MEDLEY_RESTART_LIMIT": "600",
        }
        return Started(spawned([str(self.python), "-m", "medley.engine"], log, environment), log, port, control)

    async def _answers(self, session: aiohttp.ClientSession) -> bool:
        assert self._started is not None
        assignment = Assignment(
            service="chat",
            replica=self.name,
            generation=1,
            model=str(self.weights),
            served_model_name=self.model,
            max_model_len=8192,
            engine_args=(
                *("--dtype", "float32", "--block-size", "32", "--max-num-seqs", "32"),
                *("--max-num-batched-tokens", "1024", "--enforce-eager"),
                *self.arguments,
            ),
        )
        headers = {"Authorization": f"Bearer {self.secrets.key}"}
        ring = self.secrets.rings[Role.OPERATOR]
        url = f"https://127.0.0.1:{self._started.control_port}/v1/assignment"
        try:
            async with session.put(
                url,
                data=assignment.model_dump_json(),
                headers=headers,
                ssl=ring.client,
                server_hostname=dns_name(Role.ENGINE),
            ) as answer:
                report = await answer.json()
        except (aiohttp.ClientError, OSError):
            return False
        if report.get("phase") == "Failed":
            raise NotServingError(f"{self.name}: {report.get('message')}\n{self.tail()}")
        return bool(report.get("phase") == "Serving")


class Secrets:
    """The key and the certificates of the soaked service."""

    def __init__(self, folder: Path) -> None:
        issuer = Issuer.new()
        self.key = secrets.token_hex(16)
        self.key_file = folder / "key"
        self.key_file.write_text(self.key)
        self.folders: Mapping[Role, Path] = {role: issuer.folder(folder / f"tls-{role}", role) for role in Role}
        self.rings = {role: Keyring(path, sys.stderr.write) for role, path in self.folders.items()}


def give_way(process: int) -> None:
    """Let engines that start have the processors before those that serve: beside streams, imports take two minutes."""
    for each in family(process):
        with suppress(psutil.NoSuchProcess):
            for thread in each.threads():  # niceness is a thread's
                with suppress(ProcessLookupError):
                    nice = os.getpriority(os.PRIO_PROCESS, thread.id) + _NICENESS
                    os.setpriority(os.PRIO_PROCESS, thread.id, min(nice, 19))


def spawned(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process as the leader of a group, its output in a file."""
    with log.open("wb") as output:
        return subprocess.Popen(
            list(command),
            env=dict(environment),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )


def as_line(engines: Sequence[tuple[Engine, float | None]], ways: str | None = None) -> bytes:
    """Return the fleet as the router's process reads it: engines, and when they leave (seconds of the epoch).

    `ways`: "carry" or "refill" where the router shall not choose.
    """
    replicas = [{"name": each.replica, "url": each.url, "leaves_at": leaves} for each, leaves in engines]
    return json.dumps({"replicas": replicas, "ways": ways}).encode() + b"\n"
