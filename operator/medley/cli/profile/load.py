"""Requests to an OpenAI endpoint: open loop, Poisson, token counts exact; used by `medley profile measure`.

Prompts are token ids drawn at random, so that a prefix cache finds nothing and their length is exact; the number of
output tokens is fixed by `ignore_eos`, as vLLM has it, and checked against the endpoint's own `usage`.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from medley.core.errors import EngineError, InvalidInputError
from medley.planning.measuring import Cell, Sample

_DONE = b"[DONE]"
_PREFIX = b"data:"
_CACHE_CONFIG = "vllm:cache_config_info{"
_HTTP_OK = 200
_LONGEST_LINE = 2**22


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to send requests, and which tokens to send. `token_ids`: smallest and largest id of prompts."""

    url: str
    model: str
    token_ids: tuple[int, int] = (100, 2000)


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to test each rate. `warm_up`, `requests`: counts; `most_waiting`: requests that may be on the way."""

    requests: int
    warm_up: int
    most_waiting: int
    timeout_s: float
    seed: int = 0


@asynccontextmanager
async def session(api_key: str | None) -> AsyncIterator[aiohttp.ClientSession]:
    """Yield a session without limits of its own: a queue in the client would hide one in the engine."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        headers=headers, connector=connector, timeout=aiohttp.ClientTimeout(total=None), read_bufsize=_LONGEST_LINE
    ) as opened:
        yield opened


async def served(http: aiohttp.ClientSession, url: str, model: str | None) -> tuple[str, int | None]:
    """Return the model's name and its longest request, from /v1/models; None: the endpoint does not say."""
    try:
        async with http.get(f"{url}/v1/models") as reply:
            if reply.status != _HTTP_OK:
                raise EngineError(f"asking {url}/v1/models: HTTP {reply.status}: {(await reply.text())[:300]}")
            listed = (await reply.json()).get("data", [])
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise EngineError(f"asking {url}/v1/models: {error}") from error
    names = [str(each.get("id")) for each in listed]
    if model is None and len(names) != 1:
        raise InvalidInputError("--model", f"the endpoint serves {', '.join(names) or 'none'}: name one")
    chosen = model if model is not None else names[0]
    if chosen not in names:
        raise InvalidInputError("--served-as", f"the endpoint serves {', '.join(names)}, not {chosen}")
    longest = listed[names.index(chosen)].get("max_model_len")
    return chosen, int(longest) if longest else None


async def kv_tokens(http: aiohttp.ClientSession, url: str) -> int | None:
    """Return the tokens of KV cache that a vLLM endpoint reports in /metrics; None: it does not say."""
    try:
        async with http.get(f"{url}/metrics") as reply:
            text = await reply.text() if reply.status == _HTTP_OK else ""
    except (aiohttp.ClientError, OSError):
        return None
    for line in text.splitlines():
        if line.startswith(_CACHE_CONFIG):
            labels = dict(
                part.split("=", 1) for part in line.partition("{")[2].rpartition("}")[0].split(",") if "=" in part
            )
            size, number = (labels.get(name, "").strip('"') for name in ("block_size", "num_gpu_blocks"))
            if size.isdigit() and number.isdigit():
                return int(size) * int(number)
    return None


def gaps(cell: Cell, seed: int) -> Iterator[float]:
    """Yield the seconds between arrivals of a Poisson process: the same for the same cell and seed."""
    chance = random.Random(f"{seed} {cell}")  # noqa: S311  # not for secrets
    while True:
        yield chance.expovariate(cell.requests_per_second)


async def alone(
    http: aiohttp.ClientSession, endpoint: Endpoint, cell: Cell, effort: Effort, *, times: int = 3
) -> float:
    """Return the seconds that a request of a size takes with nothing else running: the shortest of some, one by one.

    Raises EngineError with the endpoint's words if one fails.
    """
    chance = random.Random(f"{effort.seed} alone {cell}")  # noqa: S311  # not for secrets
    clock = asyncio.get_running_loop().time
    spent: list[float] = []
    for _ in range(times):
        prompt = _prompt(chance, endpoint, cell)
        sample = await _request(http, endpoint, cell, prompt, due=clock(), timeout_s=effort.timeout_s)
        if sample.failure is not None or sample.last_s is None:
            raise EngineError(f"a request of {cell.input_tokens} + {cell.output_tokens} tokens: {sample.failure}")
        spent.append(sample.last_s - sample.arrived_s)
    return min(spent)


async def under_load(
    http: aiohttp.ClientSession,
    endpoint: Endpoint,
    cell: Cell,
    effort: Effort,
    *,
    done_one: Callable[[], None] = lambda: None,
) -> tuple[list[Sample], bool]:
    """Send requests of a size at a rate; return the measured ones, and whether it stopped since they piled up.

    Requests are sent when they are due, whatever became of the others. Those of the warm-up are not measured, and more
    keep coming until the last measured one is done, so that it too had company. `done_one`: called for each measured.
    """
    clock = asyncio.get_running_loop().time
    chance = random.Random(f"{effort.seed} prompts {cell}")  # noqa: S311  # not for secrets
    under_way: set[asyncio.Task[Sample]] = set()
    measured: list[asyncio.Task[Sample]] = []
    due, number, piled_up = clock(), 0, False
    try:
        for gap in gaps(cell, effort.seed):
            due += gap
            last = effort.warm_up + effort.requests
            if number >= last and await _all_done(measured, due, clock()):
                break
            if len(under_way) >= effort.most_waiting:
                piled_up = True
                break
            await asyncio.sleep(max(0.0, due - clock()))
            prompt = _prompt(chance, endpoint, cell)
            task = asyncio.create_task(_request(http, endpoint, cell, prompt, due=due, timeout_s=effort.timeout_s))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            if effort.warm_up <= number < last:
                measured.append(task)
                task.add_done_callback(lambda _: done_one())
            number += 1
    finally:
        left = set(under_way)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
    done = [task.result() for task in measured if task.done() and not task.cancelled()]
    return done, piled_up


async def _all_done(measured: list[asyncio.Task[Sample]], due: float, now: float) -> bool:
    """Wait for the measured requests until the next one is due; say whether they are done."""
    pending = [task for task in measured if not task.done()]
    if pending:
        await asyncio.wait(pending, timeout=max(0.0, due - now))
    return all(task.done() for task in measured)


def _prompt(chance: random.Random, endpoint: Endpoint, cell: Cell) -> list[int]:
    return chance.choices(range(endpoint.token_ids[0], endpoint.token_ids[1] + 1), k=cell.input_tokens)


async def _request(
    http: aiohttp.ClientSession, endpoint: Endpoint, cell: Cell, prompt: list[int], *, due: float, timeout_s: float
) -> Sample:
    body = {
        "model": endpoint.model,
        "prompt": prompt,
        "max_tokens": cell.output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sample = Sample(due)
    try:
        async with asyncio.timeout(timeout_s), http.post(f"{endpoint.url}/v1/completions", json=body) as reply:
            if reply.status != _HTTP_OK:
                return replace(sample, failure=f"HTTP {reply.status}: {(await reply.text())[:300]}")
            return await _read(reply, cell, sample)
    except TimeoutError:
        return replace(sample, failure=f"not done after {timeout_s:g} s")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return replace(sample, failure=f"{type(error).__name__}: {error}")


async def _read(reply: aiohttp.ClientResponse, cell: Cell, sample: Sample) -> Sample:
    clock = asyncio.get_running_loop().time
    usage: dict[str, Any] | None = None
    async for raw in reply.content:
        line = raw.strip()
        if not line.startswith(_PREFIX):
            continue
        data = line[len(_PREFIX) :].strip()
        if data == _DONE:
            break
        chunk = json.loads(data)
        if "error" in chunk:
            return replace(sample, failure=str(chunk["error"])[:300])
        if chunk.get("choices"):
            now = clock()
            sample = replace(sample, first_s=now if sample.first_s is None else sample.first_s, last_s=now)
        usage = chunk.get("usage") or usage
    if usage is None:
        return replace(sample, failure="the endpoint reports no usage: it ignores stream_options.include_usage")
    counted = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    if counted != (cell.input_tokens, cell.output_tokens):
        return replace(
            sample,
            failure=f"asked for {cell.input_tokens} + {cell.output_tokens} tokens, the endpoint counted "
            f"{counted[0]} + {counted[1]}: it does not take token ids, or does not keep ignore_eos",
        )
    return replace(sample, output_tokens=cell.output_tokens)
