"""What several services share, as caps: nodes and GPUs, which whoever buys them takes, and Budgets, which some draw on.

Called by `question` (a service's own Budget), `proposal` (those of its neighbours), `joint` and `sharing`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from medley.core.accelerators import AcceleratorClass, OfferingKey
from medley.core.errors import UnknownBudgetError
from medley.core.service import Budget
from medley.planning.offerings import usd_per_replica_hour
from medley.planning.problem import AllocationProblem
from medley.planning.terms import Cap


def budget_named(budgets: Iterable[Budget], name: str) -> Budget:
    """Return a Budget by its name; raises UnknownBudgetError."""
    known = {each.name: each for each in budgets}
    if name not in known:
        there = ", ".join(sorted(known)) or "none"
        raise UnknownBudgetError(
            "spec.limits.budget", f"no Budget named {name}; there are: {there}; write it, or remove the field"
        )
    return known[name]


def spending(budget: Budget, prices: Iterable[tuple[OfferingKey, float]]) -> Cap:
    """Return a Budget as a cap on what these offerings cost; `prices`: of one replica, in USD per hour."""
    uses = tuple(sorted(dict(prices).items()))
    return Cap(f"Budget {budget.name}", float(budget.usd_per_hour), uses, drawn=True)


def priced(
    keys: Iterable[OfferingKey], classes: Iterable[AcceleratorClass]
) -> tuple[tuple[tuple[OfferingKey, float], ...], tuple[OfferingKey, ...]]:
    """Return what one replica of each offering costs, in USD per hour, and the offerings whose price nobody says."""
    classes = tuple(classes)
    found = [(key, usd_per_replica_hour(classes, key)) for key in keys]
    return (
        tuple((key, usd) for key, usd in found if usd is not None),
        tuple(key for key, usd in found if usd is None),
    )


def merged(caps: Iterable[Cap]) -> tuple[Cap, ...]:
    """Return caps by name, those of one name as one; the tightest of their bounds counts."""
    found: dict[str, Cap] = {}
    for cap in caps:
        known = found.get(cap.name, cap)
        uses = tuple(sorted({**dict(known.uses), **dict(cap.uses)}.items()))
        found[cap.name] = replace(cap, at_most=min(known.at_most, cap.at_most), uses=uses)
    return tuple(found[name] for name in sorted(found))


def shared_caps(problems: Iterable[AllocationProblem]) -> tuple[Cap, ...]:
    """Return the caps of several problems, those of one name as one; the tightest of their bounds counts."""
    return merged(cap for problem in problems for cap in problem.all_caps if cap.shared)


def binds(cap: Cap, problem: AllocationProblem) -> bool:
    """Say whether a shared cap is one of this problem's too, whose replicas then take of it."""
    return not cap.drawn or any(own.name == cap.name for own in problem.caps)


def within(problem: AllocationProblem, shared: Sequence[Cap], limits: Iterable[float]) -> AllocationProblem:
    """Return a problem with what is shared at these limits in place of its own caps and quotas of the same names."""
    offered = {offering.key for offering in problem.offerings}
    names = {cap.name for cap in shared}
    caps = [cap for cap in problem.caps if cap.name not in names]
    for cap, limit in zip(shared, limits, strict=True):
        uses = tuple((key, use) for key, use in cap.uses if key in offered)
        if uses and binds(cap, problem):
            caps.append(replace(cap, at_most=float(limit), uses=uses))
    return replace(
        problem, caps=tuple(caps), quotas=tuple(quota for quota in problem.quotas if quota.name not in names)
    )
