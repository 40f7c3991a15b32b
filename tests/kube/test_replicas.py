"""What a pod and its supervisor's report are together: one row per combination that matters."""

from datetime import UTC, datetime

import pytest

from medley.core.accelerators import Shape
from medley.core.errors import InvalidInputError
from medley.kube.replicas import address, replica
from medley.kube.status import read_market, shape_of
from medley.planning.fleet import ReplicaPhase
from medley.testing.builders import offering
from medley.wire.assignment import EnginePhase, EngineReport

SINCE = "2030-01-01T11:00:00Z"


def pod(*, node="n", ready=None, phase="Running", containers=(), conditions=(), **metadata):
    ready_condition = [] if ready is None else [{"type": "Ready", "status": ready}]
    return {
        "metadata": {
            "name": "chat-l4-s-a-0",
            "uid": "u",
            "creationTimestamp": SINCE,
            "labels": {
                "medley.dev/shape": "l4",
                "medley.dev/market": "spot",
                "medley.dev/zone": "a",
                "medley.dev/template-hash": "h",
            },
            **metadata,
        },
        "spec": {"nodeName": node} if node else {},
        "status": {
            "phase": phase,
            "podIP": "10.0.0.1",
            "conditions": [*ready_condition, *conditions],
            "containerStatuses": list(containers),
        },
    }


def seen(shown, report=None, **more):
    return replica(shown, report, **{"template": "h", "node_is_coming": False, **more})


def says(phase, **more):
    return EngineReport(phase=phase, generation=1, **more)


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "lastTransitionTime": SINCE,
    "message": "0/3 nodes",
}


@pytest.mark.parametrize(
    ("shown", "report", "phase"),
    [
        pytest.param(pod(node=""), None, ReplicaPhase.WAITING, id="no-node"),
        pytest.param(pod(), None, ReplicaPhase.STARTING, id="silent-and-not-ready"),
        pytest.param(pod(ready="True"), None, ReplicaPhase.SERVING, id="silent-but-ready"),
        pytest.param(pod(ready="True"), says(EnginePhase.SERVING), ReplicaPhase.SERVING, id="serving"),
        pytest.param(pod(ready="False"), says(EnginePhase.SERVING), ReplicaPhase.STARTING, id="not-ready-yet"),
        pytest.param(pod(ready="True"), says(EnginePhase.STALLED), ReplicaPhase.STALLED, id="stalled"),
        pytest.param(pod(), says(EnginePhase.UNASSIGNED), ReplicaPhase.STARTING, id="unassigned"),
        pytest.param(pod(), says(EnginePhase.DRAINING), ReplicaPhase.DRAINING, id="draining"),
        pytest.param(pod(), says(EnginePhase.STOPPED), ReplicaPhase.DRAINING, id="stopped"),
        pytest.param(pod(), says(EnginePhase.FAILED), ReplicaPhase.FAILED, id="failed"),
        pytest.param(pod(phase="Failed"), None, ReplicaPhase.ENDED, id="evicted"),
        pytest.param(pod(phase="Succeeded"), None, ReplicaPhase.ENDED, id="ended"),
    ],
)
def test_phase(shown, report, phase):
    assert seen(shown, report).phase is phase


def test_a_pod_without_a_node_is_short_of_capacity_since_the_scheduler_said_so():
    found = seen(pod(node="", conditions=[UNSCHEDULABLE]), told="NoCompatibleInstanceTypes: sold out")
    assert found.unschedulable_since == datetime(2030, 1, 1, 11, tzinfo=UTC)
    assert (found.reason, found.message) == ("Unschedulable", "NoCompatibleInstanceTypes: sold out")
    assert seen(pod(node="", conditions=[UNSCHEDULABLE])).message == "0/3 nodes"


def test_a_pod_whose_machine_boots_only_waits():
    found = seen(pod(node="", conditions=[UNSCHEDULABLE]), node_is_coming=True)
    assert (found.phase, found.unschedulable_since, found.reason) == (ReplicaPhase.WAITING, None, "")


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        pytest.param({"waiting": {"reason": "ErrImagePull"}}, "ErrImagePull", id="pull"),
        pytest.param({"waiting": {"reason": "ImagePullBackOff"}}, "ErrImagePull", id="pull-back-off-is-the-same"),
        pytest.param({"waiting": {"reason": "CreateContainerConfigError"}}, "CreateContainerConfigError", id="config"),
        pytest.param({"waiting": {"reason": "CrashLoopBackOff"}}, "CrashLoopBackOff", id="crash"),
        pytest.param({"waiting": {"reason": "ContainerCreating"}}, "", id="on-its-way"),
        pytest.param({"running": {}}, "", id="running"),
    ],
)
def test_what_keeps_it_from_starting(state, reason):
    container = {"name": "engine", "image": "i:1", "state": state}
    assert seen(pod(containers=[container])).reason == reason


@pytest.mark.parametrize(("template", "outdated"), [("h", False), ("other", True), (None, False)])
def test_outdated(template, outdated):
    assert seen(pod(), template=template).outdated is outdated


def test_the_rest_is_taken_over():
    found = seen(pod(deletionTimestamp=SINCE), says(EnginePhase.SERVING, running=2, waiting=3))
    assert (found.name, found.uid, found.offering, found.node) == ("chat-l4-s-a-0", "u", offering(), "n")
    assert (found.leaving, found.assigned, found.running) == (True, True, 5)
    assert not seen(pod(), EngineReport(phase=EnginePhase.UNASSIGNED)).assigned


def test_only_a_running_pod_that_stays_is_spoken_to():
    assert address(pod()) == "10.0.0.1"
    assert address(pod(phase="Pending")) is None
    assert address(pod(deletionTimestamp=SINCE)) is None


@pytest.mark.parametrize(
    "shape", [Shape("l4"), Shape("a100-80gb"), Shape("l4", 2), Shape("l4", 1, 2), Shape("a100-80gb", 8, 2)]
)
def test_a_shape_is_read_back_from_its_key(shape):
    assert shape_of(shape.key) == shape


def test_an_unknown_market_is_refused_with_those_there_are():
    with pytest.raises(InvalidInputError, match="expected one of spot, on-demand, reserved, got 'auction'"):
        read_market("auction")
