"""One choice of one request, as a conversation between the token log and whatever engines it meets.

`conversation` is a generator: it yields what has to be done (`Seek` a replica, `Issue` a call, `Deliver` to the client)
and receives what happened. Production (`carrier`), tests and simulations drive the same one. It holds the truth about a
stream: the prompt and the tokens committed so far. A token is committed when its event was read whole, and delivered
once; an engine is only asked for what follows. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from medley.router.text import TextRules, TextStream
from medley.wire.generate import (
    FINISHED_BY_ABORT,
    FINISHED_BY_ERROR,
    EngineFault,
    GenerateCall,
    Rendered,
    TokenEvent,
    TokenLogprob,
)
from medley.wire.resume import RESUME_OUTPUT_TOKEN_IDS
from medley.wire.ticket import Ticket

# A request on which engine after engine breaks without making one token may be what breaks them. It is given up after
# this many, so that it cannot take the fleet down; breaks that have another cause (a notice, no connection) are not
# counted, and neither is any break after progress.
FRUITLESS_ATTEMPTS = 5
# Statuses with which an engine says that the request itself is wrong. Others (401, 404, 429) are about the engine.
_REQUEST_AT_FAULT = frozenset({400, 413, 422})
_UNFINISHED = frozenset({FINISHED_BY_ABORT, FINISHED_BY_ERROR})


class Cause(StrEnum):
    """Why a stream left a replica; values of the label `cause` of `medley_router_resumes_total`."""

    UNREACHABLE = "unreachable"  # no connection, nothing sent
    CONNECTION = "connection"  # broken, or ended without a finish reason
    ENGINE_ERROR = "engine-error"
    ABORTED = "aborted"
    SILENCE = "silence"
    NOTICE = "notice"
    DIVERGED = "diverged"  # a replay did not repeat the committed tokens


class ResumeMode(StrEnum):
    """How the next engine is told what was already made."""

    PROMPT = "prompt"  # committed tokens follow the prompt
    OUTPUT = "output"  # committed tokens come back as outputs: the engine's own extension (`resume-exact`)
    REPLAY = "replay"  # the same seed from the start; committed tokens are made again, checked and dropped


class Choice(NamedTuple):
    """What one choice is made from."""

    request_id: str
    rendered: Rendered
    seed: int
    rules: TextRules
    adapter: str | None = None  # LoRA adapter by the name that engines know; None: the model itself


class Seek(NamedTuple):
    """Find a replica; answered by `Placed`."""

    resuming: bool
    cause: Cause | None = None  # why the attempt before broke; None: there was none


class Placed(NamedTuple):
    """There is a replica."""

    resumes_output: bool  # it has `Capability.RESUME_EXACT`
    ticket: Ticket | None = None  # to what an engine had computed of this stream


class Issue(NamedTuple):
    """Send this call to the replica; answered by its first event."""

    call: GenerateCall
    mode: ResumeMode | None  # None: nothing was committed yet


class Broken(NamedTuple):
    """The attempt ended without a finish reason. `accepted`: the engine had begun to answer."""

    cause: Cause
    accepted: bool


class Deliver(NamedTuple):
    """Give this to the client; answered by the next event."""

    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprob]
    settled: bool = True  # no text of these tokens is held back


class Finish(NamedTuple):
    """Give this to the client; the choice is complete."""

    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprob]
    finish_reason: str
    stop_reason: int | str | None
    excess: int = 0  # characters that the tokens made beyond the text: of a stop string, and after it
    ended: bool = False  # the engine ended it at its last token, which is no text then


class Abandon(NamedTuple):
    """Nothing can be done for this request."""

    fault: EngineFault


Command = Seek | Issue | Deliver | Finish | Abandon
Event = Placed | TokenEvent | EngineFault | Broken


def is_greedy(sampling: Mapping[str, Any]) -> bool:
    """Whether the likeliest token is always taken."""
    return bool(sampling.get("temperature", 1.0) == 0)


def counts_outputs(sampling: Mapping[str, Any]) -> bool:
    """Whether sampling depends on which tokens are outputs, so that they may not come back as prompt."""
    return bool(
        sampling.get("presence_penalty")
        or sampling.get("frequency_penalty")
        or sampling.get("structured_outputs")
        or sampling.get("bad_words")
        or sampling.get("thinking_token_budget") is not None
        or sampling.get("repetition_detection") is not None
    )


def resume_mode(sampling: Mapping[str, Any], *, resumes_output: bool) -> ResumeMode:
    """Return how a request is resumed on a replica that can or cannot take outputs back."""
    if resumes_output:
        return ResumeMode.OUTPUT
    return ResumeMode.REPLAY if counts_outputs(sampling) else ResumeMode.PROMPT


def resumes_exactly(sampling: Mapping[str, Any], *, resumes_output: bool) -> bool:
    """Whether an uninterrupted run would have made the same tokens, between numerically equal engines.

    Sampling with a seed, resumed by prompt, is a continuation from the right distribution, not the same one: some of
    vLLM's samplers keep a generator that knows how many tokens it made.
    """
    return is_greedy(sampling) or resume_mode(sampling, resumes_output=resumes_output) is not ResumeMode.PROMPT


def conversation(
    choice: Choice, text: TextStream, committed: list[int] | None = None
) -> Generator[Command, Event, None]:
    """Carry one choice to its end over any number of engines. The last command is `Finish` or `Abandon`.

    `text`: of this choice, without any token. `committed` is empty, and grows with each token; who gives it may read
    along.
    """
    log = _TokenLog(choice, text, [] if committed is None else committed)
    fruitless = 0
    forced: ResumeMode | None = None
    cause: Cause | None = None
    while True:
        placed = yield Seek(bool(log.committed) or fruitless > 0, cause)
        assert isinstance(placed, Placed)
        mode = forced or resume_mode(choice.rendered.sampling, resumes_output=placed.resumes_output)
        begun = len(log.committed)
        ended = yield from _attempt(choice, log, mode, placed.ticket)
        if ended is None:
            return
        broken = _judge(ended, begun=bool(log.committed))
        if isinstance(broken, EngineFault):
            yield Abandon(broken)
            return
        cause = broken.cause
        if len(log.committed) > begun:
            fruitless = 0
        elif broken.accepted and cause is not Cause.NOTICE:
            fruitless += 1
        if cause is Cause.DIVERGED:
            # The engines differ numerically, so none will repeat these tokens.
            forced = ResumeMode.PROMPT
        fault = _hopeless(choice, cause, fruitless)
        if fault is not None:
            yield Abandon(fault)
            return


def _attempt(
    choice: Choice, log: _TokenLog, mode: ResumeMode, ticket: Ticket | None
) -> Generator[Command, Event, Broken | EngineFault | TokenEvent | None]:
    """Let one engine continue; return what ended the attempt, None if the choice is complete."""
    to_repeat = len(log.committed) if mode is ResumeMode.REPLAY else 0
    repeated = 0
    event = yield Issue(_call(choice, log.committed, mode, ticket), mode if log.committed else None)
    while isinstance(event, TokenEvent) and event.finish_reason not in _UNFINISHED:
        if repeated < to_repeat:
            again = min(to_repeat - repeated, len(event.token_ids))
            if event.token_ids[:again] != log.committed[repeated : repeated + again]:
                return Broken(Cause.DIVERGED, accepted=True)
            repeated += again
            event = event._replace(token_ids=event.token_ids[again:], logprobs=event.logprobs[again:])
        command = log.commit(event)
        event = yield command
        if isinstance(command, Finish):
            return None
    assert not isinstance(event, Placed)
    return event


class _TokenLog:
    """The tokens of one choice, each committed once, and the text they make."""

    def __init__(self, choice: Choice, text: TextStream, committed: list[int]) -> None:
        self.committed = committed
        self._limit = choice.rendered.max_tokens
        self._text = text

    def commit(self, event: TokenEvent) -> Deliver | Finish:
        """Add the tokens of one event and return what the client gets for them."""
        token_ids, reason, stop_reason, logprobs = event
        room = self._limit - len(self.committed)
        if len(token_ids) > room or (len(token_ids) == room and reason is None):
            # An engine that resumes by prompt knows only the rest of the limit; the limit is ours to keep.
            token_ids, logprobs, reason, stop_reason = token_ids[:room], logprobs[:room], "length", None
        ended = reason == "stop"
        text, counted, stop, excess = self._text.push(token_ids, stopped=ended)
        if stop is not None:
            token_ids, logprobs, reason, stop_reason = token_ids[:counted], logprobs[:counted], "stop", stop
        self.committed += token_ids
        if reason is None:
            return Deliver(text, token_ids, logprobs, not self._text.holds_back)
        return Finish(text + self._text.rest(), token_ids, logprobs, reason, stop_reason, excess, ended and not stop)


def _judge(ended: Broken | EngineFault | TokenEvent, *, begun: bool) -> Broken | EngineFault:
    """Say whether the attempt failed (`Broken`), or the request (`EngineFault`)."""
    match ended:
        case Broken():
            return ended
        case EngineFault(code=code) if code in _REQUEST_AT_FAULT and not begun:
            return ended
        case TokenEvent(finish_reason=reason) if reason == FINISHED_BY_ABORT:
            return Broken(Cause.ABORTED, accepted=True)
        case _:
            return Broken(Cause.ENGINE_ERROR, accepted=True)


def _hopeless(choice: Choice, cause: Cause, fruitless: int) -> EngineFault | None:
    if cause is Cause.DIVERGED and choice.rendered.sampling.get("structured_outputs"):
        # By prompt, the grammar would begin anew in the middle of the text.
        return EngineFault(502, "the structured output could not be continued on another engine; ask again", None)
    if fruitless >= FRUITLESS_ATTEMPTS:
        message = f"{fruitless} attempts broke without a token, the last one by {cause}; not trying further engines"
        return EngineFault(502, message, None)
    return None


def _call(choice: Choice, committed: Sequence[int], mode: ResumeMode, ticket: Ticket | None) -> GenerateCall:
    rendered = choice.rendered
    token_ids: Sequence[int] = rendered.token_ids
    done = 0
    sampling: dict[str, Any] = {**rendered.sampling, "seed": choice.seed}
    if committed and mode is ResumeMode.PROMPT:
        token_ids, done = (*rendered.token_ids, *committed), len(committed)
    elif committed and mode is ResumeMode.OUTPUT:
        sampling["extra_args"] = {RESUME_OUTPUT_TOKEN_IDS: list(committed)}
    sampling["max_tokens"] = rendered.max_tokens - done
    sampling["min_tokens"] = max(rendered.min_tokens - done, 0)
    if ticket is not None and (mode is ResumeMode.REPLAY or not _covers(rendered, committed, ticket)):
        ticket = None
    return GenerateCall(choice.request_id, token_ids, sampling, rendered.attachments, choice.adapter, ticket)


def _covers(rendered: Rendered, committed: Sequence[int], ticket: Ticket) -> bool:
    """Whether the log holds all the tokens that the ticket stands for; else the next engine could not check them."""
    return 0 < ticket.valid_tokens <= len(rendered.token_ids) + len(committed)
