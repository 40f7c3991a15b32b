"""Read a trace of requests, for `medley plan --trace`: CSV with a header, one request per line.

Three things are looked for by the column's name, whatever its case and place:

    time     TIMESTAMP, arrived_at, timestamp, time, arrival_s          ISO 8601, or seconds; may be missing
    input    ContextTokens, num_prefill_tokens, input_tokens, prompt_tokens
    output   GeneratedTokens, num_decode_tokens, output_tokens, completion_tokens

These are the names of the Azure LLM inference traces, of Vidur and of OpenAI's `usage`. Errors name file, line, column.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from medley.core.errors import InvalidInputError
from medley.planning.arrivals import Arrival

Parsed = TypeVar("Parsed")

TIME = ("timestamp", "arrived_at", "time", "arrival_s", "arrived_at_s")
INPUT = ("contexttokens", "num_prefill_tokens", "input_tokens", "prompt_tokens")
OUTPUT = ("generatedtokens", "num_decode_tokens", "output_tokens", "completion_tokens")
# No model takes prompts this long: such a column counts bytes, or is another one.
_MOST_TOKENS = 10_000_000
# Seconds since 1970 reach this in the year 5138; milliseconds passed it in 1973.
_SECONDS_END = 1e11


@dataclass(frozen=True, slots=True)
class _Columns:
    time: int | None
    input: int
    output: int
    names: tuple[str, ...]


def read(path: Path) -> tuple[Arrival, ...]:
    """Return the requests of a trace. Raises InvalidInputError with file, line, column and remedy."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            return _requests(str(path), csv.reader(lines))
    except OSError as error:
        raise InvalidInputError(str(path), f"cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(str(path), f"is not CSV: {error}") from error


def _requests(path: str, rows: Iterable[Sequence[str]]) -> tuple[Arrival, ...]:
    numbered = ((number, row) for number, row in enumerate(rows, start=1) if any(cell.strip() for cell in row))
    _, header = next(numbered, (0, ()))
    columns = _columns(path, header)
    arrivals: list[Arrival] = []
    clock: str | None = None
    for number, row in numbered:
        if len(row) != len(columns.names):
            raise InvalidInputError(
                f"{path}, line {number}", f"has {len(row)} columns, the header {len(columns.names)}"
            )
        at_s: float | None = None
        if columns.time is not None:
            kind, at_s = _cell(path, number, columns.names[columns.time], row[columns.time], _time)
            if clock not in (None, kind):
                raise InvalidInputError(
                    f"{path}, line {number}, column {columns.names[columns.time]}",
                    f"is {kind}, lines before it are {clock}; write all times alike",
                )
            clock = kind
        arrivals.append(
            Arrival(
                at_s,
                _cell(path, number, columns.names[columns.input], row[columns.input], _tokens),
                _cell(path, number, columns.names[columns.output], row[columns.output], _tokens),
            )
        )
    if not arrivals:
        raise InvalidInputError(path, "has no requests below its header; give a trace with at least one")
    return tuple(arrivals)


def _columns(path: str, header: Sequence[str]) -> _Columns:
    names = tuple(cell.strip() for cell in header)
    lower = [name.lower() for name in names]

    def place(known: Sequence[str], what: str) -> int:
        found = [number for number, name in enumerate(lower) if name in known]
        if len(found) == 1:
            return found[0]
        said = ", ".join(names) or "nothing"
        if found:
            raise InvalidInputError(f"{path}, line 1", f"has several columns of {what} ({said}); keep one")
        raise InvalidInputError(
            f"{path}, line 1",
            f"has no column of {what} tokens (it has: {said}); name one of them {known[-2]} or {known[0]}",
        )

    timed = [number for number, name in enumerate(lower) if name in TIME]
    if len(timed) > 1:
        raise InvalidInputError(f"{path}, line 1", f"has several columns of times ({', '.join(names)}); keep one")
    return _Columns(timed[0] if timed else None, place(INPUT, "input"), place(OUTPUT, "output"), names)


def _cell(path: str, line: int, column: str, text: str, parse: Callable[[str], Parsed]) -> Parsed:
    try:
        return parse(text.strip())
    except ValueError as error:
        raise InvalidInputError(f"{path}, line {line}, column {column}", str(error)) from error


def _tokens(text: str) -> int:
    try:
        tokens = int(text)
    except ValueError:
        raise ValueError(f"expected a whole number of tokens, got {text!r}") from None
    if tokens < 0:
        raise ValueError(f"expected 0 tokens or more, got {tokens}")
    if tokens > _MOST_TOKENS:
        raise ValueError(f"expected tokens, got {tokens}: more than any model takes; does the column count bytes?")
    return tokens


def _time(text: str) -> tuple[str, float]:
    """Return how a time is written, and it in seconds."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(
                f"expected a time such as 2023-11-16 18:17:03.98, or seconds such as 12.5, got {text!r}"
            ) from None
        # Without a zone it is read as UTC: only differences count.
        aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return "a date and time", aware.timestamp()
    if not math.isfinite(seconds):
        raise ValueError(f"expected a finite number of seconds, got {text!r}")
    if abs(seconds) >= _SECONDS_END:
        raise ValueError(f"expected seconds, got {text}: that looks like milliseconds or less; divide by the unit")
    return "a number of seconds", seconds
