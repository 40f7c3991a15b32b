"""The whole way on two real vLLM engines: streams through the router, a notice, and every token as if there were none."""

from __future__ import annotations

import asyncio
import math

import pytest
import pytest_asyncio

from e2e.vllm_venv import ensure_venv
from tests.engine.kv.engines import engines, since, unpinned
from tests.model import ensure_model
from tests.router.moving import how, moving, streamed, until

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]

TOKENS, BEGUN, STREAMS = 400, 12, 6
CASES = {
    "greedy": {},
    "seeded": {"temperature": 1.0, "seed": 7},
    "penalties": {"presence_penalty": 1.5, "frequency_penalty": 0.7},
    "regex": {"structured_outputs": {"regex": "(ab|ba|fox)( (the|lazy) [a-z]{3}){60}"}},
    "two choices": {"temperature": 1.0, "seed": 9, "n": 2},
}


def prompt(number: int) -> list[int]:
    return [(7 * i * i + (13 + number) * i + 5 + 11 * number) % 500 + 3 for i in range(1500 + 10 * number)]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stage(tmp_path_factory):
    """Two engines, and a router that sees what `show` says."""
    python, model = await asyncio.to_thread(ensure_venv), await asyncio.to_thread(ensure_model)
    folder = tmp_path_factory.mktemp("moves")
    async with (
        engines(folder, python, model, {"MEDLEY_KV_HOST": "127.0.0.1"}, e0=(), e1=()) as started,
        moving(started, model, folder) as stage,
    ):
        yield stage


async def ask(url: str, number: int, begun: asyncio.Event, **sampling):
    """Return the tokens of each choice, and the finish reasons."""
    body = {"prompt": prompt(number), "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "logprobs": 0}
    tokens: dict[int, list[str]] = {}
    reasons: dict[int, str] = {}
    async for event in streamed(f"{url}/v1/completions", {**body, **sampling, "stream": True}):
        for choice in event["choices"]:
            tokens.setdefault(choice["index"], []).extend((choice["logprobs"] or {}).get("tokens", ()))
            if choice["finish_reason"]:
                reasons[choice["index"]] = choice["finish_reason"]
        if all(len(each) >= BEGUN for each in tokens.values()):
            begun.set()
    return tokens, reasons


async def moved(stage, asked):
    """Ask all on e0, give notice when each has begun; return the answers and what was counted.

    The notice is a part of what the streams still take here and now: they are not to end in time.
    """
    fleet = stage.fleet
    stage.show(e0=None)
    await until(lambda: "e0" in fleet.knowledge.states)
    before = await stage.figures()
    begun = [asyncio.Event() for _ in asked]
    tasks = [
        asyncio.create_task(ask(stage.url, n, event, **sampling))
        for (n, sampling), event in zip(asked, begun, strict=True)
    ]
    await asyncio.gather(*(event.wait() for event in begun))
    stage.show(e0=None, e1=None)
    await until(lambda: "e1" in fleet.knowledge.states)
    pace = max(each.per_token.total_seconds() for each in stage.open_on("e0") if each.per_token is not None)
    stage.show(e0=max(0.5 * TOKENS * pace, 2.0), e1=None)
    answers = await asyncio.gather(*tasks)
    return answers, since(before, await stage.figures())


@pytest.mark.parametrize("sampling", CASES.values(), ids=CASES)
async def test_a_carried_stream_is_the_uninterrupted_one(stage, sampling):
    url, started = stage.url, stage.engines
    stage.show(e0=None)
    whole = await ask(url, 1, asyncio.Event(), **sampling)
    (answer,), counted = await moved(stage, [(1, sampling)])
    assert answer == whole
    assert counted['medley_router_departures_total{how="refilled"}'] == 0
    await asyncio.gather(*map(unpinned, started.values()))


async def test_many_streams_leave_together(stage, record_property):
    url, started = stage.url, stage.engines
    stage.show(e0=None)
    numbers = range(10, 10 + STREAMS)
    whole = list(await asyncio.gather(*(ask(url, n, asyncio.Event()) for n in numbers)))
    before = await started["e1"].prompt_tokens()
    answers, counted = await moved(stage, [(n, {}) for n in numbers])
    after = await started["e1"].prompt_tokens()
    assert answers == whole
    assert (sum(how(counted).values()), how(counted)["refilled"]) == (STREAMS, 0)
    assert how(counted)["carried"] > 0
    # One token is computed per carry and per copy ahead, be it of a stream that ended after all.
    carried = how(counted)["carried"]
    done, failed = (counted[f'medley_router_copies_total{{outcome="{outcome}"}}'] for outcome in ("done", "failed"))
    computed = after["local_compute"] - before["local_compute"]
    assert carried + done <= computed <= carried + done + failed
    pauses = counted['medley_router_pause_seconds_sum{kind="carried"}']
    record_property("mean_pause_s", pauses / carried if carried else math.nan)
    await asyncio.gather(*map(unpinned, started.values()))


async def test_a_source_that_dies_in_mid_move_costs_no_token(stage):
    url, started = stage.url, stage.engines
    stage.show(e0=None)
    numbers = range(30, 30 + STREAMS)
    whole = list(await asyncio.gather(*(ask(url, n, asyncio.Event()) for n in numbers)))

    async def kill():
        for _ in range(20_000):
            if (await started["e0"].state())["exports"]:
                break
            await asyncio.sleep(0.005)
        started["e0"].kill()

    killing = asyncio.create_task(kill())
    answers, counted = await moved(stage, [(n, {}) for n in numbers])
    await killing
    assert answers == whole
    assert counted['medley_router_pause_seconds_count{kind="carried"}'] <= STREAMS
    await unpinned(started["e1"])
