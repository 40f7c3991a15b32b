"""Tokens to text, piece by piece: incremental detokenisation, stop strings, and what a token's bytes are.

`session` pushes committed tokens through a `TextStream`. It lives in the router and not in an engine, so a stop string
or a character of several tokens that straddles a cut is seen whole. Pure computation; the tokenizer file is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from medley.core.errors import InvalidInputError

# Message of tokenizers' DecodeStream when a decoder takes back text that it gave before (vLLM issue 17448).
_INVALID_PREFIX = "Invalid prefix encountered"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Enough of the prompt for a decoder to know that the output does not begin a text (leading spaces), or is in the
# middle of a character.
_CONTEXT_TOKENS = 16


class Vocabulary:
    """A model's tokenizer, for one direction: ids to text and bytes."""

    def __init__(self, tokenizer_json: str) -> None:
        try:
            self.tokenizer: Tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises bare Exception
            raise InvalidInputError(
                "tokenizer.json", f"not a tokenizer of the `tokenizers` library: {error}"
            ) from error
        self._texts: dict[int, tuple[str, bytes]] = {}
        self._added = {id_: token.content for id_, token in self.tokenizer.get_added_tokens_decoder().items()}
        self._byte_level = '"ByteLevel"' in str(self.tokenizer.decoder) or "ByteLevel(" in str(self.tokenizer.decoder)

    def token(self, token_id: int) -> tuple[str, bytes]:
        """Return one token's text by itself and its bytes.

        A token that is only part of a character reads as U+FFFD; its bytes are the true ones where the vocabulary
        spells bytes (byte-level BPE, byte fallback).
        """
        known = self._texts.get(token_id)
        if known is None:
            known = self._texts[token_id] = self._read(token_id)
        return known

    def _read(self, token_id: int) -> tuple[str, bytes]:
        if token_id in self._added:
            return self._added[token_id], self._added[token_id].encode()
        text = self.tokenizer.decode([token_id], skip_special_tokens=False)
        if _REPLACEMENT not in text:
            return text, text.encode()
        spelled = self.tokenizer.id_to_token(token_id) or ""
        if self._byte_level and all(character in _BYTE_OF for character in spelled):
            return text, bytes(_BYTE_OF[character] for character in spelled)
        if len(spelled) == len("<0x00>") and spelled.startswith("<0x"):
            return text, bytes([int(spelled[3:5], 16)])
        return text, text.encode()


def _byte_alphabet() -> dict[str, int]:
    """Return byte-level BPE's alphabet: printable bytes are themselves, the others are moved to U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(0x100) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(moved)}


_BYTE_OF = _byte_alphabet()


class TextRules(NamedTuple):
    """How a client wants its text."""

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    min_tokens: int = 0  # stop strings that end within the first tokens do not count


class Piece(NamedTuple):
    """Text that may be shown. `tokens` is how many of the pushed tokens count: fewer than all after a stop string."""

    text: str
    tokens: int
    stop: str | None  # the stop string that was met
    excess: int = 0  # characters that these tokens made beyond what may be shown


class TextStream:
    """The text of one choice as it grows. Follows vLLM's detokeniser, so both give the same text."""

    __slots__ = ("_begun", "_context", "_count", "_held", "_rules", "_stream", "_tail", "_tokenizer", "_window")

    def __init__(self, vocabulary: Vocabulary, prompt: Sequence[int], rules: TextRules) -> None:
        self._tokenizer = vocabulary.tokenizer
        self._rules = rules
        self._context = list(prompt[-_CONTEXT_TOKENS:])
        self._stream: Any = None  # until it is primed
        self._begun = ""
        self._window = max((len(stop) for stop in rules.stop), default=1) - 1
        self._tail = ""  # the last characters made, as far back as a stop string may begin
        self._held = ""  # of them, those not shown yet
        self._count = 0

    def prime(self) -> None:
        """Read the end of the prompt. `push` does it at last; done before, the first tokens do not wait for it."""
        if self._stream is None:
            self._stream, self._begun = _primed(self._tokenizer, self._context, self._rules)

    def push(self, token_ids: Sequence[int], *, stopped: bool = False) -> Piece:
        """Add tokens and return what may be shown.

        `stopped`: the engine ended at the last of them (end of text, stop token), which is not text unless the client
        wants its stop included.
        """
        if self._stream is None:
            self.prime()
        rules = self._rules
        if not rules.stop and not stopped:  # nearly always
            count = len(token_ids)
            self._count += count
            text = self._step(token_ids[0]) if count == 1 else "".join([self._step(each) for each in token_ids])
            return Piece(text, count, None)
        shown: list[str] = []
        last = len(token_ids) - 1
        for position, token_id in enumerate(token_ids):
            self._count += 1
            hidden = stopped and position == last and not rules.include_stop
            text = "" if hidden else self._step(token_id)
            if not rules.stop:
                shown.append(text)
                continue
            met = self._meet(text)
            shown.append(met.text)
            if met.stop is not None:
                return Piece("".join(shown), position + 1, met.stop, met.excess)
        return Piece("".join(shown), last + 1, None)

    @property
    def holds_back(self) -> bool:
        """Whether some text waits, since a stop string may begin with it."""
        return bool(self._held)

    def rest(self) -> str:
        """Return what was held back in case a stop string would follow; the stream has ended."""
        rest, self._held = self._held, ""
        return rest

    def _step(self, token_id: int) -> str:
        try:
            text: str = self._stream.step(self._tokenizer, token_id) or ""
        except Exception as error:  # the library raises bare Exception
            if not str(error).startswith(_INVALID_PREFIX):
                raise
            self._stream, self._begun = _stream([], self._rules), ""
            text = self._stream.step(self._tokenizer, token_id) or ""
        if text and self._begun:
            text, self._begun = text[_shared(text, self._begun) :], ""
        return text

    def _meet(self, text: str) -> Piece:
        """Look for the stop string that is complete first, among those that end in `text`."""
        rules = self._rules
        whole = self._tail + text
        found = _earliest(whole, len(self._tail), rules.stop) if text and self._count > rules.min_tokens else None
        shown_before = len(self._tail) - len(self._held)
        if found is not None:
            start, end, stop = found
            self._held = ""
            until = end if rules.include_stop else max(start, shown_before)
            return Piece(whole[shown_before:until], 1, stop, len(whole) - until)
        keep = 0 if rules.include_stop else _unsettled(whole, rules.stop, self._window)
        until = max(len(whole) - keep, shown_before)
        piece = whole[shown_before:until]
        self._held = whole[until:]
        self._tail = whole[max(len(whole) - self._window, 0) :]
        return Piece(piece, 1, None)


def _stream(context: list[int], rules: TextRules) -> Any:
    return DecodeStream(ids=context, skip_special_tokens=rules.skip_special_tokens)


def _primed(tokenizer: Tokenizer, context: list[int], rules: TextRules) -> tuple[Any, str]:
    """Return a stream that stands at the end of the context, and the text of it that the stream has not given yet.

    That is where a prompt of token ids ends in the middle of a character. A stream that began with such ids would give
    all their text again with its first whole character.
    """
    texts = [tokenizer.decode(context, skip_special_tokens=rules.skip_special_tokens)]
    kept = len(context)
    while kept and texts[-1].endswith(_REPLACEMENT):
        kept -= 1
        texts.append(tokenizer.decode(context[:kept], skip_special_tokens=rules.skip_special_tokens))
    stream = _stream(context[:kept], rules)
    for token_id in context[kept:]:
        stream.step(tokenizer, token_id)
    return stream, texts[0][len(texts[-1]) :]


def _shared(text: str, other: str) -> int:
    """Return how many characters two texts have in common from their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False)))


def _earliest(whole: str, new_from: int, stops: Sequence[str]) -> tuple[int, int, str] | None:
    """Return begin, end and text of the stop string that ends first, at or after `new_from` + 1."""
    best: tuple[int, int, str] | None = None
    for stop in stops:
        start = whole.find(stop, max(new_from - len(stop) + 1, 0))
        if start >= 0 and (best is None or start + len(stop) < best[1]):
            best = (start, start + len(stop), stop)
    return best


def _unsettled(whole: str, stops: Sequence[str], window: int) -> int:
    """Return the length of the longest end of `whole` with which a stop string begins."""
    for length in range(min(window, len(whole)), 0, -1):
        end = whole[-length:]
        if any(len(stop) > length and stop.startswith(end) for stop in stops):
            return length
    return 0
