"""What an engine feels that gives blocks: it decodes by turns alone, while they are read, and beside a plain copy.

For `migration`. Who reads keeps off the engine's processor, as both sides of the plain copy do: they would be on
another machine.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import NoReturn

import aiohttp
import numpy as np

from bench._direct import SIZE
from bench._transfer import environment, loaded, plain_copies
from e2e.soak.drive import Driver
from e2e.soak.engines import VllmEngine
from medley.core.identity import TLS_FOLDER_VARIABLE, Role
from medley.engine.kv.blocks import HostBlocks
from medley.engine.kv.errands import Errands
from medley.engine.kv.layout import Geometry, Shard
from medley.engine.kv.messages import PinQuery, ReadRequest, slice_bytes
from medley.engine.kv.puller import Load, Puller
from medley.wire.ticket import EXPORT_PATH, RELEASE_PATH, Exported, Ticket

_TOKENS = 60  # of a phase
_SETTLING = 10  # tokens between two phases: those of a load that ends are not counted
_TURNS = 9  # single ones differ by 5 %
_HOST = "127.0.0.1"

_Work = Callable[[asyncio.Event], Awaitable[int]]  # goes on until told; returns the bytes moved


@dataclass(frozen=True, slots=True)
class Slowdown:
    """Medians of phases, each against the quiet ones before and after it. 0.1: a token takes a tenth longer."""

    quiet_s: float  # between tokens
    by_serving: float
    by_copying: float  # while as many bytes a second go over a TLS socket between two other processes
    served_bytes: int


@dataclass(frozen=True, slots=True)
class _Phase:
    gap_s: float
    moved_bytes: int
    lasted_s: float


async def slowdown(driver: Driver, prompt: str, **more: object) -> Slowdown:
    """Return what the first of the driver's engines feels while it answers one prompt."""
    engine, other = driver.engines
    assert isinstance(engine, VllmEngine)
    driver.away = {other.replica}
    driver.show()
    body = {
        "model": engine.model, "prompt": prompt, "temperature": 0, "ignore_eos": True, "stream": True, **more,
    }  # fmt: skip
    elsewhere = os.sched_getaffinity(0) - {int(engine.threads)}
    quiet, serving, copying = [], [], []
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(1200)) as session,
        session.post(f"{driver.router.url}/v1/completions", json=body) as response,
    ):
        tokens = _tokens(response)
        with _bound_to(elsewhere), _reader(driver, engine) as read, _copier(engine) as copy:
            quiet.append(await _phase(tokens, _nothing))
            for _ in range(_TURNS):
                serving.append(await _phase(tokens, read))
                quiet.append(await _phase(tokens, _nothing))
                copying.append(await _phase(tokens, copy(serving[-1].moved_bytes / serving[-1].lasted_s)))
                quiet.append(await _phase(tokens, _nothing))
    around = [(before.gap_s + after.gap_s) / 2 for before, after in pairwise(quiet)]
    by_serving, by_copying = (
        statistics.median(phase.gap_s / alone - 1 for phase, alone in zip(phases, beside, strict=True))
        for phases, beside in ((serving, around[::2]), (copying, around[1::2]))
    )
    quiet_s = statistics.median(phase.gap_s for phase in quiet)
    return Slowdown(quiet_s, by_serving, by_copying, sum(phase.moved_bytes for phase in serving))


async def _tokens(response: aiohttp.ClientResponse) -> AsyncIterator[float]:
    """Yield the moment of each."""
    async for line in response.content:
        if line.startswith(b"data: {"):
            yield time.monotonic()


async def _phase(tokens: AsyncIterator[float], work: _Work) -> _Phase:
    for _ in range(_SETTLING):
        await anext(tokens)
    told = asyncio.Event()
    working = asyncio.create_task(work(told))
    first = await anext(tokens)
    for _ in range(_TOKENS):
        last = await anext(tokens)
    told.set()
    moved = await working
    return _Phase((last - first) / _TOKENS, moved, time.monotonic() - first)


async def _nothing(told: asyncio.Event) -> int:
    await told.wait()
    return 0


@contextmanager
def _reader(driver: Driver, engine: VllmEngine) -> Iterator[_Work]:
    """Work that exports what runs, and reads its blocks as an engine would, again and again."""
    assert engine.api is not None
    api, processors = engine.api, os.sched_getaffinity(0)
    with environment({TLS_FOLDER_VARIABLE: str(engine.secrets.folders[Role.ENGINE]), "MEDLEY_KV_HOST": _HOST}):
        errands = Errands(_HOST, _gives_nothing, lasting=True)
    pullers: list[Puller] = []  # at most one, made when the first ticket says of what shape its cache has to be

    async def call(path: str, body: object) -> bytes:
        async with driver.session.post(api + path, json=body, **engine.access()) as answer:
            return await answer.read()

    def load(ticket: Ticket) -> int:
        with _bound_to(processors):  # the puller's threads, too: they are started from here
            if not pullers:
                pullers.append(Puller(_like(ticket), errands))
            return loaded(pullers[0], Load("bench", ticket, 0, tuple(range(len(ticket.blocks))), 60.0))

    async def read(told: asyncio.Event) -> int:
        served = 0
        while not told.is_set():
            body = await call(EXPORT_PATH, {"requests": None, "keep_running": True, "lease_s": 30.0})
            (ticket,) = Exported.model_validate_json(body).tickets
            served += await asyncio.to_thread(load, ticket)
            await call(RELEASE_PATH, {"exports": [ticket.export_id]})
        return served

    try:
        yield read
    finally:
        errands.close()


@contextmanager
def _copier(engine: VllmEngine) -> Iterator[Callable[[float], _Work]]:
    """A function of bytes per second that returns work: plain copies over TLS at that rate."""
    with plain_copies(engine.secrets.folders[Role.ENGINE], SIZE) as once:
        once()  # pages are touched

        def at(rate: float) -> _Work:
            async def work(told: asyncio.Event) -> int:
                copied, began = 0, time.monotonic()
                while not told.is_set():
                    await asyncio.to_thread(once)
                    copied += SIZE
                    await asyncio.sleep(began + copied / rate - time.monotonic())
                return copied

            return work

        yield at


def _gives_nothing(question: ReadRequest | PinQuery) -> NoReturn:
    raise OSError(f"asked for {question}")


def _like(ticket: Ticket) -> HostBlocks:
    """Return an empty cache of the shape that a ticket of one worker tells of, with room to grow."""
    (source,) = ticket.sources
    geometry = Geometry(ticket.block_size, ticket.dtype, ticket.content)
    shard = Shard(source.layers, source.head_lo, source.head_n)
    shape = (4 * len(ticket.blocks), source.head_n, slice_bytes(geometry, 1))
    return HostBlocks(shard, geometry, {name: np.zeros(shape, np.uint8) for name in shard.layers})


@contextmanager
def _bound_to(processors: set[int]) -> Iterator[None]:
    """Bind this thread, and what is started from it in the block; to nothing, if there is no processor left."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
