"""Every signal that a node goes away, as one table; and those that look like one and are none."""

from datetime import UTC, datetime, timedelta

import pytest

from medley.cloud.notices import (
    most_urgent,
    notice_of_absent_node,
    notice_of_event,
    notice_of_node_claim,
    notice_of_pod,
    notices_of_node,
)
from medley.core.notices import Cause, Notice, NoticeSource

NOW = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)
EARLIER = "2030-01-01T11:59:50Z"


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def node(*, taints=(), market="spot", provider="aws:///a/i-1", ready=("True", "KubeletReady"), **metadata):
    labels = {"karpenter.sh/capacity-type": market, **metadata.pop("labels", {})}
    conditions = (
        [{"type": "Ready", "status": ready[0], "reason": ready[1], "lastTransitionTime": EARLIER}] if ready else []
    )
    return {
        "metadata": {"name": "n", "labels": labels, **metadata},
        "spec": {"providerID": provider, "taints": list(taints)},
        "status": {"conditions": conditions},
    }


def taint(key, **more):
    return {"key": key, "effect": "NoSchedule", **more}


DISRUPTED = taint("karpenter.sh/disrupted")
SPOT_ITN = "aws-node-termination-handler/spot-itn"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        pytest.param(node(), None, id="stays"),
        pytest.param(node(taints=[taint("nvidia.com/gpu", value="true")]), None, id="gpu-taint"),
        pytest.param(node(ready=None), None, id="just-registered"),
        pytest.param(node(ready=("Unknown", "NodeStatusNeverUpdated")), None, id="booting"),
        pytest.param(
            node(ready=("False", "KubeletNotReady"), creationTimestamp="2030-01-01T11:58:00Z"),
            None,
            id="booting-kubelet-speaks",
        ),
        pytest.param(
            node(ready=("False", "KubeletNotReady"), creationTimestamp="2030-01-01T11:50:00Z"),
            (at(-10), NoticeSource.NODE_NOT_READY, Cause.FAILED),
            id="was-ready-before",
        ),
        pytest.param(
            node(ready=("Unknown", "NodeStatusUnknown"), creationTimestamp="2030-01-01T11:59:00Z"),
            (at(-10), NoticeSource.NODE_NOT_READY, Cause.FAILED),
            id="young-and-silent",
        ),
        pytest.param(
            node(taints=[DISRUPTED]), (at(120), NoticeSource.KARPENTER_TAINT, Cause.UNKNOWN), id="karpenter-no-begin"
        ),
        pytest.param(
            node(taints=[DISRUPTED], deletionTimestamp=EARLIER),
            (at(110), NoticeSource.KARPENTER_TAINT, Cause.UNKNOWN),
            id="karpenter-begin-of-deletion",
        ),
        pytest.param(
            node(taints=[DISRUPTED], provider="kwok://n", deletionTimestamp=EARLIER),
            (at(20), NoticeSource.KARPENTER_TAINT, Cause.UNKNOWN),
            id="karpenter-unknown-cloud",
        ),
        pytest.param(
            node(taints=[DISRUPTED], market="on-demand"),
            (at(600), NoticeSource.KARPENTER_TAINT, Cause.UNKNOWN),
            id="karpenter-on-demand",
        ),
        pytest.param(
            node(
                taints=[DISRUPTED],
                annotations={"karpenter.sh/nodeclaim-termination-timestamp": "2030-01-01T12:00:42Z"},
            ),
            (at(42), NoticeSource.KARPENTER_TAINT, Cause.UNKNOWN),
            id="karpenter-states-the-end",
        ),
        pytest.param(
            node(taints=[taint(SPOT_ITN, timeAdded=EARLIER)]),
            (at(110), NoticeSource.NODE_TERMINATION_HANDLER, Cause.RECLAIMED),
            id="nth-spot",
        ),
        pytest.param(
            node(
                taints=[taint(SPOT_ITN)],
                labels={"aws-node-termination-handler/action-time": str(int(at(-20).timestamp()))},
            ),
            (at(100), NoticeSource.NODE_TERMINATION_HANDLER, Cause.RECLAIMED),
            id="nth-action-time",
        ),
        pytest.param(
            node(taints=[taint("aws-node-termination-handler/scheduled-maintenance")]),
            (at(600), NoticeSource.NODE_TERMINATION_HANDLER, Cause.VOLUNTARY),
            id="nth-maintenance",
        ),
        pytest.param(
            node(taints=[taint("aws-node-termination-handler/of-the-future")]),
            (at(120), NoticeSource.NODE_TERMINATION_HANDLER, Cause.UNKNOWN),
            id="nth-unknown",
        ),
        pytest.param(
            node(taints=[taint("node.kubernetes.io/out-of-service", value="nodeshutdown")]),
            (at(0), NoticeSource.OUT_OF_SERVICE, Cause.FAILED),
            id="out-of-service",
        ),
        pytest.param(
            node(ready=("Unknown", "NodeStatusUnknown")),
            (at(-10), NoticeSource.NODE_NOT_READY, Cause.FAILED),
            id="silent-kubelet",
        ),
        pytest.param(
            node(ready=("False", "KubeletNotReady")),
            (at(-10), NoticeSource.NODE_NOT_READY, Cause.FAILED),
            id="not-ready",
        ),
        pytest.param(
            node(deletionTimestamp=EARLIER), (at(110), NoticeSource.NODE_GONE, Cause.UNKNOWN), id="being-deleted"
        ),
        pytest.param(
            node(taints=[DISRUPTED], ready=("Unknown", "NodeStatusUnknown")),
            (at(-10), NoticeSource.NODE_NOT_READY, Cause.FAILED),
            id="the-most-urgent-speaks",
        ),
    ],
)
def test_node(shown, expected):
    found = notices_of_node(shown, NOW)
    assert found == (None if expected is None else Notice("n", *expected))


def test_a_silent_kubelet_means_nothing_where_something_on_the_node_answers():
    silent = node(ready=("Unknown", "NodeStatusUnknown"))
    assert notices_of_node(silent, NOW, heard=True) is None
    tainted = node(taints=[DISRUPTED], ready=("Unknown", "NodeStatusUnknown"))
    assert notices_of_node(tainted, NOW, heard=True).source is NoticeSource.KARPENTER_TAINT


@pytest.mark.parametrize("provider", [("azure:///x", 30), ("gce://p/z/n", 15), ("", 30)])
def test_each_cloud_has_its_notice_time(provider):
    name, seconds = provider
    assert notices_of_node(node(taints=[DISRUPTED], provider=name), NOW).deadline == at(seconds)


def test_a_bare_object_is_no_error():
    assert notices_of_node({"metadata": {"name": "n"}}, NOW) is None
    assert notice_of_pod({"metadata": {"name": "p"}}, NOW) is None
    assert notice_of_node_claim({"metadata": {"name": "c"}}, NOW) is None
    assert notice_of_event({}, [], NOW) is None


def test_absent_node():
    assert notice_of_absent_node("n", NOW) == Notice("n", NOW, NoticeSource.NODE_GONE, Cause.UNKNOWN)


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        pytest.param(None, Cause.VOLUNTARY, id="somebody-deleted-it"),
        pytest.param("EvictionByEvictionAPI", Cause.UNKNOWN, id="evicted"),
        pytest.param("DeletionByTaintManager", Cause.FAILED, id="taint-manager"),
        pytest.param("PreemptionByScheduler", Cause.VOLUNTARY, id="preempted"),
    ],
)
def test_pod(reason, cause):
    conditions = [{"type": "DisruptionTarget", "status": "True", "reason": reason}] if reason else []
    pod = {
        "metadata": {"name": "p", "deletionTimestamp": "2030-01-01T12:00:25Z"},
        "spec": {"nodeName": "n"},
        "status": {"conditions": conditions},
    }
    assert notice_of_pod(pod, NOW) == Notice("n", at(25), NoticeSource.POD_DELETION, cause, pod="p")


def claim(**changes):
    return {
        "metadata": {"name": "c", "deletionTimestamp": EARLIER, "labels": {"karpenter.sh/capacity-type": "spot"}},
        "status": {"nodeName": "n", "providerID": "aws:///a/i-1", **changes},
    }


def test_node_claim():
    assert notice_of_node_claim(claim(), NOW) == Notice("n", at(110), NoticeSource.KARPENTER_NODECLAIM, Cause.UNKNOWN)
    drifted = claim(conditions=[{"type": "DisruptionReason", "status": "True", "reason": "Drifted"}])
    assert notice_of_node_claim(drifted, NOW).cause is Cause.VOLUNTARY
    assert notice_of_node_claim(claim(nodeName=""), NOW) is None


@pytest.mark.parametrize("about", [("NodeClaim", "c"), ("Node", "n")])
@pytest.mark.parametrize("field", ["involvedObject", "regarding"])
def test_event(about, field):
    event = {"reason": "SpotInterrupted", field: {"kind": about[0], "name": about[1]}, "lastTimestamp": EARLIER}
    expected = Notice("n", at(110), NoticeSource.KARPENTER_EVENT, Cause.RECLAIMED)
    assert notice_of_event(event, [claim()], NOW) == expected
    assert notice_of_event({**event, "reason": "Unconsolidatable"}, [claim()], NOW) is None


def test_the_most_urgent_of_a_node_keeps_the_cause_that_is_known():
    taint_says = Notice("n", at(20), NoticeSource.KARPENTER_TAINT, Cause.UNKNOWN)
    event_says = Notice("n", at(110), NoticeSource.KARPENTER_EVENT, Cause.RECLAIMED)
    pod_says = Notice("m", at(5), NoticeSource.POD_DELETION, Cause.VOLUNTARY, pod="p")
    assert most_urgent([event_says, taint_says, pod_says]) == {
        "n": Notice("n", at(20), NoticeSource.KARPENTER_TAINT, Cause.RECLAIMED)
    }
