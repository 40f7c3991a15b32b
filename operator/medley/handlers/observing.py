"""From what the API server and the supervisors say to `planning.fleet.Observed`: the border at which dicts end.

Called once per pass by `reconciling`.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from medley.api import convert
from medley.api.acceleratorclass import AcceleratorClass
from medley.api.llmservice import LLMService
from medley.cloud import notices
from medley.core import names
from medley.core.accelerators import OfferingKey
from medley.core.errors import InvalidInputError
from medley.core.identity import Role
from medley.core.notices import Notice
from medley.core.profiles import Profile
from medley.core.service import WorkloadSource
from medley.handlers.routers import Routers
from medley.handlers.supervisors import Credentials, Supervisors
from medley.kube import observe, trust_secrets
from medley.kube.api import Api
from medley.kube.engine_pod import ANNOTATION_ASSIGNMENT, PodRequest, template_hash
from medley.kube.manifests import KEY_FIELD, Images
from medley.kube.neighbours import neighbours
from medley.kube.observe import Sight
from medley.kube.replicas import address, offering_of, replica
from medley.kube.status import read_market, shape_of, standing
from medley.kube.trust_secrets import Legible, TrustSecrets, files_of
from medley.planning.fleet import Observed, PoolKey, Replica, RouterState
from medley.planning.throughput import most_trusted
from medley.tls.keyring import client_context
from medley.wire.assignment import EngineReport

logger = logging.getLogger(__name__)

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class View:
    """What is observed, and the objects that acting needs again."""

    observed: Observed
    item: LLMService
    classes: Mapping[str, AcceleratorClass]
    profiles: tuple[Profile, ...]
    images: Images
    key: str | None  # of the engines; None: not made yet
    trust: Legible
    credentials: Credentials | None  # to speak with supervisors; None: not made yet
    addresses: Mapping[str, str]  # of supervisors that can be reached, by replica
    assignments: Mapping[str, str]  # what each replica's pod carries
    status: Json  # of the service, as it is
    routers: Mapping[str, str]  # addresses of those that can be reached, by uid of the pod
    migrations: Sequence[Json] | None  # the records that there are; None: they could not be read

    def request(self, offering: OfferingKey) -> PodRequest | None:
        """Return what an engine pod of an offering is made from; None if its class is gone or not understood."""
        return _request(self.item, self.classes, self.profiles, self.images, offering)


async def view(
    api: Api, supervisors: Supervisors, routers: Routers, images: Images, key: tuple[str, str], *, now: datetime
) -> View | None:
    """Observe one service; None if there is none. Raises InvalidInputError for a service that is not understood."""
    sight = await observe.look(api, *key)
    if sight is None:
        return None
    item = convert.read_llm_service(_legible(sight.service))
    classes, bad_classes = _read(sight.classes, convert.read_accelerator_class)
    models, bad_profiles = _read(sight.profiles, convert.read_performance_profile)
    budgets, bad_budgets = _read(sight.budgets, convert.read_budget)
    profiles = tuple(convert.profile(each) for each in models)
    by_name = {each.metadata.name: each for each in classes}
    engine_key = _engine_key(sight.key)
    addresses = {pod["metadata"]["name"]: where for pod in sight.engine_pods if (where := address(pod)) is not None}
    credentials = _credentials(engine_key, sight.trust)
    listened = item.spec.workload.source is WorkloadSource.OBSERVED
    reports, ledger = await asyncio.gather(
        supervisors.reports(addresses, credentials),
        routers.listen(key, _router_addresses(sight) if listened else {}, now),
    )
    coming = _coming(sight)
    hashes: dict[OfferingKey, str | None] = {}
    for offering in {offering_of(pod) for pod in sight.engine_pods}:
        request = _request(item, by_name, profiles, images, offering)
        hashes[offering] = template_hash(request) if request else None
    told = await _told(api, sight, coming)
    observed = Observed(
        service=convert.service(item),
        classes=tuple(convert.accelerator_class(each) for each in classes),
        profiles=profiles,
        replicas=_replicas(sight, reports, hashes, coming, told),
        notices=_notices(sight, _heard(sight, reports), now),
        router=_router(sight, item),
        standing=standing(item),
        deleting=item.metadata.deletion_timestamp is not None,
        finalizer=names.FINALIZER in item.metadata.finalizers,
        pools=frozenset(_pool_keys(sight.node_pools)),
        pools_of_others=_used_by_others(sight),
        neighbours=neighbours(sight.others, sight.pods_of_others),
        unreadable=(*bad_classes, *bad_profiles, *bad_budgets),
        budgets=tuple(convert.budget(each) for each in budgets),
        ledger=ledger,
    )
    return View(
        observed=observed,
        item=item,
        classes=by_name,
        profiles=profiles,
        images=images,
        key=engine_key,
        trust=trust_secrets.read(sight.trust, item),
        credentials=credentials,
        addresses=addresses,
        assignments={pod["metadata"]["name"]: _assignment(pod) for pod in sight.engine_pods},
        status=sight.service.get("status") or {},
        routers=_router_addresses(sight),
        migrations=sight.migrations,
    )


def _legible(service: Json) -> Json:
    """Return the service, or, where it is being deleted, what taking it apart needs: its names.

    A service that an older version of the CRD let in must never be held for being unreadable.
    """
    if "deletionTimestamp" not in service["metadata"]:
        return service
    return {**service, "spec": {"model": {"name": "deleted"}}, "status": {}}


def _request(
    item: LLMService,
    classes: Mapping[str, AcceleratorClass],
    profiles: Iterable[Profile],
    images: Images,
    offering: OfferingKey,
) -> PodRequest | None:
    accelerator_class = classes.get(offering.shape.accelerator_class)
    if accelerator_class is None:
        return None
    own = most_trusted(each for each in profiles if each.model == item.spec.model.name and each.shape == offering.shape)
    return PodRequest(item, accelerator_class, offering, images, own[0].max_running if own else None)


def _replicas(
    sight: Sight,
    reports: Mapping[str, EngineReport | None],
    hashes: Mapping[OfferingKey, str | None],
    coming: frozenset[str],
    told: Mapping[str, str],
) -> tuple[Replica, ...]:
    found = (
        replica(
            pod,
            reports.get(pod["metadata"]["name"]),
            template=hashes[offering_of(pod)],
            node_is_coming=pod["metadata"]["name"] in coming,
            told=told.get(pod["metadata"]["name"], ""),
        )
        for pod in sight.engine_pods
    )
    return tuple(sorted(found, key=lambda each: each.name))


def _heard(sight: Sight, reports: Mapping[str, EngineReport | None]) -> frozenset[str]:
    """Return the nodes on which a supervisor answered just now."""
    return frozenset(
        pod["spec"]["nodeName"] for pod in sight.engine_pods if reports.get(pod["metadata"]["name"]) is not None
    )


def _notices(sight: Sight, heard: frozenset[str], now: datetime) -> tuple[Notice, ...]:
    """Return one notice per node that has engine pods and goes away, or is gone."""
    found = [notices.notice_of_absent_node(name, now) for name, node in sight.nodes.items() if node is None]
    found += [
        notice
        for name, node in sight.nodes.items()
        if node is not None and (notice := notices.notices_of_node(node, now, heard=name in heard)) is not None
    ]
    found += [notice for claim in sight.node_claims if (notice := notices.notice_of_node_claim(claim, now)) is not None]
    found += [
        notice
        for event in sight.interruptions
        if (notice := notices.notice_of_event(event, sight.node_claims, now)) is not None
    ]
    urgent = notices.most_urgent(found)
    return tuple(urgent[node] for node in sorted(urgent) if node in sight.nodes)


def _coming(sight: Sight) -> frozenset[str]:
    """Return the waiting pods for which a machine was obtained that is still booting.

    A GPU machine boots for minutes, and a pod is unschedulable all that time; only where no machine was to be had is
    the offering unavailable.
    """
    hosts = {pod.get("spec", {}).get("nodeName") for pod in sight.engine_pods}
    booting: Counter[tuple[str, str, str]] = Counter()
    for claim in sight.node_claims:
        labels = claim["metadata"].get("labels") or {}
        launched = any(
            each["type"] == "Launched" and each["status"] == "True"
            for each in claim.get("status", {}).get("conditions") or ()
        )
        if launched and "deletionTimestamp" not in claim["metadata"] and claim["status"].get("nodeName") not in hosts:
            keys = (names.LABEL_CLASS, names.LABEL_CAPACITY_TYPE, names.LABEL_NODE_ZONE)
            booting[tuple(labels.get(key, "") for key in keys)] += 1
    coming: set[str] = set()
    for pod in sorted(sight.engine_pods, key=lambda each: str(each["metadata"]["name"])):
        offering = offering_of(pod)
        place = (offering.shape.accelerator_class, offering.market.value, offering.zone)
        if not pod.get("spec", {}).get("nodeName") and booting[place]:
            booting[place] -= 1
            coming.add(pod["metadata"]["name"])
    return frozenset(coming)


async def _told(api: Api, sight: Sight, coming: frozenset[str]) -> dict[str, str]:
    short = [
        pod
        for pod in sight.engine_pods
        if not pod.get("spec", {}).get("nodeName") and pod["metadata"]["name"] not in coming
    ]
    told = await asyncio.gather(*(observe.told_about(api, pod) for pod in short))
    return {pod["metadata"]["name"]: words for pod, words in zip(short, told, strict=True)}


def _router(sight: Sight, item: LLMService) -> RouterState:
    status = (sight.router or {}).get("status") or {}
    return RouterState(
        exists=sight.router is not None,
        wanted=item.spec.router.replicas,
        pods=len(sight.router_pods),
        ready=int(status.get("readyReplicas", 0)),
    )


def _router_addresses(sight: Sight) -> dict[str, str]:
    """Return where routers are reached, by the uid of their pods."""
    return {pod["metadata"]["uid"]: where for pod in sight.router_pods if (where := address(pod)) is not None}


def _used_by_others(sight: Sight) -> frozenset[PoolKey]:
    planned = (
        PoolKey(shape_of(each["shape"]).accelerator_class, read_market(each["market"]))
        for other in sight.others
        for each in ((other.get("status") or {}).get("plan") or {}).get("offerings") or ()
    )
    held = (
        PoolKey(offering.shape.accelerator_class, offering.market)
        for offering in map(offering_of, sight.pods_of_others)
    )
    return frozenset((*planned, *held))


def _pool_keys(pools: Iterable[Json]) -> Iterable[PoolKey]:
    for pool in pools:
        labels = pool["metadata"].get("labels") or {}
        if names.LABEL_CLASS in labels and names.LABEL_MARKET in labels:
            yield PoolKey(labels[names.LABEL_CLASS], read_market(labels[names.LABEL_MARKET]))


def _read(objects: Iterable[Json], reader: Any) -> tuple[list[Any], list[str]]:
    """Return the models that are understood, and one sentence for each that is not."""
    understood, refused = [], []
    for each in objects:
        try:
            understood.append(reader(each))
        except InvalidInputError as error:
            refused.append(f"{each.get('kind')} {each['metadata']['name']} is left out: {error}")
    return understood, refused


def _engine_key(secret: Json | None) -> str | None:
    if secret is None:
        return None
    encoded = (secret.get("data") or {}).get(KEY_FIELD)
    if not encoded:
        field = f"Secret {secret['metadata']['name']}"
        raise InvalidInputError(field, f"has no field {KEY_FIELD}; delete it, and medley makes another")
    return base64.b64decode(encoded).decode()


def _credentials(key: str | None, trust: TrustSecrets) -> Credentials | None:
    """Return by what this operator is known; None without a key or a legible certificate: this pass makes them."""
    try:
        files = files_of(trust.of.get(Role.OPERATOR))
        if key is None or files is None:
            return None
        return Credentials(key, client_context(files.authorities, files.pair.certificate, files.pair.private_key))
    except InvalidInputError as error:
        logger.warning("the operator's certificate: %s", error)
        return None


def _assignment(pod: Json) -> str:
    return str((pod["metadata"].get("annotations") or {}).get(ANNOTATION_ASSIGNMENT, ""))
