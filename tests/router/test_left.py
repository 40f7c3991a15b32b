"""What routers say of the streams that left a replica, both ends: counted over real sockets, read as the operator does."""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest

from medley.core.errors import EngineError
from medley.core.migrations import How, Left
from medley.router.metrics import RouterMetrics
from medley.router.session import FRUITLESS_ATTEMPTS
from medley.telemetry.departures import departures
from tests.router.conftest import staged
from tests.router.stub_engine import Fault, StubEngine
from tests.router.test_server import expected, said, stream, until


async def told(stage):
    async with aiohttp.ClientSession() as session, session.get(f"{stage.url}/metrics") as response:
        return departures(await response.text())


async def settles(stage, left):
    """Wait until that is told; meanwhile only that a stream is under way is."""
    for _ in range(1000):
        found = (await told(stage)).streams
        if found == left:
            return
        assert found.keys() <= {("e0", How.UNDERWAY)}
        await asyncio.sleep(0.01)
    raise AssertionError(f"{left} was not told")


def slow(**fields):
    return StubEngine(pause=lambda _: 0.01, **fields)


async def test_after_a_notice_streams_that_move_and_streams_that_end_are_told_by_replica(tokenizer_file):
    engines = [slow(), slow()]
    async with staged(engines[:1], tokenizer_file, rest=engines[1:]) as stage:
        long = asyncio.create_task(stream(stage.url, max_tokens=200))
        await until(lambda: engines[0].open == 1)
        assert await told(stage) == Left({}, {"e0": 1})
        stage.admit()
        stage.change("e0", leaves_at=datetime.now(UTC))
        await until(lambda: engines[0].open == 0)
        _, events = await long
        short = asyncio.create_task(stream(stage.url, max_tokens=30))
        await until(lambda: engines[1].open == 1)
        stage.change("e1", leaves_at=datetime.now(UTC) + timedelta(seconds=600))
        await short
        assert await told(stage) == Left({("e0", How.REFILLED): 1, ("e1", How.FINISHED): 1})
    assert said(events)[1:] == expected(200)[1:]


async def test_a_stream_that_broke_is_under_way_until_it_goes_on(tokenizer_file):
    engines = [slow(faults=deque([Fault("cut", 40)])), StubEngine()]
    async with staged(engines[:1], tokenizer_file, rest=engines[1:]) as stage:
        asked = asyncio.create_task(stream(stage.url, max_tokens=60))
        await until(lambda: engines[0].open == 1)
        stage.change("e0", ready=False)
        await until(lambda: not engines[0].open)
        await settles(stage, {("e0", How.UNDERWAY): 1})
        stage.admit()
        _, events = await asked
        assert await told(stage) == Left({("e0", How.RESUMED): 1})
    assert said(events)[1:] == expected(60)[1:]


@pytest.mark.parametrize("leaves", [False, True], ids=["engine after engine breaks", "its client leaves"])
async def test_a_stream_that_goes_on_nowhere_is_lost_unless_nobody_wants_it(tokenizer_file, leaves):
    broken = [StubEngine(faults=deque([Fault("cut", 0)])) for _ in range(FRUITLESS_ATTEMPTS)]
    engines = [slow(faults=deque([Fault("cut", 40)])), *broken]
    async with staged(engines[:1], tokenizer_file, rest=broken) as stage:
        asked = asyncio.create_task(stream(stage.url, max_tokens=60))
        await until(lambda: engines[0].open == 1)
        stage.change("e0", ready=False)
        await until(lambda: not engines[0].open)
        await settles(stage, {("e0", How.UNDERWAY): 1})
        if leaves:
            asked.cancel()
        else:
            stage.admit()
        await asyncio.wait([asked])
        await settles(stage, {} if leaves else {("e0", How.LOST): 1})


def test_a_replica_that_takes_a_name_begins_anew_and_the_oldest_are_forgotten():
    metrics = RouterMetrics()
    for name in ("old", "heir", *map(str, range(511))):
        metrics.left.count(name, How.CARRIED)
    metrics.left.begun("heir")
    metrics.left.departed("heir")
    found = departures(metrics.exposition().decode()).streams
    assert ("old", How.CARRIED) not in found
    assert {how: number for (name, how), number in found.items() if name == "heir"} == {How.UNDERWAY: 1}
    assert len(found) == 512
    metrics.left.arrived("heir", None)
    assert len(departures(metrics.exposition().decode()).streams) == 511


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param('medley_router_running{replica="a"} 1\n', id="another version"),
        pytest.param('# TYPE medley_router_left gauge\nmedley_router_left{replica="a",how="fled"} 1\n', id="a new way"),
        pytest.param("# TYPE medley_router_left gauge\nmedley_router_left 1\n", id="no labels"),
    ],
)
def test_what_is_no_such_exposition_is_refused(text):
    with pytest.raises(EngineError, match="reading a router's metrics: "):
        departures(text)
