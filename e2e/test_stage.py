"""The stage itself: nodes to order, nodes taken away in every form, crashes healed, and nothing left behind.

Takes the machine's stage over: brings it up, and down at the end.
"""

import json
import signal
import socket
import time
from collections.abc import Generator

import pytest

from e2e.stage import cloud, cluster, hold, images, machine, notices, paths
from e2e.stage.api import Api
from e2e.stage.processes import StageError, load, wait_until
from e2e.stage.progress import Board
from e2e.stage.traces import Traces

pytestmark = pytest.mark.stage

NAMESPACE = "stage-test"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
POOL = {
    "apiVersion": "karpenter.sh/v1",
    "kind": "NodePool",
    "metadata": {"name": "stage-test"},
    "spec": {
        "template": {
            "spec": {
                "nodeClassRef": {"group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": "default"},
                "expireAfter": "Never",
                "requirements": [
                    {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["spot"]},
                    {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["g6.xlarge"]},
                ],
            }
        },
        "disruption": {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "Never"},
    },
}
ECHO = """
import signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
server = socket.create_server(("0.0.0.0", 7000))
while True:
    connection, _ = server.accept()
    connection.sendall(b"hello\\n")
    globals().setdefault("held", []).append(connection)
"""


def gpu_pod(name: str, *, zone: str = "stage-b") -> dict[str, object]:
    """Return a restricted pod that wants one GPU, and greets whoever connects to port 7000."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "nodeSelector": {"topology.kubernetes.io/zone": zone},
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "echo",
                    "image": images.reference("python-base"),
                    "command": ["python3", "-c", ECHO],
                    "readinessProbe": {"tcpSocket": {"port": 7000}, "periodSeconds": 1},
                    "resources": {"limits": {"nvidia.com/gpu": "1"}},
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }


@pytest.fixture(scope="module")
def before() -> Traces:
    cluster.down(Board())
    return Traces.of_this_machine()


@pytest.fixture(scope="module")
def api(before: Traces) -> Generator[Api, None, None]:
    del before  # only its order counts
    hold.take("pytest e2e/test_stage.py")
    cluster.up(Board(), boot_delay_s=0.5)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(namespace))
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(POOL))
    client, account = cluster.api(), f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"
    wait_until(lambda: client.find(account) is not None, timeout_s=30, what="the namespace's service account")
    yield client
    cluster.down(Board())


@pytest.fixture
def node(api: Api, request: pytest.FixtureRequest) -> str:
    """Return a node that Karpenter made for a pod of this test, with the pod running on it."""
    name = request.node.name.replace("_", "-").replace("[", "-").replace("]", "")[-50:].strip("-")
    wait = ("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=30s")
    for tries_left in reversed(range(10)):  # a machine that is busy elsewhere boots nodes slowly
        if api.find(f"{PODS}/{name}") is None:  # a node that is about to go may take a pod with it: none owns this one
            api.create(PODS, gpu_pod(name))
        try:
            cluster.kubectl("--namespace", NAMESPACE, *wait)
            break
        except StageError as error:
            if not tries_left:
                about = cluster.kubectl("--namespace", NAMESPACE, "describe", "pods")
                nodes = cluster.kubectl("get", "nodes,nodeclaims", "-o", "wide")
                raise StageError(f"{error}\n{about}\n{nodes}") from error
    return str(api.get(f"{PODS}/{name}")["spec"]["nodeName"])


def gone(api: Api, node: str) -> bool:
    return api.find(f"{notices.NODES}/{node}") is None and node not in machine.known()


def test_a_gpu_pod_gets_a_node_of_the_kind_it_asked_for(api: Api, node: str) -> None:
    labels = api.get(f"{notices.NODES}/{node}")["metadata"]["labels"]
    wanted = ("topology.kubernetes.io/zone", "karpenter.sh/capacity-type", "node.kubernetes.io/instance-type")
    assert [labels[key] for key in wanted] == ["stage-b", "spot", "g6.xlarge"]
    assert machine.known()[node].karpenter


def test_karpenters_notice_deletes_the_claim_and_the_machine_dies(api: Api, node: str) -> None:
    given = cloud.interrupt(api, node, notices.Form.KARPENTER, 5)
    assert given.noticed is not None
    events = api.get("/api/v1/namespaces/default/events")["items"]
    about = {e["involvedObject"]["kind"] for e in events if e["reason"] == "SpotInterrupted"}
    assert about == {"Node", "NodeClaim"}
    wait_until(lambda: gone(api, node), timeout_s=60, what="the end of node and machine")
    # Karpenter lets the claim's finalizer go after the Node's, and its Node is what names it.
    wait_until(lambda: notices.node_claim(api, node) is None, timeout_s=30, what="the end of the claim")


def test_nths_notice_is_a_taint_and_the_node_goes_after_the_machine(api: Api, node: str) -> None:
    cloud.interrupt(api, node, notices.Form.NTH, 3)
    spec = api.get(f"{notices.NODES}/{node}")["spec"]
    assert spec["unschedulable"] is True
    assert [t["key"] for t in spec["taints"] if t["effect"] == "NoSchedule" and "/spot-itn" in t["key"]] == [
        notices.NTH_TAINT
    ]
    wait_until(lambda: gone(api, node), timeout_s=90, what="the end of node and machine")


def test_without_notice_peers_hear_nothing_and_the_node_is_cleared_away(api: Api, node: str) -> None:
    pods = api.get(PODS)["items"]
    address = next(p["status"]["podIP"] for p in pods if p["spec"].get("nodeName") == node)
    with socket.create_connection((address, 7000), timeout=10) as connection:
        assert connection.recv(6) == b"hello\n"
        given = cloud.interrupt(api, node, notices.Form.NONE, 0)
        wait_until(lambda: node not in machine.known(), timeout_s=30, what="the end of the machine")
        connection.settimeout(1)
        with pytest.raises(TimeoutError):  # neither FIN nor RST
            connection.recv(1)
    wait_until(lambda: gone(api, node), timeout_s=90, what="the end of the node")
    wait_until(lambda: node in cloud.interruptions("history"), timeout_s=30, what="the record of the interruption")
    record = cloud.interruptions("history")[node]
    assert record.died is not None
    assert record.died >= given.at


def test_what_cannot_be_interrupted_is_refused_with_the_remedy(api: Api) -> None:
    with pytest.raises(StageError, match=r"no such node; there are: .*system-a, system-b"):
        cloud.interrupt(api, "nobody", notices.Form.NONE, 0)
    with pytest.raises(StageError, match=r"Karpenter did not make it .*; use --as nth or --as none"):
        cloud.interrupt(api, "system-a", notices.Form.KARPENTER, 0)


def test_services_are_reached_from_the_host_and_have_names(api: Api, node: str) -> None:
    pod = next(p for p in api.get(PODS)["items"] if p["spec"].get("nodeName") == node)
    service = {
        "metadata": {"name": "echo"},
        "spec": {"selector": pod["metadata"]["labels"], "ports": [{"port": 80, "targetPort": 7000}]},
    }
    address = api.create(f"/api/v1/namespaces/{NAMESPACE}/services", service)["spec"]["clusterIP"]

    def greets() -> bool:
        try:
            with socket.create_connection((address, 80), timeout=2) as connection:
                return connection.recv(6) == b"hello\n"
        except OSError:
            return False

    wait_until(greets, timeout_s=30, what="the service")
    lookup = f"import socket; print(socket.gethostbyname('echo.{NAMESPACE}.svc.cluster.local'))"
    said = cluster.kubectl("--namespace", NAMESPACE, "exec", pod["metadata"]["name"], "--", "python3", "-c", lookup)
    assert said.strip() == address


def test_up_heals_whatever_was_killed(api: Api) -> None:
    for name in ("apiserver", "cloud", "karpenter"):
        process = load(paths.processes() / name)
        assert process is not None
        process.kill(signal.SIGKILL)
    kubelet = machine.known()["system-b"].process("kubelet")
    assert kubelet is not None
    kubelet.kill(signal.SIGKILL)
    cluster.up(Board(), boot_delay_s=0.5)
    assert cluster.ready_nodes(api) >= cluster.STATIC.keys()
    assert all(load(file) for file in paths.processes().glob("*"))


def test_up_twice_changes_nothing(api: Api) -> None:
    del api
    running = {file.name: load(file) for file in paths.processes().glob("*")}
    cluster.up(Board(), boot_delay_s=0.5)
    assert {file.name: load(file) for file in paths.processes().glob("*")} == running


def test_writes_are_in_the_audit_log_by_user(api: Api) -> None:
    name = f"mark-{time.time_ns()}"
    api.create(f"/api/v1/namespaces/{NAMESPACE}/configmaps", {"metadata": {"name": name}})

    def logged() -> list[str]:
        from e2e.stage.controlplane import audit_log

        lines = [json.loads(line) for line in audit_log().read_text().splitlines()]
        return [e["user"]["username"] for e in lines if e.get("objectRef", {}).get("name") == name]

    wait_until(lambda: logged() == ["admin"], timeout_s=10, what="the audit event")


def test_down_leaves_nothing_behind(before: Traces, api: Api, node: str) -> None:
    del api
    assert node in machine.known()  # a machine with a pod on it is what might leave something
    cluster.down(Board())
    assert Traces.of_this_machine() == before
    assert not paths.stage().exists()
