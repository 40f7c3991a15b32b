"""The story that `make demo` tells, as steps over a running cluster; the end-to-end tests tell it too and look closer.

A step does one thing that a platform engineer or the cloud would do, and returns what was seen. Nothing here prints.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from e2e.demo.cluster import Cluster, condition, ready, until
from e2e.demo.load import Load, Stream
from e2e.demo.place import Blow, Place
from e2e.demo.routers import RouterCounts

NAMESPACE = "demo"
SERVICE = "chat"

Watch = Callable[[str], None]
"""Told, in a line, how far a step is."""


def quiet(_: str) -> None:
    """Be a `Watch` that nobody reads."""


@dataclass(frozen=True, slots=True)
class Aim:
    """The engine whose node goes next, and what the routers had counted before."""

    pod: Mapping[str, Any]
    before: RouterCounts


@dataclass(slots=True)
class Interruption:
    """One node taken away under load."""

    node: str
    blow: Blow
    posted_at: float = 0.0
    streams: list[Stream] = field(default_factory=list)  # that were open in the meantime
    routers: RouterCounts | None = None  # what the routers counted in the meantime
    last_request_after: float = (
        0.0  # seconds from the notice to the last request that a router sent to the engine; NaN: none ever
    )

    @property
    def moved(self) -> int:
        """Times that a router went on with a stream elsewhere."""
        return int(self.routers.resumes) if self.routers is not None else 0

    @property
    def gone_at(self) -> float:
        """When the machine died (monotonic seconds)."""
        return self.posted_at + self.blow.notice_seconds


async def planned(cluster: Cluster, namespace: str = NAMESPACE, name: str = SERVICE) -> dict[str, Any]:
    """Wait for a feasible plan and return the service."""

    async def check() -> dict[str, Any] | None:
        service = await cluster.get("llmservice", name, "--namespace", namespace)
        return service if condition(service, "PlanFeasible").get("status") == "True" else None

    found: dict[str, Any] = await until(f"a plan for {namespace}/{name}", check, seconds=60)
    return found


async def serving(
    cluster: Cluster, watch: Watch = quiet, *, seconds: float = 420, namespace: str = NAMESPACE, name: str = SERVICE
) -> dict[str, Any]:
    """Wait until the condition Ready is true and as many engines are Ready as the plan wants; return the service."""

    async def check() -> dict[str, Any] | None:
        service = await cluster.get("llmservice", name, "--namespace", namespace)
        engines = await cluster.engines(namespace, name)
        wanted = sum(o["replicas"] for o in service.get("status", {}).get("plan", {}).get("offerings", []))
        there = sum(map(ready, engines))
        watch(f"{there} of {wanted} engines ready")
        is_ready = condition(service, "Ready").get("status") == "True"
        return service if wanted and there >= wanted and is_ready else None

    found: dict[str, Any] = await until(f"{namespace}/{name} Ready", check, seconds=seconds, every=1)
    return found


async def aim(place: Place) -> Aim:
    """Choose an engine that serves: before the load begins, where its streams must be fresh; reading takes time."""
    return Aim(await place.victim(), await place.counts())


async def take_away(
    place: Place, load: Load, blow: Blow, aimed: Aim, *, watch: Watch = quiet, settle_seconds: float = 15
) -> Interruption:
    """Take the node of that engine; wait until it is gone and the streams that were open have ended."""
    pod = aimed.pod
    taken = Interruption(pod["spec"]["nodeName"], blow)
    given = await place.interrupt(pod, blow)
    taken.posted_at = time.monotonic()
    while (left := taken.gone_at + settle_seconds - time.monotonic()) > 0:
        watch(f"{taken.node}: {max(taken.gone_at - time.monotonic(), 0):.0f} s left, {len(load.open())} streams open")
        await asyncio.sleep(min(1.0, left))
    taken.streams = [s for s in load.streams if s.ended_at is None or s.ended_at >= taken.posted_at]
    while any(s.ended_at is None for s in taken.streams):
        await asyncio.sleep(0.2)
    await place.settled()
    after = await place.counts()
    taken.routers = after.since(aimed.before)
    taken.last_request_after = after.last_issue.get(pod["metadata"]["name"], math.nan) - given
    return taken
