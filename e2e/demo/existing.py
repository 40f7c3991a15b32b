"""A cluster that is there already as a place for the demo: `STAGE=existing`, the cluster of KUBECONFIG.

Needs kubectl and helm on this machine, no root, and nothing of the stage. Whatever it makes carries the label `MARK`,
so that a run that was killed is cleaned up by the next, and what was there before is never touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from e2e.demo import given, pinned, routers
from e2e.demo.cluster import Cluster, ready
from e2e.demo.forward import Forward
from e2e.demo.pinned import Context
from e2e.demo.place import Blow, PlaceError
from e2e.demo.removal import Removal
from e2e.demo.routers import RouterCounts
from e2e.demo.taking import Taking

Say = Callable[[str], None]

MARK = "medley.dev/demo"
SYSTEM = "medley-system"
NAMESPACE = "medley-demo"  # of objects whose manifest names none
ROUTER_PORT = 8080
CRDS = tuple(
    f"{plural}.medley.dev"
    for plural in ("llmservices", "acceleratorclasses", "performanceprofiles", "budgets", "migrations")
)
OPERATOR = (
    "deployments",
    "--all-namespaces",
    "--selector",
    "app.kubernetes.io/name=medley,app.kubernetes.io/component=operator",
)
DEATH = (
    "From outside no machine can be made to die. The closest: SIGKILL to every process of the engine, then its pod "
    "deleted with grace 0. The node lives on and closes the connections; a dead one would fall silent."
)
CLOCK = "The last request is timed from the start of kubectl, by this machine's clock: rather too late than too early."
INEXACT = (
    "The service does not say --dtype=float32: a moved answer may go on in other words, so answers are checked "
    "for their end and their number of tokens, not for equality."
)


class Existing:
    """The cluster that KUBECONFIG names, its current context held fast for the whole run."""

    ending = "medley, the catalogue and the service stay in the cluster, and cost what they cost"
    taking = "an engine goes with 30 s notice, then another with none"
    patience_seconds = 1800.0
    blows: tuple[Blow, ...] = (Blow("notice", 30, "30 s notice"), Blow("death", 0, "processes killed"))

    def __init__(self, context: Context, wanted: given.Manifest, images: Mapping[str, str] | None, say: Say) -> None:
        self.cluster, self._context = context.cluster, context
        self.opening = ("Your cluster", f"context {context.name}, {context.server}")
        self._wanted, self._images, self._say = wanted, images, say
        meta = wanted.service["metadata"]
        self.namespace, self.service = str(meta.get("namespace") or NAMESPACE), str(meta["name"])
        self.model, self.exact = wanted.model, wanted.exact
        self._forward: Forward | None = None
        self._taking = Taking(self.cluster, self.namespace)
        self._installed = self._applied = False

    @classmethod
    async def open(cls, environment: Mapping[str, str], say: Say) -> Existing:
        """Look at what is given and what is there, and say what will be done; change nothing. Raise PlaceError."""
        wanted = _manifest(environment)
        context = await pinned.current(environment, NAMESPACE)
        cluster = context.cluster
        try:
            operators = await cluster.items(*OPERATOR)
            ours = bool(
                await cluster.kubectl(
                    "get", "namespace", "--selector", MARK, f"--field-selector=metadata.name={SYSTEM}", "-o", "name"
                )
            )
            images = None if operators and not ours else given.images(environment)
            place = cls(context, wanted, images, say)
            await place._look_at_catalogue()
            for line in place._announcement(operators):
                say(line)
        except BaseException:
            context.forget()
            raise
        if environment.get(given.CONFIRM) != context.name:
            context.forget()
            raise PlaceError(
                f"nothing was done yet. If this is what you want, run it again with {given.CONFIRM}={context.name}"
            )
        return place

    async def prepare(self) -> None:
        """Have a cluster: it is there."""

    async def install(self) -> None:
        """Install the chart, unless an operator is there already."""
        if self._images is None:
            return
        self._installed = True
        await self._have_namespace(SYSTEM)
        fresh = [name for name in CRDS if not await self._is_there("crd", name)]
        await self.cluster.install(self._images, namespace=SYSTEM)
        if fresh:
            await self.cluster.kubectl("label", "--overwrite", "crd", *fresh, f"{MARK}=true")

    async def apply(self) -> None:
        """Apply the manifest; what the cluster has already under a name is left as it is."""
        self._applied = True
        for name in self._namespaces():
            await self._have_namespace(name)
        for each in self._wanted.objects:
            if await self._is_foreign(each):
                self._say(f"{each['kind']} {each['metadata']['name']} is there already and stays as it is")
            else:
                await self.cluster.apply(_marked(each))

    async def entrance(self) -> str:
        """Forward a port of this machine to the routers, if there are engines enough to take one away."""
        await self.victim()
        self._forward = await Forward(
            self.cluster, self.namespace, f"service/{self.service}-router", ROUTER_PORT
        ).__aenter__()
        return f"{self._forward.url}/v1"

    async def counts(self) -> RouterCounts:
        """Read every router through a port of its own."""
        return await routers.counts(self.cluster, self.namespace, self.service, read=_metrics)

    async def victim(self) -> Mapping[str, Any]:
        """Return a Ready engine, on spot if there is one; raise PlaceError if no other could take its streams."""
        engines = [pod for pod in await self.cluster.engines(self.namespace, self.service) if ready(pod)]
        if len(engines) < given.LEAST_REPLICAS:
            raise PlaceError(
                f"{self.namespace}/{self.service} has {len(engines)} Ready engine(s), and one is to be taken away: "
                "set spec.limits.minReplicas: 2, or spec.workload.requestsPerSecond to more than one engine serves"
            )
        return min(engines, key=lambda pod: pod["metadata"]["labels"].get("medley.dev/market") != "spot")

    async def interrupt(self, pod: Mapping[str, Any], blow: Blow) -> float:
        """Give notice by what every cluster has and kill the engine when it ends; without notice, kill it now."""
        given_at = time.time()
        await self._taking.begin(pod, blow.notice_seconds)
        return given_at

    async def settled(self) -> None:
        """Wait for the kill at the end of a notice."""
        await self._taking.settled()

    def remarks(self) -> list[str]:
        """Return what is not as it would be if the cloud did it."""
        said = [
            DEATH,
            CLOCK,
            *self._taking.remarks,
        ]
        if not self.exact:
            said.append(INEXACT)
        if self._forward is not None and (words := self._forward.ended) is not None:
            said.append(f"kubectl port-forward ended during the run ({words}): broken streams may be its doing.")
        return said

    async def take_down(self) -> None:
        """Remove what carries our mark, service first; say what could not be removed."""
        removal = Removal(self.cluster, MARK, self._say)
        if self._forward is not None:
            await self._forward.__aexit__()
        await removal.attempt("the notice", self._taking.undo())
        if self._applied:
            await removal.objects(self._wanted, self._namespaces())
        if self._installed:
            await removal.release(SYSTEM, CRDS)
        self._context.forget()
        if removal.failures:
            raise PlaceError("left behind in the cluster: " + "; ".join(removal.failures))

    async def _look_at_catalogue(self) -> None:
        known = [name for name in CRDS if await self._is_there("crd", name)]
        for kind in self._wanted.lacking:
            crd = f"{kind.lower()}{'es' if kind.endswith('s') else 's'}.medley.dev"
            if crd not in known or not await self.cluster.items(crd):
                raise PlaceError(
                    f"{given.MANIFEST}: no {kind} in it, and none in the cluster: add one (examples/ has some)"
                )
        if CRDS[0] in known and await self._is_foreign(self._wanted.service):
            raise PlaceError(
                f"LLMService {self.namespace}/{self.service} is there already, and the demo takes nodes away from its "
                f"service: give the one in {given.MANIFEST} another name"
            )

    def _namespaces(self) -> list[str]:
        """Return the namespaces that the manifest speaks of and does not hold."""
        spoken_of = {each["metadata"].get("namespace") or NAMESPACE for each in self._wanted.objects}
        return sorted(spoken_of - set(self._wanted.named("Namespace")))

    async def _is_there(self, *what: str) -> bool:
        return bool(await self.cluster.kubectl("get", *what, "--ignore-not-found", "-o", "name"))

    async def _is_foreign(self, thing: given.Json) -> bool:
        """Whether the cluster has an object of this name that no demo made."""
        found = await self.cluster.find(thing)
        return found is not None and MARK not in found["metadata"].get("labels", {})

    async def _have_namespace(self, name: str) -> None:
        if not await self._is_there("namespace", name):
            await self.cluster.apply(
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {MARK: "true"}}}
            )

    def _announcement(self, operators: list[dict[str, Any]]) -> list[str]:
        """Return what will be done, line by line."""
        if self._images is None:
            at = operators[0]["metadata"]
            medley = f"use medley as it runs in {at['namespace']} and leave it"
        else:
            medley = f"install medley in {SYSTEM} and remove it again: {', '.join(self._images.values())}"
        listed = ", ".join(f"{each['kind']} {each['metadata']['name']}" for each in self._wanted.objects)
        return [
            f"In the cluster of context {self._context.name} ({self._context.server}) the demo is going to",
            f"  · {medley}",
            f"  · apply and remove again: {listed}",
            "  · have Karpenter buy nodes for it, if its classes say so: this costs money",
            "  · take two of its engines away under load: delete the NodeClaim (or taint the node for 30 s),",
            "    kill the processes of the engine",
        ]


def _manifest(environment: Mapping[str, str]) -> given.Manifest:
    where = environment.get(given.MANIFEST)
    if not where:
        raise PlaceError(
            f"{given.MANIFEST} is not set: name a YAML file with AcceleratorClasses, PerformanceProfiles and "
            "one LLMService as your cluster has them (examples/ to start from)"
        )
    try:
        return given.manifest(Path(where).read_text(), where)
    except OSError as error:
        raise PlaceError(f"{given.MANIFEST}={where}: {error.strerror}") from error


def _marked(thing: given.Json) -> given.Json:
    meta = thing["metadata"]
    return {**thing, "metadata": {**meta, "labels": {**(meta.get("labels") or {}), MARK: "true"}}}


async def _metrics(cluster: Cluster, namespace: str, pod: str) -> str:
    async with (
        Forward(cluster, namespace, f"pod/{pod}", ROUTER_PORT) as forward,
        aiohttp.ClientSession(raise_for_status=True) as session,
        session.get(f"{forward.url}/metrics") as answer,
    ):
        return await answer.text()
