"""Who speaks: the roles of a service's processes and the names in their certificates; pure.

Each service has its own certificate authority, so a chain that verifies already says "of this service". The DNS names
are the same for every service and every pod, because pod addresses come and go; the URI names the service, so that two
services stay apart even where somebody issues both from one authority.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

TLS_FOLDER_VARIABLE = "MEDLEY_TLS_DIR"  # the folder with the four files below; unset: no TLS
AUTHORITIES_FILE = "ca.crt"  # every authority that is trusted now, PEM
CERTIFICATE_FILE = "tls.crt"
PRIVATE_KEY_FILE = "tls.key"
SERVICE_FILE = "service"  # <namespace>/<name>


class Role(StrEnum):
    """What a process is to its service."""

    ENGINE = "engine"  # supervisor, vLLM and its workers
    ROUTER = "router"
    OPERATOR = "operator"


def dns_name(role: Role) -> str:
    """Return the DNS name in a role's certificates; clients check a server by it."""
    return f"{role}.medley"


def uri(service: str, role: Role) -> str:
    """Return the URI in the certificates of a role of one service, given as <namespace>/<name>."""
    return f"spiffe://medley.dev/{service}/{role}"


def role_of(certificate: Mapping[str, Any] | None, service: str) -> Role | None:
    """Return the role that a peer's certificate proves within a service, or None: a stranger.

    `certificate` as `ssl.SSLSocket.getpeercert()` returns it, its chain verified; `service` as <namespace>/<name>.
    """
    names = frozenset(tuple(name) for name in (certificate or {}).get("subjectAltName", ()))
    for role in Role:
        if ("DNS", dns_name(role)) in names and ("URI", uri(service, role)) in names:
            return role
    return None
