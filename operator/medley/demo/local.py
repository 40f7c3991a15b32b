"""`medley demo --local`: two real engines and a router as plain processes; one engine is killed under load.

Called by `app.run_demo`. The proof is in the tokens: the model's greedy output depends on every token before it, and
each stream is compared with a run that nothing interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from medley.core.errors import MedleyError
from medley.demo.model import ensure_model
from medley.demo.processes import SERVED_NAME, Process, Processes, processes
from medley.demo.vllm_venv import ensure_venv

# Two engines agree in fp32 wherever the best token leads by more than rounding; prompts that come nearer to a tie in
# their reference run are left out.
SMALLEST_GAP = 1e-4
_WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "to", "far", "hills")
_TOKENS_BEFORE_THE_KILL = 8


@dataclass(frozen=True, slots=True)
class Reference:
    """A prompt and the tokens of an uninterrupted run; bytes of each as hex, which tells any two tokens apart."""

    prompt: str
    tokens: tuple[str, ...]


@dataclass(slots=True)
class Stream:
    """What one client got."""

    reference: Reference
    tokens: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)  # it has enough tokens, or has failed

    @property
    def complete(self) -> bool:
        """Whether it ended as it should."""
        return self.error is None and self.finish_reason is not None

    @property
    def identical(self) -> bool:
        """Whether it has the tokens of the uninterrupted run, each once."""
        return tuple(self.tokens) == self.reference.tokens

    @property
    def longest_pause(self) -> float:
        """Seconds between two tokens at most."""
        return max((b - a for a, b in zip(self.times, self.times[1:], strict=False)), default=0.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demonstration showed."""

    streams: tuple[Stream, ...]
    resumed: int
    seconds_to_start: float

    @property
    def proven(self) -> bool:
        """Whether streams were moved and none lost anything."""
        return self.resumed > 0 and all(each.complete and each.identical for each in self.streams)


def run_demo(arguments: Sequence[str]) -> int:
    """Show it; 0 only if streams were moved, none broke and all are token-identical."""
    parser = argparse.ArgumentParser(prog="medley demo")
    parser.add_argument("--local", action="store_true", help="two engines and a router as processes of this machine")
    parser.add_argument("--streams", type=int, default=8, help="concurrent client streams")
    parser.add_argument("--tokens", type=int, default=160, help="tokens per stream")
    given = parser.parse_args(arguments)
    console = Console()
    if not given.local:
        console.print("The whole story on a real cluster is [b]make demo[/b] in a checkout; here is [b]--local[/b].")
        return 2
    if given.streams < 1 or given.tokens <= _TOKENS_BEFORE_THE_KILL:
        console.print(f"--streams: at least 1; --tokens: more than {_TOKENS_BEFORE_THE_KILL}")
        return 2
    try:
        outcome = asyncio.run(_demonstrate(console, given.streams, given.tokens))
    except MedleyError as error:
        console.print(f"[red]{error}[/red]")
        return 1
    console.print(_table(outcome))
    return 0 if outcome.proven else 1


async def _demonstrate(console: Console, streams: int, tokens: int) -> Outcome:
    python, model = ensure_venv(console.print), ensure_model(console.print)
    with tempfile.TemporaryDirectory(prefix="medley-demo-") as folder, processes(Path(folder)) as started:
        with console.status("starting two vLLM engines and a router (about a minute on two cores)"):
            begun = time.monotonic()
            engines, router = await start(started, python, model)
            ready = time.monotonic() - begun
        console.print(
            f"ready after {ready:.0f} s: engines at {', '.join(e.url for e in engines)}, router at {router.url}/v1"
        )
        with console.status(f"recording {streams} uninterrupted runs of {tokens} tokens"):
            references = await record(router, streams, tokens)
        console.print(
            f"{streams} client streams; with {_TOKENS_BEFORE_THE_KILL} tokens on the first, the busier engine is killed"
        )
        with console.status("streaming"):
            result = await interrupted(router, engines, references, tokens)
        resumed = await resumes(router)
        return Outcome(tuple(result), resumed, ready)


async def start(started: Processes, python: Path, model: Path) -> tuple[list[Process], Process]:
    """Start two engines at once and a router over them; return when a request can be served."""
    engines = [started.start_engine(f"engine-{n}", python, model) for n in range(2)]
    router = started.start_router(engines, model / "tokenizer.json")
    await asyncio.gather(*(engine.wait_until_it_answers("/health") for engine in engines))
    await router.wait_until_it_answers("/ready")
    await asyncio.sleep(1.5)  # one more of the router's probes: both engines are in
    return engines, router


async def record(router: Process, wanted: int, tokens: int) -> list[Reference]:
    """Run prompts uninterrupted and keep as many as wanted that never come near a tie."""
    chance = random.Random(7)  # noqa: S311  # prompts, no secret
    kept: list[Reference] = []
    async with _session() as session:
        while len(kept) < wanted:
            prompts = [" ".join(chance.choices(_WORDS, k=chance.randint(10, 60))) for _ in range(wanted - len(kept))]
            kept += [r for r in await asyncio.gather(*(_record(session, router, p, tokens) for p in prompts)) if r]
    return kept


async def interrupted(
    router: Process, engines: Sequence[Process], references: Sequence[Reference], tokens: int
) -> list[Stream]:
    """Stream all references at once and, as soon as one is under way, kill the engine that runs the most of them.

    As soon as *one* is: an engine that gets little of the CPU begins late, and the streams of the other have ended by
    the time that all have begun.
    """
    streams = [Stream(each) for each in references]
    async with _session() as session, asyncio.TaskGroup() as group:
        running = [group.create_task(_read(session, router, stream, tokens)) for stream in streams]
        begun = [asyncio.create_task(stream.begun.wait()) for stream in streams]
        await asyncio.wait(begun, return_when=asyncio.FIRST_COMPLETED)
        at = await _sum_of(session, router, "medley_router_running", by="replica")
        max(engines, key=lambda engine: at.get(engine.url, 0.0)).kill()
        await asyncio.gather(*running, *begun)
    return streams


async def resumes(router: Process) -> int:
    """Return how many times the router took a stream to another engine."""
    async with _session() as session:
        return round(sum((await _sum_of(session, router, "medley_router_resumes_total", by="cause")).values()))


async def _sum_of(session: aiohttp.ClientSession, router: Process, metric: str, *, by: str) -> dict[str, float]:
    async with session.get(f"{router.url}/metrics") as response:
        families = text_string_to_metric_families(await response.text())
    sums: dict[str, float] = {}
    for sample in (each for family in families for each in family.samples if each.name == metric):
        sums[sample.labels[by]] = sums.get(sample.labels[by], 0.0) + sample.value
    return sums


async def _record(session: aiohttp.ClientSession, router: Process, prompt: str, tokens: int) -> Reference | None:
    async with session.post(f"{router.url}/v1/chat/completions", json=_body(prompt, tokens, stream=False)) as response:
        answer = await response.json()
        if not response.ok:
            raise MedleyError(f"recording a reference: {answer}")
    content = answer["choices"][0]["logprobs"]["content"]
    gaps = [abs(each["top_logprobs"][0]["logprob"] - each["top_logprobs"][1]["logprob"]) for each in content]
    if min(gaps) < SMALLEST_GAP:
        return None
    return Reference(prompt, tuple(bytes(each["bytes"]).hex() for each in content))


async def _read(session: aiohttp.ClientSession, router: Process, stream: Stream, tokens: int) -> None:
    body = _body(stream.reference.prompt, tokens, stream=True)
    try:
        async with session.post(f"{router.url}/v1/chat/completions", json=body) as response:
            async for event in _events(response):
                if "error" in event:
                    stream.error = str(event["error"])
                    return
                choice = event["choices"][0]
                stream.finish_reason = choice["finish_reason"] or stream.finish_reason
                for each in (choice["logprobs"] or {}).get("content", ()):
                    stream.tokens.append(bytes(each["bytes"]).hex())
                    stream.times.append(time.monotonic())
                if len(stream.tokens) >= _TOKENS_BEFORE_THE_KILL:
                    stream.begun.set()
    except (aiohttp.ClientError, OSError) as error:
        stream.error = f"{type(error).__name__}: {error}"
    finally:
        stream.begun.set()


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in response.content:
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            yield json.loads(line[6:])


def _body(prompt: str, tokens: int, *, stream: bool) -> dict[str, Any]:
    return {
        "model": SERVED_NAME,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 2,
        "stream": stream,
    }


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600), connector=aiohttp.TCPConnector(limit=0))


def _table(outcome: Outcome) -> Table:
    streams = outcome.streams
    pauses = sorted(stream.longest_pause for stream in streams)
    table = Table(title="one of two engines killed under load", show_header=False)
    for what, value in (
        ("streams", f"{len(streams)}"),
        ("tokens", f"{sum(len(stream.tokens) for stream in streams)}"),
        ("moved to the other engine", f"{outcome.resumed}"),
        ("broken", f"{sum(not stream.complete for stream in streams)}"),
        ("token-identical to an uninterrupted run", f"{sum(stream.identical for stream in streams)} of {len(streams)}"),
        ("longest pause in a stream, median", f"{pauses[len(pauses) // 2] * 1000:.0f} ms"),
        ("longest pause in a stream, most", f"{pauses[-1] * 1000:.0f} ms"),
        ("verdict", "[green]nothing was lost[/green]" if outcome.proven else "[red]not proven[/red]"),
    ):
        table.add_row(what, value)
    return table
