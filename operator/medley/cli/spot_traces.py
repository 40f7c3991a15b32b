"""Read how many spot nodes there were over time, for `medley plan --spot-history`: how often one is taken away.

Two forms, as they were published with Bamboo, Parcae and SpotServe:

    CSV         two columns without a header: time, nodes from then on; the unit of time is not in the file
    JSON lines  [milliseconds, "add" | "remove" | ..., {"nodes": [names]}]

Neither names a GPU or a zone, so the person does: `--spot-history l4/us-east-1a=trace.csv:ms`. Errors name file, line.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

from medley.core.errors import InvalidInputError

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_HOUR = 3600.0
# Bounds of a count's mean, at 90 %: a count of n is this many standard deviations from them.
_QUANTILE = 1.645
_MOST_NODES = 1_000_000


@dataclass(frozen=True, slots=True)
class Losses:
    """How spot nodes were taken away while a trace was recorded.

    `waves`: moments at which at least one node went. Nodes go together, so the bounds of the rate (90 %, waves taken
    to be Poisson) are wider than the number of lost nodes suggests.
    """

    duration: timedelta
    node_hours: float
    lost: int
    waves: int

    @property
    def per_node_hour(self) -> float:
        """How often one node is taken away, per hour."""
        return self.lost / self.node_hours

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest rate that the waves are compatible with, per node-hour (Wilson and Hilferty's cubes)."""
        size = self.lost / self.waves if self.waves else 1.0
        below = 0.0
        if self.waves:
            below = self.waves * (1 - 1 / (9 * self.waves) - _QUANTILE / (3 * math.sqrt(self.waves))) ** 3
        more = self.waves + 1
        above = more * (1 - 1 / (9 * more) + _QUANTILE / (3 * math.sqrt(more))) ** 3
        return max(below, 0.0) * size / self.node_hours, above * size / self.node_hours


def read(path: Path, unit: str | None) -> Losses:
    """Return the losses of a trace; `unit`: of the times of a CSV file (ms, s, m, h).

    Raises InvalidInputError with file, line and remedy.
    """
    if unit is not None and unit not in _SECONDS:
        raise InvalidInputError("--spot-history", f"expected a unit of time among {', '.join(_SECONDS)}, got {unit!r}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InvalidInputError(str(path), f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(str(path), f"is not text: {error}") from error
    if next((line for line in lines if line.strip()), "").lstrip().startswith("["):
        if unit not in (None, "ms"):
            raise InvalidInputError("--spot-history", f"{path} counts in ms; leave out :{unit}")
        return _losses(str(path), list(_json_lines(str(path), lines)))
    if unit is None:
        raise InvalidInputError(
            "--spot-history", f"{path} does not say in which unit its times are; name it, as in l4={path}:s"
        )
    return _losses(str(path), list(_csv(str(path), lines, _SECONDS[unit])))


def _csv(path: str, lines: list[str], unit_s: float) -> Iterator[tuple[float, int]]:
    for number, row in enumerate(csv.reader(lines), start=1):
        if not row:
            continue
        try:
            time, nodes = row
            yield float(time) * unit_s, int(nodes)
        except ValueError as error:
            raise InvalidInputError(
                f"{path}, line {number}", f"expected a time and a number of nodes, got {','.join(row)!r}"
            ) from error


def _json_lines(path: str, lines: list[str]) -> Iterator[tuple[float, int]]:
    there: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            event = json.loads(line)
        except ValueError as error:
            raise InvalidInputError(where, f"is not JSON: {error}") from error
        match event:
            case [int() | float() as at, str(what), {"nodes": [*nodes]}]:
                named = {str(node) for node in nodes}
                if what == "add":
                    there |= named
                elif what == "remove":
                    if strangers := sorted(named - there):
                        raise InvalidInputError(where, f"removes {', '.join(strangers)}, which was never added")
                    there -= named
                yield at * _SECONDS["ms"], len(there)
            case _:
                raise InvalidInputError(where, 'expected [milliseconds, "add" or "remove", {"nodes": [...]}]')


def _losses(path: str, steps: list[tuple[float, int]]) -> Losses:
    """Return the losses of (seconds, nodes from then on), in order of time."""
    for number, ((before, _), (after, nodes)) in enumerate(pairwise([(-math.inf, 0), *steps]), start=1):
        if not (math.isfinite(after) and after >= before):
            raise InvalidInputError(f"{path}, entry {number}", f"expected times that never fall, got {after:g} s")
        if not 0 <= nodes <= _MOST_NODES:
            raise InvalidInputError(f"{path}, entry {number}", f"expected 0 to {_MOST_NODES} nodes, got {nodes}")
    node_hours = math.fsum(nodes * (after - before) for (before, nodes), (after, _) in pairwise(steps)) / _HOUR
    if not node_hours > 0:
        raise InvalidInputError(path, "holds no node for any time; give a trace in which there are some")
    drops = [(at, before - after) for (_, before), (at, after) in pairwise(steps) if after < before]
    return Losses(
        duration=timedelta(seconds=steps[-1][0] - steps[0][0]),
        node_hours=node_hours,
        lost=sum(lost for _, lost in drops),
        waves=len({at for at, _ in drops}),
    )
