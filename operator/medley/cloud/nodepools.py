"""Karpenter NodePools: one per accelerator class and market, owned by the class and shared by all services.

`handlers/acting.py` applies what `node_pool` returns. Karpenter makes nodes for engine pods that wait, and takes
nodes away that are empty for a minute; everything else (drift aside) is medley's decision, so consolidation of nodes in
use and expiry are off.
"""

from __future__ import annotations

from typing import Any

from medley.cloud.notices import DEFAULT_NOTICE_TIME, NOTICE_TIME
from medley.core import names
from medley.core.accelerators import AcceleratorClass, ExistingNodes, KarpenterNodes, Market
from medley.core.errors import InvalidInputError
from medley.kube.api import ACCELERATOR_CLASS, NODE_POOL

CONSOLIDATE_AFTER = "60s"
# Seconds that Karpenter gives pods of a spot node before it deletes them by force: a little less than the cloud gives
# the node. Node classes of providers that are not known get what the shortest notice allows.
_PROVIDER_OF_GROUP = {"karpenter.k8s.aws": "aws", "karpenter.azure.com": "azure", "karpenter.k8s.gcp": "gce"}
_MARGIN_SECONDS = 5
# The GPU device plugin's convention: nodes are tainted with the resource that they offer.
TAINT_VALUE = "true"


def node_pool(accelerator_class: AcceleratorClass, market: Market) -> dict[str, Any]:
    """Return the NodePool manifest; `InvalidInputError` for a class whose nodes exist already or are not sold so."""
    nodes = accelerator_class.nodes
    if isinstance(nodes, ExistingNodes):
        raise InvalidInputError("spec.nodes.existing", f"class {accelerator_class.name} has nodes and makes none")
    offers = [offer for offer in accelerator_class.offers if offer.market is market]
    if not offers:
        raise InvalidInputError("spec.zones", f"class {accelerator_class.name} has no price for market {market}")
    spec: dict[str, Any] = {
        "disruption": {"consolidationPolicy": "WhenEmpty", "consolidateAfter": CONSOLIDATE_AFTER},
        "template": {
            "metadata": {"labels": {names.LABEL_CLASS: accelerator_class.name}},
            "spec": _template(accelerator_class, nodes, market),
        },
    }
    caps = [offer.max_nodes for offer in offers]
    bounds = [gpus for quota_of, gpus in accelerator_class.gpu_quotas if quota_of is market]
    if None not in caps:
        bounds.append(sum(cap for cap in caps if cap is not None) * accelerator_class.gpus_per_node)
    if bounds:
        spec["limits"] = {accelerator_class.resource_name: str(min(bounds))}
    return {
        "apiVersion": NODE_POOL.api_version,
        "kind": NODE_POOL.kind,
        "metadata": {
            "name": names.node_pool(accelerator_class.name, market),
            "labels": {
                names.LABEL_MANAGED_BY: names.MANAGED_BY,
                names.LABEL_CLASS: accelerator_class.name,
                names.LABEL_MARKET: market.value,
            },
            "ownerReferences": [
                {
                    "apiVersion": ACCELERATOR_CLASS.api_version,
                    "kind": ACCELERATOR_CLASS.kind,
                    "name": accelerator_class.name,
                    "uid": accelerator_class.uid,
                }
            ],
        },
        "spec": spec,
    }


def _template(accelerator_class: AcceleratorClass, nodes: KarpenterNodes, market: Market) -> dict[str, Any]:
    zones = sorted({offer.zone for offer in accelerator_class.offers if offer.market is market})
    template: dict[str, Any] = {
        "expireAfter": "Never",
        "nodeClassRef": {
            "group": nodes.node_class_group,
            "kind": nodes.node_class_kind,
            "name": nodes.node_class_name,
        },
        "taints": [{"key": accelerator_class.resource_name, "value": TAINT_VALUE, "effect": "NoSchedule"}],
        "requirements": [
            {"key": names.LABEL_CAPACITY_TYPE, "operator": "In", "values": [market.value]},
            {"key": names.LABEL_INSTANCE_TYPE, "operator": "In", "values": sorted(nodes.instance_types)},
            {"key": names.LABEL_NODE_ZONE, "operator": "In", "values": zones},
        ],
    }
    if market is Market.SPOT:
        notice = NOTICE_TIME.get(_PROVIDER_OF_GROUP.get(nodes.node_class_group, ""), DEFAULT_NOTICE_TIME)
        template["terminationGracePeriod"] = f"{int(notice.total_seconds()) - _MARGIN_SECONDS}s"
    return template
