"""Watching and applying against the real API server."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from medley.core.errors import ClusterError, ObjectGoneError
from medley.kube.api import SECRET, SERVICE, Api, Kind, connected
from medley.kube.apply import ensured
from medley.kube.errors import ConflictError, ExpiredError, RefusedError
from medley.kube.watch import ObjectKey, watched

pytestmark = pytest.mark.apiserver

CONFIG_MAP = Kind("", "v1", "ConfigMap", "configmaps")


@pytest.fixture
async def api(plane):
    async with connected(plane.kubeconfig) as found:
        yield found


def secret(name, **labels):
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "labels": labels}}


@asynccontextmanager
async def following(changes):
    """Yield a function that returns the next change; the watch ends with the block."""
    iterator = aiter(changes)

    async def following_change():
        async with asyncio.timeout(20):
            return await anext(iterator)

    try:
        yield following_change
    finally:
        await iterator.aclose()


async def test_a_watch_lists_and_then_follows(api):
    await api.create(SECRET, secret("old", watch="a"), "default")
    key, new = ObjectKey("default", "old"), ObjectKey("default", "new")
    async with following(watched(api, SECRET, namespace="default", labels="watch=a")) as following_change:
        first = await following_change()
        assert (first.listed, first.changed, first.removed) == (True, (key,), ())
        await api.create(SECRET, secret("new", watch="a"), "default")
        await api.create(SECRET, secret("stranger", watch="b"), "default")
        second = await following_change()
        assert (second.listed, second.changed, sorted(second.objects)) == (False, (new,), [new, key])
        await api.delete(SECRET, "old", "default")
        third = await following_change()
        assert (third.changed, third.removed, sorted(third.objects)) == ((), (key,), [new])
        await api.merge(SECRET, "new", "default", {"metadata": {"labels": {"watch": "b"}}})
        assert (await following_change()).removed == (new,)


class Flaky(Api):
    """An API whose watches break off: first silently, then because the version is too old."""

    def __init__(self, client, faults):
        super().__init__(client)
        self.faults = list(faults)

    async def stream(self, path, query, *, silence_seconds):
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault
        async for event in super().stream(path, query, silence_seconds=silence_seconds):
            yield event


async def test_what_vanished_while_the_watch_was_down_is_removed(api):
    await api.create(SECRET, secret("kept", watch="c"), "default")
    await api.create(SECRET, secret("lost", watch="c"), "default")
    flaky = Flaky(api._client, [ClusterError("away"), ExpiredError("too old")])
    async with following(watched(flaky, SECRET, namespace="default", labels="watch=c")) as following_change:
        assert len((await following_change()).changed) == 2
        await api.delete(SECRET, "lost", "default")
        again = await following_change()
        assert (again.listed, again.changed, again.removed) == (True, (), (ObjectKey("default", "lost"),))
        assert flaky.faults == []


async def test_apply_writes_once_and_again_only_for_a_change(api):
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "labels": {"a": "1"}},
        "spec": {
            "selector": {"x": "y"},
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    }
    assert await ensured(api, SERVICE, service, "default")
    assert not await ensured(api, SERVICE, service, "default")
    await api.merge(SERVICE, "web", "default", {"spec": {"selector": {"x": "theirs"}}})
    assert await ensured(api, SERVICE, service, "default")
    await api.merge(SERVICE, "web", "default", {"metadata": {"labels": {"theirs": "kept"}}})
    assert not await ensured(api, SERVICE, service, "default")
    fewer = {**service, "metadata": {"name": "web"}}
    assert await ensured(api, SERVICE, fewer, "default")
    live = await api.get(SERVICE, "web", "default")
    assert live["metadata"]["labels"] == {"theirs": "kept"}
    assert live["spec"]["selector"] == {"x": "y"}


async def test_what_the_server_says_is_translated(api):
    assert await api.get(SECRET, "nothing", "default") is None
    assert not await api.delete(SECRET, "nothing", "default")
    with pytest.raises(RefusedError, match=r"metadata\.name"):
        await api.create(SECRET, secret("Not A Name"), "default")
    await api.create(SECRET, secret("twice"), "default")
    with pytest.raises(ConflictError, match="already exists"):
        await api.create(SECRET, secret("twice"), "default")
    with pytest.raises(ObjectGoneError):
        await api.list(Kind("no.such.group", "v1", "Thing", "things"))
    with pytest.raises(ConflictError):
        await api.delete(SECRET, "twice", "default", uid="of-another")


async def test_long_lists_come_in_pages(api, monkeypatch):
    monkeypatch.setattr("medley.kube.api.PAGE_SIZE", 2)
    for number in range(5):
        await api.create(CONFIG_MAP, {"metadata": {"name": f"page-{number}", "labels": {"page": "x"}}}, "default")
    objects, version = await api.list(CONFIG_MAP, "default", labels="page=x")
    assert [each["metadata"]["name"] for each in objects] == [f"page-{number}" for number in range(5)]
    assert {each["kind"] for each in objects} == {"ConfigMap"}
    assert version
