"""`medley router`: puts the parts together and serves until told to stop.

Called by `app`. After SIGTERM it takes no new connections and serves until the last stream ends or the grace is over.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import uvloop
from aiohttp import web

from medley.core import names
from medley.core.errors import EngineError, InvalidInputError
from medley.router import cluster, static
from medley.router.admission import Admission
from medley.router.carrier import Carrier
from medley.router.engine_client import EngineClient, connection_pool, key_file
from medley.router.fleet import Fleet, Limits
from medley.router.metrics import RouterMetrics
from medley.router.server import Options, RouterServer, Serving
from medley.router.text import Vocabulary

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.1
_TOKENIZER_RETRY_SECONDS = 1.0
# Later than this, the tick was held up by this process, and silence may be ours.
_LATE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Where the router finds its service, and how it serves."""

    namespace: str | None = None
    service: str | None = None
    engines: tuple[str, ...] = ()  # URLs; instead of a service
    tokenizer: Path | None = None  # tokenizer.json; None: from an engine's supervisor
    engine_key_file: Path | None = None
    max_running: int = 64  # per engine named by URL
    host: str = "0.0.0.0"  # noqa: S104  # a pod's own address
    port: int = names.PORT_ROUTER
    limits: Limits = field(default_factory=Limits)
    options: Options | None = None  # None: the service's, else the defaults
    grace: timedelta = timedelta(seconds=30)


def run_router(settings: RouterSettings) -> None:
    """Serve until SIGTERM or SIGINT, then until the last stream ends or the grace is over."""
    if bool(settings.engines) == bool(settings.service):
        raise InvalidInputError(
            "--engine", "name either a service (MEDLEY_NAMESPACE, MEDLEY_SERVICE) or engines by URL"
        )
    uvloop.run(_serve(settings))


async def _serve(settings: RouterSettings) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signal in ("SIGTERM", "SIGINT"):
        loop.add_signal_handler(getattr(__import__("signal"), signal), stop.set)
    async with running(settings) as address:
        logger.info("serving on %s", address)
        await stop.wait()
        logger.info("stopping: no new connections, serving what runs for up to %s", settings.grace)


@asynccontextmanager
async def running(settings: RouterSettings) -> AsyncIterator[str]:
    """Serve in this event loop; yields the base URL. On leaving, running requests get the grace."""
    clock = asyncio.get_running_loop().time
    chance = random.SystemRandom()
    fleet = Fleet(settings.limits, clock=clock)
    metrics, serving, options = RouterMetrics(), Serving(), settings.options or Options()
    admission = Admission(fleet, lambda: options.queue_limit, clock=clock)
    metrics.live.running, metrics.live.waiting = (lambda: fleet.running), (lambda: admission.waiting)
    async with connection_pool() as session:
        engines = EngineClient(session, key_file(settings.engine_key_file))
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
        background = [
            asyncio.create_task(_tick(fleet)),
            asyncio.create_task(_learn_tokenizer(settings, fleet, serving, engines)),
            asyncio.create_task(_follow(settings, fleet, serving, options, engines)),
        ]
        # Without its background a router is blind: rather end than serve what it cannot see.
        for task in background:
            task.add_done_callback(_end_with)
        runner = web.AppRunner(
            server.application(),
            handler_cancellation=True,  # a client that leaves ends its work on the engine
            access_log=None,
            shutdown_timeout=settings.grace.total_seconds(),
            keepalive_timeout=75,
        )
        await runner.setup()
        site = web.TCPSite(runner, settings.host, settings.port, backlog=1024, reuse_port=False)
        await site.start()
        try:
            yield _base_url(settings.host, runner)
        finally:
            await runner.cleanup()
            for task in background:
                task.remove_done_callback(_end_with)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


def _end_with(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        asyncio.get_running_loop().call_exception_handler(
            {"message": "background ended", "exception": task.exception()}
        )
        raise SystemExit(1) from task.exception()


def _base_url(host: str, runner: web.AppRunner) -> str:
    port = runner.addresses[0][1]
    return f"http://{'127.0.0.1' if host in {'0.0.0.0', '::'} else host}:{port}"  # noqa: S104  # compared, not bound


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


async def _follow(
    settings: RouterSettings, fleet: Fleet, serving: Serving, options: Options, engines: EngineClient
) -> None:
    serving.created = int(time.time())
    if settings.engines:
        await static.follow(static.replicas_at(settings.engines, settings.max_running), fleet, serving, engines)
    assert settings.namespace is not None
    assert settings.service is not None
    await cluster.follow(settings.namespace, settings.service, fleet, serving, options, engines)
