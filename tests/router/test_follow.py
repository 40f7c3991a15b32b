"""The router on a real API server: it finds its engines, follows the plan, and leaves a node that is lost."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import pytest

from e2e.stage.apiserver import ControlPlane
from medley.router import cluster as cluster_source
from medley.router.main import running
from medley.router.settings import RouterSettings
from tests.router.stub_engine import MODEL, StubEngine
from tests.router.test_server import expected, said, stream, until

pytestmark = pytest.mark.apiserver
NAMESPACE = "followed"
PORTS = (8000, 8001, 8002)


@dataclass
class Cluster:
    """What a test does to the cluster, without holding up the router in the same event loop."""

    plane: ControlPlane

    async def kubectl(self, *arguments: str, stdin: object = None) -> str:
        text = None if stdin is None else json.dumps(stdin)
        return await asyncio.to_thread(partial(self.plane.kubectl, *arguments, stdin=text))

    async def engine(self, name: str, address: str) -> None:
        """Make a node and a ready pod on it at this address of the loopback interface."""
        await self.kubectl(
            "apply", "-f", "-", stdin={"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"node-{name}"}}
        )
        labels = {"medley.dev/service": "chat", "medley.dev/component": "engine", "medley.dev/shape": "l4"}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
            "spec": {"nodeName": f"node-{name}", "containers": [{"name": "engine", "image": "none"}]},
        }
        await self.kubectl("apply", "-f", "-", stdin=pod)
        ready = {"type": "Ready", "status": "True"}
        await self.status(f"node/node-{name}", {"conditions": [{**ready, "reason": "KubeletReady"}]})
        await self.status(
            f"pod/{name}", {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [ready]}
        )

    async def status(self, name: str, status: dict[str, object]) -> None:
        await self.kubectl(
            "patch",
            name,
            "--namespace",
            NAMESPACE,
            "--subresource=status",
            "--type=merge",
            "-p",
            json.dumps({"status": status}),
        )


@pytest.fixture
def cluster(plane):
    plane.kubectl("create", "namespace", NAMESPACE)
    yield Cluster(plane)
    plane.kubectl("delete", "llmservices,pods", "--all", "--namespace", NAMESPACE, "--force", "--grace-period=0")
    plane.kubectl("delete", "nodes", "--all")


async def test_a_router_finds_its_engines_and_leaves_a_lost_node(cluster, plane, tmp_path):
    key = tmp_path / "key"
    key.write_text("secret")
    service = {
        "apiVersion": "medley.dev/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "chat", "namespace": NAMESPACE},
        "spec": {"model": {"name": "org/model", "servedName": MODEL}, "router": {"requestTimeout": "1m"}},
    }
    await cluster.kubectl("apply", "-f", "-", stdin=service)
    engines = {
        f"e{n}": (StubEngine(key="secret", resumes_output=True, pause=lambda _: 0.02), f"127.0.77.{n}") for n in (1, 2)
    }
    settings = RouterSettings(
        namespace=NAMESPACE,
        service="chat",
        engine_key_file=key,
        host="127.0.0.1",
        port=0,
        grace=timedelta(seconds=0.2),
    )
    async with AsyncExitStack() as stack:
        for engine, address in engines.values():
            await stack.enter_async_context(engine.running(address, PORTS))
        source = partial(cluster_source.follow, NAMESPACE, "chat", kubeconfig=plane.kubeconfig)
        router = await stack.enter_async_context(running(settings, source))
        for name, (_, address) in engines.items():
            await cluster.engine(name, address)
        streams = [asyncio.create_task(stream(router.url, max_tokens=200, presence_penalty=1.0)) for _ in range(6)]
        first, second = (engine for engine, _ in engines.values())
        await until(lambda: first.open == second.open == 3)
        await asyncio.sleep(2.5)  # the router asks engines for their capabilities every 2 s
        # A Node that is gone already went: nothing waits for a deadline.
        await asyncio.to_thread(plane.kubectl, "delete", "node", "node-e1")
        await until(lambda: first.open == 0)
        calls = len(first.calls)
        results = [await each for each in streams]
        later = await asyncio.gather(*(stream(router.url, max_tokens=2) for _ in range(4)))
    assert [said(events)[1:] for _, events in results] == [expected(200, outputs_count=True)[1:]] * 6
    assert [said(events)[1:] for _, events in later] == [expected(2)[1:]] * 4
    assert (len(first.calls), first.vanished) == (calls, 3)
    resumed = [call for call in second.calls if (call["sampling_params"].get("extra_args") or {})]
    assert len(resumed) == 3  # taken back as outputs, as the engine said that it can
