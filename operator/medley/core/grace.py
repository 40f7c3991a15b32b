"""How long an engine pod may take to end, and what its supervisor needs of that.

Read by `kube/engine_pod.py`, the supervisor, and `planning.departure`; routers see the end of it as the pod's deadline.

On spot it is what the cloud leaves an ordinary pod from its eviction to the end of the machine: longer would be cut off
by the machine, shorter would end streams that could have moved. Sources: AWS, "Spot Instance interruption notices" (two
minutes); Azure, "Scheduled Events" (Preempt: at least 30 s); Google, "Preemptible and Spot VMs on GKE" (30 s, of which
the kubelet keeps 15 s for critical pods).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from medley.core.accelerators import ExistingNodes, KarpenterNodes, Market

# By the API group of the Karpenter node class, which tells the cloud. Less what passes until the pod is evicted: the
# notice's way through a queue and Karpenter (AWS), a poll of the metadata service (Azure).
SPOT_GRACE: Final[Mapping[str, timedelta]] = {
    "karpenter.k8s.aws": timedelta(seconds=90),
    "karpenter.azure.com": timedelta(seconds=20),
    "karpenter.k8s.gcp": timedelta(seconds=15),
}
# Nothing says which cloud: what the shortest of them leaves.
LEAST_SPOT_GRACE: Final = min(SPOT_GRACE.values())
# What a supervisor keeps of it for its own end: it cuts off what still runs, so that each request ends after a whole
# token, gives vLLM so long to stop, and buries it. Routers cut streams off before.
CUT: Final = timedelta(seconds=1)
STOP: Final = timedelta(seconds=2)
BURY: Final = timedelta(seconds=1)
# These nodes go when they are empty, so a stream may end where it is.
LASTING_GRACE: Final = timedelta(seconds=600)


def grace(market: Market, nodes: KarpenterNodes | ExistingNodes) -> timedelta:
    """Return the time from SIGTERM to SIGKILL of an engine pod."""
    if market is not Market.SPOT:
        return LASTING_GRACE
    group = nodes.node_class_group if isinstance(nodes, KarpenterNodes) else ""
    return SPOT_GRACE.get(group, LEAST_SPOT_GRACE)
