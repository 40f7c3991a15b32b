"""What a router costs: latency, processor time per chunk, memory per stream, and the pause when an engine breaks.

Engines are stubs in processes of their own. Peers are the direct connection from client to engine, and others' routers
in front of the same stub. Processor time is the router process's own, so the figures hold on a machine that has other
work; figures of others are taken in turn with ours.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
import uvloop

from bench._peers import LITELLM, VLLM_ROUTER, installed
from bench.rows import Row
from medley.demo.processes import free_port
from tests.router.stub_engine import MODEL, TOKENIZER, reference

PROMPT = list(range(3, 103))
LATENCY_REQUESTS = 200
PACED_STREAMS, PACED_TOKENS, PACE_SECONDS = 60, 150, 0.03
OPEN_STREAMS = 1000
CUT_STREAMS, CUT_TOKENS, CUT_AFTER = 100, 60, 30
MOST_ADDED_MS = 1.0
LEAST_CHUNKS = 10_000.0
MOST_MIB = 50.0
PEER_CLIENTS, PEER_SECONDS, PEER_ROUNDS = 8, 4.0, 3
KEY = "sk-" + secrets.token_hex(8)  # litellm wants one of its clients; the others do not look
LEAST_OF_LITELLM, LEAST_OF_VLLM_ROUTER = 20.0, 0.5


@dataclass(slots=True)
class Read:
    """One stream as a client read it."""

    times: list[float] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    chunks: int = 0


def measure() -> Iterator[Row]:
    """Measure with a router and stubs started for each figure."""
    yield from uvloop.run(_latency())
    yield from uvloop.run(_throughput())
    yield from uvloop.run(_plain_throughput())
    yield from uvloop.run(_memory())
    yield from uvloop.run(_resumes())
    yield from uvloop.run(_peers())


async def _latency() -> list[Row]:
    with _router(1) as (router, engines, _):
        async with _session() as session:
            await _read(session, router, 2)
            direct, through, chat = [], [], []
            for _ in range(LATENCY_REQUESTS):  # in turn, so that all meet the same machine
                direct.append(await _first_byte(session, engines[0]))
                through.append((await _read(session, router, 2)).times[0] * 1000)
                chat.append(await _first_chat_byte(session, router))
    beside, ours, chats = statistics.median(direct), statistics.median(through), statistics.median(chat)
    added = ours - beside
    peer = f"direct connection {beside:.2f} ms; x{ours / beside:.1f}"
    met = added <= MOST_ADDED_MS
    return [
        Row("router/added TTFT p50", added, "ms", f"<= {MOST_ADDED_MS:g}", met, peer),
        Row("router/added TTFT p50, chat", chats - beside, "ms", peer="with the engine's rendering of the prompt"),
    ]


async def _throughput() -> list[Row]:
    with _router(2, "--pause", str(PACE_SECONDS)) as (router, _, process):
        async with _session() as session:
            await _read(session, router, 2)
            before = _seconds(process)
            streams = [_read(session, router, PACED_TOKENS) for _ in range(PACED_STREAMS)]
            reads = await asyncio.gather(*streams)
            used = _seconds(process) - before
    chunks = sum(len(read.times) for read in reads)
    per_core = chunks / used
    name, beside = "router/chunks per core", "with log probabilities"
    row = Row(name, per_core, "chunks/s", f">= {LEAST_CHUNKS:g}", per_core >= LEAST_CHUNKS, beside)
    gaps = sorted(b - a for read in reads for a, b in zip(read.times, read.times[1:], strict=False))
    p99 = 1000 * gaps[len(gaps) * 99 // 100]
    peer = f"engines send every {PACE_SECONDS * 1000:.0f} ms"
    return [row, Row("router/time between chunks p99", p99, "ms", peer=peer)]


async def _plain_throughput() -> list[Row]:
    """Streams of chat without log probabilities, as most clients ask for; one chunk per token."""
    paced = ("--events", str(PACED_TOKENS), "--pause", str(PACE_SECONDS))
    with _router(2, *paced, stub="bench._fast_stub") as (router, _, process):
        async with _session() as session:
            await _answers(session, router)
            before = _seconds(process)
            answers = await asyncio.gather(*(_chat(session, router) for _ in range(PACED_STREAMS)))
            used = _seconds(process) - before
    per_core = sum(answer.count(b'"content":') for answer in answers) / used
    name = "router/chunks per core, text alone"
    return [Row(name, per_core, "chunks/s", f">= {LEAST_CHUNKS:g}", per_core >= LEAST_CHUNKS)]


async def _memory() -> list[Row]:
    with _router(4, "--pause", "1") as (router, _, process):
        async with _session() as session:
            await _read(session, router, 2)
            before = process.memory_info().rss
            begun = asyncio.Semaphore(0)
            tasks = [asyncio.create_task(_read(session, router, 10_000, begun)) for _ in range(OPEN_STREAMS)]
            for _ in tasks:
                await begun.acquire()
            grown = (process.memory_info().rss - before) / 2**20 * 1000 / OPEN_STREAMS
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return [Row("router/memory per 1,000 open streams", grown, "MiB", f"<= {MOST_MIB:g}", grown <= MOST_MIB)]


async def _resumes() -> list[Row]:
    """Break every call to one of four engines after its 30th token."""
    with _router(4, "--pause", "0.05", broken=("--cut-after", str(CUT_AFTER))) as (router, _, _):
        async with _session() as session:
            reads = await asyncio.gather(*(_read(session, router, CUT_TOKENS) for _ in range(CUT_STREAMS)))
            async with session.get(f"{router}/metrics") as response:
                lines = (await response.text()).splitlines()
    moved, pauses = _sum(lines, "medley_router_resumes_total"), _sum(lines, "medley_router_pause_seconds_sum")
    expected = [TOKENIZER.decode([token]) for token in reference(PROMPT, CUT_TOKENS)]
    identical = sum(read.tokens == expected for read in reads)
    beside = f"{moved:.0f} of {CUT_STREAMS} streams moved"
    return [
        Row("router/streams not identical", CUT_STREAMS - identical, "streams", "0", identical == CUT_STREAMS, beside),
        Row("router/pause at a move, mean", 1000 * pauses / max(moved, 1), "ms", peer="stub engines: no prefill in it"),
    ]


async def _peers() -> list[Row]:
    """Requests per second of eight clients, each of fifty chunks, through us and through routers of others in turn."""
    rows = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        stub = folder / "stub"
        stack.enter_context(_process(sys.executable, "-m", "bench._fast_stub", str(stub)))
        engine = _wait_for(stub)
        port = free_port()
        ours = f"http://127.0.0.1:{port}"
        stack.enter_context(_process(*_command(port, stub.with_suffix(".json"), [engine])))
        peers = {
            peer[0]: (url, bound)
            for peer, start, bound in (
                (LITELLM, _litellm, LEAST_OF_LITELLM),
                (VLLM_ROUTER, _vllm_router, LEAST_OF_VLLM_ROUTER),
            )
            if (commands := await asyncio.to_thread(installed, peer)) is not None
            for url in [stack.enter_context(start(commands, engine, folder))]
        }
        async with _session() as session:
            for url in (ours, *(url for url, _ in peers.values())):
                await _answers(session, url)
            for peer, (url, bound) in peers.items():
                pairs = [
                    (await _per_second(session, ours), await _per_second(session, url)) for _ in range(PEER_ROUNDS)
                ]
                ratio = statistics.median(mine / theirs for mine, theirs in pairs)
                mine, theirs = (statistics.median(each) for each in zip(*pairs, strict=True))
                beside = f"{peer} {theirs:.0f} requests/s, medley {mine:.0f}"
                rows.append(
                    Row(f"router/requests, against {peer}", ratio, "x", f">= {bound:g}", ratio >= bound, beside)
                )
    return rows


@contextmanager
def _litellm(commands: Path, engine: str, folder: Path) -> Iterator[str]:
    port, config = free_port(), folder / "litellm.yaml"
    model = {"model": f"hosted_vllm/{MODEL}", "api_base": f"{engine}/v1", "api_key": "none"}
    config.write_text(json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": model}]}))
    command = (str(commands / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port))
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": KEY}
    with _process(*command, "--num_workers", "1", "--telemetry", "False", environment=environment):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _vllm_router(commands: Path, engine: str, _: Path) -> Iterator[str]:
    port = free_port()
    command = (str(commands / "vllm-router"), "--host", "127.0.0.1", "--port", str(port), "--worker-urls", engine)
    metrics = ("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port()))
    with _process(*command, "--policy", "round_robin", *metrics):
        yield f"http://127.0.0.1:{port}"


async def _answers(session: aiohttp.ClientSession, url: str) -> None:
    """Wait until a router gives whole answers."""
    for _ in range(1200):
        with suppress(aiohttp.ClientError, RuntimeError):
            await _chat(session, url)
            return
        await asyncio.sleep(0.25)
    raise RuntimeError(f"{url} does not answer")


async def _per_second(session: aiohttp.ClientSession, url: str) -> float:
    ends, done = time.perf_counter() + PEER_SECONDS, 0

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < ends:
            await _chat(session, url)
            done += 1

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(PEER_CLIENTS)))
    return done / (time.perf_counter() - begun)


async def _chat(session: aiohttp.ClientSession, url: str) -> bytes:
    """Read one streamed chat to its end and return its events."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50, "stream": True}
    headers = {"Authorization": f"Bearer {KEY}"}
    async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
        answer = await response.read()
    if not answer.rstrip().endswith(b"[DONE]"):
        raise RuntimeError(f"{url}: status {response.status}: {answer[:300]!r}")
    return answer


def _sum(lines: list[str], name: str) -> float:
    return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


@contextmanager
def _router(
    count: int, *arguments: str, broken: tuple[str, ...] = (), stub: str = "bench._stub"
) -> Iterator[tuple[str, list[str], psutil.Process]]:
    """Start stubs and a router; yields the router's URL, the stubs' URLs and the router's process."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        files = [folder / f"stub-{n}" for n in range(count)]
        for number, file in enumerate(files):
            more = arguments if number else (*arguments, *broken)
            stack.enter_context(_process(sys.executable, "-m", stub, str(file), *more))
        engines = [_wait_for(file) for file in files]
        port = free_port()
        process = stack.enter_context(_process(*_command(port, files[0].with_suffix(".json"), engines)))
        yield f"http://127.0.0.1:{port}", engines, psutil.Process(process.pid)


def _command(port: int, tokenizer: Path, engines: list[str]) -> tuple[str, ...]:
    return (
        *(sys.executable, "-c", "from medley.cli import main; main()", "router", "--host", "127.0.0.1"),
        *("--port", str(port), "--tokenizer", str(tokenizer), "--grace", "1"),
        *("--max-running", "1000", "--queue-limit", "2000"),
        *(part for url in engines for part in ("--engine", url)),
    )


@contextmanager
def _process(*command: str, environment: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **(environment or {})}
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _wait_for(file: Path) -> str:
    for _ in range(2400):
        if file.exists() and (text := file.read_text()):
            return text
        time.sleep(0.05)
    raise RuntimeError(f"{file} did not appear: the stub did not start")


async def _first_byte(session: aiohttp.ClientSession, engine: str) -> float:
    """Return milliseconds to an engine's first event, asked directly."""
    body = {"token_ids": PROMPT, "sampling_params": {"max_tokens": 2, "temperature": 0, "seed": 1}, "stream": True}
    begun = time.perf_counter()
    async with session.post(f"{engine}/inference/v1/generate", json=body) as response:
        await response.content.readany()
        taken = time.perf_counter() - begun
        await response.read()
    return taken * 1000


async def _first_chat_byte(session: aiohttp.ClientSession, router: str) -> float:
    """Return milliseconds to the first event of a streamed chat."""
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0, "stream": True}
    begun = time.perf_counter()
    async with session.post(f"{router}/v1/chat/completions", json=body) as response:
        await response.content.readany()
        taken = time.perf_counter() - begun
        await response.read()
    return taken * 1000


async def _read(
    session: aiohttp.ClientSession, router: str, tokens: int, begun: asyncio.Semaphore | None = None
) -> Read:
    """Read one stream to its end, from the moment it is asked for."""
    read = Read()
    body = {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "stream": True, "logprobs": 0}
    for _ in range(1200):
        start = time.perf_counter()
        try:
            async with session.post(f"{router}/v1/completions", json=body) as response:
                response.raise_for_status()
                async for event in _events(response):
                    read.times.append(time.perf_counter() - start)
                    read.tokens += event
                    if begun is not None and len(read.times) == 1:
                        begun.release()
        except aiohttp.ClientConnectorError:
            await asyncio.sleep(0.1)  # the router is starting
        else:
            return read
    raise RuntimeError("the router did not start")


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[list[str]]:
    async for line in response.content:
        if line.startswith(b"data: {"):
            choice = json.loads(line[6:])["choices"][0]
            yield choice["logprobs"]["tokens"]


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), read_bufsize=2**16
    )
