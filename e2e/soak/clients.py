"""Clients of the soak: each streams one prompt after another and compares every token with the uninterrupted answer."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from e2e.soak.ledger import Difference, Ledger, difference

# Engines agree in fp32 wherever the best token leads by more than rounding.
SMALLEST_GAP = 1e-4
_WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "to", "far", "hills")
_SLOW_EVERY = 6  # one client of so many
_SLOW_PAUSE_S = 0.05  # between two small reads
_SLOW_BYTES = 512
_PATIENCE_S = 900.0  # of a client; the router gives a request up before


@dataclass(frozen=True, slots=True)
class Case:
    """A request and its uninterrupted answer; a token is its bytes in hex, which tells any two apart."""

    body: dict[str, Any]
    tokens: tuple[str, ...]


def requests(count: int, tokens: int, model: str, seed: int = 7) -> list[dict[str, Any]]:
    """Return bodies of different lengths; every third with penalties, which depend on all tokens so far."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        prompt = " ".join(chance.choices(_WORDS, k=chance.randint(5, 120)))
        penalties = {"presence_penalty": 0.7, "frequency_penalty": 0.3} if number % 3 == 2 else {}
        made.append({
            "model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "ignore_eos": True,
            "max_tokens": chance.randint(tokens // 2, tokens), "logprobs": True, "top_logprobs": 2, **penalties,
        })  # fmt: skip
    return made


async def record(session: aiohttp.ClientSession, url: str, wanted: int, tokens: int, model: str) -> list[Case]:
    """Ask for answers while nothing is interrupted, twice each, and keep those that agree and come near no tie."""
    bodies = requests(3 * wanted, tokens, model)
    cases: list[Case] = []
    for start in range(0, len(bodies), wanted):
        some = bodies[start : start + wanted]
        first, second = [await asyncio.gather(*(_asked(session, url, body) for body in some)) for _ in range(2)]
        cases += [Case(body, one) for body, one, other in zip(some, first, second, strict=True) if one and one == other]
        if 2 * len(cases) >= wanted:  # some come near a tie; that two clients ask the same is no harm
            break
    if not cases:
        raise AssertionError("no answer was the same twice: nothing can be compared")
    return cases[:wanted]


async def _asked(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[str, ...]:
    async with session.post(f"{url}/v1/chat/completions", json={**body, "stream": False}) as answer:
        said = await answer.json()
        if answer.status != 200:
            raise AssertionError(f"recording a reference: {said}")
    content = said["choices"][0]["logprobs"]["content"]
    gaps = [abs(each["top_logprobs"][0]["logprob"] - each["top_logprobs"][1]["logprob"]) for each in content]
    return tuple(bytes(each["bytes"]).hex() for each in content) if min(gaps) >= SMALLEST_GAP else ()


@dataclass(slots=True)
class Clients:
    """So many streams at once, for as long as they are wanted."""

    url: str
    cases: Sequence[Case]
    ledger: Ledger
    number: int
    under_way: int = 0
    received: int = 0  # tokens, of all
    stopping: bool = False
    context: str = ""  # the interruption that runs: for failures
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def begin(self) -> None:
        """Start them."""
        self.stopping = False
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(self.number)]

    async def finish(self) -> None:
        """Let each end the stream that it has."""
        self.stopping = True
        await asyncio.gather(*self._tasks)

    def give_up(self) -> None:
        """Let none end the stream that it has."""
        for task in self._tasks:
            task.cancel()

    async def _client(self, number: int) -> None:
        slow = number % _SLOW_EVERY == 0
        chance = random.Random(number)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_PATIENCE_S), read_bufsize=4096) as session:
            while not self.stopping:
                await self._stream(session, chance.choice(self.cases), slow=slow)

    async def _stream(self, session: aiohttp.ClientSession, case: Case, *, slow: bool) -> None:
        got: list[str] = []
        self.under_way += 1
        begun = self.context
        error = "ended without [DONE]"
        try:
            async with session.post(f"{self.url}/v1/chat/completions", json={**case.body, "stream": True}) as answer:
                async for event in _events(answer, slow=slow):
                    if event == "[DONE]":
                        error = ""
                        break
                    said = json.loads(event)
                    if "error" in said:
                        error = str(said["error"])
                        break
                    before = len(got)
                    for choice in said["choices"]:
                        got += [bytes(each["bytes"]).hex() for each in (choice["logprobs"] or {}).get("content", ())]
                    self.received += len(got) - before
        except (aiohttp.ClientError, TimeoutError, OSError) as broken:
            error = f"{type(broken).__name__}: {broken}"
        finally:
            self.under_way -= 1
        self._count(case, got, error, begun, slow=slow)

    def _count(self, case: Case, got: list[str], error: str, begun: str, *, slow: bool) -> None:
        ledger, found = self.ledger, difference(got, list(case.tokens))
        ledger.streams += 1
        ledger.slow_readers += slow
        ledger.tokens += len(got)
        ledger.broken += bool(error)
        ledger.lost += found.lost
        ledger.duplicated += found.duplicated
        ledger.differing += found.differing
        if error or found != Difference():
            at = next((n for n, (a, b) in enumerate(zip(got, case.tokens, strict=False)) if a != b), len(got))
            ledger.failed(
                f"during [{begun}] to [{self.context}]: {error or 'complete'}; {found}, first at token {at} of "
                f"{len(case.tokens)}; {'penalties' if 'presence_penalty' in case.body else 'greedy'}"
            )


async def _events(answer: aiohttp.ClientResponse, *, slow: bool) -> AsyncIterator[str]:
    """Yield the data of server-sent events; a slow reader takes little at a time."""
    if answer.status != 200:
        raise aiohttp.ClientPayloadError(f"status {answer.status}: {(await answer.text())[:200]}")
    pending = b""
    while piece := await (answer.content.read(_SLOW_BYTES) if slow else answer.content.readany()):
        *events, pending = (pending + piece).split(b"\n\n")
        for event in events:
            yield event.removeprefix(b"data: ").decode()
        if slow:
            await asyncio.sleep(_SLOW_PAUSE_S)
    with suppress(UnicodeDecodeError):
        if pending:
            yield pending.decode()
