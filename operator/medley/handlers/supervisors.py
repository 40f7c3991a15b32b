"""Speaks the control protocol with the supervisors in engine pods: state, assignment, drain.

Called by `observing` and `acting`. A supervisor that does not answer is None here, never a guess: what that means is
decided by the pod's readiness (`kube/replicas.py`).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
from pydantic import ValidationError

from medley.core import names
from medley.core.errors import EngineError
from medley.core.identity import Role, dns_name
from medley.wire.assignment import DrainRequest, EngineReport

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 2.0
OK = 200


@dataclass(frozen=True, slots=True)
class Credentials:
    """By what the operator is known to the supervisors of one service, and knows them."""

    key: str
    context: ssl.SSLContext


class Supervisors:
    """A client of all supervisors; `port` differs only in tests, where many share one address."""

    def __init__(self, session: aiohttp.ClientSession, port: int = names.PORT_CONTROL) -> None:
        self._session = session
        self._port = port

    async def reports(
        self, addresses: Mapping[str, str], credentials: Credentials | None
    ) -> dict[str, EngineReport | None]:
        """Return each replica's report, None for those that do not answer; none without credentials."""
        if credentials is None:
            return {}
        answers = await asyncio.gather(*(self._report(address, credentials) for address in addresses.values()))
        return dict(zip(addresses, answers, strict=True))

    async def assign(self, address: str, credentials: Credentials, assignment: str) -> EngineReport:
        """Send an assignment (JSON of `wire.assignment.Assignment`); `EngineError` says why it was not taken."""
        return await self._asked("PUT", address, "/v1/assignment", credentials, assignment)

    async def drain(self, address: str, credentials: Credentials, request: DrainRequest) -> EngineReport:
        """Have the engine take nothing new."""
        return await self._asked("POST", address, "/v1/drain", credentials, request.model_dump_json())

    async def _report(self, address: str, credentials: Credentials) -> EngineReport | None:
        try:
            return await self._asked("GET", address, "/v1/state", credentials, None)
        except EngineError as error:
            logger.info("%s", error)
            return None

    async def _asked(
        self, method: str, address: str, path: str, credentials: Credentials, body: str | None
    ) -> EngineReport:
        url = f"https://{names.url_host(address)}:{self._port}{path}"
        headers = {"Authorization": f"Bearer {credentials.key}", "Content-Type": "application/json"}
        try:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
            async with self._session.request(
                method,
                url,
                data=body,
                headers=headers,
                timeout=timeout,
                ssl=credentials.context,
                server_hostname=dns_name(Role.ENGINE),  # addresses come and go with pods
            ) as response:
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError, OSError, UnicodeDecodeError) as error:
            raise EngineError(f"{method} {url}: {type(error).__name__}: {error}") from error
        if response.status != OK:
            raise EngineError(f"{method} {url}: {response.status}: {text[:500]}")
        try:
            return EngineReport.model_validate_json(text)
        except ValidationError as error:
            raise EngineError(f"{method} {url}: an answer of another version of medley: {error}") from error
