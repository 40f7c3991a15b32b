"""What a client feels when its engine is taken away: pauses in units of the time between tokens, on real vLLM.

Two engines under their supervisors, a router, everything over TLS, as in a cluster; on the CPU, so the figures that
count are ratios. `pause`: the longest time between two tokens of a stream after the notice. Each series has prompts
that no engine has seen.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from bench.rows import Row
from e2e.soak.drive import Driver, Wanted, running
from e2e.soak.ledger import Ledger
from e2e.soak.proxy import Mode

MOST_PAUSE = {1: 3.0, 8: 5.0, 24: 10.0}  # p50, in times between tokens, by streams
LEAST_GAIN = 10.0  # of carrying a long context over computing it again
NOTICE_S = 8.0
LONG_PROMPT = 1400  # words: 3,000 tokens, since engines hold 4,096 with the answer
_BEFORE, _AFTER = 30, 40  # tokens before the notice, and after the end
_MOST = 1000
_SERIES = 3  # of each number of streams


@dataclass(slots=True)
class Timed:
    """One stream."""

    at: list[float] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)  # it has the tokens before the notice

    def longest_after(self, moment: float) -> float:
        """Seconds between two tokens at most, of those that ended after a moment."""
        pairs = zip(self.at, self.at[1:], strict=False)
        return max((later - earlier for earlier, later in pairs if later > moment), default=0.0)

    def between(self, moment: float) -> list[float]:
        """Return the seconds between tokens until a moment, but for the first, which may wait for others."""
        pairs = zip(self.at[5:], self.at[6:], strict=False)
        return [later - earlier for earlier, later in pairs if later <= moment]


def measure() -> Iterator[Row]:
    """Measure with engines started once."""
    yield from asyncio.run(_measure())


async def _measure() -> list[Row]:
    wanted = Wanted(interruptions=1, kind="vllm", engines=2, streams=2, tokens=64, say=lambda _: None)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="medley-bench-") as folder:
        async with running(wanted, Path(folder), Ledger()) as driver:
            for streams, most in MOST_PAUSE.items():
                pauses, usual = await _series(driver, streams)
                middle, worst = _quantile(pauses, 0.5), _quantile(pauses, 0.99)
                beside = f"{usual * 1000:.1f} ms between tokens; {len(pauses)} streams"
                name = f"migration/pause of a carried stream, {streams} at once"
                rows.append(Row(f"{name}, p50", middle, "tokens", f"<= {most:g}", middle <= most, beside))
                rows.append(Row(f"{name}, p99", worst, "tokens", peer=beside))
            carried = await _one(driver, LONG_PROMPT, notice_s=NOTICE_S)
            again = await _one(driver, LONG_PROMPT, notice_s=0.0)
            gain = again / carried
            beside = f"{carried * 1000:.0f} ms carried, {again * 1000:.0f} ms computed again"
            name = f"migration/pause at {LONG_PROMPT} words, computed again to carried"
            rows.append(Row(name, gain, "x", f">= {LEAST_GAIN:g}", gain >= LEAST_GAIN, beside))
    return rows


async def _series(driver: Driver, streams: int) -> tuple[list[float], float]:
    """Return pauses in units of the median time between tokens, and that time in seconds."""
    pauses, usual = [], []
    for number in range(_SERIES):
        timed, moment = await _moved(driver, streams, words=60, seed=streams * 100 + number)
        per_token = statistics.median(gap for each in timed for gap in each.between(moment))
        usual.append(per_token)
        pauses += [each.longest_after(moment) / per_token for each in timed]
    return pauses, statistics.median(usual)


async def _one(driver: Driver, words: int, *, notice_s: float) -> float:
    """Return the median pause in seconds of one stream with a long context."""
    pauses = []
    for number in range(_SERIES):
        timed, moment = await _moved(driver, 1, words, seed=9000 + number + int(notice_s), notice_s=notice_s)
        pauses.append(timed[0].longest_after(moment))
    return statistics.median(pauses)


async def _moved(
    driver: Driver, streams: int, words: int, seed: int, notice_s: float = NOTICE_S
) -> tuple[list[Timed], float]:
    """Stream on one engine, let it leave for the other, and return what clients saw and when the notice came."""
    source, target = driver.engines
    chance = random.Random(seed)
    timed = [Timed() for _ in range(streams)]
    gone = asyncio.Event()
    driver.away = {target.replica}
    driver.show()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(1200)) as session, asyncio.TaskGroup() as group:
        for each in timed:
            group.create_task(_read(session, driver, each, _words(chance, words), gone))
        for each in timed:
            await each.begun.wait()
        moment = time.monotonic()
        driver.away = set()
        if notice_s:
            driver.leaving = {source.replica: time.time() + notice_s}
        driver.show()
        await asyncio.sleep(notice_s or 0.5)
        source.proxy.set(Mode.REFUSE)
        driver.away, driver.leaving = {source.replica}, {}
        driver.show()
        gone.set()
    source.life += 1
    source.proxy.set(Mode.PASS)
    driver.engines.reverse()  # the next leaves the engine that these came to
    return timed, moment


async def _read(session: aiohttp.ClientSession, driver: Driver, timed: Timed, prompt: str, gone: asyncio.Event) -> None:
    """Read until some tokens after the move."""
    body = {
        "model": driver.engines[0].model, "prompt": prompt, "max_tokens": _MOST, "temperature": 0, "ignore_eos": True,
        "stream": True,
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
    ordered = sorted(values)
    return ordered[min(int(part * len(ordered)), len(ordered) - 1)]
