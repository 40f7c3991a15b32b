"""What tests do with an API server: give it Karpenter's CRDs, and ask it hundreds of things over one connection."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from e2e.stage import paths
from e2e.stage.apiserver import ControlPlane
from e2e.stage.build import karpenter_tool
from e2e.stage.pki import ADMIN, Identity
from e2e.stage.processes import StageError

_MEDLEY = "/apis/medley.dev/v1alpha1"
PATHS = {
    "LLMService": f"{_MEDLEY}/namespaces/default/llmservices",
    "Budget": f"{_MEDLEY}/budgets",
    "AcceleratorClass": f"{_MEDLEY}/acceleratorclasses",
    "PerformanceProfile": f"{_MEDLEY}/performanceprofiles",
    "Migration": f"{_MEDLEY}/namespaces/default/migrations",
}


def with_karpenter(plane: ControlPlane) -> None:
    """Apply Karpenter's CRDs and wait until their objects can be listed: a moment after they are established."""
    plane.apply(paths.tool(karpenter_tool()) / "crds")
    for kind in ("nodepools.karpenter.sh", "nodeclaims.karpenter.sh"):
        for _ in range(100):
            try:
                plane.kubectl("get", kind)
                break
            except StageError:
                time.sleep(0.1)


@contextmanager
def posting(plane: ControlPlane, identity: Identity = ADMIN) -> Iterator[Callable[[str, Any], tuple[int, Any]]]:
    """Yield a function: POST a document to a path as somebody; the status and what was answered, JSON.

    Hundreds of handshakes, or of kubectls, would take longer than the questions.
    """
    kubeconfig = plane.kubeconfig if identity is ADMIN else plane.kubeconfig_as(identity)
    context = ssl.create_default_context(cafile=str(plane.authority.certificate))
    context.load_cert_chain(kubeconfig.with_suffix(".crt"), kubeconfig.with_suffix(".key"))  # they lie beside it
    addresses = plane.addresses
    connection = http.client.HTTPSConnection(addresses.host, addresses.port, timeout=60, context=context)

    def post(path: str, document: Any) -> tuple[int, Any]:
        connection.request("POST", path, json.dumps(document), {"Content-Type": "application/json"})
        with connection.getresponse() as reply:
            return reply.status, json.load(reply)

    try:
        yield post
    finally:
        connection.close()
