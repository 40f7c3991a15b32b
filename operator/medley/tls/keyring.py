"""The certificates of this process, read from the folder of a mounted Secret, and again whenever they change.

Made by `engine`, `router` and the KV transport inside vLLM. The operator renews certificates in place: the kubelet
swaps the folder, and from then on new handshakes use what is new. Connections that are open stay open.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from medley.core.errors import InvalidInputError
from medley.core.identity import (
    AUTHORITIES_FILE,
    CERTIFICATE_FILE,
    PRIVATE_KEY_FILE,
    SERVICE_FILE,
    TLS_FOLDER_VARIABLE,
    Role,
    role_of,
)

_FILES: Final = (AUTHORITIES_FILE, CERTIFICATE_FILE, PRIVATE_KEY_FILE, SERVICE_FILE)
_SWAPPED: Final = "..data"  # the kubelet's link to the folder that holds the current files

_Version = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class _Loaded:
    version: _Version
    service: str
    server: ssl.SSLContext
    client: ssl.SSLContext


@lru_cache(maxsize=1024)
def client_context(authorities: str, certificate: str, private_key: str) -> ssl.SSLContext:
    """Return a context to connect with, of PEM texts; the same for the same texts, so that connections are kept.

    Raises InvalidInputError if they are no certificates, or do not fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Python reads a private key from a file alone; this one is in memory.
    file = os.memfd_create("medley-tls")
    try:
        with open(file, "wb", closefd=False) as out:  # it has no path
            out.write(f"{certificate}\n{private_key}".encode())
        context.load_verify_locations(cadata=authorities)
        context.load_cert_chain(f"/proc/self/fd/{file}")
    except (OSError, ValueError) as error:
        raise InvalidInputError("certificate", str(error)) from error
    finally:
        os.close(file)
    return context


class Keyring:
    """Contexts that follow a folder. Safe to use from several threads."""

    def __init__(self, folder: Path, complain: Callable[[str], None]) -> None:
        """Read the folder; InvalidInputError where there is nothing to begin with.

        `complain` is told, once per change, of files that cannot be used; the last good ones stay in use.
        """
        self._folder = folder
        self._complain = complain
        self._lock = threading.Lock()
        self._refused: _Version | None = None
        try:
            self._loaded = _load(folder)
        except (OSError, ValueError) as error:
            expected = f"expected {', '.join(_FILES)} of one role of the service"
            raise InvalidInputError(TLS_FOLDER_VARIABLE, f"reading {folder}: {error}; {expected}") from error
        self._listening = _server(_current(folder))
        self._listening.sni_callback = self._renew

    @property
    def server(self) -> ssl.SSLContext:
        """To listen with. It demands a certificate of the service, and each handshake uses the newest files.

        Who passed is `role`'s to say.
        """
        return self._listening

    @property
    def client(self) -> ssl.SSLContext:
        """To connect with, once: ask again for the next connection. `server_hostname` is `identity.dns_name`."""
        return self._fresh().client

    def role(self, certificate: Mapping[str, Any] | None) -> Role | None:
        """Return the role that the other side of a connection proved (`getpeercert()`), or None: a stranger."""
        return role_of(certificate, self._fresh().service)

    def _renew(self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        # OpenSSL asks during each handshake, whether or not the client named a host. A context of its own for each
        # version, because authorities can only be added to one.
        connection.context = self._fresh().server

    def _fresh(self) -> _Loaded:
        with self._lock:
            version: _Version | None = None
            try:
                version = _version(_current(self._folder))
                if version not in {self._loaded.version, self._refused}:
                    self._loaded = _load(self._folder)
            except (OSError, ValueError) as error:
                self._complain(f"reading {self._folder}: {error}; the certificates read before stay in use")
                self._refused = version
            return self._loaded


def _load(folder: Path) -> _Loaded:
    """Read all files of one version; OSError (ssl.SSLError is one) or ValueError if they are not whole."""
    current = _current(folder)
    version = _version(current)
    service = (current / SERVICE_FILE).read_text(encoding="utf-8").strip()
    return _Loaded(version, service, _server(current), _with_files(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), current))


def _current(folder: Path) -> Path:
    # Resolved once, so that all files are of the same version while the kubelet swaps them.
    return (folder / _SWAPPED).resolve() if (folder / _SWAPPED).exists() else folder


def _version(folder: Path) -> _Version:
    found = [(folder / name).stat() for name in _FILES]
    return tuple((each.st_ino, each.st_size, each.st_mtime_ns) for each in found)


def _server(folder: Path) -> ssl.SSLContext:
    context = _with_files(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), folder)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # a resumed session would not be verified against the authorities of today
    return context


def _with_files(context: ssl.SSLContext, folder: Path) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(folder / AUTHORITIES_FILE)
    context.load_cert_chain(folder / CERTIFICATE_FILE, folder / PRIVATE_KEY_FILE)
    return context
