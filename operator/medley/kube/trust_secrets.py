"""The Secrets by which the processes of a service know each other: read into `planning.trust.Trust`, and written.

`<service>-ca` holds the authorities with their keys; the operator alone reads it. `<service>-<role>-tls` holds what a
process of that role needs, and is mounted in its pods; the operator reads its own. What cannot be understood counts as
absent, so that it is made anew. Called by `handlers/trusting.py` and `handlers/observing.py`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from medley.api.llmservice import LLMService
from medley.core import names
from medley.core.errors import InvalidInputError
from medley.core.identity import (
    AUTHORITIES_FILE,
    CERTIFICATE_FILE,
    PRIVATE_KEY_FILE,
    SERVICE_FILE,
    Role,
    dns_name,
    uri,
)
from medley.kube import certificates
from medley.kube.api import SECRET
from medley.kube.certificates import KeyPair
from medley.kube.manifests import metadata
from medley.planning.trust import Authority, Certificate, Trust

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Files:
    """What a role's Secret holds, PEM."""

    authorities: str
    pair: KeyPair


@dataclass(frozen=True, slots=True)
class TrustSecrets:
    """The Secrets of one service as the API server has them; None: not there."""

    authorities: Json | None
    of: Mapping[Role, Json | None]


@dataclass(frozen=True, slots=True)
class Legible:
    """What of the Secrets is understood."""

    secrets: TrustSecrets
    trust: Trust
    pairs: Mapping[str, KeyPair]  # authorities by fingerprint
    complaints: tuple[str, ...]  # what is not, one sentence each


def service_of(item: LLMService) -> str:
    """Return a service as certificates name it."""
    return f"{item.metadata.namespace}/{item.metadata.name}"


def read(secrets: TrustSecrets, item: LLMService) -> Legible:
    """Return the trust that the Secrets hold."""
    pairs, complaints = _pairs(secrets.authorities)
    found: list[Certificate] = []
    for role, secret in secrets.of.items():
        try:
            files = files_of(secret)
            if files is not None:
                found.append(_certificate(role, files, pairs, service_of(item)))
        except InvalidInputError as error:
            complaints.append(f"Secret {names.certificates(item.metadata.name, role)} is made anew: {error}")
    authorities = [
        Authority(reading.fingerprint, reading.issued, reading.expires)
        for reading in (certificates.read(pair.certificate) for pair in pairs.values())
    ]
    return Legible(secrets, Trust(tuple(authorities), tuple(found)), pairs, tuple(complaints))


def files_of(secret: Json | None) -> Files | None:
    """Return what a role's Secret holds; None if there is none. Raises InvalidInputError if it is not whole."""
    if secret is None:
        return None
    text = _text(secret)
    try:
        return Files(text[AUTHORITIES_FILE], KeyPair(text[CERTIFICATE_FILE], text[PRIVATE_KEY_FILE]))
    except KeyError as error:
        raise InvalidInputError(f"data.{error.args[0]}", "missing") from error


def authorities_secret(item: LLMService, pairs: Iterable[KeyPair], version: str | None) -> dict[str, Any]:
    """Return the Secret of the authorities; `version`: of the one that it replaces, None: a new one."""
    data = {}
    for pair in pairs:
        name = certificates.read(pair.certificate).fingerprint[:16]
        data |= {f"{name}.crt": pair.certificate, f"{name}.key": pair.private_key}
    return _secret(item, names.authorities(item.metadata.name), "Opaque", data, version)


def certificate_secret(item: LLMService, role: Role, files: Files, version: str | None) -> dict[str, Any]:
    """Return the Secret of a role."""
    data = {
        AUTHORITIES_FILE: files.authorities,
        CERTIFICATE_FILE: files.pair.certificate,
        PRIVATE_KEY_FILE: files.pair.private_key,
        SERVICE_FILE: service_of(item),
    }
    return _secret(item, names.certificates(item.metadata.name, role), "kubernetes.io/tls", data, version)


def _secret(item: LLMService, name: str, kind: str, data: Mapping[str, str], version: str | None) -> dict[str, Any]:
    meta = metadata(item, name, names.Component.ENGINE)
    return {
        "apiVersion": SECRET.api_version,
        "kind": SECRET.kind,
        "metadata": meta if version is None else {**meta, "resourceVersion": version},
        "type": kind,
        "stringData": dict(data),
    }


def _pairs(secret: Json | None) -> tuple[dict[str, KeyPair], list[str]]:
    """Return the authorities by fingerprint, and why others are left out."""
    pairs: dict[str, KeyPair] = {}
    complaints: list[str] = []
    if secret is None:
        return pairs, complaints
    text = _text(secret)
    for name in sorted(key.removesuffix(".crt") for key in text if key.endswith(".crt")):
        pair = KeyPair(text[f"{name}.crt"], text.get(f"{name}.key", ""))
        try:
            pairs[certificates.read_pair(pair).fingerprint] = pair
        except InvalidInputError as error:
            complaints.append(f"Secret {secret['metadata']['name']}, authority {name} is left out: {error}")
    return pairs, complaints


def _certificate(role: Role, files: Files, pairs: Mapping[str, KeyPair], service: str) -> Certificate:
    reading = certificates.read_pair(files.pair)
    if reading.names != {dns_name(role), uri(service, role)}:
        raise InvalidInputError(CERTIFICATE_FILE, f"is for {', '.join(sorted(reading.names))}")
    issuers = (
        fingerprint
        for fingerprint, pair in pairs.items()
        if certificates.issued_by(files.pair.certificate, pair.certificate)
    )
    trusts = frozenset(each.fingerprint for each in certificates.read_all(files.authorities))
    return Certificate(role, next(issuers, ""), reading.issued, reading.expires, trusts)


def _text(secret: Json) -> dict[str, str]:
    """Return the data of a Secret; bytes that are no text become what no reader takes for PEM."""
    encoded = (secret.get("data") or {}).items()
    return {key: base64.b64decode(value).decode(errors="replace") for key, value in encoded}
