"""The stage as a place for the demo: it is built, its cloud takes the nodes away, and it goes with the demo.

Used by `make demo` and by the end-to-end tests.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from e2e import prepare
from e2e.demo import manifests, routers
from e2e.demo.cluster import Cluster, ready
from e2e.demo.place import Blow, PlaceError
from e2e.demo.routers import RouterCounts
from e2e.demo.story import NAMESPACE, SERVICE
from e2e.prepare import Environment
from e2e.stage import cloud, notices
from e2e.stage import cluster as stage
from e2e.stage.paths import REPOSITORY
from e2e.stage.processes import StageError

NODE_PORT = 30080
NOTICE = Blow("karpenter", 30, "30 s notice")
DEATH = Blow("none", 0, "no notice")


class OnStage:
    """The stage of this machine, running when `environment` is given."""

    opening = ("A cluster on this machine", "control plane, kubelets, Karpenter, registry; built once, then cached")
    ending = "the cluster stays: `python -m e2e.stage kubeconfig` shows how to reach it"
    taking = "a spot node goes with 30 s notice, then another with none"
    namespace, service, model = NAMESPACE, SERVICE, manifests.MODEL
    exact = True
    patience_seconds = 420.0
    blows: tuple[Blow, ...] = (NOTICE, DEATH)

    def __init__(self, console: Console | None = None, environment: Environment | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._environment = environment
        self._preparing: asyncio.Future[Environment] | None = None

    @classmethod
    def open(cls, console: Console) -> OnStage:
        """Return the stage; raise PlaceError where it cannot run."""
        try:
            stage.demand_root()
        except StageError as error:
            raise PlaceError(
                f"{error}. Without root: medley demo --local; on a cluster of yours: STAGE=existing make demo"
            ) from error
        return cls(console)

    @property
    def cluster(self) -> Cluster:
        """The stage's cluster."""
        return self._running.cluster

    async def prepare(self) -> None:
        """Build and start what is missing."""
        self._preparing = asyncio.ensure_future(asyncio.to_thread(prepare.everything, self._console))
        self._environment = await asyncio.shield(self._preparing)

    async def install(self) -> None:
        """Install the chart with the images that were built."""
        await self.cluster.install(self._running.images, f"defaults.engineImage={self._running.engine_image}")

    async def apply(self) -> None:
        """Say what can be bought and what it sustains; ask for the service, in a namespace of "restricted" pods."""
        names = tuple(manifests.PRICES)
        await self.cluster.apply(
            *(manifests.accelerator_class(n) for n in names), *(manifests.profile(n) for n in names)
        )
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        await self.cluster.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
        )
        await command("model", "--namespace", NAMESPACE)
        wanted = manifests.service(SERVICE, NAMESPACE, self._running.engine_image)
        await self.cluster.apply(wanted, entrance(SERVICE, NAMESPACE))

    async def entrance(self) -> str:
        """Return the URL of the NodePort before the routers."""
        return await entrance_url(self.cluster)

    async def counts(self) -> RouterCounts:
        """Read every router through the API server."""
        return await routers.counts(self.cluster, NAMESPACE, SERVICE)

    async def victim(self) -> Mapping[str, Any]:
        """Return a Ready engine pod on a spot node."""
        for pod in await self.cluster.engines(NAMESPACE, SERVICE):
            if ready(pod) and pod["metadata"]["labels"].get("medley.dev/market") == "spot":
                return pod
        raise RuntimeError("no engine is Ready on a spot node")

    async def interrupt(self, pod: Mapping[str, Any], blow: Blow) -> float:
        """Have the stage's cloud reclaim the node; the machine dies at the deadline whatever anybody does."""
        name, form = pod["spec"]["nodeName"], notices.Form(blow.kind)
        given = await asyncio.to_thread(cloud.interrupt, stage.api(), name, form, blow.notice_seconds)
        if given.noticed is None:
            raise RuntimeError(f"the stage's cloud did not take {name} away")
        return given.noticed

    async def settled(self) -> None:
        """Return at once: the stage's cloud acts by itself."""

    def remarks(self) -> list[str]:
        """Return nothing: here it is as in a cloud."""
        return []

    async def take_down(self) -> None:
        """Remove the stage, once a thread that still builds it is done."""
        if self._preparing is not None:
            await asyncio.wait([self._preparing])
        await asyncio.to_thread(prepare.take_down, self._console)

    @property
    def _running(self) -> Environment:
        if self._environment is None:
            raise RuntimeError("the stage is asked for its cluster before `prepare`")
        return self._environment


async def command(*arguments: str) -> str:
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
