"""The OpenAI API over the fleet: routes, refusals, and from a client's question to choices that may begin.

Made by `main` and by tests. What becomes of the choices, and how clients get it, is `delivery`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from medley.router.admission import Admission
from medley.router.answers import Head, Usage, error_body, error_of
from medley.router.carrier import Carrier
from medley.router.delivery import Delivery, Options, Ready
from medley.router.engine_client import EngineClient
from medley.router.fleet import Fleet
from medley.router.metrics import RouterMetrics
from medley.router.openai_api import Endpoint, Question, RequestError, parse_question
from medley.router.rendering import NobodyReadyError, Rendering
from medley.router.session import Choice
from medley.router.text import Vocabulary

MAX_BODY_BYTES = 16 * 2**20
_SEEDS = 2**63

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Serving:
    """What the router serves; sources fill it in as they learn it."""

    model: str | None = None  # None: not known yet
    vocabulary: Vocabulary | None = None
    created: int = 0


@dataclass(frozen=True, slots=True)
class Followed:
    """What a source keeps up to date."""

    fleet: Fleet
    serving: Serving
    options: Options


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
        self._fleet, self._admission = fleet, admission
        self._metrics, self._serving, self._options = metrics, serving, options
        self._chance, self._clock, self._wall_clock = chance, clock, wall_clock
        self.leaving = False  # set by who drains: connections end with the answers that they carry
        self._open_requests, self._one_ended = 0, asyncio.Event()
        self._rendering = Rendering(fleet, engines, self._missing, clock=clock)
        self._delivery = Delivery(
            fleet, carrier, metrics, options, derender=self._rendering.derender, leaving=lambda: self.leaving
        )

    def application(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._translate])
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/metrics", self._scrape)
        app.on_response_prepare.append(self._say_goodbye)
        return app

    async def quiet(self) -> None:
        """Wait until no request is open; one is from its head on, whether its body is there or not."""
        while self._open_requests:
            self._one_ended.clear()
            await self._one_ended.wait()

    async def _say_goodbye(self, _: web.Request, response: web.StreamResponse) -> None:
        if self.leaving:
            response.force_close()
            response.headers["Connection"] = "close"  # the headers were made before this is asked

    @web.middleware
    async def _translate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turn every refusal into OpenAI's error body, and count answers."""
        self._open_requests += 1
        try:
            response = await self._refusing(request, handler)
        finally:
            self._open_requests -= 1
            self._one_ended.set()
        if request.path.startswith("/v1/"):
            self._metrics.answered(response.status)
        return response

    async def _refusing(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except RequestError as error:
            headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
            return web.json_response(error_of(error), status=error.status, headers=headers)
        except web.HTTPRequestEntityTooLarge:
            message = f"the body is larger than {MAX_BODY_BYTES} bytes"
            return web.json_response(error_body(413, message), status=413)
        except web.HTTPNotFound:
            message = f"unknown path {request.path}; try /v1/chat/completions, /v1/completions or /v1/models"
            return web.json_response(error_body(404, message), status=404)
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            return web.json_response(error_body(405, f"{request.method} is not allowed; use {allowed}"), status=405)

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
        known = [] if model is None else [model, *sorted(self._fleet.knowledge.all_adapters())]
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
        return await (self._delivery.stream(request, ready) if question.stream else self._delivery.whole(ready))

    # From a question to choices

    async def _prepare(self, question: Question, arrived: float) -> Ready:
        adapter = self._adapter(question)
        retry_after = self._admission.refusal(question.prompts * question.n)
        if retry_after is not None:
            self._metrics.turned_away(question.prompts * question.n)
            message = f"the queue is full; try again in {retry_after} s"
            raise RequestError(429, message, code="queue_full", retry_after=retry_after)
        deadline = arrived + self._options.request_timeout.total_seconds()
        try:
            rendered = await self._rendering.render(question, lambda: self._serving.model, adapter, deadline)
        except NobodyReadyError:
            self._metrics.turned_away(question.prompts * question.n)
            raise
        vocabulary, model = self._serving.vocabulary, self._serving.model
        assert vocabulary is not None
        assert model is not None
        number, seed = divmod(self._chance(2**128 * _SEEDS), _SEEDS)  # one draw: each is a system call
        if question.seed is not None:
            seed = question.seed
        chat = question.endpoint is Endpoint.CHAT
        name = f"{'chatcmpl' if chat else 'cmpl'}-{number:032x}"
        choices = tuple(
            Choice(f"{name}-{p * question.n + n}", prompt, _seed(seed, n), question.rules, adapter)
            for p, prompt in enumerate(rendered)
            for n in range(question.n)
        )
        return Ready(
            question=question,
            head=Head(question.endpoint, name, int(self._wall_clock()), adapter or model),
            vocabulary=vocabulary,
            choices=choices,
            usage=Usage(sum(len(each.token_ids) for each in rendered)),
            arrived=arrived,
        )

    def _adapter(self, question: Question) -> str | None:
        """Return the LoRA adapter that is asked for, None for the model itself; refuse other names."""
        model = self._serving.model
        if question.model is None or model is None or question.model == model:
            return None
        adapters = self._fleet.knowledge.all_adapters()
        if question.model in adapters:
            return question.model
        served = ", ".join(repr(each) for each in (model, *sorted(adapters)))
        message = f"model: this service serves {served}, not {question.model!r}"
        raise RequestError(404, message, "model", "model_not_found")


def _seed(seed: int, n: int) -> int:
    """Return the seed of the n-th choice; within 64 bits."""
    return (seed + n + _SEEDS) % (2 * _SEEDS) - _SEEDS
