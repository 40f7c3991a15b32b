"""When a service's authorities and certificates are made, renewed and dropped; `handlers/trusting.py` calls `due`.

One change of an authority never cuts anybody off: first the new one is trusted by all, then it issues, then the old one
is dropped; between two steps every process has had the time to read what the one before wrote. All is computed from the
certificates that exist. A certificate is issued anew with every change of whom its holder is to trust, so the time of
its issue says since when its holder can know.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from medley.core.identity import Role

# Renewed after a month; the two months left are for services whose operator is away, or gone.
CERTIFICATE_LIFE = timedelta(days=90)
CERTIFICATE_RENEWAL = timedelta(days=60)
AUTHORITY_LIFE = timedelta(days=730)
AUTHORITY_RENEWAL = timedelta(days=365)
# Kubelets bring a changed Secret into pods within two minutes (a sync period and a cache), or later on a busy node.
SPREAD = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority of the service; its key is at hand."""

    fingerprint: str
    issued: datetime
    expires: datetime


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the processes of a role have now."""

    role: Role
    issuer: str  # fingerprint of the authority; empty: none that is known
    issued: datetime
    expires: datetime
    trusts: frozenset[str]  # fingerprints of the authorities beside it


@dataclass(frozen=True, slots=True)
class Trust:
    """All there is; what cannot be read is not there."""

    authorities: tuple[Authority, ...] = ()
    certificates: tuple[Certificate, ...] = ()  # at most one per role


@dataclass(frozen=True, slots=True)
class Found:
    """Make an authority beside those that exist."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget these authorities."""

    fingerprints: frozenset[str]


@dataclass(frozen=True, slots=True)
class Issue:
    """Give these roles new certificates of an authority, and these authorities to trust."""

    roles: tuple[Role, ...]
    signer: str
    trusted: frozenset[str]


@dataclass(frozen=True, slots=True)
class Settled:
    """Nothing is due."""


Due = Found | Drop | Issue | Settled


def due(trust: Trust, now: datetime) -> Due:
    """Return the one thing to do next; ask again when it is done, until nothing is due."""
    living = tuple(sorted((each for each in trust.authorities if each.expires > now), key=_age))
    if not living or living[-1].expires - now < AUTHORITY_RENEWAL:
        return Found()
    signer = _signer(living, trust.certificates, now)
    kept = living if not _follows(trust, signer, now) else tuple(each for each in living if _age(each) >= _age(signer))
    trusted = frozenset(each.fingerprint for each in kept)
    gone = frozenset(each.fingerprint for each in trust.authorities) - trusted
    if gone:
        return Drop(gone)
    of = {each.role: each for each in trust.certificates}
    roles = tuple(role for role in Role if role not in of or _is_stale(of[role], signer, trusted, now))
    return Issue(roles, signer.fingerprint, trusted) if roles else Settled()


def _age(authority: Authority) -> tuple[datetime, str]:
    return authority.issued, authority.fingerprint


def _signer(living: tuple[Authority, ...], certificates: Iterable[Certificate], now: datetime) -> Authority:
    """Return the newest authority that issues already or that everybody can know; else the oldest.

    One that issued for some roles before a pass died goes on: it would not have begun before all knew it.
    """
    certificates = tuple(certificates)
    issuing = {each.issuer for each in certificates}
    known = {
        each.fingerprint
        for each in living
        if {one.role for one in certificates if each.fingerprint in one.trusts and one.issued + SPREAD <= now}
        == set(Role)
    }
    return next((each for each in reversed(living) if each.fingerprint in issuing | known), living[0])


def _follows(trust: Trust, signer: Authority, now: datetime) -> bool:
    """Say whether every process can have a certificate of the signer by now, so that those before it may go."""
    return {
        each.role for each in trust.certificates if each.issuer == signer.fingerprint and each.issued + SPREAD <= now
    } == set(Role)


def _is_stale(certificate: Certificate, signer: Authority, trusted: frozenset[str], now: datetime) -> bool:
    ends_soon = certificate.expires - now < CERTIFICATE_RENEWAL and certificate.expires < signer.expires
    return certificate.issuer != signer.fingerprint or certificate.trusts != trusted or ends_soon
