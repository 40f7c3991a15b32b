"""What the environment of the operator's pod says; the chart sets it. Read once, by `app.run_operator`."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from medley.core.errors import InvalidInputError
from medley.core.names import PORT_OPERATOR
from medley.kube.manifests import Images

DEFAULT_ENGINE_IMAGE = "docker.io/vllm/vllm-openai:v0.32.0"


@dataclass(frozen=True, slots=True)
class Settings:
    """The operator's environment, checked."""

    images: Images
    namespace: str  # of the operator: its Lease is there
    identity: str  # of this process among the candidates for the Lease
    lease: str = "medley-operator"
    host: str = "0.0.0.0"  # noqa: S104  # in a pod's own network namespace
    port: int = PORT_OPERATOR
    log_level: str = "INFO"
    workers: int = 4

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """Return the settings; InvalidInputError names the variable that a person must set."""
        return cls(
            images=Images(
                engine=environment.get("MEDLEY_ENGINE_IMAGE", DEFAULT_ENGINE_IMAGE),
                engine_init=_required(environment, "MEDLEY_ENGINE_INIT_IMAGE", "the image with medley's supervisor"),
                router=_required(environment, "MEDLEY_ROUTER_IMAGE", "the image of the router"),
            ),
            namespace=_required(environment, "MEDLEY_NAMESPACE", "the operator's own namespace"),
            identity=environment.get("MEDLEY_IDENTITY") or socket.gethostname(),
            lease=environment.get("MEDLEY_LEASE", "medley-operator"),
            host=environment.get("MEDLEY_BIND_HOST", "0.0.0.0"),  # noqa: S104
            port=_number(environment, "MEDLEY_PORT", PORT_OPERATOR),
            log_level=_level(environment),
            workers=_number(environment, "MEDLEY_WORKERS", 4),
        )


def _required(environment: Mapping[str, str], name: str, what: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise InvalidInputError(name, f"not set; it names {what}")
    return value


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not (text.isascii() and text.isdecimal()):
        raise InvalidInputError(name, f"expected a whole number, got {text!r}")
    return int(text)


def _level(environment: Mapping[str, str]) -> str:
    level = environment.get("MEDLEY_LOG_LEVEL", "INFO").upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise InvalidInputError("MEDLEY_LOG_LEVEL", f"expected DEBUG, INFO, WARNING or ERROR, got {level}")
    return level
