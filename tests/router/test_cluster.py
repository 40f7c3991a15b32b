"""The fleet that Pods, Nodes and an LLMService show."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from medley.core.workload import Bucket, SizeGrid
from medley.planning.routing import RoutingTable
from medley.router.cluster import table_of, tokenizer_url, view_of
from medley.router.fleet import FleetView, Replica

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def pod(name="p", *, address="10.0.0.5", ready="True", deleted=None, phase="Running", annotations=None, node="n"):
    meta = {
        "name": name,
        "uid": f"uid-{name}",
        "labels": {"medley.dev/shape": "l4"},
        "annotations": annotations or {"medley.dev/max-running": "12"},
    }
    if deleted:
        meta["deletionTimestamp"] = deleted
    status = {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}
    if address:
        status["podIP"] = address
    return {"metadata": meta, "spec": {"nodeName": node}, "status": status}


def node(**fields):
    return {"metadata": {"name": "n"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}, **fields}


def view(pods, nodes, capabilities=None):
    return view_of(pods, nodes, None, capabilities or {}, NOW)


def test_a_ready_pod_on_a_healthy_node_is_a_replica():
    shown = view([pod()], {"n": node()}, {"uid-p": frozenset({"resume-exact"})})
    assert shown == FleetView(
        {"p": Replica("p", "http://10.0.0.5:8000", "l4", 12, ready=True, leaves_at=None, resumes_output=True)}
    )


TAINTED = node(
    spec={"taints": [{"key": "karpenter.sh/disrupted", "effect": "NoSchedule", "timeAdded": "2026-01-01T00:00:00Z"}]}
)
NOT_READY = {
    "metadata": {"name": "n"},
    "status": {"conditions": [{"type": "Ready", "status": "Unknown", "lastTransitionTime": "2025-12-31T23:59:50Z"}]},
}


@pytest.mark.parametrize(
    ("pods", "nodes", "leaves_in"),
    [
        pytest.param(pod(), {"n": TAINTED}, 30, id="Karpenter's taint"),
        pytest.param(pod(), {"n": NOT_READY}, None, id="node not ready: its streams tell whether it lives"),
        pytest.param(pod(), {}, 0, id="node gone"),
        pytest.param(pod(), None, None, id="nodes not listed yet: unknown is not gone"),
        pytest.param(pod(deleted="2026-01-01T00:00:25Z"), {"n": node()}, 25, id="pod being deleted"),
        pytest.param(pod(deleted="2026-01-01T00:00:40Z"), {"n": TAINTED}, 30, id="the earlier deadline counts"),
    ],
)
def test_notices_are_read_from_pods_and_nodes(pods, nodes, leaves_in):
    leaves_at = None if leaves_in is None else NOW + timedelta(seconds=leaves_in)
    assert view([pods], nodes).replicas["p"].leaves_at == leaves_at


@pytest.mark.parametrize(
    ("nodes", "silent"),
    [({"n": NOT_READY}, True), ({"n": node()}, False), ({}, False), (None, False)],
    ids=["not ready", "ready", "gone", "not listed yet"],
)
def test_a_node_that_is_not_ready_is_silent(nodes, silent):
    assert view([pod()], nodes).replicas["p"].silent is silent


def test_the_kubelets_own_word_makes_a_pod_ready():
    said = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]
    shown = pod()
    shown["status"]["conditions"] = said
    assert view([shown], None).replicas["p"].ready
    shown["spec"]["readinessGates"] = [{"conditionType": "example.com/gate"}]
    assert not view([shown], None).replicas["p"].ready


@pytest.mark.parametrize(
    "gone", [pod(address=None), pod(phase="Failed"), pod(phase="Succeeded")], ids=["no address", "failed", "ended"]
)
def test_a_pod_that_cannot_be_reached_is_no_replica(gone):
    assert view([gone], {"n": node()}) == FleetView({})


@pytest.mark.parametrize(
    ("annotations", "room"),
    [({"x": ""}, 64), ({"medley.dev/max-running": "0"}, 64), ({"medley.dev/max-running": "7"}, 7)],
)
def test_room_has_a_default(annotations, room):
    assert view([pod(annotations=annotations)], None).replicas["p"].max_running == room


def test_ipv6_addresses_are_bracketed():
    replica = view([pod(address="fd00::5")], None).replicas["p"]
    assert replica.url == "http://[fd00::5]:8000"
    assert tokenizer_url(replica.url) == "http://[fd00::5]:8002/tokenizer.json"


def service(routing):
    return {"status": {"plan": {"routing": routing}}}


def test_the_routing_table_is_read_from_the_status():
    routing = {
        "inputEdges": [10, 20],
        "outputEdges": [5],
        "shares": [
            {"input": 0, "output": 0, "shape": "l4", "share": 0.75},
            {"input": 0, "output": 0, "shape": "h100", "share": 0.25},
            {"input": 1, "output": 0, "shape": "h100", "share": 1.0},
        ],
    }
    assert table_of(service(routing)) == RoutingTable(
        SizeGrid((10, 20), (5,)),
        {Bucket(0, 0): (("l4", 0.75), ("h100", 0.25)), Bucket(1, 0): (("h100", 1.0),)},
    )


@pytest.mark.parametrize(
    "item",
    [{}, service(None), service({"inputEdges": "x"}), service({"inputEdges": [], "outputEdges": []})],
    ids=["no status", "no table", "not a table", "no edges"],
)
def test_without_a_table_there_is_none(item):
    assert table_of(item) is None
