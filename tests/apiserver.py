"""One connection to a test's API server, as somebody: hundreds of handshakes, or of kubectls, take longer than the questions."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from e2e.stage.apiserver import ControlPlane
from e2e.stage.pki import ADMIN, Identity

_MEDLEY = "/apis/medley.dev/v1alpha1"
PATHS = {
    "LLMService": f"{_MEDLEY}/namespaces/default/llmservices",
    "AcceleratorClass": f"{_MEDLEY}/acceleratorclasses",
    "PerformanceProfile": f"{_MEDLEY}/performanceprofiles",
    "Migration": f"{_MEDLEY}/namespaces/default/migrations",
}


@contextmanager
def posting(plane: ControlPlane, identity: Identity = ADMIN) -> Iterator[Callable[[str, Any], tuple[int, Any]]]:
    """Yield a function: POST a document to a path; the status and what was answered, both JSON."""
    kubeconfig = plane.kubeconfig if identity is ADMIN else plane.kubeconfig_as(identity)
    context = ssl.create_default_context(cafile=str(plane.authority.certificate))
    context.load_cert_chain(kubeconfig.with_suffix(".crt"), kubeconfig.with_suffix(".key"))  # they lie beside it
    addresses = plane.addresses
    connection = http.client.HTTPSConnection(addresses.host, addresses.port, timeout=10, context=context)

    def post(path: str, document: Any) -> tuple[int, Any]:
        connection.request("POST", path, json.dumps(document), {"Content-Type": "application/json"})
        with connection.getresponse() as reply:
            return reply.status, json.load(reply)

    try:
        yield post
    finally:
        connection.close()
