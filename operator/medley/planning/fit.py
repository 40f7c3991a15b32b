"""From measured step times to a latency model: least squares, non-negative and robust, cross-validated.

Called by `medley profile fit` and the benchmark. Pure; needs scipy, so the operator does not import it.

    found = fit(points)                       # points of one model on one shape
    found.by_size.p90                         # the error to expect at a size that was not measured
    fitted_latency(found, kv_tokens=..., max_running=..., max_batched_tokens=...)

The form is that of `core.latency`: step + a x prompt tokens + b x decoding sequences + c x their contexts, all of them
0 or more. The loss is Huber's, of the logarithm of predicted / measured, so twice too fast and twice too slow count
alike, and a record that cannot be (a batch that did not fit the memory and ran in parts) does not bend the rest.

What the points cannot tell apart is not made up: where every sequence has the same context, b and c are one
coefficient, and the model says nothing about other contexts (`context_known`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls  # type: ignore[import-untyped]  # scipy has no types of its own

from medley.core.errors import InvalidInputError
from medley.core.latency import LatencyModel
from medley.core.profiles import FittedLatency

FOLDS = 5
_SQUARED_UP_TO = 0.05  # of the logarithm; what is further off counts linearly
_REWEIGHTINGS = 30
_SETTLED = 1e-6
_LEAST_FACTOR = 1e-9  # a prediction of nothing has a logarithm too
_SAME_CONTEXT = 1.01  # contexts per sequence that differ by less are one
_LEAST_SIZES = 2  # of each kind: a line has two parameters


_Floats = NDArray[np.float64]
_Coefficients = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class StepPoint:
    """One measured step (or the mean of several alike).

    `context_tokens`: sum over the decoding sequences. `resolution_s`: half the last digit of the record; a time that
    was written down as 1 ms may have been 0.5.
    """

    prefill_tokens: int
    sequences: int
    context_tokens: int
    seconds: float
    resolution_s: float = 0.0

    def __post_init__(self) -> None:
        if min(self.prefill_tokens, self.sequences, self.context_tokens) < 0 or not (
            self.prefill_tokens or self.sequences
        ):
            raise InvalidInputError("points", f"expected a step that holds something, got {self}")
        if not math.isfinite(self.seconds) or self.seconds <= 0:
            raise InvalidInputError("points", f"expected a time above 0 s, got {self.seconds} in {self}")

    @property
    def size(self) -> tuple[int, int, int]:
        """What the step held."""
        return self.prefill_tokens, self.sequences, self.context_tokens


@dataclass(frozen=True, slots=True)
class Errors:
    """How far predictions were off: factor - 1, the same for twice too slow and twice too fast. NaN: none made."""

    number: int
    median: float
    p90: float
    worst: float
    bias: float  # mean of predicted / measured - 1


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients in seconds, what they rest on, and their errors.

    `by_fold`: each fifth of the points predicted from the rest; `by_size`: each size from all other sizes. A size at
    the end of the range is then extrapolated to, so this is the larger and the more honest one.
    """

    step_s: float
    per_prefill_token_s: float
    per_sequence_s: float
    per_context_token_s: float
    context_known: bool
    largest_prefill_tokens: int
    largest_sequences: int
    largest_context_tokens: int  # of one sequence
    points: int
    sizes: int
    within: Errors  # of the points that were fitted
    by_fold: Errors
    by_size: Errors
    by_size_prefill: Errors
    by_size_decode: Errors

    def step(self, point: StepPoint) -> float:
        """Return the predicted seconds of a step."""
        return (
            self.step_s
            + self.per_prefill_token_s * point.prefill_tokens
            + self.per_sequence_s * point.sequences
            + self.per_context_token_s * point.context_tokens
        )


def fit(points: Sequence[StepPoint], *, folds: int = FOLDS) -> Fit:
    """Return the model of the points and how far it is off.

    Raises InvalidInputError if they cannot tell its coefficients: it takes at least two sizes of prompts and two of
    decoding batches.
    """
    prompts = {point.prefill_tokens for point in points if point.prefill_tokens and not point.sequences}
    batches = {point.size[1:] for point in points if point.sequences}
    for what, found in (("prompts (prefill_tokens)", prompts), ("decoding batches (sequences)", batches)):
        if len(found) < _LEAST_SIZES:
            raise InvalidInputError("points", f"expected at least 2 sizes of {what}, got {len(found)}: measure more")
    context_known = _tells_contexts(points)
    solved = _solved(points, context_known=context_known)
    ordered = sorted(range(len(points)), key=lambda each: (points[each].size, points[each].seconds))
    fold_of = {index: rank % folds for rank, index in enumerate(ordered)}
    sizes = _validated(points, lambda index: points[index].size, context_known=context_known)
    return Fit(
        step_s=solved[0],
        per_prefill_token_s=solved[1],
        per_sequence_s=solved[2],
        per_context_token_s=solved[3],
        context_known=context_known,
        largest_prefill_tokens=max(point.prefill_tokens for point in points),
        largest_sequences=max(point.sequences for point in points),
        largest_context_tokens=max(
            round(point.context_tokens / point.sequences) for point in points if point.sequences
        ),
        points=len(points),
        sizes=len({point.size for point in points}),
        within=_errors([(_predicted(solved, point), point) for point in points]),
        by_fold=_errors(_validated(points, lambda index: fold_of[index], context_known=context_known)),
        by_size=_errors(sizes),
        by_size_prefill=_errors([each for each in sizes if not each[1].sequences]),
        by_size_decode=_errors([each for each in sizes if each[1].sequences]),
    )


def fitted_latency(found: Fit, *, kv_tokens: int, max_running: int, max_batched_tokens: int) -> FittedLatency:
    """Return the model for a profile; its error is that which 9 of 10 sizes stay within when left out of the fit."""
    return FittedLatency(
        model=LatencyModel(
            step_s=found.step_s,
            per_prefill_token_s=found.per_prefill_token_s,
            per_sequence_s=found.per_sequence_s,
            per_context_token_s=found.per_context_token_s,
            kv_tokens=kv_tokens,
            max_running=max_running,
            max_batched_tokens=max_batched_tokens,
        ),
        error=found.by_size.p90,
        largest_prefill_tokens=max(1, found.largest_prefill_tokens),
        largest_sequences=max(1, found.largest_sequences),
        largest_context_tokens=max(1, found.largest_context_tokens),
    )


def repeated(points: Sequence[StepPoint]) -> tuple[StepPoint, ...]:
    """Return one point per size: the median of its measurements."""
    times: dict[tuple[int, int, int], list[float]] = {}
    first: dict[tuple[int, int, int], StepPoint] = {}
    for point in points:
        times.setdefault(point.size, []).append(point.seconds)
        first.setdefault(point.size, point)
    return tuple(replace(first[size], seconds=statistics.median(seconds)) for size, seconds in sorted(times.items()))


def _tells_contexts(points: Sequence[StepPoint]) -> bool:
    each = [point.context_tokens / point.sequences for point in points if point.sequences]
    return min(each) > 0 and max(each) / min(each) > _SAME_CONTEXT


def _row(point: StepPoint) -> tuple[float, float, float, float]:
    return 1.0, float(point.prefill_tokens), float(point.sequences), float(point.context_tokens)


def _solved(points: Sequence[StepPoint], *, context_known: bool) -> _Coefficients:
    """Return the four coefficients, 0 or more, of the least loss; from two starts, since it has several minima."""
    rows = np.array([_row(point) for point in points])
    if not context_known:
        rows[:, 3] = 0.0
    scale = np.abs(rows).max(axis=0)
    scale[scale == 0] = 1.0  # nothing to scale: the coefficient comes out as 0
    rows = rows / scale
    seconds = np.array([point.seconds for point in points])
    # What was recorded coarsely counts for less: 1 ms to the nearest millisecond may be half as long again.
    trust = seconds / (seconds + np.array([point.resolution_s for point in points]))
    ends = [
        _settled(rows, seconds, trust, nnls(rows / each[:, None], seconds / each)[0]) for each in (seconds, seconds**0)
    ]
    step, prefill, sequence, context = (float(value) for value in min(ends, key=lambda end: end[0])[1] / scale)
    return step, prefill, sequence, context


def _settled(rows: _Floats, seconds: _Floats, trust: _Floats, found: _Floats) -> tuple[float, _Floats]:
    """Return the loss and the coefficients to which reweighted least squares of the logarithm settle from a start."""
    loss, best = _loss(rows, seconds, trust, found), found
    for _ in range(_REWEIGHTINGS):
        predicted = np.maximum(rows @ found, seconds * _LEAST_FACTOR)
        off = np.clip(
            np.log(seconds / predicted), -1.0, 1.0
        )  # a step at most this long, so that it stays near the line
        weight = trust * np.sqrt(_SQUARED_UP_TO / np.maximum(np.abs(off), _SQUARED_UP_TO)) / predicted
        before, (found, _) = found, nnls(rows * weight[:, None], predicted * (1 + off) * weight)
        now = _loss(rows, seconds, trust, found)
        if now < loss:
            loss, best = now, found
        if np.allclose(found, before, rtol=_SETTLED, atol=0.0):
            break
    return loss, best


def _loss(rows: _Floats, seconds: _Floats, trust: _Floats, coefficients: _Floats) -> float:
    off = np.abs(np.log(np.maximum(rows @ coefficients / seconds, _LEAST_FACTOR)))
    squared = off <= _SQUARED_UP_TO
    each = np.where(squared, off**2 / 2, _SQUARED_UP_TO * (off - _SQUARED_UP_TO / 2))
    return float((trust**2 * each).sum())


def _predicted(coefficients: _Coefficients, point: StepPoint) -> float:
    return math.fsum(value * each for value, each in zip(coefficients, _row(point), strict=True))


def _validated(
    points: Sequence[StepPoint], group_of: Callable[[int], Hashable], *, context_known: bool
) -> list[tuple[float, StepPoint]]:
    """Return every point with what the points of all other groups predict for it."""
    groups: dict[Hashable, list[int]] = {}
    for index in range(len(points)):
        groups.setdefault(group_of(index), []).append(index)
    found: list[tuple[float, StepPoint]] = []
    for held_out in groups.values():
        out = set(held_out)
        rest = [point for index, point in enumerate(points) if index not in out]
        if not any(point.prefill_tokens for point in rest) or not any(point.sequences for point in rest):
            continue
        solved = _solved(rest, context_known=context_known and _tells_contexts(rest))
        found += [(_predicted(solved, points[index]), points[index]) for index in held_out]
    return found


def _errors(predictions: Sequence[tuple[float, StepPoint]]) -> Errors:
    if not predictions:
        return Errors(0, math.nan, math.nan, math.nan, math.nan)
    off = sorted(_off(predicted, point) for predicted, point in predictions)
    bias = statistics.fmean(predicted / point.seconds - 1 for predicted, point in predictions)
    return Errors(len(off), statistics.median(off), off[math.ceil(0.9 * len(off)) - 1], off[-1], bias)


def _off(predicted: float, point: StepPoint) -> float:
    """Return by what factor a prediction is off, less 1; inside what the record cannot tell apart it is not off."""
    low, high = point.seconds - point.resolution_s, point.seconds + point.resolution_s
    if predicted <= 0:
        return math.inf
    return max(predicted / high, low / predicted, 1.0) - 1
