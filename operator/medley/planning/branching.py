"""Branch and bound over a handful of integers, lexicographic: the least first objective, then the least second, ...

Called by `cover` for programmes of few columns, all whole, for which a general solver's set-up takes far longer than
the search: 4 GPU types take some dozens of linear programmes of a tenth of a millisecond. Knows nothing of GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from medley.planning.ilp import Effort, Model, Numbers, Point, Undecided, Unsolvable

MOST_COLUMNS = 8
_MOST_NODES = 600
_FRACTION = 1e-6
_SLACK = 1e-6


def branched(
    model: Model, objectives: Sequence[Numbers], effort: Effort, refuted: Callable[[Numbers], bool]
) -> Point | Unsolvable | Undecided | None:
    """Return the best whole point that is not refuted, of all that are within 1e-6 of the least first objective.

    `refuted` adds the inequalities that a point violates to the model, and says whether there were any. None: not
    decided within a few hundred nodes; the model then knows more, and its bounds are as they were.
    """
    first = objectives[0]
    best: Point | None = None
    rank: tuple[float, ...] = ()
    none, top = np.zeros(len(first)), model.upper
    boxes = [(none, top)]
    nodes = 0
    try:
        while boxes:
            low, high = boxes.pop()
            while True:
                nodes += 1
                if nodes > _MOST_NODES:
                    return None
                model.between(low, high)
                found = model.minimise(first, effort, whole=False)
                if not isinstance(found, Point) or (best is not None and found.objective > _at_most(best)):
                    break
                near = np.round(found.values)
                apart = np.abs(found.values - near)
                whole = apart.max() <= _FRACTION
                if (whole or nodes == 1) and refuted(near if whole else found.values):
                    continue
                if not whole:
                    boxes += _halves(low, high, found.values, int(np.argmax(apart)))
                    break
                usd = math.fsum(first * near)
                order = tuple(math.fsum(each * near) for each in objectives[1:])
                if best is None or usd < best.objective - _slack(best) or order < rank:
                    best, rank = Point(near, usd, usd), order
                spare = _at_most(best) - found.objective
                boxes += _rest(low, high, near, model.duals().columns, spare)
                break
            if isinstance(found, Undecided):
                return found
    finally:
        model.between(none, top)
    return Unsolvable() if best is None else best


def _slack(best: Point) -> float:
    return _SLACK * max(1.0, abs(best.objective))


def _at_most(best: Point) -> float:
    return best.objective + _slack(best)


def _halves(low: Numbers, high: Numbers, values: Numbers, column: int) -> list[tuple[Numbers, Numbers]]:
    """Return the two boxes without the fraction; the nearer one last, since it is looked at first."""
    down, up = high.copy(), low.copy()
    down[column], up[column] = math.floor(values[column]), math.ceil(values[column])
    halves = [(low, down), (up, high)]
    return halves if values[column] % 1 >= 0.5 else halves[::-1]  # noqa: PLR2004  # a half


def _rest(low: Numbers, high: Numbers, point: Numbers, reduced: Numbers, spare: float) -> list[tuple[Numbers, Numbers]]:
    """Return boxes that hold all of a box but one point, and what costs more than is to spare by its reduced cost."""
    boxes: list[tuple[Numbers, Numbers]] = []
    low, high = low.copy(), high.copy()
    for column, value in enumerate(point):
        if value > low[column] and -reduced[column] <= spare:
            below = high.copy()
            below[column] = value - 1
            boxes.append((low.copy(), below))
        if value < high[column] and reduced[column] <= spare:
            above = low.copy()
            above[column] = value + 1
            boxes.append((above, high.copy()))
        low[column] = high[column] = value
    return boxes
