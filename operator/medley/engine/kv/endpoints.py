"""`/medley/v1/*` in vLLM's API server, behind the same key as the rest of its port. For routers and the supervisor.

vLLM finds `endpoints` by an entry point, see entry_point.py. What comes in is checked here; the engine core does the
rest between its steps (utilities.py).
"""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any, Final, TypeVar

from fastapi import FastAPI, Request, Response
from pydantic import ValidationError

from medley.core.service import MigrationMode
from medley.engine.kv.activation import EXPORT, RELEASE, RENEW, STANDING, STATE
from medley.wire.assignment import Message, faults_of
from medley.wire.ticket import (
    EXPORT_PATH,
    RELEASE_PATH,
    RENEW_PATH,
    STATE_PATH,
    ExportRequest,
    KvState,
    ReleaseRequest,
    RenewRequest,
)

_BODY_LIMIT: Final = 4 << 20  # bytes
_M = TypeVar("_M", bound=Message)


class _RefusedError(Exception):
    """A status and what to say."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class KvEndpoints:
    """vLLM's EndpointPlugin."""

    name = "medley_kv"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._engine: Any = None
        self._carries = False  # known to; that does not change while the engine lives

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes."""

        async def export(request: Request) -> Response:
            return await self._answer(EXPORT, ExportRequest, request)

        async def renew(request: Request) -> Response:
            return await self._answer(RENEW, RenewRequest, request)

        async def release(request: Request) -> Response:
            return await self._answer(RELEASE, ReleaseRequest, request)

        async def state() -> Response:
            return Response((await self._state()).model_dump_json(), media_type="application/json")

        app.post(EXPORT_PATH)(export)
        app.post(RENEW_PATH)(renew)
        app.post(RELEASE_PATH)(release)
        app.get(STATE_PATH)(state)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:  # noqa: ARG002 - vLLM's
        """Take the way to the engine core."""
        self._engine = engine_client

    async def _answer(self, utility: str, kind: type[Message], request: Request) -> Response:
        try:
            asked = await _parsed(kind, request)
            await self._check_that_it_carries()
            answer = await self._call(utility, asked.model_dump_json())
        except _RefusedError as refused:
            return Response(json.dumps({"error": str(refused)}), refused.status, media_type="application/json")
        return Response(answer, media_type="application/json")

    async def _check_that_it_carries(self) -> None:
        """Ask the engine core until it does: each question waits for the step under way, and streams for the answer."""
        if self._carries:
            return
        state = await self._state()
        if not state.capable:
            raise _RefusedError(409, f"KV is not carried here: {state.reason}")
        self._carries = True

    async def _state(self) -> KvState:
        if STANDING.mode is MigrationMode.RESUME or self._engine is None:
            return KvState(mode=MigrationMode.RESUME, capable=False, reason=STANDING.reason)
        state = KvState.model_validate_json(await self._call(STATE))
        return state.model_copy(update={"takes_outputs": state.takes_outputs and STANDING.takes_outputs})

    async def _call(self, utility: str, *arguments: str) -> str:
        return str(await self._engine.engine_core.call_utility_async(utility, *arguments))


def endpoints() -> KvEndpoints:
    """Return the plugin; vLLM calls it once."""
    return KvEndpoints()


async def _parsed(kind: type[_M], request: Request) -> _M:
    body = bytearray()
    async for block in request.stream():
        body += block[: _BODY_LIMIT + 1 - len(body)]  # read to its end all the same, else the answer may be lost
    if len(body) > _BODY_LIMIT:
        raise _RefusedError(413, f"body: at most {_BODY_LIMIT} bytes")
    try:
        return kind.model_validate_json(bytes(body or b"{}"))
    except ValidationError as error:
        raise _RefusedError(422, faults_of(error, "body", most=5)) from error
