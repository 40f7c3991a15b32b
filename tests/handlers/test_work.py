"""The work queue, and the environment of the operator."""

import asyncio

import pytest

from medley.core.errors import InvalidInputError
from medley.handlers import work
from medley.handlers.settings import DEFAULT_ENGINE_IMAGE, Settings
from medley.handlers.work import WorkQueue


async def drained(queue, handle, workers=2):
    """Run the queue until nothing is due any more."""
    task = asyncio.create_task(queue.run(handle, workers))
    for _ in range(200):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_key_is_in_it_once():
    queue, seen = WorkQueue(), []

    async def handle(key):
        seen.append(key)

    for key in "aabab":
        queue.add(key)
    await drained(queue, handle)
    assert sorted(seen) == ["a", "b"]


async def test_one_key_is_worked_on_by_one_worker_and_again_if_it_came_meanwhile():
    queue, running, most, passes = WorkQueue(), 0, 0, 0

    async def handle(key):
        nonlocal running, most, passes
        running += 1
        most = max(most, running)
        passes += 1
        if passes == 1:
            queue.add(key)
        await asyncio.sleep(0)
        running -= 1

    queue.add("a")
    await drained(queue, handle, workers=4)
    assert (most, passes) == (1, 2)


async def test_a_key_that_never_rests_has_to_wait(monkeypatch):
    monkeypatch.setattr(work, "MOST_PASSES", 5)
    monkeypatch.setattr(work, "WINDOW_SECONDS", 3600.0)
    queue, seen = WorkQueue(), []

    async def handle(key):
        seen.append(key)
        queue.add(key)
        return 0.0

    queue.add("a")
    await drained(queue, handle)
    assert seen == ["a"] * 5
    queue.add("b")
    await drained(queue, handle)
    assert seen == ["a"] * 5 + ["b"] * 5


async def test_a_pass_that_fails_is_tried_again_later_and_later():
    queue, delays = WorkQueue(), []
    add = queue.add

    def noted(key, delay=0.0):
        delays.append(delay)
        add(key, 0.0)

    queue.add = noted

    async def handle(key):
        if len(delays) < 9:
            raise RuntimeError("a bug")

    queue.add("a")
    await drained(queue, handle, workers=1)
    assert delays == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


async def test_the_earlier_time_counts():
    queue = WorkQueue()
    queue.add("a", 100)
    queue.add("a", 0)
    queue.add("a", 50)
    seen = []

    async def handle(key):
        seen.append(key)

    await drained(queue, handle)
    assert seen == ["a"]


def test_backoff_is_bounded_for_an_api_server_that_comes_back():
    assert work.LAST_BACKOFF_SECONDS <= 30


NEEDED = {
    "MEDLEY_ENGINE_INIT_IMAGE": "engine:1",
    "MEDLEY_ROUTER_IMAGE": "router:1",
    "MEDLEY_NAMESPACE": "medley-system",
    "MEDLEY_IDENTITY": "pod-1",
}


def test_settings_from_the_environment():
    found = Settings.read(NEEDED)
    assert (found.namespace, found.identity, found.port, found.log_level) == ("medley-system", "pod-1", 8081, "INFO")
    assert found.images.engine == DEFAULT_ENGINE_IMAGE


@pytest.mark.parametrize("name", ["MEDLEY_ENGINE_INIT_IMAGE", "MEDLEY_ROUTER_IMAGE", "MEDLEY_NAMESPACE"])
def test_what_is_missing_is_named(name):
    with pytest.raises(InvalidInputError, match=f"{name}: not set"):
        Settings.read({**NEEDED, name: ""})


@pytest.mark.parametrize(
    ("name", "value"), [("MEDLEY_LOG_LEVEL", "LOUD"), ("MEDLEY_PORT", "-1"), ("MEDLEY_WORKERS", "x")]
)
def test_what_is_wrong_is_named(name, value):
    with pytest.raises(InvalidInputError, match=name):
        Settings.read({**NEEDED, name: value})
