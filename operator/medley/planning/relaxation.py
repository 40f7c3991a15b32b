"""Where there is no plan: the least that has to give, each bound alone, and together the smallest common part.

    for each in relaxations(case): ...

Called by `medley explain`. `shortage` names the bounds that bind; this says how far each would have to move, counts the
promise and the demand among the bounds, and prices the plan that there is then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from medley.planning.bounds import Bound, bounds_of, is_promise
from medley.planning.whatif import Case, plan_of

_PERCENT = 100


@dataclass(frozen=True, slots=True)
class Relaxation:
    """The least that has to give for a plan to exist; with several fields, each gives by the same part of itself."""

    fields: tuple[str, ...]
    change: str
    usd_per_hour: float  # of the cheapest plan then
    moved: float | None  # by which part of itself each gives at most, 0.1: 10 %; None: what was forbidden is allowed


Move = tuple[Bound, int]


def relaxations(case: Case) -> Iterator[Relaxation]:
    """Yield, for a case without a plan, the least move of each bound that helps alone, then the least of several.

    Together, bounds give by the same part of themselves (in whole replicas and nodes), and those that need not give are
    left alone: first the limits and hedges, then the promise and the demand with them. What asks for no less of any
    bound than one of the same bounds alone is left out.
    """
    bounds = tuple(bounds_of(case))
    alone: dict[Bound, float] = {}
    for bound in bounds:
        steps = _fewest(bound.steps, lambda steps, bound=bound: _works(case, [(bound, steps)]))  # type: ignore[misc]
        if steps is not None:
            found = _relaxation(case, [(bound, steps)])
            alone[bound] = math.inf if found.moved is None else found.moved
            yield found
    partly = tuple(bound for bound in bounds if bound.whole is not None)
    limits = tuple(bound for bound in partly if not is_promise(bound))
    for chosen in dict.fromkeys((limits, partly)):
        percent = _fewest(_PERCENT, lambda percent, chosen=chosen: _works(case, _by(percent, chosen)))  # type: ignore[misc]
        if percent is None:
            continue
        together = _relaxation(case, _by(percent, _needed(case, chosen, percent)))
        least = min((alone.get(bound, math.inf) for bound in chosen), default=math.inf)
        if len(together.fields) > 1 and together.moved is not None and together.moved < least:
            yield together


def _needed(case: Case, bounds: Sequence[Bound], percent: int) -> list[Bound]:
    """Return bounds that are enough; the demand and the promise are kept where they can be, being last."""
    needed = list(bounds)
    for bound in reversed(bounds):
        fewer = [each for each in needed if each is not bound]
        if _works(case, _by(percent, fewer)):
            needed = fewer
    return needed


def _by(percent: int, bounds: Iterable[Bound]) -> list[Move]:
    """Return the moves of at least so many percent of each bound, or as far as it can give."""
    return [
        (bound, min(math.ceil(percent * bound.whole / _PERCENT), bound.steps))
        for bound in bounds
        if bound.whole is not None
    ]


def _works(case: Case, moves: Iterable[Move]) -> bool:
    return plan_of(_moved(case, moves)) is not None


def _moved(case: Case, moves: Iterable[Move]) -> Case:
    for bound, steps in moves:
        case = bound.relaxed(case, steps)
    return case


def _relaxation(case: Case, moves: Sequence[Move]) -> Relaxation:
    plan = plan_of(_moved(case, moves))
    assert plan is not None, "it was found to work"
    parts = [steps / bound.whole for bound, steps in moves if bound.whole is not None]
    return Relaxation(
        fields=tuple(bound.field for bound, _ in moves),
        change=" and ".join(bound.said(steps) for bound, steps in moves),
        usd_per_hour=plan.usd_per_hour,
        moved=max(parts) if parts else None,
    )


def _fewest(most: int, works: Callable[[int], bool]) -> int | None:
    """Return the least of 1..most that works, if any does; what works for n works for more."""
    low, high = 0, min(1, most)
    while not works(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle, high)
    return high
