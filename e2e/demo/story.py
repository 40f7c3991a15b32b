"""The story that `make demo` tells, as steps over a running cluster; the end-to-end tests tell it too and look closer.

A step does one thing that a platform engineer or the cloud would do, and returns what was seen. Nothing here prints.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from e2e.demo import manifests
from e2e.demo.cluster import Cluster, condition, ready, until
from e2e.demo.load import Load, Stream
from e2e.demo.routers import RouterCounts, counts
from e2e.stage.paths import REPOSITORY

NAMESPACE = "demo"
SERVICE = "chat"
NODE_PORT = 30080

Watch = Callable[[str], None]
"""Told, in a line, how far a step is."""


def quiet(_: str) -> None:
    """Be a `Watch` that nobody reads."""


@dataclass(slots=True)
class Interruption:
    """One node taken away under load."""

    node: str
    kind: str  # karpenter | nth | none
    notice_seconds: float
    posted_at: float = 0.0
    streams: list[Stream] = field(default_factory=list)  # that were open in the meantime
    routers: RouterCounts | None = None  # what the routers counted in the meantime
    last_request_after: float = 0.0  # seconds from the notice to the last request that a router sent to the engine

    @property
    def moved(self) -> int:
        """Times that a router went on with a stream elsewhere."""
        return int(self.routers.resumes) if self.routers is not None else 0

    @property
    def gone_at(self) -> float:
        """When the machine died (monotonic seconds)."""
        return self.posted_at + self.notice_seconds


async def stage(*arguments: str) -> str:
    """Run the stage's command line, as a person would."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "e2e.stage",
        *arguments,
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"stage {' '.join(arguments)}: {out.decode()[-2000:]}")
    return out.decode()


async def apply_catalogue(cluster: Cluster) -> None:
    """Say what can be bought and what it sustains."""
    names = tuple(manifests.PRICES)
    await cluster.apply(*(manifests.accelerator_class(n) for n in names), *(manifests.profile(n) for n in names))


async def apply_service(cluster: Cluster, image: str, namespace: str = NAMESPACE, name: str = SERVICE) -> None:
    """Create a namespace that enforces Pod Security "restricted", the model's claim, the service and a way in."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    await cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}})
    await stage("model", "--namespace", namespace)
    await cluster.apply(manifests.service(name, namespace, image), entrance(name, namespace))


def entrance(name: str, namespace: str, port: int = NODE_PORT) -> dict[str, Any]:
    """Return a NodePort Service before the routers: this machine is not in the cluster's network."""
    selector = {"medley.dev/service": name, "medley.dev/component": "router"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"{name}-entrance", "namespace": namespace},
        "spec": {
            "type": "NodePort",
            "selector": selector,
            "ports": [{"port": 8080, "targetPort": 8080, "nodePort": port}],
        },
    }


async def entrance_url(cluster: Cluster, port: int = NODE_PORT) -> str:
    """Return the URL of the entrance on a node that routers run on."""
    nodes = await cluster.items("nodes")
    stable = [n for n in nodes if "karpenter.sh/nodepool" not in n["metadata"].get("labels", {})]
    address = next(a["address"] for a in stable[0]["status"]["addresses"] if a["type"] == "InternalIP")
    return f"http://{address}:{port}/v1"


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


async def spot_engine(cluster: Cluster, namespace: str = NAMESPACE, name: str = SERVICE) -> Mapping[str, Any]:
    """Return a Ready engine pod on a spot node."""
    for pod in await cluster.engines(namespace, name):
        if ready(pod) and pod["metadata"]["labels"].get("medley.dev/market") == "spot":
            return pod
    raise RuntimeError("no engine is Ready on a spot node")


async def take_away(
    cluster: Cluster, load: Load, kind: str, notice_seconds: float, *, watch: Watch = quiet, settle_seconds: float = 15
) -> Interruption:
    """Have the cloud take a spot node that serves; wait until it is gone and the streams that were open have ended."""
    pod = await spot_engine(cluster)
    taken = Interruption(pod["spec"]["nodeName"], kind, notice_seconds)
    before = await counts(cluster, NAMESPACE, SERVICE)
    said = await stage("interrupt", taken.node, "--after", f"{notice_seconds:g}s", "--as", kind)
    taken.posted_at = time.monotonic()
    given = re.search(r"given\s+at\s+([0-9.]+)", said)
    if given is None:
        raise RuntimeError(f"the stage does not say when it gave the notice: {said}")
    while (left := taken.gone_at + settle_seconds - time.monotonic()) > 0:
        watch(f"{taken.node}: {max(taken.gone_at - time.monotonic(), 0):.0f} s left, {len(load.open())} streams open")
        await asyncio.sleep(min(1.0, left))
    taken.streams = [s for s in load.streams if s.ended_at is None or s.ended_at >= taken.posted_at]
    while any(s.ended_at is None for s in taken.streams):
        await asyncio.sleep(0.2)
    after = await counts(cluster, NAMESPACE, SERVICE)
    taken.routers = after.since(before)
    taken.last_request_after = after.last_issue[pod["metadata"]["name"]] - float(given[1])
    return taken
