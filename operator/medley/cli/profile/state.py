"""What a measurement has found so far: a file of JSON lines, one per size and rate, so that it can be taken up again.

The first line says what is measured; a file of another measurement is refused. A line that was cut while it was
written is dropped, and what it said is measured again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from medley.core.errors import InvalidInputError
from medley.core.profiles import Latency
from medley.planning.measuring import Cell, Outcome

Size = tuple[int, int]  # input and output tokens


@dataclass(slots=True)
class State:
    """Outcomes by size, and how long a request of a size takes alone (s). `path` None: kept in memory only."""

    path: Path | None
    outcomes: dict[Size, list[Outcome]] = field(default_factory=dict)
    alone_s: dict[Size, float] = field(default_factory=dict)
    last_at: datetime | None = None

    @classmethod
    def opened(cls, path: Path | None, about: Mapping[str, Any]) -> State:
        """Return the state of a measurement, begun if the file is not there. Raises InvalidInputError."""
        state = cls(path)
        if path is None:
            return state
        lines = list(_lines(path))
        if not lines:
            state._write(dict(about), mode="w")
            return state
        if lines[0] != about:
            differing = sorted(key for key in {*about, *lines[0]} if about.get(key) != lines[0].get(key))
            raise InvalidInputError(
                "--state", f"{path} is of another measurement ({', '.join(differing)} differ): name another file"
            )
        _without_cut_line(path)
        for line in lines[1:]:
            state._take(line)
        return state

    def add(self, outcome: Outcome, at: datetime) -> None:
        """Keep an outcome."""
        cell = outcome.cell
        line = {
            "inputTokens": cell.input_tokens,
            "outputTokens": cell.output_tokens,
            "requestsPerSecond": cell.requests_per_second,
            "requests": outcome.requests,
            "failures": outcome.failures,
            "saturated": outcome.saturated,
            "latencies": [
                [each.percentile, each.ttft / timedelta(seconds=1), each.tpot / timedelta(seconds=1)]
                for each in outcome.latencies
            ],
            "at": at.isoformat(),
        }
        self._take(line)
        self._write(line)

    def add_alone(self, size: Size, seconds: float) -> None:
        """Keep how long a request takes alone."""
        line = {"inputTokens": size[0], "outputTokens": size[1], "aloneSeconds": seconds}
        self._take(line)
        self._write(line)

    def _take(self, line: Mapping[str, Any]) -> None:
        try:
            size = (int(line["inputTokens"]), int(line["outputTokens"]))
            if "aloneSeconds" in line:
                self.alone_s[size] = float(line["aloneSeconds"])
                return
            found = Outcome(
                Cell(*size, float(line["requestsPerSecond"])),
                requests=int(line["requests"]),
                failures=int(line["failures"]),
                saturated=bool(line["saturated"]),
                latencies=tuple(
                    Latency(float(percentile), timedelta(seconds=ttft), timedelta(seconds=tpot))
                    for percentile, ttft, tpot in line["latencies"]
                ),
            )
            self.last_at = datetime.fromisoformat(line["at"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError("--state", f"{self.path}: {error!r} in {dict(line)}: name another file") from error
        self.outcomes.setdefault(size, []).append(found)

    def _write(self, line: Mapping[str, Any], *, mode: str = "a") -> None:
        if self.path is None:
            return
        try:
            with self.path.open(mode) as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise InvalidInputError("--state", f"{self.path} cannot be written: {error.strerror}") from error


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, text in enumerate(_whole_lines(path), start=1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise InvalidInputError("--state", f"{path}, line {number} is not JSON: name another file") from error
        if not isinstance(line, dict):
            raise InvalidInputError("--state", f"{path}, line {number} is not an object: name another file")
        yield line


def _whole_lines(path: Path) -> list[str]:
    try:
        text = path.read_text() if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError("--state", f"{path} cannot be read: {error}") from error
    return text[: text.rfind("\n") + 1].splitlines()


def _without_cut_line(path: Path) -> None:
    whole = "".join(f"{line}\n" for line in _whole_lines(path))
    if path.read_text() != whole:
        path.write_text(whole)
