"""A router in this process over real engines: it sees what it is shown, and what it does can be looked at.

For tests that move streams between engines of vLLM. Which replica leaves is said by `Moving.show`; a short notice is a
part of what the streams still take here and now, since they are not to end in time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp

from medley.router.attempt import Attempt, Way
from medley.router.engine_client import EngineClient, Taker
from medley.router.fleet import Fleet, FleetView, Limits, Replica
from medley.router.leaving import Knowledge
from medley.router.main import running
from medley.router.server import Followed, Options
from medley.router.session import Broken
from medley.router.settings import RouterSettings
from medley.router.text import Vocabulary
from medley.wire.generate import EngineFault, GenerateCall, TokenEvent
from tests.engine.kv.engines import KEY, Engine

HOWS = ("finished", "carried", "refilled")


class Eager(Knowledge):
    """Of which streams are carried wherever they can be: what pays on a machine that others use is not the question."""

    def link(self, source):
        known = super().link(source)
        return known and replace(known, bytes_per_s=1e9)

    def target(self, candidate, replica, source):
        return replace(super().target(candidate, replica, source), prefill_tokens_per_s=1.0)


@dataclass
class Moving:
    """The router, its engines, and all the attempts that it made."""

    url: str
    fleet: Fleet
    vocabulary: Vocabulary
    engines: dict[str, Engine]
    attempts: list[Attempt] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)  # engine's URL and request id
    heard: dict[str, list[TokenEvent]] = field(default_factory=dict)  # what engines said, by request id

    def show(self, *, known: Sequence[str] = (), **leaving: float | None) -> None:
        """Let the router see these engines: ready until so many seconds from now, or for good.

        Those `known` are there and get no requests; the router asks them what they can do.
        """
        now = datetime.now(UTC)
        seen = {name: None if left is None else now + timedelta(seconds=left) for name, left in leaving.items()}
        replicas = {name: Replica(name, self.engines[name].url, leaves_at=at) for name, at in seen.items()}
        replicas |= {name: Replica(name, self.engines[name].url, ready=False) for name in known}
        self.fleet.replace(FleetView(replicas))

    async def figures(self) -> dict[str, float]:
        """What the router counts of streams that leave."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/metrics") as response:
            lines = (await response.text()).splitlines()
        return {
            line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith(
                ("medley_router_departures_total", "medley_router_copies_total", "medley_router_pause_seconds")
            )
        }

    @contextmanager
    def insisting(self, target: str) -> Iterator[None]:
        """Carry all streams of who leaves to this engine, one after the other and at once, however they are planned."""
        leaving = self.fleet.leaving
        planned = leaving._plan

        def plan(_name, _notice, here, _room, _replicas) -> None:
            now = asyncio.get_running_loop().time()
            for attempt in here:
                attempt.way = attempt.way or Way(target, carried=True, copy_at=now, cut_at=now)

        leaving._plan = plan
        try:
            yield
        finally:
            leaving._plan = planned

    def forget(self) -> None:
        """Look only at what follows."""
        self.attempts.clear()
        self.calls.clear()
        self.heard.clear()

    def ways(self, request: str) -> list[list[Attempt]]:
        """The attempts of each choice of a request, oldest first."""
        found: dict[str, list[Attempt]] = {}
        for each in self.attempts:
            if each.history is not None and each.history.choice.request_id.startswith(f"{request}-"):
                found.setdefault(each.history.choice.request_id, []).append(each)
        return [way for _, way in sorted(found.items())]

    def open_on(self, replica: str) -> list[Attempt]:
        """The attempts that run there."""
        return [each for each in self.attempts if each.replica.name == replica and not each.ended]

    def committed(self, request: str) -> list[list[int]]:
        """The tokens of each choice of a request."""
        return [way[0].history.committed for way in self.ways(request)]

    def copies(self, request: str) -> int:
        """How often streams of a request were copied ahead."""
        return sum(name.startswith(f"{request}-") and "-copy-" in name for _, name in self.calls)


@asynccontextmanager
async def moving(started: Sequence[Engine], model: Path, folder: Path) -> AsyncIterator[Moving]:
    """Route between these engines, of which the router sees none yet."""
    key = folder / "key"
    key.write_text(KEY)
    kept: list[tuple[Followed, EngineClient]] = []

    async def source(followed: Followed, client: EngineClient) -> None:
        followed.serving.model = "m"
        followed.fleet.knowledge = Eager()
        kept.append((followed, client))
        await asyncio.Event().wait()

    settings = RouterSettings(
        engines=("http://named.by.the.source",),
        tokenizer=model / "tokenizer.json",
        engine_key_file=key,
        host="127.0.0.1",
        port=0,
        # The machine is shared: slowness is not to be taken for silence here.
        limits=Limits(timedelta(seconds=120), timedelta(seconds=300)),
        options=Options(timedelta(seconds=900), 256),
    )
    async with running(settings, source) as router:
        await until(lambda: kept and kept[0][0].serving.vocabulary)
        followed, client = kept[0]
        stage = Moving(router.url, followed.fleet, followed.serving.vocabulary, {each.name: each for each in started})
        _watch(stage, client)
        yield stage


def _watch(stage: Moving, client: EngineClient) -> None:
    opened, generate = stage.fleet.open, client.generate

    def remembering(*asked) -> Attempt:
        stage.attempts.append(opened(*asked))
        return stage.attempts[-1]

    async def overheard(url: str, call: GenerateCall, take: Taker) -> None:
        stage.calls.append((url, call.request_id))
        heard = stage.heard.setdefault(call.request_id, [])

        def overhear(events: Sequence[TokenEvent | EngineFault | Broken]) -> bool:
            heard.extend(each for each in events if isinstance(each, TokenEvent))
            return take(events)

        await generate(url, call, overhear)

    stage.fleet.open, client.generate = remembering, overheard


async def streamed(url: str, asked: Mapping[str, object]) -> AsyncIterator[dict[str, Any]]:
    """The events of an answer that comes whole, without the one that ends it."""
    timeout = aiohttp.ClientTimeout(total=900)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.post(url, json=asked) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                yield event


async def until(holds: Callable[[], object], *, every: float = 0.05) -> None:
    for _ in range(round(300 / every)):
        if holds():
            return
        await asyncio.sleep(every)
    raise AssertionError("it did not come about within five minutes")


def how(counted: dict[str, float]) -> dict[str, int]:
    """Of the streams that left, how many went in which way."""
    return {kind: int(counted[f'medley_router_departures_total{{how="{kind}"}}']) for kind in HOWS}
