"""What routers and engines say to each other: vLLM 0.32's token-in, token-out protocol, as values.

`POST /v1/{chat/completions,completions}/render` turns a client's request into token ids and sampling parameters
(`Rendered`); `POST /inference/v1/generate` takes them and streams server-sent events of JSON (`TokenEvent`). Read by
the router and by its stub engine. Only the fields that medley uses are parsed; others may come and go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from medley.core.errors import EngineError
from medley.wire.json_text import REFUSED, write_json
from medley.wire.ticket import TICKET_PARAMETER, Ticket

GENERATE_PATH = "/inference/v1/generate"
RENDER_CHAT_PATH = "/v1/chat/completions/render"
RENDER_COMPLETION_PATH = "/v1/completions/render"
DERENDER_CHAT_PATH = "/v1/chat/completions/derender"
MODELS_PATH = "/v1/models"

# vLLM leaves parameters at their default out of a rendered request; these are the ones medley has to know.
DEFAULT_MAX_TOKENS = 16
FINISHED_BY_ABORT = "abort"
FINISHED_BY_ERROR = "error"

# Answered in a rendered request, but the router's own business or a new value at each attempt.
_NOT_FORWARDED = frozenset({
    "request_id", "token_ids", "token_offsets", "sampling_params", "model", "stream", "stream_options", "output_mode",
    "return_token_ids", "kv_transfer_params", "ec_transfer_params",
})  # fmt: skip
# The router splits n, seeds each choice, and looks for stop strings in the text that it makes itself. The rest is how
# the engine's own front end would deliver text.
_NOT_SAMPLED = frozenset({
    "n", "seed", "stop", "max_tokens", "min_tokens", "output_kind", "skip_clone", "output_text_buffer_length",
    "include_stop_str_in_output", "detokenize", "skip_special_tokens", "spaces_between_special_tokens", "extra_args",
})  # fmt: skip


class Rendered(NamedTuple):
    """A client's request as the engine understands it: one prompt, resolved against the model's defaults."""

    token_ids: tuple[int, ...]
    max_tokens: int
    min_tokens: int
    sampling: Mapping[str, Any]  # vLLM's SamplingParams, less what the router does itself
    attachments: Mapping[str, Any]  # multimodal features, cache salt and the like: sent back to the engine as they came


class GenerateCall(NamedTuple):
    """One `POST /inference/v1/generate`."""

    request_id: str
    token_ids: Sequence[int]
    sampling: Mapping[str, Any]
    attachments: Mapping[str, Any]
    model: str | None = None  # a LoRA adapter; None: the model itself
    ticket: Ticket | None = None  # to KV cache that another engine computed

    def body(self) -> bytes:
        """Return the JSON body; always streaming, always tokens without text."""
        body = {
            **self.attachments,
            "request_id": self.request_id,
            "token_ids": self.token_ids,
            "sampling_params": {**self.sampling, "detokenize": False},
            "stream": True,
        }
        if self.model is not None:
            body["model"] = self.model
        if self.ticket is not None:
            body["kv_transfer_params"] = {TICKET_PARAMETER: self.ticket.model_dump(mode="json")}
        return write_json(body)


class TokenLogprob(NamedTuple):
    """A sampled token's log probability and the likeliest tokens at its position, the sampled one first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class TokenEvent(NamedTuple):
    """New tokens of one request. `logprobs` is empty if none were asked for, else one entry per token."""

    token_ids: list[int]
    finish_reason: str | None
    stop_reason: int | str | None
    logprobs: tuple[TokenLogprob, ...]


class EngineFault(NamedTuple):
    """The engine gave up on a request; a code below 500 says that the request itself is at fault."""

    code: int
    message: str
    param: str | None


def parse_rendered(answer: Mapping[str, Any]) -> Rendered:
    """Parse what a render endpoint answers for one prompt; `EngineError` if it is not that."""
    try:
        token_ids, sampling = answer["token_ids"], answer["sampling_params"]
        return Rendered(
            token_ids=tuple(_ids(token_ids)),
            max_tokens=int(sampling.get("max_tokens", DEFAULT_MAX_TOKENS)),
            min_tokens=int(sampling.get("min_tokens", 0)),
            sampling={k: v for k, v in sampling.items() if k not in _NOT_SAMPLED and v is not None},
            attachments={k: v for k, v in answer.items() if k not in _NOT_FORWARDED and v is not None},
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise EngineError(f"reading a rendered request: expected token_ids and sampling_params, {error!r}") from error


class _Top(msgspec.Struct, gc=False):
    token_id: int
    logprob: float


class _Entry(msgspec.Struct, gc=False):
    token_id: int
    logprob: float
    top_logprobs: list[_Top] | None = None


class _Logprobs(msgspec.Struct, gc=False):
    content: list[_Entry] | None = None


class _Choice(msgspec.Struct, gc=False):
    token_ids: list[Annotated[int, msgspec.Meta(ge=0)]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: _Logprobs | None = None


class _Event(msgspec.Struct, gc=False):
    choices: list[_Choice]


_DECODER = msgspec.json.Decoder(_Event)


def parse_events(payloads: Sequence[bytes]) -> list[TokenEvent | EngineFault]:
    """Parse what came in one read; events that only add tokens become one, so that a reader that is behind catches up.

    An end that is no finish stays by itself, since what it carries may not count.
    Raises `EngineError` if any of them is not the protocol.
    """
    if len(payloads) == 1:  # nearly always
        alone = parse_event(payloads[0])
        return [] if alone is None else [alone]
    made: list[TokenEvent | EngineFault] = []
    for payload in payloads:
        event = parse_event(payload)
        if event is None:
            continue
        last = made[-1] if made else None
        if (
            isinstance(event, TokenEvent)
            and isinstance(last, TokenEvent)
            and last.finish_reason is None
            and event.finish_reason not in {FINISHED_BY_ABORT, FINISHED_BY_ERROR}
        ):
            last.token_ids.extend(event.token_ids)
            _, reason, stop_reason, logprobs = event
            made[-1] = TokenEvent(last.token_ids, reason, stop_reason, last.logprobs + logprobs)
        else:
            made.append(event)
    return made


def parse_event(payload: bytes) -> TokenEvent | EngineFault | None:
    """Parse the data of one server-sent event; None if it carries no tokens (`[DONE]`, usage)."""
    try:
        choices = _DECODER.decode(payload).choices
    except REFUSED:
        return _parse_other(payload)
    if not choices:
        return _parse_other(payload)
    choice = choices[0]
    logprobs = choice.logprobs.content if choice.logprobs else None
    return TokenEvent(
        choice.token_ids or [], choice.finish_reason, choice.stop_reason, tuple(map(_logprob, logprobs or ()))
    )


def _logprob(entry: _Entry) -> TokenLogprob:
    top = entry.top_logprobs
    return TokenLogprob(
        entry.token_id, entry.logprob, tuple([(each.token_id, each.logprob) for each in top]) if top else ()
    )


def _parse_other(payload: bytes) -> TokenEvent | EngineFault | None:
    """Parse an event that is not the usual one: an end, a fault, or JSON that only the standard library takes."""
    if payload == b"[DONE]":
        return None
    try:
        event = json.loads(payload.decode())
        choices = event.get("choices")
        if not choices:
            return _fault(event["error"]) if "error" in event else None
        choice = choices[0]
        logprobs = choice.get("logprobs")
        return TokenEvent(
            _ids(choice.get("token_ids") or []),
            _reason(choice.get("finish_reason")),
            choice.get("stop_reason"),
            _logprobs(logprobs["content"]) if logprobs and logprobs.get("content") else (),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise EngineError(f"reading an engine's event: {error!r} in {payload[:200]!r}") from error


def parse_fault(status: int, body: bytes) -> EngineFault:
    """Parse the body of an error answer (`{"error": {...}}`); anything else becomes its message."""
    try:
        fault = _fault(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        fault = EngineFault(status, body[:500].decode(errors="replace") or f"status {status}", None)
    return fault._replace(code=status)


def _fault(error: Any) -> EngineFault:
    if isinstance(error, str):
        return EngineFault(500, error, None)
    code = error.get("code")
    return EngineFault(
        code if isinstance(code, int) else 500, str(error.get("message", "no message")), error.get("param")
    )


def _ids(token_ids: Any) -> list[int]:
    if isinstance(token_ids, list):
        for each in token_ids:
            if type(each) is not int or each < 0:
                break
        else:
            return token_ids
    raise TypeError("token_ids: expected whole numbers from 0 up")


def _reason(reason: Any) -> str | None:
    if reason is not None and not isinstance(reason, str):
        raise TypeError("finish_reason: expected a word or null")
    return reason


def _logprobs(content: Sequence[Mapping[str, Any]]) -> tuple[TokenLogprob, ...]:
    return tuple([
        TokenLogprob(
            entry["token_id"],
            entry["logprob"],
            tuple([(top["token_id"], top["logprob"]) for top in entry.get("top_logprobs") or ()]),
        )
        for entry in content
    ])  # fmt: skip


class EventSplitter:
    """Cuts a byte stream into the data of its server-sent events. What is incomplete waits; it is never parsed."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, block: bytes) -> list[bytes]:
        """Return the data of the events that `block` completes."""
        if self._pending:
            block = self._pending + block
        *events, self._pending = block.split(b"\n\n")
        return [event[6:] for event in events if event.startswith(b"data: ")]
