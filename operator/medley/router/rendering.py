"""What only an engine can do with a request before and after its tokens: render prompts, read markup.

Called by `server`. Any ready engine will do; one that breaks is followed by another. A completion whose prompt is token
ids already needs an engine only for the model's default sampling parameters: those are remembered, so that such a
request costs no round trip.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from medley.router.engine_client import EngineClient
from medley.router.fleet import Fleet
from medley.router.openai_api import Endpoint, Question, RequestError
from medley.router.session import Broken
from medley.wire.generate import EngineFault, Rendered
from medley.wire.json_text import canonical

_PAUSE_SECONDS = 0.2
# Engines may be replaced by others with other defaults; replicas of another name are seen at once.
_REMEMBERED_SECONDS = 60.0
_MOST_REMEMBERED = 256


class NobodyReadyError(RequestError):
    """No engine rendered the prompt before the deadline."""

    def __init__(self, why: str) -> None:
        super().__init__(503, f"no engine was ready before the deadline: {why}")


@dataclass(frozen=True, slots=True)
class _Remembered:
    rendered: Rendered  # of another prompt
    until: float
    replicas: frozenset[str]


class Rendering:
    """Asks engines in turn."""

    def __init__(
        self, fleet: Fleet, engines: EngineClient, missing: Callable[[], str | None], *, clock: Callable[[], float]
    ) -> None:
        self._fleet, self._engines, self._missing, self._clock = fleet, engines, missing, clock
        self._remembered: OrderedDict[bytes, _Remembered] = OrderedDict()

    async def render(
        self, question: Question, model: Callable[[], str | None], adapter: str | None, deadline: float
    ) -> tuple[Rendered, ...]:
        """Have an engine make token ids and sampling parameters; the deadline bounds the tries.

        `NobodyReadyError` when it has passed, `RequestError` where the engine finds the request at fault.
        `model` is asked for when an engine is ready: it may not be known before.
        """
        key = _key(question, adapter)
        if key is not None and (known := self._recall(key, question)) is not None:
            return known
        tried: str | None = None
        while self._clock() < deadline:
            replica = self._replica(tried, adapter)
            if replica is not None and self._missing() is None:
                body = {**question.body, "model": adapter or model()}
                answer = await self._engines.render(replica[1], question.endpoint, body)
                match answer:
                    case EngineFault(code=code, message=message, param=param):
                        raise RequestError(code, message, param)
                    case Broken():
                        tried = replica[0]
                    case _ if len(answer) != question.prompts:
                        tried = replica[0]  # it answered something else than was asked
                    case _:
                        if key is not None:
                            self._remember(key, question, answer)
                        return answer
            await asyncio.sleep(_PAUSE_SECONDS)
        raise NobodyReadyError(self._missing() or "engines broke")

    async def derender(self, deadline: float, body: dict[str, Any]) -> dict[str, Any] | EngineFault:
        """Have an engine's parsers read what was made; the deadline bounds the tries."""
        tried: str | None = None
        while self._clock() < deadline:
            replica = self._replica(tried, None)
            if replica is not None:
                answer = await self._engines.derender(replica[1], body)
                if not isinstance(answer, Broken):
                    return answer
                tried = replica[0]
            await asyncio.sleep(_PAUSE_SECONDS)
        return EngineFault(504, "no engine could read the answer before the request's deadline", None)

    def _replica(self, tried: str | None, adapter: str | None) -> tuple[str, str] | None:
        """Return name and URL of the replica with the least to do, another one than was just tried if there is one."""
        serves = self._fleet.knowledge.serves
        able = [each for each in self._fleet.candidates() if serves(each.name, adapter)]
        if not able:
            return None
        name = min(able, key=lambda each: (each.name == tried, each.running, each.name)).name
        return name, self._fleet.view.replicas[name].url

    def _recall(self, key: bytes, question: Question) -> tuple[Rendered, ...] | None:
        known = self._remembered.get(key)
        prompts = _prompts(question)
        if known is None or prompts is None or self._clock() > known.until:
            return None
        if known.replicas != self._fleet.view.replicas.keys():
            return None
        # Where the model's longest sequence cuts max_tokens short, or refuses, the engine has the word.
        longest = self._fleet.knowledge.longest
        most = known.rendered.max_tokens
        if any(len(prompt) + most > longest for prompt in prompts):
            return None
        self._remembered.move_to_end(key)
        return tuple(known.rendered._replace(token_ids=tuple(prompt)) for prompt in prompts)

    def _remember(self, key: bytes, question: Question, answer: tuple[Rendered, ...]) -> None:
        prompts = _prompts(question)
        if prompts is None or tuple(each.token_ids for each in answer) != tuple(map(tuple, prompts)):
            return
        first = answer[0]
        if first.max_tokens != question.body.get("max_tokens") or first.attachments.get("features") is not None:
            return
        until = self._clock() + _REMEMBERED_SECONDS
        self._remembered[key] = _Remembered(first, until, frozenset(self._fleet.view.replicas))
        while len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.popitem(last=False)


def _prompts(question: Question) -> list[list[int]] | None:
    """Return a completion's prompts if they are token ids; None if an engine has to make those."""
    prompt = question.body.get("prompt")
    if question.endpoint is not Endpoint.COMPLETION or not isinstance(prompt, list):
        return None
    if isinstance(prompt[0], int):
        return [prompt]
    return prompt if all(isinstance(each, list) for each in prompt) else None


def _key(question: Question, adapter: str | None) -> bytes | None:
    """Return what a rendered request depends on beside its prompt; None if only an engine knows."""
    body = question.body
    if _prompts(question) is None or body.get("max_tokens") is None or body.get("truncate_prompt_tokens") is not None:
        return None
    rest = {name: value for name, value in body.items() if name not in {"prompt", "model"}}
    return canonical((adapter, rest))
