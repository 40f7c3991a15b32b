"""Drives the soak: starts everything, interrupts, lets what was killed start beside it, keeps the ledger."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from e2e.soak import ledger as ledgers
from e2e.soak.clients import Clients, record
from e2e.soak.engines import ROOT, Engine, Secrets, StubProcess, VllmEngine, as_line
from e2e.soak.firewall import Firewall
from e2e.soak.interruptions import BETWEEN_ENGINES, End, Fault, Interruption, draw
from e2e.soak.leaks import Leaks
from e2e.soak.ledger import Ledger
from e2e.soak.loads import Loads
from e2e.soak.proxy import Mode, Proxy
from medley.core.identity import Role
from medley.demo.model import ensure_model
from medley.demo.vllm_venv import ensure_venv
from tests.router.stub_engine import TOKENIZER

_CHECK_EVERY = 25  # interruptions, until all is made quiet and looked at for leaks; so many times as rarely later
_SELDOM = 4
_IDLE_S = 35.0  # until the router and porters have closed what they kept
_MODES = {Fault.DROP: Mode.DROP, Fault.HALF_OPEN: Mode.HALF_OPEN, Fault.THROTTLE: Mode.THROTTLE}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a person asks for."""

    interruptions: int
    kind: str = "stub"  # or vllm
    engines: int = 3
    streams: int = 24
    tokens: int = 300
    kills: float = 0.1
    calm: int = 0  # the first interruptions, in which no process is killed: what lives on shows whether it leaks
    apart: bool = False  # each engine has a processor of its own for its model
    seed: int = 1
    state: Path = ROOT / "build" / "soak.json"
    check_every: int = _CHECK_EVERY
    idle_s: float = _IDLE_S
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
        firewall = stack.enter_context(Firewall(ROOT)) if wanted.kind == "vllm" else None
        if firewall is not None and firewall.obstacles:
            why = "; ".join(f"{fault}: {words}" for fault, words in firewall.obstacles.items())
            wanted.say(f"no such faults between engines, others are drawn: {why}")
        engines = _engines(wanted, folder, secrets, proxies, firewall)
        for engine in engines:
            stack.callback(engine.kill)
        wanted.say(f"starting {len(engines)} engines ({wanted.kind})")
        await asyncio.gather(*(engine.start(session) for engine in engines))
        router = await stack.enter_async_context(_router(folder, secrets, engines[0], wanted))
        driver = Driver(wanted, ledger, engines, router, session, firewall)
        stack.push_async_callback(driver.give_up_starting)
        driver.show()
        await driver.router_serves()
        yield driver


def _engines(
    wanted: Wanted, folder: Path, secrets: Secrets, proxies: Sequence[Proxy], firewall: Firewall | None
) -> list[Engine]:
    if firewall is None:
        return [StubProcess(f"e{n}", folder, proxy) for n, proxy in enumerate(proxies)]
    VllmEngine.python, VllmEngine.weights = ensure_venv(wanted.say), ensure_model(wanted.say)
    VllmEngine.secrets = secrets
    engines = [VllmEngine(f"e{n}", folder, proxy, firewall.address(n)) for n, proxy in enumerate(proxies)]
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

    def __init__(  # noqa: PLR0917 - what `running` made
        self,
        wanted: Wanted,
        ledger: Ledger,
        engines: list[Engine],
        router: Router,
        session: aiohttp.ClientSession,
        firewall: Firewall | None,
    ) -> None:
        self.wanted, self.ledger, self.engines, self.router, self.session = wanted, ledger, engines, router, session
        self.clients: Clients
        self.away: set[str] = set()  # replicas that routers do not see
        self.leaving: dict[str, float] = {}  # replica -> seconds of the epoch
        self.ways: str | None = None  # "carry" or "refill": what the router does where it can
        self._firewall = firewall
        self._starting: dict[Engine, asyncio.Task[None]] = {}
        self._turn = 0  # whose it is to leave
        self._leaks = Leaks(ledger)
        self._loads = Loads(ledger, engines[0].folder)
        self._counted: Counter[tuple[str, str]] = Counter()
        self._since = time.monotonic()  # seconds are counted from here

    async def record(self) -> None:
        """Learn the uninterrupted answers that clients compare with."""
        wanted, model = self.wanted, self.engines[0].model
        wanted.say(f"recording the uninterrupted answers of {wanted.streams} requests")
        cases = await record(self.session, self.router.url, wanted.streams, wanted.tokens, model)
        self.clients = Clients(self.router.url, cases, self.ledger, wanted.streams)

    async def go_on(self) -> None:
        """Interrupt until there are enough."""
        possible = BETWEEN_ENGINES & (frozenset() if self._firewall is None else self._firewall.possible)
        self.clients.begin()
        self._since = time.monotonic()
        try:
            while self.ledger.interruptions < self.wanted.interruptions:
                number, seed = self.ledger.interruptions, self.wanted.seed
                kills = self.wanted.kills if number >= self.wanted.calm else 0.0
                await self._interrupt(draw(number, kills=kills, seed=seed, between_engines=possible))
                self.ledger.interruptions += 1
                done = self.ledger.interruptions
                every = self.wanted.check_every * (1 if done <= self.wanted.calm else _SELDOM)
                if done % every == 0 and done < self.wanted.interruptions:
                    await self._look_for_leaks()
                    self.clients.begin()
                await self._save()
        except BaseException:
            self.clients.give_up()
            raise
        await self._look_for_leaks()
        await self._save()

    async def give_up_starting(self) -> None:
        """Wait no more for engines that were on their way back."""
        for task in self._starting.values():
            task.cancel()
        await asyncio.gather(*self._starting.values(), return_exceptions=True)

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
        source, target = await self._pair()
        notice = min(it.notice_s, self.wanted.longest_notice_s)
        self.clients.context = f"{it.number}: {notice:g} s, {it.end}, {it.fault}"
        await self._until_busy()
        self.ledger.notices[f"{it.notice_s:g}"] += 1
        self.ledger.ends[it.end.value] += 1
        self.ledger.faults[it.fault.value] += 1
        if notice:
            self.leaving[source.replica] = time.time() + notice
            self.show()
        killed: set[Engine] = set()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._go_wrong(it, source, target, notice))
            group.create_task(self._end(it, source, target, notice, killed))
        for engine in killed:
            self._starting[engine] = asyncio.create_task(self._start_again(engine))
        if source not in killed:
            self._come_back(source)
        await asyncio.sleep(it.pause_s)

    async def _pair(self) -> tuple[Engine, Engine]:
        """Return who leaves and who is killed in its place, by turns; wait until two are there."""
        await self._started(asyncio.sleep(0))
        while len(ready := [each for each in self.engines if each not in self._starting]) < 2:
            await self._started(asyncio.wait(self._starting.values(), return_when=asyncio.FIRST_COMPLETED))
        self._turn += 1
        order = self.engines[self._turn % len(self.engines) :] + self.engines[: self._turn % len(self.engines)]
        source, target, *_ = [each for each in order if each in ready]
        return source, target

    async def _go_wrong(self, it: Interruption, source: Engine, target: Engine, notice: float) -> None:
        if it.fault is Fault.NONE:
            return
        await asyncio.sleep(it.fault_at * notice)
        lasts = min(it.fault_s, self.wanted.longest_fault_s)
        on = target if it.fault_on_target else source
        if it.fault in BETWEEN_ENGINES:
            assert self._firewall is not None
            self._firewall.make(it.fault, source.kv_host)  # others read there
            await asyncio.sleep(lasts)
            self._firewall.mend()
        elif it.fault is Fault.RESET:
            on.proxy.reset()
        elif it.fault is Fault.FREEZE:
            on.freeze()
            await asyncio.sleep(lasts)
            on.thaw()
        else:
            on.proxy.set(_MODES[it.fault])
            await asyncio.sleep(lasts)
            on.proxy.set(Mode.REFUSE if on.replica in self.away else Mode.PASS)

    async def _end(self, it: Interruption, source: Engine, target: Engine, notice: float, killed: set[Engine]) -> None:
        async def kill(at_s: float) -> None:
            await asyncio.sleep(at_s)
            victim = target if it.end is End.TARGET_KILL else source
            victim.kill()
            killed.add(victim)
            self.ledger.sigkills += 1

        async def gone(engine: Engine, at_s: float) -> None:
            await asyncio.sleep(at_s)
            engine.proxy.set(Mode.REFUSE)
            self.away.add(engine.replica)
            await asyncio.sleep(it.late_s)  # a watch tells later than the connections do
            self.leaving.pop(engine.replica, None)
            self.show()

        kill_at_s = it.kill_at_s(notice)
        async with asyncio.TaskGroup() as group:
            group.create_task(gone(source, notice))
            if kill_at_s is not None:
                group.create_task(kill(kill_at_s))
            if it.end is End.TARGET_KILL and kill_at_s is not None:
                group.create_task(gone(target, max(notice, kill_at_s)))

    async def _start_again(self, engine: Engine) -> None:
        await engine.start(self.session)
        self._come_back(engine)

    async def _started(self, waiting: Awaitable[object]) -> None:
        """Wait, then forget who is back since; that one could not be started is raised here."""
        await waiting
        for engine in [each for each, task in self._starting.items() if task.done()]:
            await self._starting.pop(engine)

    def _come_back(self, engine: Engine) -> None:
        """Let it be a new replica. What it still holds of before is looked at when all is quiet."""
        self.away.discard(engine.replica)
        engine.life += 1
        engine.proxy.set(Mode.PASS)
        self.show()

    async def _until_busy(self) -> None:
        """Wait until most clients have a stream under way, and tokens came since the last time: streams get on."""
        before, clients = self.clients.received, self.clients
        for _ in range(600):
            if clients.under_way * 2 >= clients.number and clients.received - before >= clients.number:
                return
            await asyncio.sleep(0.05)

    # Leaks, and the ledger

    async def _look_for_leaks(self) -> None:
        self.wanted.say("waiting until all is quiet")
        await self.clients.finish()
        if self._starting:
            await self._started(asyncio.wait(self._starting.values()))
        await self._leaks.look(self.session, self.router.process.pid, self.engines, self.wanted.idle_s)

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
        self._loads.read()
        now = time.monotonic()
        self.ledger.seconds += now - self._since
        self._since = now
        ledgers.save(self.wanted.state, self.wanted.kind, self.ledger)
        found = self.ledger
        self.wanted.say(
            f"{found.interruptions} interruptions ({found.sigkills} SIGKILLs) in {found.seconds:.0f} s, "
            f"{found.streams} streams, "
            f"{found.tokens} tokens: {found.broken} broken, {found.lost} lost, {found.duplicated} duplicated, "
            f"{found.differing} differing"
        )
