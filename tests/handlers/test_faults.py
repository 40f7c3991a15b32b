"""Faults: killed at any write, no right too few, an API server that goes away, leaders that change, uninstalling."""

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from e2e.stage.pki import Identity
from medley.core.errors import ClusterError
from medley.handlers import operator
from medley.handlers.settings import Settings
from medley.kube.api import DEPLOYMENT, LEASE, LLM_SERVICE, MIGRATION, NODE_POOL, POD, SECRET, Api, Kind
from medley.kube.lease import Election
from medley.kube.rbac import (
    OPERATOR_CLUSTER_RULES,
    OPERATOR_NAMESPACE_RULES,
    ROUTER_NODES_ROLE,
    ROUTER_NODES_RULES,
    ROUTER_ROLE,
    ROUTER_RULES,
)
from tests.handlers.world import class_manifest, eventually, profile_manifest, reconciler, service_manifest, world

pytestmark = pytest.mark.apiserver

OPERATOR = "system:serviceaccount:medley-system:medley-operator"
CLUSTER_ROLE = Kind("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", namespaced=False)
CLUSTER_ROLE_BINDING = Kind(
    "rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", namespaced=False
)


class KilledError(BaseException):
    """The operator's process ended here."""


class Mortal:
    """Supervisors and an API that end the process before its n-th write."""

    def __init__(self, api: Api, left: int):
        self._api, self._left = api, left

    def __getattr__(self, name):
        method = getattr(self._api, name)
        if name not in ("create", "replace", "server_side_apply", "merge", "delete"):
            return method

        async def counted(*arguments, **options):
            if self._left == 0:
                raise KilledError
            self._left -= 1
            return await method(*arguments, **options)

        return counted


async def shape_of(here):
    """Return what there is, as far as it must not depend on crashes."""
    pods = await here.pods()
    return (
        sorted(pods),
        sorted(each["metadata"]["name"] for each in (await here.api.list(NODE_POOL))[0]),
        sorted(each["metadata"]["name"] for each in (await here.api.list(DEPLOYMENT, here.namespace))[0]),
        sorted(each["metadata"]["name"] for each in (await here.api.list(SECRET, here.namespace))[0]),
        [(each["type"], each["status"]) for each in (await here.service())["status"]["conditions"]],
    )


async def killed_pass(here, session, writes):
    """Make a pass that ends before its n-th write; True if it came that far."""
    mortal = reconciler(Mortal(here.api, writes), session, here.control_port)
    try:
        await mortal.reconcile((here.namespace, "chat"))
    except KilledError:
        return True
    return False


async def test_killed_before_any_write_the_next_pass_heals(here):
    await here.apply(class_manifest(), profile_manifest(), service_manifest())
    async with aiohttp.ClientSession() as session:
        for writes in range(40):
            if not await killed_pass(here, session, writes):
                break
            await here.react()
    await here.settle(passes=4)
    healed = await shape_of(here)
    assert healed[:4] == (
        ["chat-l4-s-a-0", "chat-l4-s-a-1"],
        ["medley-l4-spot"],
        ["chat-router"],
        ["chat-ca", "chat-engine-key", "chat-engine-tls", "chat-operator-tls", "chat-router-tls"],
    )
    assert [each for each in healed[4] if each[1] != "True"] == []


async def test_killed_before_any_write_of_a_deletion_the_next_pass_heals(here):
    await here.apply(class_manifest(), profile_manifest(), service_manifest())
    await here.settle(passes=5)
    await here.api.delete(LLM_SERVICE, "chat", here.namespace)
    async with aiohttp.ClientSession() as session:
        for _ in range(60):
            # One write, then dead: the slowest way to take a service apart.
            if (
                not await killed_pass(here, session, 1)
                and await here.api.get(LLM_SERVICE, "chat", here.namespace) is None
            ):
                break
            await here.react()
    assert (
        await here.api.get(LLM_SERVICE, "chat", here.namespace) is not None
    )  # one write per life never gets to the end
    for _ in range(6):
        await here.pass_over()
    assert await here.api.get(LLM_SERVICE, "chat", here.namespace) is None
    assert await here.pods() == {}
    assert (await here.api.list(NODE_POOL))[0] == []


def role(name, rules):
    return {
        "metadata": {"name": name},
        "rules": [
            {
                "apiGroups": [each.group],
                "resources": list(each.resources),
                "verbs": list(each.verbs),
                **({"resourceNames": list(each.resource_names)} if each.resource_names else {}),
            }
            for each in rules
        ],
    }


async def granted(api: Api):
    """Grant what kube/rbac.py lists to the operator's account, and make the routers' roles."""
    everything = (*OPERATOR_CLUSTER_RULES, *OPERATOR_NAMESPACE_RULES)
    for name, rules in (
        ("medley-operator", everything),
        (ROUTER_ROLE, ROUTER_RULES),
        (ROUTER_NODES_ROLE, ROUTER_NODES_RULES),
    ):
        await api.create(CLUSTER_ROLE, role(name, rules))
    subject = {"kind": "ServiceAccount", "namespace": "medley-system", "name": "medley-operator"}
    reference = {"apiGroup": CLUSTER_ROLE.group, "kind": "ClusterRole", "name": "medley-operator"}
    binding = {"metadata": {"name": "medley-operator"}, "roleRef": reference, "subjects": [subject]}
    await api.create(CLUSTER_ROLE_BINDING, binding)


async def revoked(api: Api):
    await api.delete(CLUSTER_ROLE_BINDING, "medley-operator")
    for name in ("medley-operator", ROUTER_ROLE, ROUTER_NODES_ROLE):
        await api.delete(CLUSTER_ROLE, name)


@pytest.fixture
async def as_operator(plane):
    """A world in which the operator has exactly the rights that kube/rbac.py lists."""
    limited = plane.kubeconfig_as(Identity(OPERATOR, ("system:serviceaccounts",)))
    async with world(limited, admin=plane.kubeconfig) as found:
        await granted(found.api)
        try:
            yield found
        finally:
            await revoked(found.api)


def variables(here, identity):
    return {
        "MEDLEY_ENGINE_IMAGE": "vllm:1",
        "MEDLEY_ENGINE_INIT_IMAGE": "engine:1",
        "MEDLEY_ROUTER_IMAGE": "router:1",
        "MEDLEY_NAMESPACE": here.namespace,
        "MEDLEY_IDENTITY": identity,
        "MEDLEY_BIND_HOST": "127.0.0.1",
        "MEDLEY_PORT": "0",
    }


@asynccontextmanager
async def running(here, kubeconfig: Path, identity="one"):
    """Run the whole operator, watches and all, while the cluster reacts by itself."""
    stop = asyncio.Event()
    task = asyncio.create_task(
        operator.run(
            Settings.read(variables(here, identity)), stop, kubeconfig=kubeconfig, control_port=here.control_port
        )
    )
    playing = asyncio.create_task(played(here))
    try:
        yield task
    finally:
        playing.cancel()
        stop.set()
        await asyncio.gather(task, playing, return_exceptions=True)


async def played(here):
    while True:
        with suppress(ClusterError):  # the API server is away, or an object changed under us: machines do not mind
            await here.react()
        await asyncio.sleep(0.05)


async def is_ready(here):
    status = (await here.service()).get("status", {})
    return any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions", ()))


async def test_the_whole_operator_with_exactly_its_rights(as_operator, plane, caplog):
    here = as_operator
    limited = plane.kubeconfig_as(Identity(OPERATOR, ("system:serviceaccounts",)))
    async with running(here, limited):
        await here.apply(class_manifest(), profile_manifest(), service_manifest())
        await eventually(lambda: is_ready(here))
        await here.lose("chat-l4-s-a-0")

        async def replaced():
            return set(await here.pods()) == {"chat-l4-s-a-1", "chat-l4-s-a-2"} and await is_ready(here)

        await eventually(replaced)
        assert [each["spec"]["replicas"] for each in (await here.api.list(MIGRATION, here.namespace))[0]] == [
            ["chat-l4-s-a-0"]
        ]
        await here.api.delete(LLM_SERVICE, "chat", here.namespace)

        async def gone():
            return await here.api.get(LLM_SERVICE, "chat", here.namespace) is None

        await eventually(gone)
    assert "forbidden" not in caplog.text.lower()


async def test_an_api_server_that_goes_away_is_waited_for(here, plane):
    async with running(here, plane.kubeconfig) as task:
        await here.apply(class_manifest(), profile_manifest(), service_manifest())
        await eventually(lambda: is_ready(here))
        kill_apiserver(plane)
        await asyncio.sleep(3)
        # Here and not in a thread: the server dies with the thread that starts it.
        plane.start_apiserver(plane._cleanup)
        assert not task.done()
        lost = min(here.machines)
        await here.lose(lost)

        async def replaced():
            try:
                return lost not in await here.pods() and await is_ready(here)
            except ClusterError:
                return False

        await eventually(replaced, attempts=600)


def kill_apiserver(plane):
    """End the API server's process, which its port names, without a word."""
    port = f"--secure-port={plane.addresses.port}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if port in arguments and arguments[0].endswith(b"kube-apiserver"):
                os.kill(int(entry.name), signal.SIGKILL)


async def started(here, plane, identity):
    """Start an operator as a process of its own; it is told to stop with SIGTERM."""
    environment = {
        **os.environ,
        "KUBECONFIG": str(plane.kubeconfig),
        **variables(here, identity),
        "PYTHONPATH": os.pathsep.join(each for each in sys.path if each),
    }
    command = (sys.executable, "-c", "from medley.app import run_operator; run_operator()")
    return await asyncio.create_subprocess_exec(*command, env=environment)


async def test_one_leads_and_the_other_follows_at_once(here, plane):
    async def leads(identity):
        lease = await here.api.get(LEASE, "medley-operator", here.namespace)
        return lease is not None and lease["spec"]["holderIdentity"] == identity

    one = await started(here, plane, "one")
    await eventually(lambda: leads("one"))
    two = await started(here, plane, "two")
    try:
        one.terminate()
        assert await one.wait() == 0
        await eventually(lambda: leads("two"))
    finally:
        two.terminate()
        assert await two.wait() == 0
    assert await leads("")


async def test_a_dead_leader_is_followed_once_its_lease_ran_out(here):
    now = [100.0]
    dead = Election(here.api, here.namespace, "lease", "dead", clock=lambda: now[0])
    heir = Election(here.api, here.namespace, "lease", "heir", clock=lambda: now[0])
    assert await dead.held()
    assert not await heir.held()
    now[0] += 15
    assert not await heir.held()
    now[0] += 0.1
    assert await heir.held()
    assert not await dead.held()


async def test_a_leader_that_renews_is_never_followed(here):
    now = [100.0]
    leader = Election(here.api, here.namespace, "lease", "leader", clock=lambda: now[0])
    other = Election(here.api, here.namespace, "lease", "other", clock=lambda: now[0])
    for _ in range(5):
        assert await leader.held()
        assert not await other.held()
        now[0] += 14


async def test_a_lost_lease_stops_the_leader_at_once(here):
    leader = Election(here.api, here.namespace, "lease", "leader")
    events = []

    async def act():
        events.append("acting")
        try:
            await asyncio.Event().wait()
        finally:
            events.append("stopped")

    task = asyncio.create_task(leader.lead(act))

    async def acting():
        return "acting" in events

    await eventually(acting)
    lease = await here.api.get(LEASE, "lease", here.namespace)
    await here.api.replace(
        LEASE,
        {**lease, "spec": {**lease["spec"], "holderIdentity": "thief", "leaseDurationSeconds": 60}},
        here.namespace,
    )

    async def stopped():
        return "stopped" in events

    await eventually(stopped)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_released_services_are_deleted_without_an_operator(here):
    await here.apply(class_manifest(), profile_manifest(), service_manifest())
    await here.settle(passes=5)
    assert await operator.release_all(here.api) == 1
    assert "finalizers" not in (await here.service())["metadata"]
    assert len(await here.pods()) == 2
    await here.api.delete(LLM_SERVICE, "chat", here.namespace)
    assert await here.api.get(LLM_SERVICE, "chat", here.namespace) is None


async def test_a_router_pod_passes_restricted_pod_security(here):
    await here.apply(class_manifest(), profile_manifest(), service_manifest())
    await here.pass_over()
    deployment = await here.api.get(DEPLOYMENT, "chat-router", here.namespace)
    template = deployment["spec"]["template"]
    await here.api.create(
        POD, {"metadata": {"name": "probe", **template["metadata"]}, "spec": template["spec"]}, here.namespace
    )
