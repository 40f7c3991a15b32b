"""How an engine and its node are taken away from outside, where no cloud does it; used by `existing`.

Notice: the node's NodeClaim is deleted, and Karpenter does the rest; a node that Karpenter did not make gets the taint
by which Karpenter would announce its end. At the end of the notice, or at once: SIGKILL to every process of the engine,
then its pod is deleted with grace 0. The taint then comes off, as if a new machine had taken the place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from e2e.demo.cluster import Cluster, CommandError

TAINT, TAINT_VALUE = "karpenter.sh/disrupted", "medley-demo"
NODE_CLAIMS = "nodeclaims.karpenter.sh"
# All that the container has but the shell itself and process 1, the supervisor, which nothing in there can kill.
# Only for a container with a process namespace of its own: elsewhere these are others' processes.
KILL_ALL = "kill -9 -1"
_KILLED = "exit code 137"  # of the shell that we sent, too: it is done


class Taking:
    """Takes nodes of one cluster, one after the other."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster, self._namespace = cluster, namespace
        self._deadline: asyncio.Task[None] | None = None
        self.remarks: list[str] = []

    async def begin(self, pod: Mapping[str, Any], notice_seconds: float) -> None:
        """Give notice and return, or without one take the engine of `pod` at once."""
        name, node = pod["metadata"]["name"], pod["spec"]["nodeName"]
        if not notice_seconds:
            await self._kill(name)
            return
        await self._announce(node)
        self._deadline = asyncio.create_task(self._end_after(name, notice_seconds))

    async def settled(self) -> None:
        """Wait until a notice that was given has ended."""
        if self._deadline is not None:
            deadline, self._deadline = self._deadline, None
            await deadline

    async def undo(self) -> None:
        """Forget a deadline to come, and take our taint off every node, that of a run that was killed as well."""
        if self._deadline is not None:
            self._deadline.cancel()
        await self._untaint()

    async def _untaint(self) -> None:
        for node in await self._cluster.items("nodes"):
            taints = node["spec"].get("taints", [])
            if any(taint["key"] == TAINT and taint.get("value") == TAINT_VALUE for taint in taints):
                await self._cluster.kubectl("taint", "node", node["metadata"]["name"], f"{TAINT}:NoSchedule-")

    async def _announce(self, node: str) -> None:
        claim = await self._node_claim(node)
        if claim is not None:
            await self._cluster.kubectl("delete", NODE_CLAIMS, claim, "--wait=false")
            self.remarks.append(f"Notice: NodeClaim {claim} deleted; Karpenter tainted and drained {node}.")
        else:
            await self._cluster.kubectl("taint", "node", node, f"{TAINT}={TAINT_VALUE}:NoSchedule")
            self.remarks.append(f"Notice: {node}, which has no NodeClaim, tainted with {TAINT}; the node itself stays.")

    async def _node_claim(self, node: str) -> str | None:
        if not await self._cluster.kubectl("get", "crd", NODE_CLAIMS, "--ignore-not-found", "-o", "name"):
            return None
        claims = await self._cluster.items(NODE_CLAIMS)
        return next((c["metadata"]["name"] for c in claims if c.get("status", {}).get("nodeName") == node), None)

    async def _end_after(self, pod: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._kill(pod)
        await self._untaint()

    async def _kill(self, pod: str) -> None:
        where = ("--namespace", self._namespace)
        found = await self._cluster.find(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": self._namespace}}
        )
        if found is None:
            self.remarks.append(f"{pod} had left before its notice ended.")
            return
        if any(found["spec"].get(shared) for shared in ("hostPID", "shareProcessNamespace")):
            self.remarks.append(f"{pod} shares its processes' namespace, so none was killed; only its pod was deleted.")
        else:
            await self._kill_processes(pod)
        await self._cluster.kubectl(
            "delete", "pod", pod, *where, "--grace-period=0", "--force", "--wait=false", "--ignore-not-found"
        )

    async def _kill_processes(self, pod: str) -> None:
        shell = ("--container", "engine", "--", "sh", "-c", KILL_ALL)
        try:
            await self._cluster.kubectl("exec", pod, "--namespace", self._namespace, *shell)
        except CommandError as error:
            if _KILLED not in str(error):
                self.remarks.append(f"The processes of {pod} could not be killed ({error}); only its pod was deleted.")
