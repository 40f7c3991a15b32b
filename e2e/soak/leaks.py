"""What is still held when nothing runs: blocks, files, memory. Called by `drive` when all clients have ended."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

import aiohttp

from e2e.soak.engines import Engine
from e2e.soak.held import Held, held
from e2e.soak.ledger import Growth, Ledger

_BLOCKS_S = 120.0  # longer than any lease of exports
# More than this over what a process held at this look is a leak. Pools, caches and arenas fill at first.
_FIRST_LOOK = 2
_MOST_FILES = 16
_MOST_MIB = 64.0


class Leaks:
    """Of one run; a process is compared with itself."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._growth: dict[str, Growth] = {}
        self._looks: Counter[str] = Counter()

    async def look(self, session: aiohttp.ClientSession, router: int, engines: Sequence[Engine], idle_s: float) -> None:
        """Wait until blocks are free and idle connections closed, and judge. `router`: its process."""
        for engine in engines:
            await self._gives_back(engine, session)
        await asyncio.sleep(idle_s)
        self._judge("the router", held(router), kept=True)
        for engine in engines:
            found = engine.held()
            self._judge(f"{engine.name} of start {engine.starts}", found)
            self._ledger.porter_mib = max(self._ledger.porter_mib, round(found.porter_mib, 1))
            self._ledger.porter_rss_mib = max(self._ledger.porter_rss_mib, round(found.porter_rss_mib, 1))

    async def _gives_back(self, engine: Engine, session: aiohttp.ClientSession) -> None:
        """Wait until every block is free again; what is not by then is leaked."""
        if engine.free_blocks is None:
            return
        state, ends = None, time.monotonic() + _BLOCKS_S
        while time.monotonic() < ends:
            state = await engine.state(session)
            if state is not None and state.exports == 0 and state.free_blocks == engine.free_blocks:
                return
            await asyncio.sleep(0.2)
        leaked = 1 if state is None else max(engine.free_blocks - state.free_blocks, 1)
        self._ledger.leaked_blocks += leaked
        self._ledger.failed(f"after {self._ledger.interruptions}: {engine.name} kept {leaked} blocks: {state}")

    def _judge(self, who: str, now: Held, *, kept: bool = False) -> None:
        growth = self._growth.get(who)
        if growth is None:
            growth = self._growth[who] = Growth(now.mib, now.mib, now.files, now.files)
            if kept:
                self._ledger.router.append(growth)
        self._looks[who] += 1
        if self._looks[who] <= _FIRST_LOOK:
            growth.first_mib, growth.first_files = now.mib, now.files
        growth.last_mib, growth.last_files = now.mib, now.files
        if not kept:
            self._ledger.judged += self._looks[who] > _FIRST_LOOK
        files = growth.last_files - growth.first_files - _MOST_FILES
        mib = growth.last_mib - growth.first_mib - _MOST_MIB
        if files > 0:
            self._ledger.leaked_files = max(self._ledger.leaked_files, files)
            self._ledger.failed(f"after {self._ledger.interruptions}: {who} has more files open: {growth}")
        if mib > 0:
            self._ledger.leaked_mib = max(self._ledger.leaked_mib, round(mib, 1))
            self._ledger.failed(f"after {self._ledger.interruptions}: {who} has grown: {growth}")
