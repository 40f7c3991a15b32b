"""Reads all that one pass needs from the API server; called by `handlers/observing.py`. It understands nothing yet.

Consistent reads, and few: lists by label, and Nodes by name, since a cluster has many more nodes than a service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medley.core import names
from medley.core.errors import ObjectGoneError
from medley.core.identity import Role
from medley.kube import migrations
from medley.kube.api import (
    ACCELERATOR_CLASS,
    DEPLOYMENT,
    EVENT,
    LLM_SERVICE,
    MONEY_BUDGET,
    NODE,
    NODE_CLAIM,
    NODE_POOL,
    PERFORMANCE_PROFILE,
    POD,
    SECRET,
    Api,
    Kind,
)
from medley.kube.trust_secrets import TrustSecrets

Json = Mapping[str, Any]

REASON_SPOT_INTERRUPTED = "SpotInterrupted"


@dataclass(frozen=True, slots=True)
class Sight:
    """Objects as the API server wrote them."""

    service: Json
    classes: Sequence[Json]
    profiles: Sequence[Json]
    budgets: Sequence[Json]
    engine_pods: Sequence[Json]
    router_pods: Sequence[Json]
    router: Json | None  # the Deployment
    nodes: Mapping[str, Json | None]  # of the engine pods; None: gone
    node_claims: Sequence[Json]
    node_pools: Sequence[Json]
    interruptions: Sequence[Json]  # Events
    key: Json | None  # the Secret
    trust: TrustSecrets
    others: Sequence[Json]  # other LLMServices
    pods_of_others: Sequence[Json]  # their engine pods
    migrations: Sequence[Json] | None  # the service's records; None: they could not be read


async def look(api: Api, namespace: str, name: str) -> Sight | None:
    """Return what is there of a service, or None if there is no such service."""
    service = await api.get(LLM_SERVICE, name, namespace)
    if service is None:
        return None
    engine = f"{names.LABEL_COMPONENT}={names.Component.ENGINE}"
    pods, classes, profiles, budgets, claims, pools, interruptions, others, strangers, records = await asyncio.gather(
        _listed(api, POD, namespace, labels=f"{names.LABEL_SERVICE}={name}"),
        _listed(api, ACCELERATOR_CLASS),
        _listed(api, PERFORMANCE_PROFILE),
        _listed(api, MONEY_BUDGET),
        _listed(api, NODE_CLAIM, labels=names.LABEL_CLASS),
        _listed(api, NODE_POOL, labels=f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"),
        _listed(api, EVENT, fields=f"reason={REASON_SPOT_INTERRUPTED}"),
        _listed(api, LLM_SERVICE),
        _listed(api, POD, labels=engine),
        migrations.listed(api, namespace, name),
    )
    router, key, trust = await asyncio.gather(
        api.get(DEPLOYMENT, names.router(name), namespace),
        api.get(SECRET, names.engine_key(name), namespace),
        _trust(api, namespace, name),
    )
    engines = [pod for pod in pods if _label(pod, names.LABEL_COMPONENT) == names.Component.ENGINE]
    hosts = sorted({node for pod in engines if (node := pod.get("spec", {}).get("nodeName"))})
    nodes = await asyncio.gather(*(api.get(NODE, host) for host in hosts))
    uid = service["metadata"]["uid"]
    return Sight(
        service=service,
        classes=classes,
        profiles=profiles,
        budgets=budgets,
        engine_pods=engines,
        router_pods=[pod for pod in pods if _label(pod, names.LABEL_COMPONENT) == names.Component.ROUTER],
        router=router,
        nodes=dict(zip(hosts, nodes, strict=True)),
        node_claims=claims,
        node_pools=pools,
        interruptions=interruptions,
        key=key,
        trust=trust,
        others=[each for each in others if each["metadata"]["uid"] != uid],
        pods_of_others=[
            pod
            for pod in strangers
            if (pod["metadata"]["namespace"], _label(pod, names.LABEL_SERVICE)) != (namespace, name)
        ],
        migrations=records,
    )


async def _trust(api: Api, namespace: str, name: str) -> TrustSecrets:
    wanted = (names.authorities(name), *(names.certificates(name, role) for role in Role))
    authorities, *certificates = await asyncio.gather(*(api.get(SECRET, each, namespace) for each in wanted))
    return TrustSecrets(authorities, dict(zip(Role, certificates, strict=True)))


async def told_about(api: Api, pod: Json) -> str:
    """Return what the cluster last said about why a pod waits; empty if it said nothing but the scheduler's usual."""
    meta = pod["metadata"]
    events = await _listed(api, EVENT, meta["namespace"], fields=f"involvedObject.uid={meta['uid']},type=Warning")
    telling = [each for each in events if each.get("reason") != "FailedScheduling"]
    last = max(telling, key=lambda each: each.get("lastTimestamp") or each.get("eventTime") or "", default=None)
    return f"{last['reason']}: {last.get('message', '')}" if last else ""


async def _listed(
    api: Api, kind: Kind, namespace: str | None = None, *, labels: str = "", fields: str = ""
) -> list[dict[str, Any]]:
    try:
        objects, _ = await api.list(kind, namespace, labels=labels, fields=fields)
    except ObjectGoneError:
        return []  # the cluster has no such kind: Karpenter is not installed
    return objects


def _label(pod: Json, key: str) -> str | None:
    value: str | None = (pod["metadata"].get("labels") or {}).get(key)
    return value
