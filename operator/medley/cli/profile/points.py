"""Reads step times that others published, or that a person measured, into series of points; for `medley profile fit`.

Forms that are known, by what they contain:

* CSV with the header `prefill_tokens,sequences,context_tokens,seconds`: medley's own form;
* CSV with the columns of splitwise-sim's `perf_model.csv` (milliseconds): one series per model, hardware and TP size;
* a folder with `prompt_bs2time.csv` and `decode_bs2time.csv`, as Helix has it: tokens or sequences -> milliseconds of
  one layer; the context of its sequences is not recorded;
* JSON with `tp-N: {bsz-B: {init, incr}}`, as SpotServe's artifact has it: milliseconds of one layer for 512 prompt
  tokens per sequence, and for one decoding step: one series per TP size.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medley.core.errors import InvalidInputError
from medley.planning.fit import StepPoint

OWN_COLUMNS = ("prefill_tokens", "sequences", "context_tokens", "seconds")
_SPLITWISE_COLUMNS = (
    "model",
    "hardware",
    "tensor_parallel",
    "prompt_size",
    "batch_size",
    "token_size",
    "prompt_time",
    "token_time",
)
_HELIX_FILES = ("prompt_bs2time.csv", "decode_bs2time.csv")
# SpotServe measured inputs of 512 tokens and outputs of 128 (its section 6.1): a decoding step meets their middle.
_SPOTSERVE_INPUT, _SPOTSERVE_OUTPUT = 512, 128
_MILLISECONDS = 1e3  # of a second


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one model on one shape. `source`: who measured; `name`: model, hardware, TP size."""

    source: str
    name: str
    points: tuple[StepPoint, ...]


def read(paths: Iterable[Path], *, layers: int = 1) -> tuple[Series, ...]:
    """Return the series that files and folders hold.

    `layers`: by how many the times of records of one layer are multiplied. Raises InvalidInputError.
    """
    return tuple(series for path in paths for series in _read(path, layers))


def _read(path: Path, layers: int) -> Iterator[Series]:
    if path.is_dir():
        if all((path / name).is_file() for name in _HELIX_FILES):
            yield _helix(path, layers)
            return
        below = sorted(each for each in path.iterdir() if each.is_dir() or _may_be(each))
        found = [series for each in below for series in _read(each, layers)]
        if not found:
            raise InvalidInputError(str(path), "holds no step times: expected a CSV file, or a folder of Helix's form")
        yield from found
        return
    text = _text(path)
    if path.suffix == ".json":
        yield from _spotserve(path, text, layers)
        return
    rows = list(csv.DictReader(text.splitlines()))
    columns = set(rows[0]) if rows else set()
    if columns >= set(OWN_COLUMNS):
        yield Series("own", path.stem, tuple(_own(path, number, row) for number, row in enumerate(rows, start=2)))
    elif columns >= set(_SPLITWISE_COLUMNS):
        yield from _splitwise(path, rows)
    else:
        raise InvalidInputError(str(path), f"expected a CSV file with the header {','.join(OWN_COLUMNS)}")


def _may_be(path: Path) -> bool:
    """Say whether a file of a folder that is searched may hold step times."""
    if path.suffix == ".json":
        return '"tp-1"' in _text(path)
    return path.suffix == ".csv" and path.name not in _HELIX_FILES


def _own(path: Path, number: int, row: dict[str, str]) -> StepPoint:
    try:
        return StepPoint(
            int(row["prefill_tokens"]), int(row["sequences"]), int(row["context_tokens"]), float(row["seconds"])
        )
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"{path}, line {number}", f"expected four numbers: {error}") from error


def _splitwise(path: Path, rows: list[dict[str, str]]) -> Iterator[Series]:
    found: dict[tuple[str, str, int], list[StepPoint]] = {}
    for number, row in enumerate(rows, start=2):
        try:
            key = (row["model"], row["hardware"], int(float(row["tensor_parallel"])))
            prompt, batch, output = (int(row[name]) for name in ("prompt_size", "batch_size", "token_size"))
            prompt_s, token_s = (float(row[name]) / _MILLISECONDS for name in ("prompt_time", "token_time"))
        except ValueError as error:
            raise InvalidInputError(f"{path}, line {number}", f"expected numbers: {error}") from error
        points = found.setdefault(key, [])
        points.append(StepPoint(prompt * batch, 0, 0, prompt_s))
        points.append(StepPoint(0, batch, batch * (prompt + output // 2), token_s))
    for (model, hardware, tensor_parallel), points in sorted(found.items()):
        yield Series("splitwise", f"{model} {hardware} tp{tensor_parallel}", tuple(points))


def _helix(folder: Path, layers: int) -> Series:
    prompts, batches = (_pairs(folder / name) for name in _HELIX_FILES)
    points = [
        StepPoint(tokens, 0, 0, seconds * layers, resolution * layers) for tokens, seconds, resolution in prompts
    ] + [StepPoint(0, batch, 0, seconds * layers, resolution * layers) for batch, seconds, resolution in batches]
    return Series("helix", f"{folder.parent.name} {folder.name}", tuple(points))


def _pairs(path: Path) -> Iterator[tuple[int, float, float]]:
    """Yield count, seconds and resolution in seconds; the first line says that nothing takes no time."""
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            count, written = line.split(",")
            decimals = len(written.strip().partition(".")[2])
            if int(count):
                yield int(count), float(written) / _MILLISECONDS, 0.5 * 10**-decimals / _MILLISECONDS
        except ValueError as error:
            raise InvalidInputError(f"{path}, line {number}", f"expected a count and milliseconds: {error}") from error


def _spotserve(path: Path, text: str, layers: int) -> Iterator[Series]:
    document = _json(path, text)
    sizes = sorted((int(key.removeprefix("tp-")), value) for key, value in document.items() if key.startswith("tp-"))
    if not sizes:
        raise InvalidInputError(str(path), "expected JSON with tp-1, tp-2, …: {bsz-1: {init, incr}, …}")
    for tensor_parallel, batches in sizes:
        points: list[StepPoint] = []
        for key, times in sorted(batches.items()):
            batch = int(key.removeprefix("bsz-"))
            context = batch * (_SPOTSERVE_INPUT + _SPOTSERVE_OUTPUT // 2)
            points += [
                StepPoint(_SPOTSERVE_INPUT * batch, 0, 0, times["init"] * layers / _MILLISECONDS),
                StepPoint(0, batch, context, times["incr"] * layers / _MILLISECONDS),
            ]
        yield Series("spotserve", f"{path.stem} {path.parent.name} tp{tensor_parallel}", tuple(points))


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InvalidInputError(str(path), f"is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInputError(str(path), "expected a JSON object")
    return document


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(str(path), f"cannot be read: {error}") from error
