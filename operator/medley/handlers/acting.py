"""Carries out the actions of a plan, one after another, and says which of them the cluster or an engine refused.

Called once per pass by `reconciling`. Every action may be repeated: a pass that dies here is finished by the next. What
the cluster refuses for good (a quota, admission) is returned, to become a condition; what may work later is raised.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

from medley.api import convert
from medley.cloud.nodepools import node_pool
from medley.core import names
from medley.core.errors import EngineError, ObjectGoneError, UnknownClassError
from medley.core.identity import Role
from medley.core.names import Reason
from medley.handlers.observing import View
from medley.handlers.supervisors import Supervisors
from medley.handlers.trusting import ensure_trust
from medley.kube.api import BUDGET, LLM_SERVICE, NODE_POOL, POD, SECRET, Api, Kind
from medley.kube.apply import ensured
from medley.kube.engine_pod import engine_pod
from medley.kube.errors import ConflictError, RefusedError
from medley.kube.manifests import Json
from medley.kube.router_objects import budgets, new_engine_key, router_objects
from medley.planning.actions import (
    Action,
    Assign,
    DeleteBudgets,
    DeleteEngine,
    DeleteNodePool,
    DeleteRouter,
    DeleteSecrets,
    DrainEngine,
    EnsureBudgets,
    EnsureFinalizer,
    EnsureNodePool,
    EnsureRouter,
    EnsureSecrets,
    LaunchEngine,
    ReleaseFinalizer,
)
from medley.planning.fleet import PoolKey
from medley.wire.assignment import DrainRequest

logger = logging.getLogger(__name__)

FORCED_GRACE_SECONDS = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """An action that will not work until a person changes something."""

    reason: Reason
    message: str


async def act(
    api: Api, supervisors: Supervisors, view: View, actions: Iterable[Action], now: datetime
) -> tuple[Refused, ...]:
    """Carry out the actions in order; what speaks with supervisors goes on side by side."""
    refused: list[Refused] = []
    talks: list[Assign | DrainEngine] = []
    for action in actions:
        match action:
            case Assign() | DrainEngine():
                talks.append(action)
            case _:
                try:
                    await _done(api, supervisors, view, action, now)
                except RefusedError as error:
                    refused.append(Refused(_reason(error), str(error)))
                    logger.warning("%s/%s: %s", *_key(view), error)
    refused += [each for each in await asyncio.gather(*(_told(supervisors, view, each) for each in talks)) if each]
    return tuple(refused)


async def _done(  # noqa: C901, PLR0912  # one case per kind of action
    api: Api, supervisors: Supervisors, view: View, action: Action, now: datetime
) -> None:
    namespace, name = _key(view)
    match action:
        case EnsureFinalizer():
            await _hold(api, view)
        case EnsureSecrets():
            await _ensure_key(api, view)
            await ensure_trust(api, view.item, view.trust, now)
        case EnsureNodePool(pool):
            await _ensure_pool(api, view, pool)
        case EnsureRouter():
            for kind, manifest in router_objects(view.item, view.images):
                await ensured(api, kind, manifest, namespace if kind.namespaced else None)
        case EnsureBudgets(available):
            for budget in budgets(view.item, available):
                await ensured(api, BUDGET, budget, namespace)
        case LaunchEngine():
            await _launch(api, view, action)
        case DeleteEngine() as deletion:
            await _delete(api, supervisors, view, deletion, now)
        case DeleteRouter():
            # The Deployment first: its pods serve their last streams with the rights they have.
            for kind, manifest in reversed(router_objects(view.item, view.images)):
                await _deleted(api, kind, manifest, view)
        case DeleteBudgets():
            for budget in budgets(view.item, 0):
                await _deleted(api, BUDGET, budget, view)
        case DeleteSecrets():
            certificates = (names.certificates(name, role) for role in Role)
            for secret in (names.engine_key(name), names.authorities(name), *certificates):
                await api.delete(SECRET, secret, namespace)
        case DeleteNodePool(pool):
            await api.delete(NODE_POOL, names.node_pool(pool.accelerator_class, pool.market))
        case ReleaseFinalizer():
            await release(api, namespace, name, view.item.metadata.finalizers, view.item.metadata.resource_version)
        case Assign() | DrainEngine():
            raise AssertionError(f"{action} is told to a supervisor")
        case _:
            assert_never(action)


async def release(api: Api, namespace: str, name: str, finalizers: Iterable[str], version: str) -> None:
    """Take medley's finalizer off a service that is still at this resource version; one that is gone is well."""
    kept = [each for each in finalizers if each != names.FINALIZER]
    patch = {"metadata": {"finalizers": kept, "resourceVersion": version}}
    try:
        await api.merge(LLM_SERVICE, name, namespace, patch)
    except ObjectGoneError:
        logger.info("%s/%s: gone already", namespace, name)


async def _hold(api: Api, view: View) -> None:
    namespace, name = _key(view)
    # With the uid, a service that was deleted meanwhile is not made again.
    meta = {"name": name, "namespace": namespace, "uid": view.item.metadata.uid, "finalizers": [names.FINALIZER]}
    body = {"apiVersion": LLM_SERVICE.api_version, "kind": LLM_SERVICE.kind, "metadata": meta}
    await api.server_side_apply(LLM_SERVICE, body, namespace)


async def _ensure_key(api: Api, view: View) -> None:
    if view.key is not None:
        return
    try:
        await api.create(SECRET, new_engine_key(view.item), view.item.metadata.namespace)
    except ConflictError:
        logger.info("%s/%s: another pass made the engine key", *_key(view))


async def _ensure_pool(api: Api, view: View, pool: PoolKey) -> None:
    model = view.classes.get(pool.accelerator_class)
    if model is None:
        raise UnknownClassError("spec.accelerators.classes", f"no AcceleratorClass named {pool.accelerator_class}")
    try:
        await ensured(api, NODE_POOL, node_pool(convert.accelerator_class(model), pool.market))
    except ObjectGoneError as error:
        remedy = f"AcceleratorClass {pool.accelerator_class} asks for Karpenter, which this cluster has not"
        raise RefusedError(f"{remedy}: install it, or write spec.nodes.existing ({error})") from error


async def _launch(api: Api, view: View, action: LaunchEngine) -> None:
    request = view.request(action.offering)
    if request is None:
        raise UnknownClassError("spec.accelerators.classes", f"no AcceleratorClass for {action.offering}")
    logger.info("%s/%s: launching %s on %s", *_key(view), action.name, action.offering)
    try:
        await api.create(POD, engine_pod(request, action.name), view.item.metadata.namespace)
    except ConflictError:
        logger.info("%s/%s: %s is there already", *_key(view), action.name)


async def _delete(api: Api, supervisors: Supervisors, view: View, deletion: DeleteEngine, now: datetime) -> None:
    (namespace, name), replica, grace = _key(view), deletion.replica, deletion.grace
    logger.info("%s/%s: deleting %s: %s", namespace, name, replica, deletion.why)
    address = view.addresses.get(replica)
    if grace is not None and address is not None and view.credentials is not None:
        # It knows the grace of its manifest alone; with this one it ends its last streams before the kubelet does.
        try:
            await supervisors.drain(address, view.credentials, DrainRequest(deadline=now + grace))
        except EngineError as error:
            logger.warning("%s/%s: %s", namespace, name, error)
    seconds = FORCED_GRACE_SECONDS if deletion.force else None if grace is None else round(grace.total_seconds())
    await api.delete(POD, replica, namespace, uid=deletion.uid, grace_seconds=seconds)


async def _told(supervisors: Supervisors, view: View, action: Assign | DrainEngine) -> Refused | None:
    address = view.addresses.get(action.replica)
    if address is None or view.credentials is None:
        return None  # it cannot be reached yet; the pass after it can will do it
    try:
        match action:
            case Assign(replica):
                await supervisors.assign(address, view.credentials, view.assignments[replica])
            case DrainEngine(replica, why):
                logger.info("%s/%s: draining %s: %s", *_key(view), replica, why)
                await supervisors.drain(address, view.credentials, DrainRequest())
            case _:
                assert_never(action)
    except EngineError as error:
        logger.warning("%s/%s: %s", *_key(view), error)
        if ": 422: " in str(error):
            return Refused(Reason.ENGINE_FAILED, str(error))
    return None


async def _deleted(api: Api, kind: Kind, manifest: Json, view: View) -> None:
    namespace = view.item.metadata.namespace if kind.namespaced else None
    await api.delete(kind, manifest["metadata"]["name"], namespace)


def _reason(error: RefusedError) -> Reason:
    return Reason.QUOTA_EXCEEDED if "exceeded quota" in str(error) else Reason.REFUSED_BY_CLUSTER


def _key(view: View) -> tuple[str, str]:
    return view.item.metadata.namespace, view.item.metadata.name
