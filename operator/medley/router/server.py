"""The OpenAI API over the fleet: one handler per client connection, one carrier task per choice.

Made by `main` and by tests. The handler writes what its carriers deliver; a slow client slows the handler alone: what
was made waits in `_Outbox`, never more than the request's max_tokens.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from aiohttp import web

from medley.router.admission import Admission
from medley.router.answers import (
    DONE,
    Head,
    LogprobFormat,
    StreamFormat,
    Usage,
    WholeChoice,
    error_body,
    error_of,
    whole_answer,
)
from medley.router.carrier import Carriage, Carrier
from medley.router.engine_client import EngineClient
from medley.router.fleet import Fleet
from medley.router.metrics import RouterMetrics
from medley.router.openai_api import Endpoint, Question, RequestError, parse_question
from medley.router.session import Abandon, Broken, Choice, Deliver, Finish, conversation, resumes_exactly
from medley.router.text import Vocabulary
from medley.wire.generate import EngineFault, Rendered

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 * 2**20
RESUME_HEADER = "x-medley-resume"  # exact | approximate: what a cut would do to this request
_RENDER_PAUSE_SECONDS = 0.2
_SEEDS = 2**63

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Serving:
    """What the router serves; sources fill it in as they learn it."""

    model: str | None = None  # None: not known yet
    vocabulary: Vocabulary | None = None
    created: int = 0


@dataclass(slots=True)
class Options:
    """What a person may set; a source may change it while requests run."""

    request_timeout: timedelta = timedelta(seconds=600)
    queue_limit: int = 256


@dataclass(frozen=True, slots=True)
class Followed:
    """What a source keeps up to date."""

    fleet: Fleet
    serving: Serving
    options: Options


@dataclass(frozen=True, slots=True)
class _Ready:
    """A request that may begin."""

    question: Question
    head: Head
    vocabulary: Vocabulary
    choices: tuple[Choice, ...]
    usage: Usage
    arrived: float


class _Outbox:
    """What carriers delivered and the client has not taken yet."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._filled = asyncio.Event()
        self._closed = False

    def put(self, piece: bytes) -> None:
        """Add bytes; never blocks."""
        if piece:
            self._pieces.append(piece)
            self._filled.set()

    def close(self) -> None:
        """No more will come."""
        self._closed = True
        self._filled.set()

    async def take(self) -> bytes:
        """Wait for bytes and return all there are; empty: no more will come."""
        if not self._pieces and not self._closed:
            self._filled.clear()
            await self._filled.wait()
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken


class RouterServer:
    """Routes, and what they need."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        admission: Admission,
        carrier: Carrier,
        engines: EngineClient,
        metrics: RouterMetrics,
        serving: Serving,
        options: Options,
        chance: Callable[[int], int],  # a number below
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._fleet, self._admission, self._carrier, self._engines = fleet, admission, carrier, engines
        self._metrics, self._serving, self._options = metrics, serving, options
        self._chance, self._clock, self._wall_clock = chance, clock, wall_clock

    def application(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._translate])
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/metrics", self._scrape)
        return app

    @web.middleware
    async def _translate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turn every refusal into OpenAI's error body, and count answers."""
        try:
            response = await handler(request)
        except RequestError as error:
            headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
            response = web.json_response(error_of(error), status=error.status, headers=headers)
        except web.HTTPRequestEntityTooLarge:
            message = f"the body is larger than {MAX_BODY_BYTES} bytes"
            response = web.json_response(error_body(413, message), status=413)
        except web.HTTPNotFound:
            message = f"unknown path {request.path}; try /v1/chat/completions, /v1/completions or /v1/models"
            response = web.json_response(error_body(404, message), status=404)
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            response = web.json_response(error_body(405, f"{request.method} is not allowed; use {allowed}"), status=405)
        if request.path.startswith("/v1/"):
            self._metrics.answered(response.status)
        return response

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _ready(self, _: web.Request) -> web.Response:
        missing = self._missing()
        return web.Response(text=f"{missing or 'ready'}\n", status=503 if missing else 200)

    def _missing(self) -> str | None:
        if self._serving.vocabulary is None or self._serving.model is None:
            return "the tokenizer has not come from an engine yet"
        if not any(each.ready for each in self._fleet.view.replicas.values()):
            return "no replica is ready"
        return None

    async def _scrape(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.exposition(), content_type="text/plain", charset="utf-8")

    async def _models(self, _: web.Request) -> web.Response:
        model = self._serving.model
        known = [] if model is None else [model]
        created = self._serving.created
        data = [{"id": each, "object": "model", "created": created, "owned_by": "medley"} for each in known]
        return web.json_response({"object": "list", "data": data})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, Endpoint.CHAT)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, Endpoint.COMPLETION)

    async def _answer(self, request: web.Request, endpoint: Endpoint) -> web.StreamResponse:
        arrived = self._clock()
        question = parse_question(await request.read(), endpoint)
        ready = await self._prepare(question, arrived)
        return await (self._stream(request, ready) if question.stream else self._whole(ready))

    # From a question to choices

    async def _prepare(self, question: Question, arrived: float) -> _Ready:
        model = self._serving.model
        if question.model is not None and model is not None and question.model != model:
            message = f"model: this service serves {model!r}, not {question.model!r}"
            raise RequestError(404, message, "model", "model_not_found")
        retry_after = self._admission.refusal(question.prompts * question.n)
        if retry_after is not None:
            self._metrics.turned_away(question.prompts * question.n)
            message = f"the queue is full; try again in {retry_after} s"
            raise RequestError(429, message, code="queue_full", retry_after=retry_after)
        rendered = await self._render(question, arrived)
        vocabulary, model = self._serving.vocabulary, self._serving.model
        assert vocabulary is not None
        assert model is not None
        seed = self._chance(_SEEDS) if question.seed is None else question.seed
        chat = question.endpoint is Endpoint.CHAT
        name = f"{'chatcmpl' if chat else 'cmpl'}-{self._chance(2**64):016x}{self._chance(2**64):016x}"
        choices = tuple(
            Choice(f"{name}-{p * question.n + n}", prompt, _seed(seed, n), question.rules)
            for p, prompt in enumerate(rendered)
            for n in range(question.n)
        )
        return _Ready(
            question=question,
            head=Head(question.endpoint, name, int(self._wall_clock()), model),
            vocabulary=vocabulary,
            choices=choices,
            usage=Usage(sum(len(each.token_ids) for each in rendered)),
            arrived=arrived,
        )

    async def _render(self, question: Question, arrived: float) -> tuple[Rendered, ...]:
        """Have an engine make token ids, whichever can; the deadline bounds the tries."""
        tried: str | None = None
        while self._clock() - arrived < self._options.request_timeout.total_seconds():
            replica = self._renderer(tried)
            if replica is not None and self._missing() is None:
                body = {**question.body, "model": self._serving.model}
                answer = await self._engines.render(replica[1], question.endpoint, body)
                match answer:
                    case EngineFault(code=code, message=message, param=param):
                        raise RequestError(code, message, param)
                    case Broken():
                        tried = replica[0]
                    case _:
                        return answer
            await asyncio.sleep(_RENDER_PAUSE_SECONDS)
        self._metrics.turned_away(question.prompts * question.n)
        raise RequestError(503, f"no engine was ready before the deadline: {self._missing() or 'engines broke'}")

    def _renderer(self, tried: str | None) -> tuple[str, str] | None:
        """Return name and URL of the replica with the least to do, another one than was just tried if there is one."""
        candidates = sorted(self._fleet.candidates(), key=lambda each: (each.name == tried, each.running, each.name))
        if not candidates:
            return None
        name = candidates[0].name
        return name, self._fleet.view.replicas[name].url

    # From choices to an answer

    async def _stream(self, request: web.Request, ready: _Ready) -> web.StreamResponse:
        question = ready.question
        logprobs = self._logprobs(ready)
        form = StreamFormat(ready.head, logprobs, usage_field=question.include_usage)
        outbox = _Outbox()
        continuous = ready.usage if question.include_usage and question.continuous_usage else None

        def deliverer(index: int) -> Callable[[Deliver | Finish], None]:
            opening = form.opening(index)

            def deliver(part: Deliver | Finish) -> None:
                nonlocal opening
                ready.usage.completion_tokens += len(part.token_ids)
                outbox.put(opening + form.chunk(index, part, continuous))
                opening = b""

            return deliver

        carried = asyncio.create_task(
            self._carry(ready, [deliverer(n) for n in range(len(ready.choices))]), name=ready.head.id
        )
        carried.add_done_callback(lambda _: outbox.close())
        try:
            # Nothing is promised before the first token: a request that fails until then gets a status of its own.
            first = await outbox.take()
            if not first and (fault := carried.result()) is not None:
                raise RequestError(fault.code, fault.message, fault.param)
            response = web.StreamResponse(headers=self._headers(ready))
            response.content_type = "text/event-stream"
            await response.prepare(request)
            await response.write(first)
            while piece := await outbox.take():
                await response.write(piece)
            fault = carried.result()
        finally:
            carried.cancel()  # the client left, or it is done already
        await response.write(self._ending(form, ready, fault))
        await response.write_eof()
        return response

    def _ending(self, form: StreamFormat, ready: _Ready, fault: EngineFault | None) -> bytes:
        if fault is not None:
            return form.error(fault.code, fault.message) + DONE
        return (form.usage(ready.usage) if ready.question.include_usage else b"") + DONE

    async def _whole(self, ready: _Ready) -> web.Response:
        choices = [WholeChoice() for _ in ready.choices]

        def deliverer(choice: WholeChoice) -> Callable[[Deliver | Finish], None]:
            def deliver(part: Deliver | Finish) -> None:
                ready.usage.completion_tokens += len(part.token_ids)
                choice.add(part)

            return deliver

        fault = await self._carry(ready, [deliverer(each) for each in choices])
        if fault is not None:
            raise RequestError(fault.code, fault.message, fault.param)
        body = whole_answer(ready.head, choices, ready.usage, self._logprobs(ready))
        return web.Response(
            body=json.dumps(body).encode(), content_type="application/json", headers=self._headers(ready)
        )

    async def _carry(self, ready: _Ready, deliver: Sequence[Callable[[Deliver | Finish], None]]) -> EngineFault | None:
        """Carry all choices to their ends; return the first fault, which ends them all."""
        grid = None if self._fleet.view.table is None else self._fleet.view.table.grid
        deadline = ready.arrived + self._options.request_timeout.total_seconds()
        carriages = []
        for choice, each in zip(ready.choices, deliver, strict=True):
            limit = choice.rendered.max_tokens
            bucket = self._metrics.asked(grid, len(choice.rendered.token_ids), limit)
            carriages.append(Carriage(bucket, limit, ready.arrived, deadline, each))
        if len(carriages) == 1:
            end = await self._carrier.carry(conversation(ready.choices[0], ready.vocabulary), carriages[0])
            ends: list[Finish | Abandon] = [end]
        else:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._carrier.carry(conversation(choice, ready.vocabulary), carriage))
                    for choice, carriage in zip(ready.choices, carriages, strict=True)
                ]
            ends = [task.result() for task in tasks]
        for end, carriage in zip(ends, carriages, strict=True):
            if isinstance(end, Abandon):
                return end.fault
            if carriage.bucket is not None:
                self._metrics.finished(grid, carriage.bucket, carriage.delivered)
        return None

    def _headers(self, ready: _Ready) -> dict[str, str]:
        replicas = [each for each in self._fleet.view.replicas.values() if each.ready]
        outputs = bool(replicas) and all(each.resumes_output for each in replicas)
        exact = resumes_exactly(ready.choices[0].rendered.sampling, resumes_output=outputs)
        headers: dict[str, Any] = {RESUME_HEADER: "exact" if exact else "approximate", "Cache-Control": "no-cache"}
        if ready.question.ignored:
            headers["x-medley-ignored"] = ",".join(ready.question.ignored)
        return headers

    def _logprobs(self, ready: _Ready) -> LogprobFormat | None:
        top = ready.question.top_logprobs
        return None if top is None else LogprobFormat(ready.question.endpoint, ready.vocabulary, top)


def _seed(seed: int, n: int) -> int:
    """Return the seed of the n-th choice; within 64 bits."""
    return (seed + n + _SEEDS) % (2 * _SEEDS) - _SEEDS
