"""Gives clients what their choices made: streamed or whole, as text or as an engine's parsers read it.

Called by `server` for each request that may begin. Carriers deliver into it; a slow client slows nobody: what was made
waits in its connection, never more than the request's max_tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple

from aiohttp import web

from medley.core.workload import MELANGE_GRID
from medley.router.answers import DONE, Head, LogprobFormat, StreamFormat, Usage, WholeChoice, whole_answer
from medley.router.attempt import History
from medley.router.carrier import Carriage, Carrier
from medley.router.event_stream import EventStream
from medley.router.fleet import Fleet
from medley.router.metrics import RouterMetrics
from medley.router.openai_api import Endpoint, Question, RequestError
from medley.router.parsing import Asked, Derender, ParsedStream, Read, needs_reading, parsed_message
from medley.router.session import Abandon, Choice, Deliver, Finish, conversation, resumes_exactly
from medley.router.text import TextStream, Vocabulary
from medley.wire.generate import EngineFault
from medley.wire.json_text import write_json

RESUME_HEADER = "x-medley-resume"  # exact | approximate: what a cut would do to this request


@dataclass(slots=True)
class Options:
    """What a person may set; a source may change it while requests run."""

    request_timeout: timedelta = timedelta(seconds=600)
    queue_limit: int = 256


class Ready(NamedTuple):
    """A request that may begin."""

    question: Question
    head: Head
    vocabulary: Vocabulary
    choices: tuple[Choice, ...]
    usage: Usage
    arrived: float

    @property
    def parsed(self) -> bool:
        """Whether an engine's parsers have to read what is made: markup of tool calls or reasoning would show."""
        question = self.question
        return question.endpoint is Endpoint.CHAT and (question.calls_tools or needs_reading(self.choices[0].rendered))


Deliverer = Callable[[Deliver | Finish], None]  # does not block
_Form = Callable[[], StreamFormat]  # made when it is first asked for


class Delivery:
    """Carries the choices of requests, and answers with what they make."""

    def __init__(
        self,
        fleet: Fleet,
        carrier: Carrier,
        metrics: RouterMetrics,
        options: Options,
        *,
        derender: Callable[[float, dict[str, Any]], Awaitable[dict[str, Any] | EngineFault]],
        leaving: Callable[[], bool],  # connections end with the answers that they carry
    ) -> None:
        self._fleet, self._carrier, self._metrics, self._options = fleet, carrier, metrics, options
        self._derender, self._leaving = derender, leaving

    async def stream(self, request: web.Request, ready: Ready) -> web.StreamResponse:
        """Answer with server-sent events."""
        form = cache(lambda: StreamFormat(ready.head, self._logprobs(ready), usage_field=ready.question.include_usage))
        answer = EventStream(request, lambda: self._headers(ready), self._leaving)
        loop = asyncio.get_running_loop()
        loop.call_soon(form)  # once the call went out
        loop.call_soon(answer.word_head)
        parsers = self._parsers(ready, form, answer)
        deliver = [
            self._deliverer(ready, form, answer, index, parsers[index] if parsers else None)
            for index in range(len(ready.choices))
        ]
        fault = await self._carry_and_read(ready, deliver, parsers)
        # Nothing is promised before the first token: a request that fails until then gets a status of its own.
        if fault is not None and not answer.begun:
            raise RequestError(fault.code, fault.message, fault.param)
        await answer.end(self._ending(form(), ready, fault))
        return answer

    def _deliverer(
        self, ready: Ready, form: _Form, answer: EventStream, index: int, parser: ParsedStream | None
    ) -> Deliverer:
        continuous, alone = _continuous(ready), len(ready.choices) == 1
        begun = False

        def deliver(part: Deliver | Finish) -> None:
            nonlocal begun
            opening, begun = b"" if begun else form().opening(index), True
            ready.usage.completion_tokens += len(part.token_ids)
            if parser is None:
                answer.send(opening + form().chunk(index, part, continuous), last=alone and isinstance(part, Finish))
            else:
                answer.send(opening)
                parser.feed(part)

        return deliver

    def _parsers(self, ready: Ready, form: _Form, answer: EventStream) -> list[ParsedStream]:
        """Return what reads the choices before clients do; none if text is all there is to it."""
        if not ready.parsed:
            return []
        continuous = _continuous(ready)

        def emitter(index: int) -> Callable[[Read], None]:
            return lambda read: answer.send(form().read_chunk(index, read, continuous))

        return [
            ParsedStream(self._asked(ready, choice), self._derenderer(ready), emitter(index))
            for index, choice in enumerate(ready.choices)
        ]

    async def _carry_and_read(
        self, ready: Ready, deliver: Sequence[Deliverer], parsers: Sequence[ParsedStream]
    ) -> EngineFault | None:
        if not parsers:
            return await self._carry(ready, deliver)
        async with asyncio.TaskGroup() as group:
            reading = [group.create_task(each.run()) for each in parsers]
            fault = await self._carry(ready, deliver)
            for each in parsers:
                each.close()
        return fault or next((each.result() for each in reading if each.result() is not None), None)

    def _ending(self, form: StreamFormat, ready: Ready, fault: EngineFault | None) -> bytes:
        if fault is not None:
            return form.error(fault.code, fault.message) + DONE
        return (form.usage(ready.usage) if ready.question.include_usage else b"") + DONE

    async def whole(self, ready: Ready) -> web.Response:
        """Answer in one piece."""
        choices = [WholeChoice() for _ in ready.choices]

        def deliverer(choice: WholeChoice) -> Deliverer:
            def deliver(part: Deliver | Finish) -> None:
                ready.usage.completion_tokens += len(part.token_ids)
                choice.parts.append(part)

            return deliver

        fault = await self._carry(ready, [deliverer(each) for each in choices])
        if fault is None and ready.parsed:
            fault = await self._read_whole(ready, choices)
        if fault is not None:
            raise RequestError(fault.code, fault.message, fault.param)
        body = whole_answer(ready.head, choices, ready.usage, self._logprobs(ready))
        return web.Response(body=write_json(body), content_type="application/json", headers=self._headers(ready))

    async def _read_whole(self, ready: Ready, choices: Sequence[WholeChoice]) -> EngineFault | None:
        for choice, made in zip(ready.choices, choices, strict=True):
            read = await parsed_message(self._asked(ready, choice), made.parts, self._derenderer(ready))
            if isinstance(read, EngineFault):
                return read
            made.message, made.finish_reason = read
        return None

    def _asked(self, ready: Ready, choice: Choice) -> Asked:
        return Asked({**ready.question.body, "model": ready.head.model}, choice.rendered, choice.request_id)

    def _derenderer(self, ready: Ready) -> Derender:
        deadline = ready.arrived + self._options.request_timeout.total_seconds()
        return lambda body: self._derender(deadline, body)

    async def _carry(self, ready: Ready, deliver: Sequence[Deliverer]) -> EngineFault | None:
        """Carry all choices to their ends; return the first fault, which ends them all."""
        grid = MELANGE_GRID if self._fleet.view.table is None else self._fleet.view.table.grid
        loop = asyncio.get_running_loop()
        deadline = ready.arrived + self._options.request_timeout.total_seconds()
        carriages, talks = [], []
        for choice, each in zip(ready.choices, deliver, strict=True):
            prompt_tokens = len(choice.rendered.token_ids)
            bucket = grid.bucket(prompt_tokens, choice.rendered.max_tokens)
            text = TextStream(ready.vocabulary, choice.rendered.token_ids, choice.rules)
            loop.call_soon(text.prime)  # once the call went out
            loop.call_soon(self._metrics.asked, grid, bucket, prompt_tokens)
            carriage = Carriage(bucket, History(choice), ready.arrived, deadline, each)
            carriage.keys, carriage.per_minute = carriage.history.keys(), self._fleet.sizes.arrived(bucket)
            carriages.append(carriage)
            talks.append(conversation(choice, text, carriage.history.committed))
        if len(carriages) == 1:
            ends: list[Finish | Abandon] = [await self._carrier.carry(talks[0], carriages[0])]
        else:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._carrier.carry(talk, carriage))
                    for talk, carriage in zip(talks, carriages, strict=True)
                ]
            ends = [task.result() for task in tasks]
        for end, carriage in zip(ends, carriages, strict=True):
            if isinstance(end, Abandon):
                return end.fault
            self._fleet.sizes.made(carriage.bucket, carriage.delivered)
            if carriage.bucket is not None:
                self._metrics.finished(grid, carriage.bucket, carriage.delivered)
        return None

    def _headers(self, ready: Ready) -> dict[str, str]:
        replicas = [each for each in self._fleet.view.replicas.values() if each.ready]
        outputs = bool(replicas) and all(self._fleet.knowledge.takes_outputs(each) for each in replicas)
        exact = resumes_exactly(ready.choices[0].rendered.sampling, resumes_output=outputs)
        headers: dict[str, Any] = {RESUME_HEADER: "exact" if exact else "approximate", "Cache-Control": "no-cache"}
        if ready.question.ignored:
            headers["x-medley-ignored"] = ",".join(ready.question.ignored)
        return headers

    def _logprobs(self, ready: Ready) -> LogprobFormat | None:
        top = ready.question.top_logprobs
        return None if top is None else LogprobFormat(ready.question.endpoint, ready.vocabulary, top)


def _continuous(ready: Ready) -> Usage | None:
    """Return the usage that every chunk shows, if the client wants that."""
    question = ready.question
    return ready.usage if question.include_usage and question.continuous_usage else None
