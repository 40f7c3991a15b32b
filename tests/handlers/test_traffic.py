"""Measured traffic against the real API server: from routers' metrics to the plan, through new leaders, without noise."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from medley.core import names
from medley.core.workload import SizeGrid
from medley.handlers.routers import Routers
from medley.kube.api import DEPLOYMENT, POD
from medley.router.metrics import RouterMetrics
from tests.handlers.test_life import made, writes
from tests.handlers.world import World, reconciler

pytestmark = pytest.mark.apiserver

GRID = SizeGrid((1000,), (1000,))
WORKLOAD = {
    "requestsPerSecond": 3,
    "source": "Observed",
    "distribution": {"histogram": {"inputEdges": [1000], "outputEdges": [1000], "weights": [[1]]}},
}


class Traffic:
    """Two routers of one service that count requests, and a clock."""

    def __init__(self, here: World, addresses: tuple[str, ...]) -> None:
        self.here, self.now = here, datetime(2030, 1, 1, 12, 0, tzinfo=UTC)
        self.metrics = [here.routers.setdefault(address, RouterMetrics(self.seconds)) for address in addresses]
        self.lead(here.reconciler)

    def seconds(self) -> float:
        return self.now.timestamp()

    def lead(self, leader) -> None:
        object.__setattr__(leader, "clock", lambda: self.now)
        self.here.reconciler = leader

    async def minutes(self, number: int, rate: float) -> None:
        """Let minutes go by with evenly spaced requests, and a pass after each."""
        for _ in range(number):
            for each in range(round(rate * 60)):
                self.now += timedelta(seconds=1 / rate)
                router = self.metrics[each % len(self.metrics)]
                bucket = GRID.bucket(900, 900)
                router.asked(GRID, bucket, 900)
                router.finished(GRID, bucket, 800)
            await self.here.pass_over()


async def router_pods(here: World) -> tuple[str, ...]:
    """Make the pods that the Deployment's controller would, and run them."""
    deployment = await here.api.get(DEPLOYMENT, names.router("chat"), here.namespace)
    addresses = ("127.2.0.1", "127.2.0.2")
    for number, address in enumerate(addresses):
        template = deployment["spec"]["template"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"chat-router-{number}", "labels": template["metadata"]["labels"]},
            "spec": template["spec"] | {"automountServiceAccountToken": False},
        }
        await here.api.create(POD, pod, here.namespace)
        await here.patch_status(POD, f"chat-router-{number}", {"phase": "Running", "podIP": address}, here.namespace)
        await here.listen_as_router(address)
    return addresses


async def test_measured_traffic_takes_the_forecast_s_place(here):
    await made(here, workload=WORKLOAD)
    await here.settle(passes=4)
    unknown = "Planned for the forecast of spec.workload; traffic is not measured yet: "
    assert await here.condition("WorkloadObserved") == ("Unknown", "Forecast", f"{unknown}no router was heard yet")
    traffic = Traffic(here, await router_pods(here))
    await traffic.minutes(1, 5.0)
    why = "routers were listened to for less than 5 minutes"
    assert await here.condition("WorkloadObserved") == ("Unknown", "Forecast", f"{unknown}{why}")
    assert (await here.service())["status"]["replicas"]["desired"] == 2

    await traffic.minutes(6, 5.0)
    status = (await here.service())["status"]
    assert status["workload"]["classes"] == [{"input": 0, "output": 0, "requestsPerSecond": "5.25", "made": [1000]}]
    # 5 requests/s and 5 % at 85 % of 2 per replica.
    assert (status["replicas"]["desired"], status["workload"]["requestsPerSecond"]) == (4, "5.25")
    truth, reason, message = await here.condition("WorkloadObserved")
    assert (truth, reason) == ("True", "Measured")
    assert message.startswith("Planned for up to 5.25 requests/s, of sizes that routers measured up to 2030-01-01 12:0")

    # Noise writes nothing: neither 3 % more traffic nor the time that goes by.
    await here.settle(passes=4)
    before = await writes(here)
    await traffic.minutes(3, 5.15)
    assert await writes(here) == before

    # Another leader has heard nothing, and goes on with what the status says.
    fresh = reconciler(here.api, here.reconciler.supervisors._session, here.control_port)
    assert isinstance(fresh.routers, Routers)
    traffic.lead(fresh)
    await here.pass_over()
    assert (await here.service())["status"]["workload"] == status["workload"]
    assert await writes(here) == before

    # Once it has listened, more traffic counts at once: 9.45 are needed, and a quarter more are planned for.
    await traffic.minutes(7, 9.0)
    status = (await here.service())["status"]
    assert (status["replicas"]["desired"], status["workload"]["requestsPerSecond"]) == (7, "11.8")
    assert status["workload"]["days"]["changes"] == 1
