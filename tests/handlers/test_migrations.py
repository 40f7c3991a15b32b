"""Migrations against the real API server: written with a notice, true to the end, gone after a week, never in the way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import aiohttp
import pytest

from medley.core import names
from medley.core.migrations import How
from medley.kube.api import LLM_SERVICE, MIGRATION, NODE, POD
from medley.kube.errors import RefusedError
from medley.router.metrics import RouterMetrics
from tests.handlers.test_faults import killed_pass
from tests.handlers.test_life import served, writes
from tests.handlers.test_traffic import router_pods
from tests.handlers.world import reconciler

pytestmark = pytest.mark.apiserver

LEAVING = "chat-l4-s-a-0"
TAINT = {"key": names.TAINT_KARPENTER_DISRUPTED, "effect": "NoSchedule"}
# So far apart that routers are asked again in each pass.
STEP = timedelta(seconds=5)


class Clock:
    """The operator's, which tests move; it begins with the API server's."""

    def __init__(self, here) -> None:
        self.now = datetime.now(UTC).replace(microsecond=0)
        object.__setattr__(here.reconciler, "clock", lambda: self.now)
        self._here = here

    async def passes(self, by: timedelta = STEP) -> float | None:
        """Let time go by, and make a pass to which nobody reacts."""
        self.now += by
        return await self._here.reconciler.reconcile((self._here.namespace, "chat"))


def stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


async def migrations(here):
    return (await here.api.list(MIGRATION, here.namespace))[0]


async def the_one(here):
    (found,) = await migrations(here)
    return found


async def listening(here) -> list[RouterMetrics]:
    """Run two routers and return what they count."""
    return [here.routers.setdefault(address, RouterMetrics()) for address in await router_pods(here)]


async def test_a_notice_is_on_record_from_the_first_moment_to_a_week_after_its_end(here, plane):
    await served(here)
    one, two = await listening(here)
    clock = Clock(here)
    node = here.machines[LEAVING]
    await here.api.merge(NODE, node, None, {"spec": {"taints": [TAINT]}})
    one.live.running = lambda: {LEAVING: 3}
    assert await clock.passes() == 5
    begun = await the_one(here)
    assert begun["metadata"]["name"].startswith(f"chat-{node}"[:40])
    service = await here.service()
    assert [each["uid"] for each in begun["metadata"]["ownerReferences"]] == [service["metadata"]["uid"]]
    assert begun["spec"] == {
        "service": "chat",
        "node": node,
        "deadline": stamp(clock.now + timedelta(seconds=120)),
        "source": "KarpenterTaint",
        "cause": "Unknown",
        "replicas": [LEAVING],
    }
    none = {"finished": 0, "carried": 0, "refilled": 0, "lost": 0}
    planned = {"phase": "Planned", "replacements": ["chat-l4-s-a-2"], "moves": [], "streams": none, "message": ""}
    assert begun["status"] == planned

    # The deadline slides, as the taint does not say when it came; the record keeps the first, and stands still.
    await clock.passes()
    still = await the_one(here)
    assert still["metadata"]["resourceVersion"] == begun["metadata"]["resourceVersion"]

    one.left.count(LEAVING, How.FINISHED)
    two.left.count(LEAVING, How.CARRIED)
    two.left.departed(LEAVING)
    await clock.passes()
    assert (await the_one(here))["status"] == {
        **planned,
        "phase": "Moving",
        "moves": [
            {"replica": LEAVING, "method": "Carry", "streams": 1},
            {"replica": LEAVING, "method": "Finish", "streams": 1},
        ],
        "streams": {**none, "finished": 1, "carried": 1},
    }

    # Its pod is gone, and a stream is nowhere yet; then that one goes on, too.
    one.live.running = dict
    await here.api.delete(POD, LEAVING, here.namespace, grace_seconds=0)
    await clock.passes()
    assert (await the_one(here))["status"]["phase"] == "Moving"
    two.left.arrived(LEAVING, How.REFILLED)
    await clock.passes()
    ended = await the_one(here)
    assert ended["spec"] == begun["spec"]
    assert ended["status"] == {
        "phase": "Completed",
        "replacements": ["chat-l4-s-a-2"],
        "moves": [
            {"replica": LEAVING, "method": "Carry", "streams": 1},
            {"replica": LEAVING, "method": "Finish", "streams": 1},
            {"replica": LEAVING, "method": "Reprefill", "streams": 1},
        ],
        "streams": {"finished": 1, "carried": 1, "refilled": 1, "lost": 0},
        "completedAt": stamp(clock.now),
        "message": "streams: 1 finished, 1 carried with their KV cache, 1 computed again",
    }
    head, row = plane.kubectl("get", "migrations", "-n", here.namespace).splitlines()
    assert " ".join(head.split()) == "NAME SERVICE NODE CAUSE PHASE FINISHED CARRIED REFILLED LOST AGE"
    assert row.split()[1:9] == ["chat", node, "Unknown", "Completed", "1", "1", "1", "0"]

    # Routers forget, and nothing is written any more, until its week is over.
    await here.settle(passes=4)
    before = await writes(here)
    for _ in range(3):
        assert await clock.passes() == 60
    assert await writes(here) == before
    await clock.passes(timedelta(days=7))
    assert await migrations(here) == []


async def test_a_machine_that_vanished_is_on_record_with_what_it_cost(here):
    await served(here)
    (router, _), clock = await listening(here), Clock(here)
    node = here.machines[LEAVING]
    await here.lose(LEAVING)
    router.left.count(LEAVING, How.RESUMED)
    router.left.count(LEAVING, How.LOST)
    await clock.passes()
    found = await the_one(here)
    assert found["spec"] == {
        "service": "chat",
        "node": node,
        "deadline": stamp(clock.now),
        "source": "NodeGone",
        "cause": "Unknown",
        "replicas": [LEAVING],
    }
    assert found["status"]["phase"] == "Moving"
    await clock.passes()
    status = (await the_one(here))["status"]
    assert (status["phase"], status["message"]) == ("Failed", "streams: 1 computed again, 1 lost")


async def test_what_no_router_told_is_left_out(here):
    await served(here)
    clock = Clock(here)
    await here.lose(LEAVING)
    await clock.passes()
    assert (await the_one(here))["status"] == {
        "phase": "Planned",
        "replacements": ["chat-l4-s-a-2"],
        "moves": [],
        "message": "there was no router to ask",
    }
    await clock.passes(timedelta(minutes=2))
    said = "the replicas are gone; there was no router to ask: what became of their streams is not known"
    status = (await the_one(here))["status"]
    assert (status["phase"], status["message"], status.get("streams")) == ("Completed", said, None)


async def test_killed_before_any_write_there_is_one_record_in_the_end(here):
    await served(here)
    await here.lose(LEAVING)
    async with aiohttp.ClientSession() as session:
        for number in range(40):
            if not await killed_pass(here, session, number):
                break
    found = await the_one(here)
    assert (found["spec"]["replicas"], found["status"]["replacements"]) == ([LEAVING], ["chat-l4-s-a-2"])
    assert set(await here.pods()) == {"chat-l4-s-a-1", "chat-l4-s-a-2"}


async def test_a_service_that_is_deleted_begins_no_record(here):
    await served(here)
    await here.api.delete(LLM_SERVICE, "chat", here.namespace)
    await here.lose(LEAVING)
    await here.reconciler.reconcile((here.namespace, "chat"))
    assert await migrations(here) == []


class WithoutMigrations:
    """An API server that refuses some verbs of Migrations, as with roles or CRDs of an older installation."""

    def __init__(self, api, refused):
        self._api, self._refused = api, refused

    def __getattr__(self, name):
        method = getattr(self._api, name)

        async def asked(*arguments, **options):
            if name in self._refused and MIGRATION in arguments:
                raise RefusedError(f"{name} migrations: forbidden")
            return await method(*arguments, **options)

        return asked


@pytest.mark.parametrize(
    ("refused", "records", "counted"),
    [
        pytest.param(("list",), 0, 0, id="they cannot be read"),
        pytest.param(("create",), 0, 1, id="they cannot be made"),
        pytest.param(("server_side_apply",), 1, 1, id="their status cannot be written"),
    ],
)
async def test_records_that_are_refused_keep_no_pass_from_repairing(here, refused, records, counted):
    await served(here)
    await here.lose(LEAVING)
    async with aiohttp.ClientSession() as session:
        limited = reconciler(WithoutMigrations(here.api, refused), session, here.control_port)
        await limited.reconcile((here.namespace, "chat"))
    assert set(await here.pods()) == {"chat-l4-s-a-1", "chat-l4-s-a-2"}
    assert len(await migrations(here)) == records
    found = limited.metrics.registry.get_sample_value("medley_refusals_total", {"reason": "RefusedByCluster"})
    assert (found or 0) == counted
