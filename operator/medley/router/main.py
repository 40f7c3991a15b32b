"""`medley router`: puts the parts together and serves until told to stop.

Called by `app`. After SIGTERM it lingers for those who do not know yet that it leaves, then takes no new connections
and serves until the last stream ends or the grace is over.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from signal import Signals
from typing import Any, NamedTuple

import uvloop
from aiohttp import web

from medley.core.errors import EngineError, InvalidInputError
from medley.core.names import url_host
from medley.router import cluster, kv_states, static
from medley.router.admission import Admission
from medley.router.carrier import Carrier
from medley.router.engine_client import EngineClient, connection_pool, key_file
from medley.router.fleet import Fleet
from medley.router.metrics import RouterMetrics
from medley.router.mover import Mover
from medley.router.server import Followed, RouterServer, Serving
from medley.router.settings import EVERYWHERE, RouterSettings
from medley.router.text import Vocabulary
from medley.tls.keyring import Keyring

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.1
_TOKENIZER_RETRY_SECONDS = 1.0
# For aiohttp to end what is left when the grace is over. It must not drain by itself: once its shutdown begins it
# drops all that comes in, even the body of a request whose head is there already, and that request waits for ever.
_SHUTDOWN_SECONDS = 1.0
# Later than this, the tick was held up by this process, and silence may be ours.
_LATE_SECONDS = 0.5


# Keeps the fleet as something shows it, for ever.
Source = Callable[[Followed, EngineClient], Coroutine[Any, Any, None]]


class Running(NamedTuple):
    """A router that serves."""

    url: str  # at which this machine reaches it
    listening: str  # where it is bound, for people
    background: asyncio.Future[
        tuple[None, None, None, None]
    ]  # ends only by an error: then the router is blind and should end


def run_router(settings: RouterSettings) -> None:
    """Serve until SIGTERM or SIGINT, then until the last stream ends or the grace is over."""
    uvloop.run(_serve(settings))


async def _serve(settings: RouterSettings) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signal in (Signals.SIGTERM, Signals.SIGINT):
        loop.add_signal_handler(signal, stop.set)
    async with running(settings) as router:
        logger.info("serving on %s", router.listening)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((stopping, router.background), return_when=asyncio.FIRST_COMPLETED)
        if router.background.done():
            stopping.cancel()
            await router.background
        logger.info("stopping: open to connections for %s, to what runs for %s more", settings.linger, settings.grace)


@asynccontextmanager
async def running(settings: RouterSettings, source: Source | None = None) -> AsyncIterator[Running]:
    """Serve in this event loop. On leaving, it drains. `source`: None, what the settings name."""
    clock = asyncio.get_running_loop().time
    chance = random.SystemRandom()
    fleet = Fleet(settings.limits, clock=clock)
    metrics, serving, options = RouterMetrics(), Serving(created=int(time.time())), replace(settings.options)
    admission = Admission(fleet, lambda: options.queue_limit, clock=clock)
    metrics.live.running, metrics.live.waiting = (lambda: fleet.running), (lambda: admission.waiting)
    metrics.live.notices = lambda: {name: seen.timestamp() for name, seen in fleet.notices.items()}
    async with connection_pool() as session:
        keyring = None if settings.tls_folder is None else Keyring(settings.tls_folder, logger.warning)
        engines = EngineClient(session, key_file(settings.engine_key_file), keyring)
        server = RouterServer(
            fleet=fleet,
            admission=admission,
            carrier=Carrier(fleet, admission, engines, metrics, clock=clock, wall_clock=time.time),
            engines=engines,
            metrics=metrics,
            serving=serving,
            options=options,
            chance=chance.randrange,
            clock=clock,
            wall_clock=time.time,
        )
        mover = Mover(fleet, engines, metrics, clock=clock)
        background = asyncio.gather(
            _tick(fleet),
            kv_states.follow(fleet, engines),
            _learn_tokenizer(settings, fleet, serving, engines),
            (source or _source(settings))(Followed(fleet, serving, options), engines),
        )
        runner = web.AppRunner(
            server.application(),
            handler_cancellation=True,  # a client that leaves ends its work on the engine
            access_log=None,
            shutdown_timeout=_SHUTDOWN_SECONDS,
            keepalive_timeout=75,
        )
        await runner.setup()
        site = web.TCPSite(runner, settings.host, settings.port, backlog=1024, reuse_port=False)
        await site.start()
        try:
            yield Running(_base_url(settings.host, runner), _listening(runner), background)
        finally:
            await _drain(server, site, settings)
            await runner.cleanup()
            await mover.close()
            engines.close()
            background.cancel()
            with suppress(asyncio.CancelledError):
                await background


async def _drain(server: RouterServer, site: web.TCPSite, settings: RouterSettings) -> None:
    """Serve whoever still comes, then whoever is there: each connection ends with the next answer that it carries."""
    server.leaving = True
    await asyncio.sleep(settings.linger.total_seconds())
    await site.stop()
    with suppress(TimeoutError):
        async with asyncio.timeout(settings.grace.total_seconds()):
            await server.quiet()


def _base_url(host: str, runner: web.AppRunner) -> str:
    port = runner.addresses[0][1]
    return f"http://{'127.0.0.1' if host in {EVERYWHERE, '::'} else host}:{port}"


def _listening(runner: web.AppRunner) -> str:
    """Return the addresses of the sockets, as the kernel names them: a host name may stand for several."""
    names = []
    for host, port, *_ in runner.addresses:
        everywhere = {EVERYWHERE: " (every IPv4 address)", "::": " (every IPv6 address)"}.get(host, "")
        names.append(f"http://{url_host(host)}:{port}{everywhere}")
    return ", ".join(names)


async def _tick(fleet: Fleet) -> None:
    """Settle at short intervals: silence makes no event."""
    loop = asyncio.get_running_loop()
    while True:
        before = loop.time()
        await asyncio.sleep(TICK_SECONDS)
        late = loop.time() - before - TICK_SECONDS
        fleet.settle(lag=late if late > _LATE_SECONDS else 0.0)


async def _learn_tokenizer(settings: RouterSettings, fleet: Fleet, serving: Serving, engines: EngineClient) -> None:
    """Read the tokenizer from a file, or from whichever engine gives it first."""
    if settings.tokenizer is not None:
        try:
            serving.vocabulary = Vocabulary(settings.tokenizer.read_text())
        except OSError as error:
            raise InvalidInputError("--tokenizer", f"reading {settings.tokenizer}: {error.strerror}") from error
        return
    while serving.vocabulary is None:
        for replica in [each for each in fleet.view.replicas.values() if each.ready]:
            try:
                serving.vocabulary = Vocabulary(await engines.text(cluster.tokenizer_url(replica.url)))
                break
            except (EngineError, InvalidInputError) as error:
                logger.warning("%s; trying again in %.0f s", error, _TOKENIZER_RETRY_SECONDS)
        await asyncio.sleep(_TOKENIZER_RETRY_SECONDS)


def _source(settings: RouterSettings) -> Source:
    if settings.engines:
        return partial(static.follow, static.replicas_at(settings.engines, settings.max_running))
    assert settings.namespace is not None
    assert settings.service is not None
    return partial(cluster.follow, settings.namespace, settings.service)
