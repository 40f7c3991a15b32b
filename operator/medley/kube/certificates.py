"""Keys and certificates of a service, made and read. Called by `handlers/trusting.py`, which decides nothing either.

What should exist is `planning/trust.py`'s decision. Elliptic keys (P-256), since each handshake signs; the same usages
for all, because an engine is both a server and, to another engine, a client.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from medley.core.errors import InvalidInputError
from medley.core.identity import Role, dns_name, uri

# The clock of a machine that has just booted may be behind.
CLOCK_SKEW = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key, both PEM."""

    certificate: str
    private_key: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What a certificate says of itself."""

    fingerprint: str
    issued: datetime
    expires: datetime
    names: frozenset[str]  # DNS names and URIs


def new_authority(now: datetime, life: timedelta) -> KeyPair:
    """Return a new authority; it may issue certificates, and no further authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    # A name of its own for each, so that verifiers need not try one after another while two are trusted.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"medley {serial:040x}")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), serial, now - CLOCK_SKEW, now + life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair(certificate, key)


def new_certificate(authority: KeyPair, service: str, role: Role, now: datetime, life: timedelta) -> KeyPair:
    """Return a certificate of a role (service as <namespace>/<name>); it ends with its authority at the latest."""
    issuer, issuer_key = _certificate(authority.certificate), _private_key(authority.private_key)
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.DNSName(dns_name(role)), x509.UniformResourceIdentifier(uri(service, role))]
    certificate = (
        x509.CertificateBuilder(
            issuer.subject,
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, dns_name(role))]),
            key.public_key(),
            x509.random_serial_number(),
            max(now - CLOCK_SKEW, issuer.not_valid_before_utc),
            min(now + life, issuer.not_valid_after_utc),
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return _pair(certificate, key)


def read(certificate: str) -> Reading:
    """Return what a certificate (PEM) says; InvalidInputError if it is none."""
    return _reading(_certificate(certificate))


def read_all(certificates: str) -> tuple[Reading, ...]:
    """Return what the certificates of a bundle (PEM, one after another) say; InvalidInputError if one is none."""
    try:
        return tuple(map(_reading, x509.load_pem_x509_certificates(certificates.encode())))
    except ValueError as error:
        raise InvalidInputError("certificates", str(error)) from error


def read_pair(pair: KeyPair) -> Reading:
    """Return what a certificate says; InvalidInputError if the key is not its own, or either is none."""
    certificate = _certificate(pair.certificate)
    if _private_key(pair.private_key).public_key() != certificate.public_key():
        raise InvalidInputError("private key", "it is the key of another certificate")
    return _reading(certificate)


def issued_by(certificate: str, authority: str) -> bool:
    """Say whether an authority's key signed a certificate (both PEM)."""
    try:
        _certificate(certificate).verify_directly_issued_by(_certificate(authority))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _usage(*, authority: bool) -> x509.KeyUsage:
    """Return what a key is for: an authority's signs certificates and nothing else, any other's signs handshakes."""
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return KeyPair(certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode())


def _certificate(pem: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError as error:
        raise InvalidInputError("certificate", str(error)) from error


def _private_key(pem: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise InvalidInputError("private key", str(error)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidInputError("private key", "expected an elliptic curve key")
    return key


def _reading(certificate: x509.Certificate) -> Reading:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    return Reading(
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        issued=certificate.not_valid_before_utc + CLOCK_SKEW,
        expires=certificate.not_valid_after_utc,
        names=frozenset(
            (*names.get_values_for_type(x509.DNSName), *names.get_values_for_type(x509.UniformResourceIdentifier))
        ),
    )
