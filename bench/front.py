"""What TLS before vLLM costs: the supervisor passes every byte of every stream on.

The peer is the same engine asked without it, at its socket file. Processor time is the front process's own.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from bench.rows import Row
from medley.core.identity import Role, dns_name
from medley.demo.processes import free_port
from medley.testing.certificates import Issuer
from medley.tls.keyring import Keyring

ROUND_TRIPS = 300
STREAMS, TOKENS, PACE_S = 40, 150, 0.02
MOST_ADDED_MS = 2.0
LEAST_CHUNKS = 10_000.0  # per core: an engine makes some thousands of tokens per second
GENERATE = "/inference/v1/generate"


def measure() -> Iterator[Row]:
    """Measure with an engine and a front in processes of their own."""
    with tempfile.TemporaryDirectory(prefix="medley-front-") as folder:
        issuer, port, socket_file = Issuer.new(), free_port(), Path(folder) / "engine.sock"
        certificates = issuer.folder(Path(folder) / "engine", Role.ENGINE)
        ring = Keyring(issuer.folder(Path(folder) / "router", Role.ROUTER), sys.stderr.write)
        part = [sys.executable, "-m", "bench._front", "--socket", str(socket_file)]
        with ExitStack() as stack:
            engine = stack.enter_context(subprocess.Popen([*part, "--pause", str(PACE_S)]))
            stack.callback(engine.kill)
            front = stack.enter_context(subprocess.Popen([*part, "--folder", str(certificates), "--port", str(port)]))
            stack.callback(front.kill)
            yield from asyncio.run(_measure(socket_file, f"https://127.0.0.1:{port}", psutil.Process(front.pid), ring))


async def _measure(socket_file: Path, url: str, front: psutil.Process, ring: Keyring) -> list[Row]:
    access = {"ssl": ring.client, "server_hostname": dns_name(Role.ENGINE)}
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket_file), limit=0)) as beside,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as through,
    ):
        await _answers(beside, "http://engine/v1/models", {})
        await _answers(through, f"{url}/v1/models", access)
        direct, passed = [], []
        for _ in range(ROUND_TRIPS):  # in turn, so that both meet the same machine
            direct.append(await _round_trip(beside, "http://engine/v1/models", {}))
            passed.append(await _round_trip(through, f"{url}/v1/models", access))
        before = sum(front.cpu_times()[:2])
        chunks = sum(await asyncio.gather(*(_chunks(through, url, access) for _ in range(STREAMS))))
        per_core = chunks / (sum(front.cpu_times()[:2]) - before)
    added = statistics.median(passed) - statistics.median(direct)
    peer = f"without {statistics.median(direct):.2f} ms"
    return [
        Row("front/added round trip p50", added, "ms", f"<= {MOST_ADDED_MS:g}", added <= MOST_ADDED_MS, peer),
        Row("front/chunks per core", per_core, "chunks/s", f">= {LEAST_CHUNKS:g}", per_core >= LEAST_CHUNKS),
    ]


async def _answers(session: aiohttp.ClientSession, url: str, access: dict[str, Any]) -> None:
    for _ in range(1200):
        try:
            async with session.get(url, **access) as response:
                if response.status == 200:
                    return
        except aiohttp.ClientError:
            pass  # not listening yet
        await asyncio.sleep(0.1)
    raise AssertionError(f"{url} did not answer")


async def _round_trip(session: aiohttp.ClientSession, url: str, access: dict[str, Any]) -> float:
    begun = time.perf_counter()
    async with session.get(url, **access) as response:
        await response.read()
    return (time.perf_counter() - begun) * 1000


async def _chunks(session: aiohttp.ClientSession, url: str, access: dict[str, Any]) -> int:
    body = {"token_ids": [5, 6, 7], "sampling_params": {"max_tokens": TOKENS, "temperature": 0}, "stream": True}
    count = 0
    async with session.post(url + GENERATE, data=json.dumps(body), **access) as response:
        async for line in response.content:
            count += line.startswith(b"data: {")
    return count
