"""How the demo leaves a cluster that was there before it: what carries its mark goes, everything else stays.

Used by `existing`. A step that fails is remembered and the next one tried: half a removal must not end at its first
trouble, since what is left may cost money.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection

from e2e.demo.cluster import Cluster, CommandError, until
from e2e.demo.given import Json, Manifest

NODE_CLAIMS, POOL = "nodeclaims.karpenter.sh", "karpenter.sh/nodepool"
MARKETS = ("spot", "on-demand", "reserved")
NODES_GONE_SECONDS = 900
KEPT_ROLES = ("medley-router", "medley-router-nodes")  # the chart keeps them on uninstall


class Removal:
    """Removes objects with the label `mark`, and collects what did not work."""

    def __init__(self, cluster: Cluster, mark: str, say: Callable[[str], None]) -> None:
        self._cluster, self._mark, self._say = cluster, mark, say
        self.failures: list[str] = []

    async def attempt(self, what: str, step: Awaitable[object]) -> None:
        """Await a step; remember `what` if it fails."""
        try:
            await step
        except (CommandError, TimeoutError) as error:
            self.failures.append(f"{what} ({error})")

    async def objects(self, wanted: Manifest, namespaces: Collection[str]) -> None:
        """Remove the objects of a manifest that are ours, the service first, and wait for the nodes made for them."""
        pools: set[str] = set()
        for each in reversed(wanted.objects):
            name = each["metadata"]["name"]
            if each["kind"] == "AcceleratorClass":
                await self.attempt(f"NodePools of {name}", self._note_pools(each, pools))
            await self.attempt(f"{each['kind']} {name}", self._remove(each))
        await self.attempt("nodes", self._nodes_gone(pools))
        await self._namespaces(namespaces)

    async def release(self, namespace: str, crds: Collection[str]) -> None:
        """Remove the chart, and what it keeps, if that came with the demo and nobody has used it since."""
        await self.attempt("the release medley", self._uninstall(namespace))
        for crd in crds:
            await self.attempt(f"CRD {crd}", self._remove_crd(crd))
        await self.attempt("ClusterRoles", self._remove_kept_roles(crds))
        await self._namespaces((namespace,))

    async def _remove(self, thing: Json) -> None:
        if await self._is_ours(thing):
            given = json.dumps(thing)
            await self._cluster.kubectl("delete", "-f", "-", "--ignore-not-found", "--timeout=300s", given=given)

    async def _is_ours(self, thing: Json) -> bool:
        found = await self._cluster.find(thing)
        return found is not None and self._mark in found["metadata"].get("labels", {})

    async def _note_pools(self, accelerator_class: Json, pools: set[str]) -> None:
        """Add the NodePools that go with a class, if it is ours; those of another's class stay, with their nodes."""
        if await self._is_ours(accelerator_class):
            pools |= {f"medley-{accelerator_class['metadata']['name']}-{market}" for market in MARKETS}

    async def _nodes_gone(self, pools: Collection[str]) -> None:
        if not pools or not await self._cluster.kubectl("get", "crd", NODE_CLAIMS, "--ignore-not-found", "-o", "name"):
            return
        left: list[str] = []

        async def gone() -> bool:
            claims = await self._cluster.items(NODE_CLAIMS)
            left[:] = [c["metadata"]["name"] for c in claims if c["metadata"].get("labels", {}).get(POOL) in pools]
            return not left

        self._say("waiting for Karpenter to give the nodes back")
        try:
            await until("nodes given back", gone, seconds=NODES_GONE_SECONDS, every=2)
        except TimeoutError as error:
            raise TimeoutError(f"{error}: NodeClaims {', '.join(left)}") from error

    async def _uninstall(self, namespace: str) -> None:
        await self._cluster.helm(
            "uninstall", "medley", "--namespace", namespace, "--ignore-not-found", "--wait", "--timeout", "300s"
        )

    async def _remove_crd(self, crd: str) -> None:
        ours = await self._cluster.kubectl("get", "crd", "--selector", self._mark, "-o", "name")
        if f"/{crd}\n" not in ours:
            return
        if await self._cluster.items(crd, "--all-namespaces"):
            self._say(f"{crd} stays: there are objects of it that the demo did not make")
            return
        await self._cluster.kubectl("delete", "crd", crd, "--ignore-not-found", "--timeout=60s")

    async def _remove_kept_roles(self, crds: Collection[str]) -> None:
        if not await self._cluster.kubectl("get", "crd", *crds, "--ignore-not-found", "-o", "name"):
            await self._cluster.kubectl("delete", "clusterrole", *KEPT_ROLES, "--ignore-not-found")

    async def _namespaces(self, names: Collection[str]) -> None:
        """Remove those of these namespaces that the demo made."""
        for name in names:
            await self.attempt(
                f"namespace {name}", self._remove({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
            )
