"""Engine pods have the time that their cloud leaves them, never more."""

import pytest

from medley.cloud.notices import NOTICE_TIME
from medley.core.accelerators import ExistingNodes, KarpenterNodes, Market
from medley.core.grace import SPOT_GRACE, grace


def karpenter(group):
    return KarpenterNodes(group, "NodeClass", "gpu", ("g6.xlarge",))


@pytest.mark.parametrize(
    ("nodes", "seconds"),
    [
        (karpenter("karpenter.k8s.aws"), 90),
        (karpenter("karpenter.azure.com"), 20),
        (karpenter("karpenter.k8s.gcp"), 15),
        (karpenter("example.org"), 15),
        (ExistingNodes((("gpu", "l4"),)), 15),
    ],
    ids=lambda value: getattr(value, "node_class_group", str(value)),
)
def test_spot(nodes, seconds):
    assert grace(Market.SPOT, nodes).total_seconds() == seconds


@pytest.mark.parametrize("market", [Market.ON_DEMAND, Market.RESERVED])
def test_nodes_that_last(market):
    assert grace(market, karpenter("karpenter.k8s.aws")).total_seconds() == 600


def test_no_cloud_is_taken_to_leave_more_than_its_notice():
    clouds = {"karpenter.k8s.aws": "aws", "karpenter.azure.com": "azure", "karpenter.k8s.gcp": "gce"}
    assert clouds.keys() == SPOT_GRACE.keys()
    assert all(SPOT_GRACE[group] <= NOTICE_TIME[cloud] for group, cloud in clouds.items())
