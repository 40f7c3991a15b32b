"""OpenAI's answers: stream chunks made of pre-built JSON pieces, whole answers, and error bodies.

Called by `server`. A chunk is a few byte strings joined, since this is what a router does most.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple

from medley.router.openai_api import Endpoint, RequestError
from medley.router.parsing import Read
from medley.router.session import Deliver, Finish
from medley.router.text import Vocabulary
from medley.wire.generate import TokenLogprob
from medley.wire.json_text import write_json

DONE = b"data: [DONE]\n\n"
_TYPES = {401: "authentication_error", 429: "rate_limit_error", 504: "timeout_error"}
_SERVER_ERROR = 500


class Head(NamedTuple):
    """What all chunks of one answer have in common."""

    endpoint: Endpoint
    id: str
    created: int
    model: str


@dataclass(slots=True)
class Usage:
    """Tokens of one request, as the client got them."""

    prompt_tokens: int
    completion_tokens: int = 0

    def json(self) -> dict[str, Any]:
        """Return OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return OpenAI's error object."""
    kind = _TYPES.get(status, "server_error" if status >= _SERVER_ERROR else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_of(error: RequestError) -> dict[str, Any]:
    """Return the body for a refused request."""
    return error_body(error.status, str(error), error.param, error.code)


class LogprobFormat:
    """Log probabilities in the endpoint's own shape; token texts come from the vocabulary."""

    def __init__(self, endpoint: Endpoint, vocabulary: Vocabulary, top: int) -> None:
        self._endpoint, self._vocabulary, self._top = endpoint, vocabulary, top

    def json(self, logprobs: Sequence[TokenLogprob], text_offset: int) -> dict[str, Any]:
        """Return the `logprobs` object of a choice. `text_offset`: characters of the choice before these tokens."""
        if self._endpoint is Endpoint.CHAT:
            return {"content": [self._chat(each) for each in logprobs]}
        if len(logprobs) == 1:  # nearly all chunks
            one = logprobs[0]
            return {
                "tokens": [self._vocabulary.token(one.token_id)[0]],
                "token_logprobs": [one.logprob],
                "top_logprobs": [self._tops(one)] if self._top else None,
                "text_offset": [text_offset],
            }
        texts = [self._vocabulary.token(each.token_id)[0] for each in logprobs]
        offsets = list(accumulate(map(len, texts), initial=text_offset))[:-1]
        return {
            "tokens": texts,
            "token_logprobs": [each.logprob for each in logprobs],
            "top_logprobs": [self._tops(each) for each in logprobs] if self._top else None,
            "text_offset": offsets,
        }

    def _chat(self, entry: TokenLogprob) -> dict[str, Any]:
        return {
            **self._token(entry.token_id, entry.logprob),
            "top_logprobs": [self._token(*top) for top in entry.top[: self._top]],
        }

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        text, spelled = self._vocabulary.token(token_id)
        return {"token": text, "logprob": logprob, "bytes": list(spelled)}

    def _tops(self, entry: TokenLogprob) -> dict[str, float]:
        # Later entries are less likely: where two tokens read alike, the likelier one is kept.
        return {self._vocabulary.token(token_id)[0]: logprob for token_id, logprob in reversed(entry.top)}


class StreamFormat:
    """Chunks of one streamed answer."""

    def __init__(self, head: Head, logprobs: LogprobFormat | None, *, usage_field: bool) -> None:
        self._head = head
        self._logprobs = logprobs
        chat = head.endpoint is Endpoint.CHAT
        kind = "chat.completion.chunk" if chat else "text_completion"
        common = f'"id":{_text(head.id)},"object":"{kind}","created":{head.created},"model":{_text(head.model)}'
        self._start = f'data: {{{common},"choices":[{{"index":'.encode()
        self._text = b',"delta":{"content":' if chat else b',"text":'
        self._after_text = b"}" if chat else b""
        # With stream_options.include_usage every chunk has the field; null in all but the last.
        self._end = b'}],"usage":null}\n\n' if usage_field else b"}]}\n\n"
        self._plain = self._after_text + b',"logprobs":null,"finish_reason":null' + self._end
        self._bare = f"data: {{{common}".encode()
        self._offsets: dict[int, int] = {}

    def opening(self, index: int) -> bytes:
        """Return the chunk that names the role; empty where there are no roles."""
        if self._head.endpoint is not Endpoint.CHAT:
            return b""
        delta = b',"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        return b"".join((self._start, b"%d" % index, delta, self._end))

    def chunk(self, index: int, part: Deliver | Finish, usage: Usage | None = None) -> bytes:
        """Return the chunk for new text; empty if there is nothing to show. `usage`: so far, if every chunk has it."""
        if usage is None and self._logprobs is None and isinstance(part, Deliver):
            if not part.text:
                return b""
            return b"".join((self._start, b"%d" % index, self._text, _text(part.text).encode(), self._plain))
        logprobs = b"null"
        if self._logprobs is not None and part.logprobs:
            offset = self._offsets.get(index, 0)
            logprobs = write_json(self._logprobs.json(part.logprobs, offset))
            self._offsets[index] = offset + len(part.text)
        elif isinstance(part, Deliver) and not part.text:
            return b""
        reason, stop = b"null", b""
        if isinstance(part, Finish):
            reason = write_json(part.finish_reason)
            stop = b',"stop_reason":' + write_json(part.stop_reason)
        content = self._text + _text(part.text).encode() + self._after_text
        if isinstance(part, Finish) and not part.text and self._head.endpoint is Endpoint.CHAT:
            content = b',"delta":{}'
        rest = (b',"logprobs":', logprobs, b',"finish_reason":', reason, stop, self._ending(usage))
        return b"".join((self._start, b"%d" % index, content, *rest))

    def read_chunk(self, index: int, read: Read, usage: Usage | None = None) -> bytes:
        """Return the chunk for what an engine's parsers read; empty if there is nothing to show."""
        if not read.delta and not read.logprobs and read.finish is None:
            return b""
        logprobs = None
        if self._logprobs is not None and read.logprobs:
            logprobs = self._logprobs.json(read.logprobs, 0)
        choice: dict[str, Any] = {"delta": read.delta, "logprobs": logprobs, "finish_reason": read.finish_reason}
        if read.finish is not None:
            choice["stop_reason"] = read.finish.stop_reason
        return b"".join((self._start, b"%d" % index, b",", write_json(choice)[1:-1], self._ending(usage)))

    def _ending(self, usage: Usage | None) -> bytes:
        return self._end if usage is None else b'}],"usage":%b}\n\n' % write_json(usage.json())

    def usage(self, usage: Usage) -> bytes:
        """Return the last chunk of a stream with `include_usage`."""
        return self._bare + f',"choices":[],"usage":{json.dumps(usage.json())}}}\n\n'.encode()

    @staticmethod
    def error(status: int, message: str) -> bytes:
        """Return the event that ends a stream which cannot go on; clients raise it."""
        return b"data: " + json.dumps(error_body(status, message)).encode() + b"\n\n"


@dataclass(slots=True)
class WholeChoice:
    """One choice of an answer that is given whole."""

    parts: list[Deliver | Finish] = field(default_factory=list)  # the last is a `Finish`
    # As an engine's parsers read it; None: its text is all there is.
    message: dict[str, Any] | None = None
    finish_reason: str | None = None


def whole_answer(
    head: Head, choices: Sequence[WholeChoice], usage: Usage, logprobs: LogprobFormat | None
) -> dict[str, Any]:
    """Return the body of an answer that is not streamed; all choices are finished."""
    return {
        "id": head.id,
        "object": head.endpoint.value,
        "created": head.created,
        "model": head.model,
        "choices": [_choice(head.endpoint, index, choice, logprobs) for index, choice in enumerate(choices)],
        "usage": usage.json(),
    }


def _choice(endpoint: Endpoint, index: int, choice: WholeChoice, logprobs: LogprobFormat | None) -> dict[str, Any]:
    finish = choice.parts[-1]
    assert isinstance(finish, Finish)
    text = "".join([part.text for part in choice.parts])
    tokens = [each for part in choice.parts for each in part.logprobs]
    message = choice.message or {"role": "assistant", "content": text}
    said: dict[str, Any] = {"message": {**message, "refusal": None}} if endpoint is Endpoint.CHAT else {"text": text}
    return {
        "index": index,
        **said,
        "logprobs": None if logprobs is None else logprobs.json(tokens, 0),
        "finish_reason": choice.finish_reason or finish.finish_reason,
        "stop_reason": finish.stop_reason,
    }


def _text(text: str) -> str:
    return encode_basestring_ascii(text)
