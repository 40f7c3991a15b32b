"""Port 8001: assignment, drain, state. Called by the operator, and by routers for the state.

With TLS, a certificate of the service is demanded before a word is said: the operator's opens all, a router's the
state. Everything that comes in is somebody else's text: checked into wire messages here, refused with the field's name.
"""

from __future__ import annotations

import hmac
from typing import Final, TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from pydantic import ValidationError

from medley.core.identity import Role
from medley.engine.supervisor import AssignmentConflictError, Supervisor, UnusableAssignmentError
from medley.tls.keyring import Keyring
from medley.wire.assignment import Assignment, DrainRequest, EngineReport, Message, faults_of

_BODY_LIMIT: Final = 1 << 20  # bytes
_M = TypeVar("_M", bound=Message)


def control_app(supervisor: Supervisor, key: str, keyring: Keyring | None = None) -> web.Application:
    """Return the application of the control port. `keyring`: whose server context it listens with; None: plain HTTP."""

    async def put_assignment(request: web.Request) -> web.Response:
        return _answer(supervisor.assign(_parsed(Assignment, await request.read())))

    async def post_drain(request: web.Request) -> web.Response:
        return _answer(supervisor.drain(_parsed(DrainRequest, await request.read() or b"{}")))

    async def get_state(_: web.Request) -> web.Response:
        return _answer(supervisor.report())

    guards = [_key_guard(key)] if keyring is None else [_role_guard(keyring), _key_guard(key)]
    app = web.Application(middlewares=[_refusals, *guards], client_max_size=_BODY_LIMIT)
    app.router.add_put("/v1/assignment", put_assignment)
    app.router.add_post("/v1/drain", post_drain)
    app.router.add_get("/v1/state", get_state)
    return app


def _role_guard(keyring: Keyring) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        role = keyring.role(None if request.transport is None else request.transport.get_extra_info("peercert"))
        if role is Role.OPERATOR or (role is Role.ROUTER and request.method == "GET"):
            return await handler(request)
        return _refusal(403, "certificate: expected the operator's, or a router's to read, of this service")

    return guard


def _key_guard(key: str) -> Middleware:
    wanted = f"Bearer {key}".encode()

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        sent = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(sent, wanted):  # constant time for equal lengths; the length is no secret
            return _refusal(401, "Authorization: expected Bearer and the service's engine key")
        return await handler(request)

    return guard


@web.middleware
async def _refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give every refusal the same body."""
    try:
        return await handler(request)
    except AssignmentConflictError as error:
        return _refusal(409, str(error))
    except UnusableAssignmentError as error:
        return _refusal(422, str(error))
    except ValidationError as error:
        return _refusal(422, faults_of(error, "body"))
    except web.HTTPException as error:
        return _refusal(error.status, error.text or error.reason)


def _parsed(kind: type[_M], body: bytes) -> _M:
    return kind.model_validate_json(body)


def _answer(report: EngineReport) -> web.Response:
    return web.Response(text=report.model_dump_json(), content_type="application/json")


def _refusal(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)
