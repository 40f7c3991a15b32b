"""Chat answers that an engine's parsers have to read: tool calls, and reasoning apart from content.

Used by `delivery` where a request names tools, or an engine with a reasoning parser rendered its prompt. The tokens
are the router's own log and the parser's state is built from them at each call, so any engine can go on with it
(`/v1/chat/completions/derender`). An engine re-reads all tokens each time; so while one call is under way, tokens wait
and go together with the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medley.router.session import Deliver, Finish
from medley.wire.generate import EngineFault, Rendered, TokenLogprob

# Asks one engine after another until one answers; an `EngineFault` if the request is at fault, or time is over.
Derender = Callable[[dict[str, Any]], Awaitable[dict[str, Any] | EngineFault]]


@dataclass(frozen=True, slots=True)
class Asked:
    """What parsers need to know of a request."""

    body: Mapping[str, Any]  # the client's, with the model's name
    rendered: Rendered
    request_id: str


@dataclass(frozen=True, slots=True)
class Read:
    """A part of an answer as the parsers read it."""

    delta: dict[str, Any]
    logprobs: Sequence[TokenLogprob]
    finish: Finish | None
    finish_reason: str | None


@dataclass(slots=True)
class ParsedStream:
    """One streamed choice: takes in what was made, gives out what was read."""

    asked: Asked
    derender: Derender
    emit: Callable[[Read], None]
    _waiting: list[Deliver | Finish] = field(default_factory=list)
    _fed: asyncio.Event = field(default_factory=asyncio.Event)
    _state: dict[str, Any] | None = None
    _closed: bool = False

    def feed(self, part: Deliver | Finish) -> None:
        """Take in a part; never blocks."""
        self._waiting.append(part)
        # Text that may begin a stop string is not for the parsers yet: they could not take it back.
        if _settled(part):
            self._fed.set()

    def close(self) -> None:
        """No more will come."""
        self._closed = True
        self._fed.set()

    async def run(self) -> EngineFault | None:
        """Read until the choice is finished or closed."""
        while True:
            await self._fed.wait()
            self._fed.clear()
            while parts := self._take():
                fault = await self._read(parts)
                if fault is not None or isinstance(parts[-1], Finish):
                    return fault
            if self._closed:
                return None

    def _take(self) -> list[Deliver | Finish]:
        ready = max((n for n, part in enumerate(self._waiting, 1) if _settled(part)), default=0)
        parts, self._waiting = self._waiting[:ready], self._waiting[ready:]
        return parts

    async def _read(self, parts: Sequence[Deliver | Finish]) -> EngineFault | None:
        finish = parts[-1] if isinstance(parts[-1], Finish) else None
        choice = {
            "index": 0,
            "token_ids": _text_tokens(parts),
            "finish_reason": None if finish is None else finish.finish_reason,
        }
        answer = await self.derender(
            {
                **_common(self.asked),
                "stream": True,
                "generate_chunk": {"request_id": self.asked.request_id, "choices": [choice]},
                "stream_state": self._state,
            }
        )
        if isinstance(answer, EngineFault):
            return answer
        self._state = answer["stream_state"]
        read = answer["chunk"]["choices"][0]
        delta = {name: value for name, value in read["delta"].items() if name != "role" and value not in (None, [])}
        if finish is not None:
            _cut(delta, finish.excess)
        logprobs = [each for part in parts for each in part.logprobs]
        self.emit(Read(delta, logprobs, finish, read.get("finish_reason")))
        return None


def needs_reading(rendered: Rendered) -> bool:
    """Whether the engines have a reasoning parser: then even plain chat may hold its markup."""
    return rendered.attachments.get("reasoning_parser_kwargs") is not None


async def parsed_message(
    asked: Asked, parts: Sequence[Deliver | Finish], derender: Derender
) -> tuple[dict[str, Any], str] | EngineFault:
    """Return the message of a whole choice and its finish reason."""
    finish = parts[-1]
    assert isinstance(finish, Finish)
    tokens = _text_tokens(parts)
    if not tokens:
        return {"role": "assistant", "content": ""}, finish.finish_reason
    choice = {"index": 0, "token_ids": tokens, "finish_reason": finish.finish_reason}
    answer = await derender(
        {
            **_common(asked),
            "stream": False,
            "generate_response": {"request_id": asked.request_id, "choices": [choice]},
        }
    )
    if isinstance(answer, EngineFault):
        return answer
    read = answer["choices"][0]
    message = {name: value for name, value in read["message"].items() if value not in (None, [])}
    _cut(message, finish.excess)
    called = bool(message.get("tool_calls")) and not isinstance(asked.body.get("tool_choice"), dict)
    message.setdefault("content", None)
    return message, "tool_calls" if called else finish.finish_reason


def _settled(part: Deliver | Finish) -> bool:
    return isinstance(part, Finish) or part.settled


def _common(asked: Asked) -> dict[str, Any]:
    return {
        "model": asked.body.get("model"),
        "chat_request": {**asked.body, "stream": False},
        "prompt_token_ids": list(asked.rendered.token_ids),
        "prompt_tokens": len(asked.rendered.token_ids),
    }


def _text_tokens(parts: Sequence[Deliver | Finish]) -> list[int]:
    """Return the tokens but for the one that ended the text: a parser would show it."""
    tokens = [token for part in parts for token in part.token_ids]
    last = parts[-1]
    return tokens[:-1] if isinstance(last, Finish) and last.ended else tokens


def _cut(said: dict[str, Any], excess: int) -> None:
    """Take a stop string, and what followed it in its last token, off the end of the content."""
    if excess and said.get("content"):
        said["content"] = said["content"][:-excess]
