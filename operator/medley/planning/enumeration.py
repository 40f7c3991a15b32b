"""All whole points of a few columns at once, where they are few enough: what `branching` finds, without its programmes.

Called by `cover`. Every column but one runs over its range; the last one, that with the widest range, follows from the
rows. Thousands of points take a millisecond, as long as a handful of linear programmes. Knows nothing of GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from medley.planning.ilp import Effort, Model, Numbers, Point, Undecided, Unsolvable

MOST_POINTS = 20_000
_SLACK = 1e-6
_WITHIN = 1e-7  # as near to a row's bound as the solver lets pass
_ROUNDS = 200


def enumerated(
    model: Model, objectives: Sequence[Numbers], effort: Effort, refuted: Callable[[Numbers], bool]
) -> Point | Unsolvable | None:
    """Return the best whole point that is not refuted, of all that are within 1e-6 of the least first objective.

    `refuted` adds the inequalities that a point violates to the model, and says whether there were any. None: there are
    too many points, or they cannot be told to be few; the model may then know more.
    """
    for _ in range(_ROUNDS):
        found = _within_reach(model, objectives, effort, refuted)
        if not isinstance(found, _Dearer):
            return found
    return None


class _Dearer:
    """What was thought to serve does not, and nothing so cheap does: points that cost more have to be counted too."""


def _within_reach(
    model: Model, objectives: Sequence[Numbers], effort: Effort, refuted: Callable[[Numbers], bool]
) -> Point | Unsolvable | _Dearer | None:
    """Return the best of the points that cost no more than the solution in fractions, rounded up."""
    costs = objectives[0]
    found = model.minimise(costs, effort, whole=False)
    if isinstance(found, Point) and refuted(found.values):
        found = model.minimise(costs, effort, whole=False)
    if not isinstance(found, Point):
        return None if isinstance(found, Undecided) else found
    rows = model.table()
    above = np.ceil(found.values - _WITHIN)
    most = math.fsum(costs * above)
    slack = _SLACK * max(1.0, abs(most))
    if (costs <= 2 * slack).any() or not _hold(rows, above):
        return None
    reduced = model.duals().columns
    spare = most + slack - found.objective
    top = np.floor((most + slack) / costs)
    dear = (reduced > 0) & (found.values <= _WITHIN)
    top[dear] = np.minimum(top[dear], np.floor(spare / reduced[dear] + _WITHIN))
    top = np.minimum(top, model.upper)
    last = int(np.argmax(top))
    others = [column for column in range(len(top)) if column != last]
    if math.prod(float(top[column]) + 1 for column in others) > MOST_POINTS:
        return None
    points = np.zeros((math.prod(int(top[column]) + 1 for column in others), len(top)))
    grid = np.meshgrid(*(np.arange(top[column] + 1) for column in others), indexing="ij")
    for column, values in zip(others, grid, strict=True):
        points[:, column] = values.ravel()
    points = points[points @ costs <= most + slack]
    done = 0
    least, largest = np.zeros(len(points)), np.full(len(points), model.upper[last])
    for _ in range(_ROUNDS):
        rows = model.table()
        new = tuple(each[done:] for each in rows)
        done = len(rows[0])
        kept = _narrowed(new, points, last, least, largest)
        points, least, largest = points[kept], least[kept], largest[kept]
        points[:, last] = least
        usd = points @ costs
        if usd.min(initial=math.inf) > most + slack:
            return _Dearer()
        near = points[usd <= usd.min() + slack]
        ranks = np.lexsort([near @ each for each in reversed(objectives[1:])]) if len(objectives) > 1 else [0]
        best = near[ranks[0]]
        if not refuted(best):
            objective = math.fsum(costs * best)
            return Point(best, objective, objective)
        points[:, last] = 0.0
    return None


Table = tuple[Numbers, Numbers, Numbers]
Places = npt.NDArray[np.intp]


def _hold(rows: Table, point: Numbers) -> bool:
    at_least, at_most, coefficients = rows
    values = coefficients @ point
    return bool((values >= at_least - _WITHIN).all() and (values <= at_most + _WITHIN).all())


def _narrowed(rows: tuple[Numbers, ...], points: Numbers, last: int, least: Numbers, largest: Numbers) -> Places:
    """Narrow the range of the last column at every point by these rows; return the points that are left.

    Points have 0 in the last column.
    """
    possible = np.ones(len(points), dtype=bool)
    for at_least, at_most, row in zip(*rows, strict=True):
        rest, own = points @ row, row[last]
        if own == 0:
            possible &= (rest >= at_least - _WITHIN) & (rest <= at_most + _WITHIN)
            continue
        low, high = sorted(((at_least - rest) / own, (at_most - rest) / own), key=lambda each: float(each[0]))
        np.maximum(least, np.ceil(low - _WITHIN / abs(own)), out=least)
        np.minimum(largest, np.floor(high + _WITHIN / abs(own)), out=largest)
    return np.flatnonzero(possible & (least <= largest))
