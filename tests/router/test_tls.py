"""The router and engines that speak mutual TLS: whom it trusts, and what changing certificates do to streams."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web

from medley.core.identity import Role
from medley.router.cluster import tokenizer_url, view_of
from medley.router.fleet import FleetView, Replica
from medley.router.main import running
from medley.router.settings import RouterSettings
from medley.testing.certificates import Issuer
from medley.tls.keyring import Keyring
from tests.router.stub_engine import MODEL, Fault, StubEngine
from tests.router.test_server import expected, said, stream, until


@asynccontextmanager
async def secured(engine, folder):
    """Serve an engine with the certificate of a folder, to routers of the same service alone; yield its URL."""
    ring = Keyring(folder, print)

    @web.middleware
    async def routers_only(request, handler):
        assert ring.role(request.transport.get_extra_info("peercert")) is Role.ROUTER
        return await handler(request)

    app = engine.application()
    app.middlewares.append(routers_only)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ring.server).start()
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def routed(urls, tokenizer, folder):
    replicas = {f"e{n}": Replica(f"e{n}", url) for n, url in enumerate(urls)}

    async def source(kept, _):
        kept.serving.model = MODEL
        kept.fleet.replace(FleetView(replicas))
        await asyncio.Event().wait()

    settings = RouterSettings(
        engines=("https://named.by.the.source",), tokenizer=tokenizer, tls_folder=folder, host="127.0.0.1", port=0,
        grace=timedelta(seconds=0.2),
    )  # fmt: skip
    async with running(settings, source) as router:
        yield router.url


@pytest.fixture
def issuer():
    return Issuer.new()


async def test_streams_survive_a_change_of_authority_and_engines_that_break_meanwhile(tokenizer_file, tmp_path, issuer):
    successor = Issuer.new()
    engines = [StubEngine(pause=lambda _: 0.005, faults=deque([Fault("cut", 60)] * 3)) for _ in range(2)]
    folders = {role: issuer.folder(tmp_path / role, role) for role in (Role.ENGINE, Role.ROUTER)}
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(secured(each, folders[Role.ENGINE])) for each in engines]
        url = await stack.enter_async_context(routed(urls, tokenizer_file, folders[Role.ROUTER]))
        streams = [asyncio.create_task(stream(url, max_tokens=300)) for _ in range(8)]
        await until(lambda: sum(engine.open for engine in engines) == 8)
        for issuing, trusted in ((issuer, (successor,)), (successor, (issuer,)), (successor, ())):
            for role, folder in folders.items():
                issuing.folder(folder, role, trusted=trusted)
                _, events = await stream(url, max_tokens=2)  # over a new connection, or one that is kept
                assert said(events)[1:] == expected(2)[1:]
        results = await asyncio.gather(*streams)
    assert [said(events)[1:] for _, events in results] == [expected(300)[1:]] * 8
    assert sum(len(engine.faults) for engine in engines) == 0  # all six broke, and were resumed by new connections


async def test_an_engine_of_another_service_gets_not_a_word(tokenizer_file, tmp_path, issuer):
    ours, theirs = StubEngine(), StubEngine()
    mine, router = issuer.folder(tmp_path / "e", Role.ENGINE), issuer.folder(tmp_path / "r", Role.ROUTER)
    # It took the address of an engine that went, and would take our router.
    other = Issuer.new().folder(tmp_path / "other", Role.ENGINE, trusted=(issuer,))
    async with (
        secured(ours, mine) as here,
        secured(theirs, other) as there,
        routed([there, here], tokenizer_file, router) as url,
    ):
        for _ in range(4):
            _, events = await stream(url, max_tokens=5)
            assert said(events)[1:] == expected(5)[1:]
    assert (len(ours.calls), theirs.calls) == (4, [])


def test_in_a_cluster_the_scheme_is_the_engines_and_the_open_port_stays_plain():
    condition = {"type": "Ready", "status": "True"}
    pod = {
        "metadata": {"name": "p", "uid": "u"},
        "spec": {},
        "status": {"phase": "Running", "podIP": "10.0.0.5", "conditions": [condition]},
    }
    (replica,) = view_of([pod], {}, None, {}, datetime.now(UTC), scheme="https").replicas.values()
    assert replica.url == "https://10.0.0.5:8000"
    assert tokenizer_url(replica.url) == "http://10.0.0.5:8002/tokenizer.json"
