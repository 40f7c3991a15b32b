"""The fleet as Kubernetes shows it: the service's pods, their nodes, and the routing table in its status.

`main` runs `follow`. Three watches feed one function, `view_of`, which is pure; each change makes a whole new view, so
nothing depends on having seen an earlier one. While the API server is away the last view stays, and streams go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medley.api.llmservice import LLMService
from medley.api.llmservice_status import Routing
from medley.cloud.notices import is_silent, notice_of_absent_node, notice_of_pod, notices_of_node
from medley.core import names, units
from medley.core.errors import EngineError, InvalidInputError
from medley.core.workload import Bucket, SizeGrid
from medley.kube.api import LLM_SERVICE, NODE, POD, Api, Kind, connected
from medley.kube.readiness import probed_ready
from medley.kube.watch import ObjectKey, watched
from medley.planning.routing import RoutingTable
from medley.router.attempt import Replica
from medley.router.engine_client import EngineClient
from medley.router.fleet import FleetView, Limits
from medley.router.server import Followed
from medley.wire.assignment import Capability, EngineReport

logger = logging.getLogger(__name__)

DEFAULT_MAX_RUNNING = 64
# Silence of so many times the promised time per token is a lost engine, but never less than the least.
SILENCE_FACTOR = 50
LEAST_SILENCE = timedelta(seconds=5)
_CAPABILITY_RETRY_SECONDS = 2.0

Objects = Mapping[ObjectKey, Mapping[str, Any]]


@dataclass(slots=True)
class _Seen:
    """What the watches have listed so far; None: not yet, which is not the same as nothing."""

    pods: Objects | None = None
    nodes: Objects | None = None
    table: RoutingTable | None = None
    capabilities: dict[str, frozenset[str]] = field(default_factory=dict)  # by pod uid


def tokenizer_url(engine_url: str) -> str:
    """Return where the supervisor beside an engine gives the tokenizer: the open port, which has no TLS."""
    host = engine_url.partition("://")[2].rpartition(":")[0]
    return f"http://{host}:{names.PORT_ENGINE_STATUS}/tokenizer.json"


def view_of(
    pods: Iterable[Mapping[str, Any]],
    nodes: Mapping[str, Mapping[str, Any]] | None,
    table: RoutingTable | None,
    capabilities: Mapping[str, frozenset[str]],
    now: datetime,
    *,
    scheme: str = "http",
) -> FleetView:
    """Return the fleet that these objects show. `nodes` by name; None: not listed yet, so none is known to be gone.

    `scheme`: of the engines' URLs.
    """
    replicas = (_replica(pod, nodes, capabilities, now, scheme) for pod in pods)
    return FleetView({each.name: each for each in replicas if each is not None}, table)


def _replica(
    pod: Mapping[str, Any],
    nodes: Mapping[str, Mapping[str, Any]] | None,
    capabilities: Mapping[str, frozenset[str]],
    now: datetime,
    scheme: str,
) -> Replica | None:
    meta, status = pod["metadata"], pod.get("status", {})
    address, node_name = status.get("podIP"), pod.get("spec", {}).get("nodeName")
    if not address or status.get("phase") in {"Succeeded", "Failed"}:
        return None
    notices = [notice_of_pod(pod, now)]
    silent = False
    if node_name and nodes is not None:
        node = nodes.get(node_name)
        if node is None:
            notices.append(notice_of_absent_node(node_name, now))
        else:
            # Whether the engine there lives, its streams tell: a silent kubelet is no reason to move them.
            notices.append(notices_of_node(node, now, heard=True))
            silent = is_silent(node, now)
    deadlines = [notice.deadline for notice in notices if notice is not None]
    return Replica(
        name=meta["name"],
        url=f"{scheme}://{names.url_host(address)}:{names.PORT_ENGINE}",
        shape=meta.get("labels", {}).get(names.LABEL_SHAPE, ""),
        max_running=_max_running(meta.get("annotations", {}).get(names.ANNOTATION_MAX_RUNNING)),
        ready=probed_ready(pod),
        leaves_at=min(deadlines, default=None),
        silent=silent,
        resumes_output=Capability.RESUME_EXACT in capabilities.get(meta.get("uid", ""), frozenset()),
    )


def _max_running(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() and int(text) > 0 else DEFAULT_MAX_RUNNING


def table_of(service: Mapping[str, Any]) -> RoutingTable | None:
    """Return the routing table in a service's status; None if there is none yet, or not one that this version reads."""
    raw = service.get("status", {}).get("plan", {}).get("routing")
    if not raw:
        return None
    try:
        routing = Routing.model_validate(raw)
        grid = SizeGrid(routing.input_edges, routing.output_edges)
    except (ValidationError, InvalidInputError) as error:
        logger.warning("status.plan.routing: %s; spreading over all replicas", error)
        return None
    shares: dict[Bucket, tuple[tuple[str, float], ...]] = {}
    for each in routing.shares:
        bucket = Bucket(each.input, each.output)
        shares[bucket] = (*shares.get(bucket, ()), (each.shape, each.share))
    return RoutingTable(grid, shares)


async def follow(
    namespace: str, service: str, kept: Followed, engines: EngineClient, *, kubeconfig: Path | None = None
) -> None:
    """Keep everything as the API server shows it, for ever. `kubeconfig`: None, the pod's own or the user's."""
    fleet = kept.fleet
    seen = _Seen()

    def refresh() -> None:
        if seen.pods is None:
            return
        nodes = None if seen.nodes is None else {key.name: node for key, node in seen.nodes.items()}
        now = datetime.now(UTC)
        view = view_of(seen.pods.values(), nodes, seen.table, seen.capabilities, now, scheme=engines.scheme)
        if view != fleet.view:
            fleet.replace(view)

    async with connected(kubeconfig) as api, asyncio.TaskGroup() as group:
        selector = f"{names.LABEL_SERVICE}={service},{names.LABEL_COMPONENT}={names.Component.ENGINE}"

        def take_pods(pods: Objects) -> None:
            seen.pods = pods
            refresh()

        def take_nodes(nodes: Objects) -> None:
            seen.nodes = nodes
            refresh()

        def take_service(services: Objects) -> None:
            item = services.get(ObjectKey(namespace, service))
            if item is not None:
                _take_spec(item, kept)
                seen.table = table_of(item)
                refresh()

        group.create_task(_watch(api, POD, take_pods, namespace=namespace, labels=selector))
        group.create_task(_watch(api, NODE, take_nodes))
        group.create_task(
            _watch(api, LLM_SERVICE, take_service, namespace=namespace, fields=f"metadata.name={service}")
        )
        group.create_task(_learn_capabilities(seen, engines, refresh))


async def _watch(
    api: Api,
    kind: Kind,
    take: Callable[[Objects], None],
    *,
    namespace: str | None = None,
    labels: str = "",
    fields: str = "",
) -> None:
    async for change in watched(api, kind, namespace=namespace, labels=labels, fields=fields):
        take(change.objects)


def _take_spec(item: Mapping[str, Any], kept: Followed) -> None:
    try:
        spec = LLMService.model_validate(item).spec
    except ValidationError as error:
        # Of a newer medley: what was read before stands.
        logger.warning("reading the LLMService: %s", error)
        return
    kept.serving.model = spec.model.served_name or spec.model.name
    kept.options.request_timeout = units.duration(spec.router.request_timeout, field="spec.router.requestTimeout")
    kept.options.queue_limit = spec.router.queue_limit
    if spec.slo.tpot is not None:
        promised = units.duration(spec.slo.tpot, field="spec.slo.tpot")
        kept.fleet.limits = replace(Limits(), silence=max(LEAST_SILENCE, promised * SILENCE_FACTOR))


async def _learn_capabilities(seen: _Seen, engines: EngineClient, refresh: Callable[[], None]) -> None:
    """Ask the supervisor of each new pod what its engine can do; until it answers, nothing special."""
    while True:
        for pod in list((seen.pods or {}).values()):
            uid, address = pod["metadata"].get("uid", ""), pod.get("status", {}).get("podIP")
            if not address or uid in seen.capabilities or not probed_ready(pod):
                continue
            try:
                text = await engines.text(f"{engines.scheme}://{names.url_host(address)}:{names.PORT_CONTROL}/v1/state")
                seen.capabilities[uid] = frozenset(EngineReport.model_validate_json(text).capabilities)
            except (EngineError, ValidationError) as error:
                logger.debug("asking %s for its capabilities: %s", pod["metadata"]["name"], error)
                continue
            refresh()
        await asyncio.sleep(_CAPABILITY_RETRY_SECONDS)
