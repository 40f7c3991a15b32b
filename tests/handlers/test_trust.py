"""Certificates against the real API server: made, renewed in time, mended; the operator never loses its engines."""

import base64
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from medley.api import convert
from medley.core import names
from medley.core.identity import Role, dns_name, uri
from medley.kube import trust_secrets
from medley.kube.api import SECRET
from medley.kube.certificates import new_authority, read, read_all
from medley.planning.trust import AUTHORITY_LIFE, AUTHORITY_RENEWAL, SPREAD
from tests.handlers.world import class_manifest, profile_manifest, service_manifest

pytestmark = pytest.mark.apiserver


async def secret(here, name):
    found = await here.api.get(SECRET, name, here.namespace)
    assert found is not None, name
    return {key: base64.b64decode(value).decode() for key, value in found["data"].items()}


async def issuers(here):
    """Return, per role, which authorities are trusted (by their order in time) and which one issued."""
    authorities = [text for key, text in (await secret(here, "chat-ca")).items() if key.endswith(".crt")]
    order = {each.fingerprint: n for n, each in enumerate(sorted(map(read, authorities), key=lambda r: r.issued))}
    found = {}
    for role in Role:
        files = await secret(here, names.certificates("chat", role))
        trusts = {order[each.fingerprint] for each in read_all(files["ca.crt"])}
        (issuer,) = (
            order[read(each).fingerprint]
            for each in authorities
            if trust_secrets.certificates.issued_by(files["tls.crt"], each)
        )
        found[role] = (trusts, issuer)
    return found


@pytest.fixture
async def served(here, caplog):
    caplog.set_level(logging.INFO, "medley.handlers.supervisors")
    await here.apply(class_manifest(), profile_manifest(), service_manifest())
    await here.settle(passes=5)
    assert (await here.condition("Ready"))[0] == "True"
    caplog.clear()
    return here


async def test_each_role_has_a_certificate_of_its_own_from_the_services_authority(served):
    for role in Role:
        files = await secret(served, f"chat-{role}-tls")
        assert sorted(files) == ["ca.crt", "service", "tls.crt", "tls.key"]
        assert read(files["tls.crt"]).names == {dns_name(role), uri(f"{served.namespace}/chat", role)}
        assert files["service"] == f"{served.namespace}/chat"
    assert await issuers(served) == dict.fromkeys(Role, ({0}, 0))
    labels = {"namespace": served.namespace, "service": "chat", "role": "engine"}
    ends = served.metrics.registry.get_sample_value("medley_certificate_expiry_timestamp_seconds", labels)
    assert ends == read((await secret(served, "chat-engine-tls"))["tls.crt"]).expires.timestamp()


async def test_an_authority_that_ends_is_followed_without_losing_an_engine(served, caplog):
    now = datetime.now(UTC)
    item = convert.read_llm_service(await served.service())
    old = new_authority(now - (AUTHORITY_LIFE - AUTHORITY_RENEWAL) - timedelta(days=1), AUTHORITY_LIFE)
    version = (await served.api.get(SECRET, "chat-ca", served.namespace))["metadata"]["resourceVersion"]
    await served.api.replace(SECRET, trust_secrets.authorities_secret(item, [old], version), served.namespace)
    for role in Role:
        await served.api.delete(SECRET, f"chat-{role}-tls", served.namespace)
    seen = []
    for later in (timedelta(0), SPREAD / 2, SPREAD + timedelta(minutes=1), SPREAD * 3):
        served.reconciler = replace(served.reconciler, clock=lambda at=now + later: at)
        await served.pass_over()
        seen.append(await issuers(served))
        caplog.clear() if later == timedelta(0) else None  # the Secrets were deleted by hand: that cuts off
        assert await served.pass_over() is not None
        assert (await served.condition("Ready"))[0] == "True"
    assert [each[Role.ENGINE] for each in seen] == [({0, 1}, 0), ({0, 1}, 0), ({0, 1}, 1), ({0}, 0)]
    assert all(len(set(map(str, each.values()))) == 1 for each in seen)
    assert caplog.records == []  # every supervisor answered every time


async def test_secrets_that_people_break_are_made_anew(served):
    before = await secret(served, "chat-router-tls")
    patch = {"data": {"tls.crt": base64.b64encode(b"nonsense").decode()}}
    await served.api.merge(SECRET, "chat-router-tls", served.namespace, patch)
    await served.api.delete(SECRET, "chat-operator-tls", served.namespace)
    await served.pass_over()
    after = await secret(served, "chat-router-tls")
    assert read(after["tls.crt"]).names == read(before["tls.crt"]).names
    assert await issuers(served) == dict.fromkeys(Role, ({0}, 0))
    await served.settle(passes=2)
    assert (await served.condition("Ready"))[0] == "True"


async def test_a_pass_with_nothing_due_writes_no_secret(served):
    versions = {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in await _secrets(served)}
    await served.settle(passes=3)
    assert {
        each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in await _secrets(served)
    } == versions
    assert len(versions) == 5


async def _secrets(here):
    return (await here.api.list(SECRET, here.namespace))[0]
