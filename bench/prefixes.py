"""What routing by prefixes saves against plain shares: conversations over simulated engines with prefix caches.

The router's own `Fleet` places; "plain" is `planning.routing.place` by shares and running requests alone, as a router
without an index would. Each engine keeps the blocks it computed, the latest of them, and computes only what is missing.
Conversations begin with one of a few system prompts, and each turn repeats all before it.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from heapq import heappop, heappush

from bench.rows import Row
from medley.cli.profile.catalogue import gpu
from medley.core.latency import LatencyModel
from medley.core.workload import Bucket, SizeGrid
from medley.planning.roofline import Dtype, ModelShape, Roofline
from medley.planning.routing import Candidate, RoutingTable, place
from medley.router.attempt import Attempt, Replica
from medley.router.fleet import Fleet, FleetView, Wanted
from medley.router.prefixes import BLOCK_TOKENS, Keys, keys_of
from medley.simulation.engine import Engine, Ledger

LLAMA_3_8B = ModelShape(8.03e9, 32, 4096, 8, 128, Dtype.FP16, Dtype.FP16)
SHAPES = {"l4": (4, 0.4), "a100-80gb": (2, 0.6)}  # replicas and share
SYSTEM_PROMPTS, SYSTEM_TOKENS = 4, 800
CONVERSATIONS_PER_SECOND, SECONDS = 0.6, 600.0
TURNS, TOKENS_ASKED, TOKENS_ANSWERED, SECONDS_BETWEEN = 6, 80, 150, 25.0
CACHED_PART = 0.5  # of the KV memory, that finished requests' blocks still fill
MOST_COMPUTED = 0.6  # of what plain shares compute
MOST_DEVIATION = 0.05  # of the requests of a minute
MOST_MICROSECONDS = 500.0
BUCKET = Bucket(0, 0)
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, order=True)
class Turn:
    """One request."""

    at_s: float
    keys: Keys = field(compare=False)  # of its prompt
    after: Keys = field(compare=False)  # and of its answer
    tokens: int = field(compare=False)
    answer: int = field(compare=False)


@dataclass(slots=True)
class Outcome:
    """What one way of routing came to."""

    computed: int
    first_token_s: list[float]
    deviation: float
    microseconds: float


def measure() -> Iterator[Row]:
    """Serve the same conversations in both ways."""
    turns = _conversations(random.Random(1))
    plain, aware = _served(turns, by_prefix=False), _served(turns, by_prefix=True)
    part = aware.computed / plain.computed
    asked = sum(turn.tokens for turn in turns)
    beside = f"{len(turns)} requests of {asked:,} tokens; plain shares compute {plain.computed:,}"
    met = part <= MOST_COMPUTED
    yield Row("prefixes/prompt tokens computed", part, "x plain", f"<= {MOST_COMPUTED:g}", met, beside)
    for name, quantile in (("p50", 0.5), ("p99", 0.99)):
        ours, theirs = _quantile(aware.first_token_s, quantile), _quantile(plain.first_token_s, quantile)
        yield Row(f"prefixes/TTFT {name}", ours / theirs, "x plain", "<= 1", ours <= theirs, f"{theirs * 1000:.0f} ms")
    bound = f"<= {MOST_DEVIATION:g}"
    met = aware.deviation <= MOST_DEVIATION
    peer = f"plain {plain.deviation:.3f}"
    yield Row("prefixes/a shape's share over a minute, most off", aware.deviation, "of requests", bound, met, peer)
    fast = aware.microseconds <= MOST_MICROSECONDS
    peer = f"plain {plain.microseconds:.0f} us"
    yield Row("prefixes/placing a request", aware.microseconds, "us", f"<= {MOST_MICROSECONDS:g}", fast, peer)


def _conversations(chance: random.Random) -> list[Turn]:
    systems = [[chance.randrange(32_000) for _ in range(SYSTEM_TOKENS)] for _ in range(SYSTEM_PROMPTS)]
    turns, begin = [], 0.0
    while (begin := begin + chance.expovariate(CONVERSATIONS_PER_SECOND)) < SECONDS:
        tokens, at_s = list(chance.choice(systems)), begin
        for _ in range(1 + min(int(chance.expovariate(1 / TURNS)), 4 * TURNS)):
            tokens += [chance.randrange(32_000) for _ in range(1 + int(chance.expovariate(1 / TOKENS_ASKED)))]
            answer = 2 + int(chance.expovariate(1 / TOKENS_ANSWERED))
            keys, length = keys_of(tokens), len(tokens)
            tokens += [chance.randrange(32_000) for _ in range(answer)]
            turns.append(Turn(at_s, keys, keys_of(tokens), length, answer))
            at_s += SECONDS_BETWEEN + chance.expovariate(1 / SECONDS_BETWEEN)
    return sorted(turns)


@cache
def model_of(shape: str) -> LatencyModel:
    """Return Llama-3-8B on one GPU of a kind."""
    return Roofline(gpu(shape), LLAMA_3_8B).linear(max_running=256, max_batched_tokens=2048)


class _Cache:
    """An engine's prefix cache: blocks, those used longest ago go first."""

    def __init__(self, blocks: int) -> None:
        self._blocks, self._most = OrderedDict[int, None](), blocks

    def held(self, keys: Keys) -> int:
        return next((n for n, key in enumerate(keys) if key not in self._blocks), len(keys)) * BLOCK_TOKENS

    def add(self, keys: Keys) -> None:
        for key in reversed(keys):
            self._blocks[key] = None
            self._blocks.move_to_end(key)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)


class _Run:
    """Engines, caches and the router, on one clock."""

    def __init__(self, turns: list[Turn], *, by_prefix: bool) -> None:
        self.turns, self.by_prefix, self.now = turns, by_prefix, 0.0
        self.ledger = Ledger([each.tokens for each in turns], [each.answer for each in turns])
        names = [(f"{shape}-{n}", shape) for shape, (count, _) in SHAPES.items() for n in range(count)]
        self.engines = {name: Engine(model_of(shape), self.ledger) for name, shape in names}
        self.caches = {
            name: _Cache(int(model_of(shape).kv_tokens * CACHED_PART) // BLOCK_TOKENS) for name, shape in names
        }
        self.replicas = {name: Replica(name, "", shape, model_of(shape).max_running) for name, shape in names}
        shares = tuple((shape, share) for shape, (_, share) in SHAPES.items())
        self.table = RoutingTable(SizeGrid((16_000,), (2_000,)), {BUCKET: shares})
        self.fleet = Fleet(clock=lambda: self.now, wall_clock=lambda: EPOCH + timedelta(seconds=self.now))
        self.fleet.replace(FleetView(self.replicas, self.table))
        self.credit: dict[tuple[Bucket, str], float] = {}
        self.running: Counter[str] = Counter()
        self.placed: list[str] = []
        self.attempts: dict[int, Attempt] = {}
        self.boundaries: list[tuple[float, str]] = []
        self.computed, self.seconds = 0, 0.0

    def until(self, at_s: float) -> None:
        while self.boundaries and self.boundaries[0][0] < at_s:
            now, name = heappop(self.boundaries)
            engine = self.engines[name]
            if engine.boundary_s != now:
                continue
            self.now = now
            for request in engine.advance():
                self._end(name, request)
            if engine.boundary_s != math.inf:
                heappush(self.boundaries, (engine.boundary_s, name))

    def arrive(self, request: int) -> None:
        turn = self.turns[request]
        self.now = turn.at_s
        begun = time.process_time()  # its own, so that it holds beside other work
        name = self._aware(request, turn) if self.by_prefix else self._plain()
        self.seconds += time.process_time() - begun
        self.placed.append(self.replicas[name].shape)
        held = min(self.caches[name].held(turn.keys), turn.tokens - 1)
        self.ledger.input_tokens[request] = turn.tokens - held
        self.computed += turn.tokens - held
        self.caches[name].add(turn.keys)
        engine = self.engines[name]
        before = engine.boundary_s
        engine.submit(request, turn.at_s)
        if engine.boundary_s != before:
            heappush(self.boundaries, (engine.boundary_s, name))

    def _aware(self, request: int, turn: Turn) -> str:
        wanted = Wanted(BUCKET, 2000, keys=turn.keys, per_minute=self.fleet.sizes.arrived(BUCKET))
        replica = self.fleet.place(wanted)
        assert replica is not None
        self.attempts[request] = self.fleet.open(replica, wanted)
        return replica.name

    def _plain(self) -> str:
        there = [
            Candidate(name, each.shape, self.running[name], each.max_running) for name, each in self.replicas.items()
        ]
        placement = place(self.table, BUCKET, there, self.credit)
        assert placement is not None
        self.credit = dict(placement.credit)
        self.running[placement.replica] += 1
        return placement.replica

    def _end(self, name: str, request: int) -> None:
        turn = self.turns[request]
        self.caches[name].add(turn.after)
        if self.by_prefix:
            self.fleet.close(self.attempts.pop(request), None)
            self.fleet.sizes.made(BUCKET, turn.answer)
            self.fleet.prefixes.add(name, turn.after)
        else:
            self.running[name] -= 1


def _served(turns: list[Turn], *, by_prefix: bool) -> Outcome:
    run = _Run(turns, by_prefix=by_prefix)
    for request, turn in enumerate(turns):
        run.until(turn.at_s)
        run.arrive(request)
    run.until(math.inf)
    waits = [first - turn.at_s for first, turn in zip(run.ledger.first_token_s, turns, strict=True)]
    return Outcome(run.computed, waits, _deviation(turns, run.placed), 1e6 * run.seconds / len(turns))


def _deviation(turns: list[Turn], placed: list[str]) -> float:
    """Return how far a shape's part of any minute's requests was from its share, at most; whole minutes only."""
    most = 0.0
    for begin in range(0, int(SECONDS), 10):
        minute = [shape for turn, shape in zip(turns, placed, strict=True) if begin <= turn.at_s < begin + 60]
        for shape, (_, share) in SHAPES.items():
            most = max(most, abs(minute.count(shape) / len(minute) - share))
    return most


def _quantile(values: list[float], part: float) -> float:
    return sorted(values)[int(len(values) * part)]
