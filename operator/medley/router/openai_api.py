"""What clients may ask: OpenAI's two completion endpoints, parsed at the border into `Question`.

Called by `server` with the bytes of a body. Everything that a client may send is listed here; anything else is refused
with an error that names the parameter, and so are fields that are medley's and the engine's own business. The engine
checks what needs the model (lengths, token ids, grammars) when it renders the prompt.
"""

from __future__ import annotations

import json
import math
import re
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medley.core.errors import MedleyError
from medley.router.text import TextRules
from medley.wire.json_text import read_json

MAX_CHOICES = 32  # prompts x n of one request
_MAX_STOPS = 16
_MAX_TOOLS = 256
_MAX_TOKENS = 10_000_000
_INT64 = 2**63

# Fields by which engines and medley steer themselves. From a client they could stop an engine or read another's cache.
INTERNAL_FIELDS = frozenset({
    "kv_transfer_params", "ec_transfer_params", "resume_output_token_ids", "extra_args", "vllm_xargs", "request_id",
    "mm_payload", "prompt_embeds", "data_parallel_rank", "trace_decode_token_ids", "skip_reading_prefix_cache",
    "output_kind", "routed_experts_prompt_start",
})  # fmt: skip
# Real parameters of the API that this version does not carry over an engine's loss, or at all.
UNSUPPORTED = {
    "functions": "replaced by tools; use those",
    "function_call": "replaced by tool_choice; use that",
    "audio": "only text is generated; leave it out",
    "best_of": "only n is supported; leave it out",
    "use_beam_search": "a beam cannot move between engines; leave it out",
    "suffix": "insertion is not supported; leave it out",
    "echo": "prompts are not echoed; leave it out",
    "prompt_logprobs": "log probabilities are given for generated tokens only; leave it out",
    "prediction": "predicted outputs are not supported; leave it out",
    "web_search_options": "not supported; leave it out",
}


class RequestError(MedleyError):
    """A request that is refused; becomes OpenAI's error body."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        *,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.retry_after = retry_after  # seconds


class Endpoint(StrEnum):
    """The two endpoints; values are the object names of their answers."""

    CHAT = "chat.completion"
    COMPLETION = "text_completion"


class Question(NamedTuple):
    """A client's request, checked."""

    endpoint: Endpoint
    model: str | None
    body: dict[str, Any]  # what a render endpoint of the engine gets
    prompts: int  # how many prompts the body holds
    n: int
    stream: bool
    include_usage: bool
    continuous_usage: bool
    seed: int | None
    top_logprobs: int | None  # None: no log probabilities
    rules: TextRules
    calls_tools: bool = False  # its answer may hold tool calls
    ignored: tuple[str, ...] = ()  # parameters without effect here


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


_Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1, le=_MAX_TOKENS)]
_TokenId = Annotated[int, Field(ge=0, lt=2**32)]
_Stop = Annotated[str, Field(min_length=1, max_length=1024)]


class _Common(BaseModel):
    """Parameters of both endpoints: OpenAI's, and those of vLLM that work with any engine and across its loss."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: _Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] | None = None
    seed: Annotated[int, Field(ge=-_INT64, lt=_INT64)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=_MAX_STOPS)] | None = None
    response_format: dict[str, Any] | None = None
    user: str | None = None
    # vLLM's
    top_k: Annotated[int, Field(ge=-1, le=_MAX_TOKENS)] | None = None
    min_p: _Probability | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=_MAX_TOKENS)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[_TokenId], Field(max_length=1024)] | None = None
    allowed_token_ids: Annotated[list[_TokenId], Field(max_length=100_000)] | None = None
    bad_words: Annotated[list[_Stop], Field(max_length=1024)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=_MAX_TOKENS)] | None = None
    structured_outputs: dict[str, Any] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    # Accepted, since clients send them, and without effect.
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class _Chat(_Common):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    reasoning_effort: str | None = None
    documents: list[dict[str, Any]] | None = None
    modalities: list[Literal["text"]] | None = None
    verbosity: str | None = None
    # The engine's chat template writes them into the prompt, and its parsers read the calls out of what was made.
    tools: Annotated[list[dict[str, Any]], Field(max_length=_MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None


class _Completion(_Common):
    # Without `fail_fast` pydantic words a complaint for each token id of a prompt: that it is no string, nor a list.
    prompt: (
        str
        | Annotated[list[str], Field(fail_fast=True)]
        | list[_TokenId]
        | Annotated[list[list[_TokenId]], Field(fail_fast=True)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


_NO_OPTIONS = _StreamOptions()
_IN_A_UNION = re.compile(r"[\[-]|^(str|int)$")
_ROUTERS_OWN = frozenset({"stream", "stream_options", "seed", "n", "stop"})
_WITHOUT_EFFECT = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "modalities", "verbosity",
})  # fmt: skip
_NOT_RENDERED = _ROUTERS_OWN | _WITHOUT_EFFECT


def parse_question(raw: bytes, endpoint: Endpoint) -> Question:
    """Parse a request body; `RequestError` (400) names the parameter at fault."""
    body = _json(raw)
    _refuse_internal(body)
    for name in [each for each in body if each in UNSUPPORTED]:
        if body[name] is not None and body[name] is not False and body[name] not in ([], "none"):
            raise RequestError(400, f"{name}: {UNSUPPORTED[name]}", name, "unsupported_parameter")
        del body[name]
    kind = _Chat if endpoint is Endpoint.CHAT else _Completion
    try:
        asked = kind.model_validate(body)
    except ValidationError as error:
        _refuse(error)
    return _question(asked, body, endpoint)


def _question(asked: _Chat | _Completion, body: dict[str, Any], endpoint: Endpoint) -> Question:
    stream = bool(asked.stream)
    if asked.stream_options is not None and not stream:
        raise RequestError(400, "stream_options: only allowed with stream: true", "stream_options")
    if isinstance(asked, _Chat):
        if asked.top_logprobs is not None and not asked.logprobs:
            raise RequestError(400, "top_logprobs: needs logprobs: true", "top_logprobs")
        top_logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        prompts = 1
    else:
        top_logprobs = asked.logprobs
        prompts = _count_prompts(asked.prompt)
    n = asked.n or 1
    if prompts * n > MAX_CHOICES:
        raise RequestError(400, f"n: at most {MAX_CHOICES} choices (prompts x n) per request, got {prompts * n}", "n")
    stops = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    options = asked.stream_options or _NO_OPTIONS
    return Question(
        endpoint=endpoint,
        model=asked.model,
        body={k: v for k, v in body.items() if v is not None and k not in _NOT_RENDERED},
        prompts=prompts,
        n=n,
        stream=stream,
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.continuous_usage_stats),
        seed=None if asked.seed == -1 else asked.seed,  # to vLLM, -1 is no seed
        top_logprobs=top_logprobs,
        rules=TextRules(
            stop=stops,
            include_stop=bool(asked.include_stop_str_in_output),
            skip_special_tokens=asked.skip_special_tokens is not False,
            min_tokens=asked.min_tokens or 0,
        ),
        calls_tools=isinstance(asked, _Chat) and bool(asked.tools) and asked.tool_choice != "none",
        ignored=tuple([name for name in body if name in _WITHOUT_EFFECT and body[name] is not None]),
    )


def _count_prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> int:
    if isinstance(prompt, str):
        return 1
    if prompt and isinstance(prompt[0], int):
        return 1
    if not prompt or [] in prompt:
        raise RequestError(400, "prompt: expected text or token ids, got an empty list", "prompt")
    return len(prompt)


def _json(raw: bytes) -> dict[str, Any]:
    try:
        body = read_json(raw, _read_by_the_book)
    except RecursionError as error:
        raise RequestError(400, "the body is nested too deeply") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise RequestError(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise RequestError(400, "the body has to be a JSON object")
    return body


def _read_by_the_book(raw: bytes) -> Any:
    return _DECODER.decode(raw.decode(json.detect_encoding(raw), "surrogatepass"))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text} is too large a number")
    return number


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


_NESTED = frozenset({dict, list})


def _refuse_internal(body: dict[str, Any]) -> None:
    """Refuse internal fields however deep; a stack, since the depth is the client's choice."""
    left: list[Any] = [body]
    while left:
        here = left.pop()
        if isinstance(here, dict):
            if not INTERNAL_FIELDS.isdisjoint(here):
                name = next(each for each in here if each in INTERNAL_FIELDS)
                raise RequestError(400, f"{name}: an internal field that clients may not set; leave it out", name)
            left.extend(here.values())
        elif isinstance(here, list) and not _NESTED.isdisjoint(map(type, here)):  # not thousands of token ids
            left.extend(here)


def _refuse(error: ValidationError) -> NoReturn:
    """Report the first parameter at fault under the name that the client wrote."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    of_first = [each for each in faults if each["loc"][:1] == faults[0]["loc"][:1]]
    # Of a union, every member complains; the one whose type fitted, or that got furthest, is the one that was meant.
    fault = max(of_first, key=lambda each: (not each["type"].endswith("_type"), len(each["loc"])))
    place = [part for part in fault["loc"] if isinstance(part, int) or part.islower()]
    # Members of unions add their type to the path (`list[str]`, `constrained-str`); the client wrote none of that.
    named = [str(part) for part in place if isinstance(part, int) or not _IN_A_UNION.search(part)]
    name = str(place[0]) if place else None
    if fault["type"] == "extra_forbidden":
        path = ".".join(named)
        raise RequestError(400, f"{path}: unknown parameter; leave it out", path, "unknown_parameter") from error
    if fault["type"] == "missing":
        raise RequestError(400, f"{name}: required", name, "missing_required_parameter") from error
    message = fault["msg"][:1].lower() + fault["msg"][1:]
    raise RequestError(400, f"{'.'.join(named) or name}: {message}", name, "invalid_value") from error
