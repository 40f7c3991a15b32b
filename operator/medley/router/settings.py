"""The router's arguments and environment, checked. Called by `app.run_router`.

In a pod the operator sets the environment. Every argument has the same meaning wherever it comes from; an argument goes
before the environment.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from medley.core import names, units
from medley.core.errors import InvalidInputError
from medley.core.identity import TLS_FOLDER_VARIABLE
from medley.router.delivery import Options
from medley.router.fleet import Limits

NAMESPACE = "MEDLEY_NAMESPACE"
SERVICE = "MEDLEY_SERVICE"
KEY_FILE = "MEDLEY_KEY_FILE"
LINGER = "MEDLEY_LINGER"  # seconds
GRACE = "MEDLEY_GRACE"  # seconds; with LINGER it is terminationGracePeriodSeconds
EVERYWHERE = "0.0.0.0"  # noqa: S104  # a pod's own network namespace
# Of the grace, so that what runs is ended by the router and not by SIGKILL.
_GRACE_RESERVE = timedelta(seconds=3)
_DEFAULT_GRACE_SECONDS = "30"
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Where the router finds its service, and how it serves."""

    namespace: str | None = None
    service: str | None = None
    engines: tuple[str, ...] = ()  # URLs; instead of a service
    tokenizer: Path | None = None  # tokenizer.json; None: from an engine's supervisor
    engine_key_file: Path | None = None
    tls_folder: Path | None = None  # None: engines speak plain HTTP
    max_running: int = 64  # per engine named by URL
    host: str = EVERYWHERE
    port: int = names.PORT_ROUTER
    limits: Limits = field(default_factory=Limits)
    options: Options = field(default_factory=Options)  # a service's own spec goes before it
    linger: timedelta = timedelta(0)  # from SIGTERM on; where proxies have to learn that this router leaves
    grace: timedelta = timedelta(seconds=30)  # after that

    def __post_init__(self) -> None:
        if bool(self.engines) == bool(self.service and self.namespace):
            raise InvalidInputError(
                "--service", f"name one service ({NAMESPACE} and {SERVICE}), or engines by --engine URL; not both"
            )


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> RouterSettings:
    """Return the settings; `InvalidInputError` names the argument or variable at fault."""
    given = _parser(environment).parse_args(arguments)
    return RouterSettings(
        namespace=given.namespace,
        service=given.service,
        engines=tuple(_url(url) for url in given.engine),
        tokenizer=given.tokenizer,
        engine_key_file=Path(given.engine_key_file) if given.engine_key_file else None,
        tls_folder=Path(given.tls_folder) if given.tls_folder else None,
        max_running=_positive("--max-running", given.max_running),
        host=given.host,
        port=_port(given.port),
        limits=Limits(
            silence=units.duration(given.silence, field="--silence"),
            first_token=units.duration(given.first_token, field="--first-token"),
        ),
        options=Options(
            request_timeout=units.duration(given.request_timeout, field="--request-timeout"),
            queue_limit=_positive("--queue-limit", given.queue_limit, least=0),
        ),
        linger=timedelta(seconds=_positive(LINGER, given.linger, least=0)),
        grace=max(timedelta(seconds=_positive(GRACE, given.grace)) - _GRACE_RESERVE, timedelta(seconds=1)),
    )


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="medley router", description="The OpenAI API in front of a service's engines."
    )
    add = parser.add_argument
    add("--namespace", default=environment.get(NAMESPACE), help=f"of the LLMService ({NAMESPACE})")
    add("--service", default=environment.get(SERVICE), help=f"name of the LLMService to follow ({SERVICE})")
    add("--engine", action="append", default=[], metavar="URL", help="an engine; instead of a service; may be repeated")
    add("--tokenizer", type=Path, help="the model's tokenizer.json; by default an engine's supervisor gives it")
    add("--engine-key-file", default=environment.get(KEY_FILE), help=f"file with the engines' API key ({KEY_FILE})")
    add(
        "--tls-folder",
        default=environment.get(TLS_FOLDER_VARIABLE),
        help=f"folder with ca.crt, tls.crt, tls.key and service: engines speak mutual TLS ({TLS_FOLDER_VARIABLE})",
    )
    add("--max-running", default="64", help="requests at once per --engine")
    add("--host", default=EVERYWHERE)
    add("--port", default=str(names.PORT_ROUTER), help="0: any free port")
    add("--silence", default="5s", help="longest silence between tokens; a service's own is 50 times its tpot")
    add("--first-token", default="60s", help="longest wait of a call for its first token")
    add("--request-timeout", default="10m", help="longest that a request may take; a service's spec goes before it")
    add("--queue-limit", default="256", help="requests that may wait; a service's spec goes before it")
    add(
        "--linger",
        default=environment.get(LINGER, "0"),
        help=f"seconds from SIGTERM during which new connections are served ({LINGER})",
    )
    add(
        "--grace",
        default=environment.get(GRACE, _DEFAULT_GRACE_SECONDS),
        help=f"seconds from then to the end ({GRACE})",
    )
    return parser


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InvalidInputError("--engine", f"expected a URL such as http://10.0.0.5:8000, got {text!r}")
    if "@" in parts.netloc:
        raise InvalidInputError("--engine", "a URL with a user or password; give the key by --engine-key-file")
    return text.rstrip("/")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > _MAX_PORT:
        raise InvalidInputError("--port", f"expected a port from 0 to {_MAX_PORT}, got {text!r}")
    return int(text)


def _positive(name: str, text: str, *, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise InvalidInputError(name, f"expected a whole number from {least} up, got {text!r}")
    return int(text)
