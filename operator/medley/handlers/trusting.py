"""Makes and renews a service's authorities and certificates, step by step as `planning/trust.py` says.

Called by `acting` once per pass. Each write names the version that it replaces, so that two operators never mix theirs;
a pass that dies between two writes is finished by the next.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime
from typing import Any, assert_never

from medley.api.llmservice import LLMService
from medley.core.identity import Role
from medley.kube.api import SECRET, Api
from medley.kube.certificates import KeyPair, new_authority, new_certificate
from medley.kube.trust_secrets import (
    Files,
    Legible,
    TrustSecrets,
    authorities_secret,
    certificate_secret,
    read,
    service_of,
)
from medley.planning.trust import AUTHORITY_LIFE, CERTIFICATE_LIFE, Drop, Found, Issue, Settled, due

logger = logging.getLogger(__name__)

# Found, Drop, Issue; the rest is a later pass's.
MOST_STEPS = 4


async def ensure_trust(api: Api, item: LLMService, legible: Legible, now: datetime) -> None:
    """Bring the Secrets, of which so much was understood, to what is due now."""
    for complaint in legible.complaints:
        logger.warning("%s: %s", service_of(item), complaint)
    for _ in range(MOST_STEPS):
        secrets = legible.secrets
        match due(legible.trust, now):
            case Found():
                logger.info("%s: making a certificate authority", service_of(item))
                pairs = (*legible.pairs.values(), new_authority(now, AUTHORITY_LIFE))
                secrets = await _with_authorities(api, item, secrets, pairs)
            case Drop(fingerprints):
                logger.info("%s: dropping %d certificate authorities", service_of(item), len(fingerprints))
                kept = [pair for name, pair in legible.pairs.items() if name not in fingerprints]
                secrets = await _with_authorities(api, item, secrets, kept)
            case Issue() as issue:
                for role in issue.roles:
                    secrets = await _with_certificate(
                        api, item, secrets, role, _issued(legible, item, role, issue, now)
                    )
            case Settled():
                return
            case other:
                assert_never(other)
        legible = read(secrets, item)


def _issued(legible: Legible, item: LLMService, role: Role, issue: Issue, now: datetime) -> Files:
    pair = new_certificate(legible.pairs[issue.signer], service_of(item), role, now, CERTIFICATE_LIFE)
    return Files("".join(legible.pairs[name].certificate for name in sorted(issue.trusted)), pair)


async def _with_authorities(
    api: Api, item: LLMService, secrets: TrustSecrets, pairs: Iterable[KeyPair]
) -> TrustSecrets:
    manifest = authorities_secret(item, pairs, _version(secrets.authorities))
    return TrustSecrets(await _written(api, item, manifest), secrets.of)


async def _with_certificate(
    api: Api, item: LLMService, secrets: TrustSecrets, role: Role, files: Files
) -> TrustSecrets:
    logger.info("%s: issuing the %s's certificate", service_of(item), role)
    manifest = certificate_secret(item, role, files, _version(secrets.of.get(role)))
    return TrustSecrets(secrets.authorities, {**secrets.of, role: await _written(api, item, manifest)})


async def _written(api: Api, item: LLMService, manifest: dict[str, Any]) -> dict[str, Any]:
    write = api.replace if "resourceVersion" in manifest["metadata"] else api.create
    return await write(SECRET, manifest, item.metadata.namespace)


def _version(secret: Any) -> str | None:
    return None if secret is None else str(secret["metadata"]["resourceVersion"])
