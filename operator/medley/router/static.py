"""A fleet by command line: engines at given URLs, for `medley demo --local`, tests and machines without Kubernetes.

`main` runs `follow`. An engine is ready while it answers; there are no notices, so losses are seen on the streams.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from medley.core.errors import EngineError
from medley.router.attempt import Replica
from medley.router.engine_client import EngineClient
from medley.router.fleet import FleetView
from medley.router.server import Followed

logger = logging.getLogger(__name__)

PROBE_INTERVAL_SECONDS = 1.0


def replicas_at(urls: Sequence[str], max_running: int) -> tuple[Replica, ...]:
    """Return one replica per URL, not ready yet."""
    return tuple(Replica(url.rstrip("/"), url.rstrip("/"), max_running=max_running, ready=False) for url in urls)


async def follow(replicas: Sequence[Replica], kept: Followed, engines: EngineClient) -> None:
    """Probe all engines for ever; the first model that one names is the one served."""
    fleet, serving = kept.fleet, kept.serving
    while True:
        names = await asyncio.gather(*(_models(engines, each) for each in replicas))
        first = next((served for served in names if served), ())
        if serving.model is None and first:
            serving.model = first[0]
        seen = {each.name: replace(each, ready=bool(served)) for each, served in zip(replicas, names, strict=True)}
        if fleet.view.replicas != seen:
            logger.info("engines ready: %s", [each.name for each in seen.values() if each.ready])
            fleet.replace(FleetView(seen))
        await asyncio.sleep(PROBE_INTERVAL_SECONDS)


async def _models(engines: EngineClient, replica: Replica) -> tuple[str, ...]:
    try:
        return tuple(each.name for each in await engines.models(replica.url) if not each.is_adapter)
    except EngineError as error:
        logger.debug("%s", error)
        return ()
