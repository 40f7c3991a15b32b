"""What the services of a cluster leave each other of nodes that their AcceleratorClasses cap, and of Budgets.

Called by `proposal`, once per pass over one service, with all services observed; every pass computes the same joint
plan from what is and takes its own part, so nobody needs to keep one. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from medley.core.accelerators import OfferingKey
from medley.planning.allocator import cheapest
from medley.planning.commons import merged, shared_caps, within
from medley.planning.joint import Joint, Sharer, together
from medley.planning.problem import MICRODOLLARS, Allocation, AllocationProblem, Cap

Counts = tuple[tuple[OfferingKey, int], ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """What one service asks, None if it plans nothing (mode Plan, deleted, refused), and the replicas that it holds.

    `drawn`: the Budget that it draws on, with the prices of what it holds; None: it draws on none.
    """

    name: str  # namespace/name
    problem: AllocationProblem | None
    held: Counts
    priority: int = 0
    drawn: Cap | None = None

    def takes(self, cap: Cap, counts: Counts) -> float:
        """Return what replicas of this service take of a shared cap."""
        uses = dict(cap.uses) if self.pays(cap) else {}
        return math.fsum(uses.get(key, 0.0) * count for key, count in counts)

    def pays(self, cap: Cap) -> bool:
        """Say whether this service takes of a cap by what it buys: of a Budget only those that draw on it do."""
        return not cap.drawn or (self.drawn is not None and self.drawn.name == cap.name)

    @property
    def keys(self) -> frozenset[OfferingKey]:
        """Offerings that it holds or may buy."""
        offered = self.problem.offerings if self.problem is not None else ()
        return frozenset((*(each.key for each in offered), *(key for key, _ in self.held)))


def left_for(own: Claim, others: Iterable[Claim], feasible: Callable[[AllocationProblem], bool]) -> AllocationProblem:
    """Return a service's problem within what the others leave it: what they are to have, and what they still hold.

    While another holds what this one is to have, this one keeps what it holds, if it cannot be met without; so two
    services that change places do not both let go first. `feasible` says whether a problem can be met.
    Raises SolverError. A cap's name says who takes how much of it.
    """
    if own.problem is None:
        raise ValueError("a service that plans nothing needs nothing")
    others = tuple(sorted(others, key=lambda claim: claim.name))
    shared = _contended(own, own.problem, others)
    if not shared:
        return own.problem
    idle = [claim for claim in others if claim.problem is None]
    planned = sorted(
        (own, *(claim for claim in others if claim.problem is not None)),
        # Of equals first who is served by what it holds: nobody takes what another serves from.
        key=lambda claim: (-claim.priority, not _served(claim), not claim.held, claim.name),
    )
    free = tuple(
        replace(cap, at_most=max(cap.at_most - math.fsum(claim.takes(cap, claim.held) for claim in idle), 0.0))
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
            if (most := max(claim.takes(cap, claim.held), claim.takes(cap, _planned(plans, claim)))) > 0
        }
        for cap in shared
    }
    left = _named(own.problem, shared, taken, {})
    if feasible(left) or not isinstance(found.of[own.name], Allocation):
        return left
    return _named(own.problem, shared, taken, {cap.name: own.takes(cap, own.held) for cap in shared})


@lru_cache(maxsize=256)
def _served(claim: Claim) -> bool:
    """Say whether a service can be met by the replicas that it holds."""
    counts = dict(claim.held)
    if claim.problem is None or not counts:
        return False
    held = tuple(replace(each, max_replicas=counts[each.key]) for each in claim.problem.offerings if each.key in counts)
    kept = {each.key for each in held}
    asked = replace(
        claim.problem,
        offerings=held,
        utilisation_of=tuple(each for each in claim.problem.utilisation_of if each[0] in kept),
        fleet=(),
        change_usd=(),
    )
    return bool(held) and cheapest(asked) is not None


# Every service's pass asks about the same services.
@lru_cache(maxsize=64)
def _together(sharers: tuple[Sharer, ...], shared: tuple[Cap, ...]) -> Joint:
    return together(sharers, shared)


def _contended(own: Claim, asked: AllocationProblem, others: Iterable[Claim]) -> tuple[Cap, ...]:
    """Return the caps of all, if any that this service takes of is taken of by another too."""
    others = tuple(others)
    claims = (own, *others)
    shared = merged(
        (
            *shared_caps([asked, *(claim.problem for claim in others if claim.problem is not None)]),
            *(claim.drawn for claim in claims if claim.drawn is not None),
        )
    )
    keys = {claim.name: claim.keys for claim in claims}

    def may_take(claim: Claim, cap: Cap) -> bool:
        return claim.pays(cap) and any(key in keys[claim.name] for key, _ in cap.uses)

    met = any(may_take(own, cap) and any(may_take(other, cap) for other in others) for cap in shared)
    return shared if met else ()


def _planned(plans: Mapping[str, Allocation], claim: Claim) -> Counts:
    return plans[claim.name].replicas if claim.name in plans else ()


def _named(
    own: AllocationProblem,
    shared: tuple[Cap, ...],
    taken: Mapping[str, Mapping[str, float]],
    least: Mapping[str, float],
) -> AllocationProblem:
    limits = [max(cap.at_most - math.fsum(taken[cap.name].values()), least.get(cap.name, 0.0), 0.0) for cap in shared]
    # Money to the microdollar, as bills are: what is left of 1.2 after 0.8 buys something for 0.4.
    limits = [round(limit, MICRODOLLARS) if cap.drawn else limit for cap, limit in zip(shared, limits, strict=True)]
    found = within(own, shared, limits)
    names = {cap.name: _told(cap, taken[cap.name]) for cap in shared if taken[cap.name]}
    return replace(found, caps=tuple(replace(cap, name=names.get(cap.name, cap.name)) for cap in found.caps))


def _told(cap: Cap, taken: Mapping[str, float]) -> str:
    """Return the name of a cap with who takes how much of it."""
    form = ".2f" if cap.drawn else "g"
    takes = ", ".join(f"{name} takes {use:{form}}" for name, use in sorted(taken.items()))
    return f"{cap.name} (of {cap.at_most:.2f} {takes})" if cap.drawn else f"{cap.name}, of {cap.at_most:g} {takes}"
