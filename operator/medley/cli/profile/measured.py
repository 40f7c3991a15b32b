"""`medley profile measure`: tests an endpoint over sizes and rates and writes a PerformanceProfile.

Rates of a size rise until it is saturated, or through a list; what was found is kept in a file of state line by line,
and a run that was stopped goes on where it was.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from medley.cli import terminal
from medley.cli.profile import load
from medley.cli.profile.load import Effort, Endpoint
from medley.cli.profile.manifest import Subject, manifest, written
from medley.cli.profile.state import Size, State
from medley.core.errors import EngineError, InvalidInputError
from medley.core.profiles import Confidence, ProfileSource
from medley.planning.measuring import Cell, Outcome, next_rate, outcome

_MOST_RATES = 24  # of one size: 1.5 ** 24 is a factor of 17,000
# Requests per point from which its 99.5th percentile, and its 95th, are more than luck.
_SURE, _FAIR = 400, 100
_TABLE_PERCENTILES = (50.0, 99.0)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person asked for. `rates` empty: rising from a fifth of what one after the other would do."""

    url: str
    model: str | None  # as the profile names it; None: as the endpoint does
    served_as: str | None
    accelerator_class: str
    tensor_parallel: int
    pipeline_parallel: int
    max_model_len: int | None
    max_running: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    rates: tuple[float, ...]
    growth: float
    effort: Effort
    token_ids: tuple[int, int]
    state: Path | None
    out: Path | None
    api_key: str | None = None


def run(asked: Asked) -> int:
    """Measure, print what was found, and write the manifest. Raises InvalidInputError, EngineError."""
    return asyncio.run(_run(asked, terminal.aside()))


async def _run(asked: Asked, console: Console) -> int:
    url = asked.url.rstrip("/").removesuffix("/v1")
    async with load.session(asked.api_key) as http:
        served_as, offered = await load.served(http, url, asked.served_as)
        longest = asked.max_model_len or offered
        if longest is None:
            raise InvalidInputError("--max-model-len", "the endpoint does not say how long requests may be: say it")
        endpoint = Endpoint(url, served_as, asked.token_ids)
        state = State.opened(asked.state, _about(asked, served_as))
        sizes = _fitting(asked, longest, console)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            for number, size in enumerate(sizes, start=1):
                await _one_size(_Test(http, endpoint, asked, state, progress, f"size {number} of {len(sizes)}"), size)
        held = await load.kv_tokens(http, url)
    show(state, console)
    found = [each.point for size in sorted(state.outcomes) for each in state.outcomes[size]]
    points = [point for point in found if point is not None]
    if not points:
        raise EngineError(f"no rate was sustained with enough requests at {url}: give --rates lower ones")
    subject = Subject(
        asked.model or served_as,
        asked.accelerator_class,
        longest,
        asked.max_running,
        asked.tensor_parallel,
        asked.pipeline_parallel,
    )
    document = manifest(
        subject,
        ProfileSource.MEASURED,
        measured_at=state.last_at,
        confidence=_confidence(asked.effort.requests),
        points=points,
    )
    sys.stdout.write(written(document, asked.out, note=_note(asked, url, held)))
    return 0


def _fitting(asked: Asked, longest: int, console: Console) -> list[Size]:
    """Return the sizes that the endpoint serves, and name the others."""
    fitting: list[Size] = []
    for size in ((inputs, outputs) for inputs in asked.inputs for outputs in asked.outputs):
        if sum(size) <= longest:
            fitting.append(size)
        else:
            console.print(f"{size[0]} + {size[1]} tokens are longer than the {longest} that it serves: left out")
    if not fitting:
        raise InvalidInputError("--inputs", f"no size fits the {longest} tokens that the endpoint serves")
    return fitting


@dataclass(frozen=True, slots=True)
class _Test:
    http: aiohttp.ClientSession
    endpoint: Endpoint
    asked: Asked
    state: State
    progress: Progress
    title: str


async def _one_size(test: _Test, size: Size) -> None:
    asked, state = test.asked, test.state
    if size not in state.alone_s:
        state.add_alone(size, await load.alone(test.http, test.endpoint, Cell(*size, 1.0), asked.effort))
    while (rate := _next(asked, state, size)) is not None:
        cell = Cell(*size, rate)
        title = f"{test.title}: {size[0]} + {size[1]} tokens at {rate:g} requests/s"
        task = test.progress.add_task(title, total=asked.effort.requests)
        samples, piled_up = await load.under_load(
            test.http, test.endpoint, cell, asked.effort, done_one=partial(test.progress.advance, task)
        )
        test.progress.remove_task(task)
        found = outcome(cell, samples, aborted=piled_up)
        if samples and found.failures == len(samples):
            raise EngineError(f"all requests of {size[0]} + {size[1]} tokens failed: {samples[0].failure}")
        state.add(found, datetime.now(UTC))


def _next(asked: Asked, state: State, size: Size) -> float | None:
    """Return the next rate of a size; None: done."""
    done = state.outcomes.get(size, [])
    if not asked.rates:
        return next_rate(done, state.alone_s[size], growth=asked.growth) if len(done) < _MOST_RATES else None
    if any(each.saturated for each in done):
        return None
    tried = {each.cell.requests_per_second for each in done}
    return next((rate for rate in sorted(asked.rates) if rate not in tried), None)


def _about(asked: Asked, served_as: str) -> Mapping[str, Any]:
    """Return what must be the same when a measurement is taken up again; sizes and rates may be added."""
    return {
        "measurement": "medley profile measure",
        "url": asked.url,
        "model": served_as,
        "requests": asked.effort.requests,
        "warmUp": asked.effort.warm_up,
        "seed": asked.effort.seed,
        "tokenIds": list(asked.token_ids),
    }


def _confidence(requests: int) -> Confidence:
    return Confidence.HIGH if requests >= _SURE else Confidence.MEDIUM if requests >= _FAIR else Confidence.LOW


def _note(asked: Asked, url: str, held: int | None) -> str:
    note = (
        f"Measured by medley profile measure at {url}: Poisson arrivals, {asked.effort.requests} requests per point\n"
        f"after {asked.effort.warm_up} of warm-up, random prompts, exact token counts."
    )
    return note + (f"\nThe engine reports {held} tokens of KV cache." if held is not None else "")


def show(state: State, console: Console) -> None:
    """Print what was found."""
    table = Table("INPUT", "OUTPUT", "RATE /s", "REQUESTS", "FAILED", box=None)
    for percentile in _TABLE_PERCENTILES:
        table.add_column(f"TTFT p{percentile:g}", justify="right")
        table.add_column(f"TPOT p{percentile:g}", justify="right")
    for size in sorted(state.outcomes):
        for each in sorted(state.outcomes[size], key=lambda found: found.cell.requests_per_second):
            table.add_row(*(str(value) for value in size), f"{each.cell.requests_per_second:g}", *_row(each))
    console.print(table)


def _row(each: Outcome) -> Sequence[str]:
    counts = (str(each.requests), str(each.failures))
    if each.saturated:
        return (*counts, "saturated")
    at = {latency.percentile: latency for latency in each.latencies}
    cells: list[str] = []
    for percentile in _TABLE_PERCENTILES:
        latency = at.get(percentile)
        cells += ["", ""] if latency is None else [_ms(latency.ttft.total_seconds()), _ms(latency.tpot.total_seconds())]
    return (*counts, *cells)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"
