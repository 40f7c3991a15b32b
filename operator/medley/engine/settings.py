"""What the pod's environment says: ports, key, patience. Called by __main__.py, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Final, Self

from medley.core.errors import InvalidInputError
from medley.core.identity import TLS_FOLDER_VARIABLE
from medley.core.names import PORT_CONTROL, PORT_ENGINE, PORT_ENGINE_STATUS
from medley.engine.policy import Limits

EVERYWHERE: Final = "0.0.0.0"  # noqa: S104 - in a pod's own network namespace
KEY_FILE: Final = "MEDLEY_KEY_FILE"
_MAX_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class Settings:
    """The supervisor's environment, checked."""

    key: str
    limits: Limits = field(default_factory=Limits)
    bind_host: str = EVERYWHERE
    engine_port: int = PORT_ENGINE
    control_port: int = PORT_CONTROL
    status_port: int = PORT_ENGINE_STATUS
    tls_folder: Path | None = None  # None: plain HTTP, for one machine

    @property
    def engine_host(self) -> str:
        """Where this process reaches vLLM."""
        return {EVERYWHERE: "127.0.0.1", "::": "::1"}.get(self.bind_host, self.bind_host)

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """Return the settings; InvalidInputError names the variable that a person must change."""
        return cls(
            key=_key(environment),
            limits=_limits(environment),
            bind_host=environment.get("MEDLEY_BIND_HOST", EVERYWHERE),
            engine_port=_port(environment, "MEDLEY_ENGINE_PORT", PORT_ENGINE),
            control_port=_port(environment, "MEDLEY_CONTROL_PORT", PORT_CONTROL),
            status_port=_port(environment, "MEDLEY_STATUS_PORT", PORT_ENGINE_STATUS),
            tls_folder=Path(folder) if (folder := environment.get(TLS_FOLDER_VARIABLE)) else None,
        )


def _key(environment: Mapping[str, str]) -> str:
    name = environment.get(KEY_FILE)
    if not name:
        raise InvalidInputError(KEY_FILE, "not set; name the file that holds the service's engine key")
    try:
        key = Path(name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(KEY_FILE, f"reading {name}: {error}; mount the Secret with the engine key") from error
    if not (key and key.isascii() and key.isprintable() and " " not in key):
        raise InvalidInputError(KEY_FILE, f"{name} holds no key; expected printable ASCII without spaces")
    return key


def _limits(environment: Mapping[str, str]) -> Limits:
    usual = Limits()
    return replace(
        usual,
        grace_s=_seconds(environment, "MEDLEY_GRACE", usual.grace_s),
        stall_s=_seconds(environment, "MEDLEY_STALL_LIMIT", usual.stall_s),
        restart_s=_seconds(environment, "MEDLEY_RESTART_LIMIT", usual.restart_s),
        start_s=_seconds(environment, "MEDLEY_START_LIMIT", usual.start_s),
        stop_s=_seconds(environment, "MEDLEY_STOP_LIMIT", usual.stop_s),
        probe_every_s=_seconds(environment, "MEDLEY_PROBE_INTERVAL", usual.probe_every_s),
    )


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, str(default))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not (isfinite(seconds) and seconds >= 0):
        raise InvalidInputError(name, f"expected seconds, 0 or more, got {text!r}")
    return seconds


def _port(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= _MAX_PORT):
        raise InvalidInputError(name, f"expected a port, 1 to {_MAX_PORT}, got {text!r}")
    return int(text)
