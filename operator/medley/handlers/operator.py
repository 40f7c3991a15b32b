"""The operator as a whole: watches on every candidate, passes on the leader. Called by `app.run_operator` and tests."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from pathlib import Path
from typing import Any

import aiohttp
import kopf
from prometheus_client import CollectorRegistry

from medley.core.errors import ClusterError
from medley.core.names import FINALIZER, PORT_CONTROL, PORT_ROUTER
from medley.handlers import watching
from medley.handlers.acting import release
from medley.handlers.reconciling import Key, Reconciler
from medley.handlers.routers import Routers
from medley.handlers.settings import Settings
from medley.handlers.supervisors import Supervisors
from medley.handlers.watching import Wakes
from medley.handlers.work import WorkQueue
from medley.kube.api import LLM_SERVICE, Api, connected
from medley.kube.errors import ConflictError
from medley.kube.events import EventPost
from medley.kube.lease import Election
from medley.telemetry.metrics import OperatorMetrics
from medley.telemetry.serving import served

logger = logging.getLogger(__name__)

# Ready while the API server answered within this time.
REACHED_WITHIN_SECONDS = 60.0
RELEASE_ATTEMPTS = 5
STOP_SECONDS = 10.0


async def run(
    settings: Settings,
    stop: asyncio.Event,
    *,
    kubeconfig: Path | None = None,
    control_port: int = PORT_CONTROL,
    router_port: int = PORT_ROUTER,
) -> None:
    """Run until `stop` is set; the Lease is given up at the end, so that another leads at once."""
    metrics = OperatorMetrics(CollectorRegistry())
    async with connected(kubeconfig) as api, aiohttp.ClientSession() as session:
        contact = Contact()
        queue: WorkQueue[Key] = WorkQueue()
        reconciler = Reconciler(
            api,
            Supervisors(session, control_port),
            Routers(session, router_port),
            settings.images,
            EventPost(api, settings.identity),
            metrics,
        )
        election = Election(api, settings.namespace, settings.lease, settings.identity, contact=contact.made)

        async def lead() -> None:
            metrics.is_leader.set(1)
            try:
                await _wake_all(api, queue)
                await queue.run(reconciler.reconcile, settings.workers)
            finally:
                metrics.is_leader.set(0)

        async with served(metrics.registry, contact.recent, settings.host, settings.port):
            tasks = {
                asyncio.create_task(election.lead(lead), name="leading"),
                asyncio.create_task(_watch(queue, api, settings.identity), name="watching"),
                asyncio.create_task(stop.wait(), name="stop"),
            }
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            try:
                await election.release()
            except ClusterError as error:
                logger.warning("Giving up the lease: %s", error)
            for task in done:
                task.result()


class Contact:
    """Remembers when the API server last answered."""

    def __init__(self) -> None:
        self._at = float("-inf")

    def made(self) -> None:
        """Note an answer."""
        self._at = time.monotonic()

    def recent(self) -> bool:
        """Say whether there was one lately."""
        return time.monotonic() - self._at < REACHED_WITHIN_SECONDS


async def release_all(api: Api) -> int:
    """Take medley's finalizer off every LLMService, for `helm uninstall`; return how many had it.

    Their pods go on serving; deleting such a service later leaves the rest to Kubernetes' garbage collection.
    """
    services, _ = await api.list(LLM_SERVICE)
    held = [each["metadata"] for each in services if FINALIZER in each["metadata"].get("finalizers", ())]
    for meta in held:
        await _released(api, meta["namespace"], meta["name"])
    return len(held)


async def _released(api: Api, namespace: str, name: str) -> None:
    for attempt in range(RELEASE_ATTEMPTS):
        service = await api.get(LLM_SERVICE, name, namespace)
        if service is None:
            return
        meta = service["metadata"]
        try:
            await release(api, namespace, name, meta.get("finalizers", ()), meta["resourceVersion"])
        except ConflictError:
            if attempt + 1 == RELEASE_ATTEMPTS:
                raise
            continue
        logger.info("%s/%s: released", namespace, name)
        return


async def _wake_all(api: Api, queue: WorkQueue[Key]) -> None:
    while True:
        try:
            services, _ = await api.list(LLM_SERVICE)
        except ClusterError as error:
            logger.warning("Listing the services: %s", error)
            await asyncio.sleep(1)
            continue
        for each in services:
            queue.add((each["metadata"]["namespace"], each["metadata"]["name"]))
        return


async def _watch(queue: WorkQueue[Key], api: Api, identity: str) -> None:
    """Run kopf until cancelled, on a thread and an event loop of its own.

    On ours it would take over the process's signals and, at its end, cancel every task that it did not know.
    """
    loop = asyncio.get_running_loop()

    def add(key: Key, delay: float) -> None:
        loop.call_soon_threadsafe(queue.add, key, delay)

    registry = watching.registered(Wakes(add))

    @kopf.on.login(registry=registry)
    async def login(**_: object) -> kopf.ConnectionInfo:
        # Called again whenever the server says 401: tokens of service accounts are renewed on disk every hour.
        found = await api.credentials()
        return kopf.ConnectionInfo(
            server=found.server,
            ca_path=found.ca_file,
            certificate_path=found.certificate_file,
            private_key_path=found.key_file,
            scheme="Bearer" if found.token else None,
            token=found.token,
        )

    stop = threading.Event()
    # Without a name of ours kopf asks for the user's, which an id without an account (the image's) has not.
    name: Any = identity  # a NewType of str that kopf keeps to itself

    def watch() -> None:
        settings = watching.settings()
        coroutine = kopf.operator(
            registry=registry, settings=settings, identity=name, standalone=True, clusterwide=True, stop_flag=stop
        )
        asyncio.run(coroutine)

    thread = loop.run_in_executor(None, watch)
    try:
        await asyncio.shield(thread)
    finally:
        stop.set()
        await asyncio.wait({thread}, timeout=STOP_SECONDS)
