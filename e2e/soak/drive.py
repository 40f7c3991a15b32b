"""Drives the soak: starts everything, interrupts, looks for leaks while all is quiet, keeps the ledger."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from e2e.soak import ledger as ledgers
from e2e.soak.clients import Clients, record
from e2e.soak.engines import ROOT, Engine, Secrets, StubProcess, VllmEngine, as_line, held
from e2e.soak.interruptions import End, Fault, Interruption, draw
from e2e.soak.ledger import Growth, Ledger
from e2e.soak.proxy import Mode, Proxy
from medley.core.identity import Role
from medley.demo.model import ensure_model
from medley.demo.vllm_venv import ensure_venv
from tests.router.stub_engine import TOKENIZER

_QUIET_S = 120.0  # leases of exports run out, connections are closed
_CHECK_EVERY = 25  # interruptions, until all is made quiet and looked at for leaks
# More than this over what a process held when it was first quiet is a leak. Pools, caches and arenas fill at first.
_MOST_FILES = 16
_MOST_MIB = 64.0
_MODES = {Fault.DROP: Mode.DROP, Fault.HALF_OPEN: Mode.HALF_OPEN, Fault.THROTTLE: Mode.THROTTLE}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a person asks for."""

    interruptions: int
    kind: str = "stub"  # or vllm
    engines: int = 3
    streams: int = 24
    tokens: int = 300
    kills: float = 0.15
    apart: bool = False  # each engine has a processor of its own for its model
    seed: int = 1
    state: Path = ROOT / "build" / "soak.json"
    check_every: int = _CHECK_EVERY
    longest_notice_s: float = 15.0
    longest_fault_s: float = 7.0
    say: Callable[[str], None] = field(default=lambda line: sys.stdout.write(line + "\n"))


async def soak(wanted: Wanted, folder: Path) -> Ledger:
    """Make interruptions until there are as many as wanted, counting from where the last run stopped."""
    ledger = ledgers.load(wanted.state, wanted.kind)
    if ledger.interruptions >= wanted.interruptions:
        return ledger
    async with running(wanted, folder, ledger) as driver:
        await driver.record()
        await driver.go_on()
    return ledger


@asynccontextmanager
async def running(wanted: Wanted, folder: Path, ledger: Ledger) -> AsyncIterator[Driver]:
    """Start engines, proxies and a router; yield what drives them. It has no clients before it has recorded."""
    secrets = Secrets(folder)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        proxies = [await stack.enter_async_context(Proxy()) for _ in range(wanted.engines)]
        engines = _engines(wanted, folder, secrets, proxies)
        for engine in engines:
            stack.callback(engine.kill)
        wanted.say(f"starting {len(engines)} engines ({wanted.kind})")
        await asyncio.gather(*(engine.start(session) for engine in engines))
        router = await stack.enter_async_context(_router(folder, secrets, engines[0], wanted))
        driver = Driver(wanted, ledger, engines, router, session)
        driver.show()
        await driver.router_serves()
        yield driver


def _engines(wanted: Wanted, folder: Path, secrets: Secrets, proxies: Sequence[Proxy]) -> list[Engine]:
    if wanted.kind == "stub":
        return [StubProcess(f"e{n}", folder, proxy) for n, proxy in enumerate(proxies)]
    VllmEngine.python, VllmEngine.weights = ensure_venv(wanted.say), ensure_model(wanted.say)
    VllmEngine.secrets = secrets
    engines = [VllmEngine(f"e{n}", folder, proxy) for n, proxy in enumerate(proxies)]
    if wanted.apart:
        processors = sorted(os.sched_getaffinity(0))
        for n, engine in enumerate(engines):
            engine.threads = str(processors[n % len(processors)])
    return list(engines)


@dataclass(frozen=True, slots=True)
class Router:
    """The router's process."""

    process: asyncio.subprocess.Process
    url: str
    log: Path


@asynccontextmanager
async def _router(folder: Path, secrets: Secrets, engine: Engine, wanted: Wanted) -> AsyncIterator[Router]:
    tokenizer = folder / "tokenizer.json"
    if wanted.kind == "stub":
        tokenizer.write_text(TOKENIZER.to_str())
    else:
        tokenizer = VllmEngine.weights / "tokenizer.json"
    access = ["--key-file", str(secrets.key_file), "--tls-folder", str(secrets.folders[Role.ROUTER])]
    with (folder / "router.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "e2e.soak.router_process", "--model", engine.model, "--tokenizer", str(tokenizer)),
            *("--silence", "2" if wanted.kind == "stub" else "20", *(access if wanted.kind == "vllm" else ())),
            cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        if not url:
            raise AssertionError(f"the router did not start:\n{(folder / 'router.log').read_text()[-3000:]}")
        yield Router(process, url, folder / "router.log")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Driver:
    """One run of the soak."""

    def __init__(
        self, wanted: Wanted, ledger: Ledger, engines: list[Engine], router: Router, session: aiohttp.ClientSession
    ) -> None:
        self.wanted, self.ledger, self.engines, self.router, self.session = wanted, ledger, engines, router, session
        self.clients: Clients
        self.away: set[str] = set()  # replicas that routers do not see
        self.leaving: dict[str, float] = {}  # replica -> seconds of the epoch
        self.ways: str | None = None  # "carry" or "refill": what the router does where it can
        self._counted: Counter[tuple[str, str]] = Counter()
        self._growth: Growth | None = None
        self._engine_growth: dict[tuple[str, int], Growth] = {}

    async def record(self) -> None:
        """Learn the uninterrupted answers that clients compare with."""
        wanted, model = self.wanted, self.engines[0].model
        wanted.say(f"recording the uninterrupted answers of {2 * wanted.streams} requests")
        cases = await record(self.session, self.router.url, 2 * wanted.streams, wanted.tokens, model)
        self.clients = Clients(self.router.url, cases, self.ledger, wanted.streams)

    async def go_on(self) -> None:
        """Interrupt until there are enough."""
        self.clients.begin()
        try:
            while self.ledger.interruptions < self.wanted.interruptions:
                drawn = draw(self.ledger.interruptions, kills=self.wanted.kills, seed=self.wanted.seed)
                await self._interrupt(drawn)
                self.ledger.interruptions += 1
                if self.ledger.interruptions % self.wanted.check_every == 0:
                    await self._look_for_leaks()
                    self.clients.begin()
                await self._save()
        finally:
            await self.clients.finish()
        await self._look_for_leaks()
        await self._save()

    def show(self) -> None:
        """Tell the router what there is."""
        there = [each for each in self.engines if each.replica not in self.away]
        fleet = [(each, self.leaving.get(each.replica)) for each in there]
        assert self.router.process.stdin is not None
        self.router.process.stdin.write(as_line(fleet, self.ways))

    async def router_serves(self) -> None:
        """Wait until it does."""
        for _ in range(600):
            try:
                async with self.session.get(self.router.url + "/ready") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass  # not listening yet
            await asyncio.sleep(0.1)
        raise AssertionError("the router did not become ready")

    # One interruption

    async def _interrupt(self, it: Interruption) -> None:
        source = self.engines[it.number % len(self.engines)]
        target = self.engines[(it.number + 1) % len(self.engines)]
        notice = min(it.notice_s, self.wanted.longest_notice_s)
        self.clients.context = f"{it.number}: {notice:g} s, {it.end}, {it.fault}"
        await self._until_busy()
        self.ledger.notices[f"{it.notice_s:g}"] += 1
        self.ledger.faults[it.fault.value] += 1
        if notice:
            self.leaving[source.replica] = time.time() + notice
            self.show()
        killed: set[Engine] = set()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._go_wrong(it, target if it.fault_on_target else source, notice))
            group.create_task(self._end(it, source, target, notice, killed))
        await self._come_back(source, killed)
        for engine in killed - {source}:
            await self._come_back(engine, killed)
        await asyncio.sleep(it.pause_s)

    async def _go_wrong(self, it: Interruption, on: Engine, notice: float) -> None:
        if it.fault is Fault.NONE:
            return
        await asyncio.sleep(it.fault_at * notice)
        if it.fault is Fault.RESET:
            on.proxy.reset()
            return
        lasts = min(it.fault_s, self.wanted.longest_fault_s)
        if it.fault is Fault.FREEZE:
            on.freeze()
            await asyncio.sleep(lasts)
            on.thaw()
            return
        on.proxy.set(_MODES[it.fault])
        await asyncio.sleep(lasts)
        on.proxy.set(Mode.REFUSE if on.replica in self.away else Mode.PASS)

    async def _end(self, it: Interruption, source: Engine, target: Engine, notice: float, killed: set[Engine]) -> None:
        first = it.end_at * notice if it.end is not End.CUT else notice
        await asyncio.sleep(first)
        if it.end is not End.CUT:
            victim = target if it.end is End.TARGET_KILL else source
            victim.kill()
            killed.add(victim)
            self.ledger.sigkills += 1
            await asyncio.sleep(notice - first)
        gone = {source, *killed}
        for engine in gone:
            engine.proxy.set(Mode.REFUSE)
            self.away.add(engine.replica)
        await asyncio.sleep(it.late_s)  # a watch tells later than the connections do
        for engine in gone:
            self.leaving.pop(engine.replica, None)
        self.show()

    async def _come_back(self, engine: Engine, killed: set[Engine]) -> None:
        """Let it be a new replica: of a new process, or of the same one once it holds nothing of before."""
        if engine in killed:
            await engine.start(self.session)
        else:
            await self._gives_back(engine)
        self.away.discard(engine.replica)
        engine.life += 1
        engine.proxy.set(Mode.PASS)
        self.show()

    async def _gives_back(self, engine: Engine) -> None:
        """Wait until every block is free again; what is not by then is leaked."""
        state, ends = None, time.monotonic() + _QUIET_S
        while time.monotonic() < ends:
            state = await engine.state(self.session)
            if state is not None and state.exports == 0 and state.free_blocks == engine.free_blocks:
                return
            if engine.free_blocks is None:
                return
            await asyncio.sleep(0.2)
        leaked = 1 if state is None else max((engine.free_blocks or 0) - state.free_blocks, 1)
        self.ledger.leaked_blocks += leaked
        self.ledger.failed(f"{self.clients.context}: {engine.name} kept {leaked} blocks: {state}")

    async def _until_busy(self) -> None:
        """Wait until most clients have a stream under way."""
        for _ in range(600):
            if self.clients.under_way * 2 >= self.clients.number:
                return
            await asyncio.sleep(0.05)

    # Leaks, and the ledger

    async def _look_for_leaks(self) -> None:
        self.wanted.say("waiting until all is quiet")
        await self.clients.finish()
        for engine in self.engines:
            await self._gives_back(engine)
        await asyncio.sleep(35 if self.wanted.check_every >= _CHECK_EVERY else 1)  # the router's idle connections end
        mib, files = held(self.router.process.pid)
        if self._growth is None:
            self._growth = Growth(mib, mib, files, files)
            self.ledger.router.append(self._growth)
        self._growth.last_mib, self._growth.last_files = mib, files
        self._judge("the router", self._growth)
        for engine in self.engines:
            mib, files = engine.held()
            growth = self._engine_growth.setdefault((engine.name, engine.starts), Growth(mib, mib, files, files))
            growth.last_mib, growth.last_files = mib, files
            self._judge(engine.name, growth)

    def _judge(self, who: str, growth: Growth) -> None:
        files = growth.last_files - growth.first_files - _MOST_FILES
        mib = growth.last_mib - growth.first_mib - _MOST_MIB
        if files > 0:
            self.ledger.leaked_files = max(self.ledger.leaked_files, files)
            self.ledger.failed(f"{self.clients.context}: {who} has more files open: {growth}")
        if mib > 0:
            self.ledger.leaked_mib = max(self.ledger.leaked_mib, round(mib, 1))
            self.ledger.failed(f"{self.clients.context}: {who} has grown: {growth}")

    async def _save(self) -> None:
        async with self.session.get(self.router.url + "/metrics") as answer:
            families = text_string_to_metric_families(await answer.text())
        for sample in (each for family in families for each in family.samples):
            for name, into, label in (
                ("medley_router_departures_total", self.ledger.departures, "how"),
                ("medley_router_resumes_total", self.ledger.resumes, "cause"),
            ):
                if sample.name == name:
                    key = (name, str(sorted(sample.labels.items())))
                    into[sample.labels.get(label, "all")] += round(sample.value) - self._counted[key]
                    self._counted[key] = round(sample.value)
        ledgers.save(self.wanted.state, self.wanted.kind, self.ledger)
        found = self.ledger
        self.wanted.say(
            f"{found.interruptions} interruptions ({found.sigkills} SIGKILLs), {found.streams} streams, "
            f"{found.tokens} tokens: {found.broken} broken, {found.lost} lost, {found.duplicated} duplicated, "
            f"{found.differing} differing"
        )
