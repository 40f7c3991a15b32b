"""What the operator and the routers may do, verb by verb; the chart's ClusterRoles are compared with it by a test.

Nothing here runs in the operator. A verb that is not listed is never used; one that is listed is used where the comment
says. Server-side apply needs `patch`, and `create` where the object may not exist yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from medley.core import names

ROUTER_ROLE = "medley-router"  # bound in the service's namespace
ROUTER_NODES_ROLE = "medley-router-nodes"  # bound cluster-wide: Nodes have no namespace


@dataclass(frozen=True, slots=True)
class Rule:
    """One PolicyRule."""

    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    resource_names: tuple[str, ...] = ()


# Of the ClusterRole `medley-operator`, bound cluster-wide.
OPERATOR_CLUSTER_RULES: tuple[Rule, ...] = (
    # The finalizer goes on and off by `patch`.
    Rule(names.GROUP, ("llmservices",), ("get", "list", "watch", "patch")),
    Rule(names.GROUP, ("llmservices/status",), ("patch",)),
    Rule(names.GROUP, ("acceleratorclasses", "performanceprofiles", "budgets"), ("get", "list", "watch")),
    # Records of departures: made, their status kept, deleted after a week.
    Rule(names.GROUP, ("migrations",), ("list", "create", "delete")),
    Rule(names.GROUP, ("migrations/status",), ("patch",)),
    # Engine pods are bare: made and deleted one by one, never changed.
    Rule("", ("pods",), ("get", "list", "watch", "create", "delete")),
    Rule("", ("nodes",), ("get", "list", "watch")),
    # The engine key: made once, never overwritten. Authorities and certificates: renewed, by `update`, so that two
    # operators never mix theirs.
    Rule("", ("secrets",), ("get", "create", "update", "delete")),
    Rule("", ("services", "serviceaccounts"), ("get", "create", "patch", "delete")),
    # Read: Karpenter's SpotInterrupted and why a pod waits. Written: what people see of a service.
    Rule("", ("events",), ("list", "watch", "create", "patch")),
    Rule("apps", ("deployments",), ("get", "create", "patch", "delete")),
    Rule("policy", ("poddisruptionbudgets",), ("get", "create", "patch", "delete")),
    Rule("rbac.authorization.k8s.io", ("rolebindings", "clusterrolebindings"), ("get", "create", "patch", "delete")),
    # These two roles and no other may be handed on.
    Rule("rbac.authorization.k8s.io", ("clusterroles",), ("bind",), (ROUTER_ROLE, ROUTER_NODES_ROLE)),
    Rule("karpenter.sh", ("nodepools",), ("get", "list", "watch", "create", "patch", "delete")),
    Rule("karpenter.sh", ("nodeclaims",), ("list", "watch")),
    # kopf learns from CRDs whether Karpenter is there.
    Rule("apiextensions.k8s.io", ("customresourcedefinitions",), ("list", "watch")),
)

# Of the Role `medley-operator` in the operator's own namespace: leader election.
OPERATOR_NAMESPACE_RULES: tuple[Rule, ...] = (Rule("coordination.k8s.io", ("leases",), ("get", "create", "update")),)

# Of the ClusterRole `medley-router`, bound by a RoleBinding in the service's namespace.
ROUTER_RULES: tuple[Rule, ...] = (
    Rule(names.GROUP, ("llmservices",), ("get", "list", "watch")),
    Rule("", ("pods",), ("get", "list", "watch")),
)

# Of the ClusterRole `medley-router-nodes`, bound by a ClusterRoleBinding per service.
ROUTER_NODES_RULES: tuple[Rule, ...] = (Rule("", ("nodes",), ("get", "list", "watch")),)
