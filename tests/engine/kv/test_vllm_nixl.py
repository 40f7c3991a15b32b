"""Two real vLLM engines whose workers read each other's memory by NIXL.

The last test kills the first engine.
"""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import asynccontextmanager, closing, suppress

import pytest
import pytest_asyncio

from e2e.vllm_venv import ensure_venv
from medley.engine.kv.messages import LENGTH, Answer, parse_answer
from tests.engine.kv.cases import KINDS, Said, prompt_tokens
from tests.engine.kv.direct import Case, Reference, carried
from tests.engine.kv.engines import OPERATOR, engines, since
from tests.model import ensure_model

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]

SAMPLINGS = ("greedy", "seeded", "penalties", "regex")
TOKENS, CUT, LONGEST = 40, 10, 160
CARRIED = re.compile(r"medley: carried .+: ([0-9.]+) MB in [0-9.]+ ms, ([0-9.]+) MB of it by NIXL")
BY_NIXL, BY_TCP = "by NIXL", "by TCP"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pair(tmp_path_factory, nixl):
    python, model = await asyncio.to_thread(ensure_venv), await asyncio.to_thread(ensure_model)
    variables = {
        "MEDLEY_KV_HOST": "127.0.0.1", "MEDLEY_KV_TRANSPORT": "nixl", "MEDLEY_KV_STALL": "5",
        "PYTHONPATH": os.pathsep.join([str(OPERATOR), str(nixl)]),
    }  # fmt: skip
    few = ("--num-gpu-blocks-override", "512")
    folder = tmp_path_factory.mktemp("engines")
    async with engines(folder, python, model, variables, source=few, target=few) as started:
        yield started


def ways(engine, after: int) -> list[str]:
    """How each load since a position in an engine's log was brought, by its worker's own count of bytes."""
    loads = CARRIED.findall(engine.log.read_bytes()[after:].decode(errors="replace"))
    return [{size: BY_NIXL, "0.00": BY_TCP}[fetched] for size, fetched in loads]


def logged(engine) -> int:
    return len(engine.log.read_bytes())


async def cut(engine, name):
    """A prompt, its uninterrupted run, a stream of it that was exported on its way, and the ticket."""
    tokens = prompt_tokens(name)
    whole = await engine.tokens(f"{name}-whole", tokens, salt="whole", max_tokens=TOKENS)
    stream = engine.stream(name, tokens, max_tokens=TOKENS)
    await stream.at_least(CUT)
    (ticket,) = (await engine.export([name]))["tickets"]
    await stream.rest()
    return tokens, whole, stream, ticket


async def whole(engine, case: Case) -> Reference:
    """An uninterrupted run, longer than the stream that is cut will be."""
    asked = {**KINDS[case.sampling].sampling, "max_tokens": LONGEST, "salt": "whole"}
    return Reference(str(case), [Said()], [await engine.tokens(str(case), prompt_tokens(str(case)), **asked)], None, 0)


async def test_streams_go_there_and_back_by_nixl(pair):
    for number, (leaving, arrived) in enumerate((pair, pair[::-1])):
        cases = [Case(leaving.name, arrived.name, sampling) for sampling in SAMPLINGS]
        wholes = dict(zip(cases, await asyncio.gather(*(whole(leaving, case) for case in cases)), strict=True))
        at = logged(arrived)
        results = await carried(leaving, arrived, wholes, number)
        assert [(each["how"], each["equal"], each["exact"]) for each in results] == [(["carried"], True, True)] * 4
        assert ways(arrived, at) == [BY_NIXL] * 4


async def test_a_source_without_nixl_sends_the_bytes(pair):
    source, target = pair
    tokens, whole, stream, ticket = await cut(source, "without")
    before, at = await target.prompt_tokens(), logged(target)
    async with between(ticket, asked=lambda question: question.replace(b'"by":"nixl"', b'"by":"tcp"')) as changed:
        rest = await target.tokens("without", tokens, stream.tokens, changed, max_tokens=TOKENS)
    assert stream.tokens + rest == whole
    assert ways(target, at) == [BY_TCP]
    assert since(before, await target.prompt_tokens()) == {
        "local_compute": 1, "local_cache_hit": 0, "external_kv_transfer": ticket["valid_tokens"],
    }  # fmt: skip
    await source.release(ticket["export_id"])


async def test_a_source_that_is_killed_before_its_memory_is_read_costs_a_prefill(pair):
    """Last: it ends the source."""
    source, target = pair
    tokens, whole, stream, ticket = await cut(source, "killed")
    before, at = await target.prompt_tokens(), logged(target)
    offers: list[Answer] = []

    def answered(answer: Answer) -> None:
        offers.append(answer)
        source.kill()

    async with between(ticket, answered=answered) as changed:
        rest = await target.tokens("killed", tokens, stream.tokens, changed, max_tokens=TOKENS)
    assert stream.tokens + rest == whole
    assert [offer.remote is not None for offer in offers] == [True]
    log = target.log.read_bytes()[at:].decode(errors="replace")
    assert ("is sent, not fetched: NIXL: " in log, "is computed, not carried: " in log) == (True, True)
    assert since(before, await target.prompt_tokens())["local_compute"] == len(tokens) + len(stream.tokens)
    state = await target.state()
    assert (state["free_blocks"], state["exports"]) == (state["total_blocks"], 0)
    assert await target.tokens("after", tokens, salt="after", max_tokens=TOKENS) == whole


@asynccontextmanager
async def between(ticket, asked=lambda question: question, answered=lambda answer: None):
    """A way to the source's worker, as a ticket: it changes what is asked, and sees what is answered."""
    (source,) = ticket["sources"]
    carrying: dict[asyncio.Task, asyncio.StreamWriter] = {}

    async def carry(near, to_near) -> None:
        carrying[asyncio.current_task()] = to_near
        with closing(to_near), suppress(OSError, asyncio.IncompleteReadError):  # either side may be gone
            far, to_far = await asyncio.open_connection(source["host"], source["port"])
            with closing(to_far):
                while True:
                    question = asked(await body(near))
                    to_far.write(LENGTH.pack(len(question)) + question)
                    said = await body(far)
                    answer = parse_answer(said)
                    answered(answer)
                    to_near.write(LENGTH.pack(len(said)) + said)
                    if answer.ok and answer.remote is None:
                        to_near.write(await far.readexactly(answer.bytes_total))

    async with await asyncio.start_server(carry, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        try:
            yield ticket | {"sources": [source | {"port": port}]}
        finally:
            for to_near in carrying.values():  # engines keep their connections
                to_near.transport.abort()
            await asyncio.gather(*carrying)


async def body(reader) -> bytes:
    return await reader.readexactly(*LENGTH.unpack(await reader.readexactly(LENGTH.size)))
