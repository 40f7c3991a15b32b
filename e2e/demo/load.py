"""Concurrent chat streams through the real openai client, each checked token by token against an uninterrupted run.

Used by `make demo`, `medley demo --local` has its own; knows the router's URL and nothing of the cluster.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import openai

# In fp32, two engines agree on greedy output wherever the best token leads by more than rounding. Prompts whose
# reference comes nearer than this to a tie are left out, since among millions of tokens near-ties are certain.
SMALLEST_GAP = 1e-4
# Tokens of an answer. A long one takes longer than the 30 s of a notice, and is checked token by token. It is cut
# before its first near-tie and must keep LEAST_LONG tokens.
SHORT, LONG, LEAST_LONG, LONG_EVERY = 160, 1800, 1400, 5
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "to", "far", "hills")


@dataclass(frozen=True, slots=True)
class Reference:
    """A prompt, and the answer of a run that nothing interrupted."""

    prompt: str
    text: str
    tokens: tuple[str, ...]  # as bytes in hex: two halves of a character are two tokens

    @property
    def max_tokens(self) -> int:
        """How long the answer is: all of them are as long as asked for."""
        return len(self.tokens)

    @property
    def is_long(self) -> bool:
        """Whether it may outlast a notice, and is checked token by token."""
        return self.max_tokens > SHORT

    def cut(self, tokens: int) -> Reference:
        """Return the beginning of a long answer as an answer of its own; greedy answers begin alike."""
        return replace(self, tokens=self.tokens[:tokens]) if self.is_long else self


@dataclass(slots=True)
class Stream:
    """What one client stream got."""

    prompt: str
    started_at: float
    text: str = ""
    tokens: list[str] = field(default_factory=list)  # asked for with long answers alone: parsing them costs the client
    token_count: int = 0
    ended_at: float | None = None
    finish_reason: str | None = None
    error: str | None = None
    identical: bool | None = None  # None: not ended
    as_promised: bool | None = None  # identical; where engines do not agree on every token, as long as asked for

    @property
    def broken(self) -> bool:
        """Whether the client lost anything: an error, no end, or other tokens than were promised."""
        return self.error is not None or self.finish_reason is None or self.as_promised is not True


def prompts(count: int, seed: int = 7) -> tuple[str, ...]:
    """Return `count` different prompts of 20 to 120 words."""
    chance = random.Random(seed)
    return tuple(
        " ".join([f"{n}", *(chance.choice(WORDS) for _ in range(chance.randint(20, 120)))]) for n in range(count)
    )


class Load:
    """Keeps `concurrency` streams open until told to stop; may be run again. `async with` closes its connections."""

    def __init__(self, base_url: str, model: str, concurrency: int = 24, *, exact: bool = True) -> None:
        self.client = openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=600)
        self.model, self.concurrency = model, concurrency
        # In 16 bits near-ties are everywhere, and two engines do not agree: then nothing is screened by them.
        self.exact, self._smallest_gap = exact, SMALLEST_GAP if exact else 0.0
        self.references: tuple[Reference, ...] = ()
        self.streams: list[Stream] = []
        self.screened_out = 0
        self._stopping = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def record_references(
        self, wanted: int, progress: Callable[[int], None] = lambda _: None, at_once: int = 24
    ) -> None:
        """Run prompts uninterrupted and keep those without near-ties, the long ones up to their first."""
        sizes = [LONG if n % LONG_EVERY == 0 else SHORT for n in range(wanted)]
        spare = iter(prompts(wanted * 3))
        kept: dict[int, list[Reference]] = {SHORT: [], LONG: []}
        while missing := {size: lacking for size in kept if (lacking := sizes.count(size) - len(kept[size])) > 0}:
            # Half of the long ones are refused, and they take longest: ask for twice as many.
            turn = [LONG] * 2 * missing.get(LONG, 0) + [SHORT] * missing.get(SHORT, 0)
            asked = list(zip(spare, turn[:at_once], strict=False))
            if not asked:
                raise RuntimeError(f"too many prompts have near-ties: {self.screened_out} of {wanted * 3}")
            answers = await asyncio.gather(*(self._reference(*each) for each in asked))
            for (_, size), found in zip(asked, answers, strict=True):
                if found.max_tokens == size or (size == LONG and found.max_tokens >= LEAST_LONG):
                    kept[size].append(found)
                else:
                    self.screened_out += 1
            progress(sum(min(len(kept[size]), sizes.count(size)) for size in kept))
        self.references = tuple(kept[size].pop() for size in sizes)

    async def still_holds(self, reference: Reference) -> bool:
        """Whether the service gives the answer of a reference that was recorded before."""
        return await self._reference(reference.prompt, reference.max_tokens) == reference

    async def _reference(self, prompt: str, max_tokens: int) -> Reference:
        answer = await self.client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=max_tokens,
            temperature=0,
            logprobs=True,
            top_logprobs=2,
            extra_body={"ignore_eos": True},
        )
        logprobs = answer.choices[0].logprobs
        if logprobs is None or logprobs.content is None or len(logprobs.content) != max_tokens:
            raise RuntimeError(f"the reference run of {prompt[:30]!r} did not return {max_tokens} tokens with logprobs")
        gaps = (abs(t.top_logprobs[0].logprob - t.top_logprobs[1].logprob) for t in logprobs.content)
        clean = next((n for n, gap in enumerate(gaps) if gap < self._smallest_gap), max_tokens)
        text = answer.choices[0].message.content or ""
        return Reference(prompt, text, tuple(map(_token, logprobs.content[:clean])))

    @property
    def long(self) -> tuple[Reference, ...]:
        """The references whose answers may outlast a notice."""
        return tuple(each for each in self.references if each.is_long)

    def open(self) -> list[Stream]:
        """Return the streams that have not ended."""
        return [stream for stream in self.streams if stream.ended_at is None]

    def stop(self) -> None:
        """Let the open streams end and open no more."""
        self._stopping.set()

    async def run(self, on_end: Callable[[Stream], None] = lambda _: None, *, first: Sequence[Reference] = ()) -> None:
        """Keep `concurrency` streams open until `stop` is called and all have ended; clients begin with `first`."""
        self._stopping.clear()
        await asyncio.gather(*(self._client(number, on_end, first) for number in range(self.concurrency)))

    async def _client(self, number: int, on_end: Callable[[Stream], None], first: Sequence[Reference]) -> None:
        if first:
            on_end(await self._stream(first[number % len(first)]))
        turn = number
        while not self._stopping.is_set():
            reference = self.references[turn % len(self.references)]
            turn += self.concurrency
            on_end(await self._stream(reference))

    async def _stream(self, reference: Reference) -> Stream:
        stream = Stream(reference.prompt, time.monotonic())
        self.streams.append(stream)
        try:
            answer = await self.client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": reference.prompt}],
                max_tokens=reference.max_tokens,
                temperature=0,
                logprobs=reference.is_long,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
            async for chunk in answer:
                if chunk.usage is not None:
                    stream.token_count = chunk.usage.completion_tokens
                for choice in chunk.choices:
                    stream.text += choice.delta.content or ""
                    if choice.logprobs is not None and choice.logprobs.content:
                        stream.tokens += [_token(t) for t in choice.logprobs.content]
                    stream.finish_reason = choice.finish_reason or stream.finish_reason
        except openai.OpenAIError as error:
            stream.error = f"{type(error).__name__}: {error}"
        if reference.is_long:
            stream.identical = tuple(stream.tokens) == reference.tokens
        else:
            stream.identical = (stream.text, stream.token_count) == (reference.text, reference.max_tokens)
        stream.as_promised = stream.identical if self.exact else stream.token_count == reference.max_tokens
        stream.ended_at = time.monotonic()
        return stream


def _token(entry: object) -> str:
    """Return a token's bytes as text that tells any two tokens apart, even halves of a character."""
    raw = getattr(entry, "bytes", None)
    return bytes(raw).hex() if raw is not None else str(getattr(entry, "token", ""))
