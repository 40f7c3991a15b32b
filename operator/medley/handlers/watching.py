"""What wakes a pass: kopf watches objects and puts the keys of services on the work queue. Nothing is decided here.

Handlers are `on.event` only: they keep no annotations and set no finalizers. What they remember (which services there
are, which nodes their pods are on) is a hint about whom to wake; passes read everything anew, and every service
has one each minute even if no hint came.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import kopf

from medley.core import names
from medley.handlers.reconciling import Key
from medley.kube.observe import REASON_SPOT_INTERRUPTED

# Changes come in bursts (a node boots, its pod starts): one pass for all of a moment.
SETTLE_SECONDS = 0.05


@dataclass
class Wakes:
    """Who is to be woken by what."""

    add: Callable[[Key, float], None]  # puts a key on the work queue, to be due after so many seconds
    services: set[Key] = field(default_factory=set)
    hosts: dict[tuple[str, str], tuple[Key, str]] = field(default_factory=dict)  # pod -> its service and node
    seen: dict[tuple[str, str], str] = field(default_factory=dict)  # (kind, name) -> what matters of it

    def wake(self, key: Key) -> None:
        """Have a service looked at."""
        self.add(key, SETTLE_SECONDS)

    def wake_all(self) -> None:
        """Have every service looked at."""
        for key in self.services:
            self.wake(key)

    def wake_on(self, node: str) -> None:
        """Have the services with engines on a node looked at."""
        for key, host in tuple(self.hosts.values()):
            if host == node:
                self.wake(key)

    def changed(self, kind: str, name: str, matters: Any, *, gone: bool) -> bool:
        """Say whether what matters of an object is another than last time, and remember it."""
        text = "" if gone else json.dumps(matters, sort_keys=True, default=str)
        if gone:
            return self.seen.pop((kind, name), None) is not None
        before, self.seen[kind, name] = self.seen.get((kind, name)), text
        return before != text


def settings() -> kopf.OperatorSettings:
    """Return kopf's settings: it writes nothing, and asks the server only for what concerns medley."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.peering.standalone = True
    chosen.watching.label_selectors["", "v1", "pods"] = names.LABEL_SERVICE
    chosen.watching.field_selectors["", "v1", "events"] = f"reason={REASON_SPOT_INTERRUPTED}"
    # An API server that is away for long is waited for; the last number repeats.
    chosen.networking.error_backoffs = (1, 1, 2, 3, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5)
    chosen.process.ultimate_exiting_timeout = None  # the kubelet ends what does not end by itself
    return chosen


def registered(wakes: Wakes) -> kopf.OperatorRegistry:
    """Return the handlers."""
    registry = kopf.OperatorRegistry()
    _services(wakes, registry)
    _capacity(wakes, registry)
    return registry


def _services(wakes: Wakes, registry: kopf.OperatorRegistry) -> None:
    """Register what is about services: themselves, what they are planned from, their pods."""

    @kopf.on.event(names.GROUP, names.VERSION, "llmservices", registry=registry)
    async def service_changed(
        body: Mapping[str, Any],
        namespace: str | None,
        name: str,
        type: str | None,  # noqa: A002
        **_: Any,
    ) -> None:
        key = (namespace or "", name)
        if type == "DELETED":
            wakes.services.discard(key)
        else:
            wakes.services.add(key)
        # What one service asks for changes what it leaves the others.
        if wakes.changed("LLMService", "/".join(key), body.get("spec"), gone=type == "DELETED"):
            wakes.wake_all()
        wakes.wake(key)

    @kopf.on.event(names.GROUP, names.VERSION, "acceleratorclasses", registry=registry)
    @kopf.on.event(names.GROUP, names.VERSION, "performanceprofiles", registry=registry)
    @kopf.on.event(names.GROUP, names.VERSION, "budgets", registry=registry)
    async def catalogue_changed(body: Mapping[str, Any], name: str, type: str | None, **_: Any) -> None:  # noqa: A002
        if wakes.changed(body["kind"], name, body.get("spec"), gone=type == "DELETED"):
            wakes.wake_all()

    @kopf.on.event("", "v1", "pods", registry=registry)
    async def pod_changed(body: Mapping[str, Any], type: str | None, **_: Any) -> None:  # noqa: A002
        meta = body["metadata"]
        key = (meta["namespace"], meta["labels"][names.LABEL_SERVICE])
        pod = (meta["namespace"], meta["name"])
        if type == "DELETED":
            wakes.hosts.pop(pod, None)
        else:
            wakes.hosts[pod] = (key, body.get("spec", {}).get("nodeName", ""))
        wakes.wake(key)


def _capacity(wakes: Wakes, registry: kopf.OperatorRegistry) -> None:
    """Register what is about nodes: those that are there, those that come, those that are taken away."""

    @kopf.on.event("", "v1", "nodes", registry=registry)
    async def node_changed(body: Mapping[str, Any], name: str, type: str | None, **_: Any) -> None:  # noqa: A002
        conditions = body.get("status", {}).get("conditions") or ()
        # Heartbeats change a Node all the time, and mean nothing here.
        matters = (
            body.get("spec", {}).get("taints"),
            body["metadata"].get("deletionTimestamp"),
            [(each["type"], each["status"]) for each in conditions if each["type"] == "Ready"],
        )
        if wakes.changed("Node", name, matters, gone=type == "DELETED"):
            wakes.wake_on(name)

    @kopf.on.event("karpenter.sh", "v1", "nodeclaims", registry=registry)
    async def claim_changed(body: Mapping[str, Any], name: str, type: str | None, **_: Any) -> None:  # noqa: A002
        conditions = body.get("status", {}).get("conditions") or ()
        matters = (
            body["metadata"].get("deletionTimestamp"),
            [(each["type"], each["status"]) for each in conditions if each["type"] in ("Launched", "Initialized")],
        )
        if wakes.changed("NodeClaim", name, matters, gone=type == "DELETED"):
            wakes.wake_all()

    @kopf.on.event("karpenter.sh", "v1", "nodepools", registry=registry)
    async def pool_changed(body: Mapping[str, Any], name: str, type: str | None, **_: Any) -> None:  # noqa: A002
        if wakes.changed("NodePool", name, body.get("spec"), gone=type == "DELETED"):
            wakes.wake_all()

    @kopf.on.event("", "v1", "events", registry=registry)
    async def interrupted(type: str | None, **_: Any) -> None:  # noqa: A002
        if type == "ADDED":
            wakes.wake_all()
