"""What a client feels when its engine is taken away: pauses in units of the time between tokens, on real vLLM.

Two engines under their supervisors, a router, everything over TLS, as in a cluster; on the CPU, so the figures that
count are ratios. Each engine has a processor for its model, as it would have its accelerator: threads of two models on
one processor wait for each other by spinning, which is nothing that a move could help. The model is sized to 20 to 40
ms per token on an idle machine, its weights are random. Pauses are the router's own: from the last token of the one
engine to the first of the other. Each series has prompts that no engine has seen. The router is told which way to
take, and rows say how many streams took it.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from rich.console import Console

from bench._slowdown import slowdown
from bench._transfer import bandwidth, bandwidth_directly
from bench.rows import Row
from e2e.nixl import NoNixlError, ensure_nixl
from e2e.soak.drive import Driver, Wanted, running
from e2e.soak.engines import VllmEngine
from e2e.soak.ledger import Ledger
from e2e.soak.proxy import Mode

MOST_PAUSE = {1: 3.0, 8: 5.0, 24: 10.0}  # p50, in times between tokens, by streams
LEAST_GAIN = 10.0  # of carrying a long context over computing it again
LEAST_BANDWIDTH = 0.6  # of a plain copy over TLS
MOST_SLOWDOWN = 0.1  # of decoding while a transfer is served
NOTICE_S = 20.0  # streams leave after 14 s: until then there is time for a copy of each
LONG_PROMPT = 1870  # words: 4,000 tokens
ARGUMENTS = (
    "--load-format",
    "dummy",
    "--hf-overrides",
    json.dumps({"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "head_dim": 64}),
)
PLAIN = {"300": 100}  # a token that is text by itself: random weights would choose halves of characters for ever
_BEFORE, _AFTER = 20, 20  # tokens before the notice, and after the end
_MOST = 3000  # tokens of an answer: none ends before its engine does
_SERIES = {1: 3, 8: 3, 24: 1}  # of each number of streams
_PAUSE = re.compile(r"went on at \S+ after ([0-9.]+) ms: (\w+)")


@dataclass(slots=True)
class Timed:
    """One stream."""

    at: list[float] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)  # it has the tokens before the notice

    def between(self, moment: float) -> list[float]:
        """Return the seconds between tokens until a moment, but for the first, which may wait for others."""
        pairs = zip(self.at[5:], self.at[6:], strict=False)
        return [later - earlier for earlier, later in pairs if later <= moment]


def measure() -> Iterator[Row]:
    """Measure with engines started once."""
    yield from asyncio.run(_measure())


async def _measure() -> list[Row]:
    wanted = Wanted(interruptions=1, kind="vllm", engines=2, streams=2, tokens=64, apart=True, say=lambda _: None)
    VllmEngine.arguments = ARGUMENTS
    rows = [await asyncio.to_thread(_bandwidth), *await asyncio.to_thread(_by_nixl)]
    with tempfile.TemporaryDirectory(prefix="medley-bench-") as folder:
        async with running(wanted, Path(folder), Ledger()) as driver:
            for streams, most in MOST_PAUSE.items():
                rows += await _series(driver, streams, most)
            rows.append(await _gain(driver))
            rows.append(await _slowdown(driver))
    return rows


async def _series(driver: Driver, streams: int, most: float) -> list[Row]:
    """Return the pauses of carried streams in units of the median time between tokens."""
    driver.ways = "carry"
    found = [await _moved(driver, streams, words=60, seed=streams * 100 + n) for n in range(_SERIES[streams])]
    pauses = [pause / each.per_token_s for each in found for pause in each.pauses.get("carried", [])]
    usual = statistics.median(each.per_token_s for each in found)
    beside = f"{len(pauses)} of {streams * len(found)} carried; {usual * 1000:.1f} ms between tokens"
    middle, worst = _quantile(pauses, 0.5), _quantile(pauses, 0.99)
    name = f"migration/pause of a carried stream, {streams} at once"
    return [
        Row(f"{name}, p50", middle, "tokens", f"<= {most:g}", middle <= most, beside),
        Row(f"{name}, p99", worst, "tokens", peer=beside),
    ]


async def _gain(driver: Driver) -> Row:
    """Carry a long context, and compute one again."""
    pauses: dict[str, list[float]] = {}
    for ways, kind in (("carry", "carried"), ("refill", "refilled")):
        driver.ways = ways
        for number in range(2):
            moved = await _moved(driver, 1, LONG_PROMPT, seed=9000 + number + len(ways) * 10)
            pauses.setdefault(kind, []).extend(moved.pauses.get(kind, []))
    carried, again = (_quantile(pauses[kind], 0.5) for kind in ("carried", "refilled"))
    gain = again / carried
    counts = f"{len(pauses['carried'])} and {len(pauses['refilled'])} streams"
    beside = f"{carried * 1000:.0f} ms carried, {again * 1000:.0f} ms computed again; {counts}"
    name = "migration/pause at 4,000 tokens, computed again to carried"
    return Row(name, gain, "x", f">= {LEAST_GAIN:g}", gain >= LEAST_GAIN, beside)


def _bandwidth() -> Row:
    ours, plain = bandwidth()
    part = ours / plain
    beside = f"{ours / 1e6:,.0f} MB/s of blocks, {plain / 1e6:,.0f} MB/s over a plain TLS socket"
    name = "migration/KV bytes per second, to a plain copy over TLS"
    return Row(name, part, "x", f">= {LEAST_BANDWIDTH:g}", part >= LEAST_BANDWIDTH, beside)


def _by_nixl() -> list[Row]:
    """Return nothing where NIXL is not to be had, and say so."""
    try:
        nixl = ensure_nixl()
    except NoNixlError as error:
        Console(stderr=True).print(f"migration: left out, {error}", markup=False)
        return []
    name = "migration/KV bytes per second by NIXL"
    tcp, here, plain = bandwidth_directly(nixl)
    beside = f"{tcp / 1e6:,.0f} MB/s, {here / 1e6:,.0f} within one machine, not encrypted; {plain / 1e6:,.0f} over TLS"
    return [Row(f"{name} over TCP, to a plain copy over TLS", tcp / plain, "x", peer=beside)]


async def _slowdown(driver: Driver) -> Row:
    found = await slowdown(driver, _words(random.Random(77), 900), max_tokens=_MOST, logit_bias=PLAIN)
    beside = (
        f"{found.quiet_s * 1000:.1f} ms between tokens, {found.served_bytes / 1e6:,.0f} MB read;"
        f" {found.by_copying:.1%} beside a plain TLS copy at the same rate"
    )
    name = "migration/slow-down of decoding while a transfer is served"
    slower = found.by_serving
    return Row(name, slower, "", f"<= {MOST_SLOWDOWN:g}", slower <= MOST_SLOWDOWN, beside)


@dataclass(frozen=True, slots=True)
class Moved:
    """What was seen of streams that moved together."""

    per_token_s: float  # the median, before the notice
    pauses: dict[str, list[float]]  # seconds, by how the stream left


async def _moved(driver: Driver, streams: int, words: int, seed: int) -> Moved:
    """Stream on one engine, let it leave for the other, and return what came of it."""
    source, target = driver.engines
    chance = random.Random(seed)
    timed = [Timed() for _ in range(streams)]
    gone = asyncio.Event()
    driver.away = {target.replica}
    driver.show()
    logged = len(driver.router.log.read_bytes())
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(1200)) as session, asyncio.TaskGroup() as group:
        for each in timed:
            group.create_task(_read(session, driver, each, _words(chance, words), gone))
        for each in timed:
            await each.begun.wait()
        moment = time.monotonic()
        driver.away, driver.leaving = set(), {source.replica: time.time() + NOTICE_S}
        driver.show()
        await asyncio.sleep(NOTICE_S)
        source.proxy.set(Mode.REFUSE)
        driver.away, driver.leaving = {source.replica}, {}
        driver.show()
        gone.set()
    source.life += 1
    source.proxy.set(Mode.PASS)
    driver.engines.reverse()  # the next leaves the engine that these came to
    pauses: dict[str, list[float]] = {}
    for milliseconds, kind in _PAUSE.findall(driver.router.log.read_bytes()[logged:].decode()):
        pauses.setdefault(kind, []).append(float(milliseconds) / 1000)
    return Moved(statistics.median(gap for each in timed for gap in each.between(moment)), pauses)


async def _read(session: aiohttp.ClientSession, driver: Driver, timed: Timed, prompt: str, gone: asyncio.Event) -> None:
    """Read until some tokens after the move."""
    body = {
        "model": driver.engines[0].model, "prompt": prompt, "max_tokens": _MOST, "temperature": 0, "ignore_eos": True,
        "stream": True, "logit_bias": PLAIN,
    }  # fmt: skip
    left = _AFTER
    async with session.post(f"{driver.router.url}/v1/completions", json=body) as response:
        if response.status != 200:
            raise AssertionError(await response.text())
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            if "error" in json.loads(line[6:]):
                raise AssertionError(line.decode())
            timed.at.append(time.monotonic())
            if len(timed.at) == _BEFORE:
                timed.begun.set()
            left -= gone.is_set()
            if not left:
                return


def _words(chance: random.Random, count: int) -> str:
    return " ".join(chance.choices(("the", "fox", "runs", "far", "over", "hills", "and", "dogs", "lazy"), k=count))


def _quantile(values: list[float], part: float) -> float:
    ordered = sorted(values) or [float("inf")]
    return ordered[min(int(part * len(ordered)), len(ordered) - 1)]
