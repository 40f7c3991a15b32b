"""A notice, and engines that can hand their KV cache on: whatever fails on the way, clients get every token once."""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest

from tests.router.conftest import staged
from tests.router.stub_engine import PINNED, Fault, StubEngine
from tests.router.test_server import expected, said, stream, until

PROMPT = [*range(3, 253), *range(3, 253)]
FIRST = len(PROMPT) + 10  # tokens in all, when the notice comes
TOKENS = 400


@pytest.fixture(autouse=True)
def _nothing_pinned():
    yield
    PINNED.clear()


def engine(**fields):
    return StubEngine(**{"numerics": "a", "resumes_output": True, **fields})


def source(**fields):
    """One that makes tokens slowly enough to be left behind."""
    return engine(pause=lambda _: 0.02, **fields)


def leave(stage, name, seconds):
    stage.change(name, leaves_at=datetime.now(UTC) + timedelta(seconds=seconds))


async def metrics(stage):
    async with aiohttp.ClientSession() as session, session.get(f"{stage.url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


async def departures(stage):
    found = await metrics(stage)
    return {how: found[f'medley_router_departures_total{{how="{how}"}}'] for how in ("finished", "carried", "refilled")}


async def moved(engines, tokenizer_file, *, streams=1, notice=4.9, during=None, fields=None):
    """Start streams on e0, give notice after their first tokens; return the tokens and what the router counted.

    The reserve before the deadline is 5 s: what is to go goes at once, and a slow machine has time to do it.
    """
    async with staged(engines[:1], tokenizer_file, rest=engines[1:]) as stage:
        await until(lambda: all(n in stage.kept.fleet.knowledge.states or e.numerics is None for n, e in stage.named()))
        asked = [
            asyncio.create_task(stream(stage.url, prompt=[*PROMPT, 5 + n], max_tokens=TOKENS, **(fields or {})))
            for n in range(streams)
        ]
        await until(lambda: len(engines[0].running_requests) == streams)
        await until(lambda: all(len(each.tokens) > FIRST for each in engines[0].running_requests.values()))
        stage.admit()
        await until(lambda: all(n in stage.kept.fleet.knowledge.states or e.numerics is None for n, e in stage.named()))
        leave(stage, "e0", notice)
        if during is not None:
            await during(stage)
        answers = await asyncio.gather(*asked)
        await until(lambda: not stage.kept.fleet.running)
        found = await departures(stage)
        if not any(each.gone for each in engines):
            await until(lambda: not PINNED)
    return [said(events)[1] for _, events in answers], found


def whole(streams=1, **kind):
    return [expected(TOKENS, [*PROMPT, 5 + n], **kind)[1] for n in range(streams)]


async def test_a_stream_is_copied_ahead_and_carried_with_one_token_computed(tokenizer_file):
    engines = [source(), engine()]
    tokens, found = await moved(engines, tokenizer_file)
    assert tokens == whole()
    assert found == {"finished": 0, "carried": 1, "refilled": 0}
    copy, last = engines[1].computed.items()
    assert "-copy-" in copy[0]
    assert copy[1] == 1
    assert last[1] == 1
    assert engines[1].pulled[copy[0]] > 500  # the bulk goes ahead, the last blocks at the cut
    assert engines[1].pulled.get(last[0], 0) < 3 * 16
    assert len(engines[0].exported) == 2


async def test_many_streams_go_to_several_targets(tokenizer_file):
    engines = [source(), engine(), engine()]
    tokens, found = await moved(engines, tokenizer_file, streams=8)
    assert tokens == whole(8)
    assert found == {"finished": 0, "carried": 8, "refilled": 0}
    assert all(each.pulled for each in engines[1:])


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1, "seed": 7},
        {"presence_penalty": 1.0},
        {"presence_penalty": 1.0, "temperature": 1, "seed": 7, "min_tokens": 300},
    ],
    ids=["seeded", "penalty", "all of them"],
)
async def test_a_carried_stream_is_the_uninterrupted_one(tokenizer_file, fields):
    engines = [source(), engine()]
    tokens, found = await moved(engines, tokenizer_file, fields=fields)
    seed = 7 if "seed" in fields else 0
    assert tokens == whole(seed=seed, outputs_count="presence_penalty" in fields)
    assert found["carried"] == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param({"numerics": None}, {}, id="source without the plugin"),
        pytest.param({}, {"numerics": None}, id="target without the plugin"),
        pytest.param({}, {"numerics": "b"}, id="other numerics"),
    ],
)
async def test_what_cannot_exchange_kv_is_computed_again(tokenizer_file, first, second):
    engines = [source(**first), engine(**second)]
    tokens, found = await moved(engines, tokenizer_file)
    assert tokens == whole()
    assert found == {"finished": 0, "carried": 0, "refilled": 1}
    assert engines[1].pulled == {}


@pytest.mark.parametrize(
    ("fields", "how"),
    [
        pytest.param({}, "carried", id="greedy goes on as a longer prompt"),
        pytest.param({"presence_penalty": 1.0}, "refilled", id="penalties are replayed"),
    ],
)
async def test_an_engine_that_carries_need_not_take_tokens_back_as_outputs(tokenizer_file, fields, how):
    engines = [source(resumes_output=False), engine(resumes_output=False)]
    tokens, found = await moved(engines, tokenizer_file, fields=fields)
    assert tokens == whole(outputs_count="presence_penalty" in fields)
    assert found == {"finished": 0, "carried": 0, "refilled": 0} | {how: 1}


async def test_a_notice_without_time_carries_nothing(tokenizer_file):
    tokens, found = await moved([source(), engine()], tokenizer_file, notice=0.0)
    assert (tokens, found["refilled"]) == (whole(), 1)


async def test_a_stream_that_ends_in_time_stays(tokenizer_file):
    engines = [source(), engine()]
    tokens, found = await moved(engines, tokenizer_file, notice=600.0)
    assert (tokens, found) == (whole(), {"finished": 1, "carried": 0, "refilled": 0})
    assert engines[0].exported == []


@pytest.mark.parametrize(
    ("faults", "carried"),
    [
        pytest.param(["status-500"], 1, id="the first copy's export fails"),
        pytest.param(["unknown"], 1, id="the source does not know the request for a while"),
        pytest.param(["empty"], 1, id="nothing was computed yet"),
        pytest.param(["", "status-500"], 0, id="the last export fails"),
        pytest.param(["", "unknown"], 0, id="the last export finds nothing"),
        pytest.param(["", "no-end"], 1, id="the ticket comes, the stream goes on"),
        pytest.param(["status-500"] * 9, 0, id="every export fails"),
    ],
)
async def test_an_export_that_fails_costs_a_prefill_at_most(tokenizer_file, faults, carried):
    engines = [source(export_faults=deque(faults)), engine()]
    tokens, found = await moved(engines, tokenizer_file)
    assert (tokens, found["carried"] + found["refilled"]) == (whole(), 1)
    # A stream that went on past its ticket may have grown: the ticket stands for a prefix of it, and holds.
    assert found["carried"] == carried


async def test_an_export_that_ends_the_stream_and_never_answers_costs_a_prefill(tokenizer_file, monkeypatch):
    monkeypatch.setattr("medley.router.engine_client.EXPORT_SECONDS", 0.3)
    engines = [source(export_faults=deque(["", "end-only"])), engine()]
    async with asyncio.timeout(30):
        tokens, found = await moved_with_leaks(engines, tokenizer_file)
    assert (tokens, found["refilled"]) == (whole(), 1)


async def moved_with_leaks(engines, tokenizer_file):
    """The export whose answer never came is pinned until its lease ends: the stub has none."""
    engines[0].gone = True
    return await moved(engines, tokenizer_file)


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("status-500")],
        [Fault("no-answer")],
        [Fault("cut", 0), Fault("cut", 0)],
        [Fault("cut", 1), Fault("cut", 0)],
        [Fault("cut", 1), Fault("half-event", 5)],
        [Fault("cut", 1), Fault("cut", 30)],
    ],
    ids=["copy refused", "copy hangs", "copy and carry break", "carry breaks at once", "half an event", "later"],
)
async def test_a_target_that_fails_costs_no_token(tokenizer_file, monkeypatch, faults):
    monkeypatch.setattr("medley.router.mover.LEASE_SECONDS", 0.5)
    engines = [source(), engine(faults=deque(faults)), engine()]
    tokens, _ = await moved(engines, tokenizer_file)
    assert tokens == whole()


async def test_a_source_that_vanishes_after_its_export_costs_a_prefill(tokenizer_file):
    engines = [source(), engine()]

    async def during(_):
        await until(lambda: engines[0].exported)
        engines[0].gone = True

    tokens, _ = await moved(engines, tokenizer_file, during=during)
    assert tokens == whole()
    assert list(engines[1].computed.values())[-1] <= FIRST + TOKENS


async def test_a_client_that_leaves_in_mid_move_ends_the_copy_and_leaves_nothing_pinned(tokenizer_file, monkeypatch):
    monkeypatch.setattr("medley.router.mover.LEASE_SECONDS", 600.0)  # nothing is waited for
    engines = [source(), engine(faults=deque([Fault("silence")]))]
    async with staged(engines[:1], tokenizer_file, rest=engines[1:]) as stage:
        await until(lambda: "e0" in stage.kept.fleet.knowledge.states)
        asked = asyncio.create_task(stream(stage.url, prompt=PROMPT, max_tokens=3000))
        await until(lambda: engines[0].running_requests)
        stage.admit()
        await until(lambda: len(stage.kept.fleet.knowledge.states) == 2)
        await until(lambda: all(len(each.tokens) > FIRST for each in engines[0].running_requests.values()))
        leave(stage, "e0", 5.0)
        await until(lambda: PINNED)
        asked.cancel()
        await until(lambda: not engines[0].running_requests and not PINNED and engines[1].vanished == 1)
        found = await metrics(stage)
    assert [found[f'medley_router_copies_total{{outcome="{each}"}}'] for each in ("done", "failed")] == [0, 0]


async def test_two_routers_side_by_side_each_move_their_own(tokenizer_file):
    engines = [source(), engine()]
    async with (
        staged(engines[:1], tokenizer_file) as one,
        staged([], tokenizer_file, rest=()) as two,
    ):
        two.show({"e0": one.replicas["e0"]})
        async with engines[1].running() as url:
            routers = (one, two)
            await until(lambda: all("e0" in each.kept.fleet.knowledge.states for each in routers))
            asked = [
                asyncio.create_task(stream(each.url, prompt=[*PROMPT, 5 + n], max_tokens=TOKENS))
                for each in routers
                for n in range(3)
            ]
            await until(lambda: len(engines[0].running_requests) == 6)
            await until(lambda: all(len(each.tokens) > FIRST for each in engines[0].running_requests.values()))
            target = one.replica("e1", url, resumes_output=True)
            for each in routers:
                each.show({**each.replicas, "e1": target})
            await until(lambda: all("e1" in each.kept.fleet.knowledge.states for each in routers))
            for each in routers:
                leave(each, "e0", 4.9)
            answers = await asyncio.gather(*asked)
            counts = [await departures(each) for each in routers]
            await until(lambda: not PINNED)
    assert [said(events)[1] for _, events in answers] == whole(3) * 2
    assert [each["carried"] for each in counts] == [3, 3]
    # Each request was exported for a copy and for good, by its own router and nobody else.
    assert sorted(engines[0].exported) == sorted([*set(engines[0].exported)] * 2)
