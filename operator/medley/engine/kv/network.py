"""Where this process listens for other engines, and with which certificates. Read from the environment, once."""

from __future__ import annotations

import logging
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Final, Self

from medley.core.errors import InvalidInputError
from medley.core.identity import TLS_FOLDER_VARIABLE
from medley.engine.kv.connections import STALL_S
from medley.tls.keyring import Keyring

HOST_VARIABLE: Final = "MEDLEY_KV_HOST"  # the address by which other engines reach this one
STALL_VARIABLE: Final = "MEDLEY_KV_STALL"  # seconds without a byte after which a connection is given up
_IN_A_POD: Final = "KUBERNETES_SERVICE_HOST"
_LOG: Final = logging.getLogger("vllm.medley.kv")
_LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Network:
    """How this process is reached."""

    host: str  # told to others
    listen: str
    keyring: Keyring | None
    obstacle: str = ""  # why it must not be reached
    stall_s: float = STALL_S

    @property
    def client(self) -> Callable[[], ssl.SSLContext] | None:
        """To connect with: asked for each connection."""
        keyring = self.keyring
        return None if keyring is None else lambda: keyring.client

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Without certificates this machine's loopback; with them the pod's address."""
        stall_s = _stall(environment)
        folder = environment.get(TLS_FOLDER_VARIABLE)
        if not folder:
            if environment.get(_IN_A_POD):
                return cls(
                    _LOOPBACK, _LOOPBACK, None, f"{TLS_FOLDER_VARIABLE} is not set: KV goes between pods by TLS only"
                )
            return cls(_LOOPBACK, _LOOPBACK, None, stall_s=stall_s)
        try:
            keyring = Keyring(Path(folder), lambda words: _LOG.warning("medley: %s", words))
        except InvalidInputError as error:
            return cls(_LOOPBACK, _LOOPBACK, None, str(error))
        host = environment.get(HOST_VARIABLE) or environment.get("VLLM_HOST_IP") or _own_address()
        return cls(host, host, keyring, stall_s=stall_s)


def _stall(environment: Mapping[str, str]) -> float:
    text = environment.get(STALL_VARIABLE, str(STALL_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < inf:
        raise InvalidInputError(STALL_VARIABLE, f"expected seconds, more than 0, got {text!r}")
    return seconds


def _own_address() -> str:
    """Return the address that packets to elsewhere would have; none are sent."""
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))
                return str(probe.getsockname()[0])
        except OSError:
            continue  # no route of this kind
    return _LOOPBACK
