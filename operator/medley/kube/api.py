"""The one door to the API server: requests on raw JSON objects, errors translated, nothing decided.

`handlers`, `router` and the rest of `kube` call it. Objects are JSON as the server writes it: what they mean is parsed
by `api`, `cloud` and `kube.observe`. It knows no kopf.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from medley.core import names
from medley.core.errors import ClusterError, ObjectGoneError
from medley.kube.errors import of_status, translated

Json = dict[str, Any]
Query = Sequence[tuple[str, str]]

REQUEST_TIMEOUT_SECONDS = 10.0
# Of objects with many neighbours; the API server's chunks.
PAGE_SIZE = 500


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object and where it lives."""

    group: str  # "" for the core group
    version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """`apiVersion` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Return the URL path; a namespaced kind without namespace means all namespaces."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        where = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return root + where + "/" + "/".join(part for part in (self.plural, name, subresource) if part)


LLM_SERVICE = Kind(names.GROUP, names.VERSION, "LLMService", "llmservices")
ACCELERATOR_CLASS = Kind(names.GROUP, names.VERSION, "AcceleratorClass", "acceleratorclasses", namespaced=False)
PERFORMANCE_PROFILE = Kind(names.GROUP, names.VERSION, "PerformanceProfile", "performanceprofiles", namespaced=False)
MONEY_BUDGET = Kind(names.GROUP, names.VERSION, "Budget", "budgets", namespaced=False)
MIGRATION = Kind(names.GROUP, names.VERSION, "Migration", "migrations")
POD = Kind("", "v1", "Pod", "pods")
NODE = Kind("", "v1", "Node", "nodes", namespaced=False)
SECRET = Kind("", "v1", "Secret", "secrets")
SERVICE = Kind("", "v1", "Service", "services")
SERVICE_ACCOUNT = Kind("", "v1", "ServiceAccount", "serviceaccounts")
DEPLOYMENT = Kind("apps", "v1", "Deployment", "deployments")
BUDGET = Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
CLUSTER_ROLE_BINDING = Kind(
    "rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", namespaced=False
)
ROLE_BINDING = Kind("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings")
LEASE = Kind("coordination.k8s.io", "v1", "Lease", "leases")
EVENT = Kind("", "v1", "Event", "events")
NODE_POOL = Kind("karpenter.sh", "v1", "NodePool", "nodepools", namespaced=False)
NODE_CLAIM = Kind("karpenter.sh", "v1", "NodeClaim", "nodeclaims", namespaced=False)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who we are and where the API server is, for clients other than `Api` (kopf)."""

    server: str
    ca_file: str | None
    certificate_file: str | None
    key_file: str | None
    token: str | None


class Api:
    """Requests to one API server over one connection pool."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    async def credentials(self) -> Credentials:
        """Return the credentials in use now; a service account's token is read anew when it is old."""
        configuration = self._client.configuration
        header = (await configuration.auth_settings()).get("BearerToken", {}).get("value", "")
        return Credentials(
            server=configuration.host,
            ca_file=configuration.ssl_ca_cert,
            certificate_file=configuration.cert_file,
            key_file=configuration.key_file,
            token=header.split(" ", 1)[-1] or None,
        )

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Json | None:
        """Return the object, or None if there is none."""
        try:
            return await self.request("GET", kind.path(namespace, name))
        except ObjectGoneError:
            return None

    async def list(
        self, kind: Kind, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> tuple[list[Json], str]:
        """Return all objects that match the selectors, and the resource version to watch from."""
        objects: list[Json] = []
        token = ""
        while True:
            query = [("limit", str(PAGE_SIZE)), *selectors(labels, fields)]
            if token:
                query.append(("continue", token))
            page = await self.request("GET", kind.path(namespace), query=query)
            # Items of a list carry neither kind nor apiVersion.
            objects += [{"apiVersion": kind.api_version, "kind": kind.kind, **item} for item in page.get("items") or ()]
            token = page["metadata"].get("continue", "")
            if not token:
                return objects, page["metadata"]["resourceVersion"]

    async def create(self, kind: Kind, body: Mapping[str, Any], namespace: str | None = None) -> Json:
        """Create the object; `ConflictError` if there is one of this name."""
        query = [("fieldManager", names.FIELD_MANAGER)]
        return await self.request("POST", kind.path(namespace), query=query, body=body)

    async def replace(self, kind: Kind, body: Mapping[str, Any], namespace: str | None = None) -> Json:
        """Replace the object if its resource version is still the one in `body`, else `ConflictError`."""
        query = [("fieldManager", names.FIELD_MANAGER)]
        return await self.request("PUT", kind.path(namespace, body["metadata"]["name"]), query=query, body=body)

    async def server_side_apply(
        self, kind: Kind, body: Mapping[str, Any], namespace: str | None = None, subresource: str | None = None
    ) -> Json:
        """Apply the fields in `body` as medley's own; fields that others took over are taken back."""
        return await self.request(
            "PATCH",
            kind.path(namespace, body["metadata"]["name"], subresource),
            query=[("fieldManager", names.FIELD_MANAGER), ("force", "true")],
            body=body,
            content_type="application/apply-patch+yaml",
        )

    async def merge(self, kind: Kind, name: str, namespace: str | None, patch: Mapping[str, Any]) -> Json:
        """Apply an RFC 7386 merge patch; with `metadata.resourceVersion` in it, only on that version."""
        return await self.request(
            "PATCH",
            kind.path(namespace, name),
            query=[("fieldManager", names.FIELD_MANAGER)],
            body=patch,
            content_type="application/merge-patch+json",
        )

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
    ) -> bool:
        """Delete the object; False if it is gone already or, where `uid` is given, is another one of the same name."""
        options: Json = {"propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            await self.request("DELETE", kind.path(namespace, name), body=options)
        except ObjectGoneError:
            return False
        return True

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Query = (),
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Json:
        """Send one request and return the answer's JSON; `ClusterError` and its children otherwise."""
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS)
        with translated(f"{method} {path}"):
            response = await self._send(method, path, query, timeout, body=body, content_type=content_type)
            data = await response.read()
        if not response.ok:
            raise of_status(response.status, f"{method} {path}: {_message(data, response)}")
        answer: Json = json.loads(data)
        return answer

    async def stream(self, path: str, query: Query, *, silence_seconds: float) -> AsyncIterator[Json]:
        """Yield the JSON lines of a watch until the server ends it; silence for longer is a `ClusterError`."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_TIMEOUT_SECONDS, sock_read=silence_seconds)
        with translated(f"watching {path}"):
            response = await self._send("GET", path, query, timeout)
            try:
                if not response.ok:
                    raise of_status(response.status, f"watching {path}: {_message(await response.read(), response)}")
                pending = b""
                async for chunk in response.content.iter_any():
                    *lines, pending = (pending + chunk).split(b"\n")
                    for line in lines:
                        if line:
                            yield json.loads(line)
            finally:
                _abort(response)

    async def _send(
        self,
        method: str,
        path: str,
        query: Query,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  # aiohttp's own value, for connect and read apart
        *,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        request = await self._client.param_serialize(
            method,
            path,
            query_params=list(query),
            header_params=headers,
            body=dict(body) if body is not None else None,
            auth_settings=["BearerToken"],
        )
        response: aiohttp.ClientResponse = (await self._client.call_api(*request, _request_timeout=timeout)).response
        return response


@asynccontextmanager
async def connected(kubeconfig: Path | None = None) -> AsyncIterator[Api]:
    """Connect as the pod's service account; outside of a pod, by `kubeconfig`, $KUBECONFIG or ~/.kube/config."""
    configuration = Configuration()
    if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ:
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    else:
        with translated(f"reading kubeconfig {kubeconfig or 'from $KUBECONFIG or ~/.kube/config'}"):
            await _load(kubeconfig, configuration)
    async with ApiClient(configuration) as client:
        yield Api(client)


async def _load(kubeconfig: Path | None, configuration: Configuration) -> None:
    try:
        await config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=str(kubeconfig) if kubeconfig else None, client_configuration=configuration
        )
    except config.ConfigException as error:
        raise ClusterError(f"reading the kubeconfig: {error}; set KUBECONFIG") from error


def _abort(response: aiohttp.ClientResponse) -> None:
    """End a watch at once: a polite end of TLS would outlive the loop, and nobody waits for what is still to come."""
    connection = response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()
    response.close()


def selectors(labels: str, fields: str) -> list[tuple[str, str]]:
    """Return the query parameters of label and field selectors; empty ones are left out."""
    return [(key, value) for key, value in (("labelSelector", labels), ("fieldSelector", fields)) if value]


def _message(data: bytes, response: aiohttp.ClientResponse) -> str:
    try:
        return str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.status} {response.reason}"
