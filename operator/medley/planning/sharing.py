"""What the services of a cluster leave each other of the nodes that their AcceleratorClasses cap.

Called by `proposal`, once per pass over one service, with all services observed; every pass computes the same joint
plan from what is and takes its own part, so nobody needs to keep one. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from medley.core.accelerators import OfferingKey
from medley.planning.joint import Joint, Sharer, shared_caps, together, within
from medley.planning.problem import Allocation, AllocationProblem, Cap

Counts = tuple[tuple[OfferingKey, int], ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """What one service asks, None if it plans nothing (mode Plan, deleted, refused), and the replicas that it holds."""

    name: str  # namespace/name
    problem: AllocationProblem | None
    held: Counts
    priority: int = 0


def left_for(own: Claim, others: Iterable[Claim], feasible: Callable[[AllocationProblem], bool]) -> AllocationProblem:
    """Return a service's problem within what the others leave it: what they are to have, and what they still hold.

    While another holds what this one is to have, this one keeps what it holds, if it cannot be met without; so two
    services that change places do not both let go first. `feasible` says whether a problem can be met.
    Raises SolverError. A cap's name says who takes how much of it.
    """
    if own.problem is None:
        raise ValueError("a service that plans nothing needs nothing")
    others = tuple(sorted(others, key=lambda claim: claim.name))
    shared = _contended(own.problem, others)
    if not shared:
        return own.problem
    idle = [claim for claim in others if claim.problem is None]
    planned = sorted(
        (own, *(claim for claim in others if claim.problem is not None)),
        # Of equals first who holds replicas: a newcomer does not take what another serves from.
        key=lambda claim: (-claim.priority, not claim.held, claim.name),
    )
    free = tuple(
        replace(cap, at_most=max(cap.at_most - math.fsum(_takes(cap, claim.held) for claim in idle), 0.0))
        for cap in shared
    )
    found = _together(
        tuple(Sharer(claim.name, claim.problem, claim.priority) for claim in planned if claim.problem), free
    )
    plans = {name: answer if isinstance(answer, Allocation) else answer.best for name, answer in found.answers}
    taken = {
        cap.name: {
            claim.name: most
            for claim in others
            if (most := max(_takes(cap, claim.held), _takes(cap, _planned(plans, claim)))) > 0
        }
        for cap in shared
    }
    left = _named(own.problem, shared, taken, {})
    if feasible(left) or not isinstance(found.of[own.name], Allocation):
        return left
    return _named(own.problem, shared, taken, {cap.name: _takes(cap, own.held) for cap in shared})


# Every service's pass asks about the same services.
@lru_cache(maxsize=64)
def _together(sharers: tuple[Sharer, ...], shared: tuple[Cap, ...]) -> Joint:
    return together(sharers, shared)


def _contended(own: AllocationProblem, others: Iterable[Claim]) -> tuple[Cap, ...]:
    """Return the caps of all, if any that this service may use is used by another too."""
    others = tuple(others)
    shared = shared_caps([own, *(claim.problem for claim in others if claim.problem is not None)])
    mine = {offering.key for offering in own.offerings}
    theirs = {key for claim in others for key, _ in claim.held}
    theirs |= {offering.key for claim in others if claim.problem for offering in claim.problem.offerings}
    met = any(any(key in mine for key, _ in cap.uses) and any(key in theirs for key, _ in cap.uses) for cap in shared)
    return shared if met else ()


def _planned(plans: Mapping[str, Allocation], claim: Claim) -> Counts:
    return plans[claim.name].replicas if claim.name in plans else ()


def _takes(cap: Cap, counts: Counts) -> float:
    uses = dict(cap.uses)
    return math.fsum(uses.get(key, 0.0) * count for key, count in counts)


def _named(
    own: AllocationProblem,
    shared: tuple[Cap, ...],
    taken: Mapping[str, Mapping[str, float]],
    least: Mapping[str, float],
) -> AllocationProblem:
    limits = [max(cap.at_most - math.fsum(taken[cap.name].values()), least.get(cap.name, 0.0), 0.0) for cap in shared]
    found = within(own, shared, limits)
    names = {
        cap.name: f"{cap.name}, of {cap.at_most:g} "
        + ", ".join(f"{name} takes {use:g}" for name, use in sorted(taken[cap.name].items()))
        for cap in shared
        if taken[cap.name]
    }
    return replace(found, caps=tuple(replace(cap, name=names.get(cap.name, cap.name)) for cap in found.caps))
