"""The NodePool of a class and a market, compared whole."""

from dataclasses import replace

import pytest

from medley.cloud.nodepools import node_pool
from medley.core.accelerators import ExistingNodes, KarpenterNodes, Market
from medley.core.errors import InvalidInputError
from medley.testing.builders import accelerator_class


def test_spot():
    assert node_pool(accelerator_class("l4", max_nodes=4, gpus_per_node=2), Market.SPOT) == {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {
            "name": "medley-l4-spot",
            "labels": {
                "app.kubernetes.io/managed-by": "medley",
                "medley.dev/accelerator-class": "l4",
                "medley.dev/market": "spot",
            },
            "ownerReferences": [
                {"apiVersion": "medley.dev/v1alpha1", "kind": "AcceleratorClass", "name": "l4", "uid": "l4-uid"}
            ],
        },
        "spec": {
            "limits": {"nvidia.com/gpu": "16"},
            "disruption": {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "60s"},
            "template": {
                "metadata": {"labels": {"medley.dev/accelerator-class": "l4"}},
                "spec": {
                    "expireAfter": "Never",
                    "terminationGracePeriod": "115s",
                    "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu"},
                    "taints": [{"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}],
                    "requirements": [
                        {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["spot"]},
                        {
                            "key": "node.kubernetes.io/instance-type",
                            "operator": "In",
                            "values": ["l4.large", "l4.xlarge"],
                        },
                        {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a", "b"]},
                    ],
                },
            },
        },
    }


def test_on_demand_has_all_the_time_its_pods_need_and_unknown_caps_are_no_limit():
    spec = node_pool(accelerator_class("l4"), Market.ON_DEMAND)["spec"]
    assert "limits" not in spec
    assert "terminationGracePeriod" not in spec["template"]["spec"]


def test_the_quota_of_a_market_bounds_its_pool_where_it_is_tighter_than_the_caps():
    quota = ((Market.SPOT, 10),)
    pools = [
        node_pool(accelerator_class("l4", max_nodes=nodes, gpus_per_node=2, gpu_quotas=quota), market)["spec"]
        for nodes, market in ((4, Market.SPOT), (2, Market.SPOT), (None, Market.SPOT), (None, Market.ON_DEMAND))
    ]
    assert [each.get("limits") for each in pools] == [
        {"nvidia.com/gpu": "10"},
        {"nvidia.com/gpu": "8"},
        {"nvidia.com/gpu": "10"},
        None,
    ]


def test_an_unknown_cloud_gets_the_shortest_notice():
    nodes = KarpenterNodes("karpenter.example", "NodeClass", "gpu", ("x",))
    spec = node_pool(accelerator_class("l4", nodes=nodes), Market.SPOT)["spec"]
    assert spec["template"]["spec"]["terminationGracePeriod"] == "25s"


def test_refusals():
    there = replace(accelerator_class("l4"), nodes=ExistingNodes((("gpu", "l4"),)))
    with pytest.raises(InvalidInputError, match="has nodes and makes none"):
        node_pool(there, Market.SPOT)
    with pytest.raises(InvalidInputError, match="no price for market reserved"):
        node_pool(accelerator_class("l4"), Market.RESERVED)
