"""What the matrix of sizes asks, and how the answers of a cut stream and of a whole one are compared.

Everything goes to a router, as clients would send it. Prompts are drawn by chance from a name, so that a case has the
same one in every run and no two cases share one.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medley.wire.generate import TokenEvent
from tests.router.moving import streamed

TOKENS, PROMPT_TOKENS, PROMPT_WORDS = 400, 300, 80
# Of streams that end by themselves; a model of chaos puts as much white space between words as it may.
FEWEST_TOKENS, MOST_TOKENS = 220, 400
# Two likeliest tokens as close as this may change places between sizes that add in another order.
LEAST_GAP = 1e-4
_VOCABULARY = range(3, 512)  # without begin, end and padding


def _schema(integers: int) -> dict[str, object]:
    each = {"type": "integer", "minimum": 100, "maximum": 999}
    array = {"type": "array", "minItems": integers, "maxItems": integers, "items": each}
    return {"type": "object", "additionalProperties": False, "required": ["a"], "properties": {"a": array}}


_TOOL = {"type": "function", "function": {"name": "count", "strict": True, "parameters": _schema(20)}}
AHEAD = "a copy ahead"  # greedy, without the router


CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


@dataclass(frozen=True)
class Kind:
    """One way to sample. `screened`: the likeliest token is taken, so a near tie could go either way."""

    sampling: Mapping[str, object] = field(default_factory=dict)
    path: str = COMPLETION
    screened: bool = True
    ends: bool = False  # by itself, when its grammar is complete
    stops: bool = False  # at a string of its own answer

    @property
    def choices(self) -> int:
        return int(self.sampling.get("n", 1))

    @property
    def engines_own(self) -> bool:
        """Whether an engine does all of it; stop strings, choices and tool calls are the router's business."""
        return self.path == COMPLETION and self.choices == 1 and not self.stops

    @property
    def most_tokens(self) -> int:
        return MOST_TOKENS if self.ends else TOKENS


KINDS = {
    "greedy": Kind(),
    "seeded": Kind({"temperature": 1.0, "seed": 7}, screened=False),
    "penalties": Kind({"presence_penalty": 1.5, "frequency_penalty": 0.7, "repetition_penalty": 1.2}),
    "regex": Kind({"structured_outputs": {"regex": "(ab|ba|fox)( (the|lazy) [a-z]{3}){60}"}}),
    "json schema": Kind({"structured_outputs": {"json": _schema(26)}, "ignore_eos": False}, ends=True),
    "stop string": Kind(stops=True),
    "logprobs": Kind({"logprobs": 2}),
    "tool call": Kind({"tools": [_TOOL], "tool_choice": "required", "ignore_eos": False}, CHAT, ends=True),
    "n=2": Kind({"temperature": 1.0, "seed": 9, "n": 2}, screened=False),
}


def prompt_tokens(name: str) -> list[int]:
    return random.Random(name).choices(_VOCABULARY, k=PROMPT_TOKENS)


def body(kind: Kind, name: str, salt: str, **more: object) -> dict[str, object]:
    """The request of a case. Equal salts share cached blocks, others do not."""
    asked = {
        "max_tokens": kind.most_tokens, "temperature": 0, "ignore_eos": True, "cache_salt": salt, "stream": True,
    } | kind.sampling | more  # fmt: skip
    if kind.path == COMPLETION:
        return {"prompt": prompt_tokens(name), **asked}
    words = " ".join("".join(random.Random(f"{name} {n}").choices("bdkmnrtaeiou", k=5)) for n in range(PROMPT_WORDS))
    return {"messages": [{"role": "user", "content": words}], **asked}


def with_logprobs(kind: Kind) -> dict[str, object]:
    """What makes a router say the two likeliest tokens of each position."""
    return {"logprobs": True, "top_logprobs": 2} if kind.path == CHAT else {"logprobs": 2}


@dataclass
class Said:
    """One choice, as its client has it."""

    text: str = ""
    calls: list[list[str]] = field(default_factory=list)  # name and arguments of each tool call
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: list[float] = field(default_factory=list)

    def add(self, choice: Mapping[str, object]) -> None:
        delta = choice.get("delta") or {}
        self.text += choice.get("text") or delta.get("content") or ""
        for part in delta.get("tool_calls") or ():
            while len(self.calls) <= part["index"]:
                self.calls.append(["", ""])
            called = part["function"]
            self.calls[part["index"]][0] += called.get("name") or ""
            self.calls[part["index"]][1] += called.get("arguments") or ""
        self.logprobs += (choice.get("logprobs") or {}).get("token_logprobs") or ()
        self.finish_reason = choice["finish_reason"] or self.finish_reason
        self.stop_reason = choice.get("stop_reason") or self.stop_reason


async def ask(url: str, path: str, asked: Mapping[str, object]) -> tuple[list[Said], str]:
    """Return the choices of a streamed answer, by index, and its id."""
    said: dict[int, Said] = {}
    name = ""
    async for event in streamed(url + path, asked):
        name = event["id"]
        for choice in event["choices"]:
            said.setdefault(choice["index"], Said()).add(choice)
    return [said[index] for index in sorted(said)], name


def least_gap(events: Sequence[TokenEvent]) -> float:
    """The least difference between the two likeliest log probabilities, over all tokens of a stream."""
    gaps = []
    for each in (logprob for event in events for logprob in event.logprobs):
        first, second, *_ = sorted((value for _, value in each.top), reverse=True)
        gaps.append(first - second)
    return min(gaps)


def stop_within(text: str) -> str:
    """A string that begins with the first tokens of a text and ends near its end: any cut falls into it."""
    begin = len(text) // 40
    return text[begin : min(len(text) * 9 // 10, begin + 1000)]


def same(one: Sequence[Said], other: Sequence[Said]) -> bool:
    """Whether two answers are equal; log probabilities to what sums in another order may change."""
    near = 1e-3

    def exact(said: Said) -> tuple[object, ...]:
        return said.text, said.calls, said.finish_reason, said.stop_reason, len(said.logprobs)

    return [exact(each) for each in one] == [exact(each) for each in other] and all(
        abs(a - b) <= near for x, y in zip(one, other, strict=True) for a, b in zip(x.logprobs, y.logprobs, strict=True)
    )
