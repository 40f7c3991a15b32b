"""A cluster around the real API server: this file plays Karpenter, kubelets and supervisors; everything else is real."""

from __future__ import annotations

import asyncio
import base64
import itertools
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry

from medley.core import names
from medley.core.identity import Role
from medley.demo.processes import free_port
from medley.handlers.reconciling import Reconciler
from medley.handlers.routers import Routers
from medley.handlers.supervisors import Supervisors
from medley.kube.api import (
    ACCELERATOR_CLASS,
    DEPLOYMENT,
    LLM_SERVICE,
    MONEY_BUDGET,
    NODE,
    NODE_POOL,
    PERFORMANCE_PROFILE,
    POD,
    SECRET,
    Api,
    Json,
    Kind,
    connected,
)
from medley.kube.events import EventPost
from medley.kube.manifests import KEY_FIELD, Images
from medley.router.metrics import RouterMetrics
from medley.telemetry.metrics import OperatorMetrics
from medley.testing.certificates import write_as_kubelet
from medley.tls.keyring import Keyring
from medley.wire.assignment import Assignment, Capability, DrainRequest, EnginePhase, EngineReport

IMAGES = Images(engine="vllm:1", engine_init="engine:1", router="router:1")
NAMESPACE = Kind("", "v1", "Namespace", "namespaces", namespaced=False)
MODEL = "acme/model-7b"
_numbers = itertools.count(1)


def class_manifest(name: str = "l4", **spec: Any) -> Json:
    return {
        "apiVersion": "medley.dev/v1alpha1",
        "kind": "AcceleratorClass",
        "metadata": {"name": name},
        "spec": {
            "gpu": {"product": name.upper(), "memory": "24Gi", "perNode": 1},
            "zones": [
                {"name": zone, "perHour": "1.00", "spotPerHour": "0.40", "maxNodes": 8, "maxSpotNodes": 8}
                for zone in ("a", "b")
            ],
            "nodes": {
                "karpenter": {
                    "nodeClassRef": {"group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": "default"},
                    "instanceTypes": [f"{name}.large"],
                }
            },
            **spec,
        },
    }


def profile_manifest(name: str = "l4") -> Json:
    return {
        "apiVersion": "medley.dev/v1alpha1",
        "kind": "PerformanceProfile",
        "metadata": {"name": f"model-7b-{name}"},
        "spec": {
            "model": MODEL,
            "acceleratorClass": name,
            "source": "Estimated",
            "maxModelLen": 8192,
            "maxRunning": 32,
            "points": [
                {
                    "inputTokens": 1000,
                    "outputTokens": 1000,
                    "requestsPerSecond": 2.0,
                    "latencies": [{"percentile": 99, "ttft": "1s", "tpot": "50ms"}],
                }
            ],
        },
    }


def service_manifest(name: str = "chat", **spec: Any) -> Json:
    """Return a service that needs two l4."""
    histogram = {"inputEdges": [1000], "outputEdges": [1000], "weights": [[1]]}
    return {
        "apiVersion": "medley.dev/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": name},
        "spec": {
            "model": {"name": MODEL, "maxModelLen": 4096, "source": {"pvc": {"claimName": "model"}}},
            "workload": {"requestsPerSecond": 3, "source": "Forecast", "distribution": {"histogram": histogram}},
            "slo": {"percentile": 99, "tpot": "100ms", "ttft": "2s"},
            **spec,
        },
    }


@dataclass
class World:
    """One namespace of the API server, with machines and supervisors that this test owns."""

    api: Api
    namespace: str
    reconciler: Reconciler
    control_port: int
    runner: web.AppRunner
    mounted: Path  # volumes of pods, as kubelets fill them
    reports: dict[str, EngineReport] = field(default_factory=dict)  # by address
    assigned: dict[str, Assignment] = field(default_factory=dict)
    drained: list[str] = field(default_factory=list)
    deadlines: list[datetime | None] = field(default_factory=list)  # of the drains
    sold_out: set[str] = field(default_factory=set)  # markets, "spot"
    machines: dict[str, str] = field(default_factory=dict)  # pod -> node
    routers: dict[str, RouterMetrics] = field(default_factory=dict)  # by address
    keyrings: dict[str, Keyring] = field(default_factory=dict)  # of the engines, by service

    @property
    def metrics(self) -> OperatorMetrics:
        return self.reconciler.metrics

    async def apply(self, *manifests: Json) -> None:
        kinds = {each.kind: each for each in (LLM_SERVICE, ACCELERATOR_CLASS, PERFORMANCE_PROFILE, MONEY_BUDGET)}
        for manifest in manifests:
            kind = kinds[manifest["kind"]]
            path = kind.path(self.namespace if kind.namespaced else None, manifest["metadata"]["name"])
            # A person's own field manager: under medley's, this would take back what medley applied.
            query = [("fieldManager", "person"), ("force", "true")]
            await self.api.request(
                "PATCH", path, query=query, body=manifest, content_type="application/apply-patch+yaml"
            )

    async def pass_over(self, name: str = "chat") -> float | None:
        """Make one pass of the operator, then let the cluster react."""
        due = await self.reconciler.reconcile((self.namespace, name))
        await self.react()
        return due

    async def settle(self, name: str = "chat", passes: int = 12) -> None:
        for _ in range(passes):
            await self.pass_over(name)

    async def service(self, name: str = "chat") -> Json:
        found = await self.api.get(LLM_SERVICE, name, self.namespace)
        assert found is not None
        return found

    async def condition(self, kind: str, name: str = "chat") -> tuple[str, str, str]:
        status = (await self.service(name)).get("status", {})
        found = next(each for each in status["conditions"] if each["type"] == kind)
        return found["status"], found["reason"], found["message"]

    async def pods(self) -> dict[str, Json]:
        labels = f"{names.LABEL_COMPONENT}={names.Component.ENGINE}"
        objects, _ = await self.api.list(POD, self.namespace, labels=labels)
        return {each["metadata"]["name"]: each for each in objects}

    async def react(self) -> None:
        """Let Karpenter, kubelets and supervisors do what they do in a while."""
        await self._mount()
        for name, pod in (await self.pods()).items():
            if "deletionTimestamp" in pod["metadata"]:
                await self._end(name, pod)
            elif not pod["spec"].get("nodeName"):
                await self._place(name, pod)
            else:
                await self._start(name, pod)
        await self._routers()

    async def patch_status(self, kind: Kind, name: str, status: Json, namespace: str | None = None) -> None:
        await self.api.request(
            "PATCH",
            kind.path(namespace, name, "status"),
            body={"status": status},
            content_type="application/merge-patch+json",
        )

    def fail(self, pod: Json, message: str) -> None:
        self.reports[pod["status"]["podIP"]] = EngineReport(phase=EnginePhase.FAILED, generation=1, message=message)

    async def lose(self, pod: str) -> None:
        """Take the machine of a pod away without a word."""
        node = self.machines.pop(pod)
        await self.api.delete(NODE, node)

    async def _place(self, name: str, pod: Json) -> None:
        labels = pod["metadata"]["labels"]
        if labels[names.LABEL_MARKET] in self.sold_out:
            refused = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "sold out"}
            refused["lastTransitionTime"] = pod["metadata"]["creationTimestamp"]
            await self.patch_status(POD, name, {"conditions": [refused]}, self.namespace)
            return
        node = f"{self.namespace}-{name}"
        wanted = {
            names.LABEL_CLASS: labels[names.LABEL_CLASS],
            names.LABEL_CAPACITY_TYPE: labels[names.LABEL_MARKET],
            names.LABEL_NODE_ZONE: labels[names.LABEL_ZONE],
        }
        await self.api.create(NODE, {"metadata": {"name": node, "labels": wanted}, "spec": {"providerID": "aws:///i"}})
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
        await self.patch_status(NODE, node, {"conditions": [ready]})
        self.machines[name] = node
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}}
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        await self.api.request("POST", POD.path(self.namespace, name, "binding"), body={**binding, "target": target})
        number = next(_numbers)
        address = f"127.1.{number // 250}.{number % 250 + 1}"
        self.reports[address] = EngineReport(phase=EnginePhase.UNASSIGNED)
        await self._listen(address, labels[names.LABEL_SERVICE])
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        await self.patch_status(POD, name, status, self.namespace)

    async def _mount(self) -> None:
        """Bring the certificates of Secrets into the pods, as kubelets do."""
        for secret in (await self.api.list(SECRET, self.namespace))[0]:
            name = secret["metadata"]["name"]
            if name.endswith("-tls"):
                files = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
                folder = self.mounted / name
                if not folder.exists() or {key: (folder / key).read_text() for key in files} != files:
                    write_as_kubelet(folder, files)

    async def _listen(self, address: str, service: str) -> None:
        """Start the supervisor of a pod: it has the certificate of its own service."""
        if service not in self.keyrings:
            complaints: list[str] = []
            folder = self.mounted / names.certificates(service, Role.ENGINE)
            self.keyrings[service] = Keyring(folder, complaints.append)
        context = self.keyrings[service].server
        await web.TCPSite(self.runner, address, self.control_port, ssl_context=context).start()

    async def listen_as_router(self, address: str) -> None:
        """Start the port at which a router tells its metrics: plain, as any scraper asks."""
        await web.TCPSite(self.runner, address, self.control_port).start()

    async def _start(self, name: str, pod: Json) -> None:
        report = self.reports[pod["status"]["podIP"]]
        ready = {"type": "Ready", "status": "True" if report.phase is EnginePhase.SERVING else "False"}
        old = [each for each in pod["status"].get("conditions", ()) if each["type"] == "Ready"]
        if [each["status"] for each in old] != [ready["status"]]:
            await self.patch_status(POD, name, {"conditions": [ready]}, self.namespace)

    async def _end(self, name: str, pod: Json) -> None:
        await self.api.delete(POD, name, self.namespace, grace_seconds=0)
        node = self.machines.pop(name, None)
        if node is not None:
            await self.api.delete(NODE, node)

    async def _routers(self) -> None:
        objects, _ = await self.api.list(DEPLOYMENT, self.namespace)
        for each in objects:
            wanted = each["spec"]["replicas"]
            if each.get("status", {}).get("readyReplicas") != wanted:
                status = {"readyReplicas": wanted, "replicas": wanted, "availableReplicas": wanted}
                await self.patch_status(DEPLOYMENT, each["metadata"]["name"], status, self.namespace)

    # The supervisors: one server, which tells them apart by the address that was asked.
    async def answer(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        address = request.transport.get_extra_info("sockname")[0]
        if address in self.routers:
            return web.Response(body=self.routers[address].exposition(), content_type="text/plain")
        rings = self.keyrings.values()
        if not any(ring.role(request.transport.get_extra_info("peercert")) is Role.OPERATOR for ring in rings):
            return web.Response(status=403)
        if request.headers.get("Authorization") not in {f"Bearer {key}" for key in await self._keys()}:
            return web.Response(status=401)
        report = self.reports[address]
        match request.method, request.path:
            case "PUT", "/v1/assignment":
                assignment = Assignment.model_validate_json(await request.read())
                self.assigned[assignment.replica] = assignment
                able = (Capability.RESUME_EXACT.value, Capability.CARRY_KV.value)
                report = EngineReport(phase=EnginePhase.SERVING, generation=assignment.generation, capabilities=able)
            case "POST", "/v1/drain":
                self.drained.append(address)
                self.deadlines.append(DrainRequest.model_validate_json(await request.read()).deadline)
                report = report.model_copy(update={"phase": EnginePhase.DRAINING})
        self.reports[address] = report
        return web.Response(text=report.model_dump_json(), content_type="application/json")

    async def _keys(self) -> set[str]:
        objects, _ = await self.api.list(SECRET, self.namespace)
        keys = [each for each in objects if each["metadata"]["name"].endswith("-engine-key")]
        return {base64.b64decode(each["data"][KEY_FIELD]).decode() for each in keys}


def reconciler(api: Api, session: aiohttp.ClientSession, port: int) -> Reconciler:
    return Reconciler(
        api,
        Supervisors(session, port),
        Routers(session, port),
        IMAGES,
        EventPost(api, "test"),
        OperatorMetrics(CollectorRegistry()),
    )


@asynccontextmanager
async def world(kubeconfig: Path, admin: Path | None = None) -> AsyncIterator[World]:
    """Yield a world in a namespace of its own that enforces Pod Security "restricted"."""
    namespace = f"w{next(_numbers)}"
    async with connected(kubeconfig) as api, connected(admin or kubeconfig) as root, aiohttp.ClientSession() as session:
        level = {"pod-security.kubernetes.io/enforce": "restricted"}
        await root.create(NAMESPACE, {"metadata": {"name": namespace, "labels": level}})
        app = web.Application()
        runner = web.AppRunner(app, access_log=None)
        port = free_port()
        try:
            with tempfile.TemporaryDirectory(prefix="medley-world-") as mounted:
                here = World(root, namespace, reconciler(api, session, port), port, runner, Path(mounted))
                app.router.add_route("*", "/{path:.*}", here.answer)
                await runner.setup()
                yield here
        finally:
            await _swept(root, namespace)
            await runner.cleanup()


async def _swept(api: Api, namespace: str) -> None:
    """Leave nothing that another test would see: services, pods, and all that is cluster-scoped."""
    for service in (await api.list(LLM_SERVICE, namespace))[0]:
        name = service["metadata"]["name"]
        await api.merge(LLM_SERVICE, name, namespace, {"metadata": {"finalizers": None}})
        await api.delete(LLM_SERVICE, name, namespace)
    for pod in (await api.list(POD, namespace))[0]:
        await api.delete(POD, pod["metadata"]["name"], namespace, grace_seconds=0)
    for kind in (ACCELERATOR_CLASS, PERFORMANCE_PROFILE, MONEY_BUDGET, NODE_POOL, NODE):
        for each in (await api.list(kind))[0]:
            await api.delete(kind, each["metadata"]["name"])


async def eventually(holds: Callable[[], Any], attempts: int = 300) -> None:
    """Wait until an async condition holds; the test's own assertion says what it was about."""
    for _ in range(attempts):
        if await holds():
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it did not come true")
