"""Engines and a router as processes of this machine: started together, waited for, killed, left without a trace.

Called by `local` and by tests that need real engines. Every process is the leader of a group of its own, since vLLM has
children, and only groups that were started here are ever signalled.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from medley.core.errors import EngineError
from medley.demo.vllm_venv import engine_environment

SERVED_NAME = "chaotic-llama"
START_SECONDS = 900.0  # half a minute on an idle machine; a shared one may starve an engine for minutes
_STOP_SECONDS = 15.0
_TAIL_BYTES = 3000


@dataclass(slots=True)
class Process:
    """One process and where it answers."""

    name: str
    url: str
    log: Path
    popen: subprocess.Popen[bytes]

    def kill(self) -> None:
        """End it and its children as a machine that is taken away would: without a word."""
        os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def stop(self) -> None:
        """Ask it to end; insist after a while."""
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGTERM)
            try:
                self.popen.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()

    async def wait_until_it_answers(self, path: str) -> None:
        """Wait for a 200; `EngineError` with the end of its log if it ends instead."""
        ends = time.monotonic() + START_SECONDS
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while time.monotonic() < ends:
                if self.popen.poll() is not None:
                    raise EngineError(f"starting {self.name}: it ended with {self.popen.returncode}:\n{self.tail()}")
                try:
                    async with session.get(self.url + path) as response:
                        if response.ok:
                            return
                except (aiohttp.ClientError, TimeoutError):
                    pass  # not listening yet, or too busy
                await asyncio.sleep(0.25)
        raise EngineError(f"starting {self.name}: no answer within {START_SECONDS:.0f} s:\n{self.tail()}")

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")


class Processes:
    """All processes of one demonstration."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.started: list[Process] = []
        self.key_file = folder / "engine-key"
        self.key_file.write_text(secrets.token_hex(16))
        self.key_file.chmod(0o600)

    def start_engine(self, name: str, python: Path, model: Path, *, arguments: Sequence[str] = ()) -> Process:
        """Start vLLM on the CPU in fp32, so that equal histories give equal tokens on every engine."""
        port = free_port()
        command = (
            str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
            "--served-model-name", SERVED_NAME, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
            "--max-model-len", "4096", "--block-size", "32", "--max-num-seqs", "32", "--max-num-batched-tokens", "1024",
            "--enforce-eager", "--enable-scale-out", *arguments,
        )  # fmt: skip
        # By environment, as in pods: other users of the machine can read a command line.
        return self._start(name, port, command, {**engine_environment(), "VLLM_API_KEY": self.key_file.read_text()})

    def start_router(self, engines: Sequence[Process], tokenizer: Path) -> Process:
        """Start `medley router` over these engines."""
        port = free_port()
        command = (
            sys.executable, "-c", "from medley.cli import main; main()", "router", "--host", "127.0.0.1",
            "--port", str(port), "--tokenizer", str(tokenizer), "--engine-key-file", str(self.key_file),
            *(part for engine in engines for part in ("--engine", engine.url)),
        )  # fmt: skip
        unset = {"MEDLEY_NAMESPACE", "MEDLEY_SERVICE"}
        return self._start("router", port, command, {k: v for k, v in os.environ.items() if k not in unset})

    def _start(self, name: str, port: int, command: Sequence[str], environment: Mapping[str, str]) -> Process:
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            # A group, not a session: processes of different sessions get equal shares of the CPU, and vLLM's spinning
            # would starve the other engine for seconds.
            popen = subprocess.Popen(  # noqa: S603  # our own commands
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        process = Process(name, f"http://127.0.0.1:{port}", log, popen)
        self.started.append(process)
        return process

    def stop_all(self) -> None:
        """Stop what still runs, routers first."""
        for process in reversed(self.started):
            process.stop()


@contextmanager
def processes(folder: Path) -> Iterator[Processes]:
    """Start processes that end with the block, whatever happens in it."""
    started = Processes(folder)
    try:
        yield started
    finally:
        started.stop_all()


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
