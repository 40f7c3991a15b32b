"""Every name that a dashboard, an alert, a selector or a person matches on; it is computed nowhere else."""

from __future__ import annotations

import hashlib
from enum import StrEnum

from medley.core.identity import Role

GROUP = "medley.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
FIELD_MANAGER = "medley"
FINALIZER = f"{GROUP}/cleanup"

LABEL_SERVICE = f"{GROUP}/service"
LABEL_COMPONENT = f"{GROUP}/component"
LABEL_CLASS = f"{GROUP}/accelerator-class"
LABEL_SHAPE = f"{GROUP}/shape"
LABEL_MARKET = f"{GROUP}/market"
LABEL_ZONE = f"{GROUP}/zone"
LABEL_TEMPLATE_HASH = f"{GROUP}/template-hash"
ANNOTATION_MAX_RUNNING = f"{GROUP}/max-running"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_PART_OF = "app.kubernetes.io/part-of"
LABEL_NAME = "app.kubernetes.io/name"
LABEL_INSTANCE = "app.kubernetes.io/instance"
LABEL_APP_COMPONENT = "app.kubernetes.io/component"
LABEL_MODEL = "llm-d.ai/model"  # OpenCost reads it
MANAGED_BY = "medley"

# Labels and taints of others. Sources: Kubernetes well-known labels, Karpenter v1, AWS Node Termination Handler.
LABEL_CAPACITY_TYPE = "karpenter.sh/capacity-type"
LABEL_NODEPOOL = "karpenter.sh/nodepool"
LABEL_NODE_ZONE = "topology.kubernetes.io/zone"
LABEL_INSTANCE_TYPE = "node.kubernetes.io/instance-type"
TAINT_KARPENTER_DISRUPTED = "karpenter.sh/disrupted"
TAINT_NTH_PREFIX = "aws-node-termination-handler/"
TAINT_OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
ANNOTATION_DO_NOT_DISRUPT = "karpenter.sh/do-not-disrupt"

PORT_ENGINE = 8000
PORT_CONTROL = 8001
PORT_ENGINE_STATUS = 8002
PORT_ROUTER = 8080
PORT_OPERATOR = 8081

NAME_LIMIT = 63  # DNS label: pod names double as host names


# Metrics of routers that the operator reads; Prometheus adds _total to counters.
METRIC_REQUESTS = "medley_router_requests"
METRIC_OUTPUTS = "medley_router_outputs"
METRIC_TURNED_AWAY = "medley_router_turned_away"
METRIC_WINDOW_REQUESTS = "medley_router_window_requests"
METRIC_WINDOW_SQUARES = "medley_router_window_squared_differences"
METRIC_LEFT = "medley_router_left"
METRIC_RUNNING = "medley_router_running"
LABEL_REPLICA = "replica"
LABEL_HOW = "how"
LABEL_INPUT = "input_bucket"
LABEL_LIMIT = "output_bucket"  # by max_tokens
LABEL_MADE = "made_bucket"  # by the tokens that came out
LABEL_WINDOW = "window_seconds"


class Component(StrEnum):
    """Values of the label `medley.dev/component`."""

    ENGINE = "engine"
    ROUTER = "router"


class Condition(StrEnum):
    """Condition types of an LLMService; all of positive polarity."""

    WORKLOAD_OBSERVED = "WorkloadObserved"
    PROFILES_READY = "ProfilesReady"
    PLAN_FEASIBLE = "PlanFeasible"
    CAPACITY_READY = "CapacityReady"
    SPOT_HEDGED = "SpotHedged"
    MIGRATION_READY = "MigrationReady"
    READY = "Ready"


class Reason(StrEnum):
    """Reasons of conditions and Events, and values of the label `reason` of `medley_refusals_total`."""

    # What a person must change.
    INVALID_SPEC = "InvalidSpec"
    UNKNOWN_CLASS = "UnknownClass"
    UNKNOWN_BUDGET = "UnknownBudget"
    PROFILE_MISSING = "ProfileMissing"
    SLO_UNREACHABLE = "SLOUnreachable"
    MODEL_TOO_LONG = "ModelTooLong"
    LIMITS_TOO_TIGHT = "LimitsTooTight"
    BUDGET_EXHAUSTED = "BudgetExhausted"
    CAPACITY_CAPPED = "CapacityCapped"
    QUOTA_EXCEEDED = "QuotaExceeded"
    REFUSED_BY_CLUSTER = "RefusedByCluster"
    IMAGE_NOT_PULLED = "ImageNotPulled"
    ENGINE_FAILED = "EngineFailed"
    CONTAINER_FAILED = "ContainerFailed"
    LIVE_MIGRATION_UNAVAILABLE = "LiveMigrationUnavailable"
    # What passes, and what is.
    CAPACITY_UNAVAILABLE = "CapacityUnavailable"
    SPOT_NOT_HEDGED = "SpotNotHedged"
    STARTING = "Starting"
    ROUTER_NOT_READY = "RouterNotReady"
    PLAN_ONLY = "PlanOnly"
    DELETING = "Deleting"
    SOLVER_FAILED = "SolverFailed"
    NOTICE = "Notice"
    PLANNED = "Planned"
    PROFILED = "Profiled"
    FORECAST = "Forecast"
    MEASURED = "Measured"
    HEDGED = "Hedged"
    NO_SPOT = "NoSpot"
    TOKEN_LOG = "TokenLog"  # noqa: S105  # the log of tokens that streams are resumed from
    KV_CARRIED = "KVCarried"
    SERVING = "Serving"
    CAPACITY_THERE = "CapacityThere"
    # Events only.
    LAUNCHING = "Launching"
    DRAINING = "Draining"
    REPLACING = "Replacing"


def shortened(name: str, limit: int = NAME_LIMIT) -> str:
    """Return `name`, or its head with a hash of the whole, so that it fits `limit` characters."""
    return name if len(name) <= limit else _hashed(name, name, limit)


def _hashed(name: str, identity: str, limit: int) -> str:
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return f"{name[: limit - 9].rstrip('-.')}-{digest}"


def node_pool(accelerator_class: str, market: str) -> str:
    """Return the name of the NodePool that a class and a market share."""
    return shortened(f"medley-{accelerator_class}-{market}")


def router(service: str) -> str:
    """Return the name of a service's router Deployment, Service and ServiceAccount."""
    return f"{shortened(service, NAME_LIMIT - len('-router'))}-router"


def engine_key(service: str) -> str:
    """Return the name of the Secret that holds a service's engine key (field `key`)."""
    return f"{shortened(service, NAME_LIMIT - len('-engine-key'))}-engine-key"


def authorities(service: str) -> str:
    """Return the name of the Secret with a service's certificate authorities and their keys; the operator's alone."""
    return f"{shortened(service, NAME_LIMIT - len('-ca'))}-ca"


def certificates(service: str, role: Role) -> str:
    """Return the name of the Secret with the certificate of a role, which that role's pods mount."""
    suffix = f"-{role}-tls"
    return f"{shortened(service, NAME_LIMIT - len(suffix))}{suffix}"


def migration(service: str, node: str, replica_uid: str, number: int) -> str:
    """Return the name of a Migration: of the first of its replicas, and which of that one's records it is (0, 1 ...).

    A node's name may come back with another machine, and a notice may be withdrawn and given again.
    """
    return _hashed(f"{service}-{node}", f"{service}/{node}/{replica_uid}/{number}", NAME_LIMIT)


def url_host(address: str) -> str:
    """Return a host name or IP address as it stands in a URL: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address
